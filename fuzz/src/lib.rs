//! What the targets share: how an input is read, a second decoder, and a count of the memory in use.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use ai_service::openai::sse::{Decoder, MAX_LINE_BYTES, TooLong};

/// Name and data of each event, and whether the stream could be read to its end.
pub type Decoded = (Vec<(String, String)>, Result<(), TooLong>);

/// The two parts of an input: its first line says how the rest, the stream, is cut. So seeds can be written by hand.
#[must_use]
pub fn parts(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some((&input[..end], &input[end + 1..]))
}

/// Cuts `stream` into pieces of the lengths that `cuts` says, over and over: `@` is none, `a` one `unit`, `b` two and
/// so on, by the low five bits. Without any length it stays whole.
#[must_use]
pub fn pieces<'a>(cuts: &[u8], unit: usize, stream: &'a [u8]) -> Vec<&'a [u8]> {
    let lengths: Vec<_> = cuts.iter().map(|cut| usize::from(cut & 0x1f) * unit).collect();
    if lengths.iter().all(|length| *length == 0) {
        return vec![stream];
    }
    let mut pieces = Vec::new();
    let mut rest = stream;
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at(rest.len().min(*length));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

/// What the service's decoder makes of the pieces.
#[must_use]
pub fn decode(pieces: &[&[u8]]) -> Decoded {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    let mut feed = |piece: &&[u8]| decoder.feed(piece, |event| {
        // JSON without a field is told beyond the standard.
        if !event.is_loose {
            events.push((event.name.into(), event.data.into()));
        }
    });
    let result = pieces.iter().try_for_each(&mut feed);
    (events, result)
}

/// The standard read literally, on the whole stream at once, with the limits and the field `error` that the decoder's
/// documentation states.
#[must_use]
pub fn naive(stream: &[u8]) -> Decoded {
    let mut events = Vec::new();
    let (mut name, mut data, mut error) = (String::new(), None::<String>, String::new());
    let lines = lines(stream);
    for (index, raw) in lines.iter().enumerate() {
        if raw.len() > MAX_LINE_BYTES {
            return (events, Err(TooLong));
        }
        if index + 1 == lines.len() {
            // No line end came: the line is discarded.
            break;
        }
        let line = String::from_utf8_lossy(raw);
        let line = if index == 0 { line.strip_prefix('\u{feff}').unwrap_or(&line) } else { &line };
        if line.is_empty() {
            let name = std::mem::take(&mut name);
            events.extend(data.take().map(|data| (name, data)));
            if !error.is_empty() {
                events.push(("error".to_owned(), std::mem::take(&mut error)));
            }
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                let longer = data.map_or_else(|| value.to_owned(), |data| data + "\n" + value);
                if longer.len() > MAX_LINE_BYTES {
                    return (events, Err(TooLong));
                }
                data = Some(longer);
            }
            "event" => value.clone_into(&mut name),
            "error" => error.push_str(value),
            _ => {}
        }
    }
    (events, Ok(()))
}

/// All lines without their ends; the last one has none.
fn lines(stream: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = vec![Vec::new()];
    let mut before = 0;
    for byte in stream.iter().copied() {
        match byte {
            b'\n' if before == b'\r' => {}
            b'\n' | b'\r' => lines.push(Vec::new()),
            _ => lines.last_mut().expect("a line").push(byte),
        }
        before = byte;
    }
    lines
}

/// The system's memory, counted.
pub struct Counting(AtomicUsize);

impl Counting {
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Bytes in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(at, layout) }
    }
}
