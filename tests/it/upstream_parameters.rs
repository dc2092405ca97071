//! Parameters that a model refuses: recognised by their names, left out where nobody asked for them, and remembered only
//! where that helped.

use serde_json::{Value, json};

use crate::support::{Answer, ScriptedUpstream, TestApp, events::Script};

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

fn message(text: &str) -> String {
    json!({"error": {"message": text, "param": null, "code": null}}).to_string()
}

async fn ask(app: &TestApp) -> Answer {
    app.chat(&json!({"message": "x"})).await
}

async fn last(app: &TestApp, body: &Value) -> Value {
    app.chat_as_stream(body).await.rest().await.pop().unwrap().data
}

#[tokio::test]
async fn whatever_the_sentence_a_temperature_that_nobody_asked_for_is_left_out_and_that_is_remembered() {
    for (status, refusal) in [
        (400, message("Model incompatible request argument supplied: temperature")),
        (400, message("invalid temperature: only 1 is allowed for this model")),
        (400, message("`temperature` is deprecated for this model.")),
        (
            422,
            json!({"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted"}]}).to_string(),
        ),
        (400, "temperature: unknown field".to_owned()),
        (400, json!([{"error": {"message": "Unknown name \"temperature\""}}]).to_string()),
    ] {
        let upstream = ScriptedUpstream::start().await;
        let app = TestApp::start(&upstream.base_url).await;
        upstream.then_status(status, "", &refusal);
        for _ in 0..2 {
            assert_eq!(ask(&app).await.status, 200, "{refusal}");
        }
        let without = json!({"max_tokens": 2000});
        let usual = json!({"temperature": 0.7, "max_tokens": 2000});
        assert_eq!(parameters(&upstream), [usual, without.clone(), without.clone()], "{refusal}");
        // What a whole answer taught counts for streams.
        upstream.then(Script::answer(&["x"]));
        assert_eq!(last(&app, &json!({"message": "x"})).await["type"], "END");
        assert_eq!(parameters(&upstream)[3]["temperature"], Value::Null);
    }
}

#[tokio::test]
async fn a_server_that_knows_no_stream_options_streams_without_and_its_usage_is_counted() {
    for refusal in [
        "Extra inputs are not permitted, field: 'stream_options'",
        "Unrecognized request argument supplied: stream_options",
    ] {
        let upstream = ScriptedUpstream::start().await;
        let app = TestApp::start(&upstream.base_url).await;
        upstream.then_status(400, "", &message(refusal));
        for _ in 0..2 {
            upstream.then(Script::chunked().piece("hello world").finish("stop").done().end());
            let last = last(&app, &json!({"message": "hello world"})).await;
            assert_eq!((&last["type"], &last["usage"]), (&json!("END"), &Value::Null));
        }
        let sent: Vec<_> = parameters(&upstream).into_iter().map(|body| body["stream_options"].clone()).collect();
        assert_eq!(sent, [json!({"include_usage": true}), Value::Null, Value::Null]);
        let used = app.get("/usage").await.json();
        assert_eq!((&used["today"]["prompt_tokens"], &used["today"]["completion_tokens"]), (&json!(12), &json!(4)));
    }
}

#[tokio::test]
async fn nothing_is_learned_until_it_helped() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_status(400, "", &message("no temperature")).then_status(500, "", "{}");
    ask(&app).await.error(502);
    assert_eq!(ask(&app).await.status, 200);
    let sent: Vec<_> = parameters(&upstream).into_iter().map(|body| body["temperature"].clone()).collect();
    assert_eq!(sent, [json!(0.7), Value::Null, json!(0.7)]);
}

#[tokio::test]
async fn what_the_caller_asked_for_and_the_model_refuses_goes_back_to_him() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_status(400, "", &message("no temperature but 1"));
    assert_eq!(ask(&app).await.status, 200);
    upstream.then_status(400, "", &message("no temperature but 1"));
    let (detail, code) = app.chat(&json!({"message": "x", "temperature": 0.2})).await.error(400);
    assert_eq!(code, "upstream_invalid_request");
    assert!(detail.as_str().unwrap().ends_with("no temperature but 1"), "{detail}");
    assert_eq!(parameters(&upstream)[2]["temperature"], 0.2);
    // A limit of his goes by its other name and is never left out.
    upstream.then_status(400, "", &message("max_tokens is not supported"));
    upstream.then_status(400, "", &message("max_completion_tokens is too large"));
    let (detail, _) = app.chat(&json!({"message": "x", "max_tokens": 9, "model": "other"})).await.error(400);
    assert!(detail.as_str().unwrap().ends_with("max_completion_tokens is too large"), "{detail}");
    assert_eq!(upstream.seen().len(), 5);
}

#[tokio::test]
async fn a_limit_that_nobody_asked_for_is_left_out_when_neither_name_will_do() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then_status(400, "", &message("max_tokens is too large: 2000"));
    upstream.then_status(422, "", &message("max_completion_tokens: extra fields not permitted"));
    for _ in 0..2 {
        assert_eq!(ask(&app).await.status, 200);
    }
    let none = json!({"temperature": 0.7});
    assert_eq!(parameters(&upstream)[2..], [none.clone(), none]);
}

#[tokio::test]
async fn a_context_that_is_too_long_is_no_refusal_of_the_limit_it_counts() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let text = "This model's maximum context length is 4097 tokens, you asked for 5000 (2000 in max_tokens).";
    upstream.then_status(400, "", &message(text));
    assert_eq!(ask(&app).await.error(400).1, "context_length_exceeded");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn without_a_default_temperature_none_is_sent() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_from(&upstream.base_url, &[("DEFAULT_TEMPERATURE", "none")]).await;
    ask(&app).await;
    app.chat(&json!({"message": "x", "temperature": 1})).await;
    let sent: Vec<_> = parameters(&upstream).into_iter().map(|body| body["temperature"].clone()).collect();
    assert_eq!(sent, [Value::Null, json!(1.0)]);
}
