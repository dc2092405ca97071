//! What is asked again, and after which wait.
//!
//! | how it failed | asked again |
//! |---|---|
//! | no connection, or it broke before the head of an answer | yes |
//! | no connection in time | once |
//! | no head of an answer in time | no: it may have been billed |
//! | no secure connection | no |
//! | status 408, 409, 429, or from 500 | yes |
//! | another status | no |
//! | with `x-should-retry` | as it says, whatever the status |
//! | the account has no money | no, whatever it says |
//!
//! Behind the head of an answer nothing is: it has been billed, and a stream's reader has seen its words. Repairing a
//! parameter, and trying another key, are no retries: neither is in here.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::{
    StatusCode,
    header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER},
};
use uuid::Uuid;

use crate::openai::error::{ConnectFailure, Stage, UpstreamError};

/// A longer wait is the caller's to decide on.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(8);

/// How an attempt failed, before the head of an answer that is one.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: UpstreamError,
    /// `None` when there was no answer at all.
    pub(super) status: Option<StatusCode>,
    /// What `x-should-retry` says.
    pub(super) advice: Option<bool>,
    pub(super) retry_after: Option<Duration>,
    /// The keys against which the question has counted as a failure; see `keys`.
    pub(super) counted: Vec<usize>,
}

impl Failure {
    /// No answer came.
    pub(super) fn silent(error: UpstreamError) -> Self {
        Self { error, status: None, advice: None, retry_after: None, counted: Vec::new() }
    }

    /// An answer came and was a refusal.
    pub(super) fn refused(status: StatusCode, headers: &HeaderMap, error: UpstreamError) -> Self {
        let advice = match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
            Some(b"true") => Some(true),
            Some(b"false") => Some(false),
            _ => None,
        };
        Self { error, status: Some(status), advice, retry_after: retry_after(headers), counted: Vec::new() }
    }

    /// A rate limit that will be over after `wait`.
    pub(super) fn limited(error: UpstreamError, wait: Duration) -> Self {
        Self {
            error,
            status: Some(StatusCode::TOO_MANY_REQUESTS),
            advice: None,
            retry_after: Some(wait),
            counted: Vec::new(),
        }
    }

    /// Whether it cannot be told that the upstream did not take the question. One that answers with a status refused it,
    /// but for a success whose form is of no use.
    pub(super) fn may_have_been_billed(&self) -> bool {
        self.status.map_or_else(|| self.error.may_have_been_billed(), |status| status.is_success())
    }

    /// Whether it speaks for the upstream being down, at least for this model, rather than for the question or the key.
    pub(super) fn is_outage(&self) -> bool {
        self.status.is_none_or(|status| status.is_server_error())
    }

    /// Whether there was no connection at all, which is the same for every model.
    pub(super) fn is_disconnection(&self) -> bool {
        let error = &self.error;
        let is_connecting =
            matches!(error, UpstreamError::Unreachable(_) | UpstreamError::Timeout { stage: Stage::Connect, .. });
        self.status.is_none() && is_connecting
    }

    fn worth(&self) -> Worth {
        let status = match (&self.error, self.status) {
            (UpstreamError::QuotaExceeded, _) => return Worth::Nothing,
            (_, Some(status)) => status,
            (UpstreamError::Timeout { stage: Stage::Connect, .. }, None) => return Worth::OneTry,
            (UpstreamError::Unreachable(ConnectFailure::Tls | ConnectFailure::Proxy(_)), None) => {
                return Worth::Nothing;
            }
            (UpstreamError::Unreachable(_) | UpstreamError::Interrupted, None) => return Worth::Trying,
            (_, None) => return Worth::Nothing,
        };
        let by_status = match status.as_u16() {
            // One that is larger than its limit is a 429 too.
            429 => matches!(self.error, UpstreamError::RateLimited { .. }),
            status => matches!(status, 408 | 409 | 500..),
        };
        if self.advice.unwrap_or(by_status) { Worth::Trying } else { Worth::Nothing }
    }
}

/// What asking again is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worth {
    Trying,
    /// If it was not tried for that reason before.
    OneTry,
    Nothing,
}

/// How often one question may still be asked again.
#[derive(Debug)]
pub(super) struct Retries {
    left: u32,
    made: u32,
    one_try_left: bool,
}

impl Retries {
    pub(super) fn new(most: u32) -> Self {
        Self { left: most, made: 0, one_try_left: true }
    }

    /// How long to wait before asking again, and that it will be; `None` when it is not to be asked again. A wait
    /// that would not be over within `time_left` is none.
    pub(super) fn next(&mut self, failure: &Failure, time_left: Duration) -> Option<Duration> {
        let worth = failure.worth();
        if self.left == 0 || worth == Worth::Nothing || worth == Worth::OneTry && !self.one_try_left {
            return None;
        }
        // "At once" is no time that a limit takes to pass; OpenAI's own library reads it as nothing, too.
        let told = failure.retry_after.filter(|wait| !wait.is_zero());
        let wait = told.unwrap_or_else(|| backoff(self.made, chance()));
        if wait > LONGEST_WAIT || wait >= time_left {
            return None;
        }
        self.one_try_left &= worth != Worth::OneTry;
        self.left -= 1;
        self.made += 1;
        Some(wait)
    }
}

/// 0.5 s, doubled for each retry before this one, at most 8 s; less up to a quarter by `chance`, which is 0 to 1, so
/// that those who failed together do not come back together.
fn backoff(made: u32, chance: f64) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(made));
    doubled.min(LONGEST_BACKOFF).mul_f64(1.0 - 0.25 * chance)
}

fn chance() -> f64 {
    let (random, ..) = Uuid::new_v4().as_fields();
    f64::from(random) / f64::from(u32::MAX)
}

/// `retry-after-ms`, else `retry-after` in seconds or as a date; nonsense is none.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let date = |name: &str| DateTime::parse_from_rfc2822(text(name)?).ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number(RETRY_AFTER.as_str()));
    let wait = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        None => {
            // By the clock of whoever wrote the date, if it is shown.
            let now = date(DATE.as_str()).map_or_else(Utc::now, |now| now.to_utc());
            (date(RETRY_AFTER.as_str())?.to_utc() - now).to_std().unwrap_or_default()
        }
    };
    Some(wait).filter(|wait| *wait <= Duration::from_secs(24 * 3600))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{error::Said, redact::Secrets};

    const AGES: Duration = Duration::from_secs(900);

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn refused(status: u16, pairs: &[(&'static str, &str)]) -> Failure {
        let error = match status {
            429 => UpstreamError::RateLimited { message: Said::new("", &Secrets::default()), retry_after: None },
            402 => UpstreamError::QuotaExceeded,
            _ => UpstreamError::Server { status, retry_after: None },
        };
        Failure::refused(StatusCode::from_u16(status).unwrap(), &headers(pairs), error)
    }

    fn wait(failure: &Failure) -> Option<Duration> {
        Retries::new(2).next(failure, AGES)
    }

    #[test]
    fn what_may_pass_is_asked_again_and_what_would_not_is_not() {
        for status in [408, 409, 429, 500, 502, 503, 504, 520, 529] {
            assert!(wait(&refused(status, &[])).is_some(), "{status}");
        }
        for status in [300, 307, 400, 401, 402, 403, 404, 413, 418, 422] {
            assert!(wait(&refused(status, &[])).is_none(), "{status}");
        }
        let limit = Duration::from_secs(1);
        for (error, again) in [
            (UpstreamError::Unreachable(ConnectFailure::Refused), true),
            (UpstreamError::Unreachable(ConnectFailure::UnknownHost), true),
            (UpstreamError::Unreachable(ConnectFailure::Tls), false),
            (UpstreamError::Unreachable(ConnectFailure::Proxy("407")), false),
            (UpstreamError::Interrupted, true),
            (UpstreamError::Timeout { stage: Stage::Connect, limit }, true),
            (UpstreamError::Timeout { stage: Stage::FirstByte, limit }, false),
            (UpstreamError::Timeout { stage: Stage::Total, limit }, false),
        ] {
            assert_eq!(wait(&Failure::silent(error.clone())).is_some(), again, "{error:?}");
        }
    }

    #[test]
    fn upstreams_advice_counts_more_than_its_status_and_less_than_an_empty_account() {
        for (status, advice, again) in [
            (500, "false", false),
            (429, "false", false),
            (400, "true", true),
            (401, "true", true),
            (402, "true", false),
            (500, "perhaps", true),
            (400, "perhaps", false),
        ] {
            let failure = refused(status, &[("x-should-retry", advice)]);
            assert_eq!(wait(&failure).is_some(), again, "{status} {advice}");
        }
        let too_large = UpstreamError::InvalidRequest(Said::new("", &Secrets::default()));
        let too_large = Failure::refused(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), too_large);
        assert_eq!(wait(&too_large), None);
    }

    #[test]
    fn a_question_is_asked_again_so_often_and_for_want_of_a_connection_in_time_once() {
        let limit = Duration::from_secs(1);
        let slow = Failure::silent(UpstreamError::Timeout { stage: Stage::Connect, limit });
        let broken = refused(500, &[]);
        let mut retries = Retries::new(3);
        let again = [&slow, &slow, &broken, &broken, &broken].map(|failure| retries.next(failure, AGES).is_some());
        assert_eq!(again, [true, false, true, true, false]);
        assert_eq!(Retries::new(0).next(&broken, AGES), None);
    }

    #[test]
    fn the_wait_is_upstreams_own_up_to_a_minute_and_fits_the_time_that_is_left() {
        let told = |value: &str| wait(&refused(500, &[("retry-after", value)]));
        assert_eq!(told("60"), Some(Duration::from_secs(60)));
        assert_eq!(told("0.25"), Some(Duration::from_millis(250)));
        assert!(told("0").is_some_and(|wait| (375..=500).contains(&wait.as_millis())), "as if it had said nothing");
        assert_eq!(told("61"), None);
        let minute = refused(429, &[("retry-after", "60")]);
        assert_eq!(Retries::new(2).next(&minute, Duration::from_secs(60)), None);
    }

    #[test]
    fn without_upstreams_word_the_wait_doubles_up_to_8_seconds_and_differs() {
        let millis = |chance| [0, 1, 2, 3, 4, 5, 99].map(|made| backoff(made, chance).as_millis());
        assert_eq!(millis(0.0), [500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(millis(1.0), [375, 750, 1500, 3000, 6000, 6000, 6000]);
        let waits: Vec<_> = (0..8).map(|_| wait(&refused(500, &[])).unwrap()).collect();
        assert!(waits.iter().all(|wait| (375..=500).contains(&wait.as_millis())), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }

    #[test]
    fn retry_after_is_read_in_every_form_and_nonsense_is_ignored() {
        let told = |pairs: &[(&'static str, &str)]| retry_after(&headers(pairs));
        assert_eq!(told(&[("retry-after", "7")]), Some(Duration::from_secs(7)));
        assert_eq!(told(&[("retry-after", "7"), ("retry-after-ms", "250")]), Some(Duration::from_millis(250)));
        for nonsense in ["soon", "-1", "NaN", "1e30", "", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(told(&[("retry-after", nonsense)]), None, "{nonsense}");
        }
        // By upstream's own clock, however wrong it is.
        let then = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(told(&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT"), then]), Some(Duration::from_secs(3)));
        assert_eq!(told(&[("retry-after", "Sun, 06 Nov 1994 08:49:30 GMT"), then]), Some(Duration::ZERO));
        let soon = (Utc::now() + Duration::from_secs(100)).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let wait = told(&[("retry-after", &soon)]).unwrap();
        assert!((90..=100).contains(&wait.as_secs()), "{wait:?}");
    }
}
