//! What is one caller's does not exist for another: every answer is that to something unknown, byte for byte.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Service, UNKNOWN, used_today};
use crate::support::{Answer, Play, TestApp, events::Script};

async fn idempotent(caller: &TestApp, path: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", "the-same-key")];
    caller.request(Method::POST, path, &headers, body.to_string().into_bytes()).await
}

#[tokio::test]
async fn anothers_stream_is_unknown_running_and_ended() {
    let service = Service::start().await;
    let Service { upstream, alice, bob, .. } = &service;
    upstream.then(Script::chunked().role().piece("하나").hold().finish("stop").done().end());
    let id = alice.begin(&json!({"message": "x"})).await;
    let mut reading = alice.events(&id).await;
    reading.take(2).await;
    for is_ended in [false, true] {
        for method in [Method::GET, Method::DELETE, Method::HEAD] {
            for accept in ["text/event-stream", "application/json", "*/*"] {
                for cursor in ["", "1", "99"] {
                    let headers = [("accept", accept), ("last-event-id", cursor)];
                    let ask = async |id: &str| {
                        bob.request(method.clone(), &format!("/chat/stream/{id}"), &headers, Vec::new()).await
                    };
                    let (others, unknown) = (ask(&id).await, ask(UNKNOWN).await);
                    assert_eq!(others.essence(), unknown.essence(), "{method} {accept}");
                    let expected = if method == Method::HEAD { 405 } else { 404 };
                    assert_eq!(others.status, expected, "{method}");
                }
            }
        }
        if !is_ended {
            upstream.release();
            reading.rest().await;
        }
    }
    assert_eq!(alice.state(&id).await["status"], "finished", "it was not stopped");
}

#[tokio::test]
async fn anothers_conversation_is_unknown_on_every_route() {
    let service = Service::start().await;
    let Service { upstream, alice, bob, .. } = &service;
    let secret = json!([{"role": "user", "content": "a secret"}, {"role": "assistant", "content": "kept"}]);
    alice.put("/conversations/trip", &secret).await;
    let before = alice.get("/conversations/trip").await;
    for (method, path) in [
        (Method::GET, ""),
        (Method::DELETE, ""),
        (Method::GET, "/messages"),
        (Method::DELETE, "/messages"),
        (Method::GET, "/summary"),
        (Method::POST, "/title"),
    ] {
        let ask = async |id: &str| {
            let answer = bob.send(method.clone(), &format!("/conversations/{id}{path}"), &json!({})).await;
            answer.error(404);
            answer.essence()
        };
        assert_eq!(ask("trip").await, ask("none").await, "{method} {path}");
    }
    assert!(upstream.seen().is_empty(), "no title was asked for");
    assert_eq!(bob.get("/conversations").await.json()["conversations"], json!([]));

    // Under the same name bob has one of his own.
    let made = bob.post("/conversations", &json!({"id": "trip"})).await;
    assert_eq!(made.status, 201, "{}", made.text());
    bob.chat(&json!({"message": "hello", "conversation_id": "trip"})).await;
    assert_eq!(upstream.seen()[0].body["messages"], json!([{"role": "user", "content": "hello"}]));
    bob.put("/conversations/trip", &json!([])).await;
    bob.delete("/conversations/trip").await;
    assert_eq!(alice.get("/conversations/trip").await.body, before.body);
}

#[tokio::test]
async fn a_key_for_repeating_is_each_callers_own() {
    let service = Service::start().await;
    let Service { upstream, alice, bob, .. } = &service;
    let (one, other) = (json!({"message": "one"}), json!({"message": "other"}));
    let first = idempotent(alice, "/chat", &one).await;
    let second = idempotent(bob, "/chat", &other).await;
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200));
    assert_eq!((second.header("idempotent-replayed"), upstream.seen().len()), (None, 2));
    assert_eq!(idempotent(alice, "/chat", &one).await.header("idempotent-replayed"), Some("true"));
    assert_eq!(idempotent(bob, "/chat", &one).await.error(422).1, "idempotency_key_reused");

    let service = Service::start().await;
    let Service { upstream, alice, bob, .. } = &service;
    upstream.then(Script::answer(&["a"])).then(Script::answer(&["b"]));
    let ids = [alice, bob, alice].map(async |caller| {
        idempotent(caller, "/chat/stream", &one).await.json()["stream_id"].as_str().unwrap().to_owned()
    });
    let [mine, yours, again] = futures_util::future::join_all(ids).await.try_into().unwrap();
    assert!(mine != yours && mine == again);
    assert_eq!(bob.get_state(&mine).await.error(404).1, "stream_not_found");
}

#[tokio::test]
async fn usage_is_each_callers_own() {
    let service = Service::start().await;
    let Service { alice, bob, app, .. } = &service;
    alice.chat(&json!({"message": "x"})).await;
    alice.chat(&json!({"message": "x"})).await;
    bob.chat(&json!({"message": "x"})).await;
    assert_eq!(used_today(alice).await, [2, 20, 30, 0]);
    assert_eq!(used_today(bob).await, [1, 10, 15, 0]);
    app.get("/usage").await.error(401);
}

#[tokio::test]
async fn a_stopped_stream_of_anothers_conversation_is_kept_by_its_owner() {
    let service = Service::start().await;
    let Service { upstream, alice, bob, .. } = &service;
    upstream.then(Script::chunked().role().piece("하나").play(Play::Silence));
    let id = alice.begin(&json!({"message": "x", "conversation_id": "trip"})).await;
    alice.events(&id).await.take(2).await;
    bob.cancel(&id).await.error(404);
    assert_eq!(alice.cancel(&id).await.status, 200);
    let kept = alice.get("/conversations/trip/messages").await.json();
    assert_eq!((&kept[1]["content"], &kept[1]["interrupted"]), (&json!("하나"), &json!(true)));
    bob.get("/conversations/trip").await.error(404);
}
