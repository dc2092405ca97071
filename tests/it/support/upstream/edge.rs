//! What the upstream's edge does to connections and streams, and what it has seen of them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::mpsc::UnboundedSender;

use super::http2::Order;

/// Why a stream or a connection ends, in HTTP/2's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    NoError = 0,
    Protocol = 1,
    Internal = 2,
    Refused = 7,
    EnhanceYourCalm = 11,
}

/// The switches, all off at first, and the counts. Every switch may be moved at any time.
#[derive(Default)]
pub struct Edge {
    max_streams: AtomicU32,
    late_end: AtomicU64,
    late_frames: AtomicU64,
    max_requests: AtomicUsize,
    max_age: AtomicU64,
    handshake: AtomicU64,
    is_mute: AtomicBool,
    is_without_http2: AtomicBool,
    resets_cut: AtomicBool,
    is_all_swallowed: Arc<AtomicBool>,
    /// What the next requests meet instead of an answer.
    refusals: Mutex<VecDeque<Refusal>>,
    records: Mutex<Vec<Arc<Record>>>,
    resets: AtomicUsize,
    needless_resets: AtomicUsize,
    refused_over_limit: AtomicUsize,
    pings: AtomicUsize,
}

/// A request that is not processed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// Its stream is reset.
    Reset(Reason),
    /// GOAWAY says that the stream before it was the last.
    GoAway(Reason),
}

/// A connection.
#[derive(Default)]
pub struct Record {
    pub(super) is_cut: AtomicBool,
    is_closed: AtomicBool,
    is_swallowed: AtomicBool,
    is_all_swallowed: Arc<AtomicBool>,
    orders: Mutex<Option<UnboundedSender<Order>>>,
    requests: AtomicUsize,
    streams: AtomicUsize,
    most_streams: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a short time")
}

/// The switches.
impl Edge {
    /// How many streams a new connection may have, as its SETTINGS say. 0: they say nothing of it.
    pub fn streams_a_connection(&self, most: u32) {
        self.max_streams.store(most, SeqCst);
    }

    /// END_STREAM comes in an empty DATA frame of its own, so much later than the last byte.
    pub fn ends_late(&self, by: Duration) {
        self.late_end.store(millis(by), SeqCst);
    }

    /// On a stream that the client resets, words keep coming for so long.
    pub fn sends_behind_resets(&self, during: Duration) {
        self.late_frames.store(millis(during), SeqCst);
    }

    /// A connection is left after so many requests. 0: never.
    pub fn requests_a_connection(&self, most: usize) {
        self.max_requests.store(most, SeqCst);
    }

    /// A new connection is left after that time.
    pub fn max_age(&self, age: Duration) {
        self.max_age.store(millis(age), SeqCst);
    }

    /// A new connection waits so long before its TLS handshake.
    pub fn slow_handshake(&self, wait: Duration) {
        self.handshake.store(millis(wait), SeqCst);
    }

    /// New connections are taken, and nothing is ever said on them.
    pub fn mute(&self, is_mute: bool) {
        self.is_mute.store(is_mute, SeqCst);
    }

    /// New connections are offered HTTP/1.1 only.
    pub fn without_http2(&self, is_without: bool) {
        self.is_without_http2.store(is_without, SeqCst);
    }

    /// [`Play::Reset`](super::Play::Reset) breaks the connection, and not just the stream. Over HTTP/1.1 it always does.
    pub fn resets_cut(&self, cut: bool) {
        self.resets_cut.store(cut, SeqCst);
    }

    /// The next `count` requests get RST_STREAM. `Reason::Refused` says that they were not processed.
    pub fn refuse(&self, count: usize, reason: Reason) {
        lock(&self.refusals).extend(std::iter::repeat_n(Refusal::Reset(reason), count));
    }

    /// The next request crosses a GOAWAY by which the connection ends before it. Streams that run go on.
    pub fn leave_behind(&self, reason: Reason) {
        lock(&self.refusals).push_back(Refusal::GoAway(reason));
    }

    /// Every open connection says that it will end, then with which stream, and closes behind its last stream.
    pub fn leave(&self) {
        self.order(|| Order::LeaveSoon);
    }

    /// Every open connection says with which stream it ends, and closes behind that.
    pub fn leave_at_once(&self) {
        self.order(|| Order::Leave(Reason::NoError));
    }

    /// Breaks every open connection of HTTP/2.
    pub fn cut(&self) {
        self.order(|| Order::Cut);
    }

    /// From now on nothing comes through on connections that are open, in either direction. New ones work.
    pub fn swallow_open(&self) {
        for record in lock(&self.records).iter() {
            record.is_swallowed.store(true, SeqCst);
        }
    }

    /// Nothing comes through on any connection, while this is set.
    pub fn swallow_all(&self, swallow: bool) {
        self.is_all_swallowed.store(swallow, SeqCst);
    }

    fn order(&self, order: impl Fn() -> Order) {
        for record in lock(&self.records).iter() {
            if let Some(orders) = &*lock(&record.orders) {
                // Who is gone takes no orders.
                let _ = orders.send(order());
            }
        }
    }
}

/// The counts.
impl Edge {
    /// Connections so far.
    pub fn connections(&self) -> usize {
        lock(&self.records).len()
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        lock(&self.records).iter().filter(|record| !record.is_closed.load(SeqCst)).count()
    }

    /// Streams that are open on any connection.
    pub fn streams(&self) -> usize {
        lock(&self.records).iter().map(|record| record.streams.load(SeqCst)).sum()
    }

    /// The most streams that any one connection had at once.
    pub fn most_streams(&self) -> usize {
        lock(&self.records).iter().map(|record| record.most_streams.load(SeqCst)).max().unwrap_or(0)
    }

    /// How many requests each connection brought, in the order in which they were made.
    pub fn requests(&self) -> Vec<usize> {
        lock(&self.records).iter().map(|record| record.requests.load(SeqCst)).collect()
    }

    /// RST_STREAM frames of the client.
    pub fn resets(&self) -> usize {
        self.resets.load(SeqCst)
    }

    /// Those for streams whose answer had been sent to its last byte.
    pub fn needless_resets(&self) -> usize {
        self.needless_resets.load(SeqCst)
    }

    /// Streams that were refused because the client began more than a connection may have.
    pub fn refused_over_limit(&self) -> usize {
        self.refused_over_limit.load(SeqCst)
    }

    /// PING frames of the client, without its acknowledgements.
    pub fn pings(&self) -> usize {
        self.pings.load(SeqCst)
    }
}

/// What the connections ask.
impl Edge {
    pub(super) fn connect(&self) -> Arc<Record> {
        let record = Arc::new(Record { is_all_swallowed: Arc::clone(&self.is_all_swallowed), ..Record::default() });
        lock(&self.records).push(Arc::clone(&record));
        record
    }

    pub(super) fn stream_limit(&self) -> Option<usize> {
        usize::try_from(self.max_streams.load(SeqCst)).ok().filter(|most| *most > 0)
    }

    pub(super) fn end_wait(&self) -> Duration {
        Duration::from_millis(self.late_end.load(SeqCst))
    }

    pub(super) fn behind_resets(&self) -> Duration {
        Duration::from_millis(self.late_frames.load(SeqCst))
    }

    pub(super) fn request_limit(&self) -> usize {
        match self.max_requests.load(SeqCst) {
            0 => usize::MAX,
            most => most,
        }
    }

    pub(super) fn age_limit(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.max_age.load(SeqCst))).filter(|age| !age.is_zero())
    }

    pub(super) fn handshake_wait(&self) -> Duration {
        Duration::from_millis(self.handshake.load(SeqCst))
    }

    pub(super) fn is_mute(&self) -> bool {
        self.is_mute.load(SeqCst)
    }

    pub(super) fn speaks_http2(&self) -> bool {
        !self.is_without_http2.load(SeqCst)
    }

    pub(super) fn resets_are_cuts(&self) -> bool {
        self.resets_cut.load(SeqCst)
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        lock(&self.refusals).pop_front()
    }

    pub(super) fn saw_reset(&self, is_needless: bool) {
        self.resets.fetch_add(1, SeqCst);
        self.needless_resets.fetch_add(usize::from(is_needless), SeqCst);
    }

    pub(super) fn saw_too_many(&self) {
        self.refused_over_limit.fetch_add(1, SeqCst);
    }

    pub(super) fn saw_ping(&self) {
        self.pings.fetch_add(1, SeqCst);
    }
}

impl Record {
    pub(super) fn is_swallowed(&self) -> bool {
        self.is_all_swallowed.load(SeqCst) || self.is_swallowed.load(SeqCst)
    }

    pub(super) fn takes_orders(&self, orders: UnboundedSender<Order>) {
        *lock(&self.orders) = Some(orders);
    }

    /// A request has come; how many there have been.
    pub(super) fn begun(&self) -> usize {
        self.most_streams.fetch_max(self.streams.fetch_add(1, SeqCst) + 1, SeqCst);
        self.requests.fetch_add(1, SeqCst) + 1
    }

    pub(super) fn ended(&self) {
        self.streams.fetch_sub(1, SeqCst);
    }

    pub(super) fn closed(&self) {
        self.is_closed.store(true, SeqCst);
        self.streams.store(0, SeqCst);
        lock(&self.orders).take();
    }
}
