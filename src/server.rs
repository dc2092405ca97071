//! The app and its accept loop: connections with limits, and an orderly end.

mod connection;
mod exchange;
mod life;
mod progress;
mod reserve;
mod transport;

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    sync::Semaphore,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Tickets,
    api::{self, Api, Doors, Rules, requests_quota, tokens_quota},
    chat::{
        ChatStreams, Ground, Metering, MeteringSettings, ModelCatalog, OpenAiService, UsageRecorder,
        idempotency::Idempotency,
    },
    config::{Config, Limits},
    conversations::{Conversations, OpenError},
    limits::{Limited, MemoryLimiter, RateLimiter, Room},
    openai::{Client, ClientError},
    state::{Closing, Handles, Place, Sockets},
    streams::{MemoryLog, MemoryLogLimits, StreamLog},
    tokens::{TokenCounter, Vocabulary},
};
use connection::ConnectionServer;
use life::{Idle, Life, Lives};
use reserve::{Refused, Reserve};

/// Why an app cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Database(#[from] OpenError),
}

/// One service: its routes, its upstream, its tasks. Several may live in one process; they share nothing.
#[derive(Debug)]
pub struct App {
    api: Api,
    limits: Limits,
    tasks: TaskTracker,
    streams: ChatStreams,
    log: Arc<MemoryLog>,
    idempotency: Idempotency,
    sockets: Sockets,
    conversations: Conversations,
    usage: UsageRecorder,
    /// Cancelled when readers of streams must go.
    closing: CancellationToken,
}

impl App {
    /// Builds everything and opens the database.
    ///
    /// # Errors
    /// The HTTP client cannot be built, for example without any CA certificate on the machine, or the database cannot be
    /// used.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        let client = Arc::new(Client::new(&config.upstream)?);
        let tasks = TaskTracker::new();
        let closing = CancellationToken::new();
        let sockets = Sockets::default();
        let settings = config.streams;
        let log = Arc::new(MemoryLog::new(MemoryLogLimits { ttl: settings.ttl, max_bytes: settings.max_bytes }));
        let shared: Arc<dyn StreamLog> = log.clone();
        let streams = ChatStreams::new(shared, tasks.clone(), api::describe, settings);
        let conversations = Conversations::open(&config.conversations.database).await?;
        let limiter: Arc<dyn RateLimiter> = Arc::new(MemoryLimiter::default());
        let usage = UsageRecorder::new(conversations.clone());
        let service = service(config, &client, (conversations.clone(), usage.clone()), (&limiter, &tasks));
        let tickets = Arc::new(Tickets::random());
        let rules = Rules::new(&config.access, &config.rate_limits, Arc::clone(&limiter), Arc::clone(&tickets));
        let idempotency = Idempotency::default();
        let needs_tickets = !rules.is_open();
        let reconnects = Limited { limiter: Arc::clone(&limiter), quota: rules.reconnects() };
        let state = Handles {
            service,
            catalog: ModelCatalog::new(client, tasks.clone()),
            streams: streams.clone(),
            closing: Closing(closing.clone()),
            sockets: sockets.clone(),
            idempotency: idempotency.clone(),
            tasks: tasks.clone(),
            limits: config.limits,
            bodies: Room::new(config.limits.bodies_bytes),
            usage: usage.clone(),
            requests: Limited { limiter, quota: requests_quota(&config.rate_limits) },
            reconnects,
            tickets: needs_tickets.then_some(tickets),
            root_path: config.root_path.clone(),
        };
        let doors = Doors { origins: &config.cors, rules, docs: config.access.docs, root_path: &config.root_path };
        let api = api::api(state.into(), doors);
        Ok(Self {
            api,
            limits: config.limits,
            tasks,
            streams,
            log,
            idempotency,
            sockets,
            conversations,
            usage,
            closing,
        })
    }

    /// Answers on `listener` until `shutdown`, then lets running answers finish, within the grace that the
    /// configuration gives. Returns whether everything finished.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> bool {
        self.tasks.spawn(expire(Arc::clone(&self.log), self.idempotency.clone(), shutdown.clone()));
        let stop_recording = CancellationToken::new();
        let recording = TaskTracker::new();
        recording.spawn(self.usage.clone().run(stop_recording.clone()));
        recording.close();
        let connections = TaskTracker::new();
        let mut door = Door::new(&self, &connections, shutdown.clone());
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => door.let_in(stream).await,
                Err(error) => after_accept_error(&error).await,
            }
        }
        // From here on new connections are refused.
        drop(listener);
        let everything_finished = self.end(&connections).await;
        // After the last chat has ended, however it did.
        stop_recording.cancel();
        let _ = timeout(LAST_WORDS, recording.wait()).await;
        let _ = timeout(LAST_WORDS, self.conversations.close()).await;
        everything_finished
    }

    /// The phases of the end, once nobody new is let in: running answers get the grace; streams that are left then end
    /// with ERROR, their readers with a hint to come back; what is left after that is logged.
    async fn end(&self, connections: &TaskTracker) -> bool {
        connections.close();
        self.tasks.close();
        self.sockets.open.close();
        self.sockets.draining.cancel();
        let everything = async {
            connections.wait().await;
            self.sockets.open.wait().await;
            self.tasks.wait().await;
        };
        tokio::pin!(everything);
        let grace = self.limits.shutdown_grace;
        let at_once = AT_ONCE.min(grace);
        if timeout(at_once, everything.as_mut()).await.is_ok() {
            return true;
        }
        // Whoever presses Ctrl-C should not wonder what is waited for. A stream may be without a reader, and a whole answer is none.
        let answers = connections.len().max(self.streams.running());
        let (s, seconds) = (if answers == 1 { "" } else { "s" }, grace.as_secs());
        tracing::info!("waiting for {answers} answer{s}, at most {seconds} s; Ctrl-C again ends at once");
        if timeout(grace - at_once, everything.as_mut()).await.is_ok() {
            return true;
        }
        let streams = self.streams.stop_all();
        let _ = timeout(LAST_WORDS, self.tasks.wait()).await;
        self.closing.cancel();
        let readers_left = timeout(LAST_WORDS, everything).await.is_ok();
        tracing::warn!(?grace, streams, connections = connections.len(), readers_left, "the grace was not enough");
        false
    }
}

/// Where connections come in. Every one is accepted: what cannot have a place is told so.
struct Door {
    server: ConnectionServer,
    places: Arc<Semaphore>,
    idle: Idle,
    reserve: Reserve,
    refused: Refused,
    connections: TaskTracker,
}

/// How long an idle connection may take to close.
const CLOSING: Duration = Duration::from_millis(200);

impl Door {
    fn new(app: &App, connections: &TaskTracker, shutdown: CancellationToken) -> Self {
        let limits = app.limits;
        let lives = Arc::new(Lives::new());
        let refused = Refused::default();
        app.tasks.spawn(refused.clone().tell(limits.connections, shutdown.clone()));
        Self {
            server: ConnectionServer::new(app.api.clone(), limits, Arc::clone(&lives), shutdown),
            places: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
            idle: Idle::new(lives),
            reserve: Reserve::new(refused.clone()),
            refused,
            connections: connections.clone(),
        }
    }

    async fn let_in(&mut self, stream: TcpStream) {
        let (server, refused) = (self.server.clone(), self.refused.clone());
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            self.connections.spawn(server.serve(stream, Place(Arc::new(place))));
            return;
        }
        // One that nobody looks for among those with a place.
        let life = Arc::new(Life::new(Instant::now()));
        if self.idle.close_longest() {
            let places = Arc::clone(&self.places);
            self.connections.spawn(async move {
                match timeout(CLOSING, places.acquire_owned()).await {
                    Ok(Ok(place)) => server.serve(stream, Place(Arc::new(place))).await,
                    _ => server.serve_one(stream, life, refused).await,
                }
            });
        } else {
            let serve = server.serve_one(stream, Arc::clone(&life), refused);
            self.reserve.admit(life, serve, &self.connections).await;
        }
    }
}

/// The service, with the limits that need to know what a chat is.
fn service(
    config: &Config,
    client: &Arc<Client>,
    (conversations, usage): (Conversations, UsageRecorder),
    (limiter, tasks): (&Arc<dyn RateLimiter>, &TaskTracker),
) -> OpenAiService {
    let counter = TokenCounter::default();
    if config.rate_limits.tokens_per_minute.is_some() {
        // Every prompt will be counted; the first should not have to wait.
        let vocabulary = Vocabulary::of(&config.defaults.model);
        tasks.spawn_blocking(move || TokenCounter::prepare(vocabulary));
    }
    let settings = MeteringSettings {
        limiter: Arc::clone(limiter),
        tokens: tokens_quota(&config.rate_limits),
        streams: config.rate_limits.concurrent_streams,
    };
    let metering = Metering::new(settings, counter.clone(), usage, tasks.clone());
    let ground = Ground { conversations, metering, counter, tasks: tasks.clone() };
    OpenAiService::new(Arc::clone(client), config.defaults.clone(), &config.conversations, ground)
}

/// What ends within this time was not worth a word.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Time for a last entry to be written, and for it to reach its readers.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Forgets old streams and old answers, now and then.
async fn expire(log: Arc<MemoryLog>, idempotency: Idempotency, shutdown: CancellationToken) {
    let mut now_and_then = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = now_and_then.tick() => {
                log.expire();
                idempotency.expire();
            }
        }
    }
}

/// What an app runs on: every processor. On one, handing tasks from thread to thread only costs.
///
/// # Errors
/// No threads to be had.
pub fn runtime() -> io::Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut builder = match processors {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

/// Out of file descriptors or memory, trying at once would only spin; a caller who left already costs nothing.
async fn after_accept_error(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::warn!(%error, "cannot accept connections");
        sleep(Duration::from_millis(50)).await;
    }
}
