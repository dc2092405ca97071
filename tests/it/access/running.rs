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
