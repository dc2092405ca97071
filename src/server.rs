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
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api,
    chat::{ModelCatalog, OpenAiService},
    config::{Config, Limits},
    openai::{Client, ClientError},
    state::AppState,
};

/// One service: its routes, its upstream, its tasks. Several may live in one process; they share nothing.
#[derive(Debug)]
pub struct App {
    router: Router,
    limits: Limits,
    tasks: TaskTracker,
}

impl App {
    /// Builds everything; connects to nothing yet.
    ///
    /// # Errors
    /// The HTTP client cannot be built, for example without any CA certificate on the machine.
    pub fn new(config: &Config) -> Result<Self, ClientError> {
        let client = Arc::new(Client::new(&config.upstream)?);
        let tasks = TaskTracker::new();
        let state = AppState {
            service: OpenAiService::new(Arc::clone(&client), config.defaults.clone()),
            catalog: ModelCatalog::new(client, tasks.clone()),
            limits: config.limits,
        };
        Ok(Self { router: api::router(state, &config.cors), limits: config.limits, tasks })
    }

    /// Answers on `listener` until `shutdown`, then lets running answers finish, within the grace that the
    /// configuration gives. Returns whether everything finished.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> bool {
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
        connections.close();
        self.tasks.close();
        let grace = self.limits.shutdown_grace;
        let finished = timeout(grace, async {
            connections.wait().await;
            self.tasks.wait().await;
        });
        let finished = finished.await.is_ok();
        if !finished {
            tracing::warn!(?grace, connections = connections.len(), "some answers did not finish in time");
        }
        finished
    }
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
