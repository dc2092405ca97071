//! Streams of answers: begun, read, stopped. Each belongs to its caller; another's does not exist.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use dashmap::DashMap;
use futures_util::FutureExt;
use tokio::{sync::oneshot, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    chat::{
        keeping::Keeping,
        metering::Bill,
        pump::{Describe, Pump, Stop},
    },
    config::Streams,
    ids::{Owner, StreamId},
    message::{Message, Usage},
    openai::{Client, Wish},
    streams::{
        AppendError, CreateError, Follow, Followed, Seq, State, Status, StreamLog,
        event::{CANCELLED, Encoder, Event, Told, entries},
    },
};

/// What becomes of a stream whose last reader leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnDisconnect {
    /// It goes on, and can be read again.
    #[default]
    Continue,
    /// It is stopped, as by its caller.
    Cancel,
}

/// Everything that a stream needs to run.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) owner: Owner,
    pub(super) on_disconnect: OnDisconnect,
    pub(super) model: String,
    pub(super) messages: Arc<Vec<Message>>,
    pub(super) temperature: Option<Wish<f64>>,
    pub(super) max_tokens: Wish<u32>,
    /// Stores the turn, if it belongs to a conversation.
    pub(super) keeping: Option<Keeping>,
    /// Taken by the producer, which knows how the stream ends.
    pub(super) bill: Option<Bill>,
}

/// How long stopping waits for what is behind a stream: that it has left the upstream, paid its bill and stored its turn.
const SETTLE: Duration = Duration::from_secs(5);

/// Most that an open stream's task may take, in bytes: there may be thousands.
const TASK_BYTES: usize = 4096;

/// The streams of one app.
#[derive(Clone, Debug)]
pub struct ChatStreams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    log: Arc<dyn StreamLog>,
    running: DashMap<StreamId, Running>,
    tasks: TaskTracker,
    describe: Describe,
    orphan: Duration,
}

/// What this process knows of a stream that it produces.
#[derive(Debug)]
struct Running {
    /// Taken by whoever stops it first.
    stop: Option<oneshot::Sender<Stop>>,
    on_disconnect: OnDisconnect,
    readers: usize,
    was_read: bool,
    /// Cancelled when nothing is left to be done, the storing of its turn included.
    settled: CancellationToken,
}

/// How a stream stands, with all its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub status: Status,
    pub content: String,
    pub last: Seq,
    pub finish_reason: Option<String>,
    pub usage: Option<Usage>,
}

/// What a reader finds.
#[derive(Debug)]
pub enum Opened {
    Reader(Reader),
    /// The stream has ended and the reader has seen all of it.
    NothingLeft,
}

impl ChatStreams {
    /// `describe` says what a failure is called.
    #[must_use]
    pub fn new(log: Arc<dyn StreamLog>, tasks: TaskTracker, describe: Describe, settings: Streams) -> Self {
        Self(Arc::new(Shared { log, running: DashMap::new(), tasks, describe, orphan: settings.orphan }))
    }

    /// Begins a stream. Its producer runs until the end, whoever reads.
    pub(super) async fn begin(&self, client: Arc<Client>, mut beginning: Beginning) -> Result<StreamId, CreateError> {
        let id = StreamId::random();
        let mut encoder = Encoder::behind(0);
        encoder.push(&Event::Start { stream_id: id });
        // Its question waits here, and once more on its way to the upstream.
        let question: usize = beginning.messages.iter().map(|message| message.content.len()).sum();
        let held = 2 * question + beginning.keeping.as_ref().map_or(0, Keeping::bytes);
        self.0.log.create(id, beginning.owner.clone(), encoder.take(), held).await?;

        let (stop, stopped) = oneshot::channel();
        let (on_disconnect, keeping) = (beginning.on_disconnect, beginning.keeping.clone());
        let settled = CancellationToken::new();
        let is_settled = settled.clone().drop_guard();
        self.0.running.insert(id, Running { stop: Some(stop), on_disconnect, readers: 0, was_read: false, settled });
        let (log, bill, streams) = (Arc::clone(&self.0.log), beginning.bill.take(), self.clone());
        let mut pump = Pump {
            log,
            id,
            encoder,
            text: String::new(),
            describe: self.0.describe,
            stopped,
            keeping,
            bill,
            streams,
            answer: None,
        };
        let streams = self.clone();
        let produce = async move {
            let orphan = streams.0.orphan;
            let nobody_reads = async {
                tokio::time::sleep(orphan).await;
                streams.0.running.get(&id).is_some_and(|running| !running.was_read)
            };
            let run = pump.run(&client, &mut beginning, (!orphan.is_zero()).then_some(nobody_reads));
            let outcome = AssertUnwindSafe(run).catch_unwind().await;
            match outcome {
                Ok(true) => {}
                Ok(false) => Box::pin(streams.keep_interrupted(id, &beginning)).await,
                Err(_) => {
                    // A bug; its readers must not wait for ever. What the panic says may hold anything.
                    tracing::error!(stream_id = %id, "a producer panicked");
                    Box::pin(streams.end(id, internal_error)).await;
                }
            }
            streams.0.running.remove(&id);
            // The bill of one that panicked is paid here.
            drop(pump);
            drop(is_settled);
        };
        debug_assert!(std::mem::size_of_val(&produce) <= TASK_BYTES, "what is needed only once belongs in a box");
        self.0.tasks.spawn(produce);
        Ok(id)
    }

    /// A reader of the stream behind `cursor`. No cursor, or one that is ahead of the log, begins at START; at the end of an
    /// ended stream there is nothing left. `None`: the caller has no such stream.
    pub async fn open(&self, id: StreamId, owner: &Owner, cursor: Option<Seq>) -> Option<Opened> {
        let state = self.owned(id, owner).await?;
        if state.status.is_ended() && cursor == Some(state.last) {
            return Some(Opened::NothingLeft);
        }
        let cursor = cursor.filter(|cursor| *cursor <= state.last).unwrap_or(0);
        let follow = Follow::from(Arc::clone(&self.0.log), id, cursor).await?;
        Some(Opened::Reader(Reader { follow, _attached: self.attach(id) }))
    }

    /// Stores what there is of a stream that somebody else has ended.
    async fn keep_interrupted(&self, id: StreamId, beginning: &Beginning) {
        let Some(keeping) = &beginning.keeping else { return };
        // The log decides what the text is, not what the producer had in hand.
        let Some(told) = self.read_all(id).await else { return };
        if told.status == Status::Cancelled
            && !told.content.is_empty()
            && keeping.keep(told.content, told.usage, true).await.is_err()
        {
            tracing::error!(stream_id = %id, "a stopped stream could not be stored");
        }
    }

    /// Stops a stream for certain: when this returns true, its log has ended, the upstream has been left, its caller's limits
    /// are free of it, and the text of its turn is stored if it has a conversation.
    pub async fn cancel(&self, id: StreamId, owner: &Owner) -> bool {
        if self.owned(id, owner).await.is_none() {
            return false;
        }
        let ended = self.end(id, |told| Event::End {
            full_content: &told.content,
            finish_reason: Some(CANCELLED),
            usage: told.usage,
        });
        let ended = ended.await;
        if ended {
            let settled = self.0.running.get(&id).map(|running| running.settled.clone());
            self.stop(id, Stop::Ended);
            if let Some(settled) = settled {
                // Each has limits of its own; this one is for whatever they miss.
                let _ = timeout(SETTLE, settled.cancelled()).await;
            }
        }
        ended
    }

    /// Writes the last entry of a running stream in its producer's place. False: it has one, or there is no such stream.
    async fn end(&self, id: StreamId, event: fn(&Snapshot) -> Event<'_>) -> bool {
        let mut told = Snapshot::default();
        loop {
            // Goes on where it was: text that keeps coming must not keep ahead of it.
            told = match self.read_on(id, told).await {
                Some(told) if !told.status.is_ended() => told,
                _ => return false,
            };
            let mut encoder = Encoder::behind(told.last);
            encoder.push(&event(&told));
            match self.0.log.append(id, told.last, encoder.take()).await {
                Ok(()) => return true,
                // More text came in between, or the end.
                Err(AppendError::Conflict) => {}
                Err(AppendError::Missing) => return false,
            }
        }
    }

    /// The stream as a whole, so far.
    pub async fn snapshot(&self, id: StreamId, owner: &Owner) -> Option<Snapshot> {
        self.owned(id, owner).await?;
        self.read_all(id).await
    }

    async fn read_all(&self, id: StreamId) -> Option<Snapshot> {
        self.read_on(id, Snapshot::default()).await
    }

    /// Adds what has come since. `None`: no such stream.
    async fn read_on(&self, id: StreamId, so_far: Snapshot) -> Option<Snapshot> {
        let Snapshot { content, last: mut cursor, finish_reason, usage, .. } = so_far;
        let mut told = Told { content, finish_reason, usage };
        loop {
            let slice = self.0.log.read(id, cursor).await?;
            if slice.pieces.is_empty() {
                let Told { content, finish_reason, usage } = told;
                return Some(Snapshot { status: slice.status, content, last: cursor, finish_reason, usage });
            }
            slice.pieces.iter().flat_map(entries).for_each(|entry| told.add(&entry));
            cursor = slice.last;
            if !slice.is_last {
                // A long stream takes turns with everybody else.
                tokio::task::yield_now().await;
            }
        }
    }

    /// How many streams of this process run.
    pub fn running(&self) -> usize {
        self.0.running.len()
    }

    /// Tells every running stream of this process to end now.
    pub fn stop_all(&self) -> usize {
        let running: Vec<_> = self.0.running.iter().map(|running| *running.key()).collect();
        running.iter().for_each(|id| self.stop(*id, Stop::Shutdown));
        running.len()
    }

    /// Whether there is such a stream and it has not failed: whether asking for it again would give what was asked for.
    pub async fn is_worth_reading(&self, id: StreamId, owner: &Owner) -> bool {
        self.owned(id, owner).await.is_some_and(|state| state.status != Status::Failed)
    }

    /// Whose stream it is. `None`: there is no such stream.
    pub async fn owner(&self, id: StreamId) -> Option<Owner> {
        self.0.log.state(id).await.map(|state| state.owner)
    }

    async fn owned(&self, id: StreamId, owner: &Owner) -> Option<State> {
        self.0.log.state(id).await.filter(|state| state.owner == *owner)
    }

    pub(super) fn stop(&self, id: StreamId, why: Stop) {
        if let Some(stop) = self.0.running.get_mut(&id).and_then(|mut running| running.stop.take()) {
            // A producer that is gone needs no stopping.
            let _ = stop.send(why);
        }
    }

    fn attach(&self, id: StreamId) -> Attached {
        if let Some(mut running) = self.0.running.get_mut(&id) {
            running.readers += 1;
            running.was_read = true;
        }
        Attached { id, streams: self.clone() }
    }
}

fn internal_error(told: &Snapshot) -> Event<'_> {
    Event::Error {
        error: "스트리밍 응답 생성 중 오류가 발생했습니다: Internal Server Error",
        code: "internal",
        status: 500,
        retryable: true,
        partial: &told.content,
    }
}

/// One reader's presence.
#[derive(Debug)]
struct Attached {
    id: StreamId,
    streams: ChatStreams,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let was_last_of_cancelled = self.streams.0.running.get_mut(&self.id).is_some_and(|mut running| {
            running.readers = running.readers.saturating_sub(1);
            running.readers == 0 && running.on_disconnect == OnDisconnect::Cancel
        });
        if was_last_of_cancelled {
            self.streams.stop(self.id, Stop::NobodyLeft);
        }
    }
}

/// A reader of one stream. Dropping it is all there is to leaving.
#[derive(Debug)]
pub struct Reader {
    follow: Follow,
    _attached: Attached,
}

impl Reader {
    /// The next entries, as soon as there are any. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Followed {
        self.follow.next().await
    }

    /// Whether the last entries handed out were the last there are.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.follow.is_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::{
            Caller, ChatRequest, OpenAiService,
            pump::{Cause, Failure},
        },
        config::Config,
        streams::{MemoryLog, MemoryLogLimits},
    };

    fn broken(_: Cause<'_>) -> Failure {
        panic!("canary")
    }

    #[tokio::test]
    async fn a_stream_whose_producer_panics_ends_with_an_error() {
        // Nobody listens there, so there is a failure to describe.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let variables = [
            ("OPENAI_API_KEY".to_owned(), "x".to_owned()),
            ("OPENAI_BASE_URL".to_owned(), format!("http://{closed}/v1")),
            ("UPSTREAM_MAX_RETRIES".to_owned(), "0".to_owned()),
        ];
        let config = Config::from_variables(&variables.into(), false).unwrap();
        let log = Arc::new(MemoryLog::new(MemoryLogLimits { ttl: Duration::from_secs(60), max_bytes: 1 << 20 }));
        let tasks = TaskTracker::new();
        let streams = ChatStreams::new(log, tasks.clone(), broken, config.streams);
        let client = Arc::new(Client::new(&config.upstream).unwrap());
        let service = OpenAiService::in_memory(client, &config, &tasks).await;
        let request = ChatRequest { message: "x".into(), ..Default::default() };
        let (caller, owner) = (Caller::default(), Owner::default());
        let id = service.chat_stream_with_history(&streams, &caller, request, Default::default()).await.unwrap();
        let Some(Opened::Reader(mut reader)) = streams.open(id, &owner, None).await else { panic!() };
        let mut text = Vec::new();
        while !reader.is_ended() {
            let Followed::Entries(pieces) = reader.next().await else { break };
            pieces.iter().for_each(|piece| text.extend_from_slice(piece));
        }
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(r#""code":"internal""#) && !text.contains("canary"), "{text}");
        assert_eq!(streams.snapshot(id, &owner).await.unwrap().status, Status::Failed);
    }
}
