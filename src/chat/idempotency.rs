//! One upstream call for requests that carry the same `Idempotency-Key`, however often and however simultaneously they
//! come: a caller whose connection broke may ask again without paying twice.
//!
//! The first request under a key does the work; those with the same key and the same content share its outcome for ten
//! minutes. A failure is shared with those who wait for it and then forgotten, so that asking again tries again: a key
//! gives back a success, or the right to try.
//!
//! The room is bounded in keys and in bytes of answers, and shared fairly: where it is full, the oldest key of whoever has
//! the most gives way, so that nobody can push out another's.
//! Source of the behaviour: draft-ietf-httpapi-idempotency-key-header.

use std::{
    collections::{
        BTreeMap, HashMap,
        hash_map::{Entry, RandomState},
    },
    hash::{BuildHasher, Hash},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    chat::{ChatAnswer, ChatError},
    ids::{Owner, StreamId},
    timestamp::Timestamp,
};

/// How long an outcome is kept.
pub const KEPT_FOR: Duration = Duration::from_secs(600);

/// What is remembered at most.
#[derive(Clone, Copy, Debug)]
struct Room {
    keys: usize,
    /// Of answers.
    bytes: usize,
}

const ROOM: Room = Room { keys: 10_000, bytes: 64 * 1024 * 1024 };

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

/// The keys of one app.
#[derive(Clone, Debug)]
pub struct Idempotency(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Never locked for longer than it takes to look something up.
    known: Mutex<Known>,
    hashers: (RandomState, RandomState),
}

impl Default for Idempotency {
    fn default() -> Self {
        Self::with_room(ROOM)
    }
}

/// Every key counts a number up, by which it is found in both of the orders.
#[derive(Debug)]
struct Known {
    room: Room,
    owners: HashMap<Owner, Share>,
    /// Whose each number is, the oldest first.
    order: BTreeMap<u64, Owner>,
    /// Of all answers that are kept.
    bytes: usize,
    next: u64,
}

/// What one caller has.
#[derive(Debug, Default)]
struct Share {
    entries: HashMap<Arc<str>, Remembered>,
    /// The oldest first.
    order: BTreeMap<u64, Arc<str>>,
    bytes: usize,
}

#[derive(Debug)]
struct Remembered {
    number: u64,
    content: (u64, u64),
    since: Instant,
    /// Of its answer; 0 until there is one.
    bytes: usize,
    outcome: watch::Receiver<Option<Outcome>>,
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

impl Known {
    fn get(&self, owner: &Owner, key: &str) -> Option<&Remembered> {
        self.owners.get(owner)?.entries.get(key)
    }

    fn add(
        &mut self,
        owner: &Owner,
        key: &str,
        (content, outcome): ((u64, u64), watch::Receiver<Option<Outcome>>),
    ) -> u64 {
        self.next += 1;
        let (number, key) = (self.next, Arc::<str>::from(key));
        let share = self.owners.entry(owner.clone()).or_default();
        let remembered = Remembered { number, content, since: Instant::now(), bytes: 0, outcome };
        share.order.insert(number, Arc::clone(&key));
        share.entries.insert(key, remembered);
        self.order.insert(number, owner.clone());
        number
    }

    /// Forgets a key, if it is still there.
    fn remove(&mut self, owner: &Owner, number: u64) {
        let Entry::Occupied(mut share) = self.owners.entry(owner.clone()) else { return };
        let Some(key) = share.get_mut().order.remove(&number) else { return };
        let bytes = share.get_mut().entries.remove(&key).map_or(0, |known| known.bytes);
        self.order.remove(&number);
        share.get_mut().bytes -= bytes;
        self.bytes -= bytes;
        if share.get().entries.is_empty() {
            share.remove();
        }
    }

    /// Counts the answer of a key, if that is still there.
    fn count(&mut self, owner: &Owner, number: u64, bytes: usize) {
        let Some(share) = self.owners.get_mut(owner) else { return };
        let Some(known) = share.order.get(&number).and_then(|key| share.entries.get_mut(key)) else { return };
        known.bytes = bytes;
        share.bytes += bytes;
        self.bytes += bytes;
    }

    fn forget_old(&mut self) {
        while let Some((number, owner)) = self.order.first_key_value() {
            let (number, owner) = (*number, owner.clone());
            let share = self.owners.get(&owner);
            let known = share.and_then(|share| share.entries.get(share.order.get(&number)?));
            if known.is_some_and(|known| known.since.elapsed() < KEPT_FOR) {
                return;
            }
            self.remove(&owner, number);
        }
    }

    /// Makes room until everything is within its bounds. `newest` goes last.
    fn fit(&mut self, owner: &Owner, newest: u64) {
        while self.order.len() > self.room.keys {
            let Some((owner, number)) = self.oldest_of_the_largest(owner, newest, |share| share.entries.len()) else {
                return;
            };
            self.remove(&owner, number);
        }
        while self.bytes > self.room.bytes {
            let Some((owner, number)) = self.oldest_of_the_largest(owner, newest, |share| share.bytes) else { return };
            self.remove(&owner, number);
        }
    }

    /// The oldest key of whoever has the most, or one of `mine` if I have as much.
    fn oldest_of_the_largest(&self, mine: &Owner, newest: u64, size: impl Fn(&Share) -> usize) -> Option<(Owner, u64)> {
        let my_size = self.owners.get(mine).map_or(0, &size);
        let total: usize = if self.owners.len() == 1 { my_size } else { self.owners.values().map(&size).sum() };
        // More than an equal part is enough to pay with; to look for the largest is only worth it otherwise.
        let is_mine = my_size > total / self.owners.len().max(1) || self.owners.len() == 1;
        let largest = || self.owners.iter().max_by_key(|(_, share)| size(share)).map(|(owner, _)| owner);
        let owner = if is_mine { mine } else { largest()? };
        let share = self.owners.get(owner)?;
        // What has no outcome yet is somebody's only way to it.
        let is_settled = |key: &Arc<str>| share.entries.get(key).is_some_and(|known| known.outcome.borrow().is_some());
        let mut others = share.order.iter().filter(|(number, _)| **number != newest);
        let settled = others.clone().find(|(_, key)| is_settled(key));
        let oldest = settled.or_else(|| others.next()).map_or(newest, |(number, _)| *number);
        Some((owner.clone(), oldest))
    }
}

impl Idempotency {
    fn with_room(room: Room) -> Self {
        let known = Known { room, owners: HashMap::new(), order: BTreeMap::new(), bytes: 0, next: 0 };
        Self(Arc::new(Shared { known: Mutex::new(known), hashers: Default::default() }))
    }

    /// Looks up `key`, and takes it if nobody has it. `content` is what makes two requests the same.
    pub fn claim(&self, owner: &Owner, key: &str, content: &impl Hash) -> Claim {
        let (one, two) = &self.0.hashers;
        let content = (one.hash_one(content), two.hash_one(content));
        let mut all = self.known();
        all.forget_old();
        match all.get(owner, key) {
            Some(known) if known.content == content => Claim::Same(Waiting(known.outcome.clone())),
            Some(_) => Claim::Other,
            None => {
                let (sender, outcome) = watch::channel(None);
                let number = all.add(owner, key, (content, outcome));
                all.fit(owner, number);
                drop(all);
                Claim::First(Ticket { owner: owner.clone(), number: Some(number), sender, idempotency: self.clone() })
            }
        }
    }

    /// Gives `key` up if that stream is what came of it, for one that has failed or is gone is nothing to come back to.
    pub fn give_up(&self, owner: &Owner, key: &str, stream: StreamId) {
        let mut all = self.known();
        let is_it = |outcome: &Option<Outcome>| matches!(outcome, Some(Outcome::Stream(id)) if *id == stream);
        let found = all.get(owner, key).filter(|known| is_it(&known.outcome.borrow())).map(|known| known.number);
        found.into_iter().for_each(|number| all.remove(owner, number));
    }

    /// Forgets what has been kept for long enough. To be called now and then, so that memory comes back.
    pub fn expire(&self) {
        self.known().forget_old();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right, and the duty, to do the work. Dropping it gives the key up.
#[derive(Debug)]
pub struct Ticket {
    owner: Owner,
    /// Until it is settled for good.
    number: Option<u64>,
    sender: watch::Sender<Option<Outcome>>,
    idempotency: Idempotency,
}

impl Ticket {
    /// Tells everybody what came of it. A failure gives the key up.
    pub fn settle(mut self, outcome: Outcome) {
        if !matches!(outcome, Outcome::Failed(_))
            && let Some(number) = self.number.take()
        {
            let mut all = self.idempotency.known();
            all.count(&self.owner, number, outcome.bytes());
            // Before the bounds are looked at: it is settled.
            self.sender.send_replace(Some(outcome));
            all.fit(&self.owner, number);
        } else {
            // Before those who wait know of it, so that asking again tries again.
            self.forget();
            self.sender.send_replace(Some(outcome));
        }
    }

    /// To wait for the outcome like everybody else.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting(self.sender.subscribe())
    }

    fn forget(&mut self) {
        let number = self.number.take();
        number.into_iter().for_each(|number| self.idempotency.known().remove(&self.owner, number));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.forget();
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
        assert_eq!(keys.known().order.len(), 1);
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
        assert!(keys.is_empty());
    }

    impl Idempotency {
        fn is_empty(&self) -> bool {
            let all = self.known();
            all.order.is_empty() && all.owners.is_empty() && all.bytes == 0
        }

        /// That what is counted is what is kept.
        fn check(&self) {
            let all = self.known();
            let kept = |known: &Remembered| known.outcome.borrow().as_ref().map_or(0, Outcome::bytes);
            for (owner, share) in &all.owners {
                assert_eq!(share.bytes, share.entries.values().map(kept).sum::<usize>());
                assert_eq!(share.order.len(), share.entries.len());
                assert!(share.order.iter().all(|(number, key)| share.entries[key].number == *number));
                assert!(share.order.keys().all(|number| all.order[number] == *owner));
                assert!(!share.entries.is_empty());
            }
            assert_eq!(all.bytes, all.owners.values().map(|share| share.bytes).sum::<usize>());
            assert_eq!(all.order.len(), all.owners.values().map(|share| share.order.len()).sum::<usize>());
            assert!(all.order.len() <= all.room.keys && (all.bytes <= all.room.bytes || all.order.len() == 1));
        }
    }

    fn answer(bytes: usize) -> Outcome {
        let answer = ChatAnswer { text: "x".repeat(bytes), usage: None, model: String::new() };
        Outcome::Answer(answer, Timestamp::now())
    }

    #[tokio::test]
    async fn memory_is_bounded_in_keys_and_in_bytes() {
        let keys = Idempotency::default();
        let me = Owner::default();
        for n in 0..ROOM.keys + 10 {
            first(keys.claim(&me, &n.to_string(), &n)).settle(stream());
        }
        assert_eq!(keys.known().order.len(), ROOM.keys);

        let keys = Idempotency::default();
        for n in 0..10 {
            first(keys.claim(&me, &n.to_string(), &n)).settle(answer(ROOM.bytes / 4));
        }
        assert_eq!(keys.known().order.len(), 4);
        assert!(matches!(keys.claim(&me, "9", &9), Claim::Same(_)), "the newest stays");
    }

    #[tokio::test]
    async fn nobody_pushes_out_what_another_has() {
        let keys = Idempotency::default();
        let (alice, bob) = (Owner::new("alice"), Owner::new("bob"));
        first(keys.claim(&bob, "k", &0)).settle(answer(10));
        for n in 0..ROOM.keys + 50 {
            let failed = Outcome::Failed(ChatError::Upstream(UpstreamError::Unauthorized));
            first(keys.claim(&alice, &n.to_string(), &n)).settle(failed);
        }
        assert_eq!(keys.known().order.len(), 1, "a failure leaves nothing behind");
        for n in 0..ROOM.keys + 50 {
            first(keys.claim(&alice, &n.to_string(), &n)).settle(stream());
        }
        for n in 0..10 {
            first(keys.claim(&alice, &format!("large {n}"), &n)).settle(answer(ROOM.bytes / 4));
        }
        assert!(matches!(keys.claim(&bob, "k", &0), Claim::Same(_)));
        // And one who comes later gets a share, too.
        let carol = Owner::new("carol");
        first(keys.claim(&carol, "k", &0)).settle(answer(ROOM.bytes / 4));
        assert!(matches!(keys.claim(&carol, "k", &0), Claim::Same(_)));
        assert!(matches!(keys.claim(&bob, "k", &0), Claim::Same(_)));
        keys.check();
    }

    #[tokio::test]
    async fn a_stream_that_is_nothing_to_come_back_to_gives_its_key_back_once() {
        let keys = Idempotency::default();
        let me = Owner::default();
        let (old, new) = (StreamId::random(), StreamId::random());
        first(keys.claim(&me, "k", &1)).settle(Outcome::Stream(old));
        keys.give_up(&me, "k", new);
        assert!(matches!(keys.claim(&me, "k", &1), Claim::Same(_)), "it is another's");
        keys.give_up(&me, "k", old);
        let ticket = first(keys.claim(&me, "k", &1));
        keys.give_up(&me, "k", old);
        assert!(matches!(keys.claim(&me, "k", &1), Claim::Same(_)), "somebody tries already");
        ticket.settle(Outcome::Stream(new));
        keys.check();
    }

    /// What may happen to a key.
    #[derive(Clone, Debug)]
    enum Step {
        Claim { owner: u8, key: u8 },
        Settle { which: usize, bytes: usize },
        Fail { which: usize },
        Leave { which: usize },
        GiveUp { owner: u8, key: u8 },
        Pass { seconds: u64 },
    }

    fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
        use proptest::prelude::*;
        let step = prop_oneof![
            4 => (0..3_u8, 0..8_u8).prop_map(|(owner, key)| Step::Claim { owner, key }),
            3 => (any::<usize>(), 0..60_usize).prop_map(|(which, bytes)| Step::Settle { which, bytes }),
            1 => any::<usize>().prop_map(|which| Step::Fail { which }),
            1 => any::<usize>().prop_map(|which| Step::Leave { which }),
            1 => (0..3_u8, 0..8_u8).prop_map(|(owner, key)| Step::GiveUp { owner, key }),
            1 => (0..400_u64).prop_map(|seconds| Step::Pass { seconds }),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest::proptest! {
        #[test]
        fn what_is_counted_is_what_is_kept_in_every_order(steps in steps()) {
            let clock = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            clock.block_on(play(steps));
        }
    }

    async fn play(steps: Vec<Step>) {
        let keys = Idempotency::with_room(Room { keys: 5, bytes: 100 });
        let owner = |number: u8| Owner::new(&number.to_string());
        let mut tickets: Vec<Ticket> = Vec::new();
        let take = |tickets: &mut Vec<Ticket>, which: usize| match tickets.len() {
            0 => None,
            len => Some(tickets.swap_remove(which % len)),
        };
        let failed = || Outcome::Failed(ChatError::Upstream(UpstreamError::Unauthorized));
        let id = StreamId::random();
        for step in steps {
            match step {
                Step::Claim { owner: who, key } => {
                    if let Claim::First(ticket) = keys.claim(&owner(who), &key.to_string(), &key) {
                        tickets.push(ticket);
                    }
                }
                Step::Settle { which, bytes } => {
                    let outcome = if bytes % 5 == 0 { Outcome::Stream(id) } else { answer(bytes) };
                    take(&mut tickets, which).into_iter().for_each(|ticket| ticket.settle(outcome.clone()));
                }
                Step::Fail { which } => {
                    take(&mut tickets, which).into_iter().for_each(|ticket| ticket.settle(failed()));
                }
                Step::Leave { which } => drop(take(&mut tickets, which)),
                Step::GiveUp { owner: who, key } => keys.give_up(&owner(who), &key.to_string(), id),
                Step::Pass { seconds } => tokio::time::advance(Duration::from_secs(seconds)).await,
            }
            keys.check();
        }
        drop(tickets);
        keys.check();
        tokio::time::advance(KEPT_FOR).await;
        keys.expire();
        assert!(keys.is_empty(), "nothing is left, and nothing is counted");
    }
}
