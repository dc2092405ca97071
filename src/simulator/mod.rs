//! A simulated OpenAI: what `--demo` talks to, and what tests and benchmarks run against.
//!
//! A real HTTP server on a loopback port, so that the service talks to it exactly as to the real one. It answers
//! `GET /v1/models` and `POST /v1/chat/completions`, whole and streamed, and misbehaves on request: see
//! [`MISBEHAVIOURS`]. It knows no more of OpenAI than that, and does not check keys.

mod misbehaviour;
mod replies;
mod respond;

pub use misbehaviour::{MISBEHAVIOURS, Misbehaviour};
pub use replies::MODELS;

use std::{convert::Infallible, io, net::Ipv4Addr, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use replies::Replies;

/// How fast the simulated model speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Like a model: a moment of thought, then a word every 40 ms.
    Natural,
    /// As fast as the machine: for tests and benchmarks.
    Zero,
}

impl Pace {
    fn of(self, natural: Duration) -> Duration {
        match self {
            Self::Natural => natural,
            Self::Zero => Duration::ZERO,
        }
    }
}

/// A running simulation. It ends with [`Simulator::stop`], or when it is dropped.
#[derive(Debug)]
pub struct Simulator {
    base_url: Url,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Simulator {
    /// Listens on a free loopback port.
    ///
    /// # Errors
    /// No port to be had.
    pub async fn start(pace: Pace) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let base_url = Url::parse(&format!("http://{address}/v1")).map_err(io::Error::other)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(accept(listener, pace, stop.clone(), tasks.clone()));
        Ok(Self { base_url, stop, tasks })
    }

    /// What `OPENAI_BASE_URL` would say.
    #[must_use]
    pub fn base_url(&self) -> &Url {
        &self.base_url
    }

    /// Closes every connection and waits for their tasks.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, pace: Pace, stop: CancellationToken, tasks: TaskTracker) {
    let replies = Arc::new(Replies::default());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors: trying at once would only spin.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (replies, stop) = (Arc::clone(&replies), stop.clone());
        tasks.spawn(async move {
            let service = service_fn(|request| {
                let replies = Arc::clone(&replies);
                async move { Ok::<_, Infallible>(respond::respond(request, pace, &replies).await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                // How a connection ends is the client's business: it may leave whenever it likes.
                _ = connection => {}
            }
        });
    }
}
