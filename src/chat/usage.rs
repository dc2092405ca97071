//! What callers use up: gathered in memory, written to the database once a second, each second's sum exactly once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    conversations::{Conversations, StoreError, UsageBatch, UsageRow, Used},
    ids::Owner,
    timestamp::Timestamp,
};

/// How often what was gathered is written: what a process that is killed can lose.
const EVERY: Duration = Duration::from_secs(1);

/// Most sums that wait to be written; a database that is away for long must not use the memory up.
const MAX_SUMS: usize = 100_000;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    /// With a whole answer.
    Done,
    /// Somebody stopped it.
    Cancelled,
    /// Its caller left, or nobody came to read it.
    Left,
    /// There was no answer.
    Failed,
    /// The answer broke off, or the service ended before it did.
    Cut,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Left => "left",
            Self::Failed => "failed",
            Self::Cut => "cut",
        }
    }
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spending {
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    /// Whether they were estimated, because the upstream did not say.
    pub(super) is_estimated: bool,
}

/// What a caller has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageReport {
    pub today: Used,
    pub month: Used,
}

/// Gathers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct UsageRecorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    conversations: Conversations,
    /// Names this process among those that write.
    writer: String,
    gathered: Mutex<Gathered>,
    /// Held while a batch is written: of two at once, the slower would forget what the faster has sent since.
    writing: tokio::sync::Mutex<()>,
}

type Key = (Owner, String, Outcome, bool);

#[derive(Debug, Default)]
struct Gathered {
    sums: HashMap<Key, Used>,
    /// What was sent and not acknowledged: it is sent again as it was.
    sent: Option<UsageBatch>,
    batches: i64,
}

impl UsageRecorder {
    #[must_use]
    pub fn new(conversations: Conversations) -> Self {
        let writer = Uuid::new_v4().to_string();
        Self(Arc::new(Shared {
            conversations,
            writer,
            gathered: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        }))
    }

    /// Counts one request.
    pub(super) fn record(&self, owner: &Owner, outcome: Outcome, spending: Spending) {
        let Spending { prompt_tokens, completion_tokens, is_estimated } = spending;
        let estimated_tokens = if is_estimated { prompt_tokens + completion_tokens } else { 0 };
        let used = Used { requests: 1, prompt_tokens, completion_tokens, estimated_tokens };
        let key = (owner.clone(), Timestamp::now().day(), outcome, is_estimated);
        let mut gathered = self.gathered();
        if gathered.sums.len() < MAX_SUMS || gathered.sums.contains_key(&key) {
            *gathered.sums.entry(key).or_default() += used;
        } else {
            tracing::error!("usage is lost: too much waits for the database");
        }
    }

    /// Writes once a second until `stop`, and then a last time.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_last = tokio::select! {
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            // The failure is in the log; what was gathered is kept.
            let _ = self.flush().await;
            if is_last {
                return;
            }
        }
    }

    /// Writes what was gathered.
    ///
    /// # Errors
    /// The database cannot be written. What was gathered is kept for the next time.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let _writing = self.0.writing.lock().await;
        loop {
            let batch = {
                let mut gathered = self.gathered();
                match &gathered.sent {
                    Some(batch) => batch.clone(),
                    None if gathered.sums.is_empty() => return Ok(()),
                    None => {
                        gathered.batches += 1;
                        let number = gathered.batches;
                        let rows = std::mem::take(&mut gathered.sums).into_iter().map(row_of).collect();
                        let batch = UsageBatch { writer: self.0.writer.clone(), number, rows };
                        gathered.sent = Some(batch.clone());
                        batch
                    }
                }
            };
            self.0.conversations.add_usage(batch).await?;
            self.gathered().sent = None;
        }
    }

    /// What `owner` has used today and this month, by the server's clock, up to now.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn report(&self, owner: &Owner) -> Result<UsageReport, StoreError> {
        // What was not written in time counts as well; a failure to write it shows when it is read.
        let _ = self.flush().await;
        let today = Timestamp::now().day();
        let first = format!("{}-01", today.get(..7).unwrap_or_default());
        let (today, month) = tokio::try_join!(
            self.0.conversations.used(owner, &today, &today),
            self.0.conversations.used(owner, &first, &today),
        )?;
        Ok(UsageReport { today, month })
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.0.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn row_of(((owner, day, outcome, estimated), used): (Key, Used)) -> UsageRow {
    UsageRow { owner, day, ending: outcome.name(), estimated, used }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;

    fn spent(prompt_tokens: u64) -> Spending {
        Spending { prompt_tokens, completion_tokens: 1, is_estimated: false }
    }

    async fn recorder() -> (Conversations, UsageRecorder) {
        let conversations = Conversations::open(&Database::SqliteInMemory).await.unwrap();
        (conversations.clone(), UsageRecorder::new(conversations))
    }

    #[tokio::test]
    async fn a_batch_that_is_sent_again_or_too_late_counts_once() {
        let (conversations, _) = recorder().await;
        let (owner, day) = (Owner::new("a"), "2026-11-23");
        let used = Used { requests: 1, prompt_tokens: 10, completion_tokens: 1, estimated_tokens: 0 };
        let batch = |writer: &str, number| {
            let row = ((owner.clone(), day.to_owned(), Outcome::Done, false), used);
            UsageBatch { writer: writer.to_owned(), number, rows: vec![row_of(row)] }
        };
        for (writer, number, expected) in [
            ("one", 1, 1),
            ("one", 1, 1),
            ("one", 2, 2),
            ("one", 1, 2),
            ("other", 1, 3),
            ("other", 1, 3),
            ("one", 3, 4),
        ] {
            conversations.add_usage(batch(writer, number)).await.unwrap();
            let counted = conversations.used(&owner, day, day).await.unwrap();
            assert_eq!((counted.requests, counted.prompt_tokens), (expected, expected * 10), "{writer} {number}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_who_write_at_once_lose_nothing_and_count_nothing_twice() {
        let (_, recorder) = recorder().await;
        let owner = Owner::new("a");
        let tasks = tokio_util::task::TaskTracker::new();
        for _ in 0..200 {
            let (recorder, owner) = (recorder.clone(), owner.clone());
            tasks.spawn(async move {
                recorder.record(&owner, Outcome::Done, spent(10));
                recorder.flush().await.unwrap();
            });
        }
        tasks.close();
        tasks.wait().await;
        let report = recorder.report(&owner).await.unwrap();
        assert_eq!((report.today.requests, report.today.prompt_tokens), (200, 2000));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_what_is_known_already_still_counts() {
        let (_, recorder) = recorder().await;
        for name in 0..MAX_SUMS + 10 {
            recorder.record(&Owner::new(&name.to_string()), Outcome::Done, spent(1));
        }
        recorder.record(&Owner::new("0"), Outcome::Done, spent(1));
        let gathered = recorder.gathered();
        assert_eq!(gathered.sums.len(), MAX_SUMS);
        assert_eq!(gathered.sums.values().map(|used| used.requests).sum::<u64>(), 1 + u64::try_from(MAX_SUMS).unwrap());
    }
}
