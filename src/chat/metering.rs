//! What a chat costs its caller: reserved before it is asked, settled once when it has ended, however it ends.

use std::sync::Arc;

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::{
    chat::usage::{Outcome, Spending, UsageRecorder},
    ids::Owner,
    limits::{Quota, RateLimiter, Slot, Slots, Standing},
    message::{Message, Usage},
    openai::Cost,
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
pub struct Metering(Arc<Inner>);

#[derive(Debug)]
struct Inner {
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
        Self(Arc::new(Inner { limiter, tokens, streams, slots: Slots::default(), counter, usage, tasks }))
    }

    /// Opens the bill for a chat: reserves what its prompt has, and the most that its answer may have.
    ///
    /// # Errors
    /// The caller has not got that much left.
    pub(super) async fn open(
        &self,
        caller: &Caller,
        model: &str,
        messages: &Arc<Vec<Message>>,
        max_tokens: u32,
    ) -> Result<Bill, OverLimit> {
        let vocabulary = Vocabulary::of(model);
        let (mut prompt, mut reserved) = (Prompt::Uncounted(Arc::clone(messages)), 0);
        if let Some(quota) = self.0.tokens {
            let bytes = messages.iter().map(|message| message.content.len()).sum();
            if !self.0.counter.is_quick(vocabulary, bytes) {
                self.refuse_hopeless(caller, quota, messages, max_tokens).await?;
            }
            let prompt_tokens = self.count(vocabulary, messages).await;
            let asked = prompt_tokens + u64::from(max_tokens);
            // A limiter that is away lets everybody through: it protects the purse, not the data.
            if let Ok(standing) = self.0.limiter.take(&caller.who, quota, asked).await {
                if !standing.is_allowed {
                    return Err(OverLimit::Tokens { limit: quota.per_minute, standing });
                }
                reserved = asked;
            }
            prompt = Prompt::Counted(prompt_tokens);
        }
        let (metering, caller, cost) = (self.clone(), caller.clone(), Cost::default());
        Ok(Bill {
            metering,
            caller,
            vocabulary,
            prompt,
            reserved,
            slot: None,
            cost,
            is_asked: false,
            is_left: false,
            is_settled: false,
        })
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
    async fn count(&self, vocabulary: Vocabulary, messages: &Arc<Vec<Message>>) -> u64 {
        let known = |message: &Message| Some(self.0.counter.known(vocabulary, &message.content)? + TOKENS_PER_MESSAGE);
        if let Some(count) = messages.iter().map(known).sum::<Option<usize>>() {
            return u64::try_from(count).unwrap_or(u64::MAX);
        }
        let messages = Arc::clone(messages);
        let bytes = messages.iter().map(|message| message.content.len()).sum();
        self.counted(vocabulary, bytes, move |counter| {
            messages.iter().map(|message| counter.count(vocabulary, &message.content) + TOKENS_PER_MESSAGE).sum()
        })
        .await
    }

    /// The tokens of an answer: of its text, and of what was billed and not passed on.
    async fn count_answer(&self, vocabulary: Vocabulary, text: &str, cost: &Cost) -> u64 {
        let (unseen, bytes) = cost.unseen();
        if text.is_empty() && bytes == 0 {
            return 0;
        }
        let (text, unseen) = (text.to_owned(), unseen.to_owned());
        self.counted(vocabulary, text.len() + bytes, move |counter| {
            let kept = counter.count(vocabulary, &unseen);
            let thought = if unseen.len() < bytes { kept.saturating_mul(bytes) / unseen.len().max(1) } else { kept };
            counter.estimate(vocabulary, &text) + thought
        })
        .await
    }

    /// What `count` counts, which has that many bytes; by their number where too many want to count.
    async fn counted(
        &self,
        vocabulary: Vocabulary,
        bytes: usize,
        count: impl FnOnce(&TokenCounter) -> usize + Send + 'static,
    ) -> u64 {
        let counter = self.0.counter.clone();
        if counter.is_quick(vocabulary, bytes) {
            return u64::try_from(count(&counter)).unwrap_or(u64::MAX);
        }
        // On a thread of its own: a long text takes milliseconds, and the first one waits for the vocabulary.
        let Some(turn) = counter.turn().await else { return estimate(bytes) };
        let counted = turn.count(move || count(&counter)).await;
        counted.map_or_else(|| estimate(bytes), |count| u64::try_from(count).unwrap_or(u64::MAX))
    }
}

/// Most tokens of one chat that are believed: more than any model takes or gives. What an upstream says beyond that must
/// not put a caller into debt for years.
const MAX_TOKENS: u64 = 10_000_000;

/// How many bytes a token has, where nobody can count: about right for English, high for Korean.
const BYTES_PER_TOKEN: usize = 4;

fn estimate(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u64::MAX)
}

/// Most bytes of a prompt that are kept while a stream runs, to be counted if the upstream does not say. A larger one is
/// counted when its answer begins.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// A prompt, which has to be counted where the upstream does not say what it took.
#[derive(Clone, Debug)]
enum Prompt {
    Counted(u64),
    /// In the background.
    Counting(Shared<BoxFuture<'static, u64>>),
    Uncounted(Arc<Vec<Message>>),
}

/// One chat's bill. It is settled exactly once: by whoever knows how the chat ended, else when it is dropped.
#[derive(Debug)]
pub(super) struct Bill {
    metering: Metering,
    caller: Caller,
    vocabulary: Vocabulary,
    prompt: Prompt,
    reserved: u64,
    /// Given back with the rest.
    slot: Option<Slot>,
    /// What may have been billed, told by whoever asks the upstream.
    pub(super) cost: Cost,
    is_asked: bool,
    /// It was dropped by whoever opened it.
    is_left: bool,
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

    /// From here on it is a chat: the upstream is asked.
    pub(super) fn is_asked(&mut self) {
        self.is_asked = true;
    }

    /// The answer has begun, and may take long: a large prompt is not kept for it.
    pub(super) fn is_answered(&mut self) {
        if let Prompt::Uncounted(messages) = &self.prompt
            && messages.iter().map(|message| message.content.len()).sum::<usize>() > MAX_KEPT_BYTES
        {
            let (metering, vocabulary, messages) = (self.metering.clone(), self.vocabulary, Arc::clone(messages));
            let counting = async move { metering.count(vocabulary, &messages).await }.boxed().shared();
            self.metering.0.tasks.spawn(counting.clone());
            self.prompt = Prompt::Counting(counting);
        }
    }

    /// The chat has ended. `text` is as much of the answer as was passed on; it counts where the upstream did not say what
    /// was used. When this returns, what was reserved and not used is free again.
    pub(super) async fn settle(mut self, outcome: Outcome, text: &str) {
        let spending = self.spending(text).await;
        if let Some(returning) = self.pay(Some((outcome, spending))) {
            // It is done though nobody waits for it.
            let _ = returning.await;
        }
    }

    /// What the upstream may have billed: by its own figures, and by count where it gave none. A zero is no figure.
    async fn spending(&self, text: &str) -> Spending {
        let mut spending = Spending::default();
        let Cost { calls, usage, .. } = self.cost;
        if calls == 0 && usage.is_none() {
            // No call that could have been billed: no connection, or a refusal.
            spending.is_estimated = true;
            return spending;
        }
        let Usage { prompt_tokens, completion_tokens, total_tokens } = usage.unwrap_or_default();
        (spending.prompt_tokens, spending.completion_tokens) = match (prompt_tokens, completion_tokens) {
            (0, 0) if total_tokens > 0 => {
                let prompt = self.prompt_tokens().await.min(total_tokens);
                (prompt, total_tokens - prompt)
            }
            (0, completion) => (total_tokens.saturating_sub(completion), completion),
            // Some count thought in the total alone.
            (prompt, completion) => (prompt, completion.max(total_tokens.saturating_sub(prompt))),
        };
        if spending.prompt_tokens == 0 {
            spending.prompt_tokens = self.prompt_tokens().await;
            spending.is_estimated = true;
        }
        if spending.completion_tokens == 0 {
            spending.completion_tokens = self.metering.count_answer(self.vocabulary, text, &self.cost).await;
            spending.is_estimated |= spending.completion_tokens > 0 || usage.is_none();
        }
        if calls > 1 {
            // Those that took the question and broke before they answered.
            spending.prompt_tokens += self.prompt_tokens().await.saturating_mul(u64::from(calls - 1));
            spending.is_estimated = true;
        }
        spending
    }

    async fn prompt_tokens(&self) -> u64 {
        match &self.prompt {
            Prompt::Counted(tokens) => *tokens,
            Prompt::Counting(counting) => counting.clone().await,
            Prompt::Uncounted(messages) => self.metering.count(self.vocabulary, messages).await,
        }
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

    /// The bill of somebody who has left, for whoever settles it.
    fn left(&mut self) -> Self {
        self.is_settled = true;
        Self {
            metering: self.metering.clone(),
            caller: self.caller.clone(),
            vocabulary: self.vocabulary,
            prompt: self.prompt.clone(),
            reserved: self.reserved,
            slot: None,
            cost: std::mem::take(&mut self.cost),
            is_asked: true,
            is_left: true,
            is_settled: false,
        }
    }

    /// Without the tokenizer, where there is no thread left to count on.
    fn rough(&self) -> Spending {
        let prompt_tokens = match &self.prompt {
            Prompt::Counted(tokens) => *tokens,
            Prompt::Uncounted(messages) => estimate(
                messages.iter().map(|message| message.content.len() + TOKENS_PER_MESSAGE * BYTES_PER_TOKEN).sum(),
            ),
            Prompt::Counting(counting) => counting.peek().copied().unwrap_or_default(),
        };
        let prompt_tokens = prompt_tokens.saturating_mul(u64::from(self.cost.calls));
        Spending { prompt_tokens, completion_tokens: 0, is_estimated: true }
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        if !self.is_asked {
            // A chat that was refused before anybody was asked costs nothing, and is none.
            drop(self.pay(None));
            return;
        }
        if self.is_left {
            // The process ends, and what was to count went with it.
            let spent = self.rough();
            drop(self.pay(Some((Outcome::Left, spent))));
            return;
        }
        self.slot = None;
        let tasks = self.metering.0.tasks.clone();
        let mut settling = Box::pin(self.left().settle(Outcome::Left, ""));
        // Counting waits for another thread.
        if settling.as_mut().now_or_never().is_none() {
            tasks.spawn(settling);
        }
    }
}
