//! Several keys: whose turn it is, which ones rest and for how long, and that none is ever shown.

use ai_service::config::Upstream;
use serde_json::{Value, json};

use crate::{
    support::{
        ScriptedUpstream, TestApp,
        events::{Script, contents},
        log,
    },
    upstream_retries::{SOON, ask, error, start, start_with, unsupported},
};

/// None of them may ever be seen but by the upstream.
pub const KEYS: [&str; 3] = ["sk-canary-first-7d1f", "sk-canary-second-90ab", "sk-canary-third-c3e8"];

/// The service with so many keys. It asks nothing again: another key is no retry.
pub async fn start_with_keys(upstream: &ScriptedUpstream, count: usize) -> TestApp {
    start_with(upstream, |config| {
        config.max_retries = 0;
        give_keys(config, count);
    })
    .await
}

pub fn give_keys(config: &mut Upstream, count: usize) {
    config.api_keys = KEYS[..count].iter().map(|key| (*key).into()).collect();
}

/// The place in the list of the key of each request so far, from 1.
pub fn asked_with(upstream: &ScriptedUpstream) -> Vec<usize> {
    let place = |bearer: Option<&str>| {
        let key = bearer.unwrap().strip_prefix("Bearer ").unwrap().to_owned();
        KEYS.iter().position(|known| *known == key).unwrap() + 1
    };
    upstream.seen().iter().map(|seen| place(seen.header("authorization"))).collect()
}

const MINUTE: &str = "retry-after: 60\r\n";

#[tokio::test]
async fn keys_take_turns() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_keys(&upstream, 3).await;
    for _ in 0..5 {
        assert_eq!(ask(&app).await.status, 200);
    }
    assert_eq!(asked_with(&upstream), [1, 2, 3, 1, 2]);
}

#[tokio::test]
async fn a_key_that_is_refused_rests_and_the_next_one_serves_at_once() {
    for (status, code) in [
        (401, "invalid_api_key"),
        (429, "insufficient_quota"),
        (400, "billing_hard_limit_reached"),
        (429, "rate_limit_exceeded"),
    ] {
        for advice in ["", "x-should-retry: false\r\n"] {
            let upstream = ScriptedUpstream::start().await;
            let app = start_with_keys(&upstream, 2).await;
            upstream.then_status(status, &[MINUTE, advice].concat(), &error("m", code));
            for _ in 0..3 {
                assert_eq!(ask(&app).await.status, 200, "{code}");
            }
            assert_eq!(asked_with(&upstream), [1, 2, 2, 2], "{code}");
        }
    }
}

#[tokio::test]
async fn a_stream_moves_on_to_the_next_key_unseen() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_keys(&upstream, 3).await;
    upstream.then_status(401, "", "{}").then_status(429, MINUTE, "{}").then(Script::answer(&["안녕"]));
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(contents(&events), ["안녕"]);
    assert_eq!(asked_with(&upstream), [1, 2, 3]);
}

#[tokio::test]
async fn each_key_is_tried_once_and_then_the_best_error_is_told_without_asking() {
    let limited = |wait| (429, wait, error("theirs", "rate_limit_exceeded"));
    let no_money = || (429, MINUTE, error("m", "insufficient_quota"));
    let refused = || (401, MINUTE, error("m", "invalid_api_key"));
    for (refusals, status, code, wait) in [
        ([limited(MINUTE), limited("retry-after: 30\r\n"), limited(MINUTE)], 429, "upstream_rate_limited", Some(30)),
        ([limited("retry-after: 30\r\n"), no_money(), refused()], 429, "upstream_rate_limited", Some(30)),
        ([refused(), refused(), limited("retry-after: 90\r\n")], 429, "upstream_rate_limited", Some(90)),
        ([refused(), no_money(), refused()], 503, "upstream_quota", None),
        ([refused(), refused(), refused()], 502, "upstream_auth", None),
    ] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with_keys(&upstream, 3).await;
        for (status, headers, body) in &refusals {
            upstream.then_status(*status, headers, body);
        }
        for _ in 0..3 {
            let answer = ask(&app).await;
            assert_eq!(answer.error(status).1, code);
            let told: Option<u64> = answer.header("retry-after").map(|told| told.parse().unwrap());
            assert_eq!(told.is_some(), wait.is_some());
            assert!(told.is_none_or(|told| told <= wait.unwrap() && told + 10 > wait.unwrap()), "{told:?}");
        }
        assert_eq!(asked_with(&upstream), [1, 2, 3]);
        let last = ask(&app).await.text();
        assert!(!last.contains("theirs"), "what upstream said was for another caller: {last}");
    }
}

#[tokio::test]
async fn a_limited_key_serves_other_models() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_keys(&upstream, 1).await;
    upstream.then_status(429, MINUTE, "{}");
    assert_eq!(ask(&app).await.status, 429);
    assert_eq!(ask(&app).await.status, 429);
    assert_eq!(app.chat(&json!({"message": "x", "model": "another"})).await.status, 200);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn when_every_key_is_limited_the_question_waits_for_the_first_to_wake() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| give_keys(config, 2)).await;
    upstream.then_status(429, "retry-after-ms: 50\r\n", "{}").then_status(429, MINUTE, "{}");
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(asked_with(&upstream), [1, 2, 1]);
}

#[tokio::test]
async fn a_limit_without_a_time_is_tried_again_by_who_has_waited_and_lifted_when_it_is_over() {
    let upstream = ScriptedUpstream::start().await;
    let app = start(&upstream).await;
    upstream.then_status(429, "", "{}");
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn what_is_not_the_keys_fault_moves_to_no_other_key() {
    for (status, code) in [(400, "invalid_value"), (403, "model_not_allowed"), (404, "model_not_found"), (500, "")] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with_keys(&upstream, 2).await;
        upstream.then_status(status, "", &error("m", code));
        assert!(ask(&app).await.status.as_u16() >= 400);
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(asked_with(&upstream), [1, 2, 1], "{code}: none rests");
    }
}

#[tokio::test]
async fn the_only_key_is_asked_with_whatever_it_was_refused_for() {
    for (status, code) in [(401, "invalid_api_key"), (429, "insufficient_quota")] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with_keys(&upstream, 1).await;
        upstream.then_status(status, MINUTE, &error("m", code));
        assert!(ask(&app).await.status.as_u16() >= 500);
        assert_eq!(ask(&app).await.status, 200, "a bill that is paid shows at once");
    }
}

#[tokio::test]
async fn a_retry_goes_out_with_the_next_key() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| give_keys(config, 3)).await;
    upstream.then_status(500, SOON, "{}").then_status(401, "", "{}").then_status(400, "", &unsupported("max_tokens"));
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(asked_with(&upstream), [1, 2, 3, 3]);
}

#[tokio::test]
async fn the_model_list_takes_any_key_and_speaks_for_no_chat() {
    for status in [401, 403, 429] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with_keys(&upstream, 2).await;
        upstream.then_status(status, MINUTE, "{}");
        assert_eq!(app.get("/health").await.json()["status"], "healthy");
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(asked_with(&upstream), [1, 2, 1], "a key that may not list may chat");
    }
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| give_keys(config, 3)).await;
    upstream.then_status(500, SOON, "{}");
    assert_eq!(app.get("/health").await.json()["status"], "unhealthy");
    assert_eq!(asked_with(&upstream), [1], "asked again in 15 s, by who wants to know");
}

#[tokio::test]
async fn the_log_names_a_key_by_its_place_and_shows_none() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| give_keys(config, 3)).await;
    let said = format!("Incorrect API key provided: {}", KEYS[0]);
    upstream.then_status(401, "", &error(&said, "invalid_api_key")).then_status(500, SOON, &error(KEYS[1], ""));
    upstream.then_status(400, "", &error(&KEYS.join(" and "), "invalid_value"));
    let answer = app.chat(&json!({"message": "x", "model": "keys-in-the-log"})).await;
    let (detail, _) = answer.error(400);
    assert!(detail.as_str().unwrap().ends_with("[redacted] and [redacted] and [redacted]"), "{detail}");

    let lines: Vec<Value> = log::text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<_> = lines.iter().filter(|line| line["model"] == "keys-in-the-log").collect();
    let said: Vec<_> = said.iter().map(|line| (line["message"].as_str().unwrap(), line["key"].as_u64())).collect();
    assert_eq!(said, [("a key rests", Some(1)), ("the upstream is asked again", Some(2)), ("request", None)]);
    assert!(!log::text().contains("canary"));
}
