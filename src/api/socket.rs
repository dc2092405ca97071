//! `GET /chat/ws`: the streams of `POST /chat/stream`, any number of them over one WebSocket.
//!
//! One task per socket does everything in turn: it hears a request, or it hands on what a stream has to say. While a
//! frame cannot be sent it reads neither the socket nor the log, so a client that does not read costs one slice of the
//! log and what lies in its connection, however much its streams say.

mod message;

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{
        State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, HeaderValue, header, request::Parts},
    response::Response,
};
use futures_util::{
    FutureExt, SinkExt, StreamExt,
    stream::{self, AbortHandle, BoxStream, SelectAll},
};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use url::Url;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        chat::StreamRequest,
        docs::SocketErrors,
        error::ApiError,
        extract::{self, Caller, IdempotencyKey},
        guard::Expires,
        stream::{Begun, begin},
    },
    chat::{Opened, Reader},
    config::AllowedOrigins,
    ids::StreamId,
    state::{AppState, Place},
    streams::{Followed, Seq, event::entries},
};
use message::{Asked, Reply, Request, frame};

/// How often a client is asked whether it is there. Proxies take a silent connection for a dead one.
const PING: Duration = Duration::from_secs(20);

/// How long a client may say nothing, not even a pong; and how long it may take to read a slice of the log.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a client has to answer a close frame.
const FAREWELL: Duration = Duration::from_secs(1);

/// The protocol that a client may offer, beside `bearer.<token>`.
const PROTOCOL: &str = "ai-service";

/// Most streams that one socket follows at once.
const MAX_STREAMS: usize = 100;

/// What a socket's buffers begin with; the library's own 128 KiB each way would be most of an idle socket.
const BUFFER_BYTES: usize = 8 * 1024;

pub(crate) fn router(origins: &AllowedOrigins) -> OpenApiRouter<AppState> {
    with(Settings { origins: origins.clone(), ping: PING, silence: SILENCE })
}

fn with(settings: Settings) -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(socket)).layer(Extension(Arc::new(settings)))
}

#[derive(Debug)]
struct Settings {
    origins: AllowedOrigins,
    ping: Duration,
    silence: Duration,
}

/// Ask, read and stop over one WebSocket
///
/// Not from this page: it knows no WebSockets. Every frame is one JSON object, as text. The client sends
///
/// * `{"type":"chat", …}` with the fields of `POST /chat/stream`: begins a stream and follows it;
/// * `{"type":"resume","stream_id":"…","last_event_id":2}`: follows a stream behind that event, or from START without
///   one; a stream that is followed already is followed from there instead;
/// * `{"type":"stop","stream_id":"…"}`: stops a stream, whoever follows it.
///
/// The service sends the events of each stream as `GET /chat/stream/{stream_id}` has them, with their number and their
/// stream: `{"id":2,"stream_id":"…","type":"CHUNK","content":"안녕"}`. At most 100 streams are followed at once.
///
/// A request may carry `"ref"` (`[A-Za-z0-9._-]{1,64}`). Then it gets one reply with the same `ref`, before any event:
/// `{"type":"ACCEPTED","ref":"…","stream_id":"…"}` or one of the next two. With or without it, a resume behind the last
/// event of a stream gets `{"type":"NOTHING_LEFT","stream_id":"…"}`, and a request that is refused gets
/// `{"type":"REJECTED","code":"…","detail":…}` (and `stream_id`, if it named one), with code and detail as over HTTP.
///
/// The service closes with 1001 (nothing heard for 60 s, though it pings every 20 s; or nothing read), 1002 (not
/// WebSocket), 1003 (a binary frame), 1007 (not UTF-8), 1008 (the token with which it came has expired), 1009 (a message over `MAX_BODY_BYTES`) or 1012 (it restarts:
/// come back and resume). To leave is to stop reading: `on_disconnect` says what becomes of a stream.
#[utoipa::path(
    get, path = "/chat/ws", tag = "streams", operation_id = "chat_socket",
    params(("Origin" = Option<String>, Header, description = "Sent by browsers; must be in `CORS_ALLOW_ORIGINS`, if that is a list, or of the host and port that are asked")),
    responses((status = 101, description = "The connection is a WebSocket now"), SocketErrors),
)]
async fn socket(
    State(state): State<AppState>,
    Extension(settings): Extension<Arc<Settings>>,
    caller: Caller,
    parts: Parts,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    if !is_allowed(&settings.origins, &parts.headers) {
        return Err(ApiError::OriginNotAllowed);
    }
    // A browser that says who it is in a protocol wants to hear one that it offered.
    let upgrade = upgrade.map_err(|_| ApiError::WebSocketRequired)?.protocols([PROTOCOL]);
    let limit = state.limits.body_bytes;
    let upgrade = upgrade.max_message_size(limit).max_frame_size(limit);
    let upgrade = upgrade.read_buffer_size(BUFFER_BYTES).write_buffer_size(BUFFER_BYTES);
    // Taken while the connection is still waited for, so that no end comes between.
    let open = state.sockets.open.token();
    let place = parts.extensions.get::<Place>().cloned();
    let expires = parts.extensions.get::<Expires>().map(|Expires(at)| *at);
    Ok(upgrade.on_upgrade(async move |socket| {
        let mut session = Session::new(socket, (state, caller), settings);
        session.expires = expires;
        session.run().await;
        drop((open, place));
    }))
}

/// A browser sends a page's origin and leaves it to the service to look: CORS does not apply to WebSockets. A page that comes
/// from here is no other's; libraries that are no browsers say that they come from where they call.
fn is_allowed(origins: &AllowedOrigins, headers: &HeaderMap) -> bool {
    let AllowedOrigins::List(list) = origins else { return true };
    let is_known = |origin: &HeaderValue| list.iter().any(|known| known.as_bytes() == origin.as_bytes());
    headers.get_all(header::ORIGIN).iter().all(|origin| is_known(origin) || is_from_here(origin, headers))
}

/// Whether `origin` is the host and port that the request asks.
fn is_from_here(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| Url::parse(origin).ok());
    let (Some(host), Some(origin)) = (host, origin) else { return false };
    // The port that is not named is the one of the page's scheme, on both sides.
    let here = Url::parse(&format!("{}://{host}", origin.scheme())).ok();
    matches!(origin.scheme(), "http" | "https") && here.is_some_and(|here| here.origin() == origin.origin())
}

/// Why a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client said so, or its connection broke.
    Left,
    /// The client is silent, or does not read.
    Silent,
    NotWebSocket,
    Binary,
    NotUtf8,
    TooLarge,
    /// The token with which it came has expired.
    Expired,
    /// The service ends.
    Restart,
}

impl End {
    fn of(error: axum::Error) -> Self {
        use tungstenite::Error;
        match error.into_inner().downcast_ref() {
            Some(Error::Capacity(_)) => Self::TooLarge,
            Some(Error::Utf8(_)) => Self::NotUtf8,
            // The connection is gone: nobody would read a close frame.
            Some(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => Self::Left,
            Some(Error::Protocol(_)) => Self::NotWebSocket,
            _ => Self::Left,
        }
    }

    /// What the client is told.
    fn close(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Left => None,
            Self::Silent => Some((1001, "nothing heard")),
            Self::NotWebSocket => Some((1002, "not WebSocket")),
            Self::Binary => Some((1003, "text only")),
            Self::NotUtf8 => Some((1007, "not UTF-8")),
            Self::Expired => Some((1008, "the token has expired")),
            Self::TooLarge => Some((1009, "message too large")),
            Self::Restart => Some((1012, "the service is stopping")),
        }
    }
}

/// A stream's next entries, and whether they are the last thing it says.
type Told = (StreamId, Followed, bool);

/// One socket and the streams that it follows.
struct Session {
    socket: WebSocket,
    state: AppState,
    caller: Caller,
    settings: Arc<Settings>,
    followed: HashMap<StreamId, AbortHandle>,
    events: SelectAll<BoxStream<'static, Told>>,
    heard: Instant,
    /// When its caller is known no longer, if that is to come.
    expires: Option<Instant>,
    /// Whether a request was refused for that.
    has_expired: bool,
}

/// What comes next on a socket.
enum Step {
    Heard(Option<Result<Message, axum::Error>>),
    Told(Told),
    Beat,
}

impl Session {
    fn new(socket: WebSocket, (state, caller): (AppState, Caller), settings: Arc<Settings>) -> Self {
        let (followed, events) = (HashMap::new(), SelectAll::new());
        let heard = Instant::now();
        Self { socket, state, caller, settings, followed, events, heard, expires: None, has_expired: false }
    }

    fn is_expired(&self) -> bool {
        self.expires.is_some_and(|at| at <= Instant::now())
    }

    async fn run(mut self) {
        let begun = Instant::now();
        let end = self.converse().await;
        tracing::info!(
            code = end.close().map_or(1000, |(code, _)| code),
            seconds = begun.elapsed().as_secs(),
            "socket"
        );
        // The readers leave before the farewell, which may take a while.
        let Self { socket, .. } = self;
        part(socket, end).await;
    }

    /// Everything until the end.
    async fn converse(&mut self) -> End {
        let (draining, closing) = (self.state.sockets.draining.clone(), self.state.closing.0.clone());
        let mut beat = interval_at(Instant::now() + self.settings.ping, self.settings.ping);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if draining.is_cancelled() && self.followed.is_empty() {
                return End::Restart;
            }
            // What it follows already goes on to its end, as over HTTP.
            if self.has_expired && self.followed.is_empty() {
                return End::Expired;
            }
            let step = tokio::select! {
                heard = self.socket.recv() => Step::Heard(heard),
                Some(told) = self.events.next() => Step::Told(told),
                _ = beat.tick() => Step::Beat,
                () = draining.cancelled(), if !draining.is_cancelled() => continue,
                () = closing.cancelled() => {
                    // What is in the log already, as far as it can be sent at once.
                    while let Some(Some(told)) = self.events.next().now_or_never() {
                        let frames = self.tell(told);
                        if self.send(frames).await.is_err() {
                            break;
                        }
                    }
                    return End::Restart;
                }
            };
            let frames = match step {
                Step::Told(told) => self.tell(told),
                Step::Beat if self.heard.elapsed() >= self.settings.silence => return End::Silent,
                Step::Beat if self.is_expired() && self.followed.is_empty() => return End::Expired,
                Step::Beat => vec![Message::Ping(bytes::Bytes::new())],
                Step::Heard(None | Some(Ok(Message::Close(_)))) => return End::Left,
                Step::Heard(Some(Err(error))) => return End::of(error),
                Step::Heard(Some(Ok(message))) => {
                    self.heard = Instant::now();
                    match message {
                        Message::Binary(_) => return End::Binary,
                        Message::Text(text) => self.obey(&text).await,
                        // The library has a pong ready, which is to be sent before another ping is heard: a client that
                        // only pings would fill the memory with them.
                        _ => Vec::new(),
                    }
                }
            };
            if let Err(end) = self.send(frames).await {
                return end;
            }
        }
    }

    async fn send(&mut self, frames: Vec<Message>) -> Result<(), End> {
        let sending = async {
            for frame in frames {
                self.socket.feed(frame).await?;
            }
            self.socket.flush().await
        };
        tokio::select! {
            biased;
            sent = timeout(self.settings.silence, sending) => match sent {
                Ok(sent) => sent.map_err(|_: axum::Error| End::Left),
                Err(_) => Err(End::Silent),
            },
            () = self.state.closing.0.cancelled() => Err(End::Restart),
        }
    }

    /// The frames for what a stream says.
    fn tell(&mut self, (id, followed, is_last): Told) -> Vec<Message> {
        if is_last {
            self.followed.remove(&id);
        }
        match followed {
            Followed::Entries(pieces) => {
                pieces.iter().flat_map(entries).filter_map(|entry| frame(id, &entry)).collect()
            }
            Followed::End(_) => vec![Reply::NothingLeft { reference: None, stream_id: id }.frame()],
            Followed::Gone => vec![Reply::rejected(&ApiError::StreamNotFound, None, Some(id)).frame()],
        }
    }

    /// Does what a message asks; the reply, if there is one.
    async fn obey(&mut self, text: &str) -> Vec<Message> {
        let (reference, outcome) = match extract::parse(text.as_bytes()) {
            Ok(Asked { reference, request: Ok(request) }) => (reference, self.grant(request).await),
            Ok(Asked { reference, request: Err(issues) }) => (reference, Err((ApiError::Invalid(issues), None))),
            Err(error) => (None, Err((error, None))),
        };
        let reference = reference.as_deref();
        let reply = match &outcome {
            Ok(Granted::Done(stream_id)) => {
                reference.map(|reference| Reply::Accepted { reference, stream_id: *stream_id })
            }
            Ok(Granted::NothingLeft(stream_id)) => Some(Reply::NothingLeft { reference, stream_id: *stream_id }),
            Err((error, stream_id)) => {
                tracing::info!(code = error.code(), "socket request refused");
                Some(Reply::rejected(error, reference, *stream_id))
            }
        };
        reply.iter().map(Reply::frame).collect()
    }

    async fn grant(&mut self, request: Request) -> Result<Granted, (ApiError, Option<StreamId>)> {
        let id = match &request {
            Request::Chat(_) => None,
            Request::Resume { id, .. } | Request::Stop { id } => *id,
        };
        if self.is_expired() {
            self.has_expired = true;
            return Err((ApiError::Unauthorized, id));
        }
        let granted = match request {
            Request::Chat(request) => self.chat(*request).await,
            Request::Resume { id: Some(id), cursor } => self.resume(id, cursor).await,
            Request::Stop { id: Some(id) } if self.state.streams.cancel(id, &self.caller.0.owner).await => {
                Ok(Granted::Done(id))
            }
            Request::Resume { .. } | Request::Stop { .. } => Err(ApiError::StreamNotFound),
        };
        granted.map_err(|error| (error, id))
    }

    async fn chat(&mut self, request: StreamRequest) -> Result<Granted, ApiError> {
        self.room_for(None)?;
        // Over HTTP the guard has counted it.
        if let Some(standing) = self.state.requests.take(&self.caller.0.who, 1).await.filter(|it| !it.is_allowed) {
            return Err(ApiError::OverRequests { standing });
        }
        let Begun { spent, id, .. } =
            begin(&self.state, self.caller.clone(), IdempotencyKey::default(), request).await?;
        tracing::info!(stream_id = %id, model = spent.model, "socket request");
        match self.state.streams.open(id, &self.caller.0.owner, None).await {
            Some(Opened::Reader(reader)) => self.follow(id, reader),
            Some(Opened::NothingLeft) | None => return Err(ApiError::Internal),
        }
        Ok(Granted::Done(id))
    }

    async fn resume(&mut self, id: StreamId, cursor: Option<Seq>) -> Result<Granted, ApiError> {
        self.room_for(Some(id))?;
        // Together with those over HTTP.
        let reader = format!("{} {id}", self.caller.0.who);
        if let Some(standing) = self.state.reconnects.take(&reader, 1).await.filter(|it| !it.is_allowed) {
            return Err(ApiError::OverRequests { standing });
        }
        match self.state.streams.open(id, &self.caller.0.owner, cursor).await.ok_or(ApiError::StreamNotFound)? {
            Opened::Reader(reader) => {
                self.follow(id, reader);
                Ok(Granted::Done(id))
            }
            Opened::NothingLeft => Ok(Granted::NothingLeft(id)),
        }
    }

    /// Whether another stream can be followed: `id`, or a new one.
    fn room_for(&self, id: Option<StreamId>) -> Result<(), ApiError> {
        let is_followed = id.is_some_and(|id| self.followed.contains_key(&id));
        if self.state.sockets.draining.is_cancelled() {
            Err(ApiError::Stopping)
        } else if self.followed.len() >= MAX_STREAMS && !is_followed {
            Err(ApiError::TooManyStreams { limit: MAX_STREAMS })
        } else {
            Ok(())
        }
    }

    /// Follows a stream from where `reader` is, and from nowhere else.
    fn follow(&mut self, id: StreamId, reader: Reader) {
        let (events, handle) = stream::abortable(told(id, reader));
        self.events.push(events.boxed());
        if let Some(before) = self.followed.insert(id, handle) {
            before.abort();
        }
    }
}

/// A request that was granted.
#[derive(Debug)]
enum Granted {
    Done(StreamId),
    NothingLeft(StreamId),
}

/// What a stream says, to its end. The reader leaves with the last of it.
fn told(id: StreamId, reader: Reader) -> impl futures_util::Stream<Item = Told> {
    stream::unfold(Some(reader), move |reader| async move {
        let mut reader = reader?;
        let followed = reader.next().await;
        let is_last = reader.is_ended() || !matches!(followed, Followed::Entries(_));
        Some(((id, followed, is_last), (!is_last).then_some(reader)))
    })
}

/// Says why, and waits a little for the client to have read it.
async fn part(mut socket: WebSocket, end: End) {
    let farewell = async {
        if let Some((code, reason)) = end.close() {
            let close = CloseFrame { code, reason: reason.into() };
            if socket.send(Message::Close(Some(close))).await.is_err() {
                return;
            }
        }
        while let Some(Ok(_)) = socket.recv().await {}
        if matches!(end, End::NotWebSocket | End::NotUtf8 | End::TooLarge) {
            // No more can be read. To close with something unread would be a reset, which can overtake the close frame.
            pending::<()>().await;
        }
    };
    let _ = timeout(FAREWELL, farewell).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::describe,
        chat::{ChatStreams, ModelCatalog, OpenAiService, UsageRecorder, idempotency::Idempotency},
        config::{Config, Database},
        conversations::Conversations,
        limits::{Limited, MemoryLimiter, Room},
        openai::Client,
        state::{Closing, Handles, Sockets},
        streams::{MemoryLog, MemoryLogLimits},
    };
    use tokio::{net::TcpListener, time::sleep};
    use tokio_tungstenite::{connect_async, tungstenite::Message as Heard};
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    const PING: Duration = Duration::from_millis(50);
    const SILENCE: Duration = Duration::from_millis(400);

    /// The route alone, in more of a hurry than the service.
    async fn serve(tasks: &TaskTracker) -> String {
        let variables = [("OPENAI_API_KEY".to_owned(), "x".to_owned())].into();
        let config = Config::from_variables(&variables, false).unwrap();
        let client = Arc::new(Client::new(&config.upstream).unwrap());
        let limits = MemoryLogLimits { ttl: config.streams.ttl, max_bytes: config.streams.max_bytes };
        let log = Arc::new(MemoryLog::new(limits));
        let state = AppState::from(Handles {
            service: OpenAiService::in_memory(Arc::clone(&client), &config, tasks).await,
            catalog: ModelCatalog::new(client, tasks.clone()),
            streams: ChatStreams::new(log, tasks.clone(), describe, config.streams),
            closing: Closing(CancellationToken::new()),
            sockets: Sockets::default(),
            idempotency: Idempotency::default(),
            tasks: tasks.clone(),
            limits: config.limits,
            bodies: Room::new(config.limits.bodies_bytes),
            usage: UsageRecorder::new(Conversations::open(&Database::SqliteInMemory).await.unwrap()),
            requests: Limited { limiter: Arc::new(MemoryLimiter::default()), quota: None },
            reconnects: Limited { limiter: Arc::new(MemoryLimiter::default()), quota: None },
            tickets: None,
            root_path: String::new(),
        });
        let settings = Settings { origins: AllowedOrigins::Any, ping: PING, silence: SILENCE };
        let (router, _) = with(settings).with_state(state).split_for_parts();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(async { axum::serve(listener, router).await });
        format!("ws://{address}/chat/ws")
    }

    #[tokio::test]
    async fn a_client_that_does_not_answer_pings_is_left_with_1001() {
        let tasks = TaskTracker::new();
        let (mut client, _) = connect_async(serve(&tasks).await).await.unwrap();
        // This client answers pings only while it is asked for messages.
        sleep(SILENCE + 2 * PING).await;
        let mut pings = 0;
        let close = loop {
            match timeout(SILENCE, client.next()).await.unwrap().unwrap().unwrap() {
                Heard::Ping(_) => pings += 1,
                Heard::Close(close) => break close.unwrap(),
                other => panic!("{other:?}"),
            }
            assert!(pings < 20, "pinged for ever");
        };
        assert_eq!(u16::from(close.code), 1001);
        assert!(pings >= 2, "{pings}");
    }

    #[tokio::test]
    async fn a_client_that_answers_pings_may_say_nothing_else() {
        let tasks = TaskTracker::new();
        let (mut client, _) = connect_async(serve(&tasks).await).await.unwrap();
        let listening = async {
            while let Some(heard) = client.next().await {
                assert!(matches!(heard.unwrap(), Heard::Ping(_)));
            }
        };
        assert!(timeout(3 * SILENCE, listening).await.is_err(), "the socket has closed");
    }
}
