//! What a chat costs its caller: reserved before it is asked, settled once when it has ended, however it ends.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::{
    chat::usage::{Outcome, Spending, UsageRecorder},
    ids::Owner,
    limits::{Quota, RateLimiter, Slot, Slots, Standing},
    message::{Message, Usage},
    tokens::{TOKENS_PER_MESSAGE, TokenCounter, Vocabulary},
};

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose streams, conversations and usage these are.
    pub owner: Owner,
    /// Whose limits count: the owner's name, or the address where nobody is told apart.
    pub who: Arc<str>,
}

impl Default for Caller {
    /// Everybody.
    fn default() -> Self {
        Self { owner: Owner::default(), who: Arc::from("") }
    }
}

/// More than the caller may have now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverLimit {
    #[error("rate limit reached: {limit} tokens per minute")]
    Tokens { limit: u64, standing: Standing },
    #[error("at most {limit} streams may run at once")]
    Streams { limit: u32 },
}

/// The limits that need to know what a chat is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metering(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limiter: Arc<dyn RateLimiter>,
    tokens: Option<Quota>,
    streams: Option<u32>,
    slots: Slots,
    counter: TokenCounter,
    usage: UsageRecorder,
    tasks: TaskTracker,
}

/// What is limited, and what for.
#[derive(Debug)]
pub struct MeteringSettings {
    pub limiter: Arc<dyn RateLimiter>,
    /// Of prompts and answers together.
    pub tokens: Option<Quota>,
    /// Streams that one caller may have running.
    pub streams: Option<u32>,
}

impl Metering {
    #[must_use]
    pub fn new(settings: MeteringSettings, counter: TokenCounter, usage: UsageRecorder, tasks: TaskTracker) -> Self {
        let MeteringSettings { limiter, tokens, streams } = settings;
        Self(Arc::new(Shared { limiter, tokens, streams, slots: Slots::default(), counter, usage, tasks }))
    }

    /// Opens the bill for a chat: reserves what its prompt has, and the most that its answer may have.
    ///
    /// # Errors
    /// The caller has not got that much left.
    pub(super) async fn open(
        &self,
        caller: &Caller,
        model: &str,
        messages: &[Message],
        max_tokens: u32,
    ) -> Result<Bill, OverLimit> {
        let (mut prompt_tokens, mut reserved) = (None, 0);
        if let Some(quota) = self.0.tokens {
            self.refuse_hopeless(caller, quota, messages, max_tokens).await?;
            let prompt = self.count(model, messages).await;
            let asked = prompt + u64::from(max_tokens);
            // A limiter that is away lets everybody through: it protects the purse, not the data.
            if let Ok(standing) = self.0.limiter.take(&caller.who, quota, asked).await {
                if !standing.is_allowed {
                    return Err(OverLimit::Tokens { limit: quota.per_minute, standing });
                }
                reserved = asked;
            }
            prompt_tokens = Some(prompt);
        }
        let prompt_bytes = messages.iter().map(|message| message.content.len() + TOKENS_PER_MESSAGE * BYTES_PER_TOKEN);
        let prompt_tokens = prompt_tokens.unwrap_or_else(|| estimate(prompt_bytes.sum()));
        let (metering, caller) = (self.clone(), caller.clone());
        Ok(Bill { metering, caller, prompt_tokens, reserved, slot: None, is_asked: false, is_settled: false })
    }

    /// Refuses what there are not even tokens enough for with the shortest prompt: counting a long one takes its time.
    async fn refuse_hopeless(
        &self,
        caller: &Caller,
        quota: Quota,
        messages: &[Message],
        max_tokens: u32,
    ) -> Result<(), OverLimit> {
        let shortest = u64::try_from(messages.len() * (TOKENS_PER_MESSAGE + 1)).unwrap_or(u64::MAX);
        let least = shortest.saturating_add(u64::from(max_tokens));
        let Ok(standing) = self.0.limiter.take(&caller.who, quota, 0).await else { return Ok(()) };
        if standing.remaining >= least.min(quota.burst) {
            return Ok(());
        }
        // What it would be refused with, by an estimate: refusing takes nothing.
        let bytes = messages.iter().map(|message| message.content.len()).sum();
        let asked = least.saturating_add(estimate(bytes));
        let Ok(standing) = self.0.limiter.take(&caller.who, quota, asked).await else { return Ok(()) };
        if standing.is_allowed {
            // Tokens have come back at this very moment.
            let _ = self.0.limiter.settle(&caller.who, quota, asked, 0).await;
            return Ok(());
        }
        Err(OverLimit::Tokens { limit: quota.per_minute, standing })
    }

    /// A place for one more running stream; `None` when there is no limit.
    ///
    /// # Errors
    /// The caller has as many as allowed.
    pub(super) fn slot(&self, caller: &Caller) -> Result<Option<Slot>, OverLimit> {
        let Some(limit) = self.0.streams else { return Ok(None) };
        self.0.slots.take(&caller.who, limit).map(Some).ok_or(OverLimit::Streams { limit })
    }

    /// The same without being asked; `None` when there is no limit.
    pub(super) fn occupy(&self, caller: &Caller) -> Option<Slot> {
        self.0.streams.map(|_| self.0.slots.occupy(&caller.who))
    }

    /// The tokens of a prompt, as OpenAI counts them.
    async fn count(&self, model: &str, messages: &[Message]) -> u64 {
        let vocabulary = Vocabulary::of(model);
        let known = |message: &Message| Some(self.0.counter.known(vocabulary, &message.content)? + TOKENS_PER_MESSAGE);
        if let Some(count) = messages.iter().map(known).sum::<Option<usize>>() {
            return u64::try_from(count).unwrap_or(u64::MAX);
        }
        let counter = self.0.counter.clone();
        let bytes = messages.iter().map(|message| message.content.len()).sum();
        if counter.is_quick(vocabulary, bytes) {
            let counts =
                messages.iter().map(|message| counter.count(vocabulary, &message.content) + TOKENS_PER_MESSAGE);
            return u64::try_from(counts.sum::<usize>()).unwrap_or(u64::MAX);
        }
        // On a thread of its own: a long prompt takes milliseconds, and the first one waits for the vocabulary.
        let Some(turn) = counter.turn().await else { return estimate(bytes) };
        let texts: Vec<String> = messages.iter().map(|message| message.content.clone()).collect();
        let counted = turn.count(move || {
            texts.iter().map(|text| counter.count(vocabulary, text) + TOKENS_PER_MESSAGE).sum::<usize>()
        });
        counted.await.map_or_else(|| estimate(bytes), |count| u64::try_from(count).unwrap_or(u64::MAX))
    }
}

/// Most tokens of one chat that are believed: more than any model takes or gives. What an upstream says beyond that must
/// not put a caller into debt for years.
const MAX_TOKENS: u64 = 10_000_000;

/// How many bytes a token has, where nobody has counted: about right for English, high for Korean.
const BYTES_PER_TOKEN: usize = 4;

fn estimate(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u64::MAX)
}

/// One chat's bill. It is settled exactly once: by whoever knows how the chat ended, else when it is dropped.
#[derive(Debug)]
pub(super) struct Bill {
    metering: Metering,
    caller: Caller,
    /// Counted or estimated; what the upstream says counts more.
    prompt_tokens: u64,
    reserved: u64,
    /// Given back with the rest.
    slot: Option<Slot>,
    is_asked: bool,
    is_settled: bool,
}

impl Bill {
    /// The same for a stream, which also has a place among those that run.
    #[must_use]
    pub(super) fn with(self, slot: Option<Slot>) -> Self {
        // Whoever drops a bill settles it, so it cannot be taken apart.
        let mut bill = self;
        bill.slot = slot;
        bill
    }

    /// From here on it costs something: the upstream is asked.
    pub(super) fn is_asked(&mut self) {
        self.is_asked = true;
    }

    /// The chat has ended. `text` is as much of the answer as there is; it counts where the upstream did not say what was
    /// used. When this returns, what was reserved and not used is free again.
    pub(super) async fn settle(mut self, outcome: Outcome, usage: Option<Usage>, text: &str) {
        let spending = match (usage, outcome) {
            (Some(usage), _) => Spending {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                is_estimated: false,
            },
            // An upstream that gave no answer takes no money.
            (None, Outcome::Failed) => Spending { is_estimated: true, ..Spending::default() },
            (None, _) => self.estimated(text),
        };
        if let Some(returning) = self.pay(Some((outcome, spending))) {
            // It is done though nobody waits for it.
            let _ = returning.await;
        }
    }

    fn estimated(&self, text: &str) -> Spending {
        let prompt_tokens = if self.is_asked { self.prompt_tokens } else { 0 };
        Spending { prompt_tokens, completion_tokens: estimate(text.len()), is_estimated: true }
    }

    /// Counts what was spent, if anything was asked for, and gives back what was reserved for more.
    fn pay(&mut self, spent: Option<(Outcome, Spending)>) -> Option<JoinHandle<()>> {
        if std::mem::replace(&mut self.is_settled, true) {
            return None;
        }
        self.slot = None;
        let shared = Arc::clone(&self.metering.0);
        let mut used = 0;
        if let Some((outcome, spending)) = spent {
            let spending = Spending {
                prompt_tokens: spending.prompt_tokens.min(MAX_TOKENS),
                completion_tokens: spending.completion_tokens.min(MAX_TOKENS),
                ..spending
            };
            shared.usage.record(&self.caller.owner, outcome, spending);
            used = spending.prompt_tokens + spending.completion_tokens;
        }
        let quota = shared.tokens?;
        let (who, taken) = (Arc::clone(&self.caller.who), self.reserved);
        let tasks = shared.tasks.clone();
        let mut settling = Box::pin(async move {
            // What cannot be settled comes back by itself within a minute.
            let _ = shared.limiter.settle(&who, quota, taken, used).await;
        });
        // In memory it is done at once, and a task for it would cost more than all the rest.
        if settling.as_mut().now_or_never().is_some() {
            return None;
        }
        Some(tasks.spawn(settling))
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        // A chat that was refused before anybody was asked costs nothing, and is none.
        let spent = self.is_asked.then(|| (Outcome::Left, self.estimated("")));
        drop(self.pay(spent));
    }
}
