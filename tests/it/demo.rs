//! The simulated OpenAI: that it behaves like one, and misbehaves as it says.

use std::time::{Duration, Instant};

use ai_service::{
    config::Timeouts,
    simulator::{MISBEHAVIOURS, Pace, Simulator},
};
use serde_json::{Value, json};

use crate::support::TestApp;

async fn demo() -> (Simulator, TestApp) {
    let simulator = Simulator::start(Pace::Zero).await.unwrap();
    let app = TestApp::start_with(simulator.base_url(), |config| {
        *config = config.clone().with_upstream(simulator.base_url().clone());
        config.upstream.timeouts = Timeouts { total: Duration::from_millis(500), ..Timeouts::default() };
    })
    .await;
    (simulator, app)
}

#[tokio::test]
async fn it_answers_in_the_language_of_the_question() {
    let (_simulator, app) = demo().await;
    let body = app.chat(&json!({"message": "안녕하세요!"})).await.json();
    assert_eq!(body["response"], "안녕하세요! 무엇을 도와드릴까요?");
    assert_eq!(body["usage"], json!({"prompt_tokens": 6, "completion_tokens": 3, "total_tokens": 9}));
    let body = app.chat(&json!({"message": "hello"})).await.json();
    assert_eq!(body["response"], "Hello! How can I help you today?");
}

#[tokio::test]
async fn it_lists_its_models_and_those_that_do_not_chat_are_left_out() {
    let (_simulator, app) = demo().await;
    assert_eq!(app.get("/health").await.json()["status"], "healthy");
    let body = app.get("/models").await.json();
    let ids: Vec<_> = body["models"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids[..3], ["gpt-3.5-turbo", "gpt-4", "gpt-4-turbo-preview"]);
    assert!(MISBEHAVIOURS.iter().all(|known| ids.contains(&known.model)));
    assert!(!ids.iter().any(|id| id.contains("embedding")));
}

/// Every misbehaviour, and what a caller of `POST /chat` gets for it: a status and a code, or 200.
const OUTCOMES: [(&str, u16, &str); 22] = [
    ("sim-error-400", 400, "context_length_exceeded"),
    ("sim-error-401", 502, "upstream_auth"),
    ("sim-error-403", 502, "upstream_auth"),
    ("sim-error-404", 404, "model_not_found"),
    ("sim-error-429", 429, "upstream_rate_limited"),
    ("sim-error-quota", 503, "upstream_quota"),
    ("sim-error-500", 502, "upstream_error"),
    ("sim-error-503", 503, "upstream_overloaded"),
    ("sim-html", 502, "upstream_error"),
    ("sim-garbage", 502, "upstream_protocol"),
    ("sim-redirect", 502, "upstream_protocol"),
    ("sim-cut", 502, "upstream_reset"),
    ("sim-truncated", 502, "upstream_protocol"),
    ("sim-stall", 504, "upstream_deadline"),
    ("sim-slow", 200, ""),
    ("sim-error-inside", 502, "upstream_error"),
    ("sim-malformed", 502, "upstream_protocol"),
    ("sim-empty", 502, "upstream_empty"),
    ("sim-refusal", 200, ""),
    ("sim-length", 200, ""),
    ("sim-long", 200, ""),
    ("sim-reasoning", 200, ""),
];

#[tokio::test]
async fn every_misbehaviour_shows_its_error() {
    let (_simulator, app) = demo().await;
    assert_eq!(OUTCOMES.map(|(model, ..)| model).to_vec(), MISBEHAVIOURS.iter().map(|m| m.model).collect::<Vec<_>>());
    for (model, status, code) in OUTCOMES {
        let answer = app.chat(&json!({"message": "hello", "model": model})).await;
        assert_eq!(answer.status.as_u16(), status, "{model}: {}", answer.text());
        if status != 200 {
            assert_eq!(answer.error(status).1, code, "{model}");
        }
    }
    assert_eq!(app.chat(&json!({"message": "hi", "model": "no-such"})).await.error(404).1, "model_not_found");
}

#[tokio::test]
async fn failures_that_are_asked_for_do_not_get_in_the_way_of_what_is_asked_next() {
    let (_simulator, app) = demo().await;
    for _ in 0..7 {
        let answer = app.chat(&json!({"message": "hello", "model": "sim-error-500"})).await;
        assert_eq!(answer.error(502).1, "upstream_error");
    }
    assert_eq!(app.chat(&json!({"message": "hello"})).await.status, 200);
}

#[test]
fn failures_that_are_asked_again_are_there_within_three_seconds() {
    // Two more tries, after as long as the simulated OpenAI names.
    let service = crate::process::Running::start(&["--demo"], &[]);
    for model in ["sim-error-503", "sim-error-429"] {
        let body = format!(r#"{{"message":"hi","model":"{model}"}}"#);
        let begun = std::time::Instant::now();
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", service.port)).unwrap();
        let head = "POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n";
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        assert!(answer.contains("\"code\":\"upstream_"), "{answer}");
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(3), "{model} took {took:?}");
    }
}

#[tokio::test]
async fn readme_lists_every_misbehaviour() {
    for file in [include_str!("../../README.md"), include_str!("../../README.ko.md")] {
        for known in MISBEHAVIOURS {
            assert!(file.contains(&format!("`{}`", known.model)), "{} is missing", known.model);
        }
    }
}

/// The events of a stream, straight from the simulator.
async fn stream(simulator: &Simulator, body: Value) -> (Vec<String>, bool) {
    let url = format!("{}/chat/completions", simulator.base_url());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut response = client.post(url).body(body.to_string()).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut text = Vec::new();
    let whole = loop {
        match tokio::time::timeout(Duration::from_millis(300), response.chunk()).await {
            Ok(Ok(Some(chunk))) => text.extend_from_slice(&chunk),
            Ok(Ok(None)) => break true,
            Ok(Err(_)) | Err(_) => break false,
        }
    };
    let text = String::from_utf8(text).unwrap();
    (text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect(), whole)
}

#[tokio::test]
async fn it_streams_word_by_word_with_usage_before_the_end() {
    let simulator = Simulator::start(Pace::Zero).await.unwrap();
    let request = json!({
        "model": "gpt-4o", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "hello"}],
    });
    let (events, whole) = stream(&simulator, request).await;
    assert!(whole);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let events: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let pieces: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, ["", "Hello! ", "How ", "can ", "I ", "help ", "you ", "today?"]);
    let [.., finish, usage] = events.as_slice() else { panic!() };
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(7)));
}

#[tokio::test]
async fn its_streams_break_in_the_way_they_are_named() {
    let simulator = Simulator::start(Pace::Zero).await.unwrap();
    for (model, ends_whole, is_done) in [
        ("sim-cut", false, false),
        ("sim-stall", false, false),
        ("sim-truncated", true, false),
        ("sim-error-inside", true, false),
        ("sim-malformed", true, false),
        ("sim-empty", true, true),
        ("sim-refusal", true, true),
        ("sim-length", true, true),
    ] {
        let request = json!({"model": model, "stream": true, "messages": [{"role": "user", "content": "hello"}]});
        let (events, whole) = stream(&simulator, request).await;
        assert!(!events.is_empty(), "{model}");
        assert_eq!((whole, events.last().unwrap() == "[DONE]"), (ends_whole, is_done), "{model}: {events:?}");
    }
}

#[tokio::test]
async fn at_its_natural_pace_it_takes_its_time() {
    let simulator = Simulator::start(Pace::Natural).await.unwrap();
    let app = TestApp::start(simulator.base_url()).await;
    let started = Instant::now();
    app.chat(&json!({"message": "hello"})).await;
    assert!(started.elapsed() >= Duration::from_millis(500));
}

#[tokio::test]
async fn an_answer_that_stops_at_its_limit_does_so_whatever_is_asked() {
    let simulator = Simulator::start(Pace::Zero).await.unwrap();
    for question in ["안녕하세요!", "hello", "Tell me of Busan"] {
        let messages = json!([{"role": "user", "content": question}]);
        let request = json!({"model": "sim-length", "stream": true, "messages": messages});
        let (events, _) = stream(&simulator, request).await;
        let reasons = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
        let reasons: Vec<_> =
            reasons.filter_map(|e| Some(e["choices"][0]["finish_reason"].as_str()?.to_owned())).collect();
        assert_eq!(reasons, ["length"], "{question}");
    }
}
