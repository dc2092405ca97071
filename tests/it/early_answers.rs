//! Answers that are given before the body was read reach whoever is still sending it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use ai_service::config::{ApiKey, Config};

use crate::support::{PATIENCE, Play, ScriptedUpstream, TestApp};

/// Sends everything before it reads anything, as Python's `http.client` does; head and body apart.
fn send_all_then_read(address: SocketAddr, head: &str, body: &[u8]) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let head = format!("{head}Host: x\r\nContent-Length: {}\r\n\r\n", body.len());
    connection.write_all(head.as_bytes())?;
    connection.write_all(body)?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

async fn asked(address: SocketAddr, head: &'static str, bytes: usize) -> std::io::Result<String> {
    tokio::task::spawn_blocking(move || send_all_then_read(address, head, &vec![b'x'; bytes])).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_body_was_sent_is_read_every_time() {
    let upstream = ScriptedUpstream::start().await;
    let open = TestApp::start(&upstream.base_url).await;
    let keys = |config: &mut Config| config.access.keys = vec![ApiKey::new("alice", "a-key-of-sixteen-x")];
    let closed = TestApp::start_with(&upstream.base_url, keys).await;
    let blocked =
        |config: &mut Config| config.access.blocked = vec!["127.0.0.1".parse::<std::net::IpAddr>().unwrap().into()];
    let blocked = TestApp::start_with(&upstream.base_url, blocked).await;
    let full = TestApp::start_with(&upstream.base_url, |config| config.rate_limits.in_flight = 1).await;
    upstream.then([Play::Silence]);
    let (client, url) = (reqwest::Client::new(), full.url("/chat"));
    let _running =
        tokio::spawn(client.post(url).header("content-type", "application/json").body(r#"{"message":"x"}"#).send());
    upstream.arrived(1).await;

    let chat = "POST /chat HTTP/1.1\r\nContent-Type: application/json\r\n";
    for (app, head, bytes, status) in [
        (&open, chat, 2_200_000, 413),
        (&open, chat, 7_000_000, 413),
        (&closed, chat, 1_900_000, 401),
        (&closed, "PUT /conversations/x HTTP/1.1\r\n", 1_900_000, 401),
        (&blocked, chat, 1_900_000, 403),
        (&full, chat, 1_900_000, 503),
        (&open, "POST /chat HTTP/1.1\r\nContent-Encoding: gzip\r\n", 1_900_000, 415),
        (&open, "POST /nope HTTP/1.1\r\n", 1_900_000, 404),
        (&open, "POST /health HTTP/1.1\r\n", 1_900_000, 405),
        (&open, "POST /chat HTTP/1.1\r\nHost: y\r\n", 1_900_000, 400),
    ] {
        for _ in 0..10 {
            let answer =
                asked(app.address, head, bytes).await.unwrap_or_else(|error| panic!("{head} {status}: {error}"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.contains("connection: close\r\n") && answer.ends_with('}'), "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_after_the_answer_is_read_within_bounds() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let address = app.address;
    let endless = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n").unwrap();
        let (begun, mut sent) = (Instant::now(), 0);
        while connection.write_all(&[b'x'; 65536]).is_ok() {
            sent += 65536;
            assert!(begun.elapsed() < PATIENCE && sent < 64 * 1024 * 1024, "it reads on: {sent}");
        }
        sent
    });
    assert!(endless.await.unwrap() >= 8 * 1024 * 1024);
    // One that waits instead holds its connection for 5 s.
    let begun = Instant::now();
    let answer = app.raw(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let waiting = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n").unwrap();
        connection.read_to_string(&mut String::new()).unwrap();
        let begun = Instant::now();
        while connection.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
            assert!(begun.elapsed() < PATIENCE, "it holds on");
        }
        begun.elapsed()
    });
    let held = waiting.await.unwrap();
    assert!((4..8).contains(&held.as_secs()), "{held:?} {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_body_that_nobody_read_costs_no_connection() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let one = "POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
    let last = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = app.raw(format!("{one}{last}").as_bytes()).await;
    assert_eq!(
        (answers.matches("HTTP/1.1 404 ").count(), answers.matches("HTTP/1.1 200 ").count()),
        (1, 1),
        "{answers}"
    );
    let first = answers.split("HTTP/1.1 200").next().unwrap();
    assert!(!first.contains("connection: close"), "{first}");
    // Who waits to be asked for the body is not asked, and told that the connection ends.
    let expecting = "POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    let answer = app.raw(expecting.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close"), "{answer}");
}
