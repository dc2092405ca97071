//! Which key is asked with next, and which ones rest. The time is given to it; it waits for nothing and locks nothing.
//!
//! Each question goes out with the next key, so that load is spread. A key that the upstream refuses rests, and another
//! one serves at once:
//!
//! | refused because | rests for | how long |
//! |---|---|---|
//! | rate limited | that model | as long as the upstream says, else 5 s; at most 5 minutes |
//! | its account has no money | every model | 5 minutes |
//! | not accepted: 401 | every model | 5 minutes |
//!
//! Limits are counted for each model, so other models go on. The only key there is never rests for every model: nobody
//! could serve in its place, being refused costs nothing, and a bill that has been paid should show at once. After a
//! 403 nothing rests, for that may be about the model, which callers choose.
//!
//! A key with which the upstream fails too often is left alone by its `breaker`: no connection, none in time, no head of
//! an answer in time, or a status from 500. What comes behind the head of an answer speaks for that answer alone.

use std::{collections::HashMap, time::Duration};

use reqwest::StatusCode;
use tokio::time::Instant;

use crate::{
    config::BreakerLimits,
    openai::{
        breaker::{Breaker, Passed},
        error::{Said, UpstreamError},
        retry::Failure,
    },
};

/// How long a rate limit counts for which the upstream names no time.
const LIMITED: Duration = Duration::from_secs(5);

/// How long a key rests that is refused for what only people can change; also the longest rest there is.
const LONG: Duration = Duration::from_secs(300);

/// Most models remembered for each key, whose names come from callers. Past it, a limit is not remembered.
const MAX_MODELS: usize = 1000;

/// Why a key is to rest, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Limited(Duration),
    NoMoney,
    Refused,
}

impl Rest {
    pub(super) fn after(failure: &Failure) -> Option<Self> {
        match &failure.error {
            UpstreamError::RateLimited { retry_after, .. } => {
                Some(Self::Limited(retry_after.unwrap_or(LIMITED).min(LONG)))
            }
            UpstreamError::QuotaExceeded => Some(Self::NoMoney),
            UpstreamError::Unauthorized if failure.status == Some(StatusCode::UNAUTHORIZED) => Some(Self::Refused),
            _ => None,
        }
    }

    pub(super) fn time(self) -> Duration {
        match self {
            Self::Limited(time) => time,
            Self::NoMoney | Self::Refused => LONG,
        }
    }

    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Limited(_) => "rate limited",
            Self::NoMoney => "no money",
            Self::Refused => "not accepted",
        }
    }
}

/// Why a key cannot be asked with now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// For so long.
    Limited(Duration),
    /// Its breaker is, for so long.
    Open(Duration),
    NoMoney,
    Refused,
}

impl Obstacle {
    /// The one that is over sooner.
    fn nearer(self, other: Self) -> Self {
        let rank = |obstacle: Self| match obstacle {
            Self::Limited(wait) | Self::Open(wait) => (0, wait),
            Self::NoMoney => (1, Duration::ZERO),
            Self::Refused => (2, Duration::ZERO),
        };
        if rank(other) < rank(self) { other } else { self }
    }
}

impl From<Obstacle> for UpstreamError {
    fn from(obstacle: Obstacle) -> Self {
        match obstacle {
            // In our own words: the upstream's were for somebody else.
            Obstacle::Limited(wait) => {
                Self::RateLimited { message: Said::every_key_is_limited(), retry_after: Some(wait) }
            }
            Obstacle::Open(wait) => Self::Unavailable { retry_after: wait },
            Obstacle::NoMoney => Self::QuotaExceeded,
            Obstacle::Refused => Self::Unauthorized,
        }
    }
}

/// What is known of the keys. The time is given to it.
#[derive(Debug)]
pub(super) struct Pool {
    keys: Vec<Key>,
    /// Whose turn it is.
    next: usize,
}

/// What is known of one key.
#[derive(Debug)]
struct Key {
    /// For every model: until when, and why.
    rest: Option<(Instant, Obstacle)>,
    /// For single models.
    limited: HashMap<String, Instant>,
    breaker: Breaker,
}

impl Key {
    /// Why it rests for every model.
    fn rests(&self, now: Instant) -> Option<Obstacle> {
        self.rest.filter(|(until, _)| *until > now).map(|(_, why)| why)
    }

    fn limited_for(&self, now: Instant, model: &str) -> Option<Duration> {
        self.limited.get(model).map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// What stands in the way longest.
    fn obstacle(&self, now: Instant, model: &str) -> Option<Obstacle> {
        self.rests(now).or_else(|| match (self.breaker.turns_away(now), self.limited_for(now, model)) {
            (Some(open), limited) if limited.is_none_or(|limited| limited < open) => Some(Obstacle::Open(open)),
            (_, limited) => limited.map(Obstacle::Limited),
        })
    }
}

impl Pool {
    pub(super) fn new(keys: usize, limits: BreakerLimits) -> Self {
        let key = || Key { rest: None, limited: HashMap::new(), breaker: Breaker::new(limits) };
        Self { keys: std::iter::repeat_with(key).take(keys).collect(), next: 0 }
    }

    /// The next key in turn that can be asked with and is not one of `tried`.
    pub(super) fn pick(&mut self, now: Instant, model: &str, tried: &[usize]) -> Result<(usize, Passed), Obstacle> {
        let count = self.keys.len();
        let mut nearest = Obstacle::Refused;
        for index in (self.next..count).chain(0..self.next) {
            let Some(key) = self.keys.get_mut(index).filter(|_| !tried.contains(&index)) else { continue };
            match key.obstacle(now, model) {
                Some(obstacle) => nearest = nearest.nearer(obstacle),
                None => {
                    self.next = if index + 1 < count { index + 1 } else { 0 };
                    return Ok((index, key.breaker.pass(now)));
                }
            }
        }
        Err(nearest)
    }

    /// The key whose rate limit ends first, if only that stands in the way.
    pub(super) fn least_limited(&mut self, now: Instant, model: &str) -> Option<(usize, Passed)> {
        let limited = self.keys.iter_mut().enumerate().filter_map(|(index, key)| match key.obstacle(now, model) {
            Some(Obstacle::Limited(left)) => Some((left, index, key)),
            _ => None,
        });
        let (_, index, key) = limited.min_by_key(|(left, ..)| *left)?;
        Some((index, key.breaker.pass(now)))
    }

    /// Whether every breaker is open for longer than `wait`.
    pub(super) fn are_open_for(&self, now: Instant, wait: Duration) -> bool {
        self.keys.iter().all(|key| key.breaker.turns_away(now).is_some_and(|left| left > wait))
    }

    pub(super) fn breaker(&mut self, index: usize) -> Option<&mut Breaker> {
        self.keys.get_mut(index).map(|key| &mut key.breaker)
    }

    /// Whether that key rests for every model.
    pub(super) fn rests(&self, now: Instant, index: usize) -> bool {
        self.keys.get(index).is_some_and(|key| key.rests(now).is_some())
    }

    /// The key is limited for that model no more.
    pub(super) fn lift(&mut self, index: usize, model: &str) {
        if let Some(key) = self.keys.get_mut(index) {
            key.limited.remove(model);
        }
    }

    /// Lets a key rest. Whether it did not before.
    pub(super) fn rest(&mut self, now: Instant, index: usize, model: &str, rest: Rest) -> bool {
        let is_only_one = self.keys.len() == 1;
        let Some(key) = self.keys.get_mut(index) else { return false };
        let is_new = key.obstacle(now, model).is_none();
        let until = now + rest.time();
        match rest {
            Rest::Limited(_) => {
                key.limited.retain(|_, until| *until > now);
                if key.limited.len() < MAX_MODELS || key.limited.contains_key(model) {
                    key.limited.insert(model.to_owned(), until);
                }
            }
            _ if is_only_one => return false,
            Rest::NoMoney => key.rest = Some((until, Obstacle::NoMoney)),
            Rest::Refused => key.rest = Some((until, Obstacle::Refused)),
        }
        is_new
    }

    /// What the caller of a question is told whose every key is refused, the last one by `failure`: what helps most.
    pub(super) fn best(&self, now: Instant, index: usize, model: &str, mut failure: Failure) -> Failure {
        let others = self.keys.iter().enumerate().filter(|(other, _)| *other != index);
        // One that was refused before, for this question, and rests no more, can be asked at once.
        let obstacle = |key: &Key| key.obstacle(now, model).unwrap_or(Obstacle::Limited(Duration::ZERO));
        let Some(nearest) = others.map(|(_, key)| obstacle(key)).reduce(Obstacle::nearer) else {
            return failure;
        };
        match (&mut failure.error, nearest) {
            (UpstreamError::RateLimited { retry_after, .. }, Obstacle::Limited(wait) | Obstacle::Open(wait)) => {
                *retry_after = Some(wait.min(retry_after.unwrap_or(LIMITED)));
                // Where no time was named, this service waits as it sees fit.
                failure.retry_after = failure.retry_after.map(|named| named.min(wait));
                failure
            }
            (UpstreamError::QuotaExceeded | UpstreamError::Unauthorized, Obstacle::Limited(wait)) => {
                Failure::limited(nearest.into(), wait)
            }
            (UpstreamError::QuotaExceeded | UpstreamError::Unauthorized, Obstacle::Open(_))
            | (UpstreamError::Unauthorized, Obstacle::NoMoney) => Failure::silent(nearest.into()),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::redact::Secrets;

    const SECOND: Duration = Duration::from_secs(1);

    fn pool(keys: usize) -> (Pool, Instant) {
        (Pool::new(keys, BreakerLimits::default()), Instant::now())
    }

    fn picks(pool: &mut Pool, now: Instant, count: usize) -> Vec<usize> {
        (0..count).map(|_| pool.pick(now, "m", &[]).unwrap().0).collect()
    }

    fn limited(retry_after: Option<Duration>) -> Failure {
        let error = UpstreamError::RateLimited { message: Said::new("theirs", &Secrets::default()), retry_after };
        let mut failure = Failure::limited(error, Duration::ZERO);
        failure.retry_after = retry_after;
        failure
    }

    #[test]
    fn keys_take_turns_and_those_awake_share_the_turn_of_one_that_rests() {
        let (mut pool, now) = pool(3);
        assert_eq!(picks(&mut pool, now, 6), [0, 1, 2, 0, 1, 2]);
        assert!(pool.rest(now, 0, "m", Rest::Refused));
        assert_eq!(picks(&mut pool, now, 4), [1, 2, 1, 2]);
        assert_eq!(pool.pick(now, "m", &[1]), Ok((2, Passed::Closed)));
        assert_eq!(pool.pick(now, "m", &[1, 2]), Err(Obstacle::Refused));
        assert!(!pool.rest(now, 0, "m", Rest::Refused), "nothing new");
    }

    #[test]
    fn a_limited_key_rests_for_its_model_alone_and_as_long_as_named() {
        let (mut pool, now) = pool(1);
        pool.rest(now, 0, "m", Rest::Limited(3 * SECOND));
        assert_eq!(pool.pick(now + SECOND, "m", &[]), Err(Obstacle::Limited(2 * SECOND)));
        assert_eq!(pool.pick(now + SECOND, "other", &[]), Ok((0, Passed::Closed)));
        assert_eq!(pool.pick(now + 3 * SECOND, "m", &[]), Ok((0, Passed::Closed)));
        let named = |retry_after| Rest::after(&limited(retry_after)).unwrap().time();
        assert_eq!([named(Some(SECOND)), named(None), named(Some(LONG * 2))], [SECOND, LIMITED, LONG]);
    }

    #[test]
    fn a_key_without_money_or_standing_rests_for_every_model_unless_it_is_the_only_one() {
        for rest in [Rest::NoMoney, Rest::Refused] {
            let (mut two, now) = pool(2);
            two.rest(now, 0, "m", rest);
            two.rest(now, 1, "m", rest);
            assert!(two.pick(now + LONG - SECOND, "other", &[]).is_err());
            assert_eq!(two.pick(now + LONG, "other", &[]), Ok((0, Passed::Closed)));
            let (mut one, now) = pool(1);
            assert!(!one.rest(now, 0, "m", rest));
            assert_eq!(one.pick(now, "m", &[]), Ok((0, Passed::Closed)));
        }
        let refused =
            |status| Failure::refused(status, &reqwest::header::HeaderMap::new(), UpstreamError::Unauthorized);
        assert_eq!(Rest::after(&refused(StatusCode::UNAUTHORIZED)), Some(Rest::Refused));
        assert_eq!(Rest::after(&refused(StatusCode::FORBIDDEN)), None);
    }

    #[test]
    fn when_every_key_rests_the_one_nearest_to_serving_says_why() {
        let (mut pool, now) = pool(4);
        pool.rest(now, 0, "m", Rest::Refused);
        pool.rest(now, 1, "m", Rest::NoMoney);
        assert_eq!(pool.pick(now, "m", &[2, 3]), Err(Obstacle::NoMoney));
        pool.rest(now, 2, "m", Rest::Limited(9 * SECOND));
        pool.rest(now, 3, "m", Rest::Limited(4 * SECOND));
        assert_eq!(pool.pick(now, "m", &[]), Err(Obstacle::Limited(4 * SECOND)));
        assert_eq!(pool.least_limited(now, "m"), Some((3, Passed::Closed)));
        assert_eq!(pool.least_limited(now, "other"), None);
        let told = UpstreamError::from(Obstacle::Limited(4 * SECOND));
        assert!(matches!(told, UpstreamError::RateLimited { retry_after: Some(wait), .. } if wait == 4 * SECOND));
    }

    #[test]
    fn a_question_whose_every_key_is_refused_is_told_what_helps_most() {
        let (mut pool, now) = pool(2);
        let told = |pool: &Pool, failure| {
            let best = pool.best(now, 1, "m", failure);
            (best.error, best.retry_after)
        };
        let money = || Failure::silent(UpstreamError::QuotaExceeded);
        let key = || Failure::silent(UpstreamError::Unauthorized);
        pool.rest(now, 0, "m", Rest::NoMoney);
        assert_eq!(told(&pool, key()), (UpstreamError::QuotaExceeded, None));
        assert_eq!(told(&pool, money()), (UpstreamError::QuotaExceeded, None));
        assert_eq!(told(&pool, limited(Some(SECOND))).1, Some(SECOND));

        pool.keys[0].rest = None;
        pool.rest(now, 0, "m", Rest::Limited(2 * SECOND));
        for failure in [key(), money()] {
            let (error, wait) = told(&pool, failure);
            assert!(matches!(error, UpstreamError::RateLimited { .. }) && wait == Some(2 * SECOND), "{error:?}");
        }
        assert_eq!(told(&pool, limited(Some(9 * SECOND))).1, Some(2 * SECOND));
        assert_eq!(told(&pool, limited(Some(SECOND))).1, Some(SECOND));
        // The caller is told the nearest time; the service itself waits as it does without one.
        let (error, wait) = told(&pool, limited(None));
        assert!(matches!(error, UpstreamError::RateLimited { retry_after: Some(wait), .. } if wait == 2 * SECOND));
        assert_eq!(wait, None);
    }

    /// The breaker of that key opens.
    fn open(pool: &mut Pool, now: Instant, index: usize) {
        for _ in 0..5 {
            pool.keys[index].breaker.failed(Passed::Closed, now);
        }
    }

    #[test]
    fn a_key_that_fails_too_often_is_passed_over_and_tried_again_later() {
        let (mut pool, now) = pool(2);
        open(&mut pool, now, 0);
        assert_eq!(picks(&mut pool, now, 2), [1, 1]);
        pool.rest(now, 1, "m", Rest::Limited(9 * SECOND));
        assert_eq!(pool.pick(now, "m", &[]), Err(Obstacle::Open(5 * SECOND)));
        assert_eq!(pool.pick(now + 5 * SECOND, "m", &[]), Ok((0, Passed::Probe(1))));
        assert_eq!(pool.least_limited(now, "m"), Some((1, Passed::Closed)), "the other does not merely rest");
        open(&mut pool, now, 1);
        assert_eq!(pool.keys[1].obstacle(now, "m"), Some(Obstacle::Limited(9 * SECOND)), "what takes longest");
        assert_eq!(pool.least_limited(now + 5 * SECOND, "m"), Some((1, Passed::Probe(1))));

        let best = pool.best(now, 1, "m", Failure::silent(UpstreamError::Unauthorized));
        assert!(matches!(best.error, UpstreamError::Unavailable { .. }), "{best:?}");
    }

    #[test]
    fn memory_is_bounded() {
        let (mut pool, now) = pool(1);
        for n in 0..MAX_MODELS + 5 {
            pool.rest(now, 0, &n.to_string(), Rest::Limited(SECOND));
        }
        assert_eq!(pool.keys[0].limited.len(), MAX_MODELS);
        pool.rest(now + SECOND, 0, "later", Rest::Limited(SECOND));
        assert_eq!(pool.keys[0].limited.len(), 1);
    }
}
