//! Servers that speak OpenAI's API in their own way: what its libraries survive, this service survives.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Play, ScriptedUpstream, TestApp,
    events::{Script, contents, delta},
    upstream::{answer, response},
};

/// The text of a stream that ends in good order.
async fn text(script: impl IntoIterator<Item = Play>) -> String {
    let (events, last) = read(&[], script).await;
    assert_eq!(last["type"], "END", "{last}");
    assert_eq!(last["full_content"], events.concat());
    events.concat()
}

async fn read(pairs: &[(&str, &str)], script: impl IntoIterator<Item = Play>) -> (Vec<String>, Value) {
    let upstream = ScriptedUpstream::start().await;
    upstream.then(script);
    let app = TestApp::start_from(&upstream.base_url, pairs).await;
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(upstream.seen().len(), 1, "one call upstream");
    (contents(&events).into_iter().map(str::to_owned).collect(), events.last().unwrap().data.clone())
}

/// What `POST /chat` gets for that body.
async fn whole(headers: &str, body: &[u8]) -> (u16, Value) {
    let upstream = ScriptedUpstream::start().await;
    let head = format!("HTTP/1.1 200 X\r\n{headers}content-length: {}\r\n\r\n", body.len());
    upstream.then([Play::Send([head.as_bytes(), body].concat())]);
    let app = TestApp::start(&upstream.base_url).await;
    let answer = app.chat(&json!({"message": "x"})).await;
    assert_eq!(upstream.seen().len(), 1, "one call upstream");
    (answer.status.as_u16(), answer.json())
}

fn said(json: &str) -> Script {
    Script::chunked().event(json).finish("stop").done().end()
}

#[tokio::test]
async fn an_event_that_says_nothing_is_skipped() {
    for nothing in [
        "data:\n\n",
        "data: \n\n",
        "data\ndata\n\n",
        "event: ping\ndata: ping\n\n",
        "event: heartbeat\ndata: {not json}\n\n",
        "data: ping\n\n",
        "data: keep-alive\n\n",
        "data: null\n\n",
        "data: 0\n\n",
        "data: {\"type\":\"ping\"}\n\n",
        "data: {\"choices\":\"odd\"}\n\n",
        "data: {\"choices\":[null,7,[],{}]}\n\n",
    ] {
        let script =
            Script::chunked().bytes(nothing.as_bytes()).piece("Hello ").bytes(nothing.as_bytes()).piece("world");
        assert_eq!(
            text(script.finish("stop").bytes(nothing.as_bytes()).done().end()).await,
            "Hello world",
            "{nothing}"
        );
    }
}

#[tokio::test]
async fn what_says_nothing_is_no_progress() {
    for nothing in ["data: ping\n\n", "data:\n\n", "data: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}\n\n"] {
        let ping = |script: Script| script.bytes(nothing.as_bytes()).play(Play::Pause(Duration::from_millis(50)));
        let pings = (0..100).fold(Script::chunked(), |script, _| ping(script));
        let pairs = [("UPSTREAM_FIRST_TOKEN_TIMEOUT_SECONDS", "1")];
        assert_eq!(read(&pairs, pings).await.1["code"], "upstream_timeout", "{nothing}");
        let pings = (0..100).fold(Script::chunked().piece("Hel"), |script, _| ping(script));
        let pairs = [("UPSTREAM_IDLE_TIMEOUT_SECONDS", "1")];
        let (_, last) = read(&pairs, pings).await;
        assert_eq!((&last["code"], &last["partial"]), (&json!("upstream_stalled"), &json!("Hel")), "{nothing}");
    }
}

#[tokio::test]
async fn thought_and_calls_of_tools_are_progress_and_are_not_passed_on() {
    let limits = [("UPSTREAM_FIRST_TOKEN_TIMEOUT_SECONDS", "1"), ("UPSTREAM_IDLE_TIMEOUT_SECONDS", "1")];
    for thought in [
        json!({"content": null, "reasoning_content": "t"}),
        json!({"content": "", "reasoning": "t"}),
        json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}], "reasoning_details": [{"x": 1}]}),
        json!({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
        json!({"audio": {"transcript": "t"}}),
    ] {
        let think = |script: Script| {
            let event = delta(&thought, &Value::Null);
            (0..7).fold(script, |script, _| script.event(&event).play(Play::Pause(Duration::from_millis(250))))
        };
        let script =
            think(think(Script::chunked().role()).piece("Hel")).piece("lo").finish("stop").usage().done().end();
        let (pieces, last) = read(&limits, script).await;
        assert_eq!((pieces.concat().as_str(), &last["type"]), ("Hello", &json!("END")), "{thought} {last}");
        assert_eq!(last["usage"]["total_tokens"], 25);
    }
    let tool = delta(&json!({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}), &Value::Null);
    let script =
        (0..7).fold(Script::chunked(), |script, _| script.event(&tool).play(Play::Pause(Duration::from_millis(250))));
    let (pieces, last) = read(&limits, script.finish("tool_calls").done().end()).await;
    assert_eq!((pieces.len(), &last["finish_reason"]), (0, &json!("tool_calls")), "{last}");
}

#[tokio::test]
async fn endless_thought_ends_at_the_total_limit() {
    let event = delta(&json!({"reasoning": "t"}), &Value::Null);
    let script =
        (0..100).fold(Script::chunked(), |script, _| script.event(&event).play(Play::Pause(Duration::from_millis(50))));
    let pairs = [("UPSTREAM_TOTAL_TIMEOUT_SECONDS", "2"), ("UPSTREAM_IDLE_TIMEOUT_SECONDS", "1")];
    assert_eq!(read(&pairs, script).await.1["code"], "upstream_deadline");
}

#[tokio::test]
async fn events_with_one_line_feed_between_them_are_read_line_by_line() {
    let line = |text: &str| format!("data: {}\n", delta(&json!({"content": text}), &Value::Null));
    let stop = format!("data: {}\n", delta(&json!({}), &json!("stop")));
    for end in ["data: [DONE]\n\n", "data: [DONE]\n", "\n"] {
        let body = format!("{}{}{stop}{end}", line("Hello "), line("world"));
        assert_eq!(text(Script::chunked().bytes(body.as_bytes()).end()).await, "Hello world");
    }
    let broken = format!("{}data: {{\"choices\":[{{\"del\n\n", line("Hello "));
    let (_, last) = read(&[], Script::chunked().bytes(broken.as_bytes()).end()).await;
    assert_eq!((&last["code"], &last["partial"]), (&json!("upstream_protocol"), &json!("Hello ")));
}

#[tokio::test]
async fn an_odd_field_is_a_missing_field() {
    for (event, expected) in [
        (r#"{"choices":[{"index":null,"delta":{"content":"a"}}]}"#, "a"),
        (r#"{"choices":[{"index":"0","delta":{"content":"a"}}]}"#, "a"),
        (r#"{"choices":[{"index":0.0,"delta":{"content":"a"}}]}"#, "a"),
        (r#"{"choices":[{"index":[],"delta":{"content":"a"},"finish_reason":{}}]}"#, "a"),
        (r#"{"choices":[{"delta":""},{"delta":{"content":"a"}}]}"#, "a"),
        (r#"{"choices":[{"delta":[1]},null,{"delta":{"content":"a","role":7}}]}"#, "a"),
        (r#"{"choices":[{"delta":{"content":["Hello"," world"]}}]}"#, "Hello world"),
        (r#"{"choices":[{"delta":{"content":["a",null,{"text":"b"},{"text":7}]}}]}"#, "ab"),
        (r#"{"id":7,"usage":[],"choices":[{"delta":{"content":"a","refusal":[]}}]}"#, "a"),
        (r#"{"error":"","choices":[{"delta":{"content":"a"}}]}"#, "a"),
        (r#"{"error":{},"choices":[{"delta":{"content":"a"},"error":{ }}]}"#, "a"),
        (r#"{"error":false,"errors":[],"choices":[{"delta":{"content":"a"},"error":0}]}"#, "a"),
        (r#"{"choices":[{"delta":{"content":"x","content":"a"}}],"usage":1,"usage":null}"#, "a"),
        (r#"{"choices":[],"choices":[{"delta":{"content":"x"},"delta":{"content":"a"}}]}"#, "a"),
        (r#"{"choices":[{"delta":{"content":"a"},"logprobs":{"x":[NaN,-Infinity]}}]}"#, "a"),
    ] {
        assert_eq!(text(said(event)).await, expected, "{event}");
        let body = event.replace("\"delta\"", "\"message\"");
        let (status, answered) = whole("", body.as_bytes()).await;
        // The first of a list is the answer there.
        if !body.contains("\"message\":\"\"") && !body.contains("\"message\":[1]") {
            assert_eq!((status, &answered["response"]), (200, &json!(expected)), "{body}");
        }
    }
}

#[tokio::test]
async fn of_a_usage_that_stands_there_twice_the_last_one_counts() {
    let twice = r#"{"choices":[],"usage":{"prompt_tokens":1,"prompt_tokens":9,"completion_tokens":4},"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}"#;
    let script = Script::chunked().piece("a").finish("stop").event(twice).done().end();
    let (_, last) = read(&[], script).await;
    assert_eq!(last["usage"], json!({"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}));
}

#[tokio::test]
async fn half_a_character_waits_for_its_other_half() {
    let piece = |text: &str| format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#);
    for (pieces, expected) in [
        (&[r"a\ud83d", r"\ude00 b"][..], "a😀 b"),
        (&[r"\ud83d", "x"], "\u{fffd}x"),
        (&[r"x\ud83d"], "x\u{fffd}"),
        (&[r"\ude00x"], "\u{fffd}x"),
    ] {
        let script = pieces.iter().fold(Script::chunked(), |script, text| script.event(&piece(text)));
        assert_eq!(text(script.finish("stop").done().end()).await, expected, "{pieces:?}");
        let body = format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#, pieces.concat());
        assert_eq!(whole("", body.as_bytes()).await.1["response"], expected, "{body}");
    }
}

#[tokio::test]
async fn done_may_be_spelled_otherwise() {
    for done in ["\"[DONE]\"", "[done]", " [DONE] ", "[DONE] x"] {
        let script = Script::chunked().piece("Hello").finish("stop").event(done).end();
        assert_eq!(text(script).await, "Hello", "{done}");
    }
    // Behind an end that nothing took back, what cannot be read says nothing.
    let script = Script::chunked().piece("Hello").finish("stop").event("{\"cho").end();
    assert_eq!(text(script).await, "Hello");
}

#[tokio::test]
async fn an_event_may_be_as_large_as_an_answer() {
    let large = "x".repeat(1_500_000);
    assert_eq!(text(Script::chunked().piece(&large).finish("stop").done().end()).await, large);
    let image =
        json!({"content": "Here it is", "images": [{"image_url": {"url": format!("data:image/png;base64,{large}")}}]});
    assert_eq!(text(said(&delta(&image, &Value::Null))).await, "Here it is");
}

#[tokio::test]
async fn what_is_compressed_though_nobody_asked_is_refused_plainly_and_once() {
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    for (status, encoding) in [(200, "gzip"), (400, "gzip"), (422, "br"), (200, "deflate")] {
        let upstream = ScriptedUpstream::start().await;
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-encoding: {encoding}\r\ncontent-length: 20\r\n\r\n"
        );
        let script = || [Play::Send([head.as_bytes(), gzip].concat())];
        upstream.then(script()).then(script());
        let app = TestApp::start_from(&upstream.base_url, &[("UPSTREAM_MAX_RETRIES", "2")]).await;
        let refused = app.chat(&json!({"message": "x"})).await;
        let (detail, code) = refused.error(502);
        assert_eq!(code, "upstream_protocol");
        assert!(detail.as_str().unwrap().contains("compressed"), "{detail}");
        let last = app.chat_as_stream(&json!({"message": "x"})).await.rest().await.pop().unwrap().data;
        assert_eq!((&last["code"], &last["retryable"]), (&json!("upstream_protocol"), &json!(false)), "{last}");
        let seen = upstream.seen();
        assert_eq!((seen.len(), seen[0].header("accept-encoding")), (2, Some("identity")));
    }
    // What the status says by itself counts all the same.
    let upstream = ScriptedUpstream::start().await;
    upstream.then_status(401, "content-encoding: gzip\r\n", "x");
    let app = TestApp::start(&upstream.base_url).await;
    assert_eq!(app.chat(&json!({"message": "x"})).await.error(502).1, "upstream_auth");
    upstream.then_status(200, "content-encoding: identity\r\n", &answer("Hello").to_string());
    assert_eq!(app.chat(&json!({"message": "x"})).await.json()["response"], "Hello");
}

#[tokio::test]
async fn a_whole_answer_may_begin_with_a_byte_order_mark_and_hold_bytes_that_are_not_utf8() {
    let body = answer("Hello").to_string();
    assert_eq!(whole("", &[b"\xef\xbb\xbf", body.as_bytes()].concat()).await.1["response"], "Hello");
    assert_eq!(whole("", format!("\r\n{body}\n").as_bytes()).await.1["response"], "Hello");
    let odd = [&b"{\"choices\":[{\"message\":{\"content\":\"a\xff\"}}]}"[..]].concat();
    assert_eq!(whole("", &odd).await.1["response"], "a\u{fffd}");
}

#[tokio::test]
async fn a_hundred_headers_are_no_obstacle() {
    let headers: String = (0..101).map(|n| format!("x-{n}: y\r\n")).collect();
    assert_eq!(whole(&headers, answer("Hello").to_string().as_bytes()).await.1["response"], "Hello");
}

#[tokio::test]
async fn a_whole_answer_may_be_silent_for_as_long_as_whole_answers_may() {
    let upstream = ScriptedUpstream::start().await;
    let late =
        |pause| [Play::Pause(Duration::from_millis(pause)), Play::Send(response(200, "", &answer("x").to_string()))];
    let app = TestApp::start_from(&upstream.base_url, &[("UPSTREAM_FIRST_TOKEN_TIMEOUT_SECONDS", "1")]).await;
    upstream.then(late(2000));
    assert_eq!(app.chat(&json!({"message": "x"})).await.status, 200);
    let app = TestApp::start_from(&upstream.base_url, &[("UPSTREAM_TOTAL_TIMEOUT_SECONDS", "1")]).await;
    upstream.then(late(5000));
    let start = tokio::time::Instant::now();
    assert_eq!(app.chat(&json!({"message": "x"})).await.error(504).1, "upstream_deadline");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}
