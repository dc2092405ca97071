//! What the upstream is asked again, after which wait, and what it is not.

use std::time::{Duration, Instant};

use ai_service::config::Upstream;
use serde_json::{Value, json};

use crate::{
    process::Running,
    support::{
        Answer, Play, ScriptedUpstream, TestApp, Transport,
        events::{Script, contents},
        log,
        upstream::{TRANSPORTS, answer, response},
    },
};

/// Asks for a wait that nobody notices.
pub const SOON: &str = "retry-after-ms: 1\r\n";

/// The service that asks again twice, as it does by default.
pub async fn start(upstream: &ScriptedUpstream) -> TestApp {
    start_with(upstream, |_| {}).await
}

pub async fn start_with(upstream: &ScriptedUpstream, change: impl FnOnce(&mut Upstream)) -> TestApp {
    upstream
        .app_with(|config| {
            config.upstream.max_retries = 2;
            change(&mut config.upstream);
        })
        .await
}

pub async fn ask(app: &TestApp) -> Answer {
    app.chat(&json!({"message": "x"})).await
}

/// What a caller gets for these refusals followed by answers, and how often the upstream was asked. The same over each
/// transport.
async fn outcome(refusals: &[(u16, &str, &str)]) -> (Answer, usize) {
    let mut first: Option<(Answer, usize)> = None;
    for transport in TRANSPORTS {
        let upstream = ScriptedUpstream::over(transport).await;
        let app = start(&upstream).await;
        for (status, headers, body) in refusals {
            upstream.then_status(*status, headers, body);
        }
        let outcome = (ask(&app).await, upstream.seen().len());
        if let Some((answer, asked)) = &first {
            assert_eq!((answer.status, asked), (outcome.0.status, &outcome.1), "{transport:?}");
        }
        first.get_or_insert(outcome);
    }
    first.unwrap()
}

pub fn error(message: &str, code: &str) -> String {
    json!({"error": {"message": message, "type": "t", "param": null, "code": code}}).to_string()
}

#[tokio::test]
async fn a_failure_that_may_pass_is_asked_again_and_the_caller_never_knows() {
    for status in [408, 409, 429, 500, 502, 503, 504, 520, 529] {
        let (answer, asked) = outcome(&[(status, SOON, "{}"), (status, SOON, "<html>")]).await;
        assert_eq!((answer.status.as_u16(), asked), (200, 3), "{status}");
        assert_eq!(answer.header("retry-after"), None);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_an_answer_is_made_again() {
    for transport in TRANSPORTS {
        let upstream = ScriptedUpstream::over(transport).await;
        // Over HTTP/2 the connection, and not just the stream.
        upstream.edge().resets_cut(true);
        let app = start(&upstream).await;
        upstream.then([Play::Reset]).then([Play::Send(b"HTTP/1.1 200".to_vec()), Play::Close]);
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(upstream.seen().len(), 3, "{transport:?}");
    }
}

#[tokio::test]
async fn what_would_fail_again_is_asked_once() {
    for (status, code) in [
        (400, "invalid_value"),
        (400, "context_length_exceeded"),
        (401, "invalid_api_key"),
        (403, "unsupported_country_region_territory"),
        (404, "model_not_found"),
        (422, ""),
        (307, ""),
    ] {
        let (answer, asked) = outcome(&[(status, SOON, &error("m", code))]).await;
        assert!(answer.status.as_u16() >= 400, "{status}");
        assert_eq!(asked, 1, "{status}");
    }
}

#[tokio::test]
async fn an_empty_account_is_never_asked_again_whatever_upstream_advises() {
    for code in ["insufficient_quota", "billing_hard_limit_reached", "project_spend_limit_exceeded"] {
        for headers in [SOON, "retry-after-ms: 1\r\nx-should-retry: true\r\n"] {
            let (answer, asked) = outcome(&[(429, headers, &error("m", code))]).await;
            assert_eq!((answer.error(503).1.as_str(), asked), ("upstream_quota", 1), "{code} {headers}");
        }
    }
}

#[tokio::test]
async fn a_request_larger_than_its_limit_is_not_asked_again() {
    let large = error("Request too large for gpt-4o on tokens per min (TPM)", "rate_limit_exceeded");
    let (answer, asked) = outcome(&[(429, SOON, &large)]).await;
    assert_eq!((answer.error(400).1.as_str(), asked), ("upstream_invalid_request", 1));
}

#[tokio::test]
async fn upstream_is_asked_as_often_again_as_configured_and_the_last_failure_is_told() {
    for most in [0, 1, 3] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with(&upstream, |config| config.max_retries = most).await;
        for _ in 0..most {
            upstream.then_status(500, SOON, "{}");
        }
        upstream.then_status(503, SOON, "{}");
        let (_, code) = ask(&app).await.error(503);
        assert_eq!(code, "upstream_overloaded");
        assert_eq!(upstream.seen().len(), usize::try_from(most).unwrap() + 1);
    }
}

#[tokio::test]
async fn upstreams_advice_is_taken() {
    let (answer, asked) = outcome(&[(500, "retry-after-ms: 1\r\nx-should-retry: false\r\n", "{}")]).await;
    assert_eq!((answer.error(502).1.as_str(), asked), ("upstream_error", 1));
    let (answer, asked) = outcome(&[(429, "retry-after-ms: 1\r\nx-should-retry: false\r\n", "{}")]).await;
    assert_eq!((answer.error(429).1.as_str(), asked), ("upstream_rate_limited", 1));
    for status in [400, 403, 404, 422] {
        let (answer, asked) = outcome(&[(status, "retry-after-ms: 1\r\nx-should-retry: true\r\n", "{}")]).await;
        assert_eq!((answer.status.as_u16(), asked), (200, 2), "{status}");
    }
}

#[tokio::test]
async fn a_date_is_waited_for() {
    let headers = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:49:38 GMT\r\n";
    let began = Instant::now();
    let (answer, asked) = outcome(&[(503, headers, "{}")]).await;
    assert_eq!((answer.status.as_u16(), asked), (200, 2));
    // Its own wait would have been half a second at most.
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn milliseconds_count_more_than_seconds() {
    let (answer, asked) = outcome(&[(503, "retry-after: 59\r\nretry-after-ms: 1\r\n", "{}")]).await;
    assert_eq!((answer.status.as_u16(), asked), (200, 2));
}

#[tokio::test]
async fn more_than_a_minute_is_not_waited_for_but_told_to_the_caller() {
    for (status, told) in [(429, 429), (503, 503), (500, 502)] {
        let (answer, asked) = outcome(&[(status, "retry-after: 61\r\n", "{}")]).await;
        assert_eq!((answer.status.as_u16(), asked), (told, 1));
        assert_eq!(answer.header("retry-after"), Some("61"));
    }
}

#[tokio::test]
async fn what_may_have_been_billed_is_not_asked_again() {
    for transport in TRANSPORTS {
        is_asked_once(transport).await;
    }
}

async fn is_asked_once(transport: Transport) {
    let upstream = ScriptedUpstream::over(transport).await;
    let limit = Duration::from_millis(150);
    let app = start_with(&upstream, |config| {
        config.timeouts.first_token = limit;
        config.timeouts.whole = limit;
    })
    .await;
    upstream.then([Play::Silence]);
    assert_eq!(ask(&app).await.error(504).1, "upstream_deadline");
    upstream.then([Play::Silence]);
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(events[1].data["code"], "upstream_timeout");
    assert_eq!(upstream.seen().len(), 2);

    // A whole answer that breaks off has been given.
    let upstream = ScriptedUpstream::over(transport).await;
    let app = start(&upstream).await;
    let half = response(200, "", &answer("half").to_string())[..150].to_vec();
    upstream.then([Play::Send(half), Play::Reset]);
    assert_eq!(ask(&app).await.error(502).1, "upstream_reset");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn no_connection_in_time_is_tried_once_more() {
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
    let app = TestApp::start_with(&base, |config| {
        config.upstream.max_retries = 10;
        config.upstream.timeouts.connect = Duration::from_millis(100);
    })
    .await;
    let answer = app.chat(&json!({"message": "x", "model": "connects-twice"})).await;
    assert_eq!(answer.error(504).1, "upstream_timeout");
    let again = log::text().lines().filter(|line| line.contains("connects-twice") && line.contains("again")).count();
    assert_eq!(again, 1);
}

#[tokio::test]
async fn a_retry_before_the_first_byte_of_a_stream_is_invisible_to_its_reader() {
    for transport in TRANSPORTS {
        is_invisible(&ScriptedUpstream::over(transport).await).await;
    }
}

async fn is_invisible(upstream: &ScriptedUpstream) {
    let app = start(upstream).await;
    upstream.then_status(500, SOON, "{}").then([Play::Reset]).then(Script::answer(&["안녕", "하세요"]));
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    let kinds: Vec<_> = events.iter().map(|event| event.kind().to_owned()).collect();
    assert_eq!(kinds, ["START", "CHUNK", "CHUNK", "END"]);
    assert_eq!(contents(&events), ["안녕", "하세요"]);
    let asked: Vec<_> = upstream.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!((asked.len(), &asked[0]), (3, &asked[2]), "the same question each time");
}

#[tokio::test]
async fn behind_the_head_of_a_stream_nothing_is_asked_again() {
    let broken = error("m", "server_error");
    for script in [
        Script::chunked().play(Play::Reset),
        Script::chunked().role().play(Play::Reset),
        Script::chunked().role().piece("안녕").play(Play::Reset),
        Script::chunked().role().piece("안녕").event(&broken).end(),
        Script::chunked().role().event(&broken).end(),
        Script::chunked().role().piece("안녕").end(),
    ] {
        for transport in TRANSPORTS {
            let upstream = ScriptedUpstream::over(transport).await;
            let app = start(&upstream).await;
            upstream.then(script.clone());
            let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
            assert_eq!(events.last().unwrap().kind(), "ERROR");
            assert_eq!(upstream.seen().len(), 1, "{transport:?}");
        }
    }
}

pub fn unsupported(param: &str) -> String {
    let message = format!("Unsupported parameter: '{param}' is not supported with this model.");
    json!({"error": {"message": message, "param": param, "code": "unsupported_parameter"}}).to_string()
}

#[tokio::test]
async fn repairing_a_parameter_is_no_retry_and_outlasts_one() {
    let upstream = ScriptedUpstream::start().await;
    let app = start(&upstream).await;
    upstream.then_status(500, SOON, "{}").then_status(400, "", &unsupported("max_tokens"));
    upstream.then_status(500, SOON, "{}").then_status(400, "", &unsupported("temperature"));
    assert_eq!(ask(&app).await.status, 200);
    let limits = |body: &Value| (body.get("max_tokens").is_some(), body.get("temperature").is_some());
    let asked: Vec<_> = upstream.seen().iter().map(|seen| limits(&seen.body)).collect();
    assert_eq!(asked, [(true, true), (true, true), (false, true), (false, true), (false, false)]);
}

#[tokio::test]
async fn a_wait_ends_when_the_caller_leaves() {
    let upstream = ScriptedUpstream::start().await;
    let mut app = start(&upstream).await;
    upstream.then_status(503, "retry-after: 50\r\n", "{}");
    let request = reqwest::Client::builder().no_proxy().build().unwrap().post(app.url("/chat"));
    let request = request.header("content-type", "application/json").header("x-request-id", "retry-leaves");
    let call = tokio::spawn(request.body(r#"{"message":"x"}"#).send());
    upstream.arrived(1).await;
    call.abort();

    let model = "retry-stopped";
    upstream.then_status(503, "retry-after: 50\r\n", "{}");
    let id = app.begin(&json!({"message": "x", "model": model})).await;
    upstream.arrived(2).await;
    assert_eq!(app.cancel(&id).await.status, 200);
    assert_eq!(app.events(&id).await.rest().await.last().unwrap().data["finish_reason"], "cancelled");

    // With somebody waiting, the orderly end would take the whole grace.
    let began = Instant::now();
    assert!(app.stop().await.unwrap());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(log::lines_of("retry-leaves")[0]["status"], 499);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn waits_are_part_of_the_time_there_is_for_an_answer() {
    let upstream = ScriptedUpstream::start().await;
    let limit = Duration::from_secs(2);
    let app = start_with(&upstream, |config| config.timeouts.total = limit).await;
    upstream.then_status(500, "retry-after: 2\r\n", "{}");
    let answer = ask(&app).await;
    assert_eq!(answer.error(502).1, "upstream_error", "no wait that would be in vain");
    assert_eq!((answer.header("retry-after"), upstream.seen().len()), (Some("2"), 1));

    for _ in 0..2 {
        upstream.then_status(500, "retry-after-ms: 1500\r\n", "{}");
    }
    upstream.then([Play::Silence]).then([Play::Silence]);
    let began = Instant::now();
    let whole = async { ask(&app).await.error(504).1 };
    let stream = async {
        let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
        events[1].data["code"].as_str().unwrap().to_owned()
    };
    let (whole, stream) = tokio::join!(whole, stream);
    assert_eq!((whole.as_str(), stream.as_str()), ("upstream_deadline", "upstream_deadline"));
    assert_eq!(upstream.seen().len(), 5);
    // Counted for each attempt anew, it would be 3.5 s.
    assert!(began.elapsed() < Duration::from_millis(3400), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_first_word_is_waited_for_from_the_attempt_that_brings_it() {
    let upstream = ScriptedUpstream::start().await;
    let limit = Duration::from_millis(1500);
    let app = start_with(&upstream, |config| config.timeouts.first_token = limit).await;
    upstream.then_status(500, "retry-after-ms: 1600\r\n", "{}");
    let pause = Play::Pause(Duration::from_millis(300));
    upstream.then(Script::chunked().play(pause).piece("안녕").finish("stop").done().end());
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(contents(&events), ["안녕"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_as_it_comes_asks_again_twice() {
    let upstream = ScriptedUpstream::start().await;
    let variables = [("OPENAI_API_KEY", "sk-x"), ("OPENAI_BASE_URL", upstream.base_url.as_str())];
    let service = Running::start(&[], &variables);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async || {
        let request = client.post(format!("http://127.0.0.1:{}/chat", service.port));
        let request = request.header("content-type", "application/json").body(r#"{"message":"x"}"#);
        request.send().await.unwrap().status().as_u16()
    };
    upstream.then_status(500, SOON, "{}").then_status(429, SOON, "{}");
    assert_eq!((ask().await, upstream.seen().len()), (200, 3));
    for _ in 0..3 {
        upstream.then_status(500, SOON, "{}");
    }
    assert_eq!((ask().await, upstream.seen().len()), (502, 6));
}
