//! Tokens of each caller: reserved before a chat, settled after it, however it ends.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Service, used_today};
use crate::support::{
    Answer, Play, TestApp,
    events::Script,
    upstream::{answer, response},
};

/// So few come back in a minute that a test does not see it.
const LIMIT: u64 = 1000;

async fn limited() -> Service {
    Service::start_with(&[("RATE_LIMIT_TOKENS_PER_MINUTE", "1000")]).await
}

/// "hello world" has two tokens, and a message takes four more.
fn chat(max_tokens: u64) -> Value {
    json!({"message": "hello world", "max_tokens": max_tokens})
}

fn remaining(answer: &Answer) -> u64 {
    answer.header("x-ratelimit-remaining-tokens").expect("a standing").parse().unwrap()
}

/// What the caller has left. It grows by a token each 60 ms, so that it is told how much it may be more.
#[track_caller]
fn assert_left(left: u64, expected: u64, since: tokio::time::Instant) {
    let more = since.elapsed().as_millis() as u64 * LIMIT / 60_000 + 1;
    assert!(
        (expected..=(expected + more).min(LIMIT)).contains(&left),
        "{left}, not {expected} and at most {more} more"
    );
}

#[tokio::test]
async fn a_whole_answer_reserves_its_most_and_pays_what_it_took() {
    let service = limited().await;
    let (upstream, alice) = (&service.upstream, &service.alice);
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("x").to_string()))]);
    let start = tokio::time::Instant::now();
    let question = chat(500);
    let asking = alice.chat(&question);
    let meanwhile = async {
        upstream.arrived(1).await;
        assert_left(remaining(&alice.get("/models").await), LIMIT - 506, start);
        let refused = alice.chat(&chat(900)).await;
        let (detail, code) = refused.error(429);
        assert_eq!(code, "rate_limited");
        assert!(detail.as_str().unwrap().ends_with("rate limit reached: 1000 tokens per minute"), "{detail}");
        // 412 or a little less are missing.
        let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=25).contains(&wait), "{wait}");
        assert_eq!(service.bob.chat(&chat(900)).await.status, 200, "others have their own");
        upstream.release();
    };
    let (answered, ()) = tokio::join!(asking, meanwhile);
    assert_eq!(answered.status, 200);
    assert_eq!(answered.header("x-ratelimit-limit-tokens"), Some("1000"));
    assert_left(remaining(&answered), LIMIT - 25, start);
    assert_eq!(upstream.seen().iter().filter(|seen| seen.line.starts_with("POST")).count(), 2);
    assert_eq!(used_today(alice).await, [1, 10, 15, 0], "what was refused is not counted");
}

#[tokio::test]
async fn what_was_told_to_wait_is_enough() {
    let service = Service::start_with(&[("RATE_LIMIT_TOKENS_PER_MINUTE", "60000")]).await;
    let alice = &service.alice;
    service.upstream.then([Play::Silence]);
    let id = alice.begin(&chat(59_000)).await;
    // 994 are left, and a thousand come back each second.
    let refused = alice.chat(&chat(1900)).await;
    assert_eq!((refused.error(429).1.as_str(), refused.header("retry-after")), ("rate_limited", Some("1")));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(alice.chat(&chat(1900)).await.status, 200);
    alice.cancel(&id).await;
}

#[tokio::test]
async fn a_stream_pays_before_it_says_that_it_has_ended() {
    let service = limited().await;
    let start = tokio::time::Instant::now();
    service.upstream.then(Script::answer(&["안녕"]));
    let id = service.alice.begin(&chat(900)).await;
    service.alice.events(&id).await.rest().await;
    assert_left(remaining(&service.alice.get("/models").await), LIMIT - 25, start);
    assert_eq!(used_today(&service.alice).await, [1, 10, 15, 0]);
}

#[tokio::test]
async fn a_stream_that_is_stopped_pays_what_there_is_by_estimate() {
    let service = limited().await;
    let start = tokio::time::Instant::now();
    service.upstream.then(Script::chunked().role().piece("twelve bytes").play(Play::Silence));
    let id = service.alice.begin(&chat(900)).await;
    service.alice.events(&id).await.take(2).await;
    assert_eq!(service.alice.cancel(&id).await.status, 200);
    // Six of the prompt, and three for twelve bytes.
    assert_left(remaining(&service.alice.get("/models").await), LIMIT - 9, start);
    assert_eq!(used_today(&service.alice).await, [1, 6, 3, 9]);
}

#[tokio::test]
async fn a_chat_that_failed_or_was_refused_before_it_was_asked_costs_nothing() {
    let service = limited().await;
    let start = tokio::time::Instant::now();
    service.upstream.then_status(500, "", "{}");
    service.alice.chat(&chat(900)).await.error(502);
    assert_left(remaining(&service.alice.get("/models").await), LIMIT, start);
    assert_eq!(used_today(&service.alice).await, [1, 0, 0, 0]);

    // The log of streams is full before the first.
    let full = TestApp::start_with(&service.upstream.base_url, |config| {
        config.streams.max_bytes = 0;
        config.rate_limits.tokens_per_minute = Some(1000);
        config.rate_limits.concurrent_streams = Some(1);
    })
    .await;
    let before = service.upstream.seen().len();
    for _ in 0..3 {
        let refused = full.post("/chat/stream", &chat(900)).await;
        assert_eq!(refused.error(503).1, "stream_log_full", "neither 429 for tokens nor for streams");
    }
    crate::support::eventually(async || remaining(&full.get("/models").await) == LIMIT).await;
    assert_eq!(used_today(&full).await, [0, 0, 0, 0]);
    assert_eq!(service.upstream.seen()[before..].iter().filter(|seen| seen.line.starts_with("POST")).count(), 0);
}

#[tokio::test]
async fn a_caller_who_leaves_pays_the_prompt_and_gets_the_rest_back() {
    let service = limited().await;
    let start = tokio::time::Instant::now();
    service.upstream.then([Play::Silence]);
    let question = chat(900);
    tokio::select! {
        answer = service.alice.chat(&question) => panic!("{answer:?}"),
        () = service.upstream.arrived(1) => {}
    }
    service.upstream.left().await;
    let left = async || remaining(&service.alice.get("/models").await);
    crate::support::eventually(async || left().await >= LIMIT - 6).await;
    assert_left(left().await, LIMIT - 6, start);
    assert_eq!(used_today(&service.alice).await, [1, 6, 0, 6]);
}

#[tokio::test]
async fn a_title_costs_what_it_costs_and_is_refused_when_nothing_is_left() {
    let service = limited().await;
    let start = tokio::time::Instant::now();
    let saved = json!([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]);
    service.alice.put("/conversations/trip", &saved).await;
    service.upstream.then_json(&answer("제목"));
    let titled = service.alice.post("/conversations/trip/title", &json!({})).await;
    assert_eq!(titled.json()["title"], "제목");
    assert_left(remaining(&titled), LIMIT - 25, start);
    service.upstream.then([Play::Silence]);
    let id = service.alice.begin(&chat(960)).await;
    let refused = service.alice.post("/conversations/trip/title", &json!({})).await;
    assert_eq!(refused.error(429).1, "rate_limited");
    service.upstream.arrived(2).await;
    service.alice.cancel(&id).await;
    assert_eq!(used_today(&service.alice).await, [2, 16, 15, 6]);
}

#[tokio::test]
async fn the_same_request_again_reserves_nothing_and_a_refusal_is_not_kept() {
    let service = limited().await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "again")];
    let ask = async |caller: &TestApp| {
        caller.request(reqwest::Method::POST, "/chat", &headers, chat(900).to_string().into_bytes()).await
    };
    for _ in 0..3 {
        assert_eq!(ask(&service.alice).await.status, 200);
    }
    assert_eq!(used_today(&service.alice).await, [1, 10, 15, 0]);

    service.upstream.then([Play::Silence]);
    let id = service.bob.begin(&chat(900)).await;
    ask(&service.bob).await.error(429);
    service.bob.cancel(&id).await;
    assert_eq!(ask(&service.bob).await.status, 200, "the refusal is forgotten");
}

#[tokio::test]
async fn what_has_no_tokens_left_is_refused_before_its_prompt_is_counted() {
    let service = limited().await;
    let alice = &service.alice;
    assert_eq!(alice.chat(&chat(500)).await.status, 200, "and the vocabulary is there");
    service.upstream.then([Play::Silence]);
    alice.begin(&chat(900)).await;
    // A prompt that takes long to count, in a build for tests some seconds.
    let long = json!({"message": "가나다 라마바 ".repeat(60_000), "max_tokens": 900});
    let began = std::time::Instant::now();
    for _ in 0..5 {
        let refused = alice.chat(&long).await;
        assert_eq!(refused.error(429).1, "rate_limited");
        assert!(refused.header("retry-after").is_some());
    }
    let refusing = began.elapsed();
    let began = std::time::Instant::now();
    service.bob.chat(&long).await;
    assert!(refusing < began.elapsed(), "five refusals take {refusing:?}, counting once {:?}", began.elapsed());
}
