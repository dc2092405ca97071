//! Bad input, said in the form of every other route.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    conversations::assert_none,
    support::{Answer, ScriptedUpstream, TestApp},
};

/// Stands in every text; none of it may come back in an error.
const PRIVATE: &str = "canary-private";

const PATTERN: &str = "^[A-Za-z0-9_-]{1,64}$";

async fn start() -> (ScriptedUpstream, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    (upstream, app)
}

/// The type and place of every mistake.
#[track_caller]
fn mistakes(answer: &Answer) -> Vec<(String, Value)> {
    let (detail, code) = answer.error(422);
    assert_eq!(code, "invalid_request");
    assert!(!answer.text().contains(PRIVATE), "{}", answer.text());
    let issues = detail.as_array().unwrap().iter();
    issues.map(|issue| (issue["type"].as_str().unwrap().to_owned(), issue["loc"].clone())).collect()
}

#[track_caller]
fn assert_mistake(answer: &Answer, kind: &str, loc: Value) {
    assert_eq!(mistakes(answer), [(kind.to_owned(), loc)], "{}", answer.text());
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_in_every_body() {
    let (upstream, app) = start().await;
    let long = "x".repeat(65);
    for name in ["", " ", "a b", "a.b", "../x", "a/b", "대화", "a\0", "a\n", "é", &long] {
        for (path, field) in
            [("/chat", "conversation_id"), ("/chat/stream", "conversation_id"), ("/conversations", "id")]
        {
            let answer = app.post(path, &json!({"message": PRIVATE, field: name})).await;
            assert_mistake(&answer, "string_pattern_mismatch", json!(["body", field]));
            assert_eq!(answer.json()["detail"][0]["ctx"], json!({"pattern": PATTERN}), "{name:?}");
        }
    }
    for name in [json!(1), json!(true), json!([]), json!({"a": 1}), json!(1.5)] {
        for (path, field) in
            [("/chat", "conversation_id"), ("/chat/stream", "conversation_id"), ("/conversations", "id")]
        {
            let answer = app.post(path, &json!({"message": PRIVATE, field: name})).await;
            assert_mistake(&answer, "string_type", json!(["body", field]));
        }
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(app.get("/conversations").await.json()["conversations"], json!([]));
}

#[tokio::test]
async fn a_history_beside_a_conversation_is_refused() {
    let (upstream, app) = start().await;
    let both = json!({
        "message": PRIVATE, "conversation_id": "c",
        "conversation_history": [{"role": "user", "content": PRIVATE}],
    });
    for path in ["/chat", "/chat/stream"] {
        let answer = app.post(path, &both).await;
        assert_mistake(&answer, "value_error", json!(["body", "conversation_history"]));
    }
    let mut alone = both.clone();
    alone["conversation_id"] = Value::Null;
    assert_eq!(app.chat(&alone).await.status, 200, "null is left out");
    assert_none(&app, "c").await;
    // All mistakes are said together, wherever they stand.
    let mut more = both;
    more["temperature"] = json!(3);
    assert_eq!(mistakes(&app.chat(&more).await).len(), 2);
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn what_is_no_list_of_messages_is_not_saved() {
    let (_upstream, app) = start().await;
    let message = |fields: Value| {
        let mut message = json!({"role": "user", "content": PRIVATE, "timestamp": "2026-11-22T23:17:31.899397"});
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!([message])
    };
    for (body, kind, loc) in [
        (json!(null), "list_type", json!(["body"])),
        (json!({}), "list_type", json!(["body"])),
        (json!({"messages": []}), "list_type", json!(["body"])),
        (json!(PRIVATE), "list_type", json!(["body"])),
        (json!(1), "list_type", json!(["body"])),
        (json!([1]), "model_attributes_type", json!(["body", 0])),
        (json!([null]), "model_attributes_type", json!(["body", 0])),
        (json!([[PRIVATE]]), "model_attributes_type", json!(["body", 0])),
        (message(json!({"role": "root"})), "literal_error", json!(["body", 0, "role"])),
        (message(json!({"role": "User"})), "literal_error", json!(["body", 0, "role"])),
        (message(json!({"role": 1})), "string_type", json!(["body", 0, "role"])),
        (message(json!({"role": null})), "string_type", json!(["body", 0, "role"])),
        (message(json!({"content": null})), "string_type", json!(["body", 0, "content"])),
        (message(json!({"content": [PRIVATE]})), "string_type", json!(["body", 0, "content"])),
        (message(json!({"timestamp": "yesterday"})), "datetime_parsing", json!(["body", 0, "timestamp"])),
        (message(json!({"timestamp": ""})), "datetime_parsing", json!(["body", 0, "timestamp"])),
        (message(json!({"timestamp": "2026-11-22T23:17:31\0"})), "datetime_parsing", json!(["body", 0, "timestamp"])),
        (message(json!({"timestamp": 5})), "string_type", json!(["body", 0, "timestamp"])),
        (message(json!({"interrupted": "yes"})), "bool_type", json!(["body", 0, "interrupted"])),
        (json!([{"role": "user"}]), "missing", json!(["body", 0, "content"])),
        (json!([{"content": PRIVATE}]), "missing", json!(["body", 0, "role"])),
    ] {
        let answer = app.put("/conversations/c", &body).await;
        assert_eq!(mistakes(&answer), [(kind.to_owned(), loc.clone())], "{body}");
        // The same as a part of a new conversation, where null is left out.
        if !body.is_null() {
            let mut inside = vec![json!("body"), json!("messages")];
            inside.extend(loc.as_array().unwrap()[1..].iter().cloned());
            let answer = app.post("/conversations", &json!({"id": "c", "messages": body})).await;
            assert_eq!(mistakes(&answer), [(kind.to_owned(), json!(inside))], "{body}");
        }
    }
    let two = json!([{"role": "user", "content": PRIVATE}, {}]);
    let expected = [("missing", json!(["body", 1, "role"])), ("missing", json!(["body", 1, "content"]))];
    let expected = expected.map(|(kind, loc)| (kind.to_owned(), loc));
    assert_eq!(mistakes(&app.put("/conversations/c", &two).await), expected);
    assert_none(&app, "c").await;
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_refused_like_any_other() {
    let (_upstream, app) = start().await;
    let json = [("content-type", "application/json")];
    let surrogate = br#"[{"role":"user","content":"\ud800"}]"#;
    for (method, path, body, status, kind) in [
        (Method::PUT, "/conversations/c", &b""[..], 422, "missing"),
        (Method::PUT, "/conversations/c", b"[", 422, "json_invalid"),
        (Method::PUT, "/conversations/c", b"[{},]", 422, "json_invalid"),
        (Method::PUT, "/conversations/c", surrogate, 422, "string_unicode"),
        (Method::PUT, "/conversations/c", b"[\"\xff\"]", 400, ""),
        (Method::POST, "/conversations", b"", 422, "missing"),
        (Method::POST, "/conversations", b"{\"id\":", 422, "json_invalid"),
        (Method::POST, "/conversations", br#"{"title":"\udc00\ud800"}"#, 422, "string_unicode"),
    ] {
        let answer = app.request(method, path, &json, body.to_vec()).await;
        let (detail, _) = answer.error(status);
        assert_eq!(detail[0]["type"].as_str().unwrap_or_default(), kind, "{path} {body:?}");
    }
    let plain = [("content-type", "text/plain")];
    let answer = app.request(Method::PUT, "/conversations/c", &plain, b"[]".to_vec()).await;
    assert_mistake(&answer, "model_attributes_type", json!(["body"]));
    assert_none(&app, "c").await;
}

#[tokio::test]
async fn what_is_no_new_conversation_is_not_made() {
    let (_upstream, app) = start().await;
    for (body, kind, loc) in [
        (json!([]), "model_attributes_type", json!(["body"])),
        (json!(null), "model_attributes_type", json!(["body"])),
        (json!({"title": 1}), "string_type", json!(["body", "title"])),
        (json!({"title": "글".repeat(201)}), "string_too_long", json!(["body", "title"])),
        (json!({"messages": {}}), "list_type", json!(["body", "messages"])),
        (json!({"messages": PRIVATE}), "list_type", json!(["body", "messages"])),
    ] {
        assert_mistake(&app.post("/conversations", &body).await, kind, loc);
    }
    let longest = json!({"title": "글".repeat(200), "messages": null, "unknown": [{"deep": 1}]});
    assert_eq!(app.post("/conversations", &longest).await.status, 201);
    assert_eq!(app.get("/conversations").await.json()["conversations"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_no_page_is_refused() {
    let (_upstream, app) = start().await;
    for id in ["a", "b", "c"] {
        app.post("/conversations", &json!({"id": id})).await;
    }
    for limit in ["0", "101", "-1", "x", "", "1.5", "1e1", "99999999999999999999", "%31", "1%00", "１"] {
        let answer = app.get(&format!("/conversations?limit={limit}")).await;
        assert_mistake(&answer, "int_range", json!(["query", "limit"]));
        assert_eq!(answer.json()["detail"][0]["ctx"], json!({"ge": 1, "le": 100}), "{limit}");
    }
    let long = format!("1.{}", "x".repeat(65));
    for cursor in ["x", "1", "1.", ".a", "1.a.b", "-1.a", "+1.a", "1.a%00", "99999999999999999999.a", "1.대화", &long]
    {
        let answer = app.get(&format!("/conversations?cursor={cursor}")).await;
        assert_mistake(&answer, "value_error", json!(["query", "cursor"]));
    }
    assert_eq!(mistakes(&app.get("/conversations?limit=0&cursor=x").await).len(), 2);
    for query in
        ["", "?", "?limit=100", "?limit=1&limit=100", "?cursor=", "?unknown=1&%ff", "?cursor=9223372036854775807.z"]
    {
        let answer = app.get(&format!("/conversations{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        assert_eq!(answer.json()["conversations"].as_array().unwrap().len(), 3, "{query}");
    }
    assert_eq!(app.get("/conversations?cursor=0.a").await.json(), json!({"conversations": [], "next_cursor": null}));
}
