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
//! A key with which the upstream fails too often is left alone by a `breaker`. Which one a failure counts against:
//!
//! | failure | counts against |
//! |---|---|
//! | no connection, none in time | the key |
//! | it broke, no head of an answer in time, a status from 500 | the key with that model |
//! | behind the head of an answer | neither: it speaks for that answer alone |
//!
//! Whoever asks for a model that fails makes no other model fail. A question counts once against each, however often it is
//! asked again. What is remembered by model is bounded, for callers choose the names.

use std::{collections::HashMap, time::Duration};

use reqwest::StatusCode;
use tokio::time::Instant;

use crate::{
    config::BreakerLimits,
    openai::{
        breaker::{self, Breaker},
        error::{Said, UpstreamError},
        retry::Failure,
    },
};

/// How long a rate limit counts for which the upstream names no time.
const LIMITED: Duration = Duration::from_secs(5);

/// How long a key rests that is refused for what only people can change; also the longest rest there is.
const LONG: Duration = Duration::from_secs(300);

/// Most models remembered for each key, whose names come from callers. Past it, the one that matters least gives way.
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
    /// Only having no connection counts against it.
    breaker: Breaker,
    /// Single models: those that are limited, or that have failed lately.
    models: HashMap<String, Model>,
    limits: BreakerLimits,
}

/// What is known of one model with one key.
#[derive(Debug)]
struct Model {
    limited_until: Option<Instant>,
    breaker: Breaker,
}

/// As what a question passed, which is to be told to [`Pool::tell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    key: breaker::Passed,
    /// The model's; closed where nothing is known of it.
    model: breaker::Passed,
}

/// What came of an attempt, for the breakers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// An answer, be it a refusal.
    Answer,
    /// The upstream failed.
    Outage,
    /// There was no connection.
    NoConnection,
    /// Nothing: the caller left.
    Nothing,
}

/// What telling the breakers did: for how long one opened, and whether one closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turned {
    pub(super) opened: Option<Duration>,
    pub(super) has_closed: bool,
}

impl Model {
    fn new(limits: BreakerLimits) -> Self {
        Self { limited_until: None, breaker: Breaker::new(limits) }
    }

    fn limited(&self, now: Instant) -> Option<Duration> {
        self.limited_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    fn is_stale(&self, now: Instant) -> bool {
        self.limited(now).is_none() && self.breaker.is_stale(now)
    }

    /// For how long it stands in anybody's way.
    fn weight(&self, now: Instant) -> Duration {
        self.limited(now).max(self.breaker.turns_away(now)).unwrap_or_default()
    }
}

impl Key {
    fn new(limits: BreakerLimits) -> Self {
        Self { rest: None, breaker: Breaker::new(limits), models: HashMap::new(), limits }
    }

    /// Why it rests for every model.
    fn rests(&self, now: Instant) -> Option<Obstacle> {
        self.rest.filter(|(until, _)| *until > now).map(|(_, why)| why)
    }

    /// For how long a breaker turns questions about that model away.
    fn turns_away(&self, now: Instant, model: &str) -> Option<Duration> {
        let model = self.models.get(model).and_then(|model| model.breaker.turns_away(now));
        self.breaker.turns_away(now).max(model)
    }

    /// What stands in the way longest.
    fn obstacle(&self, now: Instant, model: &str) -> Option<Obstacle> {
        let limited = self.models.get(model).and_then(|model| model.limited(now));
        self.rests(now).or_else(|| match (self.turns_away(now, model), limited) {
            (Some(open), limited) if limited.is_none_or(|limited| limited < open) => Some(Obstacle::Open(open)),
            (_, limited) => limited.map(Obstacle::Limited),
        })
    }

    fn pass(&mut self, now: Instant, model: &str) -> Passed {
        let model = self.models.get_mut(model).map_or(breaker::Passed::Closed, |model| model.breaker.pass(now));
        Passed { key: self.breaker.pass(now), model }
    }

    /// What is remembered of that model, from now on; `None` if those that are remembered all matter more.
    fn remember(&mut self, now: Instant, model: &str) -> Option<&mut Model> {
        if !self.models.contains_key(model) {
            if self.models.len() >= MAX_MODELS {
                self.models.retain(|_, known| !known.is_stale(now));
            }
            if self.models.len() >= MAX_MODELS {
                let weights = self.models.iter().map(|(name, known)| (known.weight(now), name));
                let (weight, least) = weights.min()?;
                let (is_idle, least) = (weight.is_zero(), least.clone());
                // One that only might matter gives way; one that keeps questions back does not.
                is_idle.then(|| self.models.remove(&least))?;
            }
            self.models.insert(model.to_owned(), Model::new(self.limits));
        }
        self.models.get_mut(model)
    }

    /// Tells the breakers what came of a question about `model`. `counts`: it is the question's first failure here.
    fn tell(&mut self, now: Instant, model: &str, passed: Passed, (came, counts): (Came, bool)) -> Turned {
        let is_probe = |passed| matches!(passed, breaker::Passed::Probe(_));
        let mut turned = Turned::default();
        match came {
            Came::NoConnection if counts || is_probe(passed.key) => {
                turned.opened = self.breaker.failed(passed.key, now);
            }
            Came::NoConnection | Came::Nothing => self.breaker.left(passed.key, now),
            Came::Answer | Came::Outage => turned.has_closed = self.breaker.succeeded(passed.key),
        }
        let known = match came {
            Came::Outage => self.remember(now, model),
            _ => self.models.get_mut(model),
        };
        let Some(known) = known else { return turned };
        match came {
            Came::Outage if counts || is_probe(passed.model) => {
                turned.opened = turned.opened.max(known.breaker.failed(passed.model, now));
            }
            Came::Answer => turned.has_closed |= known.breaker.succeeded(passed.model),
            Came::Outage | Came::NoConnection | Came::Nothing => known.breaker.left(passed.model, now),
        }
        turned
    }
}

impl Pool {
    pub(super) fn new(keys: usize, limits: BreakerLimits) -> Self {
        Self { keys: std::iter::repeat_with(|| Key::new(limits)).take(keys).collect(), next: 0 }
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
                    return Ok((index, key.pass(now, model)));
                }
            }
        }
        Err(nearest)
    }

    /// The key whose rate limit ends first, if only that stands in the way.
    pub(super) fn least_limited(&mut self, now: Instant, model: &str) -> Option<(usize, Passed)> {
        let limited = self.keys.iter_mut().enumerate().filter_map(|(index, key)| match key.obstacle(now, model) {
            // A breaker may be open as well, for less time.
            Some(Obstacle::Limited(left)) if key.turns_away(now, model).is_none() => Some((left, index, key)),
            _ => None,
        });
        let (_, index, key) = limited.min_by_key(|(left, ..)| *left)?;
        Some((index, key.pass(now, model)))
    }

    /// Whether with every key a breaker is open for that model for longer than `wait`.
    pub(super) fn are_open_for(&self, now: Instant, model: &str, wait: Duration) -> bool {
        self.keys.iter().all(|key| key.turns_away(now, model).is_some_and(|left| left > wait))
    }

    /// Tells a key's breakers what came of a question that passed them; see `Key::tell`.
    pub(super) fn tell(
        &mut self,
        now: Instant,
        (index, model): (usize, &str),
        passed: Passed,
        came: (Came, bool),
    ) -> Turned {
        self.keys.get_mut(index).map(|key| key.tell(now, model, passed, came)).unwrap_or_default()
    }

    /// Whether that key rests for every model.
    pub(super) fn rests(&self, now: Instant, index: usize) -> bool {
        self.keys.get(index).is_some_and(|key| key.rests(now).is_some())
    }

    /// The key is limited for that model no more.
    pub(super) fn lift(&mut self, index: usize, model: &str) {
        if let Some(key) = self.keys.get_mut(index) {
            key.models.get_mut(model).into_iter().for_each(|known| known.limited_until = None);
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
                key.remember(now, model).into_iter().for_each(|known| known.limited_until = Some(until));
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

    const CLOSED: Passed = Passed { key: breaker::Passed::Closed, model: breaker::Passed::Closed };

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
        assert_eq!(pool.pick(now, "m", &[1]), Ok((2, CLOSED)));
        assert_eq!(pool.pick(now, "m", &[1, 2]), Err(Obstacle::Refused));
        assert!(!pool.rest(now, 0, "m", Rest::Refused), "nothing new");
    }

    #[test]
    fn a_limited_key_rests_for_its_model_alone_and_as_long_as_named() {
        let (mut pool, now) = pool(1);
        pool.rest(now, 0, "m", Rest::Limited(3 * SECOND));
        assert_eq!(pool.pick(now + SECOND, "m", &[]), Err(Obstacle::Limited(2 * SECOND)));
        assert_eq!(pool.pick(now + SECOND, "other", &[]), Ok((0, CLOSED)));
        assert_eq!(pool.pick(now + 3 * SECOND, "m", &[]), Ok((0, CLOSED)));
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
            assert_eq!(two.pick(now + LONG, "other", &[]), Ok((0, CLOSED)));
            let (mut one, now) = pool(1);
            assert!(!one.rest(now, 0, "m", rest));
            assert_eq!(one.pick(now, "m", &[]), Ok((0, CLOSED)));
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
        assert_eq!(pool.least_limited(now, "m"), Some((3, CLOSED)));
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

    /// The breaker of that key opens, for a model or for all.
    fn open(pool: &mut Pool, now: Instant, index: usize, came: Came) {
        for _ in 0..5 {
            pool.tell(now, (index, "m"), CLOSED, (came, true));
        }
    }

    #[test]
    fn a_key_that_fails_too_often_is_passed_over_and_tried_again_later() {
        for came in [Came::Outage, Came::NoConnection] {
            let (mut pool, now) = pool(2);
            open(&mut pool, now, 0, came);
            assert_eq!(picks(&mut pool, now, 2), [1, 1]);
            pool.rest(now, 1, "m", Rest::Limited(9 * SECOND));
            assert_eq!(pool.pick(now, "m", &[]), Err(Obstacle::Open(5 * SECOND)));
            let (index, probe) = pool.pick(now + 5 * SECOND, "m", &[]).unwrap();
            assert!(index == 0 && probe != CLOSED, "{probe:?}");
            assert_eq!(pool.least_limited(now, "m"), Some((1, CLOSED)), "the other does not merely rest");
            let best = pool.best(now, 1, "m", Failure::silent(UpstreamError::Unauthorized));
            assert!(matches!(best.error, UpstreamError::Unavailable { .. }), "{best:?}");
        }
    }

    #[test]
    fn a_model_that_fails_is_left_alone_and_other_models_are_not() {
        let (mut pool, now) = pool(1);
        open(&mut pool, now, 0, Came::Outage);
        assert_eq!(pool.pick(now, "m", &[]), Err(Obstacle::Open(5 * SECOND)));
        assert_eq!(pool.pick(now, "other", &[]), Ok((0, CLOSED)));
        assert!(pool.are_open_for(now, "m", 4 * SECOND) && !pool.are_open_for(now, "other", Duration::ZERO));
        let later = now + 5 * SECOND;
        let (_, probe) = pool.pick(later, "m", &[]).unwrap();
        assert!(pool.pick(later, "m", &[]).is_err(), "one probe at a time");
        assert_eq!(pool.tell(later, (0, "m"), probe, (Came::Answer, true)), Turned { opened: None, has_closed: true });
        assert!(pool.pick(later, "m", &[]).is_ok());
    }

    #[test]
    fn having_no_connection_counts_for_every_model() {
        let (mut pool, now) = pool(1);
        for n in 0..5 {
            let model = format!("model-{n}");
            pool.tell(now, (0, &model), CLOSED, (Came::NoConnection, true));
        }
        assert_eq!(pool.pick(now, "another", &[]), Err(Obstacle::Open(5 * SECOND)));
        assert!(pool.keys[0].models.is_empty(), "nothing is known of any model");
    }

    #[test]
    fn a_question_that_fails_again_counts_no_more_but_a_probe_does() {
        for came in [Came::Outage, Came::NoConnection] {
            let (mut pool, now) = pool(1);
            for n in 0..10 {
                pool.tell(now, (0, "m"), CLOSED, (came, n % 3 == 0));
            }
            assert!(pool.pick(now, "m", &[]).is_ok(), "four have failed");
            open(&mut pool, now, 0, came);
            let later = now + 5 * SECOND;
            let (_, probe) = pool.pick(later, "m", &[]).unwrap();
            assert_eq!(pool.tell(later, (0, "m"), probe, (came, false)).opened, Some(10 * SECOND));
        }
    }

    #[test]
    fn nothing_passes_an_open_breaker_because_the_key_is_limited_for_longer() {
        let (mut pool, now) = pool(1);
        open(&mut pool, now, 0, Came::Outage);
        pool.rest(now, 0, "m", Rest::Limited(9 * SECOND));
        assert_eq!(pool.keys[0].obstacle(now, "m"), Some(Obstacle::Limited(9 * SECOND)), "what takes longest");
        assert_eq!(pool.least_limited(now + 4 * SECOND, "m"), None);
        let (_, probe) = pool.least_limited(now + 5 * SECOND, "m").unwrap();
        assert_ne!(probe, CLOSED);
        assert_eq!(pool.least_limited(now + 5 * SECOND, "m"), None, "one probe at a time");
    }

    #[test]
    fn memory_is_bounded_and_what_keeps_questions_back_is_kept() {
        let (mut pool, now) = pool(1);
        pool.rest(now, 0, "limited", Rest::Limited(30 * SECOND));
        open(&mut pool, now, 0, Came::Outage);
        for n in 0..2 * MAX_MODELS {
            pool.tell(now, (0, &n.to_string()), CLOSED, (Came::Outage, true));
        }
        assert_eq!(pool.keys[0].models.len(), MAX_MODELS);
        assert!(pool.pick(now, "limited", &[]).is_err() && pool.pick(now, "m", &[]).is_err());
        for n in 0..2 * MAX_MODELS {
            pool.rest(now, 0, &n.to_string(), Rest::Limited(SECOND));
        }
        assert_eq!(pool.keys[0].models.len(), MAX_MODELS);
        assert!(pool.pick(now, "limited", &[]).is_err() && pool.pick(now, "m", &[]).is_err());
        pool.rest(now + 20 * SECOND, 0, "later", Rest::Limited(SECOND));
        assert_eq!(pool.keys[0].models.len(), 2, "what is over is forgotten when there is no room");
    }
}
