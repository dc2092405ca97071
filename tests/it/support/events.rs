//! Both ends of a stream: what the upstream sends, and what a reader gets.
//!
//! [`Reading`] is stricter than a browser: it stops at anything that the contract does not show, at a gap in the ids,
//! and at whatever comes behind a last event. So every test that reads a stream tests these too.

use reqwest::{Method, RequestBuilder, Response, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Answer, PATIENCE, Play, TestApp};

/// What every stream begins with: the first line of the first event.
pub const RETRY: &str = "retry: 1000\n";

/// What a silent stream says.
const COMMENT: &str = ": keep-alive\n";

/// A streamed answer of the upstream, step by step.
#[derive(Clone, Debug)]
pub struct Script {
    plays: Vec<Play>,
    is_chunked: bool,
}

impl Script {
    /// As OpenAI sends it: in HTTP chunks, each in a packet of its own.
    pub fn chunked() -> Self {
        Self::with_type("content-type: text/event-stream; charset=utf-8\r\n")
    }

    /// In HTTP chunks, with that line (or none) for a content type.
    pub fn with_type(content_type: &str) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\n{content_type}transfer-encoding: chunked\r\n\r\n");
        Self { plays: vec![Play::Send(head.into_bytes())], is_chunked: true }
    }

    /// As old servers send it: without framing, to the end of the connection.
    pub fn until_close() -> Self {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec();
        Self { plays: vec![Play::Send(head)], is_chunked: false }
    }

    /// A whole answer as OpenAI streams it.
    pub fn answer(pieces: &[&str]) -> Self {
        Self::chunked().role().pieces(pieces).finish("stop").usage().done().end()
    }

    pub fn play(mut self, play: Play) -> Self {
        self.plays.push(play);
        self
    }

    /// Nothing until the test lets it go on.
    pub fn hold(self) -> Self {
        self.play(Play::Hold)
    }

    /// Bytes of the body, framed as the head announced.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let framed = if self.is_chunked {
            [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
        } else {
            bytes.to_vec()
        };
        self.play(Play::Send(framed))
    }

    pub fn event(self, data: &str) -> Self {
        self.bytes(format!("data: {data}\n\n").as_bytes())
    }

    /// The first event: who speaks, and no text yet.
    pub fn role(self) -> Self {
        self.event(&delta(&json!({"role": "assistant", "content": "", "refusal": null}), &Value::Null))
    }

    pub fn piece(self, text: &str) -> Self {
        self.event(&delta(&json!({"content": text}), &Value::Null))
    }

    pub fn pieces(self, texts: &[&str]) -> Self {
        texts.iter().fold(self, |script, text| script.piece(text))
    }

    pub fn finish(self, reason: &str) -> Self {
        self.event(&delta(&json!({}), &json!(reason)))
    }

    /// 10 tokens in, 15 out.
    pub fn usage(self) -> Self {
        let usage = json!({
            "prompt_tokens": 10, "completion_tokens": 15, "total_tokens": 25,
            "completion_tokens_details": {"reasoning_tokens": 0},
        });
        self.event(&json!({"object": "chat.completion.chunk", "choices": [], "usage": usage}).to_string())
    }

    pub fn done(self) -> Self {
        self.event("[DONE]")
    }

    /// The body ends in good order, as far as HTTP can tell.
    pub fn end(self) -> Self {
        let end = if self.is_chunked { Play::Send(b"0\r\n\r\n".to_vec()) } else { Play::Close };
        self.play(end)
    }
}

impl IntoIterator for Script {
    type Item = Play;
    type IntoIter = std::vec::IntoIter<Play>;

    fn into_iter(self) -> Self::IntoIter {
        self.plays.into_iter()
    }
}

/// The data of one event of an answer.
pub fn delta(delta: &Value, finish_reason: &Value) -> String {
    let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason});
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1767225600, "model": "gpt-4o-2024-08-06",
        "service_tier": "default", "system_fingerprint": "fp_1", "choices": [choice], "usage": null, "obfuscation": "x",
    })
    .to_string()
}

/// An event as a reader got it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub id: u64,
    pub data: Value,
    /// Every byte of it, the empty line included; not what a reader is told between events.
    pub text: String,
}

impl Event {
    pub fn kind(&self) -> &str {
        self.data["type"].as_str().expect("a type")
    }

    /// Whether nothing may come behind it.
    pub fn is_last(&self) -> bool {
        matches!(self.kind(), "END" | "ERROR")
    }

    /// The text of a CHUNK; nothing of others.
    pub fn content(&self) -> &str {
        self.data["content"].as_str().unwrap_or_default()
    }
}

/// The pieces of text that the events bring.
pub fn contents(events: &[Event]) -> Vec<&str> {
    events.iter().filter(|event| event.kind() == "CHUNK").map(Event::content).collect()
}

/// Every byte of these events.
pub fn text(events: &[Event]) -> String {
    events.iter().map(|event| event.text.as_str()).collect()
}

/// A stream being read. Dropping it is leaving.
pub struct Reading {
    pub headers: HeaderMap,
    response: Response,
    received: Vec<u8>,
    /// Up to where `received` has been understood, and up to where it holds no end of a block.
    understood: usize,
    searched: usize,
    /// The last event; before the first, the cursor that was asked for.
    last: u64,
    has_begun: bool,
    is_over: bool,
}

impl Reading {
    fn new(response: Response, cursor: u64) -> Self {
        let headers = response.headers().clone();
        let received = Vec::new();
        let (understood, searched) = (0, 0);
        Self { headers, response, received, understood, searched, last: cursor, has_begun: false, is_over: false }
    }

    /// The next event; `None` at the end of the body.
    pub async fn next(&mut self) -> Option<Event> {
        let is_first_block = self.understood == 0;
        let block = self.block().await?;
        assert!(!self.is_over, "behind the last event: {block:?}");
        let event = if is_first_block { block.strip_prefix(RETRY).expect("the first line") } else { &block };
        let event = parse(event.trim_start_matches(COMMENT));
        // A replay begins with START; nothing else may stand where the cursor does not point.
        let is_next = Some(event.id) == self.last.checked_add(1) || (!self.has_begun && event.id == 1);
        assert!(is_next, "{block:?} behind {}", self.last);
        assert_eq!(event.id == 1, event.kind() == "START", "{block:?}");
        self.has_begun = true;
        self.last = event.id;
        self.is_over = event.is_last();
        Some(event)
    }

    /// The next `count` events.
    pub async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.expect("another event"));
        }
        events
    }

    /// Every further event. The last of them is END or ERROR.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        assert!(self.is_over, "the body ended before the stream did: {events:?}");
        events
    }

    /// Every byte so far.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.received).expect("UTF-8")
    }

    /// What stands before the next empty line, and that line.
    async fn block(&mut self) -> Option<String> {
        loop {
            let unsearched = &self.received[self.searched..];
            if let Some(at) = unsearched.windows(2).position(|two| two == b"\n\n") {
                let end = self.searched + at + 2;
                let block = String::from_utf8(self.received[self.understood..end].to_vec()).expect("UTF-8");
                (self.understood, self.searched) = (end, end);
                return Some(block);
            }
            self.searched = self.received.len().saturating_sub(1).max(self.understood);
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("something to read");
            let Some(chunk) = chunk.expect("a body that does not break") else {
                let rest = String::from_utf8(self.received[self.understood..].to_vec()).expect("UTF-8");
                assert!(rest.split_inclusive('\n').all(is_aside), "half an event at the end: {rest:?}");
                return None;
            };
            self.received.extend_from_slice(&chunk);
        }
    }
}

/// Whether a line is none of an event's: a comment, or when to come back.
fn is_aside(line: &str) -> bool {
    let wait = line.strip_prefix("retry: ").and_then(|wait| wait.strip_suffix('\n'));
    line == COMMENT || wait.is_some_and(|wait| wait.parse::<u32>().is_ok())
}

/// The one form that an event has: the id last, behind whole data, and the only empty line behind that.
fn parse(block: &str) -> Event {
    let parts = || {
        let (data, id) = block.strip_prefix("event: chunk\ndata: ")?.split_once('\n')?;
        let id = id.strip_prefix("id: ")?.strip_suffix("\n\n")?;
        Some((id.parse().ok()?, serde_json::from_str(data).ok()?))
    };
    let (id, data) = parts().unwrap_or_else(|| panic!("not an event of the contract: {block:?}"));
    Event { id, data, text: block.to_owned() }
}

/// Streams, as a caller uses them.
impl TestApp {
    /// `POST /chat/stream`; the new stream's id.
    pub async fn begin(&self, body: &Value) -> String {
        let headers = [("content-type", "application/json")];
        let answer = self.request(Method::POST, "/chat/stream", &headers, body.to_string().into_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["stream_id"].as_str().expect("an id").to_owned()
    }

    /// Reads a stream from its start.
    pub async fn events(&self, id: &str) -> Reading {
        self.open(self.client.get(self.url(&format!("/chat/stream/{id}"))), 0).await.expect("events")
    }

    /// Reads a stream from behind an event. `None`: 204, there is nothing left.
    pub async fn events_behind(&self, id: &str, cursor: u64) -> Option<Reading> {
        let request = self.client.get(self.url(&format!("/chat/stream/{id}")));
        self.open(request.header("last-event-id", cursor), cursor).await
    }

    /// Reads with whatever cursor, in the header, in the query, or both.
    pub async fn events_with(&self, id: &str, header: Option<&str>, query: &str) -> Option<Reading> {
        let mut request = self.client.get(self.url(&format!("/chat/stream/{id}{query}")));
        if let Some(header) = header {
            request = request.header("last-event-id", header);
        }
        let pairs = url::form_urlencoded::parse(query.trim_start_matches('?').as_bytes());
        let named = |wanted: &&str| pairs.clone().find(|(name, value)| name == *wanted && !value.is_empty());
        let in_query = ["lastEventId", "evs_last_event_id", "last_event_id"].iter().find_map(named);
        let in_query = in_query.map(|(_, value)| value.into_owned());
        let asked_for = header.map(str::to_owned).or(in_query).and_then(|cursor| cursor.parse().ok());
        self.open(request, asked_for.unwrap_or(0)).await
    }

    /// `POST /chat` that is answered as a stream.
    pub async fn chat_as_stream(&self, body: &Value) -> Reading {
        let request = self.client.post(self.url("/chat")).body(body.to_string());
        let request = request.header("content-type", "application/json").header("accept", "text/event-stream");
        self.open(request, 0).await.expect("events")
    }

    async fn open(&self, request: RequestBuilder, cursor: u64) -> Option<Reading> {
        let response = request.send().await.expect("an answer");
        if response.status() == StatusCode::NO_CONTENT {
            return None;
        }
        if response.status() != StatusCode::OK {
            panic!("{}", Answer::read(response).await.text());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        Some(Reading::new(response, cursor))
    }

    /// The state so far.
    pub async fn state(&self, id: &str) -> Value {
        let answer = self.get_state(id).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// The state so far, or the refusal.
    pub async fn get_state(&self, id: &str) -> Answer {
        let path = format!("/chat/stream/{id}");
        self.request(Method::GET, &path, &[("accept", "application/json")], Vec::new()).await
    }

    /// `DELETE /chat/stream/{id}`
    pub async fn cancel(&self, id: &str) -> Answer {
        self.delete(&format!("/chat/stream/{id}")).await
    }
}
