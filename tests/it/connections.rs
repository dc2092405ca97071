//! As many connections as there can be, and one more.

use std::{
    io::{Read, Write},
    net::TcpStream as Blocking,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    process::{BINARY, Running, through},
    support::{PATIENCE, ScriptedUpstream, TestApp, events::Script, eventually, log},
};

/// What whoever watches the service is promised, and some more for a machine that runs other tests.
const AT_ONCE: Duration = Duration::from_millis(100 + 400);

/// One request on a connection of its own: its whole answer, and how long that took.
async fn ask(app: &TestApp, request: &str) -> (String, Duration) {
    let begun = Instant::now();
    let answer = app.raw(request.as_bytes()).await;
    (answer, begun.elapsed())
}

fn get(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

/// That this is what a connection too many is told.
fn assert_refused(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    assert_eq!((header("connection"), header("retry-after")), (Some("close"), Some("1")), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["code"], "overloaded");
    assert_eq!((body["request_id"].as_str(), body["detail"].is_string()), (header("x-request-id"), true), "{body}");
}

/// Readers of one stream that goes on until it is released.
async fn readers(app: &TestApp, upstream: &ScriptedUpstream, count: usize) -> Vec<TcpStream> {
    upstream.then(Script::chunked().piece("x").hold().finish("stop").done().end());
    let body = json!({"message": "x"}).to_string();
    let head = "POST /chat/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json";
    let begun = app.raw(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
    let begun: Value = serde_json::from_str(begun.split_once("\r\n\r\n").unwrap().1).unwrap();
    let id = begun["stream_id"].as_str().unwrap();
    let mut readers = Vec::new();
    for _ in 0..count {
        let mut reader = TcpStream::connect(app.address).await.unwrap();
        reader.write_all(get("GET", &format!("/chat/stream/{id}")).as_bytes()).await.unwrap();
        reader.read_exact(&mut [0; 12]).await.unwrap();
        readers.push(reader);
    }
    readers
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_connections_there_can_be_one_is_refused_at_once_and_health_is_answered() {
    // A number that no other test has: the log is everybody's.
    const CONNECTIONS: usize = 37;
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.limits.connections = CONNECTIONS).await;
    ask(&app, &get("GET", "/health")).await;
    let held = readers(&app, &upstream, CONNECTIONS).await;
    for _ in 0..3 {
        let body = "x".repeat(1_500_000);
        let post = format!("POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        for request in [get("GET", "/models"), get("POST", "/health"), get("GET", "/healthy"), post] {
            let (answer, time) = ask(&app, &request).await;
            assert_refused(&answer);
            assert!(time < AT_ONCE, "{time:?}");
        }
        for (method, path) in [("GET", "/health"), ("HEAD", "/health"), ("GET", "/health?x"), ("GET", "/")] {
            let (answer, time) = ask(&app, &get(method, path)).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(time < AT_ONCE, "{time:?}");
        }
    }
    // Each is answered once, whatever it says of keeping the connection.
    let (answer, _) = ask(&app, "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 1, "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    drop(held);
    eventually(async || app.get("/models").await.status == 200).await;
    let warnings = || {
        let lines = log::text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>();
        lines.into_iter().filter(|line| line["connections"] == CONNECTIONS && line["refused"] != Value::Null).collect()
    };
    eventually(async || !(warnings() as Vec<Value>).is_empty()).await;
    let warnings: Vec<Value> = warnings();
    let [warning] = &warnings[..] else { panic!("one a minute: {warnings:?}") };
    assert_eq!(warning["level"], "WARN");
    assert!(warning["refused"].as_u64().unwrap() >= 1, "{warning}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_keep_health_from_nobody() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.limits.connections = 2).await;
    ask(&app, &get("GET", "/health")).await;
    let _held = readers(&app, &upstream, 2).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        for _ in 0..100 {
            silent.push(TcpStream::connect(app.address).await.unwrap());
        }
        sleep(Duration::from_millis(150)).await;
        let (answer, time) = ask(&app, &get("GET", "/health")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(time < AT_ONCE, "{time:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_that_was_idle_longest_makes_room() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.limits.connections = 3).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut connection = TcpStream::connect(app.address).await.unwrap();
        connection.write_all(b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        connection.read_exact(&mut [0; 12]).await.unwrap();
        kept.push(connection);
        sleep(Duration::from_millis(20)).await;
    }
    // In use a moment ago, they are not touched.
    assert_refused(&ask(&app, &get("GET", "/models")).await.0);
    sleep(Duration::from_millis(1100)).await;
    let (answer, time) = ask(&app, &get("GET", "/models")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && time < AT_ONCE, "{time:?} {answer}");
    let mut rest = Vec::new();
    timeout(PATIENCE, kept[0].read_to_end(&mut rest)).await.expect("closed").unwrap();
    for connection in &mut kept[1..] {
        let more = timeout(Duration::from_millis(50), async {
            while connection.read(&mut [0; 512]).await? > 0 {}
            Ok::<_, std::io::Error>(())
        });
        assert!(more.await.is_err(), "it is still open");
    }
}

/// A service of the binary with this limit on open files, soft and hard.
fn with_open_files(limit: &str, variables: &[(&str, &str)]) -> Running {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$0\" --demo"), BINARY]);
    let mut command = through(command);
    command.envs(variables.iter().copied());
    Running::begin(command)
}

fn ask_blocking(port: u16, request: &str) -> String {
    let mut connection = Blocking::connect(("127.0.0.1", port)).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

/// The number behind `name=` in a line of the log.
fn number(line: &str, name: &str) -> usize {
    let after = line.split(&format!("{name}=")).nth(1).unwrap_or_else(|| panic!("{line}"));
    after.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn with_1024_open_files_the_last_reader_is_refused_at_once_and_health_is_answered() {
    rlimit::increase_nofile_limit(4096).unwrap();
    let service = with_open_files("-n 1024", &[]);
    let line = service.first_line();
    assert!(line.contains("1024 open files"), "{line}");
    let connections = number(line, "connections");
    let body = r#"{"message":"x","model":"sim-stall"}"#;
    let head = "POST /chat/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json";
    let begun = ask_blocking(service.port, &format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let id = begun.split("\"stream_id\":\"").nth(1).unwrap().split('"').next().unwrap();
    let read = get("GET", &format!("/chat/stream/{id}"));
    let health = || {
        let begun = Instant::now();
        let answer = ask_blocking(service.port, &get("GET", "/health"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    };
    health();
    let reader = || {
        let mut reader = Blocking::connect(("127.0.0.1", service.port)).unwrap();
        reader.set_read_timeout(Some(PATIENCE)).unwrap();
        reader.write_all(read.as_bytes()).unwrap();
        let mut begun = [0; 12];
        reader.read_exact(&mut begun).unwrap();
        (reader, begun)
    };
    let readers: Vec<_> = (0..connections).map(|_| reader()).collect();
    assert!(readers.iter().all(|(_, begun)| begun == b"HTTP/1.1 200"));
    for _ in 0..100 {
        assert_refused(&ask_blocking(service.port, &read));
        health();
    }
    drop(readers);
    let until = Instant::now() + PATIENCE;
    while !ask_blocking(service.port, &get("GET", "/models")).starts_with("HTTP/1.1 200 ") {
        assert!(Instant::now() < until, "there is room again");
    }
    let stopped = ask_blocking(service.port, &get("DELETE", &format!("/chat/stream/{id}")));
    assert!(stopped.starts_with("HTTP/1.1 200 "), "{stopped}");
    service.signal("-TERM");
    let (code, log) = service.end();
    assert_eq!(code, Some(0), "{log}");
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else { panic!("one a minute: {warnings:?}") };
    assert!(warning.contains("connections were refused") && number(warning, "refused") >= 1, "{warning}");
}

#[test]
fn the_soft_limit_on_open_files_is_raised_to_the_hard_one() {
    let service = with_open_files("-Sn 64", &[]);
    let line = service.first_line();
    assert!(number(line, "connections") > 100, "{line}");
}

#[test]
fn more_connections_than_open_files_allow_are_warned_of_and_others_are_named() {
    let service = with_open_files("-n 512", &[("MAX_CONNECTIONS", "100000")]);
    let possible = number(service.first_line(), "connections");
    assert!(possible < 200, "{possible}");
    service.signal("-TERM");
    let (_, log) = service.end();
    assert!(log.contains("WARN") && log.contains("MAX_CONNECTIONS is 100000"), "{log}");
    let service = with_open_files("-n 512", &[("MAX_CONNECTIONS", "100")]);
    let line = service.first_line();
    assert!(number(line, "connections") == 100 && line.contains("bounded_by=MAX_CONNECTIONS"), "{line}");
    service.signal("-TERM");
    assert!(!service.end().1.contains("WARN"));
}
