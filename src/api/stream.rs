//! `POST /chat/stream`, and `GET` and `DELETE /chat/stream/{id}`: begin, read, stop.

use std::{convert::Infallible, pin::pin, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use serde::Serialize;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        chat::{ChatBody, StreamRequest, UsageBody, marked},
        docs::{BodyErrors, IdempotencyKeyParam, KeyErrors, PlainErrors, StreamErrors, StreamStartErrors},
        error::ApiError,
        extract::{Caller, IdempotencyKey, Json, StreamOwner},
        observe::Spent,
    },
    chat::{
        BeginError, ChatError, ChatStreams, Opened, Reader, Snapshot,
        idempotency::{Claim, Outcome, Ticket},
    },
    ids::{Owner, StreamId},
    message::Usage,
    state::AppState,
    streams::{
        Followed, Seq, Status,
        event::{Encoder, Event},
    },
};

/// The header in which a browser's EventSource says how far it has read.
pub(crate) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How long a reader may hear nothing: proxies take a silent connection for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The state of a stream with more text than this is written on a thread of its own.
const LARGE_STATE: usize = 64 * 1024;

/// What is said to a reader who hears nothing else. A comment needs no empty line behind it, and there are readers who take
/// each empty line for an event.
const COMMENT: &[u8] = b": keep-alive\n";

/// What a browser waits before it comes back after a broken connection: the first line of the first event that a reader
/// gets, and no event of its own, for the same reason.
const RETRY: &str = "retry: 1000\n";

pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(start)).routes(routes!(read, stop))
}

/// Begin to answer a question, to be read as a stream
///
/// Answers at once with the stream's address, `GET /chat/stream/{stream_id}`, and begins to generate at once, whoever
/// reads. A stream that nobody ever reads is given up after a minute.
#[utoipa::path(
    post, path = "/chat/stream", tag = "streams", operation_id = "start_stream",
    params(IdempotencyKeyParam),
    request_body(content = ChatBody, description = "The question and what bears on its answer"),
    responses((status = 200, description = "The stream has begun", body = StartedBody), StreamStartErrors, BodyErrors, KeyErrors, PlainErrors),
)]
async fn start(
    State(state): State<AppState>,
    caller: Caller,
    key: IdempotencyKey,
    Json(request): Json<StreamRequest>,
) -> Result<Response, ApiError> {
    let Begun { spent, id, is_replay } = begin(&state, caller, key, request).await?;
    let root = &state.root_path;
    let stream_url =
        state.tickets.as_ref().map(|tickets| format!("{root}/chat/stream/{id}?ticket={}", tickets.issue(id)));
    let response = (spent, Json(StartedBody { stream_id: id, status: "started", stream_url })).into_response();
    Ok(marked(response, is_replay))
}

/// A stream that has begun, now or when the same request came first.
pub(crate) struct Begun {
    pub(crate) spent: Spent,
    pub(crate) id: StreamId,
    pub(crate) is_replay: bool,
}

/// Begins a stream, for either of the routes that can.
pub(crate) async fn begin(
    state: &AppState,
    Caller(caller): Caller,
    key: IdempotencyKey,
    request: StreamRequest,
) -> Result<Begun, ApiError> {
    let spent = Spent { model: state.service.model_for(&request.chat).to_owned(), usage: None };
    let ticket = match key.0 {
        None => None,
        Some(key) => match claim(state, &caller.owner, &key, &request).await? {
            Claimed::First(ticket) => Some(ticket),
            Claimed::Stream(id) => return Ok(Begun { spent, id, is_replay: true }),
        },
    };
    let StreamRequest { chat, conversation, on_disconnect } = request;
    let (service, streams) = (&state.service, &state.streams);
    let begun = match conversation {
        Some(conversation) => {
            Box::pin(service.chat_stream(streams, &caller, conversation, (chat, on_disconnect))).await
        }
        None => service.chat_stream_with_history(streams, &caller, chat, on_disconnect).await,
    };
    if let Some(ticket) = ticket {
        match &begun {
            Ok(id) => ticket.settle(Outcome::Stream(*id)),
            Err(BeginError::Store(error)) => ticket.settle(Outcome::Failed((*error).into())),
            Err(BeginError::OverLimit(over)) => ticket.settle(Outcome::Failed((*over).into())),
            Err(BeginError::NoRoom) => drop(ticket),
        }
    }
    let id = begun?;
    Ok(Begun { spent, id, is_replay: false })
}

/// What a request with a key is.
enum Claimed {
    /// The first one, or the first one again.
    First(Ticket),
    /// One that came before, and this is its stream.
    Stream(StreamId),
}

/// Looks the request's key up. A stream that has failed, or that can be read no more, is nothing to give back: then the
/// request is as good as the first.
async fn claim(state: &AppState, owner: &Owner, key: &str, request: &StreamRequest) -> Result<Claimed, ApiError> {
    loop {
        let waiting = match state.idempotency.claim(owner, key, &("stream", request)) {
            Claim::First(ticket) => return Ok(Claimed::First(ticket)),
            Claim::Other => return Err(ApiError::IdempotencyKeyReused),
            Claim::Same(waiting) => waiting,
        };
        match waiting.outcome().await {
            Some(Outcome::Stream(id)) if state.streams.is_worth_reading(id, owner).await => {
                return Ok(Claimed::Stream(id));
            }
            // Of those who see that at once, one begins it anew, and the others get that one's.
            Some(Outcome::Stream(id)) => state.idempotency.give_up(owner, key, id),
            Some(Outcome::Failed(ChatError::Store(error))) => return Err(error.into()),
            Some(Outcome::Failed(ChatError::OverLimit(over))) => return Err(over.into()),
            // The first could not begin for want of room.
            _ => return Err(ApiError::StreamLogFull),
        }
    }
}

/// Read a stream
///
/// Server-sent events from START to END or ERROR, as they come. With `Last-Event-ID` (or `?last_event_id=`) it goes on
/// behind that event, at any time until ten minutes after the end, as often and by as many readers as wanted; with a number
/// that the stream has not reached it begins again. 204 means that there is nothing left to read. START means: clear what
/// you have. With `Accept: application/json`, the state so far.
#[utoipa::path(
    get, path = "/chat/stream/{stream_id}", tag = "streams", operation_id = "read_stream",
    params(
        ("stream_id" = String, Path, description = "From `POST /chat/stream`", format = "uuid", example = json!("3e458467-c21f-4429-a90d-e0d2f496e3b2")),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that was read"),
        ("last_event_id" = Option<String>, Query, description = "The same, for those who cannot send headers; the header wins"),
        ("lastEventId" = Option<String>, Query, description = "`last_event_id`, as event-source-polyfill writes it"),
        ("evs_last_event_id" = Option<String>, Query, description = "`last_event_id`, as other replacements of a browser's EventSource write it"),
    ),
    responses(
        (status = 200, description = "The events, each a `StreamEvent`, or the state so far", content(
            (String = "text/event-stream", example = json!(example())),
            (SnapshotBody = "application/json"),
        )),
        (status = 204, description = "The stream has ended and there is nothing behind that event"),
        StreamErrors, PlainErrors,
    ),
)]
async fn read(
    State(state): State<AppState>,
    StreamOwner { id, owner }: StreamOwner,
    reading: Reading,
) -> Result<Response, ApiError> {
    match reading {
        // As the original; and whoever only asks must not count as a reader.
        Reading::Head => {
            let allow = [(header::ALLOW, HeaderValue::from_static("GET,DELETE"))];
            Ok((allow, ApiError::MethodNotAllowed).into_response())
        }
        Reading::State => {
            let snapshot = state.streams.snapshot(id, &owner).await.ok_or(ApiError::StreamNotFound)?;
            let body = SnapshotBody::new(id, snapshot);
            if body.content.len() <= LARGE_STATE {
                return Ok(Json(body).into_response());
            }
            // Megabytes take milliseconds to write, which nobody else should wait for.
            spawn_blocking(move || Json(body).into_response()).await.map_err(|_| ApiError::Internal)
        }
        Reading::Events { cursor } => match state.streams.open(id, &owner, cursor).await {
            None => Err(ApiError::StreamNotFound),
            Some(Opened::NothingLeft) => Ok(StatusCode::NO_CONTENT.into_response()),
            Some(Opened::Reader(reader)) => Ok(events(reader, state.closing.0.clone())),
        },
    }
}

/// What is wanted of a stream.
#[derive(Debug)]
enum Reading {
    Head,
    State,
    Events { cursor: Option<Seq> },
}

impl<S: Send + Sync> FromRequestParts<S> for Reading {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(match parts.method {
            Method::HEAD => Self::Head,
            _ if wants_state(&parts.headers) => Self::State,
            _ => Self::Events { cursor: cursor(&parts.headers, parts.uri.query()) },
        })
    }
}

/// Stop a stream
///
/// The upstream is left at once. Whoever reads the stream gets END with the text so far and `finish_reason` `cancelled`.
#[utoipa::path(
    delete, path = "/chat/stream/{stream_id}", tag = "streams", operation_id = "stop_stream",
    params(("stream_id" = String, Path, description = "From `POST /chat/stream`", format = "uuid", example = json!("3e458467-c21f-4429-a90d-e0d2f496e3b2"))),
    responses((status = 200, description = "The stream has ended", body = StoppedBody), StreamErrors, PlainErrors),
)]
async fn stop(
    State(streams): State<ChatStreams>,
    StreamOwner { id, owner }: StreamOwner,
) -> Result<Json<StoppedBody>, ApiError> {
    if streams.cancel(id, &owner).await {
        Ok(Json(StoppedBody { message: "스트리밍이 중단되었습니다", stream_id: id }))
    } else {
        Err(ApiError::StreamNotFound)
    }
}

/// Whether the state of a stream is asked for. A caller who accepts events too gets events: they are what the address is
/// for. One who does not want them gets what else there is.
pub(crate) fn wants_state(headers: &HeaderMap) -> bool {
    match accepted(headers, "text/event-stream") {
        Some(wanted) => !wanted,
        None => accepts(headers, "application/json"),
    }
}

/// Whether the caller names `media_type` in `Accept`.
pub(crate) fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    accepted(headers, media_type) == Some(true)
}

/// What the caller says of `media_type` in `Accept`, if anything. With a weight of 0 it is what is not wanted. Source: RFC
/// 9110, 12.4.2.
fn accepted(headers: &HeaderMap, media_type: &str) -> Option<bool> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut named = None;
    for part in values.flat_map(|value| value.split(',')) {
        let mut parts = part.split(';').map(str::trim);
        if parts.next().is_some_and(|name| name.eq_ignore_ascii_case(media_type)) {
            // A weight that is no number is no weight.
            let weight = parts.find_map(|part| part.strip_prefix(['q', 'Q'])?.trim_start().strip_prefix('='));
            let is_zero =
                weight.and_then(|weight| weight.trim().parse::<f32>().ok()).is_some_and(|weight| weight == 0.0);
            named = Some(named.unwrap_or(false) || !is_zero);
        }
    }
    named
}

/// The names that a cursor has in a query: those that replacements of a browser's EventSource write, which cannot send headers
/// either, and the service's own. When they come back they write theirs beside what the page's address has, so theirs win.
const CURSOR_NAMES: [&str; 3] = ["lastEventId", "evs_last_event_id", "last_event_id"];

/// How far the caller has read. What is no number counts as nothing: an error would end a browser's EventSource for good.
/// Of several of one name the first counts.
pub(crate) fn cursor(headers: &HeaderMap, query: Option<&str>) -> Option<Seq> {
    let header = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty());
    if let Some(header) = header {
        return parse_cursor(header.to_str().ok()?);
    }
    let pairs = url::form_urlencoded::parse(query?.as_bytes());
    let named = |wanted: &&str| pairs.clone().find(|(name, value)| name == *wanted && !value.is_empty());
    let (_, value) = CURSOR_NAMES.iter().find_map(named)?;
    parse_cursor(&value)
}

/// Digits and nothing else.
pub(crate) fn parse_cursor(text: &str) -> Option<Seq> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The response that reads to the end.
pub(crate) fn events(reader: Reader, closing: CancellationToken) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        // Proxies that compress would gather events until there is enough to compress.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
        // nginx would gather events before it passes them on.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(frames(reader, closing))).into_response()
}

fn frames(mut reader: Reader, closing: CancellationToken) -> impl Stream<Item = Result<Bytes, Infallible>> {
    async_stream::stream! {
        yield Ok(Bytes::from_static(RETRY.as_bytes()));
        let mut said = Instant::now();
        // One of each for the whole stream: making them anew for every word would cost as much as reading the word.
        let mut silence = pin!(sleep_until(said + KEEP_ALIVE));
        let mut is_closing = pin!(closing.cancelled());
        loop {
            let followed = tokio::select! {
                biased;
                followed = reader.next() => followed,
                () = silence.as_mut() => {
                    if said.elapsed() >= KEEP_ALIVE {
                        yield Ok(Bytes::from_static(COMMENT));
                        said = Instant::now();
                    }
                    silence.as_mut().reset(said + KEEP_ALIVE);
                    continue;
                }
                () = &mut is_closing => {
                    // What is in the log already, first; and then a hint to come back elsewhere, spread out.
                    if let Some(Followed::Entries(pieces)) = reader.next().now_or_never() {
                        for piece in pieces {
                            yield Ok(piece);
                        }
                    }
                    if !reader.is_ended() {
                        yield Ok(Bytes::from(format!("retry: {}\n", spread_retry())));
                    }
                    break;
                }
            };
            match followed {
                Followed::Entries(pieces) => {
                    for piece in pieces {
                        yield Ok(piece);
                    }
                    if reader.is_ended() {
                        break;
                    }
                    said = Instant::now();
                }
                Followed::End(_) | Followed::Gone => break,
            }
        }
    }
}

/// 1 to 5 seconds, in milliseconds; from a random id, which is all the chance that is needed.
fn spread_retry() -> u64 {
    1000 + StreamId::random().chance() % 4000
}

/// A stream as the document shows it, by the encoder that every stream is written by.
pub(crate) fn example() -> String {
    let mut encoder = Encoder::behind(0);
    if let Some(stream_id) = StreamId::parse("3e458467-c21f-4429-a90d-e0d2f496e3b2") {
        encoder.push(&Event::Start { stream_id });
    }
    encoder.push_chunk("안녕");
    encoder.push_chunk("하세요!");
    let usage = Some(Usage { prompt_tokens: 10, completion_tokens: 15, total_tokens: 25 });
    encoder.push(&Event::End { full_content: "안녕하세요!", finish_reason: Some("stop"), usage });
    format!("{RETRY}{}", String::from_utf8_lossy(&encoder.take().bytes))
}

/// One event of a stream: a line `event: …`, a line `data: …`, a line `id: …` and an empty one. A line `retry: …` stands in
/// the first event of a response, and a stream that is silent gets lines that begin with a colon, to be skipped.
#[derive(ToSchema)]
#[schema(as = StreamEvent)]
#[expect(dead_code, reason = "describes what is written by streams::event to the OpenAPI document")]
pub(crate) struct EventBody {
    /// `chunk`
    #[schema(pattern = "^chunk$")]
    event: String,
    /// A JSON object. Its `type` says what else is in it: `START` (`stream_id`), `CHUNK` (`content`, the next piece), `END`
    /// (`full_content`, `finish_reason`, `usage`) or `ERROR` (`error`, `code`, `status`, `retryable`, `partial`).
    #[schema(content_media_type = "application/json")]
    data: String,
    /// Its number, from 1: what `Last-Event-ID` continues behind.
    #[schema(pattern = "^[1-9][0-9]*$")]
    id: String,
}

/// A stream that has begun.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamStarted, example = json!({
    "stream_id": "3e458467-c21f-4429-a90d-e0d2f496e3b2", "status": "started",
    "stream_url": "/chat/stream/3e458467-c21f-4429-a90d-e0d2f496e3b2?ticket=mYbXgk2V0c1vWqjPzHn4aQ",
}))]
struct StartedBody {
    #[schema(value_type = String, format = "uuid")]
    stream_id: StreamId,
    /// `started`
    status: &'static str,
    /// Only there when callers authenticate: where the stream can be read and stopped, as long as there is one, by
    /// whoever cannot send headers, such as a browser's EventSource. Begins with `ROOT_PATH`, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stream_url: Option<String>,
}

/// A stream that was stopped.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamStopped, example = json!({
    "message": "스트리밍이 중단되었습니다", "stream_id": "3e458467-c21f-4429-a90d-e0d2f496e3b2",
}))]
struct StoppedBody {
    message: &'static str,
    #[schema(value_type = String, format = "uuid")]
    stream_id: StreamId,
}

/// A stream so far.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamState, example = json!({
    "stream_id": "3e458467-c21f-4429-a90d-e0d2f496e3b2", "status": "finished", "content": "안녕하세요!",
    "last_event_id": 4, "finish_reason": "stop",
    "usage": {"prompt_tokens": 10, "completion_tokens": 15, "total_tokens": 25},
}))]
struct SnapshotBody {
    #[schema(value_type = String, format = "uuid")]
    stream_id: StreamId,
    /// `running`, `finished`, `cancelled` or `failed`
    status: &'static str,
    /// The text so far.
    content: String,
    /// The last event so far: what `Last-Event-ID` continues behind.
    #[schema(value_type = u64)]
    last_event_id: Seq,
    /// Why the model stopped; `cancelled` when somebody stopped it; `null` while it runs.
    #[schema(required)]
    finish_reason: Option<String>,
    #[schema(required)]
    usage: Option<UsageBody>,
}

impl SnapshotBody {
    fn new(stream_id: StreamId, snapshot: Snapshot) -> Self {
        let status = match snapshot.status {
            Status::Running => "running",
            Status::Finished => "finished",
            Status::Cancelled => "cancelled",
            Status::Failed => "failed",
        };
        Self {
            stream_id,
            status,
            content: snapshot.content,
            last_event_id: snapshot.last,
            finish_reason: snapshot.finish_reason,
            usage: snapshot.usage.map(UsageBody::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_cursor(header: Option<&str>, query: Option<&str>) -> Option<Seq> {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(LAST_EVENT_ID, header.parse().unwrap());
        }
        cursor(&headers, query)
    }

    #[test]
    fn a_cursor_is_a_number_and_the_header_wins() {
        for (header, query, expected) in [
            (Some("7"), None, Some(7)),
            (Some("7"), Some("last_event_id=3"), Some(7)),
            (None, Some("x=1&last_event_id=3"), Some(3)),
            (Some(""), Some("last_event_id=3"), Some(3)),
            (Some("seven"), Some("last_event_id=3"), None),
            (Some("-1"), None, None),
            (Some("+1"), None, None),
            (Some("1-0"), None, None),
            (Some("99999999999999999999999"), None, None),
            (None, Some("last_event_id="), None),
            (None, Some("lastEventId=3"), Some(3)),
            (None, Some("evs_last_event_id=%33"), Some(3)),
            (None, Some("last_event_id=1&lastEventId=3&last_event_id="), Some(3)),
            (None, None, None),
        ] {
            assert_eq!(read_cursor(header, query), expected, "{header:?} {query:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_gets_a_comment_whenever_it_has_been_silent_for_15_seconds() {
        use crate::{
            config::Config,
            ids::Owner,
            openai::Client,
            streams::{MemoryLog, MemoryLogLimits, StreamLog, event::Encoder},
        };
        use futures_util::StreamExt;
        use std::sync::Arc;
        // Lets everybody in and never says a word.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}/v1", silent.local_addr().unwrap());
        let variables = [("OPENAI_API_KEY".to_owned(), "x".to_owned()), ("OPENAI_BASE_URL".to_owned(), base_url)];
        let config = Config::from_variables(&variables.into(), false).unwrap();
        let log: Arc<dyn StreamLog> = Arc::new(MemoryLog::new(MemoryLogLimits { ttl: KEEP_ALIVE, max_bytes: 1 << 20 }));
        let tasks = tokio_util::task::TaskTracker::new();
        let streams = ChatStreams::new(Arc::clone(&log), tasks.clone(), crate::api::describe, config.streams);
        let client = Arc::new(Client::new(&config.upstream).unwrap());
        let service = crate::chat::OpenAiService::in_memory(client, &config, &tasks).await;
        // Opening the database takes real time, which a paused clock would jump over.
        tokio::time::pause();
        let (owner, caller) = (Owner::default(), crate::chat::Caller::default());
        let request = crate::chat::ChatRequest { message: "x".into(), ..Default::default() };
        let id = service.chat_stream_with_history(&streams, &caller, request, Default::default()).await.unwrap();
        let Some(Opened::Reader(reader)) = streams.open(id, &owner, None).await else { panic!() };

        let started = Instant::now();
        let mut frames = Box::pin(frames(reader, CancellationToken::new()));
        let mut next = async || {
            let frame = frames.next().await.unwrap().unwrap();
            (started.elapsed().as_secs(), frame)
        };
        assert_eq!(next().await.1, RETRY);
        assert!(next().await.1.ends_with(b"\nid: 1\n\n"));
        for seconds in [15, 30] {
            assert_eq!(next().await, (seconds, Bytes::from_static(b": keep-alive\n")));
        }
        // A word begins the time anew, also one that comes just before a comment would.
        tokio::time::advance(Duration::from_secs(14)).await;
        let mut encoder = Encoder::behind(1);
        encoder.push_chunk("a word");
        log.append(id, 1, encoder.take()).await.unwrap();
        let (seconds, frame) = next().await;
        assert!(seconds == 44 && frame.ends_with(b"\nid: 2\n\n"), "{seconds} {frame:?}");
        for seconds in [59, 74] {
            assert_eq!(next().await, (seconds, Bytes::from_static(COMMENT)));
        }
    }

    #[test]
    fn what_is_accepted_is_read_from_every_accept_header() {
        let mut headers = HeaderMap::new();
        headers.append(header::ACCEPT, "text/html, Text/Event-Stream;q=0.5".parse().unwrap());
        assert!(accepts(&headers, "text/event-stream") && !accepts(&headers, "application/json"));
        headers.append(header::ACCEPT, "application/json".parse().unwrap());
        assert!(accepts(&headers, "application/json"));
    }
}
