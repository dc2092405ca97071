//! WebSockets: who they are, and that one caller's streams are not another's.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use super::{ALICE, BOB, Service, UNKNOWN};
use crate::support::{PATIENCE, TestApp, events::Script};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A socket, and the protocol that the service chose; or the status of the refusal.
async fn connect(app: &TestApp, headers: &[(&'static str, &str)]) -> Result<(Socket, Option<String>), u16> {
    let mut request = format!("ws://{}/chat/ws", app.address).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    match connect_async(request).await {
        Ok((socket, response)) => {
            let chosen = response.headers().get("sec-websocket-protocol");
            Ok((socket, chosen.map(|value| value.to_str().unwrap().to_owned())))
        }
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

async fn known(app: &TestApp, key: &str) -> Socket {
    connect(app, &[("authorization", &format!("Bearer {key}"))]).await.expect("a socket").0
}

async fn say(socket: &mut Socket, request: &Value) -> Value {
    socket.send(Message::text(request.to_string())).await.unwrap();
    hear(socket).await
}

async fn hear(socket: &mut Socket) -> Value {
    loop {
        let message = timeout(PATIENCE, socket.next()).await.expect("in time").expect("open").expect("whole");
        if let Message::Text(text) = message {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

#[tokio::test]
async fn a_socket_says_who_it_is_in_a_header_or_in_a_protocol() {
    let service = Service::start().await;
    let app = &service.app;
    let by_protocol = format!("ai-service, bearer.{ALICE}");
    let (mut socket, chosen) = connect(app, &[("sec-websocket-protocol", &by_protocol)]).await.unwrap();
    assert_eq!(chosen.as_deref(), Some("ai-service"), "and never the token");
    service.upstream.then(Script::answer(&["안녕"]));
    let start = say(&mut socket, &json!({"type": "chat", "message": "x"})).await;
    let id = start["stream_id"].as_str().unwrap();
    while hear(&mut socket).await["type"] != "END" {}
    assert_eq!(service.alice.state(id).await["content"], "안녕", "the same caller as over HTTP");
    service.bob.get_state(id).await.error(404);
    known(app, ALICE).await;

    let bearer = format!("Bearer {ALICE}");
    for refused in [
        &[][..],
        &[("sec-websocket-protocol", "ai-service")],
        &[("sec-websocket-protocol", "ai-service, bearer.")],
        &[("sec-websocket-protocol", "ai-service, bearer.wrong")],
        &[("sec-websocket-protocol", ALICE)],
        &[("authorization", "Bearer wrong"), ("sec-websocket-protocol", &by_protocol)],
        &[("authorization", &bearer), ("authorization", &bearer)],
    ] {
        assert_eq!(connect(app, refused).await.err(), Some(401), "{refused:?}");
    }
    let on_other_routes = app.asked_with(&[("sec-websocket-protocol", &by_protocol)]);
    on_other_routes.get("/models").await.error(401);
}

#[tokio::test]
async fn anothers_stream_is_unknown_over_a_socket() {
    let service = Service::start().await;
    service.upstream.then(Script::chunked().role().piece("하나").hold().finish("stop").done().end());
    let id = service.alice.begin(&json!({"message": "x"})).await;
    let mut bob = known(&service.app, BOB).await;
    for is_ended in [false, true] {
        for kind in ["resume", "stop"] {
            for cursor in [json!(null), json!(1), json!(99)] {
                let ask = |id: &str| json!({"type": kind, "stream_id": id, "last_event_id": cursor, "ref": "r"});
                let mut others = say(&mut bob, &ask(&id)).await;
                assert_eq!((&others["type"], &others["code"]), (&json!("REJECTED"), &json!("stream_not_found")));
                let unknown = say(&mut bob, &ask(UNKNOWN)).await;
                others["stream_id"] = json!(UNKNOWN);
                assert_eq!(others, unknown);
            }
        }
        if !is_ended {
            service.upstream.release();
            service.alice.events(&id).await.rest().await;
        }
    }
    assert_eq!(service.alice.state(&id).await["status"], "finished");
}

#[tokio::test]
async fn what_is_asked_over_a_socket_counts_like_what_is_asked_over_http() {
    let pairs = [("RATE_LIMIT_REQUESTS_PER_MINUTE", "1"), ("RATE_LIMIT_BURST", "3"), ("MAX_CONCURRENT_STREAMS", "1")];
    let service = Service::start_with(&pairs).await;
    let chat = json!({"type": "chat", "message": "x", "ref": "r"});
    // The handshake is a request.
    let mut socket = known(&service.app, ALICE).await;
    service.upstream.then(Script::chunked().role().piece("하나").hold().finish("stop").done().end());
    assert_eq!(say(&mut socket, &chat).await["type"], "ACCEPTED");
    while hear(&mut socket).await["type"] != "CHUNK" {}
    let second = say(&mut socket, &chat).await;
    assert_eq!((&second["type"], &second["code"]), (&json!("REJECTED"), &json!("too_many_streams")));
    let third = say(&mut socket, &chat).await;
    assert_eq!((&third["type"], &third["code"]), (&json!("REJECTED"), &json!("rate_limited")));
    assert_eq!(connect(&service.app, &[("authorization", &format!("Bearer {ALICE}"))]).await.err(), Some(429));
    known(&service.app, BOB).await;
    service.upstream.release();
}

#[tokio::test]
async fn reading_again_and_again_over_a_socket_is_a_storm_too() {
    let service = Service::start().await;
    service.upstream.then(Script::answer(&["x"]));
    let id = service.alice.begin(&json!({"message": "x"})).await;
    service.alice.events(&id).await.rest().await;
    let mut socket = known(&service.app, ALICE).await;
    let again = json!({"type": "resume", "stream_id": id, "last_event_id": 3});
    for _ in 1..30 {
        assert_eq!(say(&mut socket, &again).await["type"], "NOTHING_LEFT");
    }
    assert_eq!(say(&mut socket, &again).await["code"], "rate_limited");
    service.alice.get(&format!("/chat/stream/{id}")).await.error(429);
}

#[tokio::test]
async fn a_socket_ends_with_the_token_that_it_came_with() {
    const SECRET: &str = "a secret of at least thirty-two bytes";
    let service = Service::start_with(&[("JWT_SECRET", SECRET)]).await;
    // With a minute's grace, a second and a half is left.
    let exp = chrono::Utc::now().timestamp() - 58;
    let token = super::tokens::jwt(SECRET, |claims| claims["exp"] = json!(exp));
    let ways = [
        ("authorization", format!("Bearer {token}")),
        ("sec-websocket-protocol", format!("ai-service, bearer.{token}")),
    ];
    let mut sockets = Vec::new();
    for (name, value) in &ways {
        sockets.push(connect(&service.app, &[(*name, value)]).await.expect("it is good").0);
    }
    for mut socket in sockets {
        let last = loop {
            let reply = say(&mut socket, &json!({"type": "stop", "stream_id": UNKNOWN, "ref": "r"})).await;
            if reply["code"] != "stream_not_found" {
                break reply;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        assert_eq!(
            (&last["type"], &last["code"], &last["ref"]),
            (&json!("REJECTED"), &json!("unauthorized"), &json!("r"))
        );
        let closed = timeout(PATIENCE, socket.next()).await.expect("in time").expect("open").expect("whole");
        let Message::Close(Some(frame)) = closed else { panic!("{closed:?}") };
        assert_eq!(u16::from(frame.code), 1008);
    }
}
