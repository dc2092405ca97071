//! What the log says of a request, and what it never says.

use serde_json::{Value, json};

use crate::support::{CANARY_KEY, Play, ScriptedUpstream, TestApp, events::Script, log, upstream::answer};

fn fields(line: &Value, names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| line[*name].clone()).collect()
}

#[tokio::test]
async fn a_request_is_one_line_with_what_an_operator_asks_for() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let headers = [("content-type", "application/json"), ("x-request-id", "log-test-1")];
    let body = json!({"message": "canary-prompt", "model": "gpt-4"}).to_string();
    app.request(reqwest::Method::POST, "/chat?token=canary-query", &headers, body.into_bytes()).await;

    let lines = log::lines_of("log-test-1");
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let said = fields(line, &["level", "message", "method", "route", "status", "model", "tokens"]);
    assert_eq!(
        said,
        [json!("INFO"), json!("request"), json!("POST"), json!("/chat"), json!(200), json!("gpt-4"), json!(25)]
    );
    assert!(line["ms"].as_f64().is_some_and(|ms| ms > 0.0));
    assert_eq!(line.as_object().unwrap().len(), 10, "and the time: {line}");
}

#[tokio::test]
async fn a_failure_is_one_line_with_its_code_and_reason() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then([Play::Reset]).then_status(400, "", r#"{"error":{"message":"canary-words of upstream"}}"#);
    let app = TestApp::start(&upstream.base_url).await;
    let send = async |id: &str| {
        let headers = [("content-type", "application/json"), ("x-request-id", id)];
        app.request(reqwest::Method::POST, "/chat", &headers, br#"{"message":"x"}"#.to_vec()).await;
        let lines = log::lines_of(id);
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    let broken = send("log-test-2").await;
    assert_eq!(
        (&broken["level"], &broken["status"], &broken["code"]),
        (&json!("WARN"), &json!(502), &json!("upstream_reset"))
    );
    assert_eq!(broken["reason"], "the connection to OpenAI API broke before the answer was complete");
    assert_eq!(broken["model"], "gpt-3.5-turbo");
    let refused = send("log-test-3").await;
    assert_eq!((&refused["level"], &refused["code"]), (&json!("INFO"), &json!("upstream_invalid_request")));
    assert_eq!(refused["reason"], Value::Null, "upstream's words may quote the prompt");
}

#[tokio::test]
async fn the_end_of_a_stream_is_one_line_with_its_model() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then(Script::answer(&["canary-answer"])).then(Script::chunked().piece("canary-answer").play(Play::Reset));
    let app = TestApp::start(&upstream.base_url).await;
    let lines = async |body: &Value| {
        let id = app.begin(body).await;
        app.events(&id).await.rest().await;
        log::lines_of_stream(&id)
    };
    let finished = lines(&json!({"message": "canary-prompt", "model": "gpt-4"})).await;
    let [line] = finished.as_slice() else { panic!("{finished:?}") };
    let said = fields(line, &["level", "message", "model", "finish_reason", "tokens"]);
    assert_eq!(said, [json!("INFO"), json!("a stream finished"), json!("gpt-4"), json!("stop"), json!(25)]);

    let failed = lines(&json!({"message": "canary-prompt"})).await;
    let [line] = failed.as_slice() else { panic!("{failed:?}") };
    let said = fields(line, &["level", "message", "model", "code"]);
    assert_eq!(said, [json!("WARN"), json!("a stream failed"), json!("gpt-3.5-turbo"), json!("upstream_reset")]);
}

#[tokio::test]
async fn a_caller_who_leaves_is_logged_as_499() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    upstream.then([Play::Silence]);
    let request = reqwest::Client::builder().no_proxy().build().unwrap().post(app.url("/chat"));
    let request = request.header("content-type", "application/json").header("x-request-id", "log-test-4");
    let call = tokio::spawn(request.body(r#"{"message":"x"}"#).send());
    upstream.arrived(1).await;
    call.abort();
    upstream.left().await;
    let lines = log::lines_of("log-test-4");
    assert_eq!((lines.len(), &lines[0]["status"]), (1, &json!(499)));
}

#[tokio::test]
async fn paths_that_match_nothing_are_not_repeated() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    app.request(reqwest::Method::GET, "/canary-path%0a%1b[31m", &[("x-request-id", "log-test-5")], Vec::new()).await;
    let line = &log::lines_of("log-test-5")[0];
    assert_eq!((&line["route"], &line["status"]), (&json!("(none)"), &json!(404)));
}

#[tokio::test]
async fn keys_prompts_answers_and_queries_are_in_no_line() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then_json(&answer("canary-answer")).then_status(200, "", "canary-answer is not JSON");
    upstream.then_status(401, "", r#"{"error":{"message":"canary-words"}}"#);
    let app = TestApp::start(&upstream.base_url).await;
    for body in [
        json!({"message": "canary-prompt", "system_prompt": "canary-prompt"}),
        json!({"message": "x", "conversation_history": [{"role": "user", "content": "canary-prompt"}]}),
        json!({"message": "canary-prompt"}),
        json!({"message": ["canary-prompt"]}),
    ] {
        app.chat(&body).await;
    }
    app.get("/models?key=canary-query").await;
    app.request(reqwest::Method::GET, "/", &[("authorization", "Bearer canary-token")], Vec::new()).await;
    // The log of every test of this process so far.
    let text = log::text();
    assert!(text.lines().count() > 5);
    for secret in [CANARY_KEY, "canary"] {
        assert!(!text.contains(secret), "{secret} in the log");
    }
}
