//! `Idempotency-Key`: the same request again costs nothing and gives the same.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Play, ScriptedUpstream, TestApp, upstream::answer, upstream::response};

async fn post(app: &TestApp, path: &str, key: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    app.request(Method::POST, path, &headers, body.to_string().into_bytes()).await
}

#[tokio::test]
async fn a_hundred_at_once_are_one_upstream_call_and_one_answer() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("once").to_string()))]);
    let app = TestApp::start(&upstream.base_url).await;
    let body = json!({"message": "x"});
    let asking = futures_util::future::join_all((0..100).map(|_| post(&app, "/chat", "key-1", &body)));
    let (answers, ()) = tokio::join!(asking, async {
        upstream.arrived(1).await;
        upstream.release();
    });
    assert_eq!(upstream.seen().len(), 1);
    assert!(answers.iter().all(|answer| answer.body == answers[0].body && answer.status == 200));
    let first = answers.iter().filter(|answer| answer.header("idempotent-replayed").is_none()).count();
    assert_eq!(first, 1, "the others say that they are replays");

    let later = post(&app, "/chat", "key-1", &body).await;
    assert_eq!((&later.body, later.header("idempotent-replayed")), (&answers[0].body, Some("true")));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_stream_begun_twice_is_one_stream() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Silence]);
    let app = TestApp::start(&upstream.base_url).await;
    let body = json!({"message": "x"});
    let answers = futures_util::future::join_all((0..100).map(|_| post(&app, "/chat/stream", "key-1", &body))).await;
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
    upstream.arrived(1).await;
    assert_eq!(upstream.seen().len(), 1);
    // The same name for another kind of request is another request.
    assert_eq!(post(&app, "/chat", "key-1", &body).await.error(422).1, "idempotency_key_reused");
}

#[tokio::test]
async fn another_body_under_the_same_key_is_refused_and_the_same_in_other_words_is_not() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let body = json!({"message": "x", "temperature": 0.5});
    post(&app, "/chat", "key-1", &body).await;
    for other in [
        json!({"message": "y", "temperature": 0.5}),
        json!({"message": "x", "temperature": 0.6}),
        json!({"message": "x", "temperature": 0.5, "system_prompt": ""}),
        json!({"message": "x", "temperature": 0.5, "conversation_history": [{"role": "user", "content": ""}]}),
    ] {
        let (detail, code) = post(&app, "/chat", "key-1", &other).await.error(422);
        assert_eq!(
            (detail.as_str().unwrap(), code.as_str()),
            ("this Idempotency-Key was used for another request", "idempotency_key_reused")
        );
    }
    let same = json!({"temperature": "0.5", "message": "x", "unknown": 1, "model": null});
    assert_eq!(post(&app, "/chat", "key-1", &same).await.status, 200);
    assert_eq!(post(&app, "/chat", "key-2", &body).await.status, 200);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_failure_is_not_kept() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then_status(503, "", "{}");
    let app = TestApp::start(&upstream.base_url).await;
    let body = json!({"message": "x"});
    assert_eq!(post(&app, "/chat", "key-1", &body).await.error(503).1, "upstream_overloaded");
    assert_eq!(post(&app, "/chat", "key-1", &body).await.status, 200);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_caller_who_leaves_and_comes_back_finds_the_answer() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("kept").to_string()))]);
    let app = TestApp::start(&upstream.base_url).await;
    let body = json!({"message": "x"});
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(app.url("/chat")).header("content-type", "application/json");
    let call = tokio::spawn(request.header("idempotency-key", "key-1").body(body.to_string()).send());
    upstream.arrived(1).await;
    call.abort();
    upstream.release();
    let answer = post(&app, "/chat", "key-1", &body).await;
    assert_eq!(
        (answer.json()["response"].as_str(), answer.header("idempotent-replayed")),
        (Some("kept"), Some("true"))
    );
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let long = "k".repeat(256);
    for key in ["", "a b", "열쇠", &long] {
        let (_, code) = post(&app, "/chat", key, &json!({"message": "x"})).await.error(400);
        assert_eq!(code, "invalid_idempotency_key", "{key:?}");
    }
    let twice = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "b")];
    let answer = app.request(Method::POST, "/chat/stream", &twice, br#"{"message":"x"}"#.to_vec()).await;
    assert_eq!(answer.error(400).1, "invalid_idempotency_key");
    assert!(upstream.seen().is_empty());
}
