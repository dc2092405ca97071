//! The orderly end.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    PATIENCE, Play, ScriptedUpstream, TestApp,
    upstream::{answer, response},
};

#[tokio::test]
async fn a_running_answer_finishes_and_new_connections_are_refused() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("to the end").to_string()))]);
    let mut app = TestApp::start(&upstream.base_url).await;
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    let body = json!({"message": "x"}).to_string();
    let request = format!(
        "POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    upstream.arrived(1).await;

    let address = app.address;
    let served = app.stop();
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("new connections are refused");
    upstream.release();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("to the end") && text.contains("connection: close"), "{text}");
    assert!(served.await.unwrap(), "everything finished");
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let upstream = ScriptedUpstream::start().await;
    let mut app = TestApp::start(&upstream.base_url).await;
    let silent = TcpStream::connect(app.address).await.unwrap();
    app.get("/").await;
    let served = app.stop();
    assert!(tokio::time::timeout(PATIENCE, served).await.expect("in time").unwrap());
    drop(silent);
}

#[tokio::test]
async fn what_does_not_finish_within_the_grace_is_left_behind() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Silence]);
    let mut app = TestApp::start_with(&upstream.base_url, |config| {
        config.limits.shutdown_grace = Duration::from_millis(150);
    })
    .await;
    let url = app.url("/chat");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let call =
        tokio::spawn(client.post(url).header("content-type", "application/json").body(r#"{"message":"x"}"#).send());
    upstream.arrived(1).await;
    let served = tokio::time::timeout(PATIENCE, app.stop()).await.expect("within the grace").unwrap();
    assert!(!served);
    call.abort();
}
