//! `Idempotency-Key`: the same request again costs nothing and gives the same.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Play, ScriptedUpstream, TestApp, events::Script, upstream::answer, upstream::response};

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

/// The same request over both roads that begin a stream: its id, and whether it says that it is a replay.
async fn begin(app: &TestApp, over_chat: bool, key: &str) -> (String, bool) {
    let body = json!({"message": "x"});
    if !over_chat {
        let answer = post(app, "/chat/stream", key, &body).await;
        let id = answer.json()["stream_id"].as_str().expect("a stream").to_owned();
        return (id, answer.header("idempotent-replayed").is_some());
    }
    let headers = [("content-type", "application/json"), ("accept", "text/event-stream"), ("idempotency-key", key)];
    let answer = app.request(Method::POST, "/chat", &headers, body.to_string().into_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let (_, behind) = text.split_once(r#""stream_id":""#).expect("START");
    (behind[..36].to_owned(), answer.header("idempotent-replayed").is_some())
}

#[tokio::test]
async fn the_key_of_a_stream_that_failed_begins_a_new_one() {
    for over_chat in [false, true] {
        let upstream = ScriptedUpstream::start().await;
        let app = TestApp::start(&upstream.base_url).await;
        upstream.then(Script::chunked().role().piece("half").play(Play::Reset)).then(Script::answer(&["whole"]));
        let (failed, _) = begin(&app, over_chat, "k").await;
        let events = app.events(&failed).await.rest().await;
        assert_eq!(events.last().unwrap().data["retryable"], true);
        let (again, is_replay) = begin(&app, over_chat, "k").await;
        assert!(again != failed && !is_replay);
        assert_eq!(app.events(&again).await.rest().await.last().unwrap().data["full_content"], "whole");
        // A success is given back, as often as it is asked for.
        assert_eq!(begin(&app, over_chat, "k").await, (again, true));
        assert_eq!(upstream.seen().len(), 2);
    }
}

#[tokio::test]
async fn the_key_of_a_stream_that_is_gone_begins_a_new_one() {
    for over_chat in [false, true] {
        for pushed_out in [false, true] {
            let upstream = ScriptedUpstream::start().await;
            let app = TestApp::start_with(&upstream.base_url, |config| {
                if pushed_out {
                    config.streams.max_bytes = 4096;
                } else {
                    config.streams.ttl = Duration::from_millis(1);
                }
            })
            .await;
            upstream.echo();
            let (gone, _) = begin(&app, over_chat, "k").await;
            crate::support::eventually(async || {
                if pushed_out {
                    post(&app, "/chat/stream", &uuid::Uuid::new_v4().to_string(), &json!({"message": "y"})).await;
                }
                app.get_state(&gone).await.status == 404
            })
            .await;
            let (again, is_replay) = begin(&app, over_chat, "k").await;
            assert!(again != gone && !is_replay);
        }
    }
}

#[tokio::test]
async fn a_hundred_who_come_back_to_a_failed_stream_at_once_begin_one_new_one() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then(Script::chunked().role().play(Play::Reset)).then([Play::Silence]);
    let (failed, _) = begin(&app, false, "k").await;
    app.events(&failed).await.rest().await;
    let again = futures_util::future::join_all((0..100).map(|_| begin(&app, false, "k"))).await;
    assert!(again.iter().all(|(id, _)| *id == again[0].0 && *id != failed));
    assert_eq!(again.iter().filter(|(_, is_replay)| !is_replay).count(), 1);
    upstream.arrived(2).await;
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn ten_thousand_failures_of_one_caller_push_out_nobodys_answer() {
    let upstream = ScriptedUpstream::start().await;
    let keys = [("API_KEYS", "alice:the-key-of-alice-1,bob:the-key-of-bob-22")];
    let app = TestApp::start_from(&upstream.base_url, &keys).await;
    let (alice, bob) = (app.asked_by("the-key-of-alice-1"), app.asked_by("the-key-of-bob-22"));
    upstream.then_json(&answer("bob's"));
    let body = json!({"message": "x"});
    let first = post(&bob, "/chat", "k", &body).await;
    for round in 0..100 {
        let ask = async |n: usize| {
            upstream.then_status(404, "", r#"{"error":{"message":"no such model"}}"#);
            post(&alice, "/chat", &format!("k-{round}-{n}"), &body).await.error(404);
        };
        futures_util::future::join_all((0..101).map(ask)).await;
    }
    let again = post(&bob, "/chat", "k", &body).await;
    assert_eq!((&again.body, again.header("idempotent-replayed")), (&first.body, Some("true")));
}
