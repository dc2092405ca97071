//! Errors of upstreams in whatever wrapping they come, and what `/health` makes of a list that cannot be read.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::process::Running;
use crate::support::{CANARY_KEY, ScriptedUpstream, TestApp, log, upstream::response};

/// What a whole answer and a stream get for that refusal: status, code, and the words behind the prefix.
async fn refused(status: u16, headers: &str, body: &str) -> (u16, String, String) {
    let upstream = ScriptedUpstream::start().await;
    for _ in 0..6 {
        upstream.then_status(status, headers, body);
    }
    let app = TestApp::start_from(&upstream.base_url, &[("UPSTREAM_MAX_RETRIES", "2")]).await;
    let answer = app.chat(&json!({"message": "x"})).await;
    let (detail, code) = answer.error(answer.status.as_u16());
    assert_eq!(upstream.seen().len(), 1, "one call upstream");
    let words = detail.as_str().unwrap().rsplit_once("발생했습니다: ").unwrap().1.to_owned();
    let last = app.chat_as_stream(&json!({"message": "x"})).await.rest().await.pop().unwrap().data;
    assert_eq!((&last["code"], &last["status"]), (&json!(code), &json!(answer.status.as_u16())));
    assert_eq!(last["retryable"], false, "{last}");
    assert!(last["error"].as_str().unwrap().ends_with(&words), "{last}");
    (answer.status.as_u16(), code, words)
}

fn bad(words: &str) -> (u16, String, String) {
    (400, "upstream_invalid_request".to_owned(), words.to_owned())
}

#[tokio::test]
async fn the_reason_is_told_in_whatever_wrapping_it_comes() {
    let json = |value: Value| ("", value.to_string());
    let sse = "content-type: text/event-stream\r\n";
    let plain = "content-type: text/plain\r\n";
    for (headers, body) in [
        json(json!([{"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}}])),
        json(json!({"error": {"message": "m"}})),
        json(json!({"error": "m"})),
        json(json!({"detail": [{"loc": ["body"], "msg": "m"}]})),
        json(json!({"message": "{\"error\":{\"message\":\"m\"}}"})),
        (sse, "data: {\"error\":{\"message\":\"m\"}}\n\n".to_owned()),
        (sse, "event: error\ndata: {\"error\":{\"message\":\"m\"}}".to_owned()),
        (plain, "m".to_owned()),
    ] {
        for status in [400, 405, 422, 451] {
            assert_eq!(refused(status, headers, &body).await, bad("m"), "{status} {body}");
        }
    }
    let secret = format!("no {CANARY_KEY} {}", "x".repeat(2000));
    let (_, _, words) = refused(400, plain, &secret).await;
    assert!(words.starts_with("no [redacted] xxx") && words.chars().count() == 500, "{words}");
}

#[tokio::test]
async fn a_page_is_never_quoted_and_what_is_too_large_is_said_in_own_words() {
    let page = "<html><h1>413 Request Entity Too Large</h1>canary</html>";
    let html = "content-type: text/html\r\n";
    assert_eq!(refused(413, html, page).await, bad("the question is too large for the upstream"));
    assert_eq!(refused(413, "", "").await, bad("the question is too large for the upstream"));
    let (status, code, words) = refused(405, html, page).await;
    assert_eq!((status, code.as_str()), (502, "upstream_protocol"));
    assert!(!words.contains("canary") && !words.contains("413"), "{words}");
}

#[tokio::test]
async fn an_account_without_money_is_recognised_by_whatever_name() {
    let error = |kind: &str, code: &str| json!({"error": {"message": "no", "type": kind, "code": code}}).to_string();
    for (status, body) in [
        (429, error("exceeded_current_quota_error", "")),
        (429, error("", "1113")),
        (403, error("", "insufficient_user_quota")),
        (400, error("", "Arrearage")),
        (429, error("insufficient_balance", "")),
        (402, String::new()),
    ] {
        let (told, code, _) = refused(status, "", &body).await;
        assert_eq!((told, code.as_str()), (503, "upstream_quota"), "{body}");
    }
}

#[tokio::test]
async fn a_404_is_about_the_model_only_if_it_says_so() {
    for body in [
        json!({"error": {"code": "unknown_url", "message": "Unknown request URL"}}).to_string(),
        json!({"detail": "Not Found"}).to_string(),
        json!({"error": {"code": 404, "type": "not_found_error", "message": "File Not Found"}}).to_string(),
        "404 page not found".to_owned(),
        "<html>nginx</html>".to_owned(),
        String::new(),
    ] {
        let (status, code, words) = refused(404, "", &body).await;
        assert_eq!((status, code.as_str()), (502, "upstream_protocol"), "{body}");
        assert!(words.ends_with("nothing at this address"), "{words}");
    }
    assert!(log::text().contains("OPENAI_BASE_URL"), "the operator is told where to look");
    for body in [
        json!({"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}).to_string(),
        json!({"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}).to_string(),
        json!([{"error": {"code": 404, "message": "models/x is not found"}}]).to_string(),
        json!({"error": "model 'x' not found, try pulling it first"}).to_string(),
    ] {
        assert_eq!(refused(404, "", &body).await.1, "model_not_found", "{body}");
    }
}

#[tokio::test]
async fn a_context_that_is_too_long_and_a_key_that_is_not_valid_are_recognised_whatever_the_status_hides() {
    let llama = json!({"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error"}}).to_string();
    assert_eq!(refused(400, "", &llama).await.1, "context_length_exceeded");
    let gemini = json!([{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}}]);
    let (status, code, words) = refused(400, "", &gemini.to_string()).await;
    assert_eq!((status, code.as_str()), (502, "upstream_auth"));
    assert_eq!(words, "OpenAI API did not accept this service's credentials");
}

#[tokio::test]
async fn retry_after_nothing_is_waited_for_as_if_it_had_said_nothing() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then_status(429, "retry-after: 0\r\n", r#"{"error":{"message":"slow"}}"#);
    let app = TestApp::start_from(&upstream.base_url, &[("UPSTREAM_MAX_RETRIES", "2")]).await;
    let start = tokio::time::Instant::now();
    assert_eq!(app.chat(&json!({"message": "x"})).await.status, 200);
    assert!(start.elapsed().as_millis() >= 375, "{:?}", start.elapsed());
}

/// A proxy that refuses every tunnel, and how often it was asked for one.
fn refusing_proxy(status: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn({
        let asked = Arc::clone(&asked);
        move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = [0; 1024];
                if stream.read(&mut head).unwrap_or(0) > 0 {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes());
                }
            }
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_is_asked_once_and_the_log_says_that_it_was_the_proxy() {
    for status in ["407 Proxy Authentication Required", "403 Forbidden"] {
        let (proxy, asked) = refusing_proxy(status);
        let service = Running::start(
            &[],
            &[("OPENAI_API_KEY", "sk-x"), ("OPENAI_BASE_URL", "https://llm.invalid/v1"), ("HTTPS_PROXY", &proxy)],
        );
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(service.url("/chat")).header("content-type", "application/json");
        let answer = request.body(r#"{"message":"x"}"#).send().await.unwrap();
        assert_eq!(answer.status(), 502);
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert!(body["detail"].as_str().unwrap().ends_with("the proxy in between refused the connection"), "{body}");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{status}");
        service.signal("-TERM");
        let (_, log) = service.end();
        assert!(log.contains("the proxy that the environment names refuses"), "{log}");
        assert_eq!(log.contains("407"), status.starts_with("407"), "{log}");
    }
}

async fn health(upstream: &ScriptedUpstream) -> Value {
    TestApp::start(&upstream.base_url).await.get("/health").await.json()
}

#[tokio::test]
async fn a_list_of_models_is_read_in_every_form() {
    let model = || json!({"id": "meta/x", "object": "model"});
    for list in [
        json!([model()]),
        json!({"data": [model(), 7, {"noid": 1}]}),
        json!({"models": [{"name": "meta/x"}]}),
        json!(["meta/x"]),
        json!({"data": [{"id": "meta/x", "created": "yesterday", "owned_by": 7}]}),
    ] {
        let upstream = ScriptedUpstream::start().await;
        upstream.then_json(&list);
        let app = TestApp::start(&upstream.base_url).await;
        assert_eq!(app.get("/health").await.json()["status"], "healthy", "{list}");
        let models = app.get("/models").await.json();
        let ids: Vec<_> = models["models"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
        assert_eq!(ids, ["meta/x"], "{list}");
    }
}

#[tokio::test]
async fn a_key_that_may_not_list_models_may_chat_and_is_healthy() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then_status(403, "", r#"{"error":{"message":"Missing scopes: api.model.read"}}"#);
    let body = health(&upstream).await;
    assert_eq!(
        (&body["status"], &body["openai_api"], &body["error"]),
        (&json!("healthy"), &json!("connected"), &Value::Null)
    );
    upstream.then_status(401, "", "{}");
    assert_eq!(health(&upstream).await["status"], "unhealthy");
}

#[tokio::test]
async fn an_upstream_without_a_list_is_as_healthy_as_its_chats() {
    for script in [response(404, "", "{}"), response(200, "", "<html>"), response(405, "", r#"{"detail":"no"}"#)] {
        let upstream = ScriptedUpstream::start().await;
        let play = crate::support::Play::Send(script);
        upstream.then([play.clone()]);
        assert_eq!(health(&upstream).await["status"], "unhealthy", "nothing is known of chats");
        let app = TestApp::start(&upstream.base_url).await;
        assert_eq!(app.chat(&json!({"message": "x"})).await.status, 200);
        upstream.then([play]);
        assert_eq!(app.get("/health").await.json()["status"], "healthy");
    }
}
