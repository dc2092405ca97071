//! The log in this process's memory: gone with it, and as fast as it gets.

use std::{
    collections::VecDeque,
    future::ready,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dashmap::{DashMap, mapref::entry::Entry};
use tokio::{sync::Notify, time::Instant};

use crate::{
    ids::{Owner, StreamId},
    streams::{AppendError, Batch, CreateError, Pending, Seq, Slice, State, Status, StreamLog},
};

/// What the log may use up.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLogLimits {
    /// How long a stream can be read after its end.
    pub ttl: Duration,
    /// All entries of all streams. Ended streams give way, the oldest end first; past that no stream begins.
    pub max_bytes: usize,
}

/// A [`StreamLog`] in a map of sessions.
#[derive(Debug)]
pub struct MemoryLog {
    sessions: DashMap<StreamId, Session>,
    /// Ended streams in the order of their ends, which with one TTL is the order in which they expire.
    ended: Mutex<VecDeque<(Instant, StreamId)>>,
    bytes: AtomicUsize,
    limits: MemoryLogLimits,
}

#[derive(Debug)]
struct Session {
    owner: Owner,
    status: Status,
    /// What entered together, in order.
    pieces: Vec<Piece>,
    /// For each entry, the offset behind it, counted from the start of the stream.
    ends: Vec<usize>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct Piece {
    /// The offset of its first byte, counted from the start of the stream.
    start: usize,
    bytes: Bytes,
}

/// About how many bytes one read returns, so that a replay takes turns with other work.
const READ_BYTES: usize = 64 * 1024;

/// What a session costs besides its entries: the map's slot, the watch, the vectors.
const SESSION_BYTES: usize = 1024;

impl MemoryLog {
    #[must_use]
    pub fn new(limits: MemoryLogLimits) -> Self {
        Self { sessions: DashMap::new(), ended: Mutex::default(), bytes: AtomicUsize::new(0), limits }
    }

    /// Bytes in use.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Streams that can be read.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.sessions.len()
    }

    /// Forgets the streams that ended more than the TTL ago. To be called now and then.
    pub fn expire(&self) {
        let now = Instant::now();
        loop {
            let mut ended = self.lock_ended();
            match ended.front() {
                Some((at, _)) if now.duration_since(*at) >= self.limits.ttl => {
                    let id = ended.pop_front().map(|(_, id)| id);
                    drop(ended);
                    id.into_iter().for_each(|id| self.forget(id));
                }
                _ => return,
            }
        }
    }

    /// Forgets ended streams, the oldest end first, until there is room for one more stream. Whether there is.
    fn make_room(&self) -> bool {
        while self.bytes() + SESSION_BYTES > self.limits.max_bytes {
            let Some((_, id)) = self.lock_ended().pop_front() else { return false };
            self.forget(id);
        }
        true
    }

    fn forget(&self, id: StreamId) {
        if let Some((_, session)) = self.sessions.remove(&id) {
            session.wake.notify_waiters();
            self.bytes.fetch_sub(session.cost(), Ordering::Relaxed);
        }
    }

    fn lock_ended(&self) -> MutexGuard<'_, VecDeque<(Instant, StreamId)>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create_now(&self, id: StreamId, owner: Owner, start: Batch) -> Result<(), CreateError> {
        if !self.make_room() {
            return Err(CreateError::Full);
        }
        match self.sessions.entry(id) {
            Entry::Occupied(_) => Err(CreateError::Exists),
            Entry::Vacant(place) => {
                let session = Session {
                    owner,
                    status: Status::Running,
                    pieces: Vec::new(),
                    ends: Vec::new(),
                    wake: Arc::default(),
                };
                let mut session = place.insert(session);
                self.bytes.fetch_add(SESSION_BYTES, Ordering::Relaxed);
                self.put(&mut session, start);
                Ok(())
            }
        }
    }

    fn append_now(&self, id: StreamId, behind: Seq, batch: Batch) -> Result<(), AppendError> {
        let ends_with = batch.ends_with;
        {
            let mut session = self.sessions.get_mut(&id).ok_or(AppendError::Missing)?;
            if session.status.is_ended() || session.last() != behind {
                return Err(AppendError::Conflict);
            }
            self.put(&mut session, batch);
            if let Some(status) = ends_with {
                session.status = status;
            }
            // After what they are woken for, so that they find it.
            session.wake.notify_waiters();
        }
        if ends_with.is_some() {
            self.lock_ended().push_back((Instant::now(), id));
        }
        Ok(())
    }

    fn put(&self, session: &mut Session, batch: Batch) {
        let start = session.length();
        self.bytes.fetch_add(batch.bytes.len(), Ordering::Relaxed);
        session.ends.extend(batch.ends.iter().map(|end| start + end));
        session.pieces.push(Piece { start, bytes: batch.bytes });
    }
}

impl Session {
    fn last(&self) -> Seq {
        // A stream has at most as many entries as bytes, and those fit in memory.
        Seq::try_from(self.ends.len()).unwrap_or(Seq::MAX)
    }

    fn length(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn cost(&self) -> usize {
        SESSION_BYTES + self.length()
    }

    fn slice(&self, cursor: Seq) -> Slice {
        let cursor = cursor.min(self.last());
        let index = usize::try_from(cursor).unwrap_or(usize::MAX);
        let mut from = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let first = self.pieces.partition_point(|piece| piece.start + piece.bytes.len() <= from);
        let limit = from + READ_BYTES;
        let mut pieces = Vec::new();
        for piece in self.pieces.iter().skip(first) {
            if from >= limit {
                break;
            }
            pieces.push(piece.bytes.slice(from - piece.start..));
            from = piece.start + piece.bytes.len();
        }
        let read = self.ends.partition_point(|end| *end <= from);
        let last = Seq::try_from(read).unwrap_or(Seq::MAX);
        let is_last = last == self.last();
        let at_end = self.status.is_ended() && is_last;
        Slice { pieces, last, status: self.status, at_end, is_last }
    }
}

impl StreamLog for MemoryLog {
    fn create(&self, id: StreamId, owner: Owner, start: Batch) -> Pending<'_, Result<(), CreateError>> {
        Box::pin(ready(self.create_now(id, owner, start)))
    }

    fn append(&self, id: StreamId, behind: Seq, batch: Batch) -> Pending<'_, Result<(), AppendError>> {
        Box::pin(ready(self.append_now(id, behind, batch)))
    }

    fn read(&self, id: StreamId, cursor: Seq) -> Pending<'_, Option<Slice>> {
        Box::pin(ready(self.sessions.get(&id).map(|session| session.slice(cursor))))
    }

    fn state(&self, id: StreamId) -> Pending<'_, Option<State>> {
        let state = self.sessions.get(&id).map(|session| State {
            status: session.status,
            last: session.last(),
            owner: session.owner.clone(),
        });
        Box::pin(ready(state))
    }

    fn watch(&self, id: StreamId) -> Pending<'_, Option<Arc<Notify>>> {
        Box::pin(ready(self.sessions.get(&id).map(|session| Arc::clone(&session.wake))))
    }
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
pub(crate) mod stepped;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::event::{Encoder, Event, entries};

    fn log(max_bytes: usize) -> MemoryLog {
        MemoryLog::new(MemoryLogLimits { ttl: Duration::from_secs(600), max_bytes })
    }

    fn start(id: StreamId) -> Batch {
        let mut encoder = Encoder::behind(0);
        encoder.push(&Event::Start { stream_id: id });
        encoder.take()
    }

    fn chunks(behind: Seq, contents: &[&str]) -> Batch {
        let mut encoder = Encoder::behind(behind);
        contents.iter().for_each(|content| encoder.push_chunk(content));
        encoder.take()
    }

    fn end(behind: Seq) -> Batch {
        let mut encoder = Encoder::behind(behind);
        encoder.push(&Event::End { full_content: "", finish_reason: None, usage: None });
        encoder.take()
    }

    async fn running(log: &MemoryLog) -> StreamId {
        let id = StreamId::random();
        log.create(id, Owner::default(), start(id)).await.unwrap();
        id
    }

    #[tokio::test]
    async fn an_append_needs_the_right_last_entry_and_a_running_stream() {
        let log = log(1 << 20);
        let id = running(&log).await;
        assert_eq!(log.create(id, Owner::default(), start(id)).await, Err(CreateError::Exists));
        for wrong in [0, 2, 9] {
            assert_eq!(log.append(id, wrong, chunks(wrong, &["x"])).await, Err(AppendError::Conflict));
        }
        log.append(id, 1, chunks(1, &["a", "b"])).await.unwrap();
        assert_eq!(log.append(id, 1, chunks(1, &["again"])).await, Err(AppendError::Conflict));
        log.append(id, 3, end(3)).await.unwrap();
        assert_eq!(log.append(id, 4, chunks(4, &["late"])).await, Err(AppendError::Conflict));
        assert_eq!(log.append(StreamId::random(), 0, end(0)).await, Err(AppendError::Missing));
        let state = log.state(id).await.unwrap();
        assert_eq!((state.status, state.last), (Status::Finished, 4));
    }

    #[tokio::test]
    async fn every_cursor_reads_exactly_what_is_behind_it_however_the_entries_came() {
        let log = log(1 << 30);
        let id = running(&log).await;
        let large = "x".repeat(10_000);
        let mut last = 1;
        for size in [1, 5, 2, 30, 1] {
            log.append(id, last, chunks(last, &vec![large.as_str(); size])).await.unwrap();
            last += Seq::try_from(size).unwrap();
        }
        log.append(id, last, end(last)).await.unwrap();
        last += 1;
        for cursor in 0..=last {
            let mut at = cursor;
            let mut seen = Vec::new();
            loop {
                let slice = log.read(id, at).await.unwrap();
                seen.extend(slice.pieces.iter().flat_map(entries).map(|entry| entry.seq));
                assert_eq!(slice.at_end, slice.last == last);
                if slice.pieces.is_empty() {
                    break;
                }
                at = slice.last;
            }
            assert_eq!(seen, (cursor + 1..=last).collect::<Vec<_>>(), "behind {cursor}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ended_streams_expire_and_give_way_and_running_ones_do_neither() {
        let log = log(4 * SESSION_BYTES + 2000);
        let (old, new, runs) = (running(&log).await, running(&log).await, running(&log).await);
        log.append(old, 1, end(1)).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        log.append(new, 1, end(1)).await.unwrap();
        while log.state(old).await.is_some() {
            running(&log).await;
        }
        assert!(log.state(new).await.is_some(), "the oldest end goes first");
        while log.state(new).await.is_some() {
            running(&log).await;
        }
        assert!(log.state(runs).await.is_some());
        let id = StreamId::random();
        assert_eq!(log.create(id, Owner::default(), start(id)).await, Err(CreateError::Full));
        assert!(log.bytes() <= 4 * SESSION_BYTES + 2000);

        log.append(runs, 1, end(1)).await.unwrap();
        tokio::time::advance(Duration::from_secs(599)).await;
        log.expire();
        assert!(log.state(runs).await.is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        log.expire();
        assert_eq!(log.state(runs).await, None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn ten_thousand_readers_of_one_stream_get_everything_from_one_copy() {
        let log = Arc::new(log(1 << 30));
        let id = running(&log).await;
        let shared: Arc<dyn StreamLog> = log.clone();
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..10_000 {
            let mut follow = crate::streams::Follow::from(Arc::clone(&shared), id, 0).await.unwrap();
            readers.spawn(async move {
                let mut bytes = 0;
                while let crate::streams::Followed::Entries(pieces) = follow.next().await {
                    bytes += pieces.iter().map(Bytes::len).sum::<usize>();
                    if follow.is_ended() {
                        break;
                    }
                }
                bytes
            });
        }
        let before = log.bytes();
        let mut last = 1;
        for _ in 0..20 {
            log.append(id, last, chunks(last, &["안녕", "하세요"])).await.unwrap();
            last += 2;
            tokio::task::yield_now().await;
        }
        log.append(id, last, end(last)).await.unwrap();
        let whole = log.bytes() - SESSION_BYTES;
        while let Some(bytes) = readers.join_next().await {
            assert_eq!(bytes.unwrap(), whole);
        }
        assert!(whole - before < 20 * 200, "one copy");
    }
}
