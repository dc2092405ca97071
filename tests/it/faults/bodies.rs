//! Bodies that are meant to do harm.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{PATIENCE, ScriptedUpstream, TestApp};

/// Far more than reading two megabytes takes, even unoptimized and on a busy machine; far less than anything that grows
/// with the square of its input.
const NO_TIME: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_body_that_drips_is_408() {
    let upstream = ScriptedUpstream::start().await;
    let limit = Duration::from_millis(300);
    let app = TestApp::start_with(&upstream.base_url, |config| config.limits.body_time = limit).await;
    let (mut reading, mut writing) = TcpStream::connect(app.address).await.unwrap().into_split();
    writing
        .write_all(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
        .await
        .unwrap();
    let dripping = tokio::spawn(async move {
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut answer = Vec::new();
    // What comes after the answer is a reset: bytes were left unread.
    let _ = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut answer)).await.expect("the connection is closed");
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    dripping.abort();
}

#[tokio::test]
async fn a_million_elements_or_keys_take_no_time() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let elements = format!("[{}0]", "0,".repeat(999_999));
    let keys: Vec<_> = (0..150_000).map(|n| format!("\"{n:x}\":0")).collect();
    let keys = format!("{{{}}}", keys.join(","));
    let started = Instant::now();
    for extra in [&elements, &keys] {
        let body = format!(r#"{{"message":"x","extra":{extra}}}"#);
        assert_eq!(app.chat_bytes(body.into_bytes()).await.status, 200);
        let body = format!(r#"{{"message":{extra}}}"#);
        assert_eq!(app.chat_bytes(body.into_bytes()).await.error(422).0[0]["type"], "string_type");
    }
    let body = format!(r#"{{"message":"x","conversation_history":{elements}}}"#);
    assert_eq!(app.chat_bytes(body.into_bytes()).await.error(422).0[0]["type"], "too_long");
    assert_eq!(app.chat_bytes(elements.into_bytes()).await.error(422).0[0]["type"], "model_attributes_type");
    assert!(started.elapsed() < NO_TIME, "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_is_named_twice_counts_once_and_last() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let body = r#"{"message":"a","temperature":2,"conversation_history":[{"role":"user","content":"b","content":"c"}],
        "message":"d","temperature":1}"#;
    assert_eq!(app.chat_bytes(body.into()).await.status, 200);
    let asked = upstream.seen().pop().unwrap().body;
    assert_eq!(asked["messages"], json!([{"role": "user", "content": "c"}, {"role": "user", "content": "d"}]));
    assert_eq!(asked["temperature"], 1.0);
}

#[tokio::test]
async fn fields_that_are_not_ours_change_nothing_of_what_is_asked() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    app.chat(&json!({"message": "x"})).await;
    let evil = "http://evil.example/v1";
    let answer = app
        .chat(&json!({
            "message": "x", "api_base": evil, "base_url": evil, "api_key": "sk-evil", "organization": "evil",
            "extra_headers": {"authorization": "evil"}, "user_config": {"base_url": evil}, "stream": true,
            "stream_options": {"evil": 1}, "tools": [{"evil": 1}], "response_format": {"evil": 1}, "n": 1_000_000,
            "logit_bias": {"1": 101}, "stop": [""], "seed": 1e19, "top_p": -1, "__proto__": {"evil": 1},
            "constructor": {"prototype": {"evil": 1}},
        }))
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"), "no stream either");
    assert!(!answer.text().contains("evil"));
    let seen = upstream.seen();
    let [plain, other] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((&plain.line, &plain.headers, &plain.body), (&other.line, &other.headers, &other.body));
}

#[tokio::test]
async fn numbers_of_any_length_take_no_time() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let started = Instant::now();
    let digits = "1".repeat(400);
    let body = format!(r#"{{"message":"x","temperature":0.{digits}}}"#);
    assert_eq!(app.chat_bytes(body.into_bytes()).await.status, 200);
    for number in ["1".repeat(5_000), "1".repeat(1_000_000), "2147483648".to_owned(), "9223372036854775808".to_owned()]
    {
        for number in [number.clone(), format!("\"{number}\""), format!("-{number}")] {
            let body = format!(r#"{{"message":"x","max_tokens":{number}}}"#);
            app.chat_bytes(body.into_bytes()).await.error(422);
        }
    }
    assert!(started.elapsed() < NO_TIME, "{:?}", started.elapsed());
}

#[tokio::test]
async fn markup_is_answered_as_json_that_nobody_takes_for_a_page() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let page = "<script>alert(1)</script>";
    upstream.then_json(&crate::support::upstream::answer(page));
    for answer in [app.chat(&json!({"message": page})).await, app.get(&format!("/{page}")).await] {
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("x-frame-options"), Some("DENY"));
    }
}
