//! The keys, and with which of them the upstream is asked next. `pool` decides; this file holds the keys themselves, the
//! lock and the clock.
//!
//! A question goes out with a [`Pass`], which is told what came of it: then the key rests or its breaker counts, and
//! another key may serve at once.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::header::{HeaderValue, InvalidHeaderValue};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::{
    config::BreakerLimits,
    openai::{
        breaker::Passed,
        error::UpstreamError,
        pool::{Obstacle, Pool, Rest},
        retry::Failure,
    },
};

/// Every key, and what is known of each. No key can be read from it but as a header.
#[derive(Debug)]
pub(super) struct Keys {
    /// `Bearer …`, marked as sensitive.
    bearers: Vec<HeaderValue>,
    pool: Mutex<Pool>,
}

impl Keys {
    /// # Errors
    /// A key that cannot be sent in a header.
    pub(super) fn new(keys: &[SecretString], limits: BreakerLimits) -> Result<Self, InvalidHeaderValue> {
        let bearer = |key: &SecretString| {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))?;
            bearer.set_sensitive(true);
            Ok(bearer)
        };
        let pool = Mutex::new(Pool::new(keys.len(), limits));
        Ok(Self { bearers: keys.iter().map(bearer).collect::<Result<_, _>>()?, pool })
    }

    /// A key for a question about `model`.
    ///
    /// # Errors
    /// None can be asked with now, and why.
    pub(super) fn first(&self, model: &str) -> Result<Pass<'_>, UpstreamError> {
        self.pick(model, Vec::new()).map_err(UpstreamError::from)
    }

    /// A key for a question that has waited as long as it had to. Where no time was named, that is less than its keys
    /// rest, and it goes out with the one that rests least.
    ///
    /// # Errors
    /// As above.
    pub(super) fn after_wait(&self, model: &str) -> Result<Pass<'_>, UpstreamError> {
        self.first(model).or_else(|error| {
            let (index, passed) = self.lock().least_limited(Instant::now(), model).ok_or(error)?;
            Ok(Pass { keys: self, index, passed: Some(passed), is_early: true, tried: Vec::new() })
        })
    }

    /// Whether the breaker of every key is open for longer than `wait`.
    pub(super) fn are_open_for(&self, wait: Duration) -> bool {
        self.lock().are_open_for(Instant::now(), wait)
    }

    /// Every key for what says nothing about chats, those that rest last. Nothing that comes of it is held against them.
    pub(super) fn for_the_model_list(&self) -> Vec<&HeaderValue> {
        let (now, pool) = (Instant::now(), self.lock());
        let mut order: Vec<_> = self.bearers.iter().enumerate().collect();
        order.sort_by_key(|(index, _)| pool.rests(now, *index));
        order.into_iter().map(|(_, bearer)| bearer).collect()
    }

    fn pick(&self, model: &str, tried: Vec<usize>) -> Result<Pass<'_>, Obstacle> {
        let (index, passed) = self.lock().pick(Instant::now(), model, &tried)?;
        Ok(Pass { keys: self, index, passed: Some(passed), is_early: false, tried })
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt with one key. Dropped without a word about what came of it, it counts as left by its caller.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    keys: &'a Keys,
    index: usize,
    /// By the key's breaker, until that has been told what came of it.
    passed: Option<Passed>,
    /// Whether the key was to rest longer.
    is_early: bool,
    /// The keys that have been refused for the same question since it last waited.
    tried: Vec<usize>,
}

impl<'a> Pass<'a> {
    /// The header that carries the key.
    pub(super) fn bearer(&self) -> HeaderValue {
        self.keys.bearers.get(self.index).cloned().unwrap_or_else(|| HeaderValue::from_static(""))
    }

    /// The key's place in the list, from 1: its name in the log.
    pub(super) fn number(&self) -> usize {
        self.index + 1
    }

    /// The upstream has begun to answer.
    pub(super) fn succeeded(mut self, model: &str) {
        self.tell_breaker(Instant::now(), false);
        // Others that succeed now may have been sent before the key was limited.
        if self.is_early {
            self.keys.lock().lift(self.index, model);
        }
    }

    /// The attempt failed. Where that is the key's fault: another key, which may be asked with at once.
    ///
    /// # Errors
    /// The failure when there is none, or what would be waited for instead, if another key is nearer to serving.
    pub(super) fn failed(mut self, model: &str, failure: Failure) -> Result<Pass<'a>, Failure> {
        let now = Instant::now();
        self.tell_breaker(now, failure.is_outage());
        let Some(rest) = Rest::after(&failure) else {
            return Err(failure);
        };
        let (keys, index) = (self.keys, self.index);
        if keys.lock().rest(now, index, model, rest) {
            let seconds = rest.time().as_secs_f64();
            tracing::warn!(key = self.number(), model, reason = rest.reason(), seconds, "a key rests");
        }
        let mut tried = std::mem::take(&mut self.tried);
        tried.push(index);
        keys.pick(model, tried).map_err(|_| keys.lock().best(now, index, model, failure))
    }

    fn tell_breaker(&mut self, now: Instant, is_outage: bool) {
        let Some(passed) = self.passed.take() else { return };
        let (opened, closed) = match self.keys.lock().breaker(self.index) {
            Some(breaker) if is_outage => (breaker.failed(passed, now), false),
            Some(breaker) => (None, breaker.succeeded(passed)),
            None => (None, false),
        };
        if let Some(pause) = opened {
            tracing::warn!(
                key = self.number(),
                seconds = pause.as_secs_f64(),
                "a key fails too often and is left alone"
            );
        }
        if closed {
            tracing::info!(key = self.number(), "a key is answered again");
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(passed) = self.passed.take()
            && let Some(breaker) = self.keys.lock().breaker(self.index)
        {
            breaker.left(passed, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_makes_room_for_the_next() {
        let keys = Keys::new(&["sk-1".into()], BreakerLimits::default()).unwrap();
        let outage = || Failure::silent(UpstreamError::Interrupted);
        for _ in 0..5 {
            assert!(keys.first("m").unwrap().failed("m", outage()).is_err());
        }
        assert!(matches!(keys.first("m").unwrap_err(), UpstreamError::Unavailable { .. }));
        assert!(keys.are_open_for(4 * SECOND) && !keys.are_open_for(5 * SECOND));
        tokio::time::advance(5 * SECOND).await;
        let probe = keys.first("m").unwrap();
        assert!(keys.first("m").is_err());
        drop(probe);
        keys.first("m").unwrap().succeeded("m");
        drop((keys.first("m").unwrap(), keys.first("m").unwrap()));
    }

    #[test]
    fn no_key_is_shown() {
        let keys = Keys::new(&["sk-canary-one".into(), "sk-canary-two".into()], BreakerLimits::default()).unwrap();
        let pass = keys.first("m").unwrap();
        let shown = format!("{keys:?} {pass:?}");
        assert!(!shown.contains("canary"), "{shown}");
        assert_eq!(pass.bearer(), "Bearer sk-canary-one");
        let unsendable = format!("{:?}", Keys::new(&["sk-canary\n".into()], BreakerLimits::default()));
        assert!(!unsendable.contains("canary"), "{unsendable}");
    }
}
