//! Bad requests get what the original gives. `fixtures/fastapi.json` was captured from FastAPI 0.165 with
//! Pydantic 2.14: a body, the status, the mistakes it reports (without `input`) or what it understood.

use serde_json::{Value, json};

use crate::support::{ScriptedUpstream, TestApp};

/// Where this service answers otherwise on purpose: the body, the `type` of the first mistake, and why.
const DIFFERENT: [(&str, &str, &str); 3] = [
    (r#"{"message":"x","temperature":true}"#, "float_type", "the contract: a boolean is no number"),
    (r#"{"message":"x","max_tokens":true}"#, "int_type", "the contract: a boolean is no number"),
    (
        r#"{"message":"x","max_tokens":123456789012345678901234567890}"#,
        "int_parsing_size",
        "no model takes it, and upstream's refusal would come later and less clearly",
    ),
];

#[tokio::test]
async fn every_captured_body_gets_what_fastapi_gives() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let captured: Vec<Value> = serde_json::from_str(include_str!("fixtures/fastapi.json")).unwrap();
    assert!(captured.len() > 100);
    let mut different = 0;
    for row in &captured {
        let body = row["body"].as_str().unwrap();
        let answer = app.chat_bytes(body.as_bytes().to_vec()).await;
        if let Some((_, kind, _)) = DIFFERENT.iter().find(|(known, ..)| *known == body) {
            assert_eq!(answer.error(422).0[0]["type"], *kind, "{body}");
            different += 1;
        } else if row["status"] == 422 {
            let (mut detail, code) = answer.error(422);
            for issue in detail.as_array_mut().unwrap() {
                issue.as_object_mut().unwrap().remove("input");
            }
            assert_eq!(detail, row["detail"], "{body}");
            assert_eq!(code, "invalid_request");
        } else {
            assert_eq!(answer.status, 200, "{body}: {}", answer.text());
            let asked = upstream.seen().pop().unwrap().body;
            let understood = &row["understood"];
            assert_eq!(
                asked["messages"].as_array().unwrap().last().unwrap()["content"],
                understood["message"],
                "{body}"
            );
            for name in ["temperature", "max_tokens"] {
                let default = json!({"temperature": 0.7, "max_tokens": 2000});
                let expected = if understood[name].is_null() { &default[name] } else { &understood[name] };
                assert_eq!(&asked[name], expected, "{body}");
            }
        }
    }
    assert_eq!(different, DIFFERENT.len());
}

#[tokio::test]
async fn what_crashed_the_original_is_refused_politely() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for (body, kind) in [
        (r#"{"message":"\ud800"}"#, "string_unicode"),
        (r#"{"message":"\udc00\ud800"}"#, "string_unicode"),
        (r#"{"message":"x","temperature":NaN}"#, "json_invalid"),
        (r#"{"message":"x","temperature":Infinity}"#, "json_invalid"),
        (r#"{"message":"x","max_tokens":1e400}"#, "json_invalid"),
    ] {
        let (detail, _) = app.chat_bytes(body.into()).await.error(422);
        assert_eq!(detail[0]["type"], kind, "{body}");
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn unreadable_bodies_are_400_as_in_the_original() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let deep = "[".repeat(100_000).into_bytes();
    for body in [b"{\"message\":\"\xff\"}".to_vec(), b"\xff\xfe{\0}\0".to_vec(), deep] {
        let (detail, code) = app.chat_bytes(body).await.error(400);
        assert_eq!(detail, "There was an error parsing the body");
        assert_eq!(code, "unreadable_body");
    }
}

#[tokio::test]
async fn depth_in_what_is_ignored_is_ignored() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let nested = |levels| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let body = format!(r#"{{"message":"x","extra":{}}}"#, nested(100_000));
    assert_eq!(app.chat_bytes(body.into()).await.status, 200);
    let body = format!(r#"{{"message":{}}}"#, nested(100_000));
    assert_eq!(app.chat_bytes(body.into()).await.error(422).0[0]["type"], "string_type");
}

#[tokio::test]
async fn only_json_bodies_are_read() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let body = br#"{"message":"x"}"#.to_vec();
    let send =
        async |headers: &[(&str, &str)]| app.request(reqwest::Method::POST, "/chat", headers, body.clone()).await;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""] {
        let (detail, _) = send(&[("content-type", kind)]).await.error(422);
        assert_eq!(detail[0]["type"], "model_attributes_type", "{kind}");
        assert_eq!(detail[0]["loc"], json!(["body"]));
        assert_eq!(detail[0]["ctx"]["error"], "Content-Type must be application/json");
    }
    send(&[]).await.error(422);
    for kind in ["application/json", "Application/JSON; charset=UTF-8", "application/vnd.api+json"] {
        assert_eq!(send(&[("content-type", kind)]).await.status, 200, "{kind}");
    }
    for headers in [
        [("content-type", "application/json; charset=utf-16"), ("accept", "*/*")],
        [("content-type", "application/json"), ("content-encoding", "gzip")],
    ] {
        assert_eq!(send(&headers).await.error(415).1, "unsupported_media_type");
    }
}

#[tokio::test]
async fn the_text_of_a_message_never_comes_back_in_an_error() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for body in [
        json!({"messages": "canary-prompt"}),
        json!({"message": ["canary-prompt"]}),
        json!({"message": {"text": "canary-prompt"}}),
        json!({"message": "x", "system_prompt": ["canary-prompt"]}),
        json!({"message": "x", "conversation_history": "canary-prompt"}),
        json!({"message": "x", "conversation_history": ["canary-prompt"]}),
        json!({"message": "x", "conversation_history": [{"role": "canary-prompt", "content": ["canary-prompt"]}]}),
        json!({"message": "x", "conversation_history": [{"text": "canary-prompt"}]}),
        json!({"message": "x", "model": "canary-prompt canary-prompt"}),
        json!(["canary-prompt"]),
        json!("canary-prompt"),
    ] {
        let answer = app.chat(&body).await;
        answer.error(422);
        assert!(!answer.text().contains("canary"), "{}", answer.text());
    }
    let broken = app.chat_bytes(br#"{"message":"canary-prompt" "#.to_vec()).await;
    assert!(!broken.text().contains("canary"), "{}", broken.text());
}

#[tokio::test]
async fn inputs_that_hold_no_text_are_shown() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for (body, input) in [
        ("{}", json!({})),
        ("", json!(null)),
        (r#"{"message":"x","temperature":"hot"}"#, json!("hot")),
        (r#"{"message":"x","temperature":3}"#, json!(3)),
        (r#"{"message":"x","max_tokens":1.5}"#, json!(1.5)),
        (r#"{"message":"x","max_tokens":false}"#, json!(false)),
    ] {
        assert_eq!(app.chat_bytes(body.into()).await.error(422).0[0]["input"], input, "{body}");
    }
    let long = format!(r#"{{"message":"x","temperature":"{}"}}"#, "h".repeat(500));
    assert_eq!(app.chat_bytes(long.into()).await.error(422).0[0]["input"], "h".repeat(64));
}

#[tokio::test]
async fn roles_and_models_that_cannot_be_are_refused_here() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for role in ["root", "User", " user", "tool", ""] {
        let body = json!({"message": "x", "conversation_history": [{"role": role, "content": "c"}]});
        let (detail, _) = app.chat(&body).await.error(422);
        assert_eq!(detail[0]["type"], "literal_error", "{role:?}");
        assert_eq!(detail[0]["loc"], json!(["body", "conversation_history", 0, "role"]));
    }
    for model in ["", "gpt-4\r\nX: y", "model?key=", "a\u{0}", "gpt 4", &"x".repeat(129)] {
        let (detail, _) = app.chat(&json!({"message": "x", "model": model})).await.error(422);
        assert_eq!(detail[0]["type"], "string_pattern_mismatch", "{model:?}");
    }
    assert!(upstream.seen().is_empty());
    for model in ["ft:gpt-4o:acme::abc", "meta-llama/Llama-3.1", "../x"] {
        app.chat(&json!({"message": "x", "model": model})).await;
        let seen = upstream.seen().pop().unwrap();
        assert_eq!((seen.line.as_str(), &seen.body["model"]), ("POST /v1/chat/completions", &json!(model)));
    }
}

#[tokio::test]
async fn mistakes_are_reported_in_the_order_of_the_fields_and_not_without_end() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let (detail, _) = app.chat(&json!({"max_tokens": 0, "temperature": "hot", "model": 7})).await.error(422);
    let fields: Vec<_> = detail.as_array().unwrap().iter().map(|issue| issue["loc"][1].clone()).collect();
    assert_eq!(fields, ["message", "model", "temperature", "max_tokens"]);

    let many = json!({"message": "x", "conversation_history": vec![json!({}); 5000]});
    assert_eq!(app.chat(&many).await.error(422).0.as_array().unwrap().len(), 100);

    let too_many =
        json!({"message": "x", "conversation_history": vec![json!({"role": "user", "content": ""}); 10_001]});
    let (detail, _) = app.chat(&too_many).await.error(422);
    assert_eq!(detail[0]["type"], "too_long");
    assert_eq!(detail[0]["ctx"], json!({"field_type": "List", "max_length": 10_000, "actual_length": 10_001}));
}
