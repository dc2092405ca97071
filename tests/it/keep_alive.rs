//! How long a connection waits for what.

use std::time::{Duration, Instant};

use ai_service::config::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::support::{PATIENCE, ScriptedUpstream, TestApp};

const HEAD: Duration = Duration::from_millis(400);
const KEPT: Duration = Duration::from_millis(1500);

async fn start() -> TestApp {
    let upstream = ScriptedUpstream::start().await;
    let change = |config: &mut Config| (config.limits.head_time, config.limits.keep_alive) = (HEAD, KEPT);
    TestApp::start_with(&upstream.base_url, change).await
}

const REQUEST: &[u8] = b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n";

/// Reads one answer.
async fn answered(connection: &mut TcpStream) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let read = timeout(PATIENCE, connection.read_buf(&mut answer)).await.expect("an answer").unwrap();
        assert!(read > 0, "it was closed");
    }
    assert!(answer.starts_with(b"HTTP/1.1 404 "));
}

/// How long it takes until the service closes the connection, without another word.
async fn closed_after(connection: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    let read = timeout(PATIENCE, connection.read_u8()).await.expect("the connection is closed");
    assert!(read.is_err());
    begun.elapsed()
}

#[track_caller]
fn assert_about(time: Duration, expected: Duration) {
    let range = expected.mul_f32(0.9)..expected + Duration::from_millis(700);
    assert!(range.contains(&time), "{time:?} is not about {expected:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_has_its_time_and_each_head_its_own_from_the_first_byte() {
    let app = start().await;
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    for _ in 0..3 {
        connection.write_all(REQUEST).await.unwrap();
        answered(&mut connection).await;
        // Longer than a head has, shorter than a connection is kept.
        sleep(HEAD * 2).await;
        // A head that takes most of its time.
        let (first, rest) = REQUEST.split_at(10);
        connection.write_all(first).await.unwrap();
        sleep(HEAD / 2).await;
        connection.write_all(rest).await.unwrap();
        answered(&mut connection).await;
    }
    assert_about(closed_after(&mut connection).await, KEPT);

    let mut silent = TcpStream::connect(app.address).await.unwrap();
    assert_about(closed_after(&mut silent).await, HEAD);
    let mut slow = TcpStream::connect(app.address).await.unwrap();
    slow.write_all(b"GET / HT").await.unwrap();
    assert_about(closed_after(&mut slow).await, HEAD);
    let mut slow_second = TcpStream::connect(app.address).await.unwrap();
    slow_second.write_all(REQUEST).await.unwrap();
    answered(&mut slow_second).await;
    sleep(HEAD * 2).await;
    slow_second.write_all(b"G").await.unwrap();
    assert_about(closed_after(&mut slow_second).await, HEAD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_has_no_more_time_than_one_that_stops() {
    let app = start().await;
    let mut connection = TcpStream::connect(app.address).await.unwrap();
    connection.write_all(REQUEST).await.unwrap();
    answered(&mut connection).await;
    let begun = Instant::now();
    while connection.write_all(b"G").await.is_ok() {
        assert!(begun.elapsed() < HEAD * 4, "it drips on");
        sleep(HEAD / 8).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_hold_up_the_end() {
    let app = start().await;
    let mut kept = TcpStream::connect(app.address).await.unwrap();
    kept.write_all(REQUEST).await.unwrap();
    answered(&mut kept).await;
    let _silent = TcpStream::connect(app.address).await.unwrap();
    let begun = Instant::now();
    assert!(app.stop_gracefully().await);
    assert!(begun.elapsed() < HEAD, "{:?}", begun.elapsed());
    assert!(closed_after(&mut kept).await < HEAD);
}
