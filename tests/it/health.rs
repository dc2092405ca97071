//! `GET /` and `GET /health`.

use ai_service::config::Timeouts;
use serde_json::json;
use std::time::{Duration, Instant};

use crate::support::{Play, ScriptedUpstream, TestApp, assert_timestamp};

#[tokio::test]
async fn the_root_says_what_the_original_says() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let answer = app.get("/").await;
    assert_eq!(answer.status, 200);
    let body = answer.json();
    assert_timestamp(&body["timestamp"]);
    let start = r#"{"service":"ChatGPT Clone AI Service","status":"running","version":"1.0.0","timestamp":"#;
    assert!(answer.text().starts_with(start), "{}", answer.text());
    assert_eq!(body.as_object().unwrap().len(), 4);
}

#[tokio::test]
async fn a_reachable_upstream_is_healthy_and_was_asked_for_its_models_only() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let answer = app.get("/health").await;
    assert_eq!(answer.status, 200);
    assert_timestamp(&answer.json()["timestamp"]);
    let start = r#"{"status":"healthy","openai_api":"connected","timestamp":"#;
    assert!(answer.text().starts_with(start), "{}", answer.text());
    let asked: Vec<_> = upstream.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(asked, ["GET /v1/models"]);
}

#[tokio::test]
async fn monitors_may_ask_in_their_own_way() {
    let upstream = ScriptedUpstream::start().await;
    let keys = [("API_KEYS", "web:a-key-of-sixteen-x")];
    for pairs in [&[][..], &keys] {
        let app = TestApp::start_from(&upstream.base_url, pairs).await;
        let answer = app.get("/health/").await;
        assert_eq!((answer.status.as_u16(), answer.json()["status"].as_str()), (200, Some("healthy")));
        // HAProxy's `option httpchk GET /health`.
        for path in ["/health", "/"] {
            let old = app.raw(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await;
            assert!(old.starts_with("HTTP/1.0 200"), "{old}");
        }
        for bad in ["HTTP/1.0\r\nHost: a\r\nHost: a", "HTTP/1.0\r\nHost: a b", "HTTP/1.1"] {
            let refused = app.raw(format!("GET /health {bad}\r\n\r\n").as_bytes()).await;
            assert!(refused.contains(" 400 ") && refused.contains("bad_host"), "{bad}: {refused}");
        }
    }
    let app = TestApp::start(&upstream.base_url).await;
    app.request(reqwest::Method::POST, "/health/", &[], Vec::new()).await.error(405);
    for other in ["/chat/", "/models/", "/health//"] {
        app.get(other).await.error(404);
    }
    // HAProxy's bare `option httpchk`: as with FastAPI.
    let bare = app.raw(b"OPTIONS / HTTP/1.0\r\n\r\n").await;
    assert!(bare.contains(" 405 "), "{bare}");
}

#[tokio::test]
async fn an_unreachable_upstream_is_unhealthy_with_200() {
    let upstream = ScriptedUpstream::start().await;
    let nobody = "http://127.0.0.1:1/v1".parse().unwrap();
    let app = TestApp::start(&nobody).await;
    let answer = app.get("/health").await;
    assert_eq!(answer.status, 200);
    let body = answer.json();
    assert_eq!((&body["status"], &body["openai_api"]), (&json!("unhealthy"), &json!("disconnected")));
    let error = body["error"].as_str().unwrap();
    assert!(error.starts_with("Failed to connect to OpenAI API: "), "{error}");
    assert!(!error.contains("127.0.0.1"), "no address: {error}");

    upstream.then_status(401, "", r#"{"error":{"message":"Incorrect API key provided: sk-1"}}"#);
    let refused = TestApp::start(&upstream.base_url).await.get("/health").await.json();
    let expected = "Failed to connect to OpenAI API: OpenAI API did not accept this service's credentials";
    assert_eq!(refused["error"], expected);
}

#[tokio::test]
async fn however_many_ask_upstream_is_asked_once() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let asking = (0..100).map(|n| app.get(if n % 2 == 0 { "/health" } else { "/models" }));
    for answer in futures_util::future::join_all(asking).await {
        assert_eq!(answer.status, 200);
    }
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn callers_who_leave_do_not_make_upstream_be_asked_again() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Hold, Play::Send(crate::support::upstream::response(200, "", r#"{"data":[]}"#))]);
    let app = TestApp::start(&upstream.base_url).await;
    let impatient = reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(100)).build().unwrap();
    assert!(impatient.get(app.url("/health")).send().await.unwrap_err().is_timeout());
    assert!(impatient.get(app.url("/health")).send().await.unwrap_err().is_timeout());
    upstream.release();
    assert_eq!(app.get("/health").await.json()["status"], "healthy");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_silent_upstream_is_waited_for_no_longer_than_its_limit() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Silence]);
    let app = TestApp::start_with(&upstream.base_url, |config| {
        config.upstream.timeouts = Timeouts { models: Duration::from_millis(200), ..Timeouts::default() };
    })
    .await;
    let started = Instant::now();
    let body = app.get("/health").await.json();
    assert_eq!(body["error"], "Failed to connect to OpenAI API: OpenAI API gave no answer within 200ms");
    assert!(started.elapsed() >= Duration::from_millis(200));
    upstream.left().await;
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for path in ["/", "/health", "/models", "/docs"] {
        let answer = app.request(reqwest::Method::HEAD, path, &[], Vec::new()).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0), "{path}");
    }
}
