//! Each way in which the upstream fails, and what the caller gets for it.

use std::time::Duration;

use ai_service::config::Timeouts;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    Answer, CANARY_KEY, Play, ScriptedUpstream, TestApp, Transport,
    upstream::{TRANSPORTS, answer, response},
};

const PREFIX: &str = "채팅 처리 중 오류가 발생했습니다: AI 응답 생성 중 오류가 발생했습니다: ";

async fn ask(app: &TestApp) -> Answer {
    app.chat(&json!({"message": "canary-prompt"})).await
}

/// What a caller gets when the upstream plays `script`: status, code, and the words behind the fixed prefix. The same over
/// each transport.
async fn outcome(script: impl IntoIterator<Item = Play>) -> (Answer, String, String) {
    let script: Vec<_> = script.into_iter().collect();
    let mut first: Option<(Answer, String, String)> = None;
    for transport in TRANSPORTS {
        let outcome = outcome_over(transport, script.clone()).await;
        if let Some((answer, code, words)) = &first {
            assert_eq!((answer.status, code, words), (outcome.0.status, &outcome.1, &outcome.2), "{transport:?}");
        }
        first.get_or_insert(outcome);
    }
    first.unwrap()
}

async fn outcome_over(transport: Transport, script: Vec<Play>) -> (Answer, String, String) {
    let upstream = ScriptedUpstream::over(transport).await;
    upstream.then(script);
    let app = upstream.app().await;
    let answer = ask(&app).await;
    let (detail, code) = answer.error(answer.status.as_u16());
    let detail = detail.as_str().unwrap();
    let words = detail.strip_prefix(PREFIX).unwrap_or_else(|| panic!("{detail}")).to_owned();
    assert_eq!(upstream.seen().len(), 1, "one call upstream");
    (answer, code, words)
}

async fn outcome_of(status: u16, headers: &str, body: &str) -> (Answer, String, String) {
    outcome([Play::Send(response(status, headers, body))]).await
}

fn error(message: &str, code: &str) -> String {
    json!({"error": {"message": message, "type": "t", "param": null, "code": code}}).to_string()
}

#[tokio::test]
async fn every_status_of_the_upstream_has_its_place_in_the_table() {
    let html = "<html>cloudflare</html>";
    let table: [(u16, String, u16, &str); 24] = [
        (400, error("too long", "context_length_exceeded"), 400, "context_length_exceeded"),
        (400, error("This model's maximum context length is 4 tokens", ""), 400, "context_length_exceeded"),
        (400, error("bad", "invalid_value"), 400, "upstream_invalid_request"),
        (400, json!({"message": "unwrapped"}).to_string(), 400, "upstream_invalid_request"),
        (413, error("large", ""), 400, "upstream_invalid_request"),
        (422, error("odd", ""), 400, "upstream_invalid_request"),
        (401, error("key", "invalid_api_key"), 502, "upstream_auth"),
        (403, error("region", "unsupported_country_region_territory"), 502, "upstream_auth"),
        (404, error("no model", "model_not_found"), 404, "model_not_found"),
        (404, html.into(), 502, "upstream_protocol"),
        (429, error("slow", "rate_limit_exceeded"), 429, "upstream_rate_limited"),
        (429, json!({"error": {"message": "slow", "code": 429}}).to_string(), 429, "upstream_rate_limited"),
        (429, error("money", "insufficient_quota"), 503, "upstream_quota"),
        (429, error("money", "project_spend_limit_exceeded"), 503, "upstream_quota"),
        (400, error("money", "billing_hard_limit_reached"), 503, "upstream_quota"),
        (429, error("Request too large for x", "rate_limit_exceeded"), 400, "upstream_invalid_request"),
        (408, String::new(), 504, "upstream_timeout"),
        (500, error("broke", ""), 502, "upstream_error"),
        (502, html.into(), 502, "upstream_error"),
        (503, error("busy", "server_is_overloaded"), 503, "upstream_overloaded"),
        (504, html.into(), 504, "upstream_timeout"),
        (520, html.into(), 502, "upstream_error"),
        (529, String::new(), 503, "upstream_overloaded"),
        (418, html.into(), 502, "upstream_protocol"),
    ];
    for (given, body, status, expected) in table {
        let (answer, code, _) = outcome_of(given, "", &body).await;
        assert_eq!((answer.status.as_u16(), code.as_str()), (status, expected), "{given} {body}");
        assert!(!answer.text().contains("cloudflare"), "a page is never quoted");
    }
}

#[tokio::test]
async fn upstreams_words_on_a_bad_request_are_passed_on_without_secrets() {
    let said = format!("too long for {CANARY_KEY} of org-123");
    let (_, _, words) = outcome_of(400, "", &error(&said, "context_length_exceeded")).await;
    assert_eq!(words, "too long for [redacted] of [redacted]");
}

#[tokio::test]
async fn a_refused_key_is_never_described() {
    let said = "Incorrect API key provided: sk-canary-****72e0.";
    for status in [401, 403] {
        let (answer, _, words) = outcome_of(status, "", &error(said, "invalid_api_key")).await;
        assert_eq!(words, "OpenAI API did not accept this service's credentials");
        assert!(!answer.text().contains("72e0"));
    }
}

#[tokio::test]
async fn callers_are_told_how_long_to_wait() {
    let body = error("slow", "rate_limit_exceeded");
    for (headers, expected) in [
        ("retry-after: 7\r\n", "7"),
        ("retry-after-ms: 1200\r\nretry-after: 9\r\n", "2"),
        ("retry-after: 0\r\n", "1"),
        ("retry-after: soon\r\n", "5"),
        ("", "5"),
    ] {
        for (status, body) in [(429, body.as_str()), (503, "{}")] {
            let (answer, ..) = outcome_of(status, headers, body).await;
            assert_eq!(answer.header("retry-after"), Some(expected), "{status} {headers}");
        }
    }
    let (quota, ..) = outcome_of(429, "retry-after: 7\r\n", &error("money", "insufficient_quota")).await;
    assert_eq!(quota.header("retry-after"), None, "waiting does not help");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = ScriptedUpstream::start().await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("location: {}/chat/completions\r\n", elsewhere.base_url);
        let (answer, code, _) = outcome_of(status, &location, "").await;
        assert_eq!((answer.status.as_u16(), code.as_str()), (502, "upstream_protocol"));
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn what_is_not_an_answer_is_a_502() {
    let no_text = |reason: &str| {
        let mut body = answer("");
        body["choices"][0]["finish_reason"] = json!(reason);
        body.to_string()
    };
    for (body, expected) in [
        ("<html>hello</html>".to_owned(), "upstream_protocol"),
        (String::new(), "upstream_protocol"),
        ("[]".into(), "upstream_protocol"),
        ("{}".into(), "upstream_protocol"),
        (json!({"choices": []}).to_string(), "upstream_protocol"),
        (answer("half").to_string()[..200].to_owned(), "upstream_protocol"),
        (error("inside", ""), "upstream_error"),
        (no_text("length"), "upstream_empty"),
        (no_text("content_filter"), "upstream_empty"),
        (json!({"choices": [{}]}).to_string(), "upstream_empty"),
    ] {
        let (answer, code, _) = outcome_of(200, "", &body).await;
        assert_eq!((answer.status.as_u16(), code.as_str()), (502, expected), "{body}");
        assert!(!answer.text().contains("html"));
    }
    let (answer, code, _) = outcome([Play::Send(b"SSH-2.0-OpenSSH_9\r\n\r\n".to_vec()), Play::Close]).await;
    assert_eq!((answer.status.as_u16(), code.as_str()), (502, "upstream_reset"));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_passed_off_as_whole() {
    let whole = response(200, "", &answer("a whole answer").to_string());
    let half = whole[..whole.len() - 40].to_vec();
    let chunked = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"cho\r\n".to_vec();
    let until_close = b"HTTP/1.1 200 X\r\n\r\n{\"choices\":[{\"message\":{\"content\":\"cut".to_vec();
    for (script, expected) in [
        (vec![Play::Send(half.clone()), Play::Close], "upstream_reset"),
        (vec![Play::Send(half), Play::Reset], "upstream_reset"),
        (vec![Play::Send(chunked.clone()), Play::Close], "upstream_reset"),
        (vec![Play::Send(chunked), Play::Reset], "upstream_reset"),
        (vec![Play::Close], "upstream_reset"),
        (vec![Play::Reset], "upstream_reset"),
        (vec![Play::Send(b"HTTP/1.1 200".to_vec()), Play::Reset], "upstream_reset"),
        (vec![Play::Send(until_close), Play::Close], "upstream_protocol"),
    ] {
        let shown = format!("{script:?}");
        let (answer, code, _) = outcome(script).await;
        assert_eq!((answer.status.as_u16(), code.as_str()), (502, expected), "{shown}");
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_a_502_that_names_no_address() {
    for base in ["http://127.0.0.1:1/v1", "http://does-not-exist.invalid/v1"] {
        let app = TestApp::start(&base.parse().unwrap()).await;
        let answer = ask(&app).await;
        let (detail, code) = answer.error(502);
        assert_eq!(code, "upstream_unreachable");
        let words = detail.as_str().unwrap().strip_prefix(PREFIX).unwrap().to_owned();
        assert!(words.starts_with("Failed to connect to OpenAI API: "), "{words}");
        assert!(!words.contains("127.0.0.1") && !words.contains("invalid"), "{words}");
    }
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_told_from_one_that_is_not_there() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}/v1", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let app = TestApp::start(&base).await;
    let (detail, code) = ask(&app).await.error(502);
    assert_eq!(code, "upstream_tls");
    assert_eq!(detail, format!("{PREFIX}Failed to connect to OpenAI API: TLS failed"));
}

fn quick(change: impl FnOnce(&mut Timeouts)) -> Timeouts {
    let mut timeouts = Timeouts::default();
    change(&mut timeouts);
    timeouts
}

/// What a caller gets when the upstream plays `script` and then nothing; and that its connection or stream is left.
async fn slow(script: Vec<Play>, timeouts: Timeouts, expected: (&str, &str)) {
    for transport in TRANSPORTS {
        let upstream = ScriptedUpstream::over(transport).await;
        upstream.then(script.clone());
        let app = upstream.app_with(|config| config.upstream.timeouts = timeouts).await;
        let (detail, code) = ask(&app).await.error(504);
        assert_eq!((code.as_str(), detail), (expected.0, json!(format!("{PREFIX}{}", expected.1))), "{transport:?}");
        upstream.left().await;
    }
}

#[tokio::test]
async fn no_first_byte_in_time_is_a_504_and_the_connection_is_closed() {
    let limit = Duration::from_millis(150);
    let expected = ("upstream_deadline", "OpenAI API gave no end of its answer within 150ms");
    slow(vec![Play::Silence], quick(|t| t.whole = limit), expected).await;
}

#[tokio::test]
async fn no_last_byte_in_time_is_a_504_and_the_connection_is_closed() {
    let limit = Duration::from_millis(150);
    let half = response(200, "", &answer("half").to_string())[..150].to_vec();
    let expected = ("upstream_deadline", "OpenAI API gave no end of its answer within 150ms");
    slow(vec![Play::Send(half), Play::Silence], quick(|t| t.total = limit), expected).await;
}

#[tokio::test]
async fn no_connection_in_time_is_a_504() {
    // A listener whose queue is full lets nobody in and refuses nobody.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) =
        tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
    {
        queue.push(stream.unwrap());
        assert!(queue.len() < 100, "the queue never fills");
    }
    let base = format!("http://{address}/v1").parse().unwrap();
    let timeouts = quick(|t| t.connect = Duration::from_millis(150));
    let app = TestApp::start_with(&base, |config| config.upstream.timeouts = timeouts).await;
    let (detail, code) = ask(&app).await.error(504);
    assert_eq!(code, "upstream_timeout");
    assert_eq!(detail, format!("{PREFIX}OpenAI API gave no connection within 150ms"));
}

#[tokio::test]
async fn a_slow_upstream_is_waited_for() {
    let upstream = ScriptedUpstream::start().await;
    let bytes = response(200, "", &answer("at last").to_string());
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    let pause = || Play::Pause(Duration::from_millis(150));
    upstream.then([pause(), Play::Send(head.to_vec()), pause(), Play::Send(tail.to_vec())]);
    let timeouts = quick(|t| t.first_token = Duration::from_secs(5));
    let app = TestApp::start_with(&upstream.base_url, |config| config.upstream.timeouts = timeouts).await;
    assert_eq!(ask(&app).await.json()["response"], "at last");
}

#[tokio::test]
async fn an_answer_larger_than_16_mib_is_refused_whether_announced_or_not() {
    let (_, code, words) =
        outcome([Play::Send(b"HTTP/1.1 200 X\r\ncontent-length: 99999999999\r\n\r\n{".to_vec()), Play::Silence]).await;
    assert_eq!(code, "upstream_too_large");
    assert_eq!(words, "OpenAI API gave more than 16777216 bytes");

    let mebibyte = vec![b' '; 1024 * 1024];
    let mut script = vec![Play::Send(b"HTTP/1.1 200 X\r\n\r\n".to_vec())];
    script.extend(std::iter::repeat_n(Play::Send(mebibyte), 17));
    script.push(Play::Silence);
    let (_, code, _) = outcome(script).await;
    assert_eq!(code, "upstream_too_large");
}

#[tokio::test]
async fn a_large_answer_within_the_limit_arrives_whole() {
    let upstream = ScriptedUpstream::start().await;
    let text = "가나다라".repeat(1_000_000);
    upstream.then_json(&answer(&text));
    let app = TestApp::start(&upstream.base_url).await;
    assert!(ask(&app).await.json()["response"] == text.as_str());
}

#[tokio::test]
async fn a_failure_spoils_no_later_request() {
    for transport in TRANSPORTS {
        let upstream = ScriptedUpstream::over(transport).await;
        let app = upstream.app().await;
        upstream.then([Play::Reset]).then_status(500, "", "{}").then([Play::Close]);
        for _ in 0..3 {
            assert!(ask(&app).await.status.is_server_error());
        }
        assert_eq!(ask(&app).await.status, 200, "{transport:?}");
    }
}
