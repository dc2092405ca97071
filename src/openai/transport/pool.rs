//! Which connection a request goes out on.
//!
//! Over HTTP/2 there are as many connections as there is need for: each is filled to a part of what the upstream takes at
//! a time, the oldest first, so that those that are not needed become idle and end. Over HTTP/1.1 each request has one,
//! the last used first.
//!
//! Who finds no place waits in order. Connections are made by tasks of their own, so that one that was asked for serves
//! whoever waits, even when the one who asked has left; when it cannot be made, those are told who waited for it.
//!
//! A connection takes no more requests when it is old, when the upstream says that it is going away, and when there is
//! doubt that it is alive: when a request was given up for which nothing had come for half a second. Then the idle ones
//! that have been silent for as long are closed with it, for the path is the same.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use hyper::header::HeaderValue;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    config::ConnectionLimits,
    openai::{
        error::UpstreamError,
        transport::{
            DOUBTFUL, Request, Response, Unanswered,
            dial::{Dialer, Protocol},
            http1::{Http1, Http1Lease},
            http2::{Http2, Http2Lease, Shared},
            io::LastTime,
        },
    },
};

/// Most connections that are being made at a time. More would only wait in the upstream's queue.
const MAX_DIALS: usize = 128;

/// How many requests a new connection is expected to take before the first one has said: what HTTP/2 recommends as the
/// least, filled as usual.
const EXPECTED: usize = 75;

/// The connections to one upstream.
#[derive(Debug)]
pub(super) struct Pool {
    dialer: Dialer,
    host: HeaderValue,
    limits: ConnectionLimits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Without a request, the last used last.
    http1: Vec<Http1>,
    /// That take requests, the oldest first.
    http2: Vec<Arc<Http2>>,
    waiting: VecDeque<Waiting>,
    /// Connections on the way. One that has not said yet how much it takes is among them.
    dialing: usize,
    /// How many requests a new one will take.
    expected: usize,
    /// Whether somebody looks for idle connections now and then.
    is_swept: bool,
}

type Waiting = oneshot::Sender<Result<Lease, UpstreamError>>;

/// A place on a connection. Dropping it gives the place back.
#[derive(Debug)]
pub(super) enum Lease {
    Http1(Http1Lease, HeaderValue),
    Http2(Http2Lease),
}

impl Lease {
    /// Sends a request, to the head of its response.
    pub(super) async fn send(self, request: &Request<'_>) -> Result<Response, Unanswered> {
        match self {
            Self::Http1(lease, host) => lease.send(request, &host).await,
            Self::Http2(lease) => lease.send(request).await,
        }
    }
}

impl Pool {
    /// Connects to nothing yet.
    pub(super) fn new(dialer: Dialer, host: HeaderValue, limits: ConnectionLimits) -> Arc<Self> {
        let expected = if dialer.may_speak_http2() { EXPECTED } else { 1 };
        let state = State {
            http1: Vec::new(),
            http2: Vec::new(),
            waiting: VecDeque::new(),
            dialing: 0,
            expected,
            is_swept: false,
        };
        Arc::new(Self { dialer, host, limits, state: Mutex::new(state) })
    }

    /// A place for a request. Dropping the future gives it up.
    ///
    /// # Errors
    /// No connection can be made.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease, UpstreamError> {
        let served = {
            let mut state = self.lock();
            if let Some(lease) = self.take(&mut state, Http2::fill) {
                return Ok(lease);
            }
            let (waiting, served) = oneshot::channel();
            state.waiting.push_back(waiting);
            self.dial_as_needed(&mut state);
            served
        };
        served.await.unwrap_or(Err(UpstreamError::Interrupted))
    }

    /// A place on a connection that there is. `room` says how much of one is used.
    fn take(self: &Arc<Self>, state: &mut State, room: impl Fn(&Http2) -> usize) -> Option<Lease> {
        let State { http1, http2, .. } = state;
        let mut index = 0;
        while let Some(connection) = http2.get(index) {
            let shared = &connection.shared;
            if shared.is_retired() || shared.last_read.age() > self.limits.age {
                shared.retire();
                http2.remove(index);
                continue;
            }
            if shared.in_flight.load(Ordering::Relaxed) < room(connection) {
                return Some(self.take_from(connection));
            }
            index += 1;
        }
        while let Some(connection) = http1.pop() {
            if self.is_usable(&connection) {
                return Some(Lease::Http1(Http1Lease::new(connection, self), self.host.clone()));
            }
        }
        None
    }

    /// Under the lock.
    fn take_from(self: &Arc<Self>, connection: &Arc<Http2>) -> Lease {
        let shared = &connection.shared;
        if shared.in_flight.fetch_add(1, Ordering::Relaxed) == 0 {
            shared.look();
        }
        Lease::Http2(Http2Lease::new(Arc::clone(connection), Arc::clone(self)))
    }

    fn is_usable(&self, connection: &Http1) -> bool {
        !connection.is_closed()
            && connection.idle_since.elapsed() < self.limits.idle
            && connection.last_read.age() < self.limits.age
    }

    /// A response on an HTTP/1.1 connection has been read to its end.
    pub(super) fn give_back(self: &Arc<Self>, mut connection: Http1) {
        connection.idle_since = Instant::now();
        let mut state = self.lock();
        state.http1.push(connection);
        self.serve(state);
    }

    /// A request on an HTTP/2 connection is over.
    pub(super) fn release(self: &Arc<Self>, connection: &Arc<Http2>) {
        let state = self.lock();
        if connection.shared.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            connection.shared.last_used.touch();
        }
        self.serve(state);
    }

    /// A connection has ended, so that another may be made.
    pub(super) fn has_room(self: &Arc<Self>) {
        self.serve(self.lock());
    }

    /// Lets those go out who wait and have a place now.
    fn serve(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.waiting.is_empty() {
            return;
        }
        let served = self.match_up(&mut state, Http2::fill);
        self.dial_as_needed(&mut state);
        drop(state);
        hand_out(served);
    }

    fn match_up(self: &Arc<Self>, state: &mut State, room: fn(&Http2) -> usize) -> Vec<(Waiting, Lease)> {
        let mut served = Vec::new();
        while let Some(waiting) = state.waiting.pop_front() {
            if waiting.is_closed() {
                continue;
            }
            let Some(lease) = self.take(state, room) else {
                state.waiting.push_front(waiting);
                break;
            };
            served.push((waiting, lease));
        }
        served
    }

    /// As many connections as those who wait need, beside the ones on the way.
    fn dial_as_needed(self: &Arc<Self>, state: &mut State) {
        let may_dial = |dialing| dialing < MAX_DIALS && dialing + self.dialer.open.get() < self.limits.most;
        while may_dial(state.dialing) && state.waiting.len() > state.dialing.saturating_mul(state.expected) {
            state.dialing += 1;
            spawn(Arc::clone(self).dial());
        }
        if state.dialing > 0 && !state.is_swept {
            state.is_swept = true;
            spawn(sweep(Arc::downgrade(self), self.limits.idle));
        }
    }

    async fn dial(self: Arc<Self>) {
        match self.connect().await {
            Ok(New::Http1(connection)) => {
                let mut state = self.lock();
                state.dialing -= 1;
                state.expected = 1;
                state.http1.push(connection);
                self.serve(state);
            }
            Ok(New::Http2(connection)) => {
                let connection = Arc::new(connection);
                // The first need not wait until it is known how many there may be.
                let first = {
                    let mut state = self.lock();
                    let waiting = std::iter::from_fn(|| state.waiting.pop_front()).find(|waiting| !waiting.is_closed());
                    waiting.map(|waiting| (waiting, self.take_from(&connection)))
                };
                hand_out(first);
                connection.settled().await;
                let mut state = self.lock();
                state.dialing -= 1;
                state.expected = connection.fill();
                state.http2.push(connection);
                self.serve(state);
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<New, UpstreamError> {
        let (io, protocol) = self.dialer.dial().await?;
        Ok(match protocol {
            Protocol::Http1 => New::Http1(Http1::new(io, Arc::downgrade(self)).await?),
            Protocol::Http2 => New::Http2(Http2::new(io, self.limits, Arc::downgrade(self)).await?),
        })
    }

    /// A connection could not be made. Those who waited for it take what room there is, and the others are told.
    fn failed(self: &Arc<Self>, error: &UpstreamError) {
        let mut state = self.lock();
        state.dialing -= 1;
        let served = self.match_up(&mut state, Http2::limit);
        let count = state.expected.min(state.waiting.len());
        let refused: Vec<_> = state.waiting.drain(..count).collect();
        self.dial_as_needed(&mut state);
        drop(state);
        hand_out(served);
        for waiting in refused {
            // Who has left need not know.
            drop(waiting.send(Err(error.clone())));
        }
    }

    /// A request that began then was given up. If nothing has come since for a while, the path may be dead.
    pub(super) fn doubt(&self, last_read: &LastTime, began: Instant) {
        let silent_since = last_read.at().max(began);
        if silent_since.elapsed() < DOUBTFUL {
            return;
        }
        let mut state = self.lock();
        let is_doubtful = |last_read: &LastTime| last_read.at() <= silent_since;
        let dropped: Vec<_> = state.http1.extract_if(.., |connection| is_doubtful(&connection.last_read)).collect();
        for connection in state.http2.iter().filter(|connection| is_doubtful(&connection.shared.last_read)) {
            connection.shared.retire();
        }
        state.http2.retain(|connection| !connection.shared.is_retired());
        drop(state);
        drop(dropped);
    }

    /// That connection has ended.
    pub(super) fn forget(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mut state = self.lock();
        let gone: Vec<_> = state.http2.extract_if(.., |connection| Arc::ptr_eq(&connection.shared, shared)).collect();
        self.serve(state);
        drop(gone);
    }

    /// Closes what has been idle for long. Whether anything is left.
    fn sweep(&self) -> bool {
        let mut state = self.lock();
        let idle = self.limits.idle;
        let http1: Vec<_> = state.http1.extract_if(.., |connection| !self.is_usable(connection)).collect();
        let is_idle = |shared: &Shared| {
            shared.is_retired()
                || shared.in_flight.load(Ordering::Relaxed) == 0
                    && (shared.last_used.at().elapsed() >= idle || shared.last_read.age() > self.limits.age)
        };
        let http2: Vec<_> = state.http2.extract_if(.., |connection| is_idle(&connection.shared)).collect();
        let is_empty = state.http1.is_empty() && state.http2.is_empty() && state.dialing == 0;
        state.is_swept = !is_empty;
        drop(state);
        // Closing is nothing to do under a lock.
        drop((http1, http2));
        !is_empty
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum New {
    Http1(Http1),
    Http2(Http2),
}

/// Outside the lock: a lease that nobody takes goes back by itself.
fn hand_out(served: impl IntoIterator<Item = (Waiting, Lease)>) {
    for (waiting, lease) in served {
        drop(waiting.send(Ok(lease)));
    }
}

/// Looks for idle connections now and then, as long as there are any.
async fn sweep(pool: std::sync::Weak<Pool>, idle: Duration) {
    loop {
        sleep(idle / 3).await;
        if !pool.upgrade().is_some_and(|pool| pool.sweep()) {
            return;
        }
    }
}

/// A task that belongs to a connection and not to the app, whose end must not wait for an idle one.
#[expect(clippy::disallowed_methods, reason = "each ends with its connection, or within a few seconds")]
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}
