//! The log, its readers and those who write to it, in every order that their steps can take.
//!
//! The log and its readers are the real ones; the others do what `chat::pump` and `chat::streams` do, in fewer steps.
//! [`super::stepped`] says what a step is. What it has to take for one step is left to the tests with threads.

use futures_util::FutureExt;
use tokio::task::JoinSet;

use super::{
    stepped::{Orders, SteppedLog, ending_turns},
    *,
};
use crate::streams::{
    Follow, Followed,
    event::{CANCELLED, Encoder, Event, entries},
};

/// Who takes part.
#[derive(Clone, Copy, Debug)]
struct Scene {
    /// How often the producer appends before it ends the stream.
    appends: u64,
    /// How many try to stop it.
    stops: usize,
    readers: &'static [Reader],
}

#[derive(Clone, Copy, Debug)]
struct Reader {
    cursor: Seq,
    /// How often it does not wait for what comes next, but drops that future and asks again.
    impatience: usize,
}

const FROM_START: Reader = Reader { cursor: 0, impatience: 0 };
const BEHIND_START: Reader = Reader { cursor: 1, impatience: 0 };
const IMPATIENT: Reader = Reader { cursor: 0, impatience: 2 };

/// What a reader saw: numbers and JSON. And whether the stream was gone before its end.
type Seen = (Vec<(Seq, Bytes)>, bool);

/// Who was told that the stream is ended by them.
#[derive(Debug)]
struct Ended {
    by_producer: bool,
    by_others: Vec<bool>,
}

#[test]
fn in_every_order_every_reader_gets_every_entry_and_the_end() {
    let scene = |appends, readers| Scene { appends, stops: 0, readers };
    assert!(scene(1, &[FROM_START]).explore(Orders::All) > 100);
    scene(2, &[FROM_START, BEHIND_START]).explore(Orders::Preempting(2));
    scene(2, &[IMPATIENT]).explore(Orders::Preempting(4));
    scene(4, &[FROM_START, BEHIND_START, IMPATIENT]).explore(Orders::Random(2000));
}

#[test]
fn in_every_order_exactly_one_of_all_who_end_a_stream_does() {
    let scene = |appends, stops, readers| Scene { appends, stops, readers };
    assert!(scene(1, 1, &[]).explore(Orders::All) > 20);
    scene(1, 1, &[FROM_START]).explore(Orders::Preempting(3));
    scene(2, 2, &[]).explore(Orders::Preempting(3));
    scene(4, 2, &[FROM_START, IMPATIENT]).explore(Orders::Random(2000));
}

#[test]
fn in_every_order_a_reader_of_a_stream_that_is_forgotten_ends_too() {
    let forgotten = || {
        shuttle::future::block_on(async {
            let log = Arc::new(SteppedLog::new(limits(Duration::ZERO)));
            let id = begin(&log.log);
            let reader = shuttle::future::spawn(ending_turns(read(log.clone(), id, FROM_START)));
            assert!(produce(log.clone(), id, 1).await);
            let forget = |log: &MemoryLog| -> Pending<'_, ()> {
                log.expire();
                Box::pin(ready(()))
            };
            log.step(id, forget).await;
            let (seen, is_gone) = reader.await.unwrap();
            assert_eq!((log.log.streams(), log.log.bytes()), (0, 0));
            assert!(is_gone || seen.len() == 3, "{seen:?}");
            assert!(seen.iter().map(|(seq, _)| *seq).eq((1..).take(seen.len())), "{seen:?}");
        });
    };
    Orders::Preempting(3).explore(forgotten);
    Orders::Random(1000).explore(forgotten);
}

/// What the tests above take for one step: the compare and what it lets in.
#[test]
fn on_threads_no_two_appends_come_behind_the_same_entry() {
    const ENTRIES: Seq = 200_000;
    let log = MemoryLog::new(limits(Duration::MAX));
    let id = begin(&log);
    let batch = || Batch { bytes: Bytes::from_static(b"x"), ends: vec![1], text: 0, ends_with: None };
    let append = || {
        let mut won = Vec::new();
        let mut behind = 1;
        while behind < ENTRIES {
            match log.append_now(id, behind, batch()) {
                Ok(()) => {
                    won.push(behind);
                    behind += 1;
                }
                Err(_) => behind = log.sessions.get(&id).unwrap().last(),
            }
        }
        won
    };
    let mut won = std::thread::scope(|scope| {
        let other = scope.spawn(append);
        [append(), other.join().unwrap()].concat()
    });
    won.sort_unstable();
    assert!(won.iter().copied().eq(1..ENTRIES), "each once");
}

/// What the tests above take for one step, in the orders that threads come upon.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_threads_every_reader_gets_every_entry_and_exactly_one_ends_the_stream() {
    for stops in [0, 1, 2].repeat(200) {
        let scene = Scene { appends: 4, stops, readers: &[FROM_START, BEHIND_START] };
        let log = Arc::new(MemoryLog::new(limits(Duration::MAX)));
        let id = begin(&log);
        let (mut readers, mut stops) = (JoinSet::new(), JoinSet::new());
        for reader in scene.readers {
            let read = read(log.clone(), id, *reader);
            readers.spawn(async move { (*reader, read.await) });
        }
        let producer = JoinSet::from_iter([produce(log.clone(), id, scene.appends)]);
        (0..scene.stops).for_each(|_| drop(stops.spawn(stop(log.clone(), id))));
        let by_producer = producer.join_all().await[0];
        let by_others = stops.join_all().await;
        // A lost wake-up would cost a poll of five seconds.
        let read = tokio::time::timeout(Duration::from_secs(4), readers.join_all()).await;
        scene.check(&log, id, &Ended { by_producer, by_others }, &read.expect("no wake-up is lost"));
    }
}

impl Scene {
    /// Plays it in each of the `orders`. How many they were.
    fn explore(self, orders: Orders) -> usize {
        orders.explore(move || {
            shuttle::future::block_on(async move {
                let log = Arc::new(SteppedLog::new(limits(Duration::MAX)));
                let id = begin(&log.log);
                let spawn_reader =
                    |reader: &Reader| (*reader, shuttle::future::spawn(ending_turns(read(log.clone(), id, *reader))));
                let readers: Vec<_> = self.readers.iter().map(spawn_reader).collect();
                let stops: Vec<_> = (0..self.stops).map(|_| shuttle::future::spawn(stop(log.clone(), id))).collect();
                let by_producer = produce(log.clone(), id, self.appends).await;
                let (mut by_others, mut read) = (Vec::new(), Vec::new());
                for stop in stops {
                    by_others.push(stop.await.unwrap());
                }
                for (reader, seen) in readers {
                    read.push((reader, seen.await.unwrap()));
                }
                self.check(&log.log, id, &Ended { by_producer, by_others }, &read);
            });
        })
    }

    /// That one ended it, that the log has every entry once and nothing behind the end, and the readers what the log has.
    fn check(self, log: &MemoryLog, id: StreamId, ended: &Ended, read: &[(Reader, Seen)]) {
        let Ended { by_producer, by_others } = ended;
        let winners = by_others.iter().chain([by_producer]).filter(|ended| **ended).count();
        assert_eq!(winners, 1, "exactly one has ended it: {ended:?}");
        let slice = log.sessions.get(&id).unwrap().slice(0);
        let whole: Vec<_> = slice.pieces.iter().flat_map(entries).map(|entry| (entry.seq, entry.data)).collect();
        assert!(whole.iter().map(|(seq, _)| *seq).eq(1..=slice.last), "without a gap: {whole:?}");
        let is_end = |(_, data): &(Seq, Bytes)| data.starts_with(b"{\"type\":\"END\"");
        assert_eq!(whole.iter().position(is_end), Some(whole.len() - 1), "nothing behind the end: {whole:?}");
        let expected = if *by_producer { Status::Finished } else { Status::Cancelled };
        assert_eq!((slice.status, slice.at_end), (expected, true));
        assert!(!by_producer || slice.last == self.appends + 2, "START, what was appended, END: {whole:?}");
        for (reader, (seen, is_gone)) in read {
            assert_eq!(seen, &whole[usize::try_from(reader.cursor).unwrap()..], "what {reader:?} saw");
            assert!(!is_gone);
        }
    }
}

fn limits(ttl: Duration) -> MemoryLogLimits {
    MemoryLogLimits { ttl, max_bytes: 1 << 20 }
}

fn begin(log: &MemoryLog) -> StreamId {
    let id = StreamId::random();
    log.create_now(id, Owner::default(), one(0, &Event::Start { stream_id: id }), 0).unwrap();
    id
}

fn one(behind: Seq, event: &Event<'_>) -> Batch {
    let mut encoder = Encoder::behind(behind);
    encoder.push(event);
    encoder.take()
}

/// Appends and ends, unless somebody else has ended the stream. Whether it was this one.
async fn produce(log: Arc<dyn StreamLog>, id: StreamId, appends: u64) -> bool {
    for behind in 1..=appends {
        if log.append(id, behind, one(behind, &Event::Chunk { content: "x" })).await.is_err() {
            return false;
        }
    }
    let behind = appends + 1;
    let end = Event::End { full_content: "", finish_reason: None, usage: None };
    log.append(id, behind, one(behind, &end)).await.is_ok()
}

/// Ends the stream where it is, as often as it has gone on meanwhile. Whether it was this one.
async fn stop(log: Arc<dyn StreamLog>, id: StreamId) -> bool {
    loop {
        let state = log.state(id).await.unwrap();
        if state.status.is_ended() {
            return false;
        }
        let end = Event::End { full_content: "", finish_reason: Some(CANCELLED), usage: None };
        if log.append(id, state.last, one(state.last, &end)).await.is_ok() {
            return true;
        }
    }
}

async fn read(log: Arc<dyn StreamLog>, id: StreamId, reader: Reader) -> Seen {
    let mut seen = Vec::new();
    let Some(mut follow) = Follow::from(log, id, reader.cursor).await else { return (seen, true) };
    let mut impatience = reader.impatience;
    loop {
        let had_ended = follow.is_ended();
        let next = if impatience > 0 {
            impatience -= 1;
            follow.next().now_or_never()
        } else {
            Some(follow.next().await)
        };
        match next {
            None => {}
            Some(Followed::Entries(pieces)) => {
                assert!(!had_ended, "nothing behind the end");
                seen.extend(pieces.iter().flat_map(entries).map(|entry| (entry.seq, entry.data)));
                assert_eq!(seen.last().unwrap().0, follow.cursor());
            }
            Some(Followed::End(status)) => {
                assert!(status.is_ended() && follow.is_ended());
                return (seen, false);
            }
            Some(Followed::Gone) => return (seen, true),
        }
    }
}
