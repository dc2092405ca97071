//! Tickets: what lets a browser's EventSource read one stream, and whoever has it stop that stream; nothing else.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use super::{Service, UNKNOWN};
use crate::support::{
    Play, TestApp,
    events::{Script, contents},
    log,
};

/// A stream of alice's, and its address with the ticket.
async fn begin(service: &Service, script: Script) -> (String, String) {
    service.upstream.then(script);
    let answer = service.alice.post("/chat/stream", &json!({"message": "x"})).await;
    let body = answer.json();
    let (id, url) = (body["stream_id"].as_str().unwrap().to_owned(), body["stream_url"].as_str().unwrap().to_owned());
    let ticket = url.strip_prefix(&format!("/chat/stream/{id}?ticket=")).unwrap_or_else(|| panic!("{url}"));
    assert_eq!(ticket.len(), 22);
    (id, ticket.to_owned())
}

fn halting() -> Script {
    Script::chunked().role().piece("하나").hold().piece("둘").finish("stop").done().end()
}

#[tokio::test]
async fn whoever_has_a_ticket_reads_comes_back_sees_the_state_and_stops() {
    let service = Service::start().await;
    let app = &service.app;
    let (id, ticket) = begin(&service, halting()).await;
    let query = format!("?ticket={ticket}");
    let mut reading = app.events_with(&id, None, &query).await.unwrap();
    reading.take(2).await;
    service.upstream.release();
    let events = reading.rest().await;
    assert_eq!(contents(&events), ["둘"]);
    let again = app.events_with(&id, None, &format!("?ticket={ticket}&last_event_id=2")).await.unwrap().rest().await;
    assert_eq!(again, events);
    let again = app.events_with(&id, Some("2"), &format!("?x=y&ticket={ticket}")).await.unwrap().rest().await;
    assert_eq!(again, events);
    let path = format!("/chat/stream/{id}{query}");
    let state = app.request(Method::GET, &path, &[("accept", "application/json")], Vec::new()).await;
    assert_eq!(state.json()["content"], "하나둘");

    let (id, ticket) = begin(&service, Script::chunked().piece("하나").play(Play::Silence)).await;
    let stopped = app.delete(&format!("/chat/stream/{id}?ticket={ticket}")).await;
    assert_eq!(stopped.status, 200, "{}", stopped.text());
    service.upstream.left().await;
    app.delete(&format!("/chat/stream/{id}?ticket={ticket}")).await.error(404);
}

#[tokio::test]
async fn a_ticket_opens_its_stream_and_nothing_else() {
    let service = Service::start().await;
    let app = &service.app;
    let (id, ticket) = begin(&service, halting()).await;
    let (other, others_ticket) = begin(&service, Script::answer(&["x"])).await;
    let altered: String = ticket.chars().rev().collect();
    let refused = app.get("/models").await.essence();
    for path in [
        format!("/chat/stream/{id}"),
        format!("/chat/stream/{id}?ticket="),
        format!("/chat/stream/{id}?ticket={others_ticket}"),
        format!("/chat/stream/{other}?ticket={ticket}"),
        format!("/chat/stream/{UNKNOWN}?ticket={ticket}"),
        format!("/chat/stream/{id}?ticket={altered}"),
        format!("/chat/stream/{id}?ticket={ticket}A"),
        format!("/chat/stream/{id}?ticket={ticket}%3D"),
        format!("/chat/stream/{id}?Ticket={ticket}"),
        format!("/chat/stream/{id}?ticket=x&ticket={ticket}"),
        format!("/chat/stream/{id}/?ticket={ticket}"),
        format!("/chat/stream?ticket={ticket}"),
        format!("/conversations?ticket={ticket}"),
        format!("/usage?ticket={ticket}"),
        format!("/chat/ws?ticket={ticket}"),
    ] {
        assert_eq!(app.get(&path).await.essence(), refused, "{path}");
    }
    for method in [Method::POST, Method::PUT] {
        let answer = app.request(method, &format!("/chat?ticket={ticket}"), &[], Vec::new()).await;
        assert_eq!(answer.essence(), refused);
    }
    for header in [("authorization", format!("Bearer {ticket}")), ("cookie", format!("ticket={ticket}"))] {
        assert_eq!(app.asked_with(&[(header.0, &header.1)]).get_state(&id).await.essence(), refused);
    }
    // Somebody with a key of his own comes as himself, whatever ticket he brings.
    service.bob.get(&format!("/chat/stream/{id}?ticket={ticket}")).await.error(404);
    assert_eq!(service.alice.state(&id).await["status"], "running");
    service.upstream.release();
}

#[tokio::test]
async fn a_ticket_is_worth_nothing_when_its_stream_is_gone_or_the_service_began_anew() {
    let service = Service::start_with(&[("STREAM_TTL_SECONDS", "1")]).await;
    let (id, ticket) = begin(&service, Script::answer(&["x"])).await;
    let path = format!("/chat/stream/{id}?ticket={ticket}");
    assert_eq!(service.app.get(&path).await.status, 200);
    let mut answer = service.app.get(&path).await;
    while answer.status == 200 {
        // Not often enough to be a storm.
        tokio::time::sleep(Duration::from_millis(300)).await;
        answer = service.app.get(&path).await;
    }
    assert_eq!(answer.error(404).1, "stream_not_found");

    let anew = Service::start().await;
    anew.app.get(&path).await.error(401);
}

#[tokio::test]
async fn without_callers_there_are_no_tickets() {
    let service = Service::start().await;
    let open = TestApp::start(&service.upstream.base_url).await;
    let body = open.post("/chat/stream", &json!({"message": "x"})).await.json();
    assert!(body.get("stream_url").is_none(), "as the original: {body}");
    let id = body["stream_id"].as_str().unwrap();
    assert_eq!(open.get(&format!("/chat/stream/{id}?ticket=whatever")).await.status, 200);
}

#[tokio::test]
async fn the_same_request_again_gets_the_same_ticket_and_no_log_line_has_one() {
    let service = Service::start().await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "again")];
    let begin = async || {
        service.alice.request(Method::POST, "/chat/stream", &headers, br#"{"message":"x"}"#.to_vec()).await.json()
    };
    let (first, again) = (begin().await, begin().await);
    assert_eq!(first, again);
    let url = first["stream_url"].as_str().unwrap();
    service.app.get(url).await;
    service.app.get(&format!("{url}x")).await.error(401);
    service.app.delete(url).await;
    let ticket = url.split_once("ticket=").unwrap().1;
    let said = log::text();
    assert!(!said.contains(ticket), "a ticket in the log");
    assert!(!said.contains("ticket="), "a query in the log");
}
