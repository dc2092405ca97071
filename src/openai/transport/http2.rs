//! A connection that speaks HTTP/2: many requests at a time, and a PING when it is silent.
//!
//! The limits that h2 has against a hostile peer count over the life of a connection and end it, with every answer on it.
//! A client that stops answers reaches them with a well-behaved peer, so they are set to what only costs memory:
//!
//! | limit of h2 | reached by | here |
//! |---|---|---|
//! | streams that are remembered once they were reset | stopping more than 50 answers a second | [`REMEMBERED_RESETS`], for [`REMEMBERED_TIME`] |
//! | 1,024 frames for streams that are forgotten | words under way to an answer that was stopped | none |
//! | budget for small DATA frames | the same words, whose share is never given back | none |
//! | 100 empty DATA frames | an edge that sends them between words | not to be set: see [`MAX_EMPTY_FRAMES`] |

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason,
    client::{self, Connection, SendRequest},
};
use hyper::Version;
use tokio::{
    sync::Notify,
    time::{Instant, Sleep, sleep, timeout},
};

use crate::{
    config::ConnectionLimits,
    openai::{
        error::UpstreamError,
        transport::{
            Request, Response, Unanswered,
            body::Body,
            io::{Io, LastTime},
            pool::Pool,
        },
    },
};

/// How many streams are remembered after they were reset, so that frames under way to them are dropped in silence. Each
/// takes some 300 bytes.
const REMEMBERED_RESETS: usize = 20_000;

/// How long. More than any frame is under way.
const REMEMBERED_TIME: Duration = Duration::from_secs(30);

/// After so many empty DATA frames new requests go to another connection: h2 ends one after 100.
const MAX_EMPTY_FRAMES: usize = 32;

/// What one answer, and all on a connection, may send ahead of being read.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Most bytes of a response's head.
const MAX_HEAD_BYTES: u32 = 64 * 1024;

/// Most requests at a time, whatever the upstream allows: all of them share the loss of one packet, and of the
/// connection.
const MOST_AT_A_TIME: usize = 200;

/// How many streams there may be before the upstream has said. No upstream says this, so it tells those that have spoken
/// from those that have not.
const UNTOLD: usize = 0x7eff_ffff;

/// How long the upstream may take to say how many streams there may be. One that says nothing is taken at its word.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// An idle connection is asked whether it is alive so many times more rarely than one with answers.
const IDLE_FACTOR: u32 = 3;

/// A connection.
#[derive(Debug)]
pub(super) struct Http2 {
    sender: SendRequest<Bytes>,
    pub(super) shared: Arc<Shared>,
    // Behind the sender: the connection ends when that is gone and somebody looks.
    _last: LookWhenDropped,
}

/// What the connection's task and those who use it know together.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) last_read: LastTime,
    /// When a request last began or ended.
    pub(super) last_used: LastTime,
    /// Requests on the way. Changed only under the pool's lock.
    pub(super) in_flight: AtomicUsize,
    /// How many the upstream takes, as far as is known.
    limit: AtomicUsize,
    /// Takes no more requests.
    retired: AtomicBool,
    settled: Notify,
    /// Wakes the task that drives the connection.
    look: Notify,
    empty_frames: AtomicUsize,
}

#[derive(Debug)]
struct LookWhenDropped(Arc<Shared>);

impl Drop for LookWhenDropped {
    fn drop(&mut self) {
        self.0.look.notify_one();
    }
}

impl Shared {
    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Running answers go on; new requests go elsewhere.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
        self.look.notify_one();
    }

    /// Has the connection asked whether it is alive, unless it has just been heard.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    fn has_told(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != UNTOLD
    }
}

impl Http2 {
    /// Begins to speak. The connection is driven by a task of its own, until it ends or nobody can use it any more.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) async fn new(io: Io, limits: ConnectionLimits, pool: Weak<Pool>) -> Result<Self, UpstreamError> {
        let shared = Arc::new(Shared {
            last_read: io.last_read(),
            last_used: LastTime::now(),
            in_flight: AtomicUsize::new(0),
            limit: AtomicUsize::new(UNTOLD),
            retired: AtomicBool::new(false),
            settled: Notify::new(),
            look: Notify::new(),
            empty_frames: AtomicUsize::new(0),
        });
        let (sender, connection) = client::Builder::new()
            .enable_push(false)
            .initial_max_send_streams(UNTOLD)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD_BYTES)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .reset_stream_duration(REMEMBERED_TIME)
            .max_local_error_reset_streams(None)
            .data_frame_budget(usize::MAX)
            .handshake(io)
            .await
            .map_err(|_| UpstreamError::Interrupted)?;
        super::pool::spawn(drive(connection, Arc::clone(&shared), limits, pool));
        let last = LookWhenDropped(Arc::clone(&shared));
        Ok(Self { sender, shared, _last: last })
    }

    /// Waits until the upstream has said how many requests it takes at a time.
    pub(super) async fn settled(&self) {
        let told = async {
            while !self.shared.has_told() && !self.shared.is_retired() {
                self.shared.settled.notified().await;
            }
        };
        if timeout(SETTLE_TIME, told).await.is_err() {
            self.shared.limit.store(usize::MAX, Ordering::Relaxed);
        }
    }

    /// How many requests it is filled with: a part of what the upstream takes, because that counts a stream that has just
    /// ended for a moment longer.
    pub(super) fn fill(&self) -> usize {
        let limit = self.limit();
        (limit - limit / 4).clamp(1, MOST_AT_A_TIME)
    }

    /// How many requests the upstream takes.
    pub(super) fn limit(&self) -> usize {
        // The upstream may say otherwise at any time; one that refused knows better than it said.
        let said = self.sender.current_max_send_streams();
        self.shared.limit.load(Ordering::Relaxed).min(said).max(1)
    }
}

/// A request's place on a connection, until the response has been read.
#[derive(Debug)]
pub(super) struct Http2Lease {
    connection: Arc<Http2>,
    pool: Arc<Pool>,
    /// When the request began; `None` when giving it up says nothing about the connection.
    began: Option<Instant>,
}

impl Http2Lease {
    /// `connection` counts the request already.
    pub(super) fn new(connection: Arc<Http2>, pool: Arc<Pool>) -> Self {
        Self { connection, pool, began: Some(Instant::now()) }
    }

    /// The answer has come, so that leaving what is behind it says nothing about the connection.
    pub(super) fn without_doubt(mut self) -> Self {
        self.began = None;
        self
    }

    /// A DATA frame without data came that was not the last one.
    pub(super) fn saw_empty_frame(&self) {
        let shared = &self.connection.shared;
        if shared.empty_frames.fetch_add(1, Ordering::Relaxed) == MAX_EMPTY_FRAMES {
            shared.retire();
        }
    }

    pub(super) async fn send(self, request: &Request<'_>) -> Result<Response, Unanswered> {
        let shared = &self.connection.shared;
        let mut message = hyper::Request::new(());
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = request.endpoint.absolute.clone();
        *message.version_mut() = Version::HTTP_2;
        *message.headers_mut() = request.headers.clone();
        let has_body = !request.body.is_empty();
        let sent = match self.connection.sender.clone().ready().await {
            Ok(mut sender) => sender.send_request(message, !has_body),
            Err(error) => Err(error),
        };
        // Nothing has been sent: the connection has ended or is going to.
        let Ok((response, mut body)) = sent else {
            shared.retire();
            return Err(Unanswered::NotProcessed);
        };
        if has_body {
            // It is in memory already, so h2 may as well have all of it. What went wrong, the response tells.
            drop(body.send_data(request.body.clone(), true));
        }
        match response.await {
            Ok(response) => Ok(response.map(|body| Body::http2(body, self))),
            Err(error) => Err(self.unanswered(&error)),
        }
    }

    /// What a response that did not come means.
    ///
    /// Source: RFC 9113, 8.7. A stream that is refused, or stands behind the last one that a GOAWAY names, has not been
    /// processed. One that was reset with `ENHANCE_YOUR_CALM` before its head came has been turned away as well.
    fn unanswered(&self, error: &h2::Error) -> Unanswered {
        let shared = &self.connection.shared;
        if !error.is_remote() {
            return Unanswered::Broken;
        }
        if error.is_go_away() {
            shared.retire();
            return Unanswered::NotProcessed;
        }
        match error.reason() {
            Some(Reason::REFUSED_STREAM | Reason::ENHANCE_YOUR_CALM) => {
                let others = shared.in_flight.load(Ordering::Relaxed).saturating_sub(1);
                if others == 0 {
                    shared.retire();
                } else {
                    shared.limit.fetch_min(others, Ordering::Relaxed);
                }
                Unanswered::NotProcessed
            }
            _ => Unanswered::Broken,
        }
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            self.pool.doubt(&self.connection.shared.last_read, began);
        }
        self.pool.release(&self.connection);
    }
}

/// Asks a silent connection whether it is alive.
struct Heartbeat {
    shared: Arc<Shared>,
    limits: ConnectionLimits,
    ping: Option<PingPong>,
    asked: Option<Instant>,
}

impl Heartbeat {
    /// When to look again.
    fn due(&self) -> Instant {
        let heard = self.shared.last_read.at();
        match self.asked {
            Some(asked) => asked.max(heard) + self.limits.ping_answer,
            None if self.shared.in_flight.load(Ordering::Relaxed) > 0 => heard + self.limits.silence,
            None => heard + self.limits.silence * IDLE_FACTOR,
        }
    }

    /// False: the connection is dead.
    fn look(&mut self) -> bool {
        if Instant::now() < self.due() {
            return true;
        }
        if self.asked.is_some() {
            return false;
        }
        self.ask();
        true
    }

    fn ask(&mut self) {
        if self.asked.is_none()
            && let Some(ping) = &mut self.ping
            && ping.send_ping(Ping::opaque()).is_ok()
        {
            self.asked = Some(Instant::now());
        }
    }

    /// Somebody has sent a request, or doubts that the connection is alive.
    fn look_now(&mut self) {
        if self.shared.last_read.at().elapsed() >= self.limits.silence / 2 || self.shared.is_retired() {
            self.ask();
        }
    }

    async fn answered(&mut self) {
        match &mut self.ping {
            // An error is the connection's, which tells it itself.
            Some(ping) if self.asked.is_some() => drop(poll_fn(|context| ping.poll_pong(context)).await),
            _ => std::future::pending().await,
        }
    }
}

/// Drives a connection to its end, and tells the pool.
async fn drive(connection: Connection<Io, Bytes>, shared: Arc<Shared>, limits: ConnectionLimits, pool: Weak<Pool>) {
    // It is closed when this returns, so that another can be made in its place.
    drive_to_end(connection, &shared, limits).await;
    shared.retire();
    shared.settled.notify_one();
    if let Some(pool) = pool.upgrade() {
        pool.forget(&shared);
    }
}

async fn drive_to_end(mut connection: Connection<Io, Bytes>, shared: &Arc<Shared>, limits: ConnectionLimits) {
    let ping = connection.ping_pong();
    let mut heartbeat = Heartbeat { shared: Arc::clone(shared), limits, ping, asked: None };
    let mut connection = pin!(connection);
    let mut alarm: std::pin::Pin<&mut Sleep> = pin!(sleep(limits.silence));
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|context| {
                let ended = connection.as_mut().poll(context);
                if !shared.has_told() && connection.max_concurrent_send_streams() != UNTOLD {
                    shared.limit.store(usize::MAX, Ordering::Relaxed);
                    shared.settled.notify_one();
                }
                ended
            }) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to the upstream ended with an error");
                }
                break;
            }
            () = heartbeat.answered() => heartbeat.asked = None,
            () = shared.look.notified() => heartbeat.look_now(),
            () = alarm.as_mut() => {
                if !heartbeat.look() {
                    let answers = shared.in_flight.load(Ordering::Relaxed);
                    tracing::warn!(answers, "a connection to the upstream has died without a word");
                    break;
                }
            }
        }
        let due = heartbeat.due();
        if alarm.is_elapsed() || due < alarm.deadline() {
            alarm.as_mut().reset(due);
        }
    }
}
