//! Money: what `GET /usage` says is what the upstream may have billed, however a chat ended.
//!
//! The scripted upstream keeps books of its own: by its own figures where it tells any, else by count, with the tokenizer.

use std::time::Duration;

use ai_service::tokens::{TokenCounter, Vocabulary};
use serde_json::{Value, json};

use crate::support::{
    Play, ScriptedUpstream, TestApp,
    dice::{self, Dice},
    events::{Script, delta},
    eventually,
    upstream::{answer, response},
};

/// What every message costs besides its text.
const PER_MESSAGE: u64 = 4;

fn tokens(text: &str) -> u64 {
    TokenCounter::default().count(Vocabulary::of("gpt-3.5-turbo"), text) as u64
}

async fn used(app: &TestApp) -> [u64; 2] {
    let today = app.get("/usage").await.json()["today"].clone();
    [&today["prompt_tokens"], &today["completion_tokens"]].map(|number| number.as_u64().unwrap())
}

const QUESTION: &str = "오늘 부산의 날씨는 어떻습니까?";

fn question() -> Value {
    json!({"message": QUESTION})
}

fn prompt() -> u64 {
    tokens(QUESTION) + PER_MESSAGE
}

async fn start(pairs: &[(&str, &str)]) -> (ScriptedUpstream, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_from(&upstream.base_url, pairs).await;
    (upstream, app)
}

fn remaining(answer: &crate::support::Answer) -> u64 {
    answer.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap()
}

#[tokio::test]
async fn whoever_makes_the_upstream_take_a_question_pays_for_it() {
    let half = response(200, "", &answer("half").to_string())[..150].to_vec();
    let pairs = [
        ("RATE_LIMIT_TOKENS_PER_MINUTE", "10000"),
        ("UPSTREAM_FIRST_TOKEN_TIMEOUT_SECONDS", "1"),
        ("UPSTREAM_TOTAL_TIMEOUT_SECONDS", "1"),
    ];
    for (plays, is_stream) in [
        (vec![Play::Silence], true),
        (vec![Play::Silence], false),
        (vec![Play::Send(half.clone()), Play::Reset], false),
        (vec![Play::Send(half.clone()), Play::Close], false),
        (vec![Play::Reset], true),
        (vec![Play::Send(response(200, "", "<html>"))], false),
        (Script::chunked().done().end().into_iter().collect(), true),
    ] {
        let (upstream, app) = start(&pairs).await;
        let long = QUESTION.repeat(60);
        let (question, prompt) = (json!({"message": long}), tokens(&long) + PER_MESSAGE);
        let began = tokio::time::Instant::now();
        for round in 1..=2 {
            upstream.then(plays.clone());
            if is_stream {
                app.chat_as_stream(&question).await.rest().await;
            } else {
                assert!(app.chat(&question).await.status.is_server_error());
            }
            assert_eq!(used(&app).await, [round * prompt, 0], "{plays:?}");
        }
        let left = remaining(&app.get("/models").await);
        // Some comes back meanwhile: 167 a second.
        let back = began.elapsed().as_millis() as u64 / 6 + 1;
        assert!(left <= 10_000 - 2 * prompt + back, "{left} of 10000 and {prompt} for each");
    }
}

#[tokio::test]
async fn what_cannot_have_been_billed_is_free() {
    let (upstream, app) = start(&[]).await;
    for status in [400, 401, 404, 429, 500, 503] {
        upstream.then_status(status, "", r#"{"error":{"message":"model"}}"#);
        app.chat(&question()).await;
        upstream.then_status(status, "", r#"{"error":{"message":"model"}}"#);
        app.chat_as_stream(&question()).await.rest().await;
    }
    // A refusal told where an answer should begin.
    upstream.then(Script::chunked().event(r#"{"error":{"message":"slow","code":429}}"#).end());
    app.chat_as_stream(&question()).await.rest().await;
    assert_eq!(used(&app).await, [0, 0]);
    let nobody = TestApp::start(&"http://127.0.0.1:1/v1".parse().unwrap()).await;
    nobody.chat(&question()).await.error(502);
    nobody.chat_as_stream(&question()).await.rest().await;
    assert_eq!(used(&nobody).await, [0, 0]);
}

#[tokio::test]
async fn a_question_that_was_taken_and_broke_and_was_asked_again_is_charged_for_both() {
    let (upstream, app) = start(&[("UPSTREAM_MAX_RETRIES", "1")]).await;
    upstream.then([Play::Reset]);
    assert_eq!(app.chat(&question()).await.status, 200);
    assert_eq!(used(&app).await, [10 + prompt(), 15]);
}

#[tokio::test]
async fn a_stream_that_is_stopped_or_breaks_costs_what_the_tokenizer_counts() {
    let text = "안녕하세요. 부산은 맑고 바람이 조금 붑니다. ".repeat(80);
    let thought = "사용자는 부산의 날씨를 묻고 있다. ".repeat(20);
    for has_thought in [false, true] {
        let (upstream, app) = start(&[]).await;
        let begin = || {
            let think = delta(&json!({"reasoning_content": thought}), &Value::Null);
            let script = Script::chunked().role();
            let script = if has_thought { script.event(&think) } else { script };
            script.piece(&text)
        };
        let answered = tokens(&text) + if has_thought { tokens(&thought) } else { 0 };
        upstream.then(begin().play(Play::Silence));
        let id = app.begin(&question()).await;
        app.events(&id).await.take(2).await;
        app.cancel(&id).await;
        assert_eq!(used(&app).await, [prompt(), answered], "stopped");
        upstream.then(begin().play(Play::Reset));
        app.chat_as_stream(&question()).await.rest().await;
        assert_eq!(used(&app).await, [2 * prompt(), 2 * answered], "broken");
        upstream.then(begin().finish("stop").done().end());
        app.chat_as_stream(&question()).await.rest().await;
        assert_eq!(used(&app).await, [3 * prompt(), 3 * answered], "whole");
    }
    // Thought alone, before the first word.
    let (upstream, app) = start(&[]).await;
    upstream.then(Script::chunked().event(&delta(&json!({"reasoning": thought}), &Value::Null)).play(Play::Silence));
    let id = app.begin(&question()).await;
    upstream.arrived(1).await;
    // Until it has been read, there is nothing to wait for.
    tokio::time::sleep(Duration::from_millis(300)).await;
    app.cancel(&id).await;
    assert_eq!(used(&app).await, [prompt(), tokens(&thought)]);
}

#[tokio::test]
async fn the_same_chat_costs_the_same_whole_or_as_a_stream() {
    let text = "안녕하세요. 부산은 맑습니다.";
    let (upstream, app) = start(&[]).await;
    let mut body = answer(text);
    body.as_object_mut().unwrap().remove("usage");
    upstream.then_json(&body);
    app.chat(&question()).await;
    let whole = used(&app).await;
    assert_eq!(whole, [prompt(), tokens(text)]);
    upstream.then(Script::chunked().piece(text).finish("stop").done().end());
    app.chat_as_stream(&question()).await.rest().await;
    assert_eq!(used(&app).await, whole.map(|count| 2 * count));
}

#[tokio::test]
async fn usage_is_read_wherever_it_stands_and_zeros_never_replace_numbers() {
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13});
    let zeros = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
    let choice =
        |usage: &Value| json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage}]});
    let events = [
        vec![json!({"choices": [], "x_groq": {"id": "x", "usage": usage}})],
        vec![choice(&usage)],
        vec![json!({"choices": [], "usage": usage}), json!({"choices": [], "usage": zeros})],
        vec![json!({"choices": [], "usage": {"input_tokens": 9, "output_tokens": 4}})],
        vec![json!({"choices": [], "usage": {"prompt_tokens": "9", "completion_tokens": 4.0, "total_tokens": null}})],
        vec![
            json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}),
            json!({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 4}}),
        ],
    ];
    for events in events {
        let (upstream, app) = start(&[]).await;
        let script = events
            .iter()
            .fold(Script::chunked().piece("x").finish("stop"), |script, event| script.event(&event.to_string()));
        upstream.then(script.done().end());
        let last = app.chat_as_stream(&question()).await.rest().await.pop().unwrap().data;
        assert_eq!(last["usage"], usage, "{events:?}");
        assert_eq!(used(&app).await, [9, 4], "{events:?}");
        // The same in a whole answer.
        if let [event] = events.as_slice() {
            let mut body = answer("x");
            body.as_object_mut().unwrap().remove("usage");
            for (name, value) in event.as_object().unwrap() {
                match name.as_str() {
                    "choices" => body["choices"][0]["usage"] = value[0]["usage"].clone(),
                    name => body[name] = value.clone(),
                }
            }
            upstream.then_json(&body);
            assert_eq!(app.chat(&question()).await.json()["usage"], usage, "{body}");
            assert_eq!(used(&app).await, [18, 8], "{body}");
        }
    }
}

#[tokio::test]
async fn a_total_alone_is_charged_and_zeros_alone_are_no_figures() {
    let with = |usage: Value| {
        Script::chunked().piece("x").finish("stop").event(&json!({"choices": [], "usage": usage}).to_string())
    };
    let (upstream, app) = start(&[]).await;
    upstream.then(with(json!({"total_tokens": 100})).done().end());
    app.chat_as_stream(&question()).await.rest().await;
    assert_eq!(used(&app).await, [prompt(), 100 - prompt()]);
    upstream.then(with(json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})).done().end());
    app.chat_as_stream(&question()).await.rest().await;
    assert_eq!(used(&app).await, [2 * prompt(), 100 - prompt() + tokens("x")]);
    // Thought that is counted in the total alone.
    upstream.then(with(json!({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 50})).done().end());
    app.chat_as_stream(&question()).await.rest().await;
    assert_eq!(used(&app).await, [2 * prompt() + 9, 100 - prompt() + tokens("x") + 41]);
}

#[tokio::test]
async fn known_usage_is_charged_also_when_the_answer_was_an_error_to_its_caller() {
    let (upstream, app) = start(&[]).await;
    let mut empty = answer("");
    empty["choices"][0]["finish_reason"] = json!("length");
    upstream.then_json(&empty);
    assert_eq!(app.chat(&question()).await.error(502).1, "upstream_empty");
    assert_eq!(used(&app).await, [10, 15]);
    upstream.then(Script::chunked().piece("x").usage().play(Play::Reset));
    app.chat_as_stream(&question()).await.rest().await;
    assert_eq!(used(&app).await, [20, 30]);
    upstream.then(Script::chunked().piece("x").usage().finish("error").done().end());
    app.chat_as_stream(&question()).await.rest().await;
    assert_eq!(used(&app).await, [30, 45]);
}

#[tokio::test]
async fn whoever_leaves_a_whole_answer_pays_the_prompt_by_count() {
    let (upstream, app) = start(&[]).await;
    upstream.then([Play::Silence]);
    let body = question();
    tokio::select! {
        answer = app.chat(&body) => panic!("{answer:?}"),
        () = upstream.arrived(1) => {}
    }
    upstream.left().await;
    eventually(async || used(&app).await == [prompt(), 0]).await;
}

#[tokio::test]
async fn a_large_prompt_is_counted_like_any_other() {
    let (upstream, app) = start(&[]).await;
    let large = "부산 ".repeat(20_000);
    upstream.then(Script::chunked().piece("x").play(Play::Reset));
    app.chat_as_stream(&json!({"message": large})).await.rest().await;
    assert_eq!(used(&app).await, [tokens(&large) + PER_MESSAGE, 1]);
}

/// How many chats end in the great mix: some hundreds, or as many as the variable says.
fn how_many() -> u64 {
    dice::number("MIXED_ENDINGS").unwrap_or(300)
}

/// One chat that ends in some way, and what the upstream's books say of it.
async fn one(upstream: &ScriptedUpstream, app: &TestApp, dice: &mut Dice) -> [u64; 2] {
    let (prompt_tokens, completion_tokens) = (dice.below(1000) as u64 + 1, dice.below(1000) as u64 + 1);
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens});
    let usage_event = json!({"choices": [], "usage": usage}).to_string();
    let text = ["안녕하세요", "Hello, how are you?", "x", "👩‍👩‍👧 가족"][dice.below(4)];
    let (told, counted) = ([prompt_tokens, completion_tokens], [prompt(), tokens(text)]);
    let piece = || Script::chunked().role().piece(text);
    let (script, cost): (Vec<Play>, _) = match dice.below(14) {
        0 => (piece().finish("stop").event(&usage_event).done().end().into_iter().collect(), told),
        1 => (piece().finish("length").done().end().into_iter().collect(), counted),
        2 => (piece().event(&usage_event).play(Play::Reset).into_iter().collect(), told),
        3 => (piece().play(Play::Reset).into_iter().collect(), counted),
        4 => (piece().end().into_iter().collect(), counted),
        5 => (piece().event(r#"{"error":{"message":"boom"}}"#).end().into_iter().collect(), counted),
        6 => (piece().event("{\"cho").end().into_iter().collect(), counted),
        7 => (vec![Play::Reset], [prompt(), 0]),
        8 => (
            vec![Play::Send(response([400, 404, 500, 503][dice.below(4)], "", r#"{"error":{"message":"model"}}"#))],
            [0, 0],
        ),
        9 => (Script::chunked().done().end().into_iter().collect(), [prompt(), 0]),
        10 => {
            // Stopped in the middle.
            upstream.then(piece().play(Play::Silence));
            let id = app.begin(&question()).await;
            app.events(&id).await.take(2).await;
            assert_eq!(app.cancel(&id).await.status, 200);
            return counted;
        }
        kind => {
            let mut body = answer(text);
            body["usage"] = usage;
            let (body, cost) = match kind {
                11 => (response(200, "", &body.to_string()), told),
                12 => {
                    body.as_object_mut().unwrap().remove("usage");
                    (response(200, "", &body.to_string()), counted)
                }
                _ => (response(200, "", &body.to_string())[..120].to_vec(), [prompt(), 0]),
            };
            upstream.then([Play::Send(body), Play::Close]);
            app.chat(&question()).await;
            return cost;
        }
    };
    upstream.then(script);
    app.chat_as_stream(&question()).await.rest().await;
    cost
}

#[tokio::test]
async fn over_mixed_endings_usage_is_what_the_upstream_counted_to_the_token() {
    // No limits of its own and no breaker: every failure here is asked for.
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.upstream.breaker.failures = 0).await;
    let mut dice = Dice(20_261_128);
    let mut books = [0, 0];
    for n in 0..how_many() {
        let cost = one(&upstream, &app, &mut dice).await;
        books = [books[0] + cost[0], books[1] + cost[1]];
        if n % 50 == 0 {
            assert_eq!(used(&app).await, books, "after {n}");
        }
    }
    assert_eq!(used(&app).await, books);
}
