//! Behind nginx, as in production.

use std::time::Duration;

use ai_service::config::Config;
use futures_util::{SinkExt, StreamExt, future::join_all};
use reqwest::{Client, Version};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::support::{
    PATIENCE, Play, ScriptedUpstream, TestApp,
    dice::Dice,
    events::{Script, contents},
    nginx::Nginx,
    upstream::{answer, response},
};

/// What nginx keeps its connections for, and the service, when nobody says otherwise.
const USUAL: Duration = Duration::from_secs(60);

fn client() -> Client {
    let client = Client::builder().no_proxy().timeout(PATIENCE).tls_danger_accept_invalid_certs(true);
    client.build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx; run by make test"]
async fn through_a_proxy_streams_come_word_by_word_and_are_resumed_and_stopped() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let nginx = Nginx::before(app.address, USUAL).await;
    let plain = format!("http://{}", nginx.plain);
    let tls = format!("https://localhost:{}", nginx.tls.port());
    let ways = [plain.clone(), format!("{plain}/ai"), format!("{plain}/old"), tls.clone()];
    for base in ways {
        let app = app.at(&base, client());
        upstream.then([Play::Send(response(200, "", &answer("whole").to_string()))]);
        let whole = app.chat(&json!({"message": "x"})).await;
        assert_eq!(whole.json()["response"], "whole", "{base}");

        upstream.then(Script::chunked().piece("one").hold().piece("two").hold().finish("stop").done().end());
        let id = app.begin(&json!({"message": "x"})).await;
        let mut reading = app.events(&id).await;
        assert_eq!(contents(&reading.take(2).await), ["one"], "{base}");
        upstream.release();
        assert_eq!(contents(&reading.take(1).await), ["two"], "{base}");
        // Another one comes later, with a cursor.
        let mut later = app.events_behind(&id, 2).await.unwrap();
        assert_eq!(contents(&later.take(1).await), ["two"], "{base}");
        drop(reading);
        upstream.release();
        assert_eq!(later.rest().await.last().unwrap().data["full_content"], "onetwo", "{base}");
        assert!(app.events_behind(&id, 4).await.is_none(), "{base}");

        upstream.then(Script::chunked().piece("one").play(Play::Silence));
        let mut direct = app.chat_as_stream(&json!({"message": "x"})).await;
        let begun = direct.take(2).await;
        assert_eq!(contents(&begun), ["one"], "{base}");
        let id = begun[0].data["stream_id"].as_str().unwrap();
        assert_eq!(app.cancel(id).await.status, 200, "{base}");
        assert_eq!(direct.rest().await.last().unwrap().data["finish_reason"], "cancelled", "{base}");
        assert_eq!(app.cancel(id).await.error(404).1, "stream_not_found", "{base}");
        assert_eq!(app.chat_bytes(vec![b'x'; 3_000_000]).await.error(413).1, "body_too_large", "{base}");
    }
    let version = client().get(format!("{tls}/health")).send().await.unwrap().version();
    assert_eq!(version, Version::HTTP_2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx; run by make test"]
async fn a_websocket_is_upgraded_through_a_proxy() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let nginx = Nginx::before(app.address, USUAL).await;
    for path in ["/chat/ws", "/ai/chat/ws"] {
        upstream.then(Script::chunked().piece("one").hold().piece("two").finish("stop").done().end());
        let (mut socket, _) = connect_async(format!("ws://{}{path}", nginx.plain)).await.unwrap();
        let chat = json!({"type": "chat", "message": "x"});
        socket.send(Message::text(chat.to_string())).await.unwrap();
        let mut hear = async || loop {
            let message = timeout(PATIENCE, socket.next()).await.expect("a message").unwrap().unwrap();
            if let Message::Text(text) = message {
                return serde_json::from_str::<Value>(&text).unwrap();
            }
        };
        assert_eq!(hear().await["type"], "START");
        assert_eq!(hear().await["content"], "one");
        upstream.release();
        assert_eq!(hear().await["content"], "two");
        assert_eq!(hear().await["full_content"], "onetwo");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx; run by make test"]
async fn two_thousand_requests_through_a_proxy_that_keeps_its_connections_meet_no_closed_one() {
    // Of every time a fortieth: of 75 s, of the 60 s that nginx keeps its own, and of the 10 s that a head has.
    let scaled = |seconds: f64| Duration::from_secs_f64(seconds / 40.0);
    let upstream = ScriptedUpstream::start().await;
    upstream.echo();
    let change = |config: &mut Config| {
        (config.limits.head_time, config.limits.keep_alive) = (scaled(10.0), scaled(75.0));
    };
    let app = TestApp::start_with(&upstream.base_url, change).await;
    let nginx = Nginx::before(app.address, scaled(60.0)).await;
    let base = format!("http://{}", nginx.plain);
    let callers = (0..50_u64).map(|caller| {
        let app = app.at(&base, client());
        async move {
            let mut dice = Dice(caller);
            for n in 0..40 {
                let around = if n % 10 == 9 { 59.9 } else { 9.9 };
                sleep(scaled(around + dice.below(200) as f64 / 1000.0)).await;
                let answer = app.chat(&json!({"message": "x"})).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        }
    });
    join_all(callers).await;
    assert_eq!(upstream.seen().len(), 2000);
}
