//! The form of a message: the original's file, and any text that there is.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    conversations::{ask, messages, said},
    support::{
        Answer, ScriptedUpstream, TestApp, assert_timestamp,
        database::{TestDatabase, on_every_database},
        events::{Script, contents},
        upstream::answer,
    },
};

on_every_database!(
    a_file_of_the_originals_comes_back_byte_for_byte,
    any_text_goes_through_save_load_stream_and_title,
    a_message_without_a_moment_gets_one,
    a_stopped_answer_stays_marked,
);

/// Written by Python: `json.dump(messages, file, ensure_ascii=False, indent=2)`, with moments of `isoformat`.
const FILE: &str = include_str!("../fixtures/conversation.json");

async fn put(app: &TestApp, id: &str, body: &[u8]) -> Answer {
    let headers = [("content-type", "application/json")];
    app.request(Method::PUT, &format!("/conversations/{id}"), &headers, body.to_vec()).await
}

async fn a_file_of_the_originals_comes_back_byte_for_byte(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let count = serde_json::from_str::<Vec<Value>>(FILE).unwrap().len();
    assert_eq!(put(&app, "c", FILE.as_bytes()).await.json()["total_messages"], count);
    assert_eq!(app.get("/conversations/c/messages").await.text(), FILE);
    // What was given back is taken again; so is the same file as other programs write it.
    let compact = serde_json::to_vec(&serde_json::from_str::<Value>(FILE).unwrap()).unwrap();
    for body in [FILE.as_bytes().to_vec(), [b"\xef\xbb\xbf", FILE.as_bytes(), b"\n"].concat(), compact] {
        assert_eq!(put(&app, "c", &body).await.status, 200);
        assert_eq!(app.get("/conversations/c/messages").await.text(), FILE);
    }
    let whole = app.get("/conversations/c").await.json();
    assert_eq!(whole["messages"], serde_json::from_str::<Value>(FILE).unwrap());
    assert_eq!(put(&app, "empty", b"[]").await.status, 201);
    assert_eq!(app.get("/conversations/empty/messages").await.text(), "[]", "as Python writes it");
    // What was saved is what the model gets.
    ask(&app, "c", "now").await;
    let sent = upstream.seen()[0].body["messages"].as_array().unwrap().clone();
    let file: Vec<Value> = serde_json::from_str(FILE).unwrap();
    assert_eq!(said(&sent[..count]), said(&file));
}

/// Texts that something on the way might harm.
const TEXTS: [&str; 9] = [
    "안녕하세요, 세계",
    "👨‍👩‍👧‍👦🏳️‍🌈👍🏽🇰🇷",
    "e\u{301} n\u{303} \u{1112}\u{1161}\u{11ab}",
    "NUL \0\0 \u{1}\u{1b}\u{7f}\u{80}",
    "\u{feff}BOM\u{feff}",
    "\u{2028}\u{202e}\u{200b}\u{fffe}\u{ffff}\u{10ffff}",
    "\"\\/\r\n\t data: [DONE]\n\n",
    "'; DROP TABLE messages; -- $1 ?1 %s {}",
    " ",
];

async fn any_text_goes_through_save_load_stream_and_title(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let mut expected = Vec::new();
    for text in TEXTS {
        upstream.then_json(&answer(text)).then(Script::answer(&[text, text]));
        assert_eq!(ask(&app, "c", text).await.json()["response"], text);
        let events = app.chat_as_stream(&json!({"message": text, "conversation_id": "c"})).await.rest().await;
        assert_eq!(contents(&events).concat(), text.repeat(2));
        expected.extend([("user", text.to_owned()), ("assistant", text.to_owned())]);
        expected.extend([("user", text.to_owned()), ("assistant", text.repeat(2))]);
    }
    let expected: Vec<_> = expected.iter().map(|(role, text)| (*role, text.as_str())).collect();
    let stored = messages(&app, "c").await;
    assert_eq!(said(&stored), expected);
    let last = upstream.seen().pop().unwrap().body;
    assert_eq!(said(last["messages"].as_array().unwrap()), expected[..expected.len() - 1]);
    // And out, and in again elsewhere.
    let file = app.get("/conversations/c/messages").await.body;
    put(&app, "d", &file).await;
    assert_eq!(app.get("/conversations/d/messages").await.body, file);

    for text in TEXTS {
        let made = app.post("/conversations", &json!({"title": text})).await.json();
        let path = format!("/conversations/{}", made["id"].as_str().unwrap());
        assert_eq!(app.get(&path).await.json()["title"], text);
    }
}

async fn a_message_without_a_moment_gets_one(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let list = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "timestamp": null}]);
    app.put("/conversations/c", &list).await;
    let stored = messages(&app, "c").await;
    for message in &stored {
        assert_timestamp(&message["timestamp"]);
    }
    assert_eq!(said(&stored), [("user", "x"), ("assistant", "y")]);
}

async fn a_stopped_answer_stays_marked(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let at = "2026-11-22T23:17:31.899397";
    let list = json!([
        {"role": "user", "content": "x", "timestamp": at, "interrupted": false},
        {"role": "assistant", "content": "y", "timestamp": at, "interrupted": true, "unknown": [1]},
        {"role": "assistant", "content": "z", "timestamp": at, "interrupted": null},
    ]);
    app.put("/conversations/c", &list).await;
    let expected = json!([
        {"role": "user", "content": "x", "timestamp": at},
        {"role": "assistant", "content": "y", "timestamp": at, "interrupted": true},
        {"role": "assistant", "content": "z", "timestamp": at},
    ]);
    assert_eq!(json!(messages(&app, "c").await), expected);
    ask(&app, "c", "more").await;
    let sent = upstream.seen()[0].body["messages"][1].clone();
    assert_eq!(sent, json!({"role": "assistant", "content": "y"}), "a mark of ours, not of the upstream's");
}
