//! A ticket lets in for its own stream, letter by letter, and nothing else does. The first 16 bytes are the stream; the rest
//! is a ticket, or, behind `!`, what is done to the right one: pairs of a place and a byte to put there.
#![no_main]

use std::sync::LazyLock;

use ai_service::{access::Tickets, ids::StreamId};
use libfuzzer_sys::fuzz_target;

static TICKETS: LazyLock<Tickets> = LazyLock::new(Tickets::random);

fuzz_target!(|input: &[u8]| {
    let Some((id, rest)) = input.split_at_checked(16) else { return };
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let id = StreamId::parse(&id).expect("a UUID");
    let right = TICKETS.issue(id);
    assert!(TICKETS.is_for(&right, id));
    let other = StreamId::random();
    assert!(other == id || !TICKETS.is_for(&right, other));
    let given = match rest.strip_prefix(b"!") {
        None => rest.to_vec(),
        Some(changes) => {
            let mut given = right.clone().into_bytes();
            for change in changes.chunks_exact(2) {
                match given.get_mut(usize::from(change[0])) {
                    Some(byte) => *byte = change[1],
                    None => given.push(change[1]),
                }
            }
            given
        }
    };
    let given = String::from_utf8_lossy(&given);
    assert_eq!(TICKETS.is_for(&given, id), given == right, "{given:?}");
});
