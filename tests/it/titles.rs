//! Titles: `POST /conversations/{id}/title`, and the one that is made after the first turn.

use serde_json::{Value, json};

use crate::support::{Play, ScriptedUpstream, TestApp, eventually, upstream::answer};

async fn title(app: &TestApp) -> Value {
    let saved = json!([
        {"role": "user", "content": "제주도 여행 일정 짜 줘"},
        {"role": "assistant", "content": "네!"},
    ]);
    app.put("/conversations/trip", &saved).await;
    let answer = app.post("/conversations/trip/title", &json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["title"].clone()
}

#[tokio::test]
async fn a_title_is_asked_for_briefly_and_tidied() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then_json(&answer("\"제주도 여행\"\n설명은 생략합니다."));
    let app = TestApp::start(&upstream.base_url).await;
    assert_eq!(title(&app).await, "제주도 여행");
    assert_eq!(app.get("/conversations/trip").await.json()["title"], "제주도 여행", "it is stored");
    let body = &upstream.seen()[0].body;
    assert_eq!((body["temperature"].as_f64(), body["max_tokens"].as_u64()), (Some(0.2), Some(30)));
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3);
    assert!(messages[2]["content"].as_str().unwrap().contains("10자"));
}

#[tokio::test]
async fn a_turn_that_is_longer_than_a_history_may_be_gets_a_title_too() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let saved = json!([
        {"role": "user", "content": "제주도 여행 일정 짜 줘"},
        {"role": "assistant", "content": "이렇게 해 보세요. ".repeat(10_000)},
    ]);
    assert_eq!(app.put("/conversations/trip", &saved).await.status, 201);
    upstream.then_json(&answer("제주도"));
    assert_eq!(app.post("/conversations/trip/title", &json!({})).await.json()["title"], "제주도");
    let body = &upstream.seen()[0].body;
    assert_eq!(body["messages"].as_array().unwrap().len(), 3);
    assert_eq!(body["messages"][0]["content"], "제주도 여행 일정 짜 줘");
    assert!(body["messages"][1]["content"].as_str().unwrap().len() <= 4096);
}

#[tokio::test]
async fn a_title_that_fails_is_a_new_chat_and_takes_no_titles_place() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then([Play::Reset]).then_json(&answer(" \n\"\"")).then_status(400, "", "{}");
    for _ in 0..3 {
        assert_eq!(title(&app).await, "새 대화");
    }
    assert_eq!(app.get("/conversations/trip").await.json()["title"], "새 대화");
    upstream.then_json(&answer("제주도")).then_status(500, "", "{}");
    assert_eq!(title(&app).await, "제주도");
    assert_eq!(title(&app).await, "새 대화");
    assert_eq!(app.get("/conversations/trip").await.json()["title"], "제주도");
}

#[tokio::test]
async fn the_first_turn_gets_a_title_in_the_background_and_the_second_does_not() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_json(&answer("하나")).then_json(&answer("산책")).then_json(&answer("둘"));
    app.chat(&json!({"message": "어디 걸을까?", "conversation_id": "walk"})).await;
    eventually(async || app.get("/conversations/walk").await.json()["title"] == "산책").await;
    app.chat(&json!({"message": "또?", "conversation_id": "walk"})).await;
    assert!(app.stop_gracefully().await, "what runs in the background has ended");
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn a_title_that_could_not_be_made_is_not_asked_for_with_every_turn() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_json(&answer("하나")).then_status(400, "", "{}").then_json(&answer("둘"));
    app.chat(&json!({"message": "어디 걸을까?", "conversation_id": "walk"})).await;
    eventually(async || upstream.seen().len() == 2).await;
    app.chat(&json!({"message": "또?", "conversation_id": "walk"})).await;
    assert_eq!(app.get("/conversations/walk").await.json()["title"], Value::Null);
    assert!(app.stop_gracefully().await, "what runs in the background has ended");
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn no_title_is_asked_for_a_conversation_that_was_given_one() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    assert_eq!(app.post("/conversations", &json!({"id": "walk", "title": "산책"})).await.status, 201);
    upstream.then_json(&answer("하나"));
    app.chat(&json!({"message": "어디 걸을까?", "conversation_id": "walk"})).await;
    assert_eq!(app.get("/conversations/walk").await.json()["title"], "산책");
    assert!(app.stop_gracefully().await, "what runs in the background has ended");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn no_title_is_made_when_that_is_switched_off() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.conversations.auto_title = false).await;
    app.chat(&json!({"message": "x", "conversation_id": "c"})).await;
    assert_eq!(app.get("/conversations/c").await.json()["title"], Value::Null);
    assert!(app.stop_gracefully().await);
    assert_eq!(upstream.seen().len(), 1);
}
