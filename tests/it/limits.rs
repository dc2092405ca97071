//! Bounds on what a request may use up.

use std::time::Duration;

use ai_service::config::Config;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{PATIENCE, Play, ScriptedUpstream, TestApp, eventually};

fn head(app: &TestApp, headers: &str) -> Vec<u8> {
    let host = app.address;
    format!("POST /chat HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{headers}\r\n").into_bytes()
}

#[tokio::test]
async fn a_body_at_the_limit_is_read_and_one_byte_more_is_413() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.limits.body_bytes = 10_000).await;
    let body = |length: usize| {
        let frame = r#"{"message":""}"#.len();
        format!(r#"{{"message":"{}"}}"#, "x".repeat(length - frame)).into_bytes()
    };
    assert_eq!(app.chat_bytes(body(10_000)).await.status, 200);
    let (detail, code) = app.chat_bytes(body(10_001)).await.error(413);
    assert_eq!((detail.as_str().unwrap(), code.as_str()), ("the body is larger than 10000 bytes", "body_too_large"));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_body_announced_too_large_is_refused_before_it_is_sent() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for length in ["2097153", "99999999999999999999"] {
        let answer = app.raw(&head(&app, &format!("Content-Length: {length}\r\n"))).await;
        let expected = if length.len() > 10 { "HTTP/1.1 4" } else { "HTTP/1.1 413 " };
        assert!(answer.starts_with(expected), "{answer}");
    }
    let expect = head(&app, "Content-Length: 2097153\r\nExpect: 100-continue\r\n");
    let answer = app.raw(&expect).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "no 100 first: {answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_body_without_a_length_is_refused_when_it_crosses_the_limit() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.limits.body_bytes = 10_000).await;
    let mut bytes = head(&app, "Transfer-Encoding: chunked\r\n");
    for _ in 0..11 {
        bytes.extend_from_slice(format!("3e8\r\n{}\r\n", "x".repeat(1000)).as_bytes());
    }
    let answer = app.raw(&bytes).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let upstream = ScriptedUpstream::start().await;
    let app =
        TestApp::start_with(&upstream.base_url, |config| config.limits.body_time = Duration::from_millis(150)).await;
    let mut bytes = head(&app, "Content-Length: 100\r\n");
    bytes.extend_from_slice(b"{\"message\":");
    let answer = app.raw(&bytes).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"body_timeout\"") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_head_that_does_not_come_closes_the_connection() {
    let upstream = ScriptedUpstream::start().await;
    let soon = Duration::from_millis(150);
    let change = |config: &mut Config| (config.limits.head_time, config.limits.keep_alive) = (soon, soon);
    let app = TestApp::start_with(&upstream.base_url, change).await;
    for bytes in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nX-Slow: 1\r\n"] {
        assert_eq!(app.raw(bytes).await.matches("200 OK").count(), 0);
    }
    let kept = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", app.address);
    assert_eq!(app.raw(kept.as_bytes()).await.matches("HTTP/1.1 200 OK").count(), 1, "then it is closed");
}

#[tokio::test]
async fn heads_are_bounded_in_size_and_number() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let many: String = (0..100).map(|n| format!("X-{n}: 1\r\n")).collect();
    let large = format!("X-Large: {}\r\n", "x".repeat(40_000));
    for headers in [many, large] {
        let answer = app.raw(&head(&app, &headers)).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_get_the_originals_answers() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for path in ["/nope", "/chat/", "//chat", "/Chat", "/docs/x/y", "/%ff", "/..%2f", "/chat%00"] {
        let (detail, code) = app.request(Method::POST, path, &[], Vec::new()).await.error(404);
        assert_eq!((detail.as_str().unwrap(), code.as_str()), ("Not Found", "not_found"), "{path}");
    }
    for (method, path, allow) in [
        (Method::GET, "/chat", "POST"),
        (Method::POST, "/", "GET,HEAD"),
        (Method::DELETE, "/models", "GET,HEAD"),
        (Method::PUT, "/openapi.json", "GET,HEAD"),
        (Method::TRACE, "/health", "GET,HEAD"),
        (Method::from_bytes(b"FOO").unwrap(), "/docs", "GET,HEAD"),
    ] {
        let answer = app.request(method, path, &[], Vec::new()).await;
        let (detail, code) = answer.error(405);
        assert_eq!((detail.as_str().unwrap(), code.as_str()), ("Method Not Allowed", "method_not_allowed"));
        assert_eq!(answer.header("allow"), Some(allow), "{path}");
    }
}

/// A reader of a stream who reads the head and then nothing.
async fn silent_reader(app: &TestApp, id: &str) -> TcpStream {
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    let request = format!("GET /chat/stream/{id} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 12]).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_does_not_read_is_left_and_may_come_back() {
    let upstream = ScriptedUpstream::start().await;
    // Four megabytes: more than the buffers on the way take.
    let piece = "가".repeat(10_000);
    let event = serde_json::json!({"choices": [{"index": 0, "delta": {"content": piece}}]});
    let mut bytes = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n".to_vec();
    for _ in 0..130 {
        bytes.extend_from_slice(format!("data: {event}\n\n").as_bytes());
    }
    bytes.extend_from_slice(b"data: [DONE]\n\n");
    upstream.then([Play::Send(bytes), Play::Close]);
    let app =
        TestApp::start_with(&upstream.base_url, |config| config.limits.write_time = Duration::from_millis(300)).await;
    let started = app
        .request(Method::POST, "/chat/stream", &[("content-type", "application/json")], br#"{"message":"x"}"#.to_vec())
        .await;
    let id = started.json()["stream_id"].as_str().unwrap().to_owned();

    let mut silent = silent_reader(&app, &id).await;
    // Another one reads everything meanwhile.
    let whole = app.get(&format!("/chat/stream/{id}")).await.text();
    assert!(whole.contains("\"type\":\"END\""));
    // The silent one is left in the middle, 300 ms after the buffers are full. He must not read before that, or his reading
    // would count as progress; that the service has closed shows only to one who reads. So this waits much longer.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut rest)).await.expect("the connection is closed");
    assert!(rest.len() < whole.len() / 2, "{} of {}", rest.len(), whole.len());

    let again = app.request(Method::GET, &format!("/chat/stream/{id}"), &[("last-event-id", "100")], Vec::new()).await;
    let tail = whole.split_once("id: 100\n\n").unwrap().1;
    assert!(again.text().ends_with(tail));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_takes_the_place_of_its_connection() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.limits.connections = 1).await;
    let url = format!("ws://{}/chat/ws", app.address);
    let (mut socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    // Only a socket that has its place answers.
    socket.send("not a request".into()).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(refused.to_text().unwrap().contains("REJECTED"));

    assert_eq!(app.get("/models").await.error(503).1, "overloaded");
    drop(socket);
    eventually(async || app.get("/models").await.status == 200).await;
}

/// Begins to send a body of so many bytes, and stops short of its end.
async fn hold_a_body(app: &TestApp, bearer: &str, bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    let head = format!(
        "PUT /conversations/c HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nAuthorization: Bearer {bearer}\r\n\
         Content-Length: {}\r\n\r\n",
        app.address,
        bytes + 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // What is refused early is not read to its end.
    let _ = stream.write_all(&vec![b' '; bytes]).await;
    stream
}

/// Of these bodies, those that are not refused, once one is; which one depends on what the service reads first.
async fn without_the_refused_one(bodies: Vec<TcpStream>) -> Vec<TcpStream> {
    let first = futures_util::future::select_all(bodies.iter().map(|body| Box::pin(body.readable())));
    let (_, refused, _) = tokio::time::timeout(PATIENCE, first).await.expect("one is refused");
    let mut rest = bodies;
    let mut answer = vec![0; 4096];
    let read = rest.remove(refused).read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).to_lowercase();
    assert!(answer.starts_with("http/1.1 503 ") && answer.contains("retry-after: 1\r\n"), "{answer}");
    assert!(answer.contains("\"overloaded\""), "{answer}");
    rest
}

#[tokio::test]
async fn bodies_that_are_being_read_share_their_room_and_nobody_has_more_than_a_quarter() {
    const MIB: usize = 1024 * 1024;
    let upstream = ScriptedUpstream::start().await;
    let names = ["a1", "b2", "c3", "d4", "e5", "f6", "g7"];
    let app = TestApp::start_with(&upstream.base_url, |config| {
        config.limits.bodies_bytes = 16 * MIB;
        let key = |name: &&str| ai_service::config::ApiKey::new(name, &format!("the-key-of-caller-{name}"));
        config.access.keys = names.iter().map(key).collect();
    })
    .await;
    let part = 2 * MIB + MIB / 2;
    let hold = async |caller: &str| hold_a_body(&app, &format!("the-key-of-caller-{caller}"), part).await;
    let mut held = Vec::new();
    for caller in ["a1", "b2", "c3", "d4"] {
        // Two are more than a quarter.
        held.extend(without_the_refused_one(vec![hold(caller).await, hold(caller).await]).await);
    }
    assert_eq!(held.len(), 4);
    // Three more are more than all of it.
    let more = vec![hold("e5").await, hold("f6").await, hold("g7").await];
    held.extend(without_the_refused_one(more).await);
    // Small ones go on, and all of it comes back.
    let caller = app.asked_by("the-key-of-caller-a1");
    assert_eq!(caller.chat(&serde_json::json!({"message": "x"})).await.status, 200);
    drop(held);
    let large = serde_json::json!([{"role": "user", "content": "x".repeat(MIB - 1)}, {"role": "user", "content": "x".repeat(MIB)}]);
    crate::support::eventually(async || caller.put("/conversations/c", &large).await.status.is_success()).await;
}
