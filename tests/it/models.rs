//! `GET /models`.

use serde_json::json;

use crate::support::{ScriptedUpstream, TestApp};

#[tokio::test]
async fn upstreams_chat_models_are_listed_with_the_originals_names() {
    let upstream = ScriptedUpstream::start().await;
    let model = |id: &str, created: i64| json!({"id": id, "object": "model", "created": created, "owned_by": "openai"});
    let list = [model("whisper-1", 9), model("gpt-4o", 7), model("gpt-4", 1), model("gpt-3.5-turbo", 0)];
    upstream.then_json(&json!({"object": "list", "data": list, "more": true}));
    let app = TestApp::start(&upstream.base_url).await;
    let expected = json!({"models": [
        {"id": "gpt-3.5-turbo", "name": "GPT-3.5 Turbo", "description": "빠르고 효율적인 모델"},
        {"id": "gpt-4", "name": "GPT-4", "description": "가장 강력한 모델"},
        {"id": "gpt-4o", "name": "GPT-4o", "description": "OpenAI 채팅 모델"},
    ]});
    assert_eq!(app.get("/models").await.json(), expected);
}

#[tokio::test]
async fn while_upstream_cannot_be_asked_the_originals_fixed_list_is_given() {
    let upstream = ScriptedUpstream::start().await;
    let expected = json!({"models": [
        {"id": "gpt-3.5-turbo", "name": "GPT-3.5 Turbo", "description": "빠르고 효율적인 모델"},
        {"id": "gpt-4", "name": "GPT-4", "description": "가장 강력한 모델"},
        {"id": "gpt-4-turbo-preview", "name": "GPT-4 Turbo", "description": "GPT-4의 빠른 버전"},
    ]});
    for (status, body) in [(500, "{}"), (200, "<html>"), (401, "{}"), (200, r#"{"data":[{"noid":1}]}"#)] {
        upstream.then_status(status, "", body);
        let app = TestApp::start(&upstream.base_url).await;
        let answer = app.get("/models").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json(), expected, "{status} {body}");
    }
}
