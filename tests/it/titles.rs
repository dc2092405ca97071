//! `OpenAiService::generate_title`, which has no route of its own yet.

use std::sync::Arc;

use ai_service::{
    chat::{OpenAiService, UNTITLED},
    config::Config,
    message::{Message, Role},
    openai::Client,
};

use crate::support::{Play, ScriptedUpstream, upstream::answer, variables};

async fn title(upstream: &ScriptedUpstream) -> String {
    let config = Config::from_variables(&variables(&upstream.base_url), false).unwrap();
    let service = OpenAiService::new(Arc::new(Client::new(&config.upstream).unwrap()), config.defaults);
    let conversation = [Message::new(Role::User, "제주도 여행 일정 짜 줘"), Message::new(Role::Assistant, "네!")];
    service.generate_title(&conversation).await
}

#[tokio::test]
async fn a_title_is_asked_for_briefly_and_tidied() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then_json(&answer("\"제주도 여행\"\n설명은 생략합니다."));
    assert_eq!(title(&upstream).await, "제주도 여행");
    let body = &upstream.seen()[0].body;
    assert_eq!((body["temperature"].as_f64(), body["max_tokens"].as_u64()), (Some(0.2), Some(30)));
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3);
    assert!(messages[2]["content"].as_str().unwrap().contains("10자"));
}

#[tokio::test]
async fn a_conversation_whose_title_fails_is_a_new_chat() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Reset]).then_json(&answer(" \n\"\"")).then_status(429, "", "{}");
    for _ in 0..3 {
        assert_eq!(title(&upstream).await, UNTITLED);
    }
    assert_eq!(UNTITLED, "새 대화");
}
