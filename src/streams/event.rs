//! What the entries of a log say: the events of the contract, as server-sent events and as JSON.
//!
//! ```text
//! event: chunk
//! data: {"type":"CHUNK","content":"안녕"}
//! id: 2
//! ```
//!
//! The id comes last: widely used readers take it as soon as its line is there, and one whose connection breaks behind it
//! would come back for what follows an event that it never saw.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{
    ids::StreamId,
    message::Usage,
    streams::{Batch, Seq, Size, Status},
};

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub enum Event<'a> {
    /// The stream begins. To a reader who has text already: clear it.
    Start { stream_id: StreamId },
    /// The next piece of the text.
    Chunk { content: &'a str },
    /// The upstream said that the answer is complete, or somebody stopped it (`finish_reason` is `cancelled`).
    End { full_content: &'a str, finish_reason: Option<&'a str>, usage: Option<Usage> },
    /// The answer is not complete.
    Error {
        /// For people.
        error: &'a str,
        /// For programs.
        code: &'a str,
        /// The HTTP status that a whole answer would have had.
        status: u16,
        /// Whether asking again may help.
        retryable: bool,
        /// The text so far.
        partial: &'a str,
    },
}

impl Event<'_> {
    /// What of the answer it has.
    fn text(&self) -> &str {
        match self {
            Self::Start { .. } => "",
            Self::Chunk { content } => content,
            Self::End { full_content: text, .. } | Self::Error { partial: text, .. } => text,
        }
    }
}

/// What END says instead of the upstream's reason when somebody stopped the stream.
pub const CANCELLED: &str = "cancelled";

/// Gathers events that enter the log together.
#[derive(Debug)]
pub struct Encoder {
    next: Seq,
    buffer: BytesMut,
    ends: Vec<usize>,
    text: usize,
    ends_with: Option<Status>,
}

impl Encoder {
    /// The first event will be the one behind `last`.
    #[must_use]
    pub fn behind(last: Seq) -> Self {
        Self { next: last + 1, buffer: BytesMut::new(), ends: Vec::new(), text: 0, ends_with: None }
    }

    /// Adds an event.
    pub fn push(&mut self, event: &Event<'_>) {
        // A long text in one step: growing to it would take up twice as much.
        self.buffer.reserve(event.text().len());
        self.open();
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer((&mut self.buffer).writer(), event);
        self.close();
        self.text += if let Event::Chunk { content } = event { content.len() } else { 0 };
        self.ends_with = match event {
            Event::End { finish_reason: Some(CANCELLED), .. } => Some(Status::Cancelled),
            Event::End { .. } => Some(Status::Finished),
            Event::Error { .. } => Some(Status::Failed),
            Event::Start { .. } | Event::Chunk { .. } => None,
        };
    }

    /// Adds a CHUNK: what [`Encoder::push`] does, without the detour that a tagged enum takes. Nearly every event is one.
    pub fn push_chunk(&mut self, content: &str) {
        self.open();
        self.buffer.put_slice(b"{\"type\":\"CHUNK\",\"content\":");
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer((&mut self.buffer).writer(), content);
        self.buffer.put_u8(b'}');
        self.text += content.len();
        self.close();
    }

    fn open(&mut self) {
        // What a usual piece takes, so that the buffer need not grow in steps.
        self.buffer.reserve(128);
        self.buffer.put_slice(b"event: chunk\ndata: ");
    }

    fn close(&mut self) {
        self.buffer.put_slice(b"\nid: ");
        self.buffer.put_slice(itoa::Buffer::new().format(self.next).as_bytes());
        self.buffer.put_slice(b"\n\n");
        self.next += 1;
        self.ends.push(self.buffer.len());
    }

    /// The number of the last event, taken or not.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.next - 1
    }

    /// How much has been added since the last time.
    #[must_use]
    pub fn size(&self) -> Size {
        Size { entries: self.ends.len(), bytes: self.buffer.len(), text: self.text }
    }

    /// What has been added since the last time.
    pub fn take(&mut self) -> Batch {
        Batch {
            bytes: self.buffer.split().freeze(),
            ends: std::mem::take(&mut self.ends),
            text: std::mem::take(&mut self.text),
            ends_with: self.ends_with.take(),
        }
    }
}

/// One entry, taken apart again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: Seq,
    /// The JSON of the event.
    pub data: Bytes,
}

/// The entries in a piece of a log. A piece that no [`Encoder`] made has none.
#[must_use]
pub fn entries(piece: &Bytes) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut rest = &piece[..];
    while let Some(end) = memchr::memmem::find(rest, b"\n\n") {
        let (event, behind) = rest.split_at(end);
        rest = behind.get(2..).unwrap_or_default();
        let mut lines = event.split(|byte| *byte == b'\n');
        let mut field = |name: &[u8]| lines.next().and_then(|line| line.strip_prefix(name));
        let _ = field(b"event: ");
        let data = field(b"data: ");
        let seq = field(b"id: ").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        if let (Some(seq), Some(data)) = (seq, data) {
            found.push(Entry { seq, data: piece.slice_ref(data) });
        }
    }
    found
}

/// What a log says when it is read as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub content: String,
    pub finish_reason: Option<String>,
    pub usage: Option<Usage>,
}

#[derive(Deserialize)]
struct AnyEvent {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    usage: Option<Usage>,
}

impl Told {
    /// Adds what `entry` says.
    pub fn add(&mut self, entry: &Entry) {
        let Ok(event) = serde_json::from_slice::<AnyEvent>(&entry.data) else { return };
        self.content.push_str(event.content.as_deref().unwrap_or_default());
        self.finish_reason = event.finish_reason.or(self.finish_reason.take());
        self.usage = event.usage.or(self.usage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_written_as_the_contract_shows_them() {
        let id = StreamId::parse("3e458467-c21f-4429-a90d-e0d2f496e3b2").unwrap();
        let mut encoder = Encoder::behind(0);
        encoder.push(&Event::Start { stream_id: id });
        encoder.push_chunk("안녕\n");
        let usage = Some(Usage { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 });
        encoder.push(&Event::End { full_content: "안녕\n", finish_reason: Some("stop"), usage });
        let batch = encoder.take();
        let expected = "event: chunk\ndata: {\"type\":\"START\",\"stream_id\":\"3e458467-c21f-4429-a90d-e0d2f496e3b2\"}\nid: 1\n\n\
             event: chunk\ndata: {\"type\":\"CHUNK\",\"content\":\"안녕\\n\"}\nid: 2\n\n\
             event: chunk\ndata: {\"type\":\"END\",\"full_content\":\"안녕\\n\",\"finish_reason\":\"stop\",\
             \"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3}}\nid: 3\n\n";
        assert_eq!(std::str::from_utf8(&batch.bytes).unwrap(), expected);
        assert_eq!(batch.ends_with, Some(Status::Finished));
        assert_eq!(batch.ends.last(), Some(&expected.len()));
        assert_eq!((encoder.last(), encoder.take()), (3, Batch::default()), "nothing is left to take");

        let entries = entries(&batch.bytes);
        assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2, 3]);
        let mut told = Told::default();
        entries.iter().for_each(|entry| told.add(entry));
        assert_eq!(told, Told { content: "안녕\n".into(), finish_reason: Some("stop".into()), usage });
    }

    #[test]
    fn both_ways_of_writing_a_chunk_are_the_same() {
        for content in ["", "a\"b\\\n\u{0}\u{7f}", "안녕 👩‍👩‍👧", "</script>\u{2028}"] {
            let (mut one, mut other) = (Encoder::behind(41), Encoder::behind(41));
            one.push(&Event::Chunk { content });
            other.push_chunk(content);
            assert_eq!(one.take(), other.take());
        }
    }

    #[test]
    fn text_cannot_forge_an_event() {
        let mut encoder = Encoder::behind(1);
        encoder.push(&Event::Chunk { content: "x\n\nid: 9\r\nevent: evil\ndata: {}\n\n" });
        let batch = encoder.take();
        assert_eq!(entries(&batch.bytes).len(), 1);
        assert_eq!(batch.bytes.iter().filter(|byte| **byte == b'\n').count(), 4);
    }
}
