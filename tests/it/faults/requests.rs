//! Requests that are odd without being malformed, and a process that runs out of descriptors.

use std::{
    io::{Read, Write},
    net::TcpStream as Blocking,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{PATIENCE, Play, ScriptedUpstream, TestApp, events::Script};

#[tokio::test]
async fn a_body_that_nobody_asked_for_leaves_the_connection_in_step() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let smuggled = "GET /nope HTTP/1.1\r\nHost: x\r\n\r\n";
    let with_body =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    let last = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = app.raw(format!("{}{}{last}", with_body("/models?x=y"), with_body("/health")).as_bytes()).await;
    assert!(!answers.contains(" 404 "), "a body was read as a request: {answers}");
    let count = answers.matches("HTTP/1.1 200 OK").count();
    assert!((1..=3).contains(&count), "closed early or in step, never out of it: {answers}");
}

#[tokio::test]
async fn a_caller_who_closes_his_half_is_taken_for_gone() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then([Play::Silence]);
    let mut caller = TcpStream::connect(app.address).await.unwrap();
    let body = r#"{"message":"x"}"#;
    let request = format!(
        "POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    caller.write_all(request.as_bytes()).await.unwrap();
    upstream.arrived(1).await;
    caller.shutdown().await.unwrap();
    upstream.left().await;
    let mut answer = Vec::new();
    caller.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn queries_that_nobody_asked_for_change_nothing() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for query in ["x=y", "%00", "%ff=%c0%af", "a&a&a", "=", "&&&", "?", "limit"] {
        for path in ["/", "/models", "/conversations"] {
            assert_eq!(app.get(&format!("{path}?{query}")).await.status, 200, "{path}?{query}");
        }
    }
    upstream.then(Script::answer(&["a", "b", "c"]));
    let id = app.begin(&json!({"message": "x"})).await;
    app.events(&id).await.rest().await;
    let twice = app.events_with(&id, None, "?last_event_id=3&last_event_id=1").await;
    assert_eq!(twice.expect("events").rest().await[0].id, 4, "the first one counts");
}

#[tokio::test]
async fn a_stream_is_sent_as_it_is_whatever_else_is_asked_of_it() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then(Script::answer(&["a", "b"]));
    let id = app.begin(&json!({"message": "x"})).await;
    let plain = app.get(&format!("/chat/stream/{id}")).await;
    for (name, value) in [
        ("range", "bytes=0-3"),
        ("if-none-match", "*"),
        ("if-modified-since", "Sun, 22 Nov 2026 00:00:00 GMT"),
        ("accept", "image/png"),
        ("accept-encoding", "br, gzip"),
    ] {
        let answer = app.request(Method::GET, &format!("/chat/stream/{id}"), &[(name, value)], Vec::new()).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, plain.text()), "{name}");
        assert_eq!(answer.header("content-encoding"), None);
    }
}

#[tokio::test]
async fn a_conversations_id_names_no_file_and_stands_for_no_other() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let message = |text: &str| json!([{"role": "user", "content": text}]);
    // The last one is a device on some systems.
    for id in ["trip", "Trip", "TRIP", "CON"] {
        assert_eq!(app.put(&format!("/conversations/{id}"), &message(id)).await.status, 201, "{id}");
    }
    for id in ["trip", "Trip", "TRIP", "CON"] {
        assert_eq!(app.get(&format!("/conversations/{id}/messages")).await.json()[0]["content"], id);
    }
    for (path, id) in [
        ("..%2f..%2fetc%2fpasswd", "../../etc/passwd"),
        ("..%5c..", "..\\.."),
        ("....%2f%2f", "....//"),
        ("%2fetc%2fpasswd", "/etc/passwd"),
        ("C:", "C:"),
        ("trip%00", "trip\0"),
        ("trip%0a", "trip\n"),
        ("tr%C3%ADp", "tríp"),
        ("tri%CC%81p", "tri\u{301}p"),
        ("%EF%BD%94rip", "ｔrip"),
        ("%F0%9F%98%80", "😀"),
        (&"x".repeat(300), &"x".repeat(300)),
    ] {
        let path = format!("/conversations/{path}");
        assert_eq!(app.get(&path).await.error(404).1, "conversation_not_found", "{path}");
        assert_eq!(app.put(&path, &message("x")).await.error(404).1, "conversation_not_found", "{path}");
        assert_eq!(app.post("/conversations", &json!({"id": id})).await.error(422).1, "invalid_request", "{id:?}");
        assert_eq!(app.chat(&json!({"message": "x", "conversation_id": id})).await.error(422).1, "invalid_request");
    }
    assert_eq!(app.get("/conversations").await.json()["conversations"].as_array().unwrap().len(), 4);
}

/// The service with few descriptors, ended when it is dropped.
struct Poor(Child);

impl Drop for Poor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = Blocking::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn descriptors_that_run_out_are_waited_for() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 48 && exec \"$0\" --demo", env!("CARGO_BIN_EXE_ai-service")]);
    command.env_clear().env("HOST", "127.0.0.1").env("PORT", port.to_string()).env("DATABASE_URL", "sqlite::memory:");
    command.env("MAX_CONNECTIONS", "1000").current_dir(std::env::temp_dir());
    let mut service = Poor(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let until = Instant::now() + PATIENCE;
    while !ask(port).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
        assert!(Instant::now() < until, "it does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    // More than it has descriptors for; the system takes them in, and they wait.
    let held: Vec<_> = (0..80).map(|_| Blocking::connect(("127.0.0.1", port)).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(service.0.try_wait().unwrap().is_none(), "it lives");
    drop(held);
    assert!(ask(port).unwrap().starts_with("HTTP/1.1 200 "), "and serves again");
    let mut log = service.0.stdout.take().unwrap();
    drop(service);
    let mut said = String::new();
    log.read_to_string(&mut said).unwrap();
    let complaints = said.matches("cannot accept connections").count();
    assert!((1..100).contains(&complaints), "it waited and did not spin: {complaints}");
}
