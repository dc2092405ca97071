//! Streams over a WebSocket: the same log, the same events, the same refusals.

use std::time::Duration;

use ai_service::config::AllowedOrigins;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

use crate::support::{
    PATIENCE, Play, ScriptedUpstream, TestApp,
    events::{Event, Script},
};

/// A client of one socket. Dropping it breaks the connection.
pub struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    pub async fn connect(app: &TestApp) -> Self {
        Self::connect_as(app, None).await.expect("a socket")
    }

    /// From a page of that origin. The error: status and code of the refusal.
    async fn connect_as(app: &TestApp, origin: Option<&str>) -> Result<Self, (u16, String)> {
        let mut request = format!("ws://{}/chat/ws", app.address).into_client_request().unwrap();
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        match connect_async(request).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(Error::Http(response)) => {
                let body: Value = serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
                Err((response.status().as_u16(), body["code"].as_str().unwrap().to_owned()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn send(&mut self, message: Message) {
        self.0.send(message).await.expect("sent");
    }

    pub async fn say(&mut self, request: &Value) {
        self.send(Message::text(request.to_string())).await;
    }

    /// The next message that is not a ping.
    async fn next(&mut self) -> Message {
        let next = async {
            loop {
                let message = self.0.next().await.expect("an open socket").expect("a whole message");
                if !message.is_ping() {
                    return message;
                }
            }
        };
        timeout(PATIENCE, next).await.expect("something to hear")
    }

    async fn text(&mut self) -> String {
        match self.next().await {
            Message::Text(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn hear(&mut self) -> Value {
        serde_json::from_str(&self.text().await).expect("JSON")
    }

    /// The events of the one stream on this socket, to its last.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.hear().await;
            let is_last = matches!(event["type"].as_str(), Some("END" | "ERROR"));
            events.push(event);
            if is_last {
                return events;
            }
        }
    }

    /// The code with which the service closes, and nothing before it.
    async fn closed(&mut self) -> u16 {
        match self.next().await {
            Message::Close(Some(close)) => close.code.into(),
            other => panic!("{other:?}"),
        }
    }
}

async fn start() -> (ScriptedUpstream, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    (upstream, app)
}

fn chat() -> Value {
    json!({"type": "chat", "message": "안녕"})
}

fn id_of(event: &Value) -> String {
    event["stream_id"].as_str().expect("a stream").to_owned()
}

fn numbers(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["id"].as_u64().expect("a number")).collect()
}

/// An event of HTTP as a socket brings it.
fn as_on_socket(id: &str, event: &Event) -> Value {
    let mut data = event.data.clone();
    data["id"] = json!(event.id);
    data["stream_id"] = json!(id);
    data
}

/// Two pieces, the second when the test wants it.
fn halting() -> Script {
    Script::chunked().role().piece("하나").hold().piece("둘").finish("stop").done().end()
}

/// One piece, and then nothing until the service leaves.
fn endless() -> Script {
    Script::chunked().role().piece("하나").play(Play::Silence)
}

#[tokio::test]
async fn a_socket_brings_the_events_of_http_with_their_numbers() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["안녕", "하세요!"]));
    let mut client = Client::connect(&app).await;
    client.say(&chat()).await;
    let start = client.hear().await;
    let id = id_of(&start);
    assert_eq!(start, json!({"id": 1, "type": "START", "stream_id": id}));
    let chunk = client.text().await;
    assert_eq!(chunk, format!(r#"{{"id":2,"stream_id":"{id}","type":"CHUNK","content":"안녕"}}"#));

    let rest = client.rest().await;
    let over_http = app.events(&id).await.rest().await;
    let expected: Vec<_> = over_http.iter().map(|event| as_on_socket(&id, event)).collect();
    assert_eq!([vec![start, serde_json::from_str(&chunk).unwrap()], rest].concat(), expected);
    assert_eq!(upstream.seen()[0].body["messages"][0]["content"], "안녕");
}

#[tokio::test]
async fn several_streams_share_a_socket_and_every_one_ends() {
    let (upstream, app) = start().await;
    let mut client = Client::connect(&app).await;
    for _ in 0..3 {
        upstream.then(halting());
        client.say(&chat()).await;
    }
    let mut events = Vec::new();
    while events.iter().filter(|event: &&Value| event["type"] == "CHUNK").count() < 3 {
        events.push(client.hear().await);
    }
    // Each has begun and none has ended.
    for _ in 0..3 {
        upstream.release();
        while events.last().unwrap()["type"] != "END" {
            events.push(client.hear().await);
        }
        events.push(json!(null));
    }
    events.retain(|event| !event.is_null());
    let mut ids: Vec<_> = events.iter().map(id_of).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    for id in ids {
        let own: Vec<_> = events.iter().filter(|event| id_of(event) == id).cloned().collect();
        assert_eq!(numbers(&own), [1, 2, 3, 4]);
        assert_eq!(own[3]["full_content"], "하나둘");
    }
}

#[tokio::test]
async fn a_stream_goes_on_behind_its_cursor_on_another_socket() {
    let (upstream, app) = start().await;
    upstream.then(halting());
    let mut first = Client::connect(&app).await;
    first.say(&chat()).await;
    let id = id_of(&first.hear().await);
    assert_eq!(first.hear().await["id"], 2);
    drop(first);

    let mut second = Client::connect(&app).await;
    let resume = |cursor: Value| json!({"type": "resume", "stream_id": id, "last_event_id": cursor});
    // Ahead of a running stream: from START.
    second.say(&resume(json!(9))).await;
    assert_eq!((second.hear().await["id"].clone(), second.hear().await["id"].clone()), (json!(1), json!(2)));
    second.say(&resume(json!(2))).await;
    upstream.release();
    assert_eq!(numbers(&second.rest().await), [3, 4]);
    for (cursor, expected) in [
        (json!(3), &[4][..]),
        (json!("3"), &[4]),
        (json!(null), &[1, 2, 3, 4]),
        (json!(0), &[1, 2, 3, 4]),
        (json!("?"), &[1, 2, 3, 4]),
    ] {
        second.say(&resume(cursor.clone())).await;
        assert_eq!(numbers(&second.rest().await), expected, "{cursor}");
    }
    second.say(&resume(json!(4))).await;
    assert_eq!(second.hear().await, json!({"type": "NOTHING_LEFT", "stream_id": id}));
    // Ahead of one that has ended: from START as well.
    second.say(&resume(json!(5))).await;
    assert_eq!(numbers(&second.rest().await), [1, 2, 3, 4]);
    second.say(&json!({"type": "resume", "stream_id": id, "last_event_id": 4, "ref": "r"})).await;
    assert_eq!(second.hear().await, json!({"type": "NOTHING_LEFT", "ref": "r", "stream_id": id}));
}

#[tokio::test]
async fn a_stream_that_is_followed_already_is_followed_from_the_new_cursor_alone() {
    let (upstream, app) = start().await;
    // To cancel, a stream must have been without a reader for a moment.
    upstream.then(halting());
    let mut client = Client::connect(&app).await;
    client.say(&json!({"type": "chat", "message": "안녕", "on_disconnect": "cancel"})).await;
    let id = id_of(&client.hear().await);
    assert_eq!(client.hear().await["id"], 2);
    client.say(&json!({"type": "resume", "stream_id": id})).await;
    assert_eq!(client.hear().await["id"], 1);
    assert_eq!(client.hear().await["id"], 2);
    upstream.release();
    let rest = client.rest().await;
    assert_eq!((numbers(&rest), &rest[1]["finish_reason"]), (vec![3, 4], &json!("stop")));
    // Nothing comes twice.
    client.say(&json!({"type": "?"})).await;
    assert_eq!(client.hear().await["type"], "REJECTED");
}

#[tokio::test]
async fn a_reference_comes_back_before_the_first_event() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["안녕"]));
    let mut client = Client::connect(&app).await;
    client.say(&json!({"type": "chat", "message": "안녕", "ref": "a.B_c-9"})).await;
    let accepted = client.hear().await;
    let id = id_of(&accepted);
    assert_eq!(accepted, json!({"type": "ACCEPTED", "ref": "a.B_c-9", "stream_id": id}));
    assert_eq!(client.hear().await, json!({"id": 1, "type": "START", "stream_id": id}));
}

#[tokio::test]
async fn a_stopped_stream_ends_on_every_socket_and_its_upstream_is_left() {
    let (upstream, app) = start().await;
    upstream.then(endless());
    let (mut one, mut other) = (Client::connect(&app).await, Client::connect(&app).await);
    one.say(&chat()).await;
    let id = id_of(&one.hear().await);
    assert_eq!(one.hear().await["content"], "하나");
    other.say(&json!({"type": "resume", "stream_id": id, "last_event_id": 2, "ref": "r"})).await;
    assert_eq!(other.hear().await["type"], "ACCEPTED");
    let stop = json!({"type": "stop", "stream_id": id, "ref": "s"});
    other.say(&stop).await;
    let accepted = other.hear().await;
    assert_eq!(accepted, json!({"type": "ACCEPTED", "ref": "s", "stream_id": id}));
    for client in [&mut one, &mut other] {
        let end = client.hear().await;
        assert_eq!((&end["finish_reason"], &end["full_content"]), (&json!("cancelled"), &json!("하나")));
    }
    upstream.left().await;
    other.say(&stop).await;
    let refused = other.hear().await;
    assert_eq!((&refused["code"], &refused["ref"]), (&json!("stream_not_found"), &json!("s")));
    assert_eq!(refused["stream_id"], json!(id));
}

#[tokio::test]
async fn a_chat_is_refused_as_over_http() {
    let (_upstream, app) = start().await;
    let mut client = Client::connect(&app).await;
    for body in [
        json!({"message": 1}),
        json!({"message": "x", "temperature": "hot", "max_tokens": 0, "conversation_history": [{"role": 1}]}),
        json!({"message": "x", "on_disconnect": "?"}),
    ] {
        let (detail, code) = app.chat(&body).await.error(422);
        let mut request = body.clone();
        request["type"] = json!("chat");
        request["ref"] = json!("r");
        client.say(&request).await;
        let expected = json!({"type": "REJECTED", "ref": "r", "code": code, "detail": detail});
        assert_eq!(client.hear().await, expected, "{body}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_the_socket_lives() {
    let (upstream, app) = start().await;
    let mut client = Client::connect(&app).await;
    let unknown = "3e458467-c21f-4429-a90d-e0d2f496e3b2";
    for (text, code, first) in [
        ("", "invalid_request", json!({"type": "json_invalid", "loc": ["body", 0]})),
        (r#"{"type":"#, "invalid_request", json!({"type": "json_invalid", "loc": ["body", 8]})),
        ("[1]", "invalid_request", json!({"type": "model_attributes_type", "loc": ["body"]})),
        ("{}", "invalid_request", json!({"type": "missing", "loc": ["body", "type"]})),
        (r#"{"type":7}"#, "invalid_request", json!({"type": "string_type", "loc": ["body", "type"]})),
        (r#"{"type":"CHAT"}"#, "invalid_request", json!({"type": "literal_error", "loc": ["body", "type"]})),
        (r#"{"type":"chat"}"#, "invalid_request", json!({"type": "missing", "loc": ["body", "message"]})),
        (r#"{"type":"resume"}"#, "invalid_request", json!({"type": "missing", "loc": ["body", "stream_id"]})),
        (
            r#"{"type":"stop","stream_id":1}"#,
            "invalid_request",
            json!({"type": "string_type", "loc": ["body", "stream_id"]}),
        ),
        (r#"{"type":"stop","stream_id":"x"}"#, "stream_not_found", json!(null)),
        (&format!(r#"{{"type":"resume","stream_id":"{unknown}"}}"#), "stream_not_found", json!(null)),
        (&"[".repeat(5000), "unreadable_body", json!(null)),
    ] {
        client.send(Message::text(text)).await;
        let refused = client.hear().await;
        assert_eq!((&refused["type"], &refused["code"]), (&json!("REJECTED"), &json!(code)), "{text}");
        if let Some(issue) = first.as_object() {
            for (name, value) in issue {
                assert_eq!(&refused["detail"][0][name], value, "{text}");
            }
        } else {
            assert!(refused["detail"].is_string(), "{text}");
        }
        let names_a_stream = text.contains(unknown);
        assert_eq!(refused.get("stream_id"), names_a_stream.then_some(&json!(unknown)), "{text}");
    }
    upstream.then(Script::answer(&["안녕"]));
    client.say(&chat()).await;
    assert_eq!(numbers(&client.rest().await), [1, 2, 3]);
}

#[tokio::test]
async fn what_is_no_text_or_too_much_of_it_closes_the_socket_with_its_code() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.limits.body_bytes = 2048).await;
    let raw = |data, payload: &[u8]| Message::Frame(Frame::message(payload.to_vec(), OpCode::Data(data), true));
    for (message, code) in [
        (Message::binary(b"{}".to_vec()), 1003),
        (raw(Data::Text, b"{\"\xff\":1}"), 1007),
        (raw(Data::Reserved(3), b"{}"), 1002),
        (Message::text("x".repeat(2049)), 1009),
        (Message::text("x".repeat(1024 * 1024)), 1009),
    ] {
        let mut client = Client::connect(&app).await;
        client.send(message).await;
        assert_eq!(client.closed().await, code);
    }
    // In pieces, none of which is too large.
    let mut client = Client::connect(&app).await;
    for (index, opcode) in [Data::Text, Data::Continue, Data::Continue].into_iter().enumerate() {
        let frame = Frame::message(vec![b'x'; 1000], OpCode::Data(opcode), index == 2);
        client.send(Message::Frame(frame)).await;
    }
    assert_eq!(client.closed().await, 1009);
    // The largest that is allowed.
    let mut client = Client::connect(&app).await;
    client.send(Message::text("x".repeat(2048))).await;
    assert_eq!(client.hear().await["code"], "invalid_request");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_what_it_asked_to_cancel() {
    let (upstream, app) = start().await;
    for says_goodbye in [true, false] {
        upstream.then(endless());
        let mut client = Client::connect(&app).await;
        client.say(&json!({"type": "chat", "message": "안녕", "on_disconnect": "cancel"})).await;
        let id = id_of(&client.hear().await);
        assert_eq!(client.hear().await["id"], 2);
        if says_goodbye {
            client.0.close(None).await.unwrap();
            upstream.left().await;
        } else {
            drop(client);
            upstream.left().await;
        }
        let events = app.events(&id).await.rest().await;
        assert_eq!(events.last().unwrap().data["finish_reason"], "cancelled");
    }
}

#[tokio::test]
async fn a_goodbye_is_answered_in_kind() {
    let (_upstream, app) = start().await;
    let mut client = Client::connect(&app).await;
    client.0.close(None).await.unwrap();
    assert!(matches!(client.next().await, Message::Close(_)));
    let end = timeout(Duration::from_millis(500), client.0.next()).await.expect("the connection ends at once");
    assert!(end.is_none(), "{end:?}");
}

#[tokio::test]
async fn a_socket_that_does_not_read_slows_nobody_and_misses_nothing() {
    let (upstream, app) = start().await;
    let piece = "가".repeat(16 * 1024);
    let pieces = vec![piece.as_str(); 160];
    upstream.then(Script::answer(&pieces));
    let mut client = Client::connect(&app).await;
    client.say(&chat()).await;
    let id = id_of(&client.hear().await);
    // 15 MiB with END, which is more than Linux buffers for a connection.
    let over_http = app.events(&id).await.rest().await;
    assert_eq!(over_http.len(), 162);
    let mut rest = client.rest().await;
    assert_eq!(numbers(&rest), (2..=162).collect::<Vec<_>>());
    let end = rest.pop().unwrap();
    assert_eq!(end["full_content"].as_str().unwrap().len(), 160 * piece.len());
}

#[tokio::test]
async fn a_socket_follows_at_most_a_hundred_streams_at_once() {
    let (upstream, app) = start().await;
    let mut client = Client::connect(&app).await;
    for _ in 0..100 {
        upstream.then(Script::chunked().play(Play::Silence));
        client.say(&chat()).await;
        assert_eq!(client.hear().await["type"], "START");
    }
    client.say(&chat()).await;
    assert_eq!(client.hear().await["code"], "too_many_streams");
    let other = app.begin(&json!({"message": "안녕"})).await;
    client.say(&json!({"type": "resume", "stream_id": other})).await;
    assert_eq!(client.hear().await["code"], "too_many_streams");
}

#[tokio::test]
async fn a_request_that_is_no_handshake_is_an_error_in_the_form_of_every_error() {
    let (_upstream, app) = start().await;
    let handshake = |version| {
        [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", version),
        ]
    };
    for headers in [&[][..], &handshake("8"), &handshake("13")[..3], &handshake("13")[1..]] {
        let answer = app.request(Method::GET, "/chat/ws", headers, Vec::new()).await;
        assert_eq!(answer.error(426).1, "websocket_required");
        let told = ["upgrade", "sec-websocket-version"].map(|name| answer.header(name));
        assert_eq!(told, [Some("websocket"), Some("13")]);
    }
    app.request(Method::POST, "/chat/ws", &handshake("13"), Vec::new()).await.error(405);
}

#[tokio::test]
async fn a_page_that_is_not_in_the_list_gets_no_socket() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| {
        config.cors = AllowedOrigins::List(vec!["https://a.example".into(), "http://localhost:3000".into()]);
    })
    .await;
    for origin in [None, Some("https://a.example"), Some("http://localhost:3000")] {
        assert!(Client::connect_as(&app, origin).await.is_ok(), "{origin:?}");
    }
    for origin in ["https://b.example", "http://a.example", "https://a.example:444", "https://a.example.b", "null", ""]
    {
        let refused = Client::connect_as(&app, Some(origin)).await.err();
        assert_eq!(refused, Some((403, "origin_not_allowed".into())), "{origin}");
    }
    // Where the service itself is: what libraries say that are no browsers, and pages that a proxy serves beside it.
    let (host, port) = (app.address.ip(), app.address.port());
    assert!(Client::connect_as(&app, Some(&format!("http://{host}:{port}"))).await.is_ok());
    for origin in [format!("http://{host}"), format!("http://localhost:{port}"), format!("ftp://{host}:{port}")] {
        assert!(Client::connect_as(&app, Some(&origin)).await.is_err(), "{origin}");
    }
    let app = TestApp::start(&upstream.base_url).await;
    assert!(Client::connect_as(&app, Some("https://b.example")).await.is_ok());
}

#[tokio::test]
async fn an_idle_socket_closes_when_the_service_stops() {
    let (_upstream, mut app) = start().await;
    let mut client = Client::connect(&app).await;
    // So that the service has seen it.
    client.say(&json!({})).await;
    client.hear().await;
    let served = app.stop();
    assert_eq!(client.closed().await, 1012);
    assert!(timeout(PATIENCE, served).await.expect("in time").unwrap(), "everything finished");
}

#[tokio::test]
async fn a_running_answer_reaches_its_end_before_the_socket_closes() {
    let (upstream, mut app) = start().await;
    upstream.then(halting());
    let (mut client, mut idle) = (Client::connect(&app).await, Client::connect(&app).await);
    client.say(&chat()).await;
    let id = id_of(&client.hear().await);
    assert_eq!(client.hear().await["id"], 2);
    let served = app.stop();
    assert_eq!(idle.closed().await, 1012);
    for request in [chat(), json!({"type": "resume", "stream_id": id})] {
        client.say(&request).await;
        assert_eq!(client.hear().await["code"], "shutdown", "{request}");
    }
    upstream.release();
    let rest = client.rest().await;
    assert_eq!(rest[1]["full_content"], "하나둘");
    assert_eq!(client.closed().await, 1012);
    assert!(timeout(PATIENCE, served).await.expect("in time").unwrap(), "everything finished");
}

#[tokio::test]
async fn an_answer_that_outlives_the_grace_ends_with_an_error_and_a_close_frame() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then(endless());
    let mut app = TestApp::start_with(&upstream.base_url, |config| {
        config.limits.shutdown_grace = Duration::from_millis(150);
    })
    .await;
    let mut client = Client::connect(&app).await;
    client.say(&chat()).await;
    client.hear().await;
    assert_eq!(client.hear().await["id"], 2);
    let served = app.stop();
    let last = client.hear().await;
    assert_eq!((&last["type"], &last["code"], &last["partial"]), (&json!("ERROR"), &json!("shutdown"), &json!("하나")));
    assert_eq!(client.closed().await, 1012);
    assert!(!timeout(PATIENCE, served).await.expect("in time").unwrap());
}

#[tokio::test]
async fn a_socket_that_does_not_read_does_not_hold_up_the_end() {
    let upstream = ScriptedUpstream::start().await;
    let piece = "가".repeat(16 * 1024);
    upstream.then(Script::answer(&vec![piece.as_str(); 160]));
    let mut app = TestApp::start_with(&upstream.base_url, |config| {
        config.limits.shutdown_grace = Duration::from_millis(150);
    })
    .await;
    let mut client = Client::connect(&app).await;
    client.say(&chat()).await;
    let id = id_of(&client.hear().await);
    assert_eq!(app.events(&id).await.rest().await.len(), 162);
    let served = timeout(Duration::from_secs(5), app.stop()).await.expect("within the grace and its last words");
    assert!(!served.unwrap());
}
