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
    streams::{AppendError, Batch, CreateError, LogFull, Pending, Seq, Size, Slice, State, Status, StreamLog},
};

/// What the log may use up.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLogLimits {
    /// How long a stream can be read after its end.
    pub ttl: Duration,
    /// All that all streams hold: entries and what is remembered of each, texts, and questions that wait for an answer.
    /// Ended streams give way, the oldest end first; past that no stream begins, and of the running ones the largest ends.
    pub max_bytes: usize,
}

/// A [`StreamLog`] in a map of sessions.
#[derive(Debug)]
pub struct MemoryLog {
    sessions: DashMap<StreamId, Session>,
    /// Ended streams in the order of their ends, which with one TTL is the order in which they expire.
    ended: Mutex<VecDeque<(Instant, StreamId)>>,
    bytes: AtomicUsize,
    /// When the largest stream was last looked for.
    looked: Mutex<Option<Instant>>,
    limits: MemoryLogLimits,
}

#[derive(Debug)]
struct Session {
    owner: Owner,
    status: Status,
    /// In order. Those that enter one by one are put together later.
    pieces: Vec<Piece>,
    /// How many of the last pieces are as they entered, and their bytes.
    loose: usize,
    loose_bytes: usize,
    /// For each entry, the offset behind it, counted from the start of the stream.
    ends: Vec<u32>,
    /// While it runs: of its text.
    text: usize,
    /// While it runs: what it holds besides.
    held: usize,
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

/// What an entry costs besides its bytes: where it ends.
const ENTRY_BYTES: usize = 8;

/// What a piece costs that is as it entered: its slot, and the buffer around a few words.
const LOOSE_BYTES: usize = 256;

/// Pieces of together so many bytes become one, which costs next to nothing besides its bytes.
const MERGE_BYTES: usize = 16 * 1024;

/// How long an ended stream that somebody still reads does not give way: who reads it should hear why it ended.
const LAST_READ: Duration = Duration::from_secs(2);

/// How often the largest stream is looked for at most: one that was found needs a moment to end.
const LOOK: Duration = Duration::from_millis(50);

impl MemoryLog {
    #[must_use]
    pub fn new(limits: MemoryLogLimits) -> Self {
        let (sessions, ended) = (DashMap::new(), Mutex::default());
        Self { sessions, ended, bytes: AtomicUsize::new(0), looked: Mutex::new(None), limits }
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

    /// Forgets ended streams, the oldest end first, until there is room for so many bytes. Whether there is.
    fn make_room(&self, bytes: usize) -> bool {
        while self.bytes().saturating_add(bytes) > self.limits.max_bytes {
            let Some(id) = self.next_to_go() else { return false };
            self.forget(id);
        }
        true
    }

    /// Takes the ended stream that gives way first out of the order: one that nobody reads, if there is one.
    fn next_to_go(&self) -> Option<StreamId> {
        let now = Instant::now();
        let mut ended = self.lock_ended();
        let may_go = |(at, id): &(Instant, StreamId)| now.duration_since(*at) >= LAST_READ || !self.is_read(*id);
        let first = ended.iter().position(may_go)?;
        ended.remove(first).map(|(_, id)| id)
    }

    fn is_read(&self, id: StreamId) -> bool {
        self.sessions.get(&id).is_some_and(|session| Arc::strong_count(&session.wake) > 1)
    }

    /// The running stream that takes up most, unless room is about to come by itself.
    fn largest(&self) -> Option<StreamId> {
        let now = Instant::now();
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|at| now.duration_since(at) < LOOK) || !self.lock_ended().is_empty() {
            return None;
        }
        *looked = Some(now);
        let running = self.sessions.iter().filter(|session| !session.status.is_ended());
        running.max_by_key(|session| session.cost()).map(|session| *session.key())
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

    fn create_now(&self, id: StreamId, owner: Owner, start: Batch, held: usize) -> Result<(), CreateError> {
        let asked = start.bytes.len().saturating_add(held) + start.ends.len() * ENTRY_BYTES;
        if !self.make_room(asked.saturating_add(SESSION_BYTES + LOOSE_BYTES)) {
            return Err(CreateError::Full);
        }
        match self.sessions.entry(id) {
            Entry::Occupied(_) => Err(CreateError::Exists),
            Entry::Vacant(place) => {
                let session = Session {
                    owner,
                    status: Status::Running,
                    pieces: Vec::new(),
                    loose: 0,
                    loose_bytes: 0,
                    ends: Vec::new(),
                    text: 0,
                    held,
                    wake: Arc::default(),
                };
                let mut session = place.insert(session);
                self.bytes.fetch_add(session.cost(), Ordering::Relaxed);
                self.change(&mut session, |session| session.put(start));
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
            self.change(&mut session, |session| {
                session.put(batch);
                if let Some(status) = ends_with {
                    session.end(status);
                }
            });
            // After what they are woken for, so that they find it.
            session.wake.notify_waiters();
        }
        if ends_with.is_some() {
            self.lock_ended().push_back((Instant::now(), id));
        }
        Ok(())
    }

    /// Changes a session, and counts what that makes of its cost.
    fn change(&self, session: &mut Session, change: impl FnOnce(&mut Session)) {
        let before = session.cost();
        change(session);
        // Wrapping, as sums of atomics are: what is taken away was added before.
        self.bytes.fetch_add(session.cost().wrapping_sub(before), Ordering::Relaxed);
    }
}

impl Session {
    fn last(&self) -> Seq {
        // A stream has at most as many entries as bytes, and those fit in memory.
        Seq::try_from(self.ends.len()).unwrap_or(Seq::MAX)
    }

    fn length(&self) -> usize {
        self.ends.last().copied().map_or(0, offset)
    }

    /// All that it takes up. While it runs its text is there once more, for END, and once more will be: END says all of it.
    fn cost(&self) -> usize {
        let lasting = SESSION_BYTES + self.length() + self.ends.len() * ENTRY_BYTES + self.loose * LOOSE_BYTES;
        if self.status.is_ended() { lasting } else { lasting + 2 * self.text + self.held }
    }

    fn put(&mut self, batch: Batch) {
        let start = self.length();
        self.ends.extend(batch.ends.iter().map(|end| u32::try_from(start + end).unwrap_or(u32::MAX)));
        self.text += batch.text;
        self.loose += 1;
        self.loose_bytes += batch.bytes.len();
        self.pieces.push(Piece { start, bytes: batch.bytes });
        if self.loose_bytes >= MERGE_BYTES {
            self.merge();
        }
    }

    /// Makes one piece of those that are as they entered. Who reads them has them anyway.
    fn merge(&mut self) {
        let first = self.pieces.len() - self.loose.min(self.pieces.len());
        if let [only] = self.pieces.get(first..).unwrap_or_default()
            && only.bytes.len() >= MERGE_BYTES
        {
            // Large already, with next to nothing around it.
        } else if let Some(start) = self.pieces.get(first).map(|piece| piece.start) {
            let mut bytes = Vec::with_capacity(self.loose_bytes);
            self.pieces.drain(first..).for_each(|piece| bytes.extend_from_slice(&piece.bytes));
            self.pieces.push(Piece { start, bytes: bytes.into() });
        }
        (self.loose, self.loose_bytes) = (0, 0);
    }

    fn end(&mut self, status: Status) {
        self.status = status;
        self.merge();
        self.ends.shrink_to_fit();
        self.pieces.shrink_to_fit();
    }

    fn slice(&self, cursor: Seq) -> Slice {
        let cursor = cursor.min(self.last());
        let index = usize::try_from(cursor).unwrap_or(usize::MAX);
        let before = index.checked_sub(1).and_then(|before| self.ends.get(before));
        let mut from = before.copied().map_or(0, offset);
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
        let read = self.ends.partition_point(|end| offset(*end) <= from);
        let last = Seq::try_from(read).unwrap_or(Seq::MAX);
        let is_last = last == self.last();
        let at_end = self.status.is_ended() && is_last;
        Slice { pieces, last, status: self.status, at_end, is_last }
    }
}

/// A stream's text is bounded so that its entries are never near four gigabytes.
fn offset(end: u32) -> usize {
    usize::try_from(end).unwrap_or(usize::MAX)
}

impl StreamLog for MemoryLog {
    fn create(&self, id: StreamId, owner: Owner, start: Batch, held: usize) -> Pending<'_, Result<(), CreateError>> {
        Box::pin(ready(self.create_now(id, owner, start, held)))
    }

    fn hold(&self, id: StreamId, bytes: usize) {
        if let Some(mut session) = self.sessions.get_mut(&id) {
            self.change(&mut session, |session| session.held = bytes);
        }
    }

    fn room_for(&self, _id: StreamId, more: &Size) -> Result<(), LogFull> {
        let asked = more.bytes + more.entries * ENTRY_BYTES + LOOSE_BYTES + 2 * more.text;
        // Usually there is.
        if self.bytes().saturating_add(asked) <= self.limits.max_bytes || self.make_room(asked) {
            return Ok(());
        }
        Err(LogFull { largest: self.largest() })
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
        log.create(id, Owner::default(), start(id), 0).await.unwrap();
        id
    }

    #[tokio::test]
    async fn an_append_needs_the_right_last_entry_and_a_running_stream() {
        let log = log(1 << 20);
        let id = running(&log).await;
        assert_eq!(log.create(id, Owner::default(), start(id), 0).await, Err(CreateError::Exists));
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
        let log = log(4 * (SESSION_BYTES + LOOSE_BYTES) + 2000);
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
        assert_eq!(log.create(id, Owner::default(), start(id), 0).await, Err(CreateError::Full));
        assert!(log.bytes() <= 4 * (SESSION_BYTES + LOOSE_BYTES) + 2000);

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
        let mut last = 1;
        for _ in 0..20 {
            log.append(id, last, chunks(last, &["안녕", "하세요"])).await.unwrap();
            last += 2;
            tokio::task::yield_now().await;
        }
        log.append(id, last, end(last)).await.unwrap();
        let whole = log.sessions.get(&id).unwrap().length();
        while let Some(bytes) = readers.join_next().await {
            assert_eq!(bytes.unwrap(), whole);
        }
        assert!(log.bytes() < SESSION_BYTES + 22 * 200, "one copy");
    }

    /// Appends so many words of four bytes.
    async fn speak(log: &MemoryLog, id: StreamId, words: usize) {
        let mut last = log.state(id).await.unwrap().last;
        for _ in 0..words {
            log.append(id, last, chunks(last, &["word"])).await.unwrap();
            last += 1;
        }
    }

    #[tokio::test]
    async fn what_is_counted_is_there_as_long_as_the_stream_and_no_longer() {
        let log = log(1 << 30);
        let id = StreamId::random();
        log.create(id, Owner::default(), start(id), 5000).await.unwrap();
        assert!(log.bytes() > 5000 + SESSION_BYTES);
        log.hold(id, 0);
        let empty = log.bytes();
        speak(&log, id, 2000).await;
        let entries = log.sessions.get(&id).unwrap().length();
        assert!(log.bytes() - empty >= entries - 100 + 2000 * ENTRY_BYTES + 2 * 8000, "text and bookkeeping count");
        log.append(id, 2001, end(2001)).await.unwrap();
        let session = log.sessions.get(&id).unwrap();
        assert_eq!(log.bytes(), SESSION_BYTES + session.length() + 2002 * ENTRY_BYTES);
        // In few pieces of just their size.
        assert!(session.pieces.len() <= 1 + session.length() / MERGE_BYTES, "{}", session.pieces.len());
        assert_eq!(session.pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>(), session.length());
        drop(session);
        log.forget(id);
        assert_eq!(log.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn when_nothing_gives_way_the_largest_running_stream_is_named_and_then_waited_for() {
        let log = log(100_000);
        let (small, large) = (running(&log).await, running(&log).await);
        speak(&log, small, 10).await;
        speak(&log, large, 300).await;
        let much = Size { entries: 1, bytes: 76_000, text: 10 };
        assert_eq!(log.room_for(small, &Size::default()), Ok(()));
        assert_eq!(log.room_for(small, &much), Err(LogFull { largest: Some(large) }));
        assert_eq!(log.room_for(small, &much), Err(LogFull { largest: None }), "it needs a moment to end");
        let reader = log.watch(large).await.unwrap();
        log.append(large, 301, end(301)).await.unwrap();
        tokio::time::advance(LOOK).await;
        assert_eq!(log.room_for(small, &much), Err(LogFull { largest: None }), "it is still being read");
        assert_eq!(
            log.create(StreamId::random(), Owner::default(), chunks(0, &[]), 76_000).await,
            Err(CreateError::Full)
        );
        drop(reader);
        assert_eq!(log.room_for(small, &much), Ok(()));
        assert_eq!(log.state(large).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_reads_to_the_end_keeps_an_ended_stream_for_a_moment_only() {
        let log = log(100_000);
        let id = running(&log).await;
        let _reader = log.watch(id).await.unwrap();
        log.append(id, 1, end(1)).await.unwrap();
        let much = Size { entries: 1, bytes: 97_500, text: 0 };
        let other = running(&log).await;
        assert!(log.room_for(other, &much).is_err());
        tokio::time::advance(LAST_READ).await;
        assert_eq!(log.room_for(other, &much), Ok(()));
    }
}
