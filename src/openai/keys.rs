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
        error::UpstreamError,
        pool::{Came, Obstacle, Passed, Pool, Rest},
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
    pub(super) fn first<'a>(&'a self, model: &'a str) -> Result<Pass<'a>, UpstreamError> {
        self.pick(model, Asked::default()).map_err(UpstreamError::from)
    }

    /// A key for a question that failed with `failure` and has waited as long as it had to. Where no time was named, that is
    /// less than its keys rest, and it goes out with the one that rests least.
    ///
    /// # Errors
    /// As above.
    pub(super) fn after_wait<'a>(&'a self, model: &'a str, failure: &Failure) -> Result<Pass<'a>, UpstreamError> {
        let asked = || Asked { tried: Vec::new(), failed: failure.counted.clone() };
        self.pick(model, asked()).or_else(|obstacle| {
            let (index, passed) = self.lock().least_limited(Instant::now(), model).ok_or(obstacle)?;
            Ok(Pass { keys: self, model, index, passed: Some(passed), is_early: true, asked: asked() })
        })
    }

    /// Whether with every key a breaker is open for that model for longer than `wait`.
    pub(super) fn are_open_for(&self, model: &str, wait: Duration) -> bool {
        self.lock().are_open_for(Instant::now(), model, wait)
    }

    /// Every key for what says nothing about chats, those that rest last. Nothing that comes of it is held against them.
    pub(super) fn for_the_model_list(&self) -> Vec<&HeaderValue> {
        let (now, pool) = (Instant::now(), self.lock());
        let mut order: Vec<_> = self.bearers.iter().enumerate().collect();
        order.sort_by_key(|(index, _)| pool.rests(now, *index));
        order.into_iter().map(|(_, bearer)| bearer).collect()
    }

    fn pick<'a>(&'a self, model: &'a str, asked: Asked) -> Result<Pass<'a>, Obstacle> {
        let (index, passed) = self.lock().pick(Instant::now(), model, &asked.tried)?;
        Ok(Pass { keys: self, model, index, passed: Some(passed), is_early: false, asked })
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With which keys a question was asked already.
#[derive(Debug, Default)]
struct Asked {
    /// Those that have been refused since it last waited.
    tried: Vec<usize>,
    /// Those against which it has counted as a failure.
    failed: Vec<usize>,
}

/// One attempt with one key. Dropped without a word about what came of it, it counts as left by its caller.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    keys: &'a Keys,
    model: &'a str,
    index: usize,
    /// By the breakers, until they have been told what came of it.
    passed: Option<Passed>,
    /// Whether the key was to rest longer.
    is_early: bool,
    asked: Asked,
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
    pub(super) fn succeeded(mut self) {
        self.tell(Came::Answer);
        // Others that succeed now may have been sent before the key was limited.
        if self.is_early {
            self.keys.lock().lift(self.index, self.model);
        }
    }

    /// The attempt failed. Where that is the key's fault: another key, which may be asked with at once.
    ///
    /// # Errors
    /// The failure when there is none, or what would be waited for instead, if another key is nearer to serving.
    pub(super) fn failed(mut self, mut failure: Failure) -> Result<Pass<'a>, Failure> {
        let now = Instant::now();
        self.tell(match &failure {
            failure if failure.is_disconnection() => Came::NoConnection,
            failure if failure.is_outage() => Came::Outage,
            _ => Came::Answer,
        });
        let mut asked = std::mem::take(&mut self.asked);
        let Some(rest) = Rest::after(&failure) else {
            failure.counted = asked.failed;
            return Err(failure);
        };
        let (keys, index, model) = (self.keys, self.index, self.model);
        if keys.lock().rest(now, index, model, rest) {
            let seconds = rest.time().as_secs_f64();
            tracing::warn!(key = self.number(), model, reason = rest.reason(), seconds, "a key rests");
        }
        asked.tried.push(index);
        let counted = asked.failed.clone();
        keys.pick(model, asked).map_err(|_| Failure { counted, ..keys.lock().best(now, index, model, failure) })
    }

    /// Tells the breakers what came of it, once.
    fn tell(&mut self, came: Came) {
        let Some(passed) = self.passed.take() else { return };
        let counts = !self.asked.failed.contains(&self.index);
        let turned = self.keys.lock().tell(Instant::now(), (self.index, self.model), passed, (came, counts));
        if counts && matches!(came, Came::Outage | Came::NoConnection) {
            self.asked.failed.push(self.index);
        }
        // A model's name is a caller's text, but one that has been checked.
        let (key, model) = (self.number(), if came == Came::NoConnection { "every model" } else { self.model });
        if let Some(pause) = turned.opened {
            tracing::warn!(key, model, seconds = pause.as_secs_f64(), "a key fails too often and is left alone");
        }
        if turned.has_closed {
            tracing::info!(key, model, "a key is answered again");
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.tell(Came::Nothing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::error::ConnectFailure;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_makes_room_for_the_next() {
        let keys = Keys::new(&["sk-1".into()], BreakerLimits::default()).unwrap();
        let outage = || Failure::silent(UpstreamError::Interrupted);
        for _ in 0..5 {
            assert!(keys.first("m").unwrap().failed(outage()).is_err());
        }
        assert!(matches!(keys.first("m").unwrap_err(), UpstreamError::Unavailable { .. }));
        assert!(keys.are_open_for("m", 4 * SECOND) && !keys.are_open_for("m", 5 * SECOND));
        tokio::time::advance(5 * SECOND).await;
        let probe = keys.first("m").unwrap();
        assert!(keys.first("m").is_err());
        drop(probe);
        keys.first("m").unwrap().succeeded();
        drop((keys.first("m").unwrap(), keys.first("m").unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_counts_once_however_often_it_is_asked_again() {
        let keys = Keys::new(&["sk-1".into()], BreakerLimits::default()).unwrap();
        for error in [UpstreamError::Interrupted, UpstreamError::Unreachable(ConnectFailure::Refused)] {
            for _ in 0..4 {
                let mut failure = keys.first("m").unwrap().failed(Failure::silent(error.clone())).unwrap_err();
                for _ in 0..9 {
                    let again = keys.after_wait("m", &failure).unwrap();
                    failure = match again.failed(Failure::silent(error.clone())) {
                        Err(failure) => failure,
                        Ok(_) => panic!("there is one key"),
                    };
                }
            }
            drop(keys.first("m").unwrap());
            tokio::time::advance(Duration::from_secs(11)).await;
        }
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
