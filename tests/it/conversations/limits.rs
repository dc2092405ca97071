//! What is too much for a conversation, and that exactly as much is not.

use serde_json::{Value, json};

use crate::{
    conversations::{ask, assert_none, messages},
    support::{
        Answer, ScriptedUpstream,
        database::{TestDatabase, on_every_database},
        events::Script,
        upstream::answer,
    },
};

on_every_database!(
    a_conversation_has_at_most_ten_thousand_messages,
    a_message_has_at_most_a_mebibyte,
    an_answer_may_be_as_long_as_the_conversation_has_room_for,
    an_answer_that_has_no_room_reaches_its_caller,
    a_conversation_has_at_most_sixteen_mebibytes,
);

const MIB: usize = 1024 * 1024;

fn message(text: &str) -> Value {
    json!({"role": "user", "content": text, "timestamp": "2026-11-22T23:17:31"})
}

#[track_caller]
fn assert_full(answer: &Answer) {
    let (detail, code) = answer.error(422);
    let detail = detail.as_str().unwrap();
    assert_eq!(code, "conversation_full");
    assert!(detail.contains("10000") && detail.contains("16777216"), "{detail}");
}

async fn a_conversation_has_at_most_ten_thousand_messages(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let mut list: Vec<_> = (0..10_001).map(|n| message(&n.to_string())).collect();
    let too_many = [
        (app.put("/conversations/c", &json!(list)).await, json!(["body"])),
        (app.post("/conversations", &json!({"id": "c", "messages": list})).await, json!(["body", "messages"])),
    ];
    for (answer, loc) in too_many {
        let (detail, code) = answer.error(422);
        assert_eq!(
            (&detail[0]["type"], &detail[0]["loc"], code.as_str()),
            (&json!("too_long"), &loc, "invalid_request")
        );
        assert_eq!(detail[0]["ctx"], json!({"field_type": "List", "max_length": 10_000, "actual_length": 10_001}));
    }
    assert_none(&app, "c").await;

    list.pop();
    assert_eq!(app.put("/conversations/c", &json!(list)).await.json()["total_messages"], 10_000);
    assert_eq!(messages(&app, "c").await, list);
    assert_full(&ask(&app, "c", "one more").await);
    list.pop();
    app.put("/conversations/c", &json!(list)).await;
    assert_full(&ask(&app, "c", "a turn has two").await);
    assert_full(&app.post("/chat/stream", &json!({"message": "x", "conversation_id": "c"})).await);
    assert!(upstream.seen().is_empty(), "nothing is paid for what has no room");
    list.pop();
    app.put("/conversations/c", &json!(list)).await;
    assert_eq!(ask(&app, "c", "the last").await.status, 200);
    assert_eq!(messages(&app, "c").await.len(), 10_000);
    assert_full(&ask(&app, "c", "one more").await);
}

async fn a_message_has_at_most_a_mebibyte(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    // Korean, so that it is bytes that count.
    let largest = "가".repeat(MIB / 3) + "x";
    let too_large = largest.clone() + "x";
    assert_eq!((largest.len(), too_large.len()), (MIB, MIB + 1));
    for refused in [
        app.put("/conversations/c", &json!([message(&too_large)])).await,
        app.post("/conversations", &json!({"id": "c", "messages": [message("x"), message(&too_large)]})).await,
        ask(&app, "c", &too_large).await,
        app.post("/chat/stream", &json!({"message": too_large, "conversation_id": "c"})).await,
    ] {
        let (detail, code) = refused.error(413);
        assert!(detail.as_str().unwrap().contains("at most 1048576 bytes"), "{detail}");
        assert_eq!(code, "message_too_large");
    }
    assert_none(&app, "c").await;
    assert!(upstream.seen().is_empty());
    assert_eq!(app.chat(&json!({"message": too_large})).await.status, 200, "what is not kept may be larger");

    assert_eq!(app.put("/conversations/c", &json!([message(&largest)])).await.status, 201);
    assert_eq!(ask(&app, "d", &largest).await.status, 200);
    for id in ["c", "d"] {
        assert!(messages(&app, id).await[0]["content"] == largest.as_str(), "{id}");
    }
}

async fn an_answer_may_be_as_long_as_the_conversation_has_room_for(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let half = "y".repeat(MIB / 2);
    let long = half.repeat(3);
    upstream.then_json(&answer(&long));
    let answered = ask(&app, "c", "x").await;
    assert!(answered.status == 200 && answered.json()["response"] == long.as_str());

    upstream.then(Script::answer(&[&half, &half, &half]));
    let events = app.chat_as_stream(&json!({"message": "x", "conversation_id": "c"})).await.rest().await;
    let last = &events.last().unwrap().data;
    assert!(last["type"] == "END" && last["full_content"] == long.as_str());
    let stored = messages(&app, "c").await;
    assert!(stored.len() == 4 && stored[1]["content"] == long.as_str() && stored[3]["content"] == long.as_str());
    // What was stored can be saved again.
    assert_eq!(app.put("/conversations/d", &json!(stored)).await.status, 201);
}

async fn an_answer_that_has_no_room_reaches_its_caller(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let almost: Vec<_> = (0..15).map(|_| message(&"z".repeat(MIB))).collect();
    assert_eq!(app.put("/conversations/c", &json!(almost)).await.status, 201);
    let half = "y".repeat(MIB / 2);
    let long = half.repeat(3);
    upstream.then_json(&answer(&long));
    let answered = ask(&app, "c", "x").await;
    assert!(answered.status == 200 && answered.json()["response"] == long.as_str());
    // A stream can also say that it was not stored.
    upstream.then(Script::answer(&[&half, &half, &half]));
    let events = app.chat_as_stream(&json!({"message": "x", "conversation_id": "c"})).await.rest().await;
    let last = &events.last().unwrap().data;
    assert!(last["code"] == "conversation_full" && last["partial"] == long.as_str());
    assert_eq!(messages(&app, "c").await.len(), 15, "a turn is stored as a whole or not at all");
}

async fn a_conversation_has_at_most_sixteen_mebibytes(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let full: Vec<_> = (0..16).map(|_| message(&"z".repeat(MIB))).collect();
    let over: Vec<_> = full.iter().cloned().chain([message("z")]).collect();
    assert_full(&app.put("/conversations/c", &json!(over)).await);
    assert_none(&app, "c").await;
    assert_eq!(app.put("/conversations/c", &json!(full)).await.status, 201);
    assert!(messages(&app, "c").await == full);
    assert_full(&ask(&app, "c", "x").await);
    assert!(upstream.seen().is_empty(), "nothing is paid for what has no room");

    let huge = vec![b' '; 20 * MIB + 1];
    let headers = [("content-type", "application/json")];
    let refused = app.request(reqwest::Method::PUT, "/conversations/c", &headers, huge).await;
    let (detail, code) = refused.error(413);
    assert_eq!((detail, code.as_str()), (json!("the body is larger than 20971520 bytes"), "body_too_large"));
}
