//! What runs at once: streams of one caller, and requests of all.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Service;
use crate::support::{
    Play, TestApp,
    events::Script,
    upstream::{answer, response},
};

async fn one_stream() -> Service {
    Service::start_with(&[("MAX_CONCURRENT_STREAMS", "1")]).await
}

fn question() -> Value {
    json!({"message": "x"})
}

#[tokio::test]
async fn one_more_than_may_run_is_refused_and_others_are_not() {
    let service = one_stream().await;
    service.upstream.then([Play::Silence]);
    let id = service.alice.begin(&question()).await;
    for path in ["/chat/stream", "/chat"] {
        let headers = [("content-type", "application/json"), ("accept", "text/event-stream")];
        let body = question().to_string().into_bytes();
        let refused = service.alice.request(reqwest::Method::POST, path, &headers, body).await;
        let (detail, code) = refused.error(429);
        assert_eq!(
            (detail.as_str().unwrap(), code.as_str(), refused.header("retry-after")),
            ("at most 1 streams may run at once", "too_many_streams", Some("5"))
        );
    }
    service.upstream.arrived(1).await;
    assert_eq!(service.alice.chat(&question()).await.status, 200, "a whole answer is no stream");
    service.upstream.then([Play::Silence]);
    let other = service.bob.begin(&question()).await;
    service.alice.cancel(&id).await;
    service.bob.cancel(&other).await;
}

/// Whoever has read the end may begin anew, without having to try twice.
#[tokio::test(flavor = "multi_thread")]
async fn every_ending_gives_the_place_back_before_it_is_told() {
    let service = one_stream().await;
    let (upstream, alice) = (&service.upstream, &service.alice);
    for _ in 0..20 {
        let done = Script::answer(&["x"]);
        let cut = Script::chunked().role().piece("x").play(Play::Reset);
        let failed = vec![Play::Send(response(500, "", "{}"))];
        for script in [done.into_iter().collect(), cut.into_iter().collect(), failed] {
            upstream.then(script);
            let id = alice.begin(&question()).await;
            alice.events(&id).await.rest().await;
        }
        upstream.then(Script::chunked().role().piece("x").play(Play::Silence));
        let id = alice.begin(&question()).await;
        alice.events(&id).await.take(2).await;
        assert_eq!(alice.cancel(&id).await.status, 200);
        alice.chat(&json!({"message": 7})).await.error(422);
        alice.post("/chat/stream", &json!({})).await.error(422);
    }
}

#[tokio::test]
async fn a_stream_that_everybody_left_gives_its_place_back() {
    let service = one_stream().await;
    service.upstream.then(Script::chunked().role().piece("x").play(Play::Silence));
    let id = service.alice.begin(&json!({"message": "x", "on_disconnect": "cancel"})).await;
    let mut reading = service.alice.events(&id).await;
    reading.take(2).await;
    drop(reading);
    service.upstream.left().await;
    crate::support::eventually(async || service.alice.post("/chat/stream", &question()).await.status == 200).await;
}

#[tokio::test]
async fn beyond_the_room_there_is_503_at_once_and_what_is_public_still_answers() {
    let service = Service::start_with(&[("MAX_REQUESTS_IN_FLIGHT", "1")]).await;
    let open = TestApp::start_from(&service.upstream.base_url, &[("MAX_REQUESTS_IN_FLIGHT", "1")]).await;
    for (count, caller) in [&service.alice, &open].into_iter().enumerate() {
        let asked = service.upstream.seen().len() + 1;
        service.upstream.then([Play::Hold, Play::Send(response(200, "", &answer("x").to_string()))]);
        let question = question();
        let meanwhile = async {
            service.upstream.arrived(asked).await;
            for path in ["/models", "/nope", "/chat/stream/x"] {
                let started = Instant::now();
                let refused = caller.get(path).await;
                let took = started.elapsed();
                assert_eq!((refused.error(503).1.as_str(), refused.header("retry-after")), ("overloaded", Some("1")));
                assert!(took < Duration::from_millis(500), "{took:?}");
            }
            caller.asked_by("nobody").get("/models").await.error(503);
            assert_eq!(caller.get("/").await.status, 200);
            assert_eq!(caller.get("/docs").await.status, 200);
            service.upstream.then_json(&json!({"object": "list", "data": []}));
            assert_eq!(caller.get("/health").await.status, 200);
            service.upstream.release();
        };
        let (answered, ()) = tokio::join!(caller.chat(&question), meanwhile);
        assert_eq!(answered.status, 200, "{count}");
        assert_eq!(caller.get("/models").await.status, 200);
    }
}

#[tokio::test]
async fn a_stream_that_is_read_takes_no_room_and_one_who_leaves_gives_his_back() {
    let service = Service::start_with(&[("MAX_REQUESTS_IN_FLIGHT", "1")]).await;
    service.upstream.then(Script::chunked().role().piece("x").play(Play::Silence));
    let mut reading = service.alice.chat_as_stream(&question()).await;
    reading.take(2).await;
    assert_eq!(service.alice.get("/models").await.status, 200);

    let arrived = service.upstream.seen().len() + 1;
    service.upstream.then([Play::Silence]);
    let question = question();
    tokio::select! {
        answer = service.alice.chat(&question) => panic!("{answer:?}"),
        () = service.upstream.arrived(arrived) => {}
    }
    crate::support::eventually(async || service.alice.get("/models").await.status == 200).await;
}

/// A question with a key, whose caller leaves as soon as the upstream has it.
async fn ask_and_leave(app: &TestApp, headers: &[(&'static str, &str)], key: &str, arrived: impl Future<Output = ()>) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.post(app.url("/chat")).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let call = tokio::spawn(request.header("idempotency-key", key).body(question().to_string()).send());
    arrived.await;
    call.abort();
    let _ = call.await;
}

#[tokio::test]
async fn work_for_a_caller_who_left_holds_its_place_among_the_requests_in_flight() {
    let service = Service::start_with(&[("MAX_REQUESTS_IN_FLIGHT", "3")]).await;
    let (upstream, bearer) = (&service.upstream, format!("Bearer {}", super::ALICE));
    for n in 1..=3 {
        upstream.then([Play::Hold, Play::Send(response(200, "", &answer("x").to_string()))]);
        ask_and_leave(&service.app, &[("authorization", &bearer)], &format!("key-{n}"), upstream.arrived(n)).await;
    }
    for caller in [&service.alice, &service.bob] {
        assert_eq!(caller.chat(&question()).await.error(503).1, "overloaded");
    }
    assert_eq!(service.app.get("/health").await.status, 200);
    let asked = upstream.seen().iter().filter(|seen| seen.line.starts_with("POST")).count();
    assert_eq!(asked, 3, "and no more is asked for");
    for _ in 0..3 {
        upstream.release();
    }
    let again = async || {
        let body = question().to_string().into_bytes();
        let headers = [("content-type", "application/json"), ("idempotency-key", "key-3")];
        service.alice.request(reqwest::Method::POST, "/chat", &headers, body).await
    };
    crate::support::eventually(async || again().await.header("idempotent-replayed") == Some("true")).await;
    crate::support::eventually(async || service.bob.chat(&question()).await.status == 200).await;
}

#[tokio::test]
async fn work_for_a_caller_who_left_takes_one_of_the_callers_streams() {
    let service = one_stream().await;
    let (upstream, bearer) = (&service.upstream, format!("Bearer {}", super::ALICE));
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("x").to_string()))]);
    ask_and_leave(&service.app, &[("authorization", &bearer)], "key", upstream.arrived(1)).await;
    let refused = async || service.alice.post("/chat/stream", &question()).await.status == 429;
    crate::support::eventually(refused).await;
    assert_eq!(service.bob.post("/chat/stream", &question()).await.status, 200, "others have their own");
    upstream.release();
    crate::support::eventually(async || service.alice.post("/chat/stream", &question()).await.status == 200).await;
}

#[tokio::test]
async fn asking_how_the_service_is_takes_no_place() {
    let service = Service::start_with(&[("MAX_REQUESTS_IN_FLIGHT", "2")]).await;
    // The list of models that it asks for hangs.
    service.upstream.then([Play::Silence]);
    let healths = futures_util::future::join_all((0..20).map(|_| service.app.get("/health")));
    let chats = async {
        service.upstream.arrived(1).await;
        for _ in 0..5 {
            assert_eq!(service.alice.chat(&question()).await.status, 200);
            assert_eq!(service.app.get("/").await.status, 200);
        }
    };
    let ((), healths) = tokio::join!(chats, healths);
    assert!(healths.iter().all(|health| health.status == 200));
}
