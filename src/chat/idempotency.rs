//! One upstream call for requests that carry the same `Idempotency-Key`, however often and however simultaneously they
//! come: a caller whose connection broke may ask again without paying twice.
//!
//! The first request under a key does the work; those with the same key and the same content share its outcome for ten
//! minutes. A failure is shared with those who wait for it and then forgotten, so that asking again tries again.
//! Source of the behaviour: draft-ietf-httpapi-idempotency-key-header.

use std::{
    collections::{VecDeque, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dashmap::{DashMap, mapref::entry::Entry};
use tokio::{sync::watch, time::Instant};

use crate::{
    chat::{ChatAnswer, ChatError},
    ids::{Owner, StreamId},
    timestamp::Timestamp,
};

/// How long an outcome is kept.
pub const KEPT_FOR: Duration = Duration::from_secs(600);

/// Most keys that are remembered; the oldest give way.
const MAX_KEYS: usize = 10_000;

/// Most bytes of answers that are remembered; the oldest give way.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What came of the first request.
#[derive(Clone, Debug)]
pub enum Outcome {
    Answer(ChatAnswer, Timestamp),
    Stream(StreamId),
    Failed(ChatError),
}

impl Outcome {
    fn bytes(&self) -> usize {
        match self {
            Self::Answer(answer, _) => answer.text.len(),
            Self::Stream(_) | Self::Failed(_) => 0,
        }
    }
}

/// A key, and whose it is.
type Key = (Owner, Box<str>);

/// The keys of one app.
#[derive(Clone, Debug, Default)]
pub struct Idempotency(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    entries: DashMap<Key, Remembered>,
    order: Mutex<Order>,
    hashers: (RandomState, RandomState),
}

#[derive(Debug)]
struct Remembered {
    content: (u64, u64),
    since: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// Keys in the order in which they came, and what their answers take up.
#[derive(Debug, Default)]
struct Order {
    keys: VecDeque<(Instant, Key)>,
    bytes: usize,
}

/// What a request finds under its key.
#[derive(Debug)]
pub enum Claim {
    /// Nothing: it is the first, and must [`Ticket::settle`].
    First(Ticket),
    /// The same request came before.
    Same(Waiting),
    /// Another request came before.
    Other,
}

impl Idempotency {
    /// Looks up `key`, and takes it if nobody has it. `content` is what makes two requests the same.
    pub fn claim(&self, owner: &Owner, key: &str, content: &impl Hash) -> Claim {
        self.forget_old();
        let (one, two) = &self.0.hashers;
        let content = (one.hash_one(content), two.hash_one(content));
        let key: Key = (owner.clone(), key.into());
        match self.0.entries.entry(key.clone()) {
            Entry::Occupied(known) if known.get().content == content => {
                Claim::Same(Waiting(known.get().outcome.clone()))
            }
            Entry::Occupied(_) => Claim::Other,
            Entry::Vacant(place) => {
                let (sender, outcome) = watch::channel(None);
                let since = Instant::now();
                place.insert(Remembered { content, since, outcome });
                self.order().keys.push_back((since, key.clone()));
                Claim::First(Ticket { key: Some(key), sender, idempotency: self.clone() })
            }
        }
    }

    fn forget_old(&self) {
        loop {
            let mut order = self.order();
            let is_over = order.keys.len() > MAX_KEYS || order.bytes > MAX_BYTES;
            let is_old = |(since, _): &(Instant, Key)| is_over || since.elapsed() >= KEPT_FOR;
            if !order.keys.front().is_some_and(is_old) {
                return;
            }
            let Some((since, key)) = order.keys.pop_front() else { return };
            drop(order);
            // The key may have been given up and taken again since.
            self.forget(&key, |known| known.since == since);
        }
    }

    fn forget(&self, key: &Key, condition: impl Fn(&Remembered) -> bool) {
        if let Some((_, known)) = self.0.entries.remove_if(key, |_, known| condition(known)) {
            let bytes = known.outcome.borrow().as_ref().map_or(0, Outcome::bytes);
            let mut order = self.order();
            order.bytes = order.bytes.saturating_sub(bytes);
        }
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.0.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right, and the duty, to do the work. Dropping it gives the key up.
#[derive(Debug)]
pub struct Ticket {
    key: Option<Key>,
    sender: watch::Sender<Option<Outcome>>,
    idempotency: Idempotency,
}

impl Ticket {
    /// Tells everybody what came of it.
    pub fn settle(mut self, outcome: Outcome) {
        if !matches!(outcome, Outcome::Failed(_)) {
            self.idempotency.order().bytes += outcome.bytes();
            self.key = None;
        }
        self.sender.send_replace(Some(outcome));
    }

    /// To wait for the outcome like everybody else.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting(self.sender.subscribe())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.idempotency.forget(&key, |known| known.outcome.same_channel(&self.sender.subscribe()));
        }
    }
}

/// Waits for somebody else's outcome.
#[derive(Debug)]
pub struct Waiting(watch::Receiver<Option<Outcome>>);

impl Waiting {
    /// The outcome; `None` when whoever did the work broke off.
    pub async fn outcome(mut self) -> Option<Outcome> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::UpstreamError;

    fn stream() -> Outcome {
        Outcome::Stream(StreamId::random())
    }

    fn first(claim: Claim) -> Ticket {
        let Claim::First(ticket) = claim else { panic!("{claim:?}") };
        ticket
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_taken_once_shared_by_the_same_and_refused_to_others() {
        let keys = Idempotency::default();
        let (me, you) = (Owner::new("me"), Owner::new("you"));
        let ticket = first(keys.claim(&me, "k", &"content"));
        let Claim::Same(waiting) = keys.claim(&me, "k", &"content") else { panic!() };
        assert!(matches!(keys.claim(&me, "k", &"other"), Claim::Other));
        drop(first(keys.claim(&you, "k", &"other")));
        ticket.settle(stream());
        assert!(matches!(waiting.outcome().await, Some(Outcome::Stream(_))));
        assert!(matches!(keys.claim(&me, "k", &"content"), Claim::Same(_)));

        tokio::time::advance(KEPT_FOR).await;
        first(keys.claim(&me, "k", &"other")).settle(stream());
        assert_eq!(keys.0.entries.len(), 1);
    }

    #[tokio::test]
    async fn a_failure_is_shared_with_those_who_wait_and_then_forgotten() {
        let keys = Idempotency::default();
        let me = Owner::default();
        let ticket = first(keys.claim(&me, "k", &1));
        let Claim::Same(waiting) = keys.claim(&me, "k", &1) else { panic!() };
        ticket.settle(Outcome::Failed(ChatError::Upstream(UpstreamError::Unauthorized)));
        assert!(matches!(waiting.outcome().await, Some(Outcome::Failed(_))));

        let ticket = first(keys.claim(&me, "k", &1));
        let Claim::Same(waiting) = keys.claim(&me, "k", &1) else { panic!() };
        drop(ticket);
        assert!(waiting.outcome().await.is_none());
        assert!(keys.0.entries.is_empty());
    }

    #[tokio::test]
    async fn memory_is_bounded_in_keys_and_in_bytes() {
        let keys = Idempotency::default();
        let me = Owner::default();
        for n in 0..MAX_KEYS + 10 {
            first(keys.claim(&me, &n.to_string(), &n)).settle(stream());
        }
        assert!(keys.0.entries.len() <= MAX_KEYS + 1);

        let keys = Idempotency::default();
        for n in 0..10 {
            let answer = ChatAnswer { text: "x".repeat(MAX_BYTES / 4), usage: None, model: String::new() };
            first(keys.claim(&me, &n.to_string(), &n)).settle(Outcome::Answer(answer, Timestamp::now()));
        }
        assert!(keys.0.entries.len() <= 6, "{}", keys.0.entries.len());
        assert!(matches!(keys.claim(&me, "9", &9), Claim::Same(_)), "the newest stays");
    }
}
