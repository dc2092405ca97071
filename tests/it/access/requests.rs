//! Requests of each caller: so many in a minute, and so many at once.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use super::{Service, used_today};
use crate::support::{Answer, TestApp, events::Script};

/// The three headers of a standing.
fn standing(answer: &Answer, of: &str) -> [Option<String>; 3] {
    ["limit", "remaining", "reset"].map(|name| answer.header(&format!("x-ratelimit-{name}-{of}")).map(str::to_owned))
}

/// OpenAI's way to write a span, in milliseconds.
fn millis(span: &str) -> u64 {
    if let Some(millis) = span.strip_suffix("ms") {
        return millis.parse().unwrap();
    }
    let (minutes, seconds) = span.strip_suffix('s').unwrap().split_once('m').unwrap_or(("0", &span[..span.len() - 1]));
    minutes.parse::<u64>().unwrap() * 60_000 + (seconds.parse::<f64>().unwrap() * 1000.0).round() as u64
}

async fn limited(per_minute: &str, burst: &str) -> Service {
    Service::start_with(&[("RATE_LIMIT_REQUESTS_PER_MINUTE", per_minute), ("RATE_LIMIT_BURST", burst)]).await
}

#[tokio::test]
async fn a_burst_is_answered_then_429_and_after_the_time_that_was_told_again() {
    // One comes back each second.
    let service = limited("60", "3").await;
    for remaining in (0..3).rev() {
        let answer = service.alice.get("/models").await;
        let [limit, left, reset] = standing(&answer, "requests").map(Option::unwrap);
        assert_eq!((answer.status.as_u16(), limit.as_str(), left), (200, "60", remaining.to_string()));
        let due = (3 - remaining) * 1000;
        assert!((due - 900..=due).contains(&millis(&reset)), "{reset} of {due}");
        assert_eq!(standing(&answer, "tokens"), [None, None, None], "nothing of what is not limited");
    }
    let refused = service.alice.get("/models").await;
    let (detail, code) = refused.error(429);
    assert_eq!((detail.as_str().unwrap(), code.as_str()), ("rate limit reached: too many requests", "rate_limited"));
    let [limit, left, reset] = standing(&refused, "requests").map(Option::unwrap);
    assert_eq!((limit.as_str(), left.as_str()), ("60", "0"));
    assert!((2000..=3000).contains(&millis(&reset)), "{reset}");
    assert_eq!(refused.header("retry-after"), Some("1"));

    assert_eq!(service.bob.get("/models").await.status, 200, "others have their own");
    assert_eq!(service.app.get("/health").await.status, 200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(service.alice.get("/models").await.status, 200);
    service.alice.get("/models").await.error(429);
}

#[tokio::test]
async fn errors_count_and_say_where_the_caller_stands() {
    let service = limited("1", "4").await;
    let alice = &service.alice;
    for (answer, left) in [
        (alice.get("/nope").await, "3"),
        (alice.request(Method::PATCH, "/chat", &[], Vec::new()).await, "2"),
        (alice.chat(&json!({})).await, "1"),
        (alice.get("/conversations/nope").await, "0"),
        (alice.chat(&json!({"message": "x"})).await, "0"),
    ] {
        assert!(answer.status.is_client_error());
        assert_eq!(standing(&answer, "requests")[1].as_deref(), Some(left), "{}", answer.text());
    }
    assert!(service.upstream.seen().is_empty());
    // Of the 401 nobody can be told.
    assert_eq!(standing(&service.app.get("/usage").await, "requests"), [None, None, None]);
}

#[tokio::test]
async fn a_hundred_at_once_get_no_more_than_the_burst() {
    let service = limited("1", "7").await;
    let question = json!({"message": "x"});
    let asking = (0..100).map(|_| service.alice.chat(&question));
    let answers: Vec<_> = futures_util::future::join_all(asking).await;
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!((answered, service.upstream.seen().len()), (7, 7));
}

#[tokio::test]
async fn reading_a_stream_is_no_request_and_a_storm_of_reading_is_refused() {
    let service = limited("1", "2").await;
    service.upstream.then(Script::answer(&["x"]));
    let id = service.alice.begin(&json!({"message": "x"})).await;
    let path = format!("/chat/stream/{id}");
    let mut left = 30;
    while left > 0 {
        left -= 1;
        let answer = service.alice.get(&path).await;
        assert_eq!((answer.status.as_u16(), standing(&answer, "requests")[1].as_deref()), (200, Some("1")));
    }
    let storm = service.alice.get(&path).await;
    assert_eq!(storm.error(429).1, "rate_limited");
    assert_eq!(storm.header("retry-after"), Some("2"), "one comes back every two seconds");
    assert_eq!(standing(&storm, "requests")[1].as_deref(), Some("1"), "of requests there is one left");
    service.alice.get(&path.to_uppercase().replace("CHAT/STREAM", "chat/stream")).await.error(429);
    service.alice.get(&path.replace("chat/stream/", "chat/stream/%")).await.error(404);

    let other = "3e458467-c21f-4429-a90d-e0d2f496e3b2";
    service.alice.get_state(other).await.error(404);
    service.bob.get(&path).await.error(404);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(service.alice.get(&path).await.status, 200);
}

#[tokio::test]
async fn the_state_of_a_stream_may_be_asked_for_more_often_than_its_events_and_apart_from_them() {
    let service = Service::start().await;
    service.upstream.then(Script::answer(&["x"]));
    let id = service.alice.begin(&json!({"message": "x"})).await;
    for _ in 0..120 {
        assert_eq!(service.alice.get_state(&id).await.status, 200);
    }
    assert_eq!(service.alice.get_state(&id).await.error(429).1, "rate_limited");
    assert_eq!(service.alice.get(&format!("/chat/stream/{id}")).await.status, 200);
}

#[tokio::test]
async fn no_other_spelling_of_a_streams_address_gets_around_the_storms_limit() {
    let service = Service::start().await;
    service.upstream.then(Script::answer(&["x"]));
    let id = service.alice.begin(&json!({"message": "x"})).await;
    let escaped: String = id.bytes().map(|byte| format!("%{byte:02x}")).collect();
    service.alice.get(&format!("/chat/stream/{escaped}")).await.error(404);
    for spelling in [id.to_uppercase(), id.clone()].iter().cycle().take(30) {
        assert_eq!(service.alice.get(&format!("/chat/stream/{spelling}?a=b")).await.status, 200);
    }
    service.alice.get(&format!("/chat/stream/{id}")).await.error(429);
}

#[tokio::test]
async fn without_callers_each_address_is_limited_and_everybody_shares_what_is_stored() {
    let service = Service::start().await;
    let pairs = [("RATE_LIMIT_REQUESTS_PER_MINUTE", "1"), ("RATE_LIMIT_BURST", "1"), ("TRUSTED_PROXIES", "127.0.0.1")];
    let open = TestApp::start_from(&service.upstream.base_url, &pairs).await;
    let from = |address| open.asked_with(&[("x-forwarded-for", address)]);
    assert_eq!(from("203.0.113.7").put("/conversations/trip", &json!([])).await.status, 201);
    from("203.0.113.7").get("/usage").await.error(429);
    assert_eq!(from("203.0.113.8").get("/conversations/trip").await.status, 200);
    assert_eq!(used_today(&from("203.0.113.9")).await, [0, 0, 0, 0]);
}

#[tokio::test]
async fn a_page_of_another_origin_may_read_the_refusal() {
    let service = limited("1", "1").await;
    service.alice.get("/models").await;
    let headers = [("origin", "https://app.example")];
    let refused = service.alice.request(Method::GET, "/models", &headers, Vec::new()).await;
    refused.error(429);
    let exposed = refused.header("access-control-expose-headers").unwrap();
    for name in ["retry-after", "x-request-id", "x-ratelimit-remaining-requests", "x-ratelimit-reset-tokens"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    assert_eq!(refused.header("access-control-allow-origin"), Some("*"));
}
