//! Conversations that last, on every database: over HTTP, and through the library where HTTP cannot tell owners apart.

mod broken_streams;
mod format;
mod history;
mod limits;
mod model;
mod outage;
mod owners;
mod pages;
mod pooler;
mod resource;
mod streams;
mod together;
mod turns;
mod validation;

use serde_json::{Value, json};

use crate::support::{Answer, TestApp};

/// `POST /chat` of a conversation.
async fn ask(app: &TestApp, id: &str, message: &str) -> Answer {
    app.chat(&json!({"message": message, "conversation_id": id})).await
}

/// The stored messages of a conversation that is there.
async fn messages(app: &TestApp, id: &str) -> Vec<Value> {
    let answer = app.get(&format!("/conversations/{id}/messages")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().as_array().expect("a list").clone()
}

/// Who said what.
fn said<'a>(messages: &'a [Value]) -> Vec<(&'a str, &'a str)> {
    let text = |value: &'a Value| value.as_str().expect("a text");
    messages.iter().map(|message| (text(&message["role"]), text(&message["content"]))).collect()
}

/// That there is no such conversation.
async fn assert_none(app: &TestApp, id: &str) {
    let (detail, code) = app.get(&format!("/conversations/{id}")).await.error(404);
    assert_eq!((detail, code.as_str()), (json!("대화를 찾을 수 없습니다"), "conversation_not_found"));
}
