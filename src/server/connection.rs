//! One connection: HTTP/1.1 within limits of size and time.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{Request, body::Incoming, header::UPGRADE, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use pin_project_lite::pin_project;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::{
    api::{Api, for_peer},
    config::Limits,
    state::Place,
};

/// Most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// What the system may hold for a reader who does not read. Left to itself it takes megabytes, which no limit of this
/// process sees.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// Answers on connections.
#[derive(Clone, Debug)]
pub(super) struct ConnectionServer {
    api: Api,
    http: http1::Builder,
    write_time: Duration,
    shutdown: CancellationToken,
}

impl ConnectionServer {
    pub(super) fn new(api: Api, limits: Limits, shutdown: CancellationToken) -> Self {
        let mut http = http1::Builder::new();
        // Without a timer hyper's time limit would silently not exist.
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.head_time)
            .max_header_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS);
        Self { api, http, write_time: limits.write_time, shutdown }
    }

    /// Answers until the connection ends, or the service does.
    pub(super) async fn serve(self, stream: TcpStream, place: Place) {
        // An answer must not wait for the next one to fill a packet.
        let _ = stream.set_nodelay(true);
        let socket = SockRef::from(&stream);
        let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
        // A peer whose network is gone acknowledges nothing.
        #[cfg(target_os = "linux")]
        let _ = socket.set_tcp_user_timeout(Some(self.write_time));
        let peer = stream.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let api = for_peer(self.api, peer);
        let stream = Progressing { stream, limit: self.write_time, stuck: None };
        let connection =
            self.http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(Placed { api, place }));
        // WebSockets take the connection over. In a box: this future would hold it twice.
        let mut connection = Box::pin(connection.with_upgrades());
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                // Finishes the running answer and says `Connection: close` in it.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended with an error");
        }
    }
}

/// Shows a request that wants to take the connection over the place that goes with it.
#[derive(Clone, Debug)]
struct Placed {
    api: Api,
    place: Place,
}

impl Service<Request<Incoming>> for Placed {
    type Response = <Api as Service<Request<Incoming>>>::Response;
    type Error = <Api as Service<Request<Incoming>>>::Error;
    type Future = <Api as Service<Request<Incoming>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<Incoming>>::poll_ready(&mut self.api, context)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        if request.headers().contains_key(UPGRADE) {
            request.extensions_mut().insert(self.place.clone());
        }
        self.api.call(request)
    }
}

pin_project! {
    /// A stream that breaks when what is written to it does not get anywhere for a while: a reader who does not read
    /// must not hold what is his for ever. He may come back with his cursor.
    #[derive(Debug)]
    struct Progressing<S> {
        #[pin]
        stream: S,
        limit: Duration,
        // Only there while a write waits, which is rare.
        stuck: Option<Pin<Box<Sleep>>>,
    }
}

impl<S> Progressing<S> {
    /// Watches a write's outcome.
    fn watch<T>(self: Pin<&mut Self>, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let this = self.project();
        if outcome.is_ready() {
            *this.stuck = None;
            return outcome;
        }
        let limit = *this.limit;
        let stuck = this.stuck.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite> AsyncWrite for Progressing<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = self.as_mut().project().stream.poll_write(context, bytes);
        self.watch(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.as_mut().project().stream.poll_write_vectored(context, slices);
        self.watch(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.as_mut().project().stream.poll_flush(context);
        self.watch(context, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(context)
    }
}

impl<S: AsyncRead> AsyncRead for Progressing<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::Instant,
    };

    #[tokio::test(start_paused = true)]
    async fn a_write_that_gets_nowhere_fails_after_its_time_and_one_that_moves_does_not() {
        let (here, mut there) = duplex(1000);
        let limit = Duration::from_secs(30);
        let mut here = Progressing { stream: here, limit, stuck: None };
        here.write_all(&[0; 1000]).await.unwrap();

        let started = Instant::now();
        let slowly = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(20)).await;
                there.read_exact(&mut [0; 100]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(here.write_all(&[0; 1000]), slowly);
        written.unwrap();
        assert_eq!(started.elapsed().as_secs(), 200);

        let started = Instant::now();
        assert_eq!(here.write_all(&[0; 1]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), limit);
    }
}
