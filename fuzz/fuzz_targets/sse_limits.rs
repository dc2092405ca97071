//! As `sse_decoder`, around the limits: lines and events of about a megabyte.
#![no_main]

use ai_service_fuzz::{decode, naive, parts, pieces};
use libfuzzer_sys::fuzz_target;

/// What a filler is counted in: 16 are the limit.
const FILLER: usize = 64 * 1024;

/// Longest stream: the limit a few times over.
const LONGEST: usize = 4 * 1024 * 1024;

fuzz_target!(|input: &[u8]| {
    let Some((cuts, stream)) = parts(input) else { return };
    let stream = expand(stream);
    let (events, result) = decode(&pieces(cuts, FILLER / 2, &stream));
    let (expected, expected_result) = naive(&stream);
    // Not in full: they are large.
    assert_eq!(result, expected_result);
    assert_eq!(events.len(), expected.len());
    assert!(events == expected);
});

/// `%`, a letter and a byte stand for that byte many times, as often as the letter says: `a` is one `FILLER`.
fn expand(stream: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    let mut rest = stream;
    while let [first, behind @ ..] = rest {
        (rest, _) = match (first, behind) {
            (b'%', [count, byte, behind @ ..]) => {
                (behind, whole.resize(whole.len() + usize::from(count & 0x1f) * FILLER, *byte))
            }
            _ => (behind, whole.push(*first)),
        };
        if whole.len() > LONGEST {
            break;
        }
    }
    whole.truncate(LONGEST);
    whole
}
