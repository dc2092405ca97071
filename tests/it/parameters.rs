//! Models that refuse a parameter are asked again without it, and remembered.

use serde_json::{Value, json};

use crate::support::{ScriptedUpstream, TestApp};

fn refusal(param: &str, code: &str) -> String {
    let message = format!("Unsupported parameter: '{param}' is not supported with this model.");
    json!({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}).to_string()
}

async fn ask(app: &TestApp, model: &str) -> crate::support::Answer {
    app.chat(&json!({"message": "x", "model": model})).await
}

/// The parameters of each request so far, besides model and messages.
fn parameters(upstream: &ScriptedUpstream) -> Vec<Value> {
    let strip = |mut body: Value| {
        let fields = body.as_object_mut().unwrap();
        fields.remove("model");
        fields.remove("messages");
        body
    };
    upstream.seen().into_iter().map(|seen| strip(seen.body)).collect()
}

#[tokio::test]
async fn a_refused_token_limit_is_sent_by_its_newer_name_and_remembered_for_that_model() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_status(400, "", &refusal("max_tokens", "unsupported_parameter"));
    for model in ["o3", "o3", "gpt-4"] {
        assert_eq!(ask(&app, model).await.status, 200);
    }
    let usual = json!({"temperature": 0.7, "max_tokens": 2000});
    let newer = json!({"temperature": 0.7, "max_completion_tokens": 2000});
    assert_eq!(parameters(&upstream), [usual.clone(), newer.clone(), newer, usual]);
}

#[tokio::test]
async fn a_refused_temperature_is_left_out() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_status(400, "", &refusal("temperature", "unsupported_value"));
    assert_eq!(ask(&app, "o3").await.status, 200);
    assert_eq!(parameters(&upstream)[1], json!({"max_tokens": 2000}));
}

#[tokio::test]
async fn both_are_repaired_one_after_the_other_for_the_first_caller() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_status(400, "", &refusal("max_tokens", "unsupported_parameter"));
    upstream.then_status(400, "", &refusal("temperature", "unsupported_value"));
    assert_eq!(ask(&app, "o3").await.status, 200);
    assert_eq!(ask(&app, "o3").await.status, 200);
    let both = json!({"max_completion_tokens": 2000});
    assert_eq!(parameters(&upstream)[2..], [both.clone(), both]);
}

#[tokio::test]
async fn a_model_that_refuses_whatever_it_is_asked_is_not_asked_for_ever() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for _ in 0..2 {
        upstream.then_status(400, "", &refusal("max_tokens", "unsupported_parameter"));
        upstream.then_status(400, "", &refusal("max_completion_tokens", "unsupported_parameter"));
    }
    let (_, code) = ask(&app, "odd").await.error(400);
    assert_eq!((code.as_str(), upstream.seen().len()), ("upstream_invalid_request", 3));
}

#[tokio::test]
async fn other_refusals_are_passed_on_at_once() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_status(400, "", &refusal("messages", "unsupported_parameter"));
    let (detail, code) = ask(&app, "o3").await.error(400);
    assert_eq!((code.as_str(), upstream.seen().len()), ("upstream_invalid_request", 1));
    assert!(detail.as_str().unwrap().ends_with("Unsupported parameter: 'messages' is not supported with this model."));
}
