//! How much each caller may ask for: so many requests, tokens and running streams.
//!
//! [`RateLimiter`] has the one primitive; it knows no callers and no requests, only names that have used something up.
//! The arithmetic is the generic cell rate algorithm: instead of a count per window it keeps, for each name, the moment
//! at which everything it has used will have been made good. Source: ITU-T I.371, and the descriptions built on it.

mod memory;
mod room;
mod slots;

pub use memory::MemoryLimiter;
pub use room::{Hold, Room};
pub use slots::{Slot, Slots};

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

/// What may be used up in a minute, and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// What of? `requests`, `tokens`: names of different quotas do not mix.
    pub what: &'static str,
    /// How much comes back in a minute, steadily. At least 1.
    pub per_minute: u64,
    /// How much may be used at once, after a long rest. At least 1.
    pub burst: u64,
}

impl Quota {
    /// How long `amount` takes to come back, in nanoseconds.
    fn nanos(&self, amount: u64) -> i128 {
        i128::from(amount) * 60_000_000_000 / i128::from(self.per_minute.max(1))
    }
}

/// Where a name stands with a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether what was asked for was given. If not, nothing was taken.
    pub is_allowed: bool,
    /// What is left now.
    pub remaining: u64,
    /// When everything will be there again.
    pub reset: Duration,
    /// When what was asked for will be there; zero if it was given.
    pub retry_after: Duration,
}

/// The limiter cannot tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rate limiter is away")]
pub struct LimiterAway;

/// A future without a name, so that a limiter can be chosen at run time.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The primitives of a limiter.
pub trait RateLimiter: Send + Sync + fmt::Debug {
    /// Takes `amount` from what `who` has of `quota`, if it is there. An amount of 0 only looks. More than the whole burst
    /// is given when the whole burst is there; it takes that much longer to come back.
    fn take<'a>(&'a self, who: &'a str, quota: Quota, amount: u64) -> Pending<'a, Result<Standing, LimiterAway>>;

    /// Corrects what was taken: `taken` was asked for, and `used` was used. Takes even what is not there.
    fn settle<'a>(&'a self, who: &'a str, quota: Quota, taken: u64, used: u64) -> Pending<'a, Result<(), LimiterAway>>;
}

/// One quota of one limiter; without a quota there is no limit.
#[derive(Clone, Debug)]
pub struct Limited {
    pub limiter: Arc<dyn RateLimiter>,
    pub quota: Option<Quota>,
}

impl Limited {
    /// Takes `amount` for `who`. `None`: there is no limit, or the limiter is away; it protects the purse, not the data.
    pub async fn take(&self, who: &str, amount: u64) -> Option<Standing> {
        self.limiter.take(who, self.quota?, amount).await.ok()
    }
}
