//! Turns of `POST /chat`: what is sent with a question, and what is stored of it.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    conversations::{ask, assert_none, messages, said},
    support::{
        Play, ScriptedUpstream, TestApp, assert_timestamp,
        database::{TestDatabase, on_every_database},
        events::Script,
        upstream::{answer, response},
    },
};

on_every_database!(
    a_turn_is_stored_and_stands_before_the_next,
    what_a_turn_says_of_itself_is_stored_with_it,
    a_system_prompt_is_sent_and_not_stored,
    a_failed_or_cut_answer_stores_nothing,
    a_caller_who_leaves_stores_nothing,
    a_hundred_equal_requests_store_one_turn,
    a_caller_with_a_key_who_leaves_finds_the_turn_stored,
    an_empty_history_is_none,
    absurd_costs_do_not_break_a_conversation,
    what_is_removed_while_an_answer_runs_stays_removed,
    what_is_not_there_yet_cannot_be_removed,
);

async fn a_turn_is_stored_and_stands_before_the_next(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for (question, reply) in [("하나", "one"), ("둘\0", "two 👨‍👩‍👧‍👦"), ("셋", "three")] {
        upstream.then_json(&answer(reply));
        let answer = ask(&app, "Counting_1-", question).await;
        assert_eq!((answer.status.as_u16(), answer.json()["response"].as_str()), (200, Some(reply)));
    }
    let stored = messages(&app, "Counting_1-").await;
    let expected = [
        ("user", "하나"),
        ("assistant", "one"),
        ("user", "둘\0"),
        ("assistant", "two 👨‍👩‍👧‍👦"),
        ("user", "셋"),
        ("assistant", "three"),
    ];
    assert_eq!(said(&stored), expected);
    // What was sent with the last question: all that was stored then, and the question.
    let sent = upstream.seen()[2].body["messages"].as_array().unwrap().clone();
    assert_eq!(said(&sent), &expected[..5]);
    assert!(sent.iter().all(|message| message.as_object().unwrap().len() == 2), "nothing but role and content");
    assert_eq!(said(upstream.seen()[0].body["messages"].as_array().unwrap()), &expected[..1]);
}

async fn what_a_turn_says_of_itself_is_stored_with_it(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for _ in 0..2 {
        upstream.then_json(&answer("x"));
        ask(&app, "c", "y").await;
    }
    let stored = messages(&app, "c").await;
    let times: Vec<_> = stored.iter().map(|message| message["timestamp"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    for message in &stored {
        assert_timestamp(&message["timestamp"]);
        let fields: Vec<_> = message.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["content", "role", "timestamp"]);
    }
    let expected = json!({
        "total_messages": 4, "user_messages": 2, "ai_messages": 2,
        "prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50,
        "first_message_at": times[0], "last_message_at": times[3],
    });
    assert_eq!(app.get("/conversations/c/summary").await.json(), expected);
}

async fn a_system_prompt_is_sent_and_not_stored(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    upstream.then_json(&answer("b")).then_json(&answer("d"));
    for question in ["a", "c"] {
        app.chat(&json!({"message": question, "conversation_id": "c", "system_prompt": "be brief"})).await;
    }
    let expected = [("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c")];
    assert_eq!(said(upstream.seen()[1].body["messages"].as_array().unwrap()), expected);
    assert_eq!(
        said(&messages(&app, "c").await),
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    );
}

async fn a_failed_or_cut_answer_stores_nothing(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    ask(&app, "old", "before").await;
    let before = app.get("/conversations/old").await.body;
    let whole = response(200, "", &answer("a whole answer").to_string());
    let half = whole[..whole.len() / 2].to_vec();
    for script in [
        vec![Play::Send(response(500, "", "{}"))],
        vec![Play::Send(response(429, "", "{}"))],
        vec![Play::Send(response(400, "", "{}"))],
        vec![Play::Send(response(200, "", "<html>"))],
        vec![Play::Send(half.clone()), Play::Reset],
        vec![Play::Send(half), Play::Close],
        vec![Play::Reset],
    ] {
        for id in ["new", "old"] {
            upstream.then(script.clone());
            let answer = ask(&app, id, "x").await;
            assert!(answer.status.as_u16() >= 400, "{script:?}: {}", answer.text());
        }
        assert_none(&app, "new").await;
        assert_eq!(app.get("/conversations/old").await.body, before, "{script:?}");
    }
}

/// Begins `POST /chat` of the conversation `c`, and leaves once upstream has been asked.
async fn leave(app: &TestApp, upstream: &ScriptedUpstream, headers: &str) {
    let body = json!({"message": "x", "conversation_id": "c"}).to_string();
    let length = body.len();
    let mut caller = TcpStream::connect(app.address).await.unwrap();
    let head = format!("POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}");
    caller.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).await.unwrap();
    upstream.arrived(1).await;
}

async fn a_caller_who_leaves_stores_nothing(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Silence]);
    let app = database.app(&upstream).await;
    leave(&app, &upstream, "").await;
    upstream.left().await;
    assert_none(&app, "c").await;
    assert!(app.stop_gracefully().await);
    assert_eq!(upstream.seen().len(), 1);
}

async fn a_caller_with_a_key_who_leaves_finds_the_turn_stored(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("kept").to_string()))]);
    let app = database.app(&upstream).await;
    leave(&app, &upstream, "Idempotency-Key: k\r\n").await;
    upstream.release();
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let body = json!({"message": "x", "conversation_id": "c"}).to_string().into_bytes();
    let answer = app.request(Method::POST, "/chat", &headers, body).await;
    assert_eq!((&answer.json()["response"], answer.header("idempotent-replayed")), (&json!("kept"), Some("true")));
    assert_eq!(said(&messages(&app, "c").await), [("user", "x"), ("assistant", "kept")]);
}

async fn a_hundred_equal_requests_store_one_turn(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("once").to_string()))]);
    let app = database.app(&upstream).await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let body = json!({"message": "x", "conversation_id": "c"}).to_string().into_bytes();
    let ask = || app.request(Method::POST, "/chat", &headers, body.clone());
    let (answers, ()) = tokio::join!(futures_util::future::join_all((0..100).map(|_| ask())), async {
        upstream.arrived(1).await;
        upstream.release();
    });
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == answers[0].body));
    assert_eq!(said(&messages(&app, "c").await), [("user", "x"), ("assistant", "once")]);
    // The same words for another conversation, or for none, are another request.
    for other in [json!({"message": "x", "conversation_id": "d"}), json!({"message": "x"})] {
        let answer = app.request(Method::POST, "/chat", &headers, other.to_string().into_bytes()).await;
        assert_eq!(answer.error(422).1, "idempotency_key_reused");
    }
    assert_none(&app, "d").await;
    assert_eq!(upstream.seen().len(), 1);
}

async fn an_empty_history_is_none(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for history in [json!([]), Value::Null] {
        let body = json!({"message": "x", "conversation_id": "c", "conversation_history": history});
        assert_eq!(app.chat(&body).await.status, 200);
    }
    assert_eq!(messages(&app, "c").await.len(), 4);
}

async fn absurd_costs_do_not_break_a_conversation(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for tokens in [u64::MAX, i64::MAX as u64, 1] {
        let mut said = answer("x");
        said["usage"] = json!({"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": tokens});
        upstream.then_json(&said);
        assert_eq!(ask(&app, "c", "y").await.status, 200, "{tokens}");
    }
    assert_eq!(messages(&app, "c").await.len(), 6);
    assert!(app.get("/conversations/c/summary").await.json()["total_tokens"].as_u64() > Some(1));
}

/// The conversation is removed, or cleared, while a whole answer and a stream for it run.
async fn what_is_removed_while_an_answer_runs_stays_removed(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    for path in ["/conversations/c", "/conversations/c/messages"] {
        for stream in [false, true] {
            ask(&app, "c", "before").await;
            let asked = upstream.seen().len();
            let (removing, answering) = (app.delete(path), async {
                let body = json!({"message": "x", "conversation_id": "c"});
                if stream {
                    upstream.then(Script::chunked().role().piece("late").hold().finish("stop").done().end());
                    let events = app.chat_as_stream(&body).await.rest().await;
                    assert_eq!(events.last().unwrap().data["full_content"], "late", "its reader gets it");
                } else {
                    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("late").to_string()))]);
                    assert_eq!(app.chat(&body).await.json()["response"], "late");
                }
            });
            let removing = async {
                upstream.arrived(asked + 1).await;
                assert_eq!(removing.await.status, 200);
                upstream.release();
            };
            tokio::join!(answering, removing);
            if path.ends_with("messages") {
                assert_eq!(messages(&app, "c").await, Vec::<Value>::new());
            } else {
                assert_none(&app, "c").await;
            }
            // What comes after it is stored as ever.
            ask(&app, "c", "after").await;
            assert_eq!(messages(&app, "c").await.len(), 2);
            app.delete("/conversations/c").await;
        }
    }
}

async fn what_is_not_there_yet_cannot_be_removed(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("first").to_string()))]);
    let removing = async {
        upstream.arrived(1).await;
        app.delete("/conversations/new").await.error(404);
        upstream.release();
    };
    let (answered, ()) = tokio::join!(ask(&app, "new", "x"), removing);
    assert_eq!(answered.status, 200);
    assert_eq!(messages(&app, "new").await.len(), 2);
}
