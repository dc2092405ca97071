//! The app and its accept loop: connections with time limits, and an orderly end.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    time::{interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api,
    chat::{ChatStreams, ModelCatalog, OpenAiService},
    config::{Config, Limits},
    openai::{Client, ClientError},
    state::{AppState, Closing},
    streams::{MemoryLog, MemoryLogLimits, StreamLog},
};

/// One service: its routes, its upstream, its tasks. Several may live in one process; they share nothing.
#[derive(Debug)]
pub struct App {
    router: Router,
    limits: Limits,
    tasks: TaskTracker,
    streams: ChatStreams,
    log: Arc<MemoryLog>,
    /// Cancelled when readers of streams must go.
    closing: CancellationToken,
}

impl App {
    /// Builds everything; connects to nothing yet.
    ///
    /// # Errors
    /// The HTTP client cannot be built, for example without any CA certificate on the machine.
    pub fn new(config: &Config) -> Result<Self, ClientError> {
        let client = Arc::new(Client::new(&config.upstream)?);
        let tasks = TaskTracker::new();
        let closing = CancellationToken::new();
        let settings = config.streams;
        let log = Arc::new(MemoryLog::new(MemoryLogLimits { ttl: settings.ttl, max_bytes: settings.max_bytes }));
        let shared: Arc<dyn StreamLog> = log.clone();
        let streams = ChatStreams::new(shared, tasks.clone(), api::describe, settings);
        let state = AppState {
            service: OpenAiService::new(Arc::clone(&client), config.defaults.clone()),
            catalog: ModelCatalog::new(client, tasks.clone()),
            streams: streams.clone(),
            closing: Closing(closing.clone()),
            limits: config.limits,
        };
        let router = api::router(state, &config.cors);
        Ok(Self { router, limits: config.limits, tasks, streams, log, closing })
    }

    /// Answers on `listener` until `shutdown`, then lets running answers finish, within the grace that the
    /// configuration gives. Returns whether everything finished.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> bool {
        self.tasks.spawn(expire(Arc::clone(&self.log), shutdown.clone()));
        let connections = TaskTracker::new();
        let http = connection_builder(self.limits);
        loop {
            let stream = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        after_accept_error(&error).await;
                        continue;
                    }
                },
            };
            connections.spawn(serve_connection(stream, self.router.clone(), http.clone(), shutdown.clone()));
        }
        // From here on new connections are refused.
        drop(listener);
        self.end(&connections).await
    }

    /// The phases of the end, once nobody new is let in: running answers get the grace; streams that are left then end
    /// with ERROR, their readers with a hint to come back; what is left after that is logged.
    async fn end(&self, connections: &TaskTracker) -> bool {
        connections.close();
        self.tasks.close();
        let everything = async {
            connections.wait().await;
            self.tasks.wait().await;
        };
        tokio::pin!(everything);
        let grace = self.limits.shutdown_grace;
        if timeout(grace, everything.as_mut()).await.is_ok() {
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

/// Time for a last entry to be written, and for it to reach its readers.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Forgets old streams, now and then.
async fn expire(log: Arc<MemoryLog>, shutdown: CancellationToken) {
    let mut now_and_then = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = now_and_then.tick() => log.expire(),
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

/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Most headers of a request.
const MAX_HEADERS: usize = 64;

fn connection_builder(limits: Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    // Without a timer hyper's time limit would silently not exist.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_header_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    http
}

async fn serve_connection(stream: TcpStream, router: Router, http: http1::Builder, shutdown: CancellationToken) {
    // An answer must not wait for the next one to fill a packet.
    let _ = stream.set_nodelay(true);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            // Finishes the running answer and says `Connection: close` in it.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// Out of file descriptors or memory, trying at once would only spin; a caller who left already costs nothing.
async fn after_accept_error(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::warn!(%error, "cannot accept connections");
        sleep(Duration::from_millis(50)).await;
    }
}
