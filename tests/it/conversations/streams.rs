//! Streams of a conversation that end as they should, or as somebody wants: what is stored of them, and when.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, Executor};

use crate::{
    conversations::{ask, assert_none, messages, said},
    socket::Client,
    support::{
        Play, ScriptedUpstream, TestApp, assert_timestamp,
        database::{TestDatabase, connect, on_every_database},
        events::{Script, contents},
        eventually,
        upstream::answer,
    },
};

on_every_database!(
    whoever_reads_the_end_finds_the_turn_stored,
    a_stream_has_the_stored_messages_before_its_question,
    a_turn_is_stored_though_its_reader_leaves,
    a_stopped_stream_is_stored_so_far_when_the_stop_returns,
    a_stream_whose_reader_takes_it_along_is_stored_so_far,
    a_stream_stopped_before_its_first_word_stores_nothing,
    a_hundred_equal_streams_store_one_turn,
    a_socket_stores_turns_as_well,
    the_first_turn_of_a_stream_gets_a_title,
);

on_every_database!(shared: a_stream_stopped_while_its_turn_is_stored_stores_one_turn);

fn question() -> Value {
    json!({"message": "질문", "conversation_id": "c"})
}

async fn whoever_reads_the_end_finds_the_turn_stored(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    upstream.then(Script::chunked().role().piece("하나").hold().piece("둘").finish("stop").usage().done().end());
    let mut reading = app.chat_as_stream(&question()).await;
    reading.take(2).await;
    assert_none(&app, "c").await;
    upstream.release();
    let events = reading.rest().await;
    assert_eq!(events.last().unwrap().data["full_content"], "하나둘");
    let stored = messages(&app, "c").await;
    assert_eq!(said(&stored), [("user", "질문"), ("assistant", "하나둘")]);
    assert_timestamp(&stored[1]["timestamp"]);
    assert_eq!(stored[1].get("interrupted"), None);
    assert_eq!(app.get("/conversations/c/summary").await.json()["total_tokens"], 25);

    // Every time, however the two fall.
    for turns in 2..20 {
        upstream.then(Script::answer(&["a"]));
        let id = app.begin(&question()).await;
        assert_eq!(app.events(&id).await.rest().await.last().unwrap().kind(), "END");
        assert_eq!(messages(&app, "c").await.len(), turns * 2);
    }
}

async fn a_stream_has_the_stored_messages_before_its_question(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    upstream.then_json(&answer("one"));
    ask(&app, "c", "first").await;
    upstream.then(Script::answer(&["two"]));
    let body = json!({"message": "second", "conversation_id": "c", "system_prompt": "be brief"});
    let id = app.begin(&body).await;
    app.events(&id).await.rest().await;
    let sent = upstream.seen()[1].body["messages"].clone();
    let expected = [("system", "be brief"), ("user", "first"), ("assistant", "one"), ("user", "second")];
    assert_eq!(said(sent.as_array().unwrap()), expected);
}

async fn a_turn_is_stored_though_its_reader_leaves(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    upstream.then(Script::chunked().piece("a").hold().piece("b").finish("stop").done().end());
    let mut reading = app.chat_as_stream(&question()).await;
    reading.take(2).await;
    drop(reading);
    upstream.release();
    eventually(async || app.get("/conversations/c").await.status == 200).await;
    assert_eq!(said(&messages(&app, "c").await), [("user", "질문"), ("assistant", "ab")]);
}

/// An answer of one word, and then nothing until the service leaves.
fn endless() -> Script {
    Script::chunked().role().piece("한 마디").play(Play::Silence)
}

/// That the turn is there with the text so far, and marked.
async fn assert_interrupted(app: &TestApp) {
    let stored = messages(app, "c").await;
    assert_eq!(said(&stored), [("user", "질문"), ("assistant", "한 마디")]);
    assert_eq!((stored[0].get("interrupted"), &stored[1]["interrupted"]), (None, &json!(true)));
}

async fn a_stopped_stream_is_stored_so_far_when_the_stop_returns(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for _ in 0..10 {
        upstream.then(endless());
        let id = app.begin(&question()).await;
        let mut reading = app.events(&id).await;
        reading.take(2).await;
        assert_eq!(app.cancel(&id).await.status, 200);
        assert_interrupted(&app).await;
        assert_eq!(reading.rest().await[0].data["finish_reason"], "cancelled");
        upstream.left().await;
        app.delete("/conversations/c").await;
    }
    assert_none(&app, "c").await;
}

async fn a_stream_whose_reader_takes_it_along_is_stored_so_far(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    upstream.then(endless());
    let mut body = question();
    body["on_disconnect"] = json!("cancel");
    let id = app.begin(&body).await;
    let mut reading = app.events(&id).await;
    reading.take(2).await;
    drop(reading);
    upstream.left().await;
    // Whoever comes back finds the end, and with it the turn.
    let events = app.events(&id).await.rest().await;
    assert_eq!(events.last().unwrap().data["finish_reason"], "cancelled");
    assert_interrupted(&app).await;
    // What was stopped is part of what is said from then on.
    upstream.then_json(&answer("x"));
    ask(&app, "c", "more").await;
    let sent = upstream.seen()[1].body["messages"].clone();
    assert_eq!(said(sent.as_array().unwrap())[1], ("assistant", "한 마디"));
}

async fn a_stream_stopped_before_its_first_word_stores_nothing(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for on_disconnect in ["continue", "cancel"] {
        upstream.then(Script::chunked().role().play(Play::Silence));
        let mut body = question();
        body["on_disconnect"] = json!(on_disconnect);
        let id = app.begin(&body).await;
        let mut reading = app.events(&id).await;
        reading.take(1).await;
        if on_disconnect == "continue" {
            assert_eq!(app.cancel(&id).await.status, 200);
        }
        drop(reading);
        upstream.left().await;
        let events = app.events(&id).await.rest().await;
        assert_eq!(events.last().unwrap().data["finish_reason"], "cancelled");
        assert_none(&app, "c").await;
    }
}

async fn a_hundred_equal_streams_store_one_turn(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    upstream.then(Script::chunked().piece("a").hold().finish("stop").done().end());
    let app = database.app(&upstream).await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let begin = || app.request(Method::POST, "/chat/stream", &headers, question().to_string().into_bytes());
    let answers = futures_util::future::join_all((0..100).map(|_| begin())).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == answers[0].body));
    upstream.release();
    let id = answers[0].json()["stream_id"].as_str().unwrap().to_owned();
    assert_eq!(contents(&app.events(&id).await.rest().await), ["a"]);
    assert_eq!(begin().await.body, answers[0].body, "also afterwards");
    assert_eq!(said(&messages(&app, "c").await), [("user", "질문"), ("assistant", "a")]);
    assert_eq!(upstream.seen().len(), 1);
}

async fn a_socket_stores_turns_as_well(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    let mut client = Client::connect(&app).await;
    for pieces in [["하", "나"], ["두", "울"]] {
        upstream.then(Script::answer(&pieces));
        client.say(&json!({"type": "chat", "message": "질문", "conversation_id": "c"})).await;
        assert_eq!(client.rest().await.last().unwrap()["type"], "END");
    }
    let expected = [("user", "질문"), ("assistant", "하나"), ("user", "질문"), ("assistant", "두울")];
    assert_eq!(said(&messages(&app, "c").await), expected);
    assert_eq!(said(upstream.seen()[1].body["messages"].as_array().unwrap()), expected[..3]);

    upstream.then(endless());
    client.say(&json!({"type": "chat", "message": "더", "conversation_id": "c"})).await;
    let started = client.hear().await;
    assert_eq!(client.hear().await["type"], "CHUNK");
    client.say(&json!({"type": "stop", "ref": "r", "stream_id": started["stream_id"]})).await;
    while client.hear().await["type"] != "ACCEPTED" {}
    assert_eq!(messages(&app, "c").await[5]["interrupted"], true);

    client.say(&json!({"type": "chat", "ref": "r", "message": "x", "conversation_id": "a b"})).await;
    let refused = loop {
        let heard = client.hear().await;
        if heard["type"] == "REJECTED" {
            break heard;
        }
    };
    assert_eq!(
        (&refused["code"], &refused["detail"][0]["loc"]),
        (&json!("invalid_request"), &json!(["body", "conversation_id"]))
    );
}

async fn the_first_turn_of_a_stream_gets_a_title(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app_with(&upstream, |config| config.conversations.auto_title = true).await;
    upstream.then(Script::answer(&["하나"])).then_json(&answer("👨‍👩‍👧‍👦 산책\0")).then(Script::answer(&["둘"]));
    app.chat_as_stream(&question()).await.rest().await;
    eventually(async || app.get("/conversations/c").await.json()["title"] == "👨‍👩‍👧‍👦 산책").await;
    app.chat_as_stream(&question()).await.rest().await;
    // Nor does one that was stopped: who would want a title of half a word?
    upstream.then(endless());
    let id = app.begin(&json!({"message": "x", "conversation_id": "stopped"})).await;
    app.events(&id).await.take(2).await;
    app.cancel(&id).await;
    assert_eq!(app.get("/conversations/stopped").await.json()["title"], Value::Null);
    assert!(app.stop_gracefully().await);
    assert_eq!(upstream.seen().len(), 4);
}

async fn a_stream_stopped_while_its_turn_is_stored_stores_one_turn(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    app.post("/conversations", &json!({"id": "c"})).await;
    upstream.then(Script::chunked().piece("한 마디").hold().finish("stop").done().end());
    let id = app.begin(&question()).await;
    app.events(&id).await.take(2).await;
    let stop_while_it_is_stored = async {
        eventually(async || app.state(&id).await["status"] == "cancelled").await;
    };
    // Somebody else holds the conversation, so that storing waits.
    match database.postgres_url() {
        Some(url) => {
            let mut holder = connect(url).await;
            holder.execute("BEGIN; UPDATE conversations SET updated_at = updated_at").await.unwrap();
            upstream.release();
            database.waiting(1).await;
            let (stopped, ()) = tokio::join!(app.cancel(&id), async {
                stop_while_it_is_stored.await;
                holder.execute("COMMIT").await.unwrap();
            });
            assert_eq!(stopped.status, 200);
        }
        None => {
            let mut holder = database.sqlite().await;
            let transaction = holder.begin_with("BEGIN IMMEDIATE").await.unwrap();
            upstream.release();
            let (stopped, ()) = tokio::join!(app.cancel(&id), async {
                stop_while_it_is_stored.await;
                transaction.rollback().await.unwrap();
            });
            assert_eq!(stopped.status, 200);
        }
    }
    assert_eq!(said(&messages(&app, "c").await), [("user", "질문"), ("assistant", "한 마디")]);
}
