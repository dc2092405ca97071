//! What the upstream is asked again, after which wait, with which key, and when it is not asked at all.

use std::time::{Duration, Instant};

use ai_service::config::Upstream;
use serde_json::{Value, json};

use crate::{
    process::Running,
    support::{
        Answer, Play, ScriptedUpstream, TestApp,
        events::{Script, contents},
        log,
        upstream::{answer, response},
    },
};

/// Asks for a wait that nobody notices.
const SOON: &str = "retry-after-ms: 1\r\n";

/// The service that asks again twice, as it does by default.
async fn start(upstream: &ScriptedUpstream) -> TestApp {
    start_with(upstream, |_| {}).await
}

async fn start_with(upstream: &ScriptedUpstream, change: impl FnOnce(&mut Upstream)) -> TestApp {
    TestApp::start_with(&upstream.base_url, |config| {
        config.upstream.max_retries = 2;
        change(&mut config.upstream);
    })
    .await
}

async fn ask(app: &TestApp) -> Answer {
    app.chat(&json!({"message": "x"})).await
}

/// What a caller gets for these refusals followed by answers, and how often the upstream was asked.
async fn outcome(refusals: &[(u16, &str, &str)]) -> (Answer, usize) {
    let upstream = ScriptedUpstream::start().await;
    let app = start(&upstream).await;
    for (status, headers, body) in refusals {
        upstream.then_status(*status, headers, body);
    }
    let answer = ask(&app).await;
    (answer, upstream.seen().len())
}

fn error(message: &str, code: &str) -> String {
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
    let upstream = ScriptedUpstream::start().await;
    let app = start(&upstream).await;
    upstream.then([Play::Reset]).then([Play::Send(b"HTTP/1.1 200".to_vec()), Play::Close]);
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(upstream.seen().len(), 3);
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
    let upstream = ScriptedUpstream::start().await;
    let limit = Duration::from_millis(150);
    let app = start_with(&upstream, |config| config.timeouts.first_token = limit).await;
    upstream.then([Play::Silence]);
    assert_eq!(ask(&app).await.error(504).1, "upstream_timeout");
    upstream.then([Play::Silence]);
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(events[1].data["code"], "upstream_timeout");
    assert_eq!(upstream.seen().len(), 2);

    // A whole answer that breaks off has been given.
    let upstream = ScriptedUpstream::start().await;
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
    let upstream = ScriptedUpstream::start().await;
    let app = start(&upstream).await;
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
        let upstream = ScriptedUpstream::start().await;
        let app = start(&upstream).await;
        upstream.then(script);
        let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
        assert_eq!(events.last().unwrap().kind(), "ERROR");
        assert_eq!(upstream.seen().len(), 1);
    }
}

fn unsupported(param: &str) -> String {
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
    upstream.then_status(500, "retry-after-ms: 1600\r\n", "{}").then(Script::answer(&["안녕"]));
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(contents(&events), ["안녕"]);
}

/// None of them may ever be seen but by the upstream.
const KEYS: [&str; 3] = ["sk-canary-first-7d1f", "sk-canary-second-90ab", "sk-canary-third-c3e8"];

/// The service with so many keys. It asks nothing again: another key is no retry.
async fn start_with_keys(upstream: &ScriptedUpstream, count: usize) -> TestApp {
    start_with(upstream, |config| {
        config.max_retries = 0;
        give_keys(config, count);
    })
    .await
}

fn give_keys(config: &mut Upstream, count: usize) {
    config.api_keys = KEYS[..count].iter().map(|key| (*key).into()).collect();
}

/// The place in the list of the key of each request so far, from 1.
fn asked_with(upstream: &ScriptedUpstream) -> Vec<usize> {
    let place = |bearer: Option<&str>| {
        let key = bearer.unwrap().strip_prefix("Bearer ").unwrap().to_owned();
        KEYS.iter().position(|known| *known == key).unwrap() + 1
    };
    upstream.seen().iter().map(|seen| place(seen.header("authorization"))).collect()
}

const MINUTE: &str = "retry-after: 60\r\n";

#[tokio::test]
async fn keys_take_turns() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_keys(&upstream, 3).await;
    for _ in 0..5 {
        assert_eq!(ask(&app).await.status, 200);
    }
    assert_eq!(asked_with(&upstream), [1, 2, 3, 1, 2]);
}

#[tokio::test]
async fn a_key_that_is_refused_rests_and_the_next_one_serves_at_once() {
    for (status, code) in [
        (401, "invalid_api_key"),
        (429, "insufficient_quota"),
        (400, "billing_hard_limit_reached"),
        (429, "rate_limit_exceeded"),
    ] {
        for advice in ["", "x-should-retry: false\r\n"] {
            let upstream = ScriptedUpstream::start().await;
            let app = start_with_keys(&upstream, 2).await;
            upstream.then_status(status, &[MINUTE, advice].concat(), &error("m", code));
            for _ in 0..3 {
                assert_eq!(ask(&app).await.status, 200, "{code}");
            }
            assert_eq!(asked_with(&upstream), [1, 2, 2, 2], "{code}");
        }
    }
}

#[tokio::test]
async fn a_stream_moves_on_to_the_next_key_unseen() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_keys(&upstream, 3).await;
    upstream.then_status(401, "", "{}").then_status(429, MINUTE, "{}").then(Script::answer(&["안녕"]));
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(contents(&events), ["안녕"]);
    assert_eq!(asked_with(&upstream), [1, 2, 3]);
}

#[tokio::test]
async fn each_key_is_tried_once_and_then_the_best_error_is_told_without_asking() {
    let limited = |wait| (429, wait, error("theirs", "rate_limit_exceeded"));
    let no_money = || (429, MINUTE, error("m", "insufficient_quota"));
    let refused = || (401, MINUTE, error("m", "invalid_api_key"));
    for (refusals, status, code, wait) in [
        ([limited(MINUTE), limited("retry-after: 30\r\n"), limited(MINUTE)], 429, "upstream_rate_limited", Some(30)),
        ([limited("retry-after: 30\r\n"), no_money(), refused()], 429, "upstream_rate_limited", Some(30)),
        ([refused(), refused(), limited("retry-after: 90\r\n")], 429, "upstream_rate_limited", Some(90)),
        ([refused(), no_money(), refused()], 503, "upstream_quota", None),
        ([refused(), refused(), refused()], 502, "upstream_auth", None),
    ] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with_keys(&upstream, 3).await;
        for (status, headers, body) in &refusals {
            upstream.then_status(*status, headers, body);
        }
        for _ in 0..3 {
            let answer = ask(&app).await;
            assert_eq!(answer.error(status).1, code);
            let told: Option<u64> = answer.header("retry-after").map(|told| told.parse().unwrap());
            assert_eq!(told.is_some(), wait.is_some());
            assert!(told.is_none_or(|told| told <= wait.unwrap() && told + 10 > wait.unwrap()), "{told:?}");
        }
        assert_eq!(asked_with(&upstream), [1, 2, 3]);
        let last = ask(&app).await.text();
        assert!(!last.contains("theirs"), "what upstream said was for another caller: {last}");
    }
}

#[tokio::test]
async fn a_limited_key_serves_other_models() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_keys(&upstream, 1).await;
    upstream.then_status(429, MINUTE, "{}");
    assert_eq!(ask(&app).await.status, 429);
    assert_eq!(ask(&app).await.status, 429);
    assert_eq!(app.chat(&json!({"message": "x", "model": "another"})).await.status, 200);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn when_every_key_is_limited_the_question_waits_for_the_first_to_wake() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| give_keys(config, 2)).await;
    upstream.then_status(429, "retry-after-ms: 50\r\n", "{}").then_status(429, MINUTE, "{}");
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(asked_with(&upstream), [1, 2, 1]);
}

#[tokio::test]
async fn a_limit_without_a_time_is_tried_again_by_who_has_waited_and_lifted_when_it_is_over() {
    let upstream = ScriptedUpstream::start().await;
    let app = start(&upstream).await;
    upstream.then_status(429, "", "{}");
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn what_is_not_the_keys_fault_moves_to_no_other_key() {
    for (status, code) in [(400, "invalid_value"), (403, "model_not_allowed"), (404, "model_not_found"), (500, "")] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with_keys(&upstream, 2).await;
        upstream.then_status(status, "", &error("m", code));
        assert!(ask(&app).await.status.as_u16() >= 400);
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(asked_with(&upstream), [1, 2, 1], "{code}: none rests");
    }
}

#[tokio::test]
async fn the_only_key_is_asked_with_whatever_it_was_refused_for() {
    for (status, code) in [(401, "invalid_api_key"), (429, "insufficient_quota")] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with_keys(&upstream, 1).await;
        upstream.then_status(status, MINUTE, &error("m", code));
        assert!(ask(&app).await.status.as_u16() >= 500);
        assert_eq!(ask(&app).await.status, 200, "a bill that is paid shows at once");
    }
}

#[tokio::test]
async fn a_retry_goes_out_with_the_next_key() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| give_keys(config, 3)).await;
    upstream.then_status(500, SOON, "{}").then_status(401, "", "{}").then_status(400, "", &unsupported("max_tokens"));
    assert_eq!(ask(&app).await.status, 200);
    assert_eq!(asked_with(&upstream), [1, 2, 3, 3]);
}

#[tokio::test]
async fn the_model_list_takes_any_key_and_speaks_for_no_chat() {
    for status in [401, 403, 429] {
        let upstream = ScriptedUpstream::start().await;
        let app = start_with_keys(&upstream, 2).await;
        upstream.then_status(status, MINUTE, "{}");
        assert_eq!(app.get("/health").await.json()["status"], "healthy");
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(asked_with(&upstream), [1, 2, 1], "a key that may not list may chat");
    }
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| give_keys(config, 3)).await;
    upstream.then_status(500, SOON, "{}");
    assert_eq!(app.get("/health").await.json()["status"], "unhealthy");
    assert_eq!(asked_with(&upstream), [1], "asked again in 15 s, by who wants to know");
}

#[tokio::test]
async fn the_log_names_a_key_by_its_place_and_shows_none() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| give_keys(config, 3)).await;
    let said = format!("Incorrect API key provided: {}", KEYS[0]);
    upstream.then_status(401, "", &error(&said, "invalid_api_key")).then_status(500, SOON, &error(KEYS[1], ""));
    upstream.then_status(400, "", &error(&KEYS.join(" and "), "invalid_value"));
    let answer = app.chat(&json!({"message": "x", "model": "keys-in-the-log"})).await;
    let (detail, _) = answer.error(400);
    assert!(detail.as_str().unwrap().ends_with("[redacted] and [redacted] and [redacted]"), "{detail}");

    let lines: Vec<Value> = log::text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<_> = lines.iter().filter(|line| line["model"] == "keys-in-the-log").collect();
    let said: Vec<_> = said.iter().map(|line| (line["message"].as_str().unwrap(), line["key"].as_u64())).collect();
    assert_eq!(said, [("a key rests", Some(1)), ("the upstream is asked again", Some(2)), ("request", None)]);
    assert!(!log::text().contains("canary"));
}

/// Five failures, each seen by a caller.
async fn fail_five_times(app: &TestApp, upstream: &ScriptedUpstream) {
    for _ in 0..5 {
        upstream.then_status(500, "", "{}");
        assert_eq!(ask(app).await.error(502).1, "upstream_error");
    }
}

/// Asks until the upstream is asked again: the answer.
async fn ask_until_it_is_asked(app: &TestApp) -> Answer {
    loop {
        let answer = ask(app).await;
        if answer.status == 200 || answer.error_code() != "upstream_unavailable" {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The service whose breaker stays open for that long at first.
async fn start_with_breaker(upstream: &ScriptedUpstream, open: Duration) -> TestApp {
    start_with(upstream, |config| {
        config.max_retries = 0;
        config.breaker.open = open;
    })
    .await
}

#[tokio::test]
async fn an_upstream_that_fails_too_often_is_not_asked_and_callers_are_told_within_5_milliseconds() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| config.max_retries = 0).await;
    fail_five_times(&app, &upstream).await;
    let mut quickest = Duration::MAX;
    for _ in 0..20 {
        let began = Instant::now();
        let answer = ask(&app).await;
        quickest = quickest.min(began.elapsed());
        let (detail, code) = answer.error(503);
        assert_eq!(code, "upstream_unavailable");
        assert!(detail.as_str().unwrap().ends_with("OpenAI API has failed too often and is not asked for now"));
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=5).contains(&wait), "{wait}");
    }
    // The quickest, because this machine may have other things to do.
    assert!(quickest < Duration::from_millis(5), "{quickest:?}");

    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    let last = &events.last().unwrap().data;
    assert_eq!((&last["code"], &last["status"]), (&json!("upstream_unavailable"), &json!(503)));
    assert_eq!(last["retryable"], true);
    assert_eq!(upstream.seen().len(), 5);

    assert_eq!(app.get("/health").await.json()["status"], "healthy", "it asks, for it is to tell how things are");
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable", "a list is no chat");
}

#[tokio::test]
async fn one_probe_is_let_through_and_its_success_lets_everybody_through() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_breaker(&upstream, Duration::from_secs(2)).await;
    fail_five_times(&app, &upstream).await;
    upstream.then([Play::Hold, Play::Send(response(200, "", &answer("well again").to_string()))]);
    let others = async {
        upstream.arrived(6).await;
        for _ in 0..10 {
            assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");
        }
        assert_eq!(upstream.seen().len(), 6);
        upstream.release();
    };
    let (probe, ()) = tokio::join!(ask_until_it_is_asked(&app), others);
    assert_eq!(probe.json()["response"], "well again");
    for _ in 0..3 {
        assert_eq!(ask(&app).await.status, 200);
    }
    assert_eq!(upstream.seen().len(), 9);
}

#[tokio::test]
async fn a_probe_that_fails_is_followed_by_a_longer_pause() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_breaker(&upstream, Duration::from_millis(1100)).await;
    fail_five_times(&app, &upstream).await;
    assert_eq!(ask(&app).await.header("retry-after"), Some("2"));
    upstream.then_status(500, "", "{}");
    assert_eq!(ask_until_it_is_asked(&app).await.status, 502);
    assert_eq!(upstream.seen().len(), 6);
    assert_eq!(ask(&app).await.header("retry-after"), Some("3"));
}

#[tokio::test]
async fn a_probe_whose_caller_leaves_does_not_keep_the_others_out() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_breaker(&upstream, Duration::from_secs(3)).await;
    fail_five_times(&app, &upstream).await;
    upstream.then([Play::Silence]);
    let call = tokio::spawn({
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = app.url("/chat");
        async move {
            loop {
                let request = client.post(&url).header("content-type", "application/json");
                request.body(r#"{"message":"x"}"#).send().await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    upstream.arrived(6).await;
    call.abort();
    upstream.left().await;
    let began = Instant::now();
    assert_eq!(ask_until_it_is_asked(&app).await.status, 200);
    // Nobody waits until the probe would have been given up.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn every_kind_of_outage_counts_and_no_refusal_does() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| {
        config.max_retries = 0;
        config.timeouts.first_token = Duration::from_millis(100);
    })
    .await;
    upstream.then([Play::Reset]).then([Play::Close]).then([Play::Silence]).then_status(529, "", "{}");
    upstream.then_status(500, "", "{}");
    for _ in 0..5 {
        assert_ne!(ask(&app).await.error_code(), "upstream_unavailable");
    }
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");

    let nobody = "http://127.0.0.1:1/v1".parse().unwrap();
    let app = TestApp::start(&nobody).await;
    for _ in 0..5 {
        assert_eq!(ask(&app).await.error(502).1, "upstream_unreachable");
    }
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");

    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| config.max_retries = 0).await;
    for status in [400, 401, 403, 404, 408, 409, 422, 307, 429] {
        upstream.then_status(status, "retry-after: 0\r\n", &error("m", ""));
        assert!(ask(&app).await.status.as_u16() >= 400);
    }
    for _ in 0..5 {
        upstream.then([Play::Send(b"HTTP/1.1 200 X\r\n\r\n{".to_vec()), Play::Reset]);
        assert_eq!(ask(&app).await.error(502).1, "upstream_reset");
    }
    assert_eq!(upstream.seen().len(), 14);
    assert_eq!(ask(&app).await.status, 200);
}

#[tokio::test]
async fn a_breaker_that_opens_ends_the_retries() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with(&upstream, |config| config.max_retries = 10).await;
    for _ in 0..6 {
        upstream.then_status(500, SOON, "{}");
    }
    assert_eq!(ask(&app).await.error(502).1, "upstream_error", "what it was that failed");
    assert_eq!(ask(&app).await.error(503).1, "upstream_unavailable");
    assert_eq!(upstream.seen().len(), 5);
}

#[tokio::test]
async fn when_one_key_fails_too_often_the_next_one_serves() {
    let upstream = ScriptedUpstream::start().await;
    let app = start_with_keys(&upstream, 2).await;
    for _ in 0..5 {
        upstream.then_status(500, "", "{}").then_json(&answer("x"));
        assert_eq!(ask(&app).await.status, 502);
        assert_eq!(ask(&app).await.status, 200);
    }
    for _ in 0..3 {
        assert_eq!(ask(&app).await.status, 200);
    }
    assert_eq!(asked_with(&upstream)[10..], [2, 2, 2]);
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
