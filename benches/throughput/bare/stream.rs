//! `POST /chat/stream`: a question in, the words of the answer out as they come, and nothing kept.
//!
//! The events are the service's, without the numbers that nobody could come back with.

use std::{borrow::Cow, convert::Infallible, future::poll_fn, mem::take, sync::Arc, task::Poll};

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Question, Upstream, Usage};

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Delta<'a>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Text<'a>>,
}

/// An `Option` of a `Cow` would always be a copy.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
enum Event<'a> {
    Start { stream_id: &'a str },
    Chunk { content: &'a str },
    End { full_content: &'a str, finish_reason: Option<&'a str>, usage: Option<Usage> },
}

/// How often one that merges lets others run before it hands on what it has: hyper gives a body away a chunk at a time,
/// by way of another task, which needs two turns to give away what has arrived.
const TURNS: usize = 2;

/// And how much it has in hand at most.
const MERGED_BYTES: usize = 16 * 1024;

pub(super) async fn chat(
    State(upstream): State<Arc<Upstream>>,
    body: Bytes,
) -> Result<impl IntoResponse + use<>, StatusCode> {
    let question: Question<'_> = serde_json::from_slice(&body).map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
    let mut answer = upstream.ask(&question, true).await?.bytes_stream();
    let events = async_stream::stream! {
        let mut recoder = Recoder::default();
        recoder.event(&Event::Start { stream_id: &Uuid::new_v4().to_string() });
        while let Some(Ok(bytes)) = answer.next().await {
            recoder.feed(&bytes);
            if upstream.merges {
                merge(&mut answer, &mut recoder).await;
            }
            if !recoder.events.is_empty() {
                yield Ok::<_, Infallible>(recoder.events.split().freeze());
            }
        }
    };
    Ok(([(CONTENT_TYPE, "text/event-stream; charset=utf-8")], Body::from_stream(events)))
}

/// Takes in what has come meanwhile.
async fn merge(answer: &mut (impl Stream<Item = reqwest::Result<Bytes>> + Unpin), recoder: &mut Recoder) {
    let mut turns = 0;
    while recoder.events.len() < MERGED_BYTES {
        match answer.next().now_or_never() {
            Some(Some(Ok(bytes))) => {
                recoder.feed(&bytes);
                turns = 0;
            }
            // The end, which is seen once more by who called.
            Some(_) => return,
            None if turns == TURNS => return,
            None => {
                turn().await;
                turns += 1;
            }
        }
    }
}

/// Lets the tasks run that are ready now, without looking for new I/O in between.
async fn turn() {
    let mut is_over = false;
    poll_fn(|context| {
        if is_over {
            return Poll::Ready(());
        }
        is_over = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// OpenAI's events in, the service's out.
#[derive(Default)]
struct Recoder {
    /// The start of a line whose end has not come yet.
    line: Vec<u8>,
    text: String,
    finish_reason: Option<String>,
    usage: Option<Usage>,
    /// What is to be handed on.
    events: BytesMut,
}

impl Recoder {
    fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            if self.line.is_empty() {
                self.take_line(&bytes[..end]);
            } else {
                let mut line = take(&mut self.line);
                line.extend_from_slice(&bytes[..end]);
                self.take_line(&line);
            }
            bytes = &bytes[end + 1..];
        }
        self.line.extend_from_slice(bytes);
    }

    fn take_line(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data: ") else { return };
        if data == b"[DONE]" {
            let (text, finish_reason) = (take(&mut self.text), take(&mut self.finish_reason));
            let usage = self.usage.take();
            return self.event(&Event::End { full_content: &text, finish_reason: finish_reason.as_deref(), usage });
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else { return };
        self.usage = chunk.usage.or(self.usage.take());
        let Some(choice) = chunk.choices.into_iter().next() else { return };
        if let Some(Text(content)) = choice.delta.content.filter(|text| !text.0.is_empty()) {
            self.text.push_str(&content);
            self.event(&Event::Chunk { content: &content });
        }
        if let Some(reason) = choice.finish_reason {
            self.finish_reason = Some(reason.into_owned());
        }
    }

    fn event(&mut self, event: &Event<'_>) {
        self.events.reserve(128);
        self.events.put_slice(b"event: chunk\ndata: ");
        serde_json::to_writer((&mut self.events).writer(), event).unwrap();
        self.events.put_slice(b"\n\n");
    }
}
