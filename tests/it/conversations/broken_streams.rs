//! Streams of a conversation that end in ERROR: nothing of them is stored, and nothing of their text is lost.

use std::time::Duration;

use ai_service::config::{Config, Timeouts};
use serde_json::{Value, json};

use crate::{
    conversations::{ask, assert_none, messages},
    support::{
        PATIENCE, Play, ScriptedUpstream, TestApp,
        database::{TestDatabase, on_every_database},
        events::Script,
    },
};

on_every_database!(
    an_answer_that_breaks_stores_nothing,
    an_answer_that_stalls_or_is_too_long_in_coming_stores_nothing,
    a_stream_that_nobody_reads_stores_nothing,
    a_stream_whose_conversation_is_full_by_then_hands_its_text_to_its_readers,
);

on_every_database!(
    shared:
    the_end_of_the_service_stores_what_is_complete_and_nothing_else,
    a_stream_whose_turn_cannot_be_stored_hands_its_text_to_its_readers,
);

fn question() -> Value {
    json!({"message": "질문", "conversation_id": "c"})
}

/// Reads a stream to its end, which must be an ERROR of that code with that text so far.
async fn assert_error(app: &TestApp, id: &str, code: &str, partial: &str) -> Value {
    let last = app.events(id).await.rest().await.pop().unwrap().data;
    assert_eq!((&last["type"], &last["code"]), (&json!("ERROR"), &json!(code)), "{last}");
    assert_eq!(last["partial"], partial);
    last
}

async fn an_answer_that_breaks_stores_nothing(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    ask(&app, "old", "before").await;
    let before = app.get("/conversations/old").await.body;
    let begun = || Script::chunked().role().piece("반");
    let error = r#"{"error":{"message":"m","type":"server_error","param":null,"code":null}}"#;
    for (script, code, partial) in [
        (begun().play(Play::Reset), "upstream_reset", "반"),
        (begun().end(), "upstream_truncated", "반"),
        (begun().event("not json").done().end(), "upstream_protocol", "반"),
        (begun().event(error).done().end(), "upstream_error", "반"),
        (Script::chunked().play(Play::Reset), "upstream_reset", ""),
    ] {
        for conversation in ["new", "old"] {
            upstream.then(script.clone());
            let id = app.begin(&json!({"message": "x", "conversation_id": conversation})).await;
            assert_error(&app, &id, code, partial).await;
        }
        assert_none(&app, "new").await;
        assert_eq!(app.get("/conversations/old").await.body, before, "{code}");
    }
}

/// Sets one of the upstream's limits.
type Limit = fn(&mut Timeouts, Duration);

async fn an_answer_that_stalls_or_is_too_long_in_coming_stores_nothing(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let limits: [(Limit, _, _, _); 3] = [
        (|timeouts, short| timeouts.idle = short, "upstream_stalled", Script::chunked().piece("반"), "반"),
        (|timeouts, short| timeouts.total = short, "upstream_deadline", Script::chunked().piece("반"), "반"),
        (|timeouts, short| timeouts.first_token = short, "upstream_timeout", Script::chunked(), ""),
    ];
    for (limit, code, script, partial) in limits {
        // Long enough for the first word, however busy the machine is.
        let short = |config: &mut Config| limit(&mut config.upstream.timeouts, Duration::from_millis(500));
        let app = database.app_with(&upstream, short).await;
        upstream.then(script.play(Play::Silence));
        let id = app.begin(&question()).await;
        assert_error(&app, &id, code, partial).await;
        assert_none(&app, "c").await;
    }
}

async fn a_stream_that_nobody_reads_stores_nothing(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    // Long enough for the first word, however busy the machine is.
    let soon = |config: &mut Config| config.streams.orphan = Duration::from_millis(500);
    let app = database.app_with(&upstream, soon).await;
    upstream.then(Script::chunked().piece("반").play(Play::Silence));
    let id = app.begin(&question()).await;
    upstream.left().await;
    assert_error(&app, &id, "abandoned", "반").await;
    assert_none(&app, "c").await;
}

async fn a_stream_whose_conversation_is_full_by_then_hands_its_text_to_its_readers(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    upstream.then(Script::chunked().piece("하나").hold().piece("둘").finish("stop").done().end());
    let id = app.begin(&question()).await;
    upstream.arrived(1).await;
    let list: Vec<_> = (0..9_999).map(|_| json!({"role": "user", "content": ""})).collect();
    assert_eq!(app.put("/conversations/c", &json!(list)).await.status, 201);
    upstream.release();
    let error = assert_error(&app, &id, "conversation_full", "하나둘").await;
    assert_eq!((&error["status"], &error["retryable"]), (&json!(422), &json!(false)));
    assert!(error["error"].as_str().unwrap().contains("10000 messages"), "{error}");
    assert_eq!(messages(&app, "c").await.len(), 9_999, "nor half of it");
    let state = app.state(&id).await;
    assert_eq!((&state["status"], &state["content"]), (&json!("failed"), &json!("하나둘")));
}

async fn the_end_of_the_service_stores_what_is_complete_and_nothing_else(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let grace = |config: &mut Config| config.limits.shutdown_grace = Duration::from_secs(1);
    let mut app = database.app_with(&upstream, grace).await;
    upstream.then(Script::chunked().piece("반").play(Play::Silence));
    let cut = app.chat_as_stream(&json!({"message": "x", "conversation_id": "cut"})).await;
    upstream.arrived(1).await;
    upstream.then(Script::chunked().piece("하나").hold().piece("둘").finish("stop").done().end());
    let whole = app.chat_as_stream(&json!({"message": "x", "conversation_id": "whole"})).await;
    upstream.arrived(2).await;
    let served = app.stop();
    upstream.release();
    let read = async |mut reading: crate::support::events::Reading| reading.rest().await.pop().unwrap().data;
    let (cut, whole) = tokio::join!(read(cut), read(whole));
    assert_eq!((&cut["code"], &cut["partial"]), (&json!("shutdown"), &json!("반")));
    assert_eq!(whole["full_content"], "하나둘");
    tokio::time::timeout(PATIENCE, served).await.expect("in time").unwrap();

    let next = database.app(&upstream).await;
    assert_none(&next, "cut").await;
    assert_eq!(messages(&next, "whole").await[1]["content"], "하나둘");
}

async fn a_stream_whose_turn_cannot_be_stored_hands_its_text_to_its_readers(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    upstream.then(Script::chunked().piece("하나").hold().piece("둘").finish("stop").done().end());
    let id = app.begin(&question()).await;
    upstream.arrived(1).await;
    upstream
        .then(Script::chunked().piece("반").play(Play::Silence))
        .then(Script::chunked().piece("반").play(Play::Silence));
    let mut taken_along = question();
    taken_along["on_disconnect"] = json!("cancel");
    let taken_along = app.begin(&taken_along).await;
    let mut reading = app.events(&taken_along).await;
    reading.take(2).await;
    let stopped = app.begin(&question()).await;
    app.events(&stopped).await.take(2).await;
    database.execute("ALTER TABLE messages RENAME TO gone").await;
    upstream.release();
    let error = assert_error(&app, &id, "storage_unavailable", "하나둘").await;
    assert_eq!((&error["status"], &error["retryable"]), (&json!(503), &json!(true)));
    assert!(!error["error"].as_str().unwrap().contains("messages"), "nothing of the database's words: {error}");

    // The same for one that its reader takes along; whoever stops one reads its text in its END.
    drop(reading);
    upstream.left().await;
    assert_error(&app, &taken_along, "storage_unavailable", "반").await;
    assert_eq!(app.cancel(&stopped).await.status, 200);
    assert_eq!(app.events(&stopped).await.rest().await.pop().unwrap().data["full_content"], "반");

    let refused = app.post("/chat/stream", &question()).await;
    assert_eq!((refused.header("retry-after"), refused.error(503).1.as_str()), (Some("2"), "storage_unavailable"));
    let refused = ask(&app, "c", "x").await;
    assert_eq!((refused.header("retry-after"), refused.error(503).1.as_str()), (Some("2"), "storage_unavailable"));
    assert_eq!(upstream.seen().len(), 3, "nothing is paid for what cannot be stored");

    database.execute("ALTER TABLE gone RENAME TO messages").await;
    assert_none(&app, "c").await;
    assert_eq!(ask(&app, "c", "x").await.status, 200, "as soon as it can be stored");
    assert_eq!(messages(&app, "c").await.len(), 2);
}
