//! What each connection is doing: between requests, or in the middle of one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// How long a connection has been idle before it may be closed to make room: one that is in use is idle between any two
/// requests.
const IDLE_TO_MAKE_ROOM: Duration = Duration::from_secs(1);

/// How often idle connections are looked for while there are none.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What happens on a connection. Everything of a connection runs in one task; others only look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing has come yet.
    Fresh,
    /// An answer was written, and nothing has come since.
    Kept,
    /// A head has begun.
    Head,
    /// A request is being answered.
    Asked,
    /// The answer is complete, but not all of it is written.
    Answered,
    /// It speaks no HTTP any longer: a WebSocket.
    Taken,
}

impl Phase {
    const ALL: [Self; 6] = [Self::Fresh, Self::Kept, Self::Head, Self::Asked, Self::Answered, Self::Taken];

    /// Whether nothing is going on.
    fn is_idle(self) -> bool {
        matches!(self, Self::Fresh | Self::Kept)
    }

    /// Whether no request is being answered.
    pub(super) fn is_between(self) -> bool {
        matches!(self, Self::Fresh | Self::Kept | Self::Head)
    }

    fn number(self) -> u8 {
        Self::ALL.iter().zip(0..).find(|(phase, _)| **phase == self).map_or(0, |(_, number)| number)
    }
}

/// The life of one connection, shared by what reads and writes, what answers, and whoever looks for room.
#[derive(Debug)]
pub(super) struct Life {
    phase: AtomicU8,
    /// Milliseconds from `origin` to when it was last idle.
    idle_since: AtomicU64,
    origin: Instant,
    /// Whether some of a request was not read.
    unread: AtomicBool,
    /// Told when the connection should close as soon as it can.
    pub(super) leave: Notify,
}

impl Life {
    pub(super) fn new(origin: Instant) -> Self {
        let life = Self {
            phase: AtomicU8::new(Phase::Fresh.number()),
            idle_since: AtomicU64::new(0),
            origin,
            unread: AtomicBool::new(false),
            leave: Notify::new(),
        };
        life.idle_from(Instant::now());
        life
    }

    pub(super) fn phase(&self) -> Phase {
        let number = self.phase.load(Relaxed);
        Phase::ALL.get(usize::from(number)).copied().unwrap_or(Phase::Taken)
    }

    pub(super) fn set(&self, phase: Phase) {
        self.phase.store(phase.number(), Relaxed);
    }

    /// Changes from one phase to another, if it is in that one.
    pub(super) fn change(&self, from: Phase, to: Phase) -> bool {
        self.phase.compare_exchange(from.number(), to.number(), Relaxed, Relaxed).is_ok()
    }

    pub(super) fn idle_from(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.origin).as_millis();
        self.idle_since.store(u64::try_from(millis).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn set_unread(&self, is_unread: bool) {
        self.unread.store(is_unread, Relaxed);
    }

    pub(super) fn is_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }
}

/// The lives of all connections that have a place.
#[derive(Debug)]
pub(super) struct Lives {
    origin: Instant,
    all: Mutex<HashMap<u64, Arc<Life>>>,
    next: AtomicU64,
}

impl Lives {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), all: Mutex::default(), next: AtomicU64::new(0) }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Arc<Life>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new one, until it is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Registered {
        let number = self.next.fetch_add(1, Relaxed);
        let life = Arc::new(Life::new(self.origin));
        self.all().insert(number, Arc::clone(&life));
        Registered { life, number, lives: Arc::clone(self) }
    }
}

/// A life that can be looked up.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) life: Arc<Life>,
    number: u64,
    lives: Arc<Lives>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Whoever has found it must not take it for idle.
        self.life.set(Phase::Taken);
        self.lives.all().remove(&self.number);
    }
}

/// Finds idle connections that can be closed to make room, the longest idle first.
#[derive(Debug)]
pub(super) struct Idle {
    lives: Arc<Lives>,
    found: VecDeque<(u64, Arc<Life>)>,
    looked: Option<Instant>,
}

impl Idle {
    pub(super) fn new(lives: Arc<Lives>) -> Self {
        Self { lives, found: VecDeque::new(), looked: None }
    }

    /// Tells the connection that has been idle longest to close. Whether there was one.
    pub(super) fn close_longest(&mut self) -> bool {
        if self.found.is_empty() && self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
            self.look();
        }
        while let Some((since, life)) = self.found.pop_front() {
            // It may have been used since it was found.
            if life.phase().is_idle() && life.idle_since.load(Relaxed) == since {
                life.leave.notify_one();
                return true;
            }
        }
        false
    }

    fn look(&mut self) {
        let now = Instant::now();
        self.looked = Some(now);
        let until = now.saturating_duration_since(self.lives.origin).saturating_sub(IDLE_TO_MAKE_ROOM).as_millis();
        let since = |life: &Life| life.idle_since.load(Relaxed);
        let all = self.lives.all();
        let idle = all.values().filter(|life| life.phase().is_idle() && u128::from(since(life)) < until);
        let mut found: Vec<_> = idle.map(|life| (since(life), Arc::clone(life))).collect();
        drop(all);
        found.sort_unstable_by_key(|(since, _)| *since);
        self.found = found.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_is_closed_first_and_what_is_in_use_never() {
        let lives = Arc::new(Lives::new());
        let mut idle = Idle::new(Arc::clone(&lives));
        let [first, second, busy] = std::array::from_fn(|_| lives.begin());
        busy.life.set(Phase::Asked);
        assert!(!idle.close_longest(), "nobody has been idle long enough");
        advance(Duration::from_secs(2)).await;
        first.life.idle_from(Instant::now());
        assert!(idle.close_longest());
        tokio::time::timeout(Duration::from_secs(1), second.life.leave.notified()).await.unwrap();
        drop(second);
        assert!(!idle.close_longest());
        advance(Duration::from_secs(2)).await;
        assert!(idle.close_longest());
        tokio::time::timeout(Duration::from_secs(1), first.life.leave.notified()).await.unwrap();
        drop((first, busy));
        assert!(lives.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_used_since_it_was_found_stays() {
        let lives = Arc::new(Lives::new());
        let mut idle = Idle::new(Arc::clone(&lives));
        let held: Vec<_> = (0..2).map(|_| lives.begin()).collect();
        advance(Duration::from_secs(2)).await;
        assert!(idle.close_longest());
        for one in &held {
            one.life.idle_from(Instant::now());
        }
        assert!(!idle.close_longest());
    }

    #[test]
    fn every_phase_has_its_number() {
        for phase in Phase::ALL {
            assert_eq!(Phase::ALL[usize::from(phase.number())], phase);
        }
    }
}
