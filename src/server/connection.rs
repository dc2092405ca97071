//! One connection: HTTP/1.1 within limits of size and time.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    exchange::{Admission, Exchange},
    life::{Life, Lives},
    progress::Progressing,
    reserve::Refused,
    transport::{Patience, Transport, Unreadable},
};
use crate::{
    api::{Api, MAX_HEAD_BYTES, MAX_HEADERS, answer_to_unreadable, for_peer},
    config::Limits,
    state::Place,
};

/// What the system may hold for a reader who does not read. Left to itself it takes megabytes, which no limit of this
/// process sees.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

/// Time for the head of a request on a connection that is one too many.
const CROWDED_HEAD_TIME: Duration = Duration::from_secs(1);

/// Answers on connections.
#[derive(Clone)]
pub(super) struct ConnectionServer {
    api: Api,
    http: http1::Builder,
    write_time: Duration,
    patience: Patience,
    unreadable: Unreadable,
    lives: Arc<Lives>,
    shutdown: CancellationToken,
}

impl fmt::Debug for ConnectionServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionServer").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl ConnectionServer {
    pub(super) fn new(api: Api, limits: Limits, lives: Arc<Lives>, shutdown: CancellationToken) -> Self {
        let mut http = http1::Builder::new();
        // `Transport` has the time limits.
        http.header_read_timeout(None).max_header_size(MAX_HEAD_BYTES).max_headers(MAX_HEADERS);
        let patience = Patience { head: limits.head_time, keep_alive: limits.keep_alive };
        let refusing = api.clone();
        let unreadable: Unreadable = Arc::new(move |said| answer_to_unreadable(&refusing, said));
        Self { api, http, write_time: limits.write_time, patience, unreadable, lives, shutdown }
    }

    /// Answers until the connection ends, or the service does.
    pub(super) async fn serve(self, stream: TcpStream, place: Place) {
        let registered = self.lives.begin();
        let life = Arc::clone(&registered.life);
        self.answer(stream, life, Admission::Placed(place)).await;
    }

    /// Answers one short request, or says that there are too many connections.
    pub(super) async fn serve_one(mut self, stream: TcpStream, life: Arc<Life>, refused: Refused) {
        self.http.keep_alive(false);
        self.patience.head = self.patience.head.min(CROWDED_HEAD_TIME);
        self.answer(stream, life, Admission::Crowded(refused)).await;
    }

    async fn answer(self, stream: TcpStream, life: Arc<Life>, admission: Admission) {
        // An answer must not wait for the next one to fill a packet.
        let _ = stream.set_nodelay(true);
        let socket = SockRef::from(&stream);
        let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
        // A peer whose network is gone acknowledges nothing.
        #[cfg(target_os = "linux")]
        let _ = socket.set_tcp_user_timeout(Some(self.write_time));
        let peer = stream.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let stream = Progressing::new(stream, self.write_time);
        let stream = Transport::new(stream, Arc::clone(&life), self.patience, self.unreadable);
        let service = Exchange { api: for_peer(self.api, peer), life: Arc::clone(&life), admission };
        let connection = self.http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        // WebSockets take the connection over. In a box: this future would hold it twice.
        let mut connection = Box::pin(connection.with_upgrades());
        let leave = async {
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = life.leave.notified() => {}
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = leave => {
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
