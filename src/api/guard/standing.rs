//! Where a caller stands with its limits, as answers say it: OpenAI's headers.
//! Source: <https://platform.openai.com/docs/guides/rate-limits>

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    config::RateLimits,
    limits::{Quota, Standing},
};

/// How often one stream may be read again by one caller within a minute, before that counts as a storm.
pub(crate) const RECONNECTS: Quota = Quota { what: "reconnects", per_minute: 30, burst: 30 };

/// How often the state of one stream may be asked for by one caller: as often as somebody would look who has no events.
pub(super) const POLLS: Quota = Quota { what: "polls", per_minute: 120, burst: 120 };

/// The quota of requests that is configured.
pub(crate) fn requests_quota(limits: &RateLimits) -> Option<Quota> {
    let quota = |limit| Quota { what: "requests", per_minute: u64::from(limit), burst: u64::from(limits.burst) };
    limits.requests_per_minute.map(quota)
}

/// The quota of tokens that is configured: a whole minute's may be used at once.
pub(crate) fn tokens_quota(limits: &RateLimits) -> Option<Quota> {
    let quota = |limit| Quota { what: "tokens", per_minute: u64::from(limit), burst: u64::from(limit) };
    limits.tokens_per_minute.map(quota)
}

const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

/// Every name of [`tell`].
pub(crate) fn names() -> impl Iterator<Item = HeaderName> {
    REQUESTS.into_iter().chain(TOKENS).map(HeaderName::from_static)
}

/// Writes where the caller stands with one quota.
pub(super) fn tell(headers: &mut HeaderMap, quota: Quota, standing: &Standing) {
    let [limit, remaining, reset] = if quota.what == "requests" { REQUESTS } else { TOKENS };
    headers.insert(HeaderName::from_static(limit), HeaderValue::from(quota.per_minute));
    headers.insert(HeaderName::from_static(remaining), HeaderValue::from(standing.remaining));
    if let Ok(value) = HeaderValue::try_from(span(standing.reset)) {
        headers.insert(HeaderName::from_static(reset), value);
    }
}

/// As OpenAI writes spans of time: `6m0s`, `1s`, `20ms`.
fn span(time: Duration) -> String {
    // Never short of the truth: at the time that is told, it must be so.
    let millis = time.as_nanos().div_ceil(1_000_000);
    let (seconds, rest) = (millis / 1000, millis % 1000);
    match (seconds, rest) {
        (0, rest) => format!("{rest}ms"),
        (seconds @ 1..60, 0) => format!("{seconds}s"),
        (seconds @ 1..60, rest) => format!("{seconds}.{rest:03}s"),
        (seconds, rest) => {
            let seconds = seconds + u128::from(rest > 0);
            format!("{}m{}s", seconds / 60, seconds % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_openai_writes_them_and_never_too_short() {
        for (nanos, text) in [
            (0, "0ms"),
            (1, "1ms"),
            (20_000_000, "20ms"),
            (1_000_000_000, "1s"),
            (1_000_000_001, "1.001s"),
            (59_999_000_000, "59.999s"),
            (360_000_000_000, "6m0s"),
            (360_000_000_001, "6m1s"),
            (119_000_000_001, "2m0s"),
        ] {
            assert_eq!(span(Duration::from_nanos(nanos)), text);
        }
    }
}
