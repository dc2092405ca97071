//! An upstream that fails too often is left alone for a while, and callers are told at once.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    support::{
        Answer, Play, ScriptedUpstream, TestApp,
        upstream::{answer, response},
    },
    upstream_keys::{asked_with, give_keys, start_with_keys},
    upstream_retries::{SOON, ask, error, start_with},
};

/// Five failures, each seen by a caller.
async fn fail_five_times(app: &TestApp, upstream: &ScriptedUpstream) {
    for _ in 0..5 {
        upstream.then_status(500, "", "{}");
        assert_eq!(ask(app).await.error(502).1, "upstream_error");
    }
}

/// Asks until the upstream is asked again: the answer.
async fn ask_until_it_is_asked(app: &TestApp) -> Answer {
    loop {
        let answer = ask(app).await;
        if answer.status == 200 || answer.error_code() != "upstream_unavailable" {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The service whose breaker stays open for that long at first.
async fn start_with_breaker(upstream: &ScriptedUpstream, open: Duration) -> TestApp {
    start_with(upstream, |config| {
        config.max_retries = 0;
        config.breaker.open = open;
    })
    .await
}

#[tokio::test]
async fn an_upstream_that_fails_too_often_is_not_asked_and_callers_are_told_within_5_milliseconds() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| config.max_retries = 0).await;
    fail_five_times(&app, &upstream).await;
    let mut quickest = Duration::MAX;
    for _ in 0..20 {
        let began = Instant::now();
        let answer = ask(&app).await;
        quickest = quickest.min(began.elapsed());
        let (detail, code) = answer.error(503);
        assert_eq!(code, "upstream_unavailable");
        assert!(detail.as_str().unwrap().ends_with("OpenAI API has failed too often and is not asked for now"));
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=5).contains(&wait), "{wait}");
    }
    // The quickest, because this machine may have other things to do.
    assert!(quickest < Duration::from_millis(5), "{quickest:?}");

    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    let last = &events.last().unwrap().data;
    assert_eq!((&last["code"], &last["status"]), (&json!("upstream_unavailable"), &json!(503)));
    assert_eq!(last["retryable"], true);
    assert_eq!(upstream.seen().len(), 5);

    assert_eq!(app.get("/health").await.json()["status"], "healthy", "it asks, for it is to tell how things are");
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable", "a list is no chat");
}

#[tokio::test]
async fn one_probe_is_let_through_and_its_success_lets_everybody_through() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_breaker(&upstream, Duration::from_secs(2)).await;
    fail_five_times(&app, &upstream).await;
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("well again").to_string()))]);
    let others = async {
        upstream.arrived(6).await;
        for _ in 0..10 {
            assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");
        }
        assert_eq!(upstream.seen().len(), 6);
        upstream.release();
    };
    let (probe, ()) = tokio::join!(ask_until_it_is_asked(&app), others);
    assert_eq!(probe.json()["response"], "well again");
    for _ in 0..3 {
        assert_eq!(ask(&app).await.status, 200);
    }
    assert_eq!(upstream.seen().len(), 9);
}

#[tokio::test]
async fn a_probe_that_fails_is_followed_by_a_longer_pause() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_breaker(&upstream, Duration::from_millis(1100)).await;
    fail_five_times(&app, &upstream).await;
    assert_eq!(ask(&app).await.header("retry-after"), Some("2"));
    upstream.then_status(500, "", "{}");
    assert_eq!(ask_until_it_is_asked(&app).await.status, 502);
    assert_eq!(upstream.seen().len(), 6);
    assert_eq!(ask(&app).await.header("retry-after"), Some("3"));
}

#[tokio::test]
async fn a_probe_whose_caller_leaves_does_not_keep_the_others_out() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_breaker(&upstream, Duration::from_secs(3)).await;
    fail_five_times(&app, &upstream).await;
    upstream.then([Play::Silence]);
    let call = tokio::spawn({
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = app.url("/chat");
        async move {
            loop {
                let request = client.post(&url).header("content-type", "application/json");
                request.body(r#"{"message":"x"}"#).send().await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    upstream.arrived(6).await;
    call.abort();
    upstream.left().await;
    let began = Instant::now();
    assert_eq!(ask_until_it_is_asked(&app).await.status, 200);
    // Nobody waits until the probe would have been given up.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn every_kind_of_outage_counts_and_no_refusal_does() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| {
        config.max_retries = 0;
        config.timeouts.whole = Duration::from_millis(300);
    })
    .await;
    upstream.then([Play::Reset]).then([Play::Close]).then([Play::Silence]).then_status(529, "", "{}");
    upstream.then_status(500, "", "{}");
    for _ in 0..5 {
        assert_ne!(ask(&app).await.error_code(), "upstream_unavailable");
    }
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");

    let nobody = "http://127.0.0.1:1/v1".parse().unwrap();
    let app = TestApp::start(&nobody).await;
    for _ in 0..5 {
        assert_eq!(ask(&app).await.error(502).1, "upstream_unreachable");
    }
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");

    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| config.max_retries = 0).await;
    for status in [400, 401, 403, 404, 408, 409, 422, 307, 429] {
        upstream.then_status(status, "retry-after: 0\r\n", &error("m", ""));
        assert!(ask(&app).await.status.as_u16() >= 400);
    }
    for _ in 0..5 {
        upstream.then([Play::Send(b"HTTP/1.1 200 X\r\n\r\n{".to_vec()), Play::Reset]);
        assert_eq!(ask(&app).await.error(502).1, "upstream_reset");
    }
    assert_eq!(upstream.seen().len(), 14);
    assert_eq!(ask(&app).await.status, 200);
}

#[tokio::test]
async fn a_breaker_that_opens_ends_the_retries() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| config.max_retries = 10).await;
    for _ in 0..4 {
        upstream.then_status(500, SOON, "{}");
        assert_eq!(ask(&app).await.status, 200);
    }
    upstream.then_status(500, "retry-after: 4\r\n", "{}");
    let began = Instant::now();
    assert_eq!(ask(&app).await.error(502).1, "upstream_error", "what it was that failed");
    assert!(began.elapsed() < Duration::from_secs(3), "nothing to wait for: {:?}", began.elapsed());
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");
    assert_eq!(upstream.seen().len(), 9);
}

#[tokio::test]
async fn a_question_counts_as_one_failure_however_often_it_is_asked_again() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| config.max_retries = 2).await;
    for asked in 1..=5 {
        for _ in 0..3 {
            upstream.then_status(500, SOON, "{}");
        }
        assert_eq!(ask(&app).await.error(502).1, "upstream_error", "{asked}");
    }
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");
    // The fifth opened it, and was not asked again.
    assert_eq!(upstream.seen().len(), 4 * 3 + 1);
}

#[tokio::test]
async fn a_model_that_fails_keeps_nobody_from_other_models() {
    for keys in [1, 3] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with(&upstream, |config| {
            config.max_retries = 0;
            give_keys(config, keys);
        })
        .await;
        for model in ["bad-model", "another", "a-third"] {
            let bad = json!({"message": "x", "model": model});
            for _ in 0..5 * keys {
                upstream.then_status(500, "", "{}");
                assert_eq!(app.chat(&bad).await.error(502).1, "upstream_error", "{model}");
                assert_eq!(ask(&app).await.status, 200, "{model}");
            }
            let asked = upstream.seen().len();
            assert_eq!(app.chat(&bad).await.error(503).1, "upstream_unavailable", "{model}");
            let events = app.chat_as_stream(&bad).await.rest().await;
            assert_eq!(events.last().unwrap().data["code"], "upstream_unavailable", "{model}");
            assert_eq!(upstream.seen().len(), asked);
            assert_eq!(ask(&app).await.status, 200, "{model}");
        }
    }
}

#[tokio::test]
async fn having_no_connection_rests_a_key_for_every_model() {
    let nobody = "http://127.0.0.1:1/v1".parse().unwrap();
    let app = TestApp::start_with(&nobody, |config| config.upstream.max_retries = 0).await;
    for n in 0..5 {
        let question = json!({"message": "x", "model": format!("model-{n}")});
        assert_eq!(app.chat(&question).await.error(502).1, "upstream_unreachable");
    }
    assert_eq!(app.chat(&json!({"message": "x", "model": "model-9"})).await.error(503).1, "upstream_unavailable");
}

#[tokio::test]
async fn when_one_key_fails_too_often_the_next_one_serves() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_keys(&upstream, 2).await;
    for _ in 0..5 {
        upstream.then_status(500, "", "{}").then_json(&answer("x"));
        assert_eq!(ask(&app).await.status, 502);
        assert_eq!(ask(&app).await.status, 200);
    }
    for _ in 0..3 {
        assert_eq!(ask(&app).await.status, 200);
    }
    assert_eq!(asked_with(&upstream)[10..], [2, 2, 2]);
}
