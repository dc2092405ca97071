//! Any bytes in any pieces give the events that the whole gives, and what an event took is used again by the next.
#![no_main]

use ai_service::openai::sse::Decoder;
use ai_service_fuzz::{Counting, decode, naive, parts, pieces};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static MEMORY: Counting = Counting::new();

/// More often than a decoder may hold its input, so that one that forgets nothing is found out.
const ROUNDS: usize = 20;

fuzz_target!(|input: &[u8]| {
    let Some((cuts, stream)) = parts(input) else { return };
    assert_eq!(decode(&pieces(cuts, 1, stream)), naive(stream));

    // Closed, so that the rounds do not become one event.
    let closed = [stream, b"\n\n"].concat();
    let pieces = pieces(cuts, 1, &closed);
    let before = MEMORY.in_use();
    let mut decoder = Decoder::default();
    for _ in 0..ROUNDS {
        for piece in &pieces {
            assert!(decoder.feed(piece, |_| {}).is_ok());
        }
        let held = MEMORY.in_use() - before;
        // A line, data and a name; invalid bytes become three each, and buffers grow by doubling.
        assert!(held <= 14 * closed.len() + 64, "{held} bytes after {}", closed.len());
    }
});
