//! `POST /chat`: what the caller gets, and what the upstream is asked.

use serde_json::{Value, json};

use crate::support::{CANARY_KEY, ScriptedUpstream, TestApp, assert_timestamp, upstream::answer};

#[tokio::test]
async fn an_answer_has_the_four_fields_of_the_original_in_its_order() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;

    let answer = app.chat(&json!({"message": "안녕"})).await;

    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_timestamp(&body["timestamp"]);
    let timestamp = body["timestamp"].as_str().unwrap();
    let expected = format!(
        "{{\"response\":\"안녕하세요! 무엇을 도와드릴까요?\",\"usage\":{{\"prompt_tokens\":10,\"completion_tokens\":15,\
         \"total_tokens\":25}},\"model\":\"gpt-3.5-turbo\",\"timestamp\":\"{timestamp}\"}}"
    );
    assert_eq!(answer.text(), expected);
}

#[tokio::test]
async fn upstream_gets_the_system_prompt_the_history_the_message_and_the_parameters() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;

    let request = json!({
        "message": "now", "system_prompt": "be brief", "model": "gpt-4o", "temperature": "0.25", "max_tokens": 7.0,
        "conversation_history": [
            {"role": "user", "content": "before", "timestamp": "2026-01-01T00:00:00"},
            {"role": "assistant", "content": "answer"},
        ],
        "unknown": {"field": [1, 2]},
    });
    let answer = app.chat(&request).await;

    assert_eq!(answer.json()["model"], "gpt-4o", "the model that was asked for");
    let seen = &upstream.seen()[0];
    assert_eq!(seen.line, "POST /v1/chat/completions");
    assert_eq!(seen.header("authorization"), Some(format!("Bearer {CANARY_KEY}").as_str()));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(
        seen.header("accept-encoding"),
        Some("identity"),
        "a compressed answer would need a decoder with a limit"
    );
    let expected = json!({
        "model": "gpt-4o", "temperature": 0.25, "max_tokens": 7,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "before"},
            {"role": "assistant", "content": "answer"},
            {"role": "user", "content": "now"},
        ],
    });
    assert_eq!(seen.body, expected);
}

#[tokio::test]
async fn what_is_left_out_or_null_has_its_default() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| {
        config.defaults.model = "gpt-4".into();
        config.defaults.temperature = Some(0.5);
        config.defaults.max_tokens = 99;
    })
    .await;
    let nulls = json!({
        "message": "x", "conversation_history": null, "system_prompt": null, "model": null, "temperature": null,
        "max_tokens": null,
    });
    for request in [json!({"message": "x"}), nulls] {
        assert_eq!(app.chat(&request).await.json()["model"], "gpt-4");
    }
    let expected = json!({
        "model": "gpt-4", "temperature": 0.5, "max_tokens": 99, "messages": [{"role": "user", "content": "x"}],
    });
    for seen in upstream.seen() {
        assert_eq!(seen.body, expected);
    }
}

#[tokio::test]
async fn organization_and_project_are_sent_when_they_are_set() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| {
        config.upstream.organization = Some("org-1".into());
        config.upstream.project = Some("proj_2".into());
    })
    .await;
    app.chat(&json!({"message": "x"})).await;
    let plain = TestApp::start(&upstream.base_url).await;
    plain.chat(&json!({"message": "x"})).await;

    let seen = upstream.seen();
    assert_eq!(seen[0].header("openai-organization"), Some("org-1"));
    assert_eq!(seen[0].header("openai-project"), Some("proj_2"));
    assert_eq!(seen[1].header("openai-organization"), None);
}

#[tokio::test]
async fn usage_is_null_when_upstream_sent_none() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for usage in [Value::Null, json!("a lot")] {
        let mut body = answer("hi");
        body["usage"] = usage;
        upstream.then_json(&body);
        let answer = app.chat(&json!({"message": "x"})).await;
        assert_eq!(answer.json()["usage"], Value::Null);
        assert!(answer.text().contains("\"usage\":null"), "the field is there");
    }
}

#[tokio::test]
async fn a_refusal_is_answered_in_the_models_own_words() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let mut body = answer("");
    body["choices"][0]["message"]["content"] = Value::Null;
    body["choices"][0]["message"]["refusal"] = json!("I can't help with that.");
    upstream.then_json(&body);
    assert_eq!(app.chat(&json!({"message": "x"})).await.json()["response"], "I can't help with that.");
}

#[tokio::test]
async fn any_text_arrives_as_it_was_sent() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let texts = [
        "",
        " ",
        "\u{0}",
        "e\u{301} 👩‍👩‍👧‍👦 🇰🇷",
        "한글 \u{1112}\u{1161}\u{11ab}",
        "\u{202e}rtl",
        "data: x\n\nevent: evil",
        "[DONE]",
        "\"\\/\u{8}\u{2028}\u{fffe}",
        "</script>",
    ];
    for (index, text) in texts.iter().enumerate() {
        upstream.then_json(&answer(text));
        let answer = app.chat(&json!({"message": text, "system_prompt": text})).await;
        assert_eq!(answer.json()["response"], *text);
        assert_eq!(upstream.seen()[index].body["messages"][1]["content"], *text);
    }
}

#[tokio::test]
async fn a_caller_who_leaves_takes_the_upstream_call_with_it() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then([crate::support::Play::Silence]);
    let call = tokio::spawn({
        let request = reqwest::Client::builder().no_proxy().build().unwrap().post(app.url("/chat"));
        request.header("content-type", "application/json").body(r#"{"message":"x"}"#).send()
    });
    upstream.arrived(1).await;
    call.abort();
    upstream.left().await;
}
