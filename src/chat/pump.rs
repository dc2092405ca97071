//! The one task per stream: from the upstream into the log, to exactly one last entry.
//!
//! This is the only file to read to know what a stream does. It ends in one of these ways:
//!
//! | what happens | last entry |
//! |---|---|
//! | the upstream says that the answer is complete | END, once its turn is stored if it has a conversation |
//! | its turn cannot be stored | ERROR, with the whole text |
//! | the upstream fails, breaks, stalls or talks nonsense | ERROR, with the text so far |
//! | somebody stops the stream | END `cancelled`, written by whoever stops it |
//! | nobody ever reads it, or nobody is left who should | ERROR `abandoned`; END `cancelled` |
//! | the service ends | ERROR `shutdown` |
//! | the log's memory is used up and no stream takes up more | ERROR `stream_log_full`, with the text so far |

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    chat::{
        keeping::Keeping,
        metering::Bill,
        streams::{Beginning, ChatStreams},
        usage,
    },
    conversations::StoreError,
    ids::StreamId,
    message::Usage,
    openai::{AnswerStream, Client, Completion, Cost, Ending, UpstreamError},
    streams::{
        LogFull, StreamLog,
        event::{CANCELLED, Encoder, Event},
    },
};

/// What a failure is called where statuses and codes are known.
pub type Describe = fn(Cause<'_>) -> Failure;

/// Why an answer is a failure.
#[derive(Clone, Copy, Debug)]
pub enum Cause<'a> {
    Upstream(&'a UpstreamError),
    Store(&'a StoreError),
}

/// A failure by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: &'static str,
    /// The HTTP status that a whole answer would have had.
    pub status: u16,
    pub retryable: bool,
}

/// Why a stream is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Somebody has ended its log.
    Ended,
    /// The last reader left one that is not to go on alone.
    NobodyLeft,
    /// The service ends.
    Shutdown,
    /// It takes up most of the log's memory, and another needs room.
    NoRoom,
}

/// How long a stream waits for room that others leave.
const ROOM_TIME: Duration = Duration::from_secs(5);

/// How often it looks for it.
const ROOM_POLL: Duration = Duration::from_millis(20);

/// Most bytes of text in one stream.
pub const MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;

/// The producer of one stream.
#[derive(Debug)]
pub(super) struct Pump {
    pub(super) log: Arc<dyn StreamLog>,
    pub(super) id: StreamId,
    /// Numbers the entries; START is in the log already.
    pub(super) encoder: Encoder,
    /// The text so far.
    pub(super) text: String,
    pub(super) describe: Describe,
    pub(super) stopped: oneshot::Receiver<Stop>,
    /// Stores the turn, if the stream has a conversation.
    pub(super) keeping: Option<Keeping>,
    pub(super) bill: Option<Bill>,
    /// The others, one of which may have to end.
    pub(super) streams: ChatStreams,
    /// What the upstream says, from its first word on.
    pub(super) answer: Option<AnswerStream>,
}

/// How production ended, short of the last entry.
enum Outcome {
    Complete(Ending),
    Failed(UpstreamError),
    Stopped(Stop),
    /// Nobody has read it in the time given.
    Orphaned,
    /// The log takes no more: somebody else ended the stream.
    Fenced,
    /// More text than a stream may have.
    TooLarge,
}

impl Outcome {
    /// How that counts. `text` is what there is of the answer.
    fn for_the_bill(&self, text: &str) -> usage::Outcome {
        match self {
            Self::Complete(_) => usage::Outcome::Done,
            Self::Failed(_) if text.is_empty() => usage::Outcome::Failed,
            Self::Failed(_) | Self::Stopped(Stop::Shutdown | Stop::NoRoom) | Self::TooLarge => usage::Outcome::Cut,
            Self::Stopped(Stop::Ended) | Self::Fenced => usage::Outcome::Cancelled,
            Self::Stopped(Stop::NobodyLeft) | Self::Orphaned => usage::Outcome::Left,
        }
    }
}

impl Pump {
    /// Runs to the end. `orphaned`, if given, tells after a while whether nobody has ever read the stream. False: somebody
    /// else has written the last entry.
    pub(super) async fn run(
        &mut self,
        client: &Client,
        beginning: &mut Beginning,
        orphaned: Option<impl Future<Output = bool>>,
    ) -> bool {
        let (_, never) = oneshot::channel();
        let stopped = std::mem::replace(&mut self.stopped, never);
        let stop = async move {
            match stopped.await {
                Ok(stop) => stop,
                // Nobody is left who could stop it.
                Err(_) => pending().await,
            }
        };
        let orphaned = async {
            let is_orphan = match orphaned {
                Some(orphaned) => orphaned.await,
                None => false,
            };
            if !is_orphan {
                pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            biased;
            why = stop => Outcome::Stopped(why),
            outcome = self.produce(client, beginning) => outcome,
            () = orphaned => Outcome::Orphaned,
        };
        // The upstream is left before anything else is done.
        if let Some(mut answer) = self.answer.take()
            && let Some(bill) = &mut self.bill
        {
            bill.cost.add(answer.cost());
        }
        // The end in a box of its own, as the beginning is: storing a turn takes several times the state of all the rest.
        Box::pin(self.end(outcome, &beginning.model)).await
    }

    async fn produce(&mut self, client: &Client, beginning: &mut Beginning) -> Outcome {
        // Not kept for longer than they are needed: a history is large, and a stream may be open for long.
        let messages = std::mem::take(&mut beginning.messages);
        let completion = Completion {
            model: &beginning.model,
            messages: &messages,
            temperature: beginning.temperature,
            max_tokens: beginning.max_tokens,
        };
        let mut unbilled = Cost::default();
        let cost = self.bill.as_mut().map_or(&mut unbilled, |bill| {
            bill.is_asked();
            &mut bill.cost
        });
        // In a box of its own, because beginning takes more state than all the rest, and an open stream would keep it.
        match Box::pin(client.stream(&completion, cost)).await {
            Ok(answer) => self.answer = Some(answer),
            Err(error) => return Outcome::Failed(error),
        }
        drop(messages);
        self.log.hold(self.id, self.keeping.as_ref().map_or(0, Keeping::bytes));
        if let Some(bill) = &mut self.bill {
            bill.is_answered();
        }
        loop {
            let behind = self.encoder.last();
            let Self { encoder, text, answer, .. } = self;
            let Some(answer) = answer else { return Outcome::Fenced };
            let mut is_too_large = false;
            let came = answer.next(|piece| {
                is_too_large |= text.len() + piece.len() > MAX_TEXT_BYTES;
                if !is_too_large {
                    encoder.push_chunk(piece);
                    text.push_str(piece);
                }
            });
            match came.await {
                Ok(Some(ending)) => return Outcome::Complete(ending),
                Ok(None) => {}
                Err(error) => return Outcome::Failed(error),
            }
            if is_too_large {
                return Outcome::TooLarge;
            }
            if self.log.room_for(self.id, &self.encoder.size()).is_err() && !Box::pin(self.wait_for_room()).await {
                return Outcome::Stopped(Stop::NoRoom);
            }
            if self.log.append(self.id, behind, self.encoder.take()).await.is_err() {
                return Outcome::Fenced;
            }
        }
    }

    /// Waits until there is room for what has come, which another stream may have to end for; meanwhile the upstream waits,
    /// too. False: there is none, or this one takes up most.
    async fn wait_for_room(&self) -> bool {
        let until = Instant::now() + ROOM_TIME;
        while Instant::now() < until {
            match self.log.room_for(self.id, &self.encoder.size()) {
                Ok(()) => return true,
                Err(LogFull { largest: Some(id) }) if id == self.id => return false,
                Err(LogFull { largest: Some(other) }) => self.streams.stop(other, Stop::NoRoom),
                Err(LogFull { largest: None }) => {}
            }
            sleep(ROOM_POLL).await;
        }
        false
    }

    /// Writes the last entry. False: somebody else has. `model` is for the log.
    async fn end(&mut self, outcome: Outcome, model: &str) -> bool {
        if let Some(bill) = self.bill.take() {
            bill.settle(outcome.for_the_bill(&self.text), &self.text).await;
        }
        // Text that was encoded but did not get in, because the stream was stopped in between, goes in before the end.
        let pending = self.encoder.take();
        let last = self.encoder.last();
        let behind = last.saturating_sub(u64::try_from(pending.ends.len()).unwrap_or(u64::MAX));
        if !pending.ends.is_empty() && self.log.append(self.id, behind, pending).await.is_err() {
            return false;
        }
        let stopping = |code, status| Failure { code, status, retryable: true };
        let (failure, words) = match outcome {
            Outcome::Complete(ending) => match self.keep(ending.usage, false).await {
                Ok(()) => {
                    let tokens = ending.usage.map(|usage| usage.total_tokens);
                    let finish_reason = ending.finish_reason;
                    tracing::info!(stream_id = %self.id, model, finish_reason, tokens, "a stream finished");
                    return self.append_end(ending.finish_reason, ending.usage).await;
                }
                Err(error) => ((self.describe)(Cause::Store(&error)), error.to_string()),
            },
            Outcome::Stopped(Stop::NobodyLeft) => match self.keep(None, true).await {
                Ok(()) => return self.append_end(Some(CANCELLED), None).await,
                Err(error) => ((self.describe)(Cause::Store(&error)), error.to_string()),
            },
            Outcome::Stopped(Stop::Ended) | Outcome::Fenced => return false,
            Outcome::Failed(error) => ((self.describe)(Cause::Upstream(&error)), error.to_string()),
            Outcome::Orphaned => (stopping("abandoned", 408), "nobody read the stream".to_owned()),
            Outcome::Stopped(Stop::Shutdown) => (stopping("shutdown", 503), "the service is stopping".to_owned()),
            Outcome::Stopped(Stop::NoRoom) => {
                (stopping("stream_log_full", 503), "the memory for streams is used up".to_owned())
            }
            Outcome::TooLarge => {
                let failure = Failure { code: "too_large", status: 502, retryable: false };
                (failure, format!("the answer has more than {MAX_TEXT_BYTES} bytes"))
            }
        };
        let Failure { code, status, retryable } = failure;
        tracing::warn!(stream_id = %self.id, model, code, "a stream failed");
        let error = format!("스트리밍 응답 생성 중 오류가 발생했습니다: {words}");
        self.append_last(|text| Event::Error { error: &error, code, status, retryable, partial: text }).await
    }

    /// Stores the turn. Before the last entry, so that whoever reads that finds the turn stored.
    async fn keep(&self, usage: Option<Usage>, interrupted: bool) -> Result<(), StoreError> {
        match &self.keeping {
            Some(keeping) => keeping.keep(self.text.clone(), usage, interrupted).await,
            None => Ok(()),
        }
    }

    async fn append_end(&mut self, finish_reason: Option<&'static str>, usage: Option<Usage>) -> bool {
        self.append_last(|text| Event::End { full_content: text, finish_reason, usage }).await
    }

    async fn append_last<'a>(&'a mut self, event: impl FnOnce(&'a str) -> Event<'a>) -> bool {
        let behind = self.encoder.last();
        self.encoder.push(&event(&self.text));
        // A conflict means that the stream has its last entry already.
        self.log.append(self.id, behind, self.encoder.take()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use shuttle::future::{block_on, spawn};
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{
        chat::ChatStreams,
        config::Streams,
        ids::Owner,
        streams::{
            MemoryLogLimits,
            event::entries,
            stepped::{Orders, SteppedLog},
        },
    };

    #[test]
    fn in_every_order_either_the_end_or_one_stop_is_the_last_entry_and_has_all_the_text() {
        let complete = || Outcome::Complete(Ending { finish_reason: Some("stop"), usage: None });
        let shutdown = || Outcome::Stopped(Stop::Shutdown);
        Orders::All.explore(move || block_on(race(complete(), 1)));
        Orders::Preempting(2).explore(move || block_on(race(shutdown(), 2)));
        Orders::Random(500).explore(move || block_on(race(complete(), 3)));
    }

    /// A producer with two pieces comes to that outcome while `stops` callers stop the stream.
    async fn race(outcome: Outcome, stops: usize) {
        let log = Arc::new(SteppedLog::new(MemoryLogLimits { ttl: Duration::MAX, max_bytes: 1 << 20 }));
        let settings = Streams { ttl: Duration::MAX, orphan: Duration::ZERO, max_bytes: 1 << 20 };
        let describe: Describe = |_| unreachable!("no upstream is asked");
        let streams = ChatStreams::new(log.clone(), TaskTracker::new(), describe, settings);
        let (id, mut encoder) = (StreamId::random(), Encoder::behind(0));
        encoder.push(&Event::Start { stream_id: id });
        log.log.create(id, Owner::default(), encoder.take(), 0).await.unwrap();

        let stop = |_| {
            let streams = streams.clone();
            spawn(async move { streams.cancel(id, &Owner::default()).await })
        };
        let stops: Vec<_> = (0..stops).map(stop).collect();
        let (_, stopped) = oneshot::channel();
        let text = "안녕하세요".to_owned();
        let (keeping, bill, answer, streams) = (None, None, None, streams.clone());
        let log_of_pump = log.clone();
        let mut pump = Pump { log: log_of_pump, id, encoder, text, describe, stopped, keeping, bill, streams, answer };
        pump.encoder.push_chunk("안녕");
        let is_fenced = log.append(id, 1, pump.encoder.take()).await.is_err();
        // The second piece has arrived, but is not in the log yet.
        pump.encoder.push_chunk("하세요");
        pump.end(if is_fenced { Outcome::Fenced } else { outcome }, "gpt-4").await;
        let mut stopped = 0;
        for stop in stops {
            stopped += usize::from(stop.await.unwrap());
        }

        let whole = log.log.read(id, 0).await.unwrap();
        let entries: Vec<_> = whole.pieces.iter().flat_map(entries).collect();
        assert!(entries.iter().map(|entry| entry.seq).eq(1..=whole.last), "without a gap: {entries:?}");
        let said: Vec<Value> = entries.iter().map(|entry| serde_json::from_slice(&entry.data).unwrap()).collect();
        let is_last = |event: &Value| event["type"] == "END" || event["type"] == "ERROR";
        assert_eq!(said.iter().position(is_last), Some(said.len() - 1), "nothing behind the end: {said:?}");
        let last = &said[said.len() - 1];
        let text: String = said.iter().filter_map(|event| event["content"].as_str()).collect();
        assert_eq!(last["full_content"].as_str().or(last["partial"].as_str()), Some(text.as_str()), "{said:?}");
        assert_eq!(
            stopped,
            usize::from(last["finish_reason"] == CANCELLED),
            "who was told so has stopped it: {said:?}"
        );
        assert!(whole.at_end);
    }
}
