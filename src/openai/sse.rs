//! Bytes to events: the decoder of `text/event-stream`, as the HTML standard defines it.
//!
//! Pure: no I/O, no clock. Bounded: a line, and the data of an event, have at most [`MAX_LINE_BYTES`]. Wherever the
//! bytes are cut, the events are the same. What a client of OpenAI has no use for (`id`, `retry`) is read over.
//!
//! Beyond the standard, three things that upstreams send are told, too: a field `error`; JSON without any field, which the
//! standard would read over line by line; and what stands at the end without the empty line that ends an event. The last
//! two are marked, for they may be anything.
//!
//! Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation>

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// Most bytes of a line, and of the data of an event.
///
/// As many as a whole answer may have: an event may be one, or hold an image beside its text.
pub const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// Room that is kept for the next event; more of it is given back.
const KEPT_BYTES: usize = 64 * 1024;

/// A line or an event that is longer than [`MAX_LINE_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// An event with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// What `event:` said; empty when it said nothing.
    pub name: &'a str,
    /// The lines of `data:`, joined with line feeds. Invalid UTF-8 is replaced by U+FFFD.
    pub data: &'a str,
    /// It stood there without a field, or without its end: where it cannot be read, there was no event.
    pub is_loose: bool,
}

/// Reads a stream, piece by piece.
#[derive(Debug, Default)]
pub struct Decoder {
    /// A line whose end has not come yet.
    line: Vec<u8>,
    data: String,
    name: String,
    /// Whether the event has had a data line, be it empty.
    has_data: bool,
    /// The data so far stood there without a field.
    is_bare: bool,
    /// What `error:` said.
    error: String,
    /// The last byte was CR: a line feed right behind it belongs to the same line end.
    after_cr: bool,
    /// The first line has been seen, where a byte order mark may stand.
    started: bool,
}

impl Decoder {
    /// Reads `bytes` and hands each event that they complete to `on_event`. What is incomplete waits for more.
    ///
    /// # Errors
    /// A line or an event that is too long. The decoder is of no use after that.
    pub fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        let mut rest = bytes;
        if self.after_cr
            && let Some((first, behind)) = rest.split_first()
        {
            self.after_cr = false;
            if *first == b'\n' {
                rest = behind;
            }
        }
        while let Some(end) = memchr2(b'\n', b'\r', rest) {
            let (line, behind) = rest.split_at(end);
            let (ended_by, behind) = behind.split_first().unwrap_or((&b'\n', &[]));
            rest = behind;
            if *ended_by == b'\r' {
                match rest.split_first() {
                    Some((b'\n', behind)) => rest = behind,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if self.line.is_empty() {
                self.end_line(line, &mut on_event)?;
            } else {
                self.hold(line)?;
                let whole = std::mem::take(&mut self.line);
                self.end_line(&whole, &mut on_event)?;
                self.line = whole;
                self.line.clear();
                self.line.shrink_to(KEPT_BYTES);
            }
        }
        self.hold(rest)
    }

    /// The stream has ended: hands on what was incomplete.
    ///
    /// # Errors
    /// As above.
    pub fn finish(&mut self, mut on_event: impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        let rest = std::mem::take(&mut self.line);
        let mut loose = |event: Event<'_>| on_event(Event { is_loose: true, ..event });
        if !rest.is_empty() {
            self.end_line(&rest, &mut loose)?;
        }
        self.end_event(&mut loose);
        Ok(())
    }

    fn hold(&mut self, part: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + part.len() > MAX_LINE_BYTES {
            return Err(TooLong);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self, line: &[u8], on_event: &mut impl FnMut(Event<'_>)) -> Result<(), TooLong> {
        // One that came in one piece was never held.
        if line.len() > MAX_LINE_BYTES {
            return Err(TooLong);
        }
        let line = if self.started { line } else { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) };
        self.started = true;
        if line.is_empty() {
            self.end_event(on_event);
            return Ok(());
        }
        let (field, value) = match memchr(b':', line) {
            Some(colon) => {
                let (field, rest) = line.split_at(colon);
                let value = rest.strip_prefix(b":").unwrap_or(rest);
                (field, value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &b""[..]),
        };
        if self.is_bare && matches!(field, b"data" | b"event" | b"error" | b"id" | b"retry" | b"") {
            // What was named before is named still.
            on_event(Event { name: "", data: &self.data, is_loose: true });
            self.data.clear();
            (self.has_data, self.is_bare) = (false, false);
        }
        match field {
            b"data" => self.add(value)?,
            b"event" => {
                self.name.clear();
                self.name.push_str(&text(value));
            }
            b"error" => {
                let value = text(value);
                if self.error.len() + value.len() > MAX_LINE_BYTES {
                    return Err(TooLong);
                }
                self.error.push_str(&value);
            }
            // No field begins like this.
            _ if self.is_bare || (!self.has_data && matches!(line.first(), Some(b'{' | b'['))) => {
                self.is_bare = true;
                self.add(line)?;
            }
            // A comment has an empty field name; the others do not matter here.
            _ => {}
        }
        Ok(())
    }

    /// Adds a line of data.
    fn add(&mut self, value: &[u8]) -> Result<(), TooLong> {
        let value = text(value);
        if self.data.len() + usize::from(self.has_data) + value.len() > MAX_LINE_BYTES {
            return Err(TooLong);
        }
        if self.has_data {
            self.data.push('\n');
        }
        self.data.push_str(&value);
        self.has_data = true;
        Ok(())
    }

    fn end_event(&mut self, on_event: &mut impl FnMut(Event<'_>)) {
        if self.has_data {
            on_event(Event { name: &self.name, data: &self.data, is_loose: self.is_bare });
            self.data.clear();
            self.data.shrink_to(KEPT_BYTES);
        }
        if !self.error.is_empty() {
            on_event(Event { name: "error", data: &self.error, is_loose: false });
            self.error = String::new();
        }
        (self.has_data, self.is_bare) = (false, false);
        self.name.clear();
    }
}

/// Looks for good UTF-8 first, which is several times as fast as what repairs it and nearly always enough: repairing
/// everything was 15 % of the instructions of a burst.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Events = Vec<(String, String)>;

    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Events, TooLong> {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for piece in pieces {
            decoder.feed(piece, |event| events.push((event.name.to_owned(), event.data.to_owned())))?;
        }
        Ok(events)
    }

    /// The standard read literally, on the whole text at once.
    fn naive(bytes: &[u8]) -> Events {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut name, mut data) = (Vec::new(), String::new(), None::<Vec<String>>);
        let mut lines: Vec<_> = text.split('\n').collect();
        lines.pop();
        for line in lines {
            if line.is_empty() {
                if let Some(data) = data.take() {
                    events.push((std::mem::take(&mut name), data.join("\n")));
                }
                name.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "data" => data.get_or_insert_default().push(value),
                "event" => name = value,
                _ => {}
            }
        }
        events
    }

    /// Streams and the data of the events they hold.
    const VECTORS: [(&[u8], &[&str]); 16] = [
        (b"data: a\n\ndata: b\n\n", &["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
        (b"data: a\r\rdata: b\r\r", &["a", "b"]),
        (b"data: a\n\r\ndata: b\r\n\n", &["a", "b"]),
        (b"\xef\xbb\xbfdata: a\n\n", &["a"]),
        (b": comment\n\n:\n\ndata:a\n: more\ndata:  b\n\n", &["a\n b"]),
        (b"data\n\ndata:\n\n", &["", ""]),
        (b"data\ndata\n\n", &["\n"]),
        (b"event: error\ndata: x\n\nevent: gone\n\ndata: y\n\n", &["x", "y"]),
        (b"id: 1\nretry: 5\nother: z\ndata: x\n\n", &["x"]),
        ("data: 안녕 👩‍👩‍👧\n\n".as_bytes(), &["안녕 👩‍👩‍👧"]),
        (b"data: \xff\xfe\n\n", &["\u{fffd}\u{fffd}"]),
        (b"data: [DONE]\n\n", &["[DONE]"]),
        (b"data: unfinished\n", &[]),
        (b"data: {\"a\":1}\ndata: x: y\n\n", &["{\"a\":1}\nx: y"]),
        (b"\n\n\r\r\n", &[]),
    ];

    #[test]
    fn every_vector_cut_at_every_byte_gives_the_same_events() {
        for (bytes, expected) in VECTORS {
            let data = |events: Events| events.into_iter().map(|(_, data)| data).collect::<Vec<_>>();
            assert_eq!(data(decode([bytes]).unwrap()), *expected, "{bytes:?}");
            assert_eq!(decode([bytes]).unwrap(), naive(bytes), "{bytes:?}");
            for at in 0..=bytes.len() {
                let (head, tail) = bytes.split_at(at);
                assert_eq!(data(decode([head, tail]).unwrap()), *expected, "{bytes:?} at {at}");
            }
            assert_eq!(data(decode(bytes.chunks(1)).unwrap()), *expected, "{bytes:?} byte by byte");
        }
    }

    #[test]
    fn names_belong_to_their_event() {
        let events = decode([&b"event: a\ndata: 1\n\ndata: 2\n\n"[..]]).unwrap();
        assert_eq!(events, [("a".to_owned(), "1".to_owned()), (String::new(), "2".to_owned())]);
    }

    #[test]
    fn memory_is_bounded_in_a_line_and_in_an_event() {
        let long = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(decode([&b"data: "[..], &long]), Err(TooLong));
        assert_eq!(decode([&b": "[..], &long, b"\n\n"]), Err(TooLong));
        let comment = [b": ", &long[..], b"\n\n"].concat();
        assert_eq!(decode([&comment[..]]), Err(TooLong), "in one piece too");
        let line = [b"data: ", &long[..MAX_LINE_BYTES / 2], b"\n"].concat();
        assert_eq!(decode([&line[..], &line]), Err(TooLong));
        let fits = [b"data: ", &long[..MAX_LINE_BYTES - 10], b"\n\n"].concat();
        assert_eq!(decode(fits.chunks(100_000)).unwrap().len(), 1);
        let mut decoder = Decoder::default();
        fits.chunks(100_000).for_each(|piece| decoder.feed(piece, |_| ()).unwrap());
        assert!(decoder.data.capacity() + decoder.line.capacity() <= 2 * KEPT_BYTES, "and it is given back");
    }

    /// Names, data and whether it is loose, the end included.
    fn all(bytes: &[u8]) -> Vec<(String, String, bool)> {
        let whole = || {
            let (mut decoder, mut events) = (Decoder::default(), Vec::new());
            let mut add = |event: Event<'_>| events.push((event.name.into(), event.data.into(), event.is_loose));
            decoder.feed(bytes, &mut add).unwrap();
            decoder.finish(&mut add).unwrap();
            events
        };
        let events = whole();
        for at in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(at);
            let (mut decoder, mut cut) = (Decoder::default(), Vec::new());
            let mut add = |event: Event<'_>| cut.push((event.name.into(), event.data.into(), event.is_loose));
            decoder.feed(head, &mut add).unwrap();
            decoder.feed(tail, &mut add).unwrap();
            decoder.finish(&mut add).unwrap();
            assert_eq!(cut, events, "at {at}");
        }
        events
    }

    #[test]
    fn what_the_standard_would_lose_is_told_and_marked() {
        let event = |name: &str, data: &str, is_loose| (name.to_owned(), data.to_owned(), is_loose);
        for (bytes, expected) in [
            (&b"data: a\n\ndata: [DONE]"[..], vec![event("", "a", false), event("", "[DONE]", true)]),
            (b"data: a\n", vec![event("", "a", true)]),
            (b"error: {\"x\":1}\n\ndata: b\n\n", vec![event("error", "{\"x\":1}", false), event("", "b", false)]),
            (b"data: a\nerror: x\n\n", vec![event("", "a", false), event("error", "x", false)]),
            (b"{\"x\":1}", vec![event("", "{\"x\":1}", true)]),
            (b"{\r\n  \"x\": {\r\n  }\r\n}\r\n", vec![event("", "{\n  \"x\": {\n  }\n}", true)]),
            (b"{\"x\":1}\ndata: b\n\n", vec![event("", "{\"x\":1}", true), event("", "b", false)]),
            (b"data: a\n{\"x\":1}\n\n", vec![event("", "a", false)]),
            (b"\x00\x01binary\nx: y\n: c\n\n", vec![]),
            (b"error:\n\n", vec![]),
            (b"event: a\n{x\ndata: b\n\n", vec![event("", "{x", true), event("a", "b", false)]),
        ] {
            assert_eq!(all(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_what_the_naive_decoder_gives(
            words in proptest::collection::vec(proptest::sample::select(vec![
                &b"data"[..], b":", b" ", b"\r", b"\n", b"\r\n", b"event", b"id", b"x", b"\xef\xbb\xbf", b"\xec", b"\x95", b"\x88",
            ]), 0..60),
            cuts in proptest::collection::vec(1_usize..7, 1..40),
        ) {
            let bytes = words.concat();
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                pieces.push(head);
                rest = tail;
                if rest.is_empty() { break; }
            }
            proptest::prop_assert_eq!(decode(pieces).unwrap(), naive(&bytes));
        }
    }
}
