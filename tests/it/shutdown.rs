//! The orderly end.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    PATIENCE, Play, ScriptedUpstream, TestApp, Transport, eventually,
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

/// A stream's response so far, and the rest of it.
async fn open_stream(client: &reqwest::Client, app: &TestApp) -> reqwest::Response {
    let request = client.post(app.url("/chat")).header("content-type", "application/json");
    request.header("accept", "text/event-stream").body(r#"{"message":"x"}"#).send().await.unwrap()
}

/// A stream of the upstream's, in two halves.
fn halves() -> (Vec<u8>, Vec<u8>) {
    let event = |content: &str| {
        let data = json!({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": null}]});
        format!("data: {data}\n\n")
    };
    let head = "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let first = format!("{head}{}", chunk(&event("first ")));
    let rest = format!("{}0\r\n\r\n", chunk(&format!("{}data: [DONE]\n\n", event("second"))));
    (first.into_bytes(), rest.into_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_200_live_streams_those_that_finish_are_whole_and_the_others_say_so() {
    finish_or_say_so(ScriptedUpstream::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_200_live_streams_over_http_2_those_that_finish_are_whole_and_the_others_say_so() {
    finish_or_say_so(ScriptedUpstream::over(Transport::Http2).await).await;
}

async fn finish_or_say_so(upstream: ScriptedUpstream) {
    let (first, rest) = halves();
    // Every other one never ends by itself.
    for n in 0..200 {
        let end = if n % 2 == 0 { vec![Play::Hold, Play::Send(rest.clone())] } else { vec![Play::Silence] };
        upstream.then([Play::Send(first.clone())].into_iter().chain(end));
    }
    let mut app = upstream.app_with(|config| config.limits.shutdown_grace = Duration::from_secs(6)).await;
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let streams = futures_util::future::join_all((0..200).map(|_| open_stream(&client, &app))).await;
    upstream.arrived(200).await;

    let started = std::time::Instant::now();
    let served = app.stop();
    for _ in 0..100 {
        upstream.release();
        tokio::task::yield_now().await;
    }
    let release = async {
        // `release` keeps one permit at most: those that were not waiting yet need another.
        loop {
            upstream.release();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let read = futures_util::future::join_all(streams.into_iter().map(reqwest::Response::text));
    let texts = tokio::select! {
        texts = read => texts,
        () = release => unreachable!(),
    };
    let (mut whole, mut broken) = (0, 0);
    for text in texts {
        let text = text.expect("the response ends in good order");
        let last = text.lines().rfind(|line| line.starts_with("data: ")).unwrap().trim_start_matches("data: ");
        let last: serde_json::Value = serde_json::from_str(last).unwrap();
        match last["type"].as_str().unwrap() {
            "END" => {
                assert_eq!(last["full_content"], "first second");
                whole += 1;
            }
            "ERROR" => {
                assert_eq!((&last["code"], &last["partial"]), (&json!("shutdown"), &json!("first ")));
                assert_eq!((&last["status"], &last["retryable"]), (&json!(503), &json!(true)));
                broken += 1;
            }
            other => panic!("{other}"),
        }
        assert_eq!(text.matches("\"type\":\"E").count(), 1, "one end");
    }
    assert_eq!((whole, broken), (100, 100));
    let finished = tokio::time::timeout(PATIENCE, served).await.expect("in time").unwrap();
    assert!(!finished, "some did not finish by themselves");
    assert!(started.elapsed() >= Duration::from_secs(6), "the grace was given");
    // Nothing runs on behind it.
    eventually(async || upstream.edge().streams() == 0).await;
}
