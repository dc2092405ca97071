//! The routes of `/conversations`, one by one.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    conversations::{ask, assert_none, messages, said},
    support::{
        ScriptedUpstream, TestApp, assert_timestamp,
        database::{TestDatabase, on_every_database},
        upstream::answer,
    },
};

on_every_database!(
    a_conversation_is_made_with_a_name_of_its_own,
    a_conversation_is_made_with_everything_that_is_given,
    what_exists_is_not_made_again,
    saving_makes_or_replaces,
    clearing_keeps_all_but_the_messages,
    a_deleted_conversation_is_gone_and_its_name_is_free,
    a_summary_counts_who_said_what,
    a_title_is_asked_for_and_stored,
    whoever_names_a_conversation_keeps_that_name,
    every_route_says_that_an_unknown_conversation_is_unknown,
    every_route_answers_json_and_names_its_methods,
);

fn turn() -> Value {
    json!([
        {"role": "user", "content": "안녕", "timestamp": "2026-11-22T23:17:31.899397"},
        {"role": "assistant", "content": "하세요!", "timestamp": "2026-11-22T23:17:33.120934"},
    ])
}

async fn read(app: &TestApp, id: &str) -> Value {
    let answer = app.get(&format!("/conversations/{id}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn a_conversation_is_made_with_a_name_of_its_own(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let made = app.post("/conversations", &json!({})).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let body = made.json();
    let fields: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["created_at", "id", "title", "total_messages", "updated_at"]);
    assert_eq!((&body["title"], &body["total_messages"]), (&Value::Null, &json!(0)));
    assert_timestamp(&body["created_at"]);
    assert_eq!(body["created_at"], body["updated_at"]);
    let id = body["id"].as_str().unwrap();
    assert!(uuid::Uuid::parse_str(id).is_ok(), "{id}");
    assert_eq!(made.header("location"), Some(format!("/conversations/{id}").as_str()));

    let mut whole = body.clone();
    whole["messages"] = json!([]);
    assert_eq!(read(&app, id).await, whole);
    assert_ne!(app.post("/conversations", &json!({"id": null})).await.json()["id"], id);
}

async fn a_conversation_is_made_with_everything_that_is_given(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let longest = "x".repeat(64);
    for id in ["A", "a", "-", "_0", &longest] {
        let title = format!("제목\0 👨‍👩‍👧‍👦 {id}");
        let made = app.post("/conversations", &json!({"id": id, "title": title, "messages": turn()})).await;
        assert_eq!(made.status, 201, "{}", made.text());
        assert_eq!(made.header("location"), Some(format!("/conversations/{id}").as_str()));
        let mut whole = made.json();
        assert_eq!((&whole["id"], &whole["title"], &whole["total_messages"]), (&json!(id), &json!(title), &json!(2)));
        whole["messages"] = turn();
        assert_eq!(read(&app, id).await, whole);
    }
    assert_eq!(app.get("/conversations").await.json()["conversations"].as_array().unwrap().len(), 5);
}

async fn what_exists_is_not_made_again(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    app.post("/conversations", &json!({"id": "c", "title": "one", "messages": turn()})).await;
    let before = read(&app, "c").await;
    let again = app.post("/conversations", &json!({"id": "c", "title": "two", "messages": []})).await;
    let (detail, code) = again.error(409);
    assert_eq!((detail, code.as_str()), (json!("the conversation exists"), "conversation_exists"));
    assert_eq!(read(&app, "c").await, before);
}

async fn saving_makes_or_replaces(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let made = app.put("/conversations/c", &turn()).await;
    assert_eq!((made.status.as_u16(), made.header("location")), (201, Some("/conversations/c")));
    upstream.then_json(&answer("a title"));
    app.post("/conversations/c/title", &json!({})).await;
    ask(&app, "c", "more").await;
    let before = read(&app, "c").await;
    assert_eq!(before["total_messages"], 4);

    let other = json!([{"role": "user", "content": "other", "timestamp": "2000-01-01T00:00:00"}]);
    let replaced = app.put("/conversations/c", &other).await;
    assert_eq!((replaced.status.as_u16(), replaced.header("location")), (200, None));
    let after = read(&app, "c").await;
    assert_eq!((&after["messages"], &after["total_messages"]), (&other, &json!(1)));
    for kept in ["id", "title", "created_at"] {
        assert_eq!(after[kept], before[kept], "{kept}");
    }
    assert!(after["updated_at"].as_str() > before["updated_at"].as_str(), "{after} {before}");
    let summary = app.get("/conversations/c/summary").await.json();
    assert_eq!((&summary["total_messages"], &summary["total_tokens"]), (&json!(1), &json!(25)), "what was spent stays");

    assert_eq!(app.put("/conversations/c", &json!([])).await.json()["total_messages"], 0);
    assert_eq!(read(&app, "c").await["messages"], json!([]));
}

async fn clearing_keeps_all_but_the_messages(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    app.post("/conversations", &json!({"id": "c", "title": "제목"})).await;
    ask(&app, "c", "one").await;
    let before = read(&app, "c").await;
    let cleared = app.delete("/conversations/c/messages").await;
    assert_eq!(cleared.status, 200);
    assert_eq!(cleared.json(), json!({"message": "대화 내용이 삭제되었습니다", "conversation_id": "c"}));
    let after = read(&app, "c").await;
    for kept in ["id", "title", "created_at"] {
        assert_eq!(after[kept], before[kept], "{kept}");
    }
    assert_eq!((&after["messages"], &after["total_messages"]), (&json!([]), &json!(0)));
    let expected = json!({
        "total_messages": 0, "user_messages": 0, "ai_messages": 0,
        "prompt_tokens": 10, "completion_tokens": 15, "total_tokens": 25,
        "first_message_at": null, "last_message_at": null,
    });
    assert_eq!(app.get("/conversations/c/summary").await.json(), expected);
    assert_eq!(app.delete("/conversations/c/messages").await.status, 200, "what is clear may be cleared");

    ask(&app, "c", "two").await;
    let sent = upstream.seen()[1].body["messages"].clone();
    assert_eq!(said(sent.as_array().unwrap()), [("user", "two")], "nothing of it is sent any more");
    assert_eq!(messages(&app, "c").await.len(), 2);
}

async fn a_deleted_conversation_is_gone_and_its_name_is_free(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    app.post("/conversations", &json!({"id": "c", "title": "old", "messages": turn()})).await;
    app.put("/conversations/other", &turn()).await;
    let deleted = app.delete("/conversations/c").await;
    assert_eq!(deleted.status, 200);
    assert_eq!(deleted.json(), json!({"message": "대화가 삭제되었습니다", "conversation_id": "c"}));
    assert_none(&app, "c").await;
    assert_eq!(app.delete("/conversations/c").await.error(404).1, "conversation_not_found");
    assert_eq!(app.get("/conversations").await.json()["conversations"].as_array().unwrap().len(), 1);

    ask(&app, "c", "anew").await;
    let anew = read(&app, "c").await;
    assert_eq!((&anew["title"], &anew["total_messages"]), (&Value::Null, &json!(2)));
    assert_eq!(messages(&app, "other").await, *turn().as_array().unwrap());
}

async fn a_summary_counts_who_said_what(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let by = |role, at| json!({"role": role, "content": "x", "timestamp": at});
    let list = json!([
        by("system", "2026-01-01T00:00:00"),
        by("user", "2026-01-02T00:00:00"),
        by("assistant", "2026-01-03T00:00:00"),
        by("user", "2026-01-04T00:00:00"),
        by("developer", "2025-01-01T00:00:00.5"),
    ]);
    app.put("/conversations/c", &list).await;
    let expected = json!({
        "total_messages": 5, "user_messages": 2, "ai_messages": 1,
        "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0,
        "first_message_at": "2026-01-01T00:00:00", "last_message_at": "2025-01-01T00:00:00.5",
    });
    assert_eq!(app.get("/conversations/c/summary").await.json(), expected);
}

async fn a_title_is_asked_for_and_stored(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    app.put("/conversations/c", &turn()).await;
    // What a model gives as a title, and what becomes of it: control characters are not for a title.
    for (given, title) in [
        ("\"첫 인사\"", "첫 인사"),
        ("👨‍👩‍👧‍👦\0 가족", "👨‍👩‍👧‍👦 가족"),
        ("\u{1112}\u{1161}\u{11ab}\n글", "\u{1112}\u{1161}\u{11ab}"),
        ("e\u{301}\u{feff}", "e\u{301}"),
    ] {
        upstream.then_json(&answer(given));
        let answer = app.post("/conversations/c/title", &json!({})).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({"title": title})));
        assert_eq!(read(&app, "c").await["title"], title);
        assert_eq!(app.get("/conversations").await.json()["conversations"][0]["title"], title);
    }
    let asked = upstream.seen()[0].body["messages"].as_array().unwrap().clone();
    assert_eq!(said(&asked)[..2], [("user", "안녕"), ("assistant", "하세요!")]);
    assert_eq!(asked.len(), 3);
}

async fn whoever_names_a_conversation_keeps_that_name(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app_with(&upstream, |config| config.conversations.auto_title = true).await;
    app.post("/conversations", &json!({"id": "named", "title": "mine"})).await;
    ask(&app, "named", "x").await;
    assert_eq!(read(&app, "named").await["title"], "mine");
    assert_eq!(upstream.seen().len(), 1, "nobody was asked for another");
    assert!(app.stop_gracefully().await);
    assert_eq!(upstream.seen().len(), 1);
}

async fn every_route_says_that_an_unknown_conversation_is_unknown(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    app.put("/conversations/known", &turn()).await;
    // What can be no name is nobody's, and reaches no query and no file.
    let long = "x".repeat(65);
    let names = [
        "unknown",
        "KNOWN",
        "known.",
        "%6Bnown%00",
        "..%2Fknown",
        "..%2F..%2Fetc%2Fpasswd",
        "대화",
        "known%20",
        "%ff",
        &long,
    ];
    for id in names {
        for (method, path) in [
            (Method::GET, ""),
            (Method::DELETE, ""),
            (Method::GET, "/messages"),
            (Method::DELETE, "/messages"),
            (Method::GET, "/summary"),
            (Method::POST, "/title"),
        ] {
            let path = format!("/conversations/{id}{path}");
            let (detail, code) = app.send(method, &path, &json!({})).await.error(404);
            assert_eq!((detail, code.as_str()), (json!("대화를 찾을 수 없습니다"), "conversation_not_found"), "{path}");
        }
        if id.len() != 7 && id != "KNOWN" {
            assert_eq!(app.put(&format!("/conversations/{id}"), &turn()).await.error(404).1, "conversation_not_found");
        }
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(app.get("/conversations").await.json()["conversations"].as_array().unwrap().len(), 1);
}

async fn every_route_answers_json_and_names_its_methods(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    app.put("/conversations/c", &turn()).await;
    for path in ["/conversations", "/conversations/c", "/conversations/c/messages", "/conversations/c/summary"] {
        let answer = app.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/json")), "{path}");
    }
    for (method, path, allowed) in [
        (Method::DELETE, "/conversations", "POST"),
        (Method::POST, "/conversations/c", "PUT"),
        (Method::PUT, "/conversations/c/messages", "DELETE"),
        (Method::GET, "/conversations/c/title", "POST"),
    ] {
        let answer = app.request(method.clone(), path, &[], Vec::new()).await;
        assert_eq!(answer.error(405).1, "method_not_allowed", "{method} {path}");
        assert!(answer.header("allow").unwrap().contains(allowed), "{path}");
    }
}
