//! What is said on a socket: requests in, replies and events out. A frame holds one JSON object.

use axum::extract::ws::Message;
use serde::{Serialize, de::MapAccess};
use serde_json::json;

use crate::{
    api::{
        chat::{ChatFields, StreamRequest},
        error::{ApiError, Detail},
        extract::FromFields,
        stream,
        validation::{Fields, Issue, Judge, Scalar},
    },
    ids::{RequestId, StreamId},
    streams::{Seq, event::Entry},
};

/// A client's request, with the name by which it wants the answer to call it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) reference: Option<String>,
    /// The mistakes are inside, so that the name outlives them.
    pub(super) request: Result<Request, Vec<Issue>>,
}

/// What a client can ask for. An id of another form is no stream's.
#[derive(Debug)]
pub(super) enum Request {
    /// Begin a stream, and follow it.
    Chat(Box<StreamRequest>),
    /// Follow a stream from a cursor on.
    Resume { id: Option<StreamId>, cursor: Option<Seq> },
    /// Stop a stream.
    Stop { id: Option<StreamId> },
}

/// The fields of a client's request as they came.
#[derive(Default)]
pub(super) struct AskedFields<'a> {
    kind: Option<Scalar<'a>>,
    reference: Option<Scalar<'a>>,
    stream_id: Option<Scalar<'a>>,
    last_event_id: Option<Scalar<'a>>,
    chat: ChatFields<'a>,
}

impl<'de> Fields<'de> for AskedFields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "type" => self.kind = Some(map.next_value()?),
            "ref" => self.reference = Some(map.next_value()?),
            "stream_id" => self.stream_id = Some(map.next_value()?),
            "last_event_id" => self.last_event_id = Some(map.next_value()?),
            _ => self.chat.take(name, map)?,
        }
        Ok(())
    }
}

impl FromFields for Asked {
    type Fields<'de> = AskedFields<'de>;

    fn from_fields(fields: AskedFields<'_>, is_empty: bool) -> Result<Self, Vec<Issue>> {
        let mut judge = Judge::new();
        let is_text = matches!(fields.kind, Some(Scalar::Text(_)));
        let kind = judge.required_text("type", fields.kind, is_empty);
        let reference = reference(&mut judge, fields.reference);
        let id = |judge: &mut Judge| StreamId::parse(&judge.required_text("stream_id", fields.stream_id, false));
        let request = match kind.as_str() {
            "chat" => match StreamRequest::from_fields(fields.chat, false) {
                Ok(request) => Some(Request::Chat(Box::new(request))),
                Err(issues) => {
                    issues.into_iter().for_each(|issue| judge.report(issue));
                    None
                }
            },
            "resume" => Some(Request::Resume { id: id(&mut judge), cursor: cursor(fields.last_event_id) }),
            "stop" => Some(Request::Stop { id: id(&mut judge) }),
            _ => {
                if is_text {
                    let expected = "'chat', 'resume' or 'stop'";
                    let issue = Issue::new("literal_error", judge.loc("type"), format!("Input should be {expected}"));
                    judge.report(issue.ctx(json!({"expected": expected})));
                }
                None
            }
        };
        // Without a request there is an issue.
        let request = judge.finish(request).and_then(|request| request.ok_or_else(Vec::new));
        Ok(Self { reference, request })
    }
}

/// The same form as a request id: it is repeated as it came, so nothing else gets through.
fn reference(judge: &mut Judge, field: Option<Scalar<'_>>) -> Option<String> {
    let is_text = matches!(field, Some(Scalar::Text(_)));
    let text = judge.optional_text("ref", field)?;
    if RequestId::accept(text.as_bytes()).is_some() {
        return Some(text);
    }
    if is_text {
        let pattern = "^[A-Za-z0-9._-]{1,64}$";
        let msg = format!("String should match pattern '{pattern}'");
        judge.report(Issue::new("string_pattern_mismatch", judge.loc("ref"), msg).ctx(json!({"pattern": pattern})));
    }
    None
}

/// As `Last-Event-ID`: what is no number counts as nothing.
fn cursor(field: Option<Scalar<'_>>) -> Option<Seq> {
    match field? {
        Scalar::Int(number) => Seq::try_from(number).ok(),
        Scalar::Text(text) => stream::parse_cursor(&text),
        _ => None,
    }
}

/// What the service says on a socket besides events.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Reply<'a> {
    /// To a request with a `ref`: it is done, and this is the stream.
    Accepted {
        #[serde(rename = "ref")]
        reference: &'a str,
        stream_id: StreamId,
    },
    /// The stream has ended and there is nothing behind that event.
    NothingLeft {
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a str>,
        stream_id: StreamId,
    },
    /// What a request would have been refused with over HTTP.
    Rejected {
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a str>,
        /// The stream that the request was about, if there can be one.
        #[serde(skip_serializing_if = "Option::is_none")]
        stream_id: Option<StreamId>,
        code: &'static str,
        detail: Detail<'a>,
    },
}

impl<'a> Reply<'a> {
    pub(super) fn rejected(error: &'a ApiError, reference: Option<&'a str>, stream_id: Option<StreamId>) -> Self {
        Self::Rejected { reference, stream_id, code: error.code(), detail: error.detail() }
    }

    pub(super) fn frame(&self) -> Message {
        // Writing these types to memory cannot fail.
        Message::text(serde_json::to_string(self).unwrap_or_default())
    }
}

/// An event as a frame: its JSON as the log has it, with `id` and `stream_id` in front.
pub(super) fn frame(stream_id: StreamId, entry: &Entry) -> Option<Message> {
    let event = std::str::from_utf8(&entry.data).ok()?;
    let fields = event.strip_prefix('{')?;
    // START names its stream itself, and no name may stand in an object twice.
    let has_stream_id = fields.starts_with(r#""type":"START","#);
    let front = if has_stream_id {
        format!(r#"{{"id":{},"#, entry.seq)
    } else {
        format!(r#"{{"id":{},"stream_id":"{stream_id}","#, entry.seq)
    };
    Some(Message::text(front + fields))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::extract::parse,
        streams::event::{Encoder, Event, entries},
    };

    fn asked(text: &str) -> Asked {
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_cursor_is_a_number_or_digits_and_anything_else_is_the_beginning() {
        for (given, expected) in [
            ("7", Some(7)),
            (r#""7""#, Some(7)),
            ("null", None),
            ("-1", None),
            ("1.5", None),
            (r#""seven""#, None),
            (r#""""#, None),
            ("true", None),
            ("[]", None),
        ] {
            let text = format!(r#"{{"type":"resume","stream_id":"x","last_event_id":{given}}}"#);
            let Ok(Request::Resume { id: None, cursor }) = asked(&text).request else { panic!("{text}") };
            assert_eq!(cursor, expected, "{given}");
        }
    }

    #[test]
    fn a_reference_is_kept_beside_mistakes_and_only_if_it_is_harmless() {
        let asked_with = |reference: &str| asked(&format!(r#"{{"type":"chat","ref":{reference}}}"#));
        let kept = asked_with(r#""a.B_c-9""#);
        assert_eq!((kept.reference.as_deref(), kept.request.unwrap_err().len()), (Some("a.B_c-9"), 1));
        for (bad, kind) in
            [(r#""""#, "string_pattern_mismatch"), (r#""a b""#, "string_pattern_mismatch"), ("7", "string_type")]
        {
            let asked = asked_with(bad);
            let issues = asked.request.unwrap_err();
            assert_eq!((asked.reference, issues[0].kind, issues[1].kind), (None, kind, "missing"), "{bad}");
        }
        let long = asked_with(&format!(r#""{}""#, "x".repeat(65)));
        assert_eq!(long.request.unwrap_err()[0].kind, "string_pattern_mismatch");
    }

    #[test]
    fn a_frame_is_the_entry_with_its_number_and_its_stream() {
        let id = StreamId::parse("3e458467-c21f-4429-a90d-e0d2f496e3b2").unwrap();
        let mut encoder = Encoder::behind(0);
        encoder.push(&Event::Start { stream_id: id });
        encoder.push(&Event::Chunk { content: "\"}안녕\n" });
        let entries = entries(&encoder.take().bytes);
        let frames: Vec<_> = entries.iter().map(|entry| frame(id, entry).unwrap()).collect();
        assert_eq!(
            frames,
            [
                Message::text(r#"{"id":1,"type":"START","stream_id":"3e458467-c21f-4429-a90d-e0d2f496e3b2"}"#),
                Message::text(
                    r#"{"id":2,"stream_id":"3e458467-c21f-4429-a90d-e0d2f496e3b2","type":"CHUNK","content":"\"}안녕\n"}"#
                ),
            ]
        );
    }
}
