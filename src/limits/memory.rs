//! The limiter in this process's memory.

use std::{collections::hash_map::RandomState, future::ready, hash::BuildHasher, time::Duration};

use dashmap::DashMap;
use tokio::time::Instant;

use crate::limits::{LimiterAway, Pending, Quota, RateLimiter, Standing};

/// Most names that are remembered. Those with the least to make good give way.
const MAX_NAMES: usize = 200_000;

/// A [`RateLimiter`] in a map.
#[derive(Debug)]
pub struct MemoryLimiter {
    /// For each name, when all it has used will have come back, in nanoseconds since `start`. Names are kept as two keyed
    /// hashes: nobody outside can make two of them meet, and long names take no room.
    debts: DashMap<(u64, u64), i128>,
    hashers: (RandomState, RandomState),
    start: Instant,
}

impl Default for MemoryLimiter {
    fn default() -> Self {
        Self { debts: DashMap::new(), hashers: Default::default(), start: Instant::now() }
    }
}

impl MemoryLimiter {
    /// Names that are remembered.
    #[must_use]
    pub fn names(&self) -> usize {
        self.debts.len()
    }

    fn key(&self, who: &str, quota: Quota) -> (u64, u64) {
        let name = (quota.what, who);
        (self.hashers.0.hash_one(name), self.hashers.1.hash_one(name))
    }

    fn now(&self) -> i128 {
        nanos(self.start.elapsed())
    }

    fn take_now(&self, who: &str, quota: Quota, amount: u64) -> Standing {
        let now = self.now();
        let key = self.key(who, quota);
        let tolerance = quota.nanos(quota.burst);
        if amount == 0 {
            let debt = self.debts.get(&key).map_or(now, |debt| (*debt).max(now));
            return standing(true, now, debt, quota);
        }
        self.make_room(now, key);
        let mut entry = self.debts.entry(key).or_insert(now);
        let debt = (*entry).max(now);
        let asked = debt + quota.nanos(amount);
        // Whoever has a whole burst may use it, and more than it at once: there is no better moment to come.
        let is_allowed = asked <= now + tolerance || (amount > quota.burst && debt == now);
        if is_allowed {
            *entry = asked;
            standing(true, now, asked, quota)
        } else {
            let until = debt + quota.nanos(amount.min(quota.burst)) - (now + tolerance);
            Standing { retry_after: duration(until), ..standing(false, now, debt, quota) }
        }
    }

    fn settle_now(&self, who: &str, quota: Quota, taken: u64, used: u64) {
        let now = self.now();
        let key = self.key(who, quota);
        let difference = quota.nanos(used) - quota.nanos(taken);
        let mut entry = self.debts.entry(key).or_insert(now);
        // What has come back in the meantime is not given twice.
        *entry = ((*entry).max(now) + difference).max(now);
    }

    fn make_room(&self, now: i128, key: (u64, u64)) {
        if self.debts.len() < MAX_NAMES || self.debts.contains_key(&key) {
            return;
        }
        self.debts.retain(|_, debt| *debt > now);
        if self.debts.len() >= MAX_NAMES {
            let mut some: Vec<i128> = self.debts.iter().take(1000).map(|entry| *entry.value()).collect();
            some.sort_unstable();
            let middle = some.get(some.len() / 2).copied().unwrap_or(now);
            self.debts.retain(|_, debt| *debt > middle);
        }
        if self.debts.len() >= MAX_NAMES {
            self.debts.clear();
        }
    }
}

fn standing(is_allowed: bool, now: i128, debt: i128, quota: Quota) -> Standing {
    let free = (now + quota.nanos(quota.burst) - debt).max(0);
    let remaining = free * i128::from(quota.per_minute) / 60_000_000_000;
    Standing {
        is_allowed,
        remaining: u64::try_from(remaining).unwrap_or(u64::MAX),
        reset: duration(debt - now),
        retry_after: Duration::ZERO,
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

fn duration(nanos: i128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
}

impl RateLimiter for MemoryLimiter {
    fn take<'a>(&'a self, who: &'a str, quota: Quota, amount: u64) -> Pending<'a, Result<Standing, LimiterAway>> {
        Box::pin(ready(Ok(self.take_now(who, quota, amount))))
    }

    fn settle<'a>(&'a self, who: &'a str, quota: Quota, taken: u64, used: u64) -> Pending<'a, Result<(), LimiterAway>> {
        self.settle_now(who, quota, taken, used);
        Box::pin(ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn quota(per_minute: u64, burst: u64) -> Quota {
        Quota { what: "requests", per_minute, burst }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_given_at_once_and_then_as_much_as_comes_back() {
        let limiter = MemoryLimiter::default();
        let quota = quota(60, 10);
        for left in (0..10).rev() {
            let standing = limiter.take_now("a", quota, 1);
            assert!(standing.is_allowed);
            assert_eq!(standing.remaining, left);
        }
        let refused = limiter.take_now("a", quota, 1);
        assert_eq!((refused.is_allowed, refused.retry_after, refused.reset), (false, SECOND, 10 * SECOND));
        assert!(limiter.take_now("b", quota, 1).is_allowed, "others have their own");
        assert!(limiter.take_now("a", Quota { what: "tokens", ..quota }, 1).is_allowed, "of other things, too");
        tokio::time::advance(SECOND - Duration::from_nanos(1)).await;
        assert!(!limiter.take_now("a", quota, 1).is_allowed);
        tokio::time::advance(Duration::from_nanos(1)).await;
        assert!(limiter.take_now("a", quota, 1).is_allowed);
        assert!(!limiter.take_now("a", quota, 1).is_allowed, "what was refused took nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn no_minute_gives_more_than_a_burst_and_what_comes_back() {
        let limiter = MemoryLimiter::default();
        let quota = quota(30, 5);
        let mut given = Vec::new();
        for step in 0_u64..6000 {
            if limiter.take_now("a", quota, 1).is_allowed {
                given.push(step);
            }
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        for first in &given {
            let in_a_minute = given.iter().filter(|step| (*first..*first + 1200).contains(*step)).count();
            assert!(in_a_minute <= 35, "{in_a_minute} from {first}");
        }
        assert!(given.len() >= 150, "five minutes give what is due: {}", given.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_reserved_is_corrected_by_what_was_used() {
        let limiter = MemoryLimiter::default();
        let quota = quota(6000, 6000);
        assert!(limiter.take_now("a", quota, 5000).is_allowed);
        limiter.settle_now("a", quota, 5000, 100);
        assert_eq!(limiter.take_now("a", quota, 0).remaining, 5900);
        assert!(limiter.take_now("a", quota, 100).is_allowed);
        limiter.settle_now("a", quota, 100, 9900);
        let standing = limiter.take_now("a", quota, 1);
        assert_eq!((standing.is_allowed, standing.remaining), (false, 0), "a debt is paid off first");
        tokio::time::advance(41 * SECOND).await;
        assert!(limiter.take_now("a", quota, 1).is_allowed);
        tokio::time::advance(Duration::from_secs(3600)).await;
        limiter.settle_now("a", quota, 5000, 0);
        assert_eq!(limiter.take_now("a", quota, 0).remaining, 6000, "nothing is given twice");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_a_burst_is_given_to_whoever_has_rested() {
        let limiter = MemoryLimiter::default();
        let quota = quota(60, 10);
        assert!(limiter.take_now("a", quota, 100).is_allowed);
        assert!(!limiter.take_now("a", quota, 1).is_allowed);
        let refused = limiter.take_now("a", quota, 100);
        tokio::time::advance(refused.retry_after).await;
        assert!(limiter.take_now("a", quota, 100).is_allowed, "after the time that was told");
    }

    #[tokio::test]
    async fn a_million_names_take_bounded_memory_and_forgive_no_great_debt() {
        let limiter = MemoryLimiter::default();
        let quota = quota(60, 10);
        assert!(limiter.take_now("debtor", quota, 1000).is_allowed);
        for name in 0..1_000_000 {
            limiter.take_now(&name.to_string(), quota, 1);
        }
        assert!(limiter.names() <= MAX_NAMES);
        assert!(!limiter.take_now("debtor", quota, 1).is_allowed);
    }
}
