//! What proves an answer's end, and what takes the proof back: in a stream, in a whole answer, and in what is stored of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Play, ScriptedUpstream, TestApp,
    events::{Script, contents, delta},
    upstream::{answer, response},
};

/// What a stream ends with.
struct Outcome {
    pieces: Vec<String>,
    last: Value,
}

/// A piece with a finish reason beside it.
fn beside(text: &str, reason: &str) -> String {
    delta(&json!({"content": text}), &json!(reason))
}

/// Plays `script` to a stream that belongs to a conversation, and looks whether its turn is stored as it should be.
async fn outcome(script: impl IntoIterator<Item = Play>) -> Outcome {
    outcome_with(&[], script).await
}

async fn outcome_with(pairs: &[(&str, &str)], script: impl IntoIterator<Item = Play>) -> Outcome {
    let upstream = ScriptedUpstream::start().await;
    upstream.then(script);
    let pairs: Vec<_> = [("AUTO_TITLE", "false")].iter().chain(pairs).copied().collect();
    let app = TestApp::start_from(&upstream.base_url, &pairs).await;
    let id = app.begin(&json!({"message": "x", "conversation_id": "trip"})).await;
    let events = app.events(&id).await.rest().await;
    let last = events.last().unwrap().data.clone();
    let stored = app.get("/conversations/trip/messages").await;
    assert_eq!(stored.status == 200, last["type"] == "END", "{last}: {}", stored.text());
    assert_eq!(upstream.seen().len(), 1, "one call upstream");
    Outcome { pieces: contents(&events).into_iter().map(str::to_owned).collect(), last }
}

impl Outcome {
    #[track_caller]
    fn assert_end(&self, text: &str, finish_reason: Option<&str>) {
        let expected = (&json!("END"), &json!(text), &json!(finish_reason));
        assert_eq!(
            (&self.last["type"], &self.last["full_content"], &self.last["finish_reason"]),
            expected,
            "{}",
            self.last
        );
        assert_eq!(self.pieces.concat(), text);
    }

    #[track_caller]
    fn assert_error(&self, code: &str, partial: &str) {
        let told = (&self.last["type"], &self.last["code"], &self.last["partial"]);
        assert_eq!(told, (&json!("ERROR"), &json!(code), &json!(partial)), "{}", self.last);
        assert_eq!(self.pieces.concat(), partial);
    }
}

#[tokio::test]
async fn an_empty_finish_reason_is_none() {
    for reason in [json!(""), json!(null), json!(7), json!({})] {
        let start = || Script::chunked().event(&delta(&json!({"content": "Hel"}), &reason));
        outcome(start().play(Play::Reset)).await.assert_error("upstream_reset", "Hel");
        outcome(start().end()).await.assert_error("upstream_truncated", "Hel");
        outcome(start().done().end()).await.assert_end("Hel", None);
    }
    let quiet = Script::chunked().event(&beside("Hel", "")).play(Play::Pause(Duration::from_millis(5500)));
    outcome(quiet.piece("lo").finish("stop").done().end()).await.assert_end("Hello", Some("stop"));
}

#[tokio::test]
async fn a_finish_reason_beside_text_needs_an_end_in_good_order() {
    let both = || Script::chunked().event(&beside("Hel", "stop")).event(&beside("lo", "stop"));
    outcome(both().done().end()).await.assert_end("Hello", Some("stop"));
    outcome(both().end()).await.assert_end("Hello", Some("stop"));
    outcome(both().play(Play::Reset)).await.assert_error("upstream_reset", "Hello");
    let pairs = [("UPSTREAM_IDLE_TIMEOUT_SECONDS", "1")];
    outcome_with(&pairs, both().play(Play::Silence)).await.assert_error("upstream_stalled", "Hello");
    let slow = Script::chunked().event(&beside("Hel", "stop")).play(Play::Pause(Duration::from_millis(5500)));
    outcome(slow.event(&beside("lo", "stop")).done().end()).await.assert_end("Hello", Some("stop"));
}

#[tokio::test]
async fn what_comes_behind_a_finish_reason_takes_it_back() {
    let thought = delta(&json!({"reasoning_content": "hm"}), &Value::Null);
    let tool = delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}), &Value::Null);
    let more = delta(&json!({"content": "lo"}), &Value::Null);
    for (event, partial) in [(thought, "Hel"), (tool, "Hel"), (more, "Hello")] {
        let script = Script::chunked().piece("Hel").finish("stop").event(&event);
        outcome(script.clone().play(Play::Reset)).await.assert_error("upstream_reset", partial);
        outcome(script.clone().end()).await.assert_error("upstream_truncated", partial);
        outcome(script.finish("length").play(Play::Reset)).await.assert_end(partial, Some("length"));
    }
    let empty = delta(&json!({"role": "assistant", "content": "", "tool_calls": []}), &Value::Null);
    let script = Script::chunked().piece("Hel").finish("stop").event(&empty).usage();
    outcome(script.play(Play::Reset)).await.assert_end("Hel", Some("stop"));
}

#[tokio::test]
async fn done_alone_proves_nothing_when_no_text_came() {
    outcome(Script::chunked().done().end()).await.assert_error("upstream_truncated", "");
    outcome(Script::chunked().role().usage().done().end()).await.assert_error("upstream_truncated", "");
    let thought = delta(&json!({"reasoning": "hm"}), &Value::Null);
    outcome(Script::chunked().event(&thought).done().end()).await.assert_error("upstream_truncated", "");
    outcome(Script::chunked().piece("Hello").done().end()).await.assert_end("Hello", None);
    outcome(Script::chunked().role().finish("stop").done().end()).await.assert_end("", Some("stop"));
}

#[tokio::test]
async fn a_reason_that_names_a_failure_is_an_error_also_where_a_server_behind_the_server_gave_it() {
    for reason in ["error", "network_error", "abort", "insufficient_system_resource"] {
        let script = Script::chunked().piece("Hel").finish(reason).done().end();
        let outcome = outcome(script).await;
        outcome.assert_error("upstream_error", "Hel");
        assert_eq!((&outcome.last["status"], &outcome.last["retryable"]), (&json!(502), &json!(true)));
    }
    let native = |reason: &str| {
        let choice = json!({"index": 0, "delta": {}, "finish_reason": "stop", "native_finish_reason": reason});
        Script::chunked().piece("Hel").event(&json!({"choices": [choice]}).to_string()).done().end()
    };
    outcome(native("network_error")).await.assert_error("upstream_error", "Hel");
    outcome(native("STOP")).await.assert_end("Hel", Some("stop"));
}

#[tokio::test]
async fn an_error_is_told_wherever_the_upstream_tells_it() {
    let choice = json!({"index": 0, "delta": {"content": ""}, "error": {"code": 502, "message": "boom"}});
    let vllm = json!({"object": "error", "message": "boom", "type": "InternalServerError", "code": 500});
    let events = [
        "error: {\"code\":500,\"message\":\"boom\",\"type\":\"server_error\"}\n\n".to_owned(),
        "error: boom\n\n".to_owned(),
        "event: error\ndata: boom\n\n".to_owned(),
        format!("data: {vllm}\n\n"),
        format!("data: {}\n\n", json!({"choices": [choice]})),
        format!("data: {}\n\n", json!({"message": "boom", "code": 500})),
        format!("data: {}\n\n", json!({"detail": "boom", "status": 500})),
        format!("data: {}\n\n", json!([{"error": {"message": "boom"}}])),
        format!("data: {}\n\n", json!({"error": "boom"})),
        format!("{}\n\n", json!({"error": {"message": "boom"}})),
        "{\n  \"error\": {\n    \"message\": \"boom\"\n  }\n}\n\n".to_owned(),
    ];
    for event in events {
        for script in [Script::chunked(), Script::chunked().piece("Hel"), Script::chunked().piece("Hel").finish("stop")]
        {
            let partial = if script.clone().into_iter().count() == 1 { "" } else { "Hel" };
            let outcome = outcome(script.bytes(event.as_bytes()).done().end()).await;
            outcome.assert_error("upstream_error", partial);
            assert!(outcome.last["error"].as_str().unwrap().ends_with(": boom"), "{event} {}", outcome.last);
        }
    }
    let long = "error: {\"code\":400,\"message\":\"the request exceeds the available context size\"}\n\n";
    let outcome = outcome(Script::chunked().bytes(long.as_bytes()).done().end()).await;
    outcome.assert_error("context_length_exceeded", "");
    assert_eq!(outcome.last["status"], 400);
}

#[tokio::test]
async fn a_message_is_read_where_there_is_no_delta_and_not_twice() {
    let message = |text: &str| {
        json!({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}).to_string()
    };
    outcome(Script::chunked().event(&message("Hello")).done().end()).await.assert_end("Hello", Some("stop"));
    let again = Script::chunked().piece("Hel").piece("lo").event(&message("Hello")).done().end();
    outcome(again).await.assert_end("Hello", Some("stop"));
}

/// What `POST /chat` gets, and how much the upstream was asked.
async fn whole(script: impl IntoIterator<Item = Play>) -> (u16, Value) {
    let upstream = ScriptedUpstream::start().await;
    upstream.then(script);
    let app = TestApp::start_from(&upstream.base_url, &[("AUTO_TITLE", "false")]).await;
    let answer = app.chat(&json!({"message": "x", "conversation_id": "trip"})).await;
    let stored = app.get("/conversations/trip/messages").await;
    assert_eq!(stored.status, if answer.status == 200 { 200 } else { 404 }, "{}", answer.text());
    assert_eq!(upstream.seen().len(), 1, "one call upstream");
    (answer.status.as_u16(), answer.json())
}

async fn whole_json(change: impl FnOnce(&mut Value)) -> (u16, Value) {
    let mut body = answer("Hello");
    change(&mut body);
    whole([Play::Send(response(200, "", &body.to_string()))]).await
}

#[tokio::test]
async fn a_whole_answer_is_read_by_the_same_rules() {
    for reason in ["error", "network_error"] {
        let (status, body) = whole_json(|body| body["choices"][0]["finish_reason"] = json!(reason)).await;
        assert_eq!((status, &body["code"]), (502, &json!("upstream_error")), "{reason}");
    }
    let errors: [fn(&mut Value); 4] = [
        |body| body["choices"][0]["error"] = json!({"message": "boom"}),
        |body| body["error"] = json!("boom"),
        |body| *body = json!({"object": "error", "message": "boom"}),
        |body| *body = json!({"message": "boom", "code": 500}),
    ];
    for change in errors {
        let (status, body) = whole_json(change).await;
        assert_eq!((status, &body["code"]), (502, &json!("upstream_error")), "{body}");
    }
    // All of it is there: the form says so.
    for reason in [json!(""), json!(null)] {
        let (status, body) = whole_json(|body| body["choices"][0]["finish_reason"] = reason).await;
        assert_eq!((status, &body["response"]), (200, &json!("Hello")));
    }
}

#[tokio::test]
async fn a_model_that_stops_without_a_word_has_answered() {
    for content in [json!(null), json!("")] {
        let (status, body) = whole_json(|body| body["choices"][0]["message"]["content"] = content).await;
        assert_eq!((status, &body["response"]), (200, &json!("")));
    }
    let script = Script::chunked().role().finish("stop").usage().done().end();
    assert_eq!(whole(script).await.1["response"], "");
    let (status, body) = whole(Script::chunked().role().finish("length").usage().done().end()).await;
    assert_eq!((status, &body["code"]), (502, &json!("upstream_empty")));
}

#[tokio::test]
async fn a_whole_answer_that_comes_as_a_stream_is_whole_when_the_stream_is() {
    let start = || Script::chunked().role().piece("Hello ").piece("world");
    let (status, body) = whole(start().finish("stop").usage().done().end()).await;
    assert_eq!((status, &body["response"]), (200, &json!("Hello world")));
    assert_eq!(body["usage"], json!({"prompt_tokens": 10, "completion_tokens": 15, "total_tokens": 25}));
    for (script, code) in [
        (start().end(), "upstream_truncated"),
        (start().play(Play::Reset), "upstream_reset"),
        (start().finish("error").done().end(), "upstream_error"),
        (start().event(&json!({"error": {"message": "boom"}}).to_string()).end(), "upstream_error"),
        (Script::chunked().done().end(), "upstream_truncated"),
    ] {
        let (status, body) = whole(script).await;
        assert_eq!((status, &body["code"]), (502, &json!(code)), "{body}");
    }
}

#[tokio::test]
async fn a_stream_that_comes_as_a_whole_answer_is_one_piece_and_an_end() {
    let body = answer("Hello").to_string();
    let pretty = serde_json::to_string_pretty(&answer("Hello")).unwrap();
    for content_type in ["", "content-type: text/event-stream\r\n", "content-type: text/plain\r\n"] {
        for body in [&body, &pretty] {
            let outcome = outcome([Play::Send(response(200, content_type, body))]).await;
            outcome.assert_end("Hello", Some("stop"));
            assert_eq!((outcome.pieces.len(), &outcome.last["usage"]["total_tokens"]), (1, &json!(25)));
            let failed = outcome_of_error(content_type).await;
            failed.assert_error("upstream_error", "");
            assert!(failed.last["error"].as_str().unwrap().ends_with(": boom"), "{}", failed.last);
        }
    }
    let named = Script::with_type("content-type: application/json\r\n").role().piece("Hello").finish("stop").done();
    outcome(named.end()).await.assert_end("Hello", Some("stop"));
}

async fn outcome_of_error(content_type: &str) -> Outcome {
    outcome([Play::Send(response(200, content_type, r#"{"error":{"message":"boom"}}"#))]).await
}

#[tokio::test]
async fn the_last_event_counts_without_its_empty_line_if_it_is_whole() {
    let start = || Script::chunked().piece("Hello ").piece("world");
    for rest in ["data: [DONE]", "data: [DONE]\n"] {
        outcome(start().bytes(rest.as_bytes()).end()).await.assert_end("Hello world", None);
    }
    let last = format!("data: {}", beside("world", "stop"));
    for rest in [last.clone(), format!("{last}\n"), format!("{last}\r\n")] {
        let script = Script::chunked().piece("Hello ").bytes(rest.as_bytes()).end();
        outcome(script).await.assert_end("Hello world", Some("stop"));
    }
    let half = Script::chunked().piece("Hello ").bytes(&last.as_bytes()[..last.len() - 3]);
    outcome(half.clone().end()).await.assert_error("upstream_truncated", "Hello ");
    outcome(half.play(Play::Reset)).await.assert_error("upstream_reset", "Hello ");
}

#[tokio::test]
async fn binary_garbage_between_events_is_read_over() {
    let script =
        Script::chunked().piece("Hel").bytes(b"\x00\xff\xfe\x01garbage\n\x80: x\n\n").piece("lo").finish("stop");
    outcome(script.done().end()).await.assert_end("Hello", Some("stop"));
}
