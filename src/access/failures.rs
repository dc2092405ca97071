//! Addresses that fail to authenticate again and again are not listened to for a while.

use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use crate::access::AddressKey;

/// So many failures …
const MAX_FAILURES: u32 = 20;

/// … within this time …
const WITHIN: Duration = Duration::from_secs(60);

/// … are answered with so long a silence.
const BLOCKED_FOR: Duration = Duration::from_secs(600);

/// Most addresses that are remembered; the least telling of a few give way.
const MAX_ADDRESSES: usize = 100_000;

/// Counts failures by address.
#[derive(Debug, Default)]
pub struct Failures(DashMap<AddressKey, Failed>);

#[derive(Clone, Copy, Debug)]
struct Failed {
    count: u32,
    /// When the first of them was, or when the address was blocked.
    since: Instant,
}

impl Failed {
    fn is_blocked(&self) -> bool {
        self.count >= MAX_FAILURES
    }

    /// How long it counts from now on.
    fn left(&self, now: Instant) -> Duration {
        let counts = if self.is_blocked() { BLOCKED_FOR } else { WITHIN };
        counts.saturating_sub(now.saturating_duration_since(self.since))
    }
}

impl Failures {
    /// How long the address is blocked; `None` if it is not.
    #[must_use]
    pub fn blocked(&self, address: AddressKey) -> Option<Duration> {
        // Usually nobody has failed, and then there is nothing to look up.
        if self.0.is_empty() {
            return None;
        }
        let failed = self.0.get(&address)?;
        let left = failed.left(Instant::now());
        (failed.is_blocked() && !left.is_zero()).then_some(left)
    }

    /// Counts a failure. True: the address is blocked from now on.
    pub fn count(&self, address: AddressKey) -> bool {
        let now = Instant::now();
        if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&address) {
            self.make_room(now);
        }
        let mut failed = self.0.entry(address).or_insert(Failed { count: 0, since: now });
        if failed.left(now).is_zero() {
            *failed = Failed { count: 0, since: now };
        }
        if failed.is_blocked() {
            return false;
        }
        failed.count += 1;
        if failed.is_blocked() {
            failed.since = now;
        }
        failed.is_blocked()
    }

    fn make_room(&self, now: Instant) {
        self.0.retain(|_, failed| !failed.left(now).is_zero());
        if self.0.len() >= MAX_ADDRESSES {
            // Under a flood of addresses the blocked ones stay, and of the others nothing is known yet.
            self.0.retain(|_, failed| failed.is_blocked());
        }
        if self.0.len() >= MAX_ADDRESSES {
            self.0.clear();
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn address(number: u32) -> AddressKey {
        AddressKey::of(IpAddr::from(number.to_be_bytes()))
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_failures_in_a_minute_block_for_ten() {
        let failures = Failures::default();
        let (it, other) = (address(1), address(2));
        for n in 1..=MAX_FAILURES {
            assert_eq!(failures.blocked(it), None);
            assert_eq!(failures.count(it), n == MAX_FAILURES);
        }
        assert_eq!(failures.blocked(it), Some(BLOCKED_FOR));
        assert_eq!(failures.blocked(other), None);
        assert!(!failures.count(it), "it is blocked once, and not for longer with every try");
        tokio::time::advance(BLOCKED_FOR - Duration::from_secs(1)).await;
        assert_eq!(failures.blocked(it), Some(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(failures.blocked(it), None);
        assert!(!failures.count(it), "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_are_far_between_do_not_add_up() {
        let failures = Failures::default();
        for _ in 0..10 {
            for _ in 1..MAX_FAILURES {
                assert!(!failures.count(address(1)));
            }
            tokio::time::advance(WITHIN).await;
        }
    }

    #[tokio::test]
    async fn a_million_addresses_take_bounded_memory_and_free_no_blocked_one() {
        let failures = Failures::default();
        for _ in 0..MAX_FAILURES {
            failures.count(address(0));
        }
        for number in 1..1_000_000 {
            failures.count(address(number));
        }
        assert!(failures.len() <= MAX_ADDRESSES, "{}", failures.len());
        assert!(failures.blocked(address(0)).is_some());
    }
}
