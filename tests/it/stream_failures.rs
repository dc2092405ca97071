//! Each way in which a streamed answer of the upstream fails, and what its readers get for it.

use std::time::{Duration, Instant};

use ai_service::config::Timeouts;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpListener};

use crate::support::{
    CANARY_KEY, PATIENCE, Play, ScriptedUpstream, TestApp, Transport,
    events::{Event, RETRY, Script, contents, delta, text},
    upstream::{TRANSPORTS, answer, response},
};

const PREFIX: &str = "스트리밍 응답 생성 중 오류가 발생했습니다: ";

/// Stands in whatever the upstream says that is not an answer; none of it may come out.
const PRIVATE: &str = "canary-private";

/// A stream read to its end, and once more.
struct Outcome {
    events: Vec<Event>,
    upstream: ScriptedUpstream,
}

impl Outcome {
    async fn of(script: impl IntoIterator<Item = Play>) -> Self {
        Self::with(script, |_| {}).await
    }

    /// The same over each transport.
    async fn with(script: impl IntoIterator<Item = Play>, change: impl Fn(&mut Timeouts)) -> Self {
        let script: Vec<_> = script.into_iter().collect();
        let first = Self::over(Transport::Plain, script.clone(), &change).await;
        for transport in [Transport::Tls, Transport::Http2] {
            let other = Self::over(transport, script.clone(), &change).await;
            assert_eq!(contents(&other.events), contents(&first.events), "{transport:?}");
            assert_eq!(other.last(), first.last(), "{transport:?}");
        }
        first
    }

    async fn over(
        transport: Transport,
        script: impl IntoIterator<Item = Play>,
        change: impl Fn(&mut Timeouts),
    ) -> Self {
        let upstream = ScriptedUpstream::over(transport).await;
        upstream.then(script);
        let app = upstream.app_with(|config| change(&mut config.upstream.timeouts)).await;
        let events = read(&app, 0, &upstream).await;
        assert_eq!(upstream.seen().len(), 1, "one call upstream");
        Self { events, upstream }
    }

    fn last(&self) -> &Value {
        &self.events.last().expect("a last event").data
    }

    /// That the stream ended with this END.
    #[track_caller]
    fn assert_end(&self, pieces: &[&str], finish_reason: Option<&str>) {
        let last = self.last();
        assert_eq!(last["type"], "END", "{last}");
        assert_eq!(contents(&self.events), pieces);
        assert_eq!((&last["full_content"], &last["finish_reason"]), (&json!(pieces.concat()), &json!(finish_reason)));
    }

    /// That the stream ended with this ERROR; the words behind the fixed prefix.
    #[track_caller]
    fn assert_error(&self, code: &str, status: u16, retryable: bool, pieces: &[&str]) -> String {
        let last = self.last();
        let keys: Vec<_> = last.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, ["code", "error", "partial", "retryable", "status", "type"], "{last}");
        assert_eq!((&last["type"], &last["code"], &last["status"]), (&json!("ERROR"), &json!(code), &json!(status)));
        assert_eq!((&last["retryable"], &last["partial"]), (&json!(retryable), &json!(pieces.concat())), "{code}");
        assert_eq!(contents(&self.events), pieces);
        let error = last["error"].as_str().expect("a text");
        assert!(!error.contains(PRIVATE), "{error}");
        error.strip_prefix(PREFIX).unwrap_or_else(|| panic!("{error}")).to_owned()
    }
}

/// Begins a stream and reads it to its end. After that many events upstream is let go on.
async fn read(app: &TestApp, before_release: usize, upstream: &ScriptedUpstream) -> Vec<Event> {
    let id = app.begin(&json!({"message": "canary-prompt"})).await;
    let mut reading = app.events(&id).await;
    let mut events = reading.take(before_release).await;
    upstream.release();
    events.extend(reading.rest().await);
    assert!(!reading.text().contains(CANARY_KEY), "{}", reading.text());
    assert!(!reading.text().contains("canary-prompt"), "{}", reading.text());
    assert!(!reading.text().contains(upstream.base_url.authority()), "{}", reading.text());

    // What was told at once is what is kept.
    let mut again = app.events(&id).await;
    again.rest().await;
    assert!(again.text() == reading.text(), "the same bytes again");
    let last = events.last().expect("a last event");
    assert!(app.events_behind(&id, last.id).await.is_none(), "nothing behind the end");
    let state = app.state(&id).await;
    let (status, content) = if last.kind() == "END" { ("finished", "full_content") } else { ("failed", "partial") };
    assert_eq!((&state["status"], &state["last_event_id"]), (&json!(status), &json!(last.id)));
    assert!(state["content"] == last.data[content], "{}", state["content"]);
    events
}

fn error(message: &str, code: &Value) -> String {
    json!({"error": {"message": message, "type": "t", "param": null, "code": code}}).to_string()
}

#[tokio::test]
async fn a_refused_connection_is_an_error_that_names_no_address() {
    let upstream = ScriptedUpstream::start().await;
    for base in ["http://127.0.0.1:1/v1", "http://does-not-exist.invalid/v1"] {
        let app = TestApp::start(&base.parse().unwrap()).await;
        let events = read(&app, 0, &upstream).await;
        let error = events[1].data["error"].as_str().unwrap().to_owned();
        assert!(error.starts_with(&format!("{PREFIX}Failed to connect to OpenAI API: ")), "{error}");
        assert!(!error.contains("127.0.0.1") && !error.contains(".invalid"), "{error}");
        let expected = json!({
            "type": "ERROR", "error": error, "code": "upstream_unreachable", "status": 502, "retryable": true,
            "partial": "",
        });
        assert_eq!((events.len(), &events[1].data), (2, &expected));
    }
}

#[tokio::test]
async fn a_refusal_before_the_stream_is_told_as_a_whole_answers_would_be() {
    let said = format!("bad key {CANARY_KEY}");
    for (status, body, code, told, retryable) in [
        (401, error(&said, &json!("invalid_api_key")), "upstream_auth", 502, false),
        (403, error(&said, &json!("unsupported_country")), "upstream_auth", 502, false),
        (429, error("slow down", &json!("rate_limit_exceeded")), "upstream_rate_limited", 429, true),
        (429, error("no money", &json!("insufficient_quota")), "upstream_quota", 503, false),
        (400, error("too long", &json!("context_length_exceeded")), "context_length_exceeded", 400, false),
        (400, error("bad", &json!("invalid_value")), "upstream_invalid_request", 400, false),
        (404, error("no such model", &json!("model_not_found")), "model_not_found", 404, false),
        (500, error(PRIVATE, &Value::Null), "upstream_error", 502, true),
        (503, error(PRIVATE, &Value::Null), "upstream_overloaded", 503, true),
        (504, PRIVATE.to_owned(), "upstream_timeout", 504, true),
        (502, format!("<html>{PRIVATE}</html>"), "upstream_error", 502, true),
        (307, PRIVATE.to_owned(), "upstream_protocol", 502, true),
    ] {
        let outcome = Outcome::of([Play::Send(response(status, "", &body))]).await;
        outcome.assert_error(code, told, retryable, &[]);
        assert_eq!(outcome.events.len(), 2, "START and ERROR");
    }
}

#[tokio::test]
async fn upstreams_own_words_come_without_secrets() {
    let body = error(&format!("slow down, {CANARY_KEY} of org-123"), &json!("rate_limit_exceeded"));
    let outcome = Outcome::of([Play::Send(response(429, "", &body))]).await;
    let words = outcome.assert_error("upstream_rate_limited", 429, true, &[]);
    assert_eq!(words, "slow down, [redacted] of [redacted]");
}

#[tokio::test]
async fn an_error_inside_the_stream_ends_it_first_or_later() {
    // Its words are told, for nobody else knows them; keys are not.
    let unknown = error(&format!("boom {CANARY_KEY}"), &json!("server_error"));
    let more = format!("data: {}\n\n", delta(&json!({"content": "more"}), &Value::Null));
    for (event, code, status, retryable) in [
        (format!("data: {unknown}\n\n"), "upstream_error", 502, true),
        (format!("event: error\ndata: {unknown}\n\n"), "upstream_error", 502, true),
        ("event: error\ndata: {\"message\":\"boom\"}\n\n".to_owned(), "upstream_error", 502, true),
        (format!("data: {}\n\n", error("slow", &json!(429))), "upstream_rate_limited", 429, true),
        (format!("data: {}\n\n", error("slow", &json!("429"))), "upstream_rate_limited", 429, true),
        (format!("data: {}\n\n", error(PRIVATE, &json!(503))), "upstream_overloaded", 503, true),
        ("data: {\"error\":\"boom\"}\n\n".to_owned(), "upstream_error", 502, true),
    ] {
        for pieces in [&[][..], &["안녕", "하세요"]] {
            // What comes behind it, in the same packet and later, would be an answer, and is none.
            let script = Script::chunked().role().pieces(pieces).bytes([&event, more.as_str()].concat().as_bytes());
            let outcome = Outcome::of(script.finish("stop").done().end()).await;
            outcome.assert_error(code, status, retryable, pieces);
        }
    }
}

#[tokio::test]
async fn a_broken_connection_is_an_error_with_the_text_so_far() {
    let start = || Script::chunked().role().piece("안녕");
    let promised = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n".to_vec();
    let event = format!("data: {}\n\n", delta(&json!({"content": "안녕"}), &Value::Null)).into_bytes();
    for script in [
        start().hold().play(Play::Reset).into_iter().collect(),
        start().hold().play(Play::Close).into_iter().collect(),
        start().hold().play(Play::Send(b"ff\r\ndata: {\"ch".to_vec())).play(Play::Close).into_iter().collect(),
        start().hold().play(Play::Send(b"ff\r\ndata: {\"ch".to_vec())).play(Play::Reset).into_iter().collect(),
        start().hold().play(Play::Send(b"no chunk\r\n".to_vec())).play(Play::Silence).into_iter().collect(),
        vec![Play::Send(promised), Play::Send(event), Play::Hold, Play::Close],
    ] {
        let shown = format!("{script:?}");
        for transport in TRANSPORTS {
            let upstream = ScriptedUpstream::over(transport).await;
            let script: &Vec<Play> = &script;
            upstream.then(script.clone());
            let app = upstream.app().await;
            let events = read(&app, 2, &upstream).await;
            let outcome = Outcome { events, upstream };
            let words = outcome.assert_error("upstream_reset", 502, true, &["안녕"]);
            assert_eq!(words, "the connection to OpenAI API broke before the answer was complete", "{shown}");
            assert_eq!(outcome.upstream.seen().len(), 1, "never begun again: the text would be another");
        }
    }
    for before in [vec![Play::Reset], vec![Play::Close], vec![Play::Send(b"HTTP/1.1 200".to_vec()), Play::Close]] {
        Outcome::of(before).await.assert_error("upstream_reset", 502, true, &[]);
    }
}

#[tokio::test]
async fn an_end_in_good_order_without_proof_of_completion_is_an_error() {
    let half = format!("data: {}\n", delta(&json!({"content": "unfinished"}), &Value::Null));
    for start in [Script::chunked(), Script::until_close()] {
        for pieces in [&[][..], &["안", "녕"]] {
            for rest in ["", ": bye\n\n", half.as_str(), &half[..half.len() - 3], "data: [DON"] {
                let script = start.clone().role().pieces(pieces);
                let script = if rest.is_empty() { script } else { script.bytes(rest.as_bytes()) };
                let outcome = Outcome::of(script.end()).await;
                // A line that is whole JSON is no half of anything, and its text has arrived.
                let is_whole = rest.ends_with('\n') && rest.contains("unfinished");
                let pieces = [pieces, if is_whole { &["unfinished"] } else { &[] }].concat();
                let words = outcome.assert_error("upstream_truncated", 502, true, &pieces);
                assert_eq!(words, "OpenAI API ended the stream before the answer was complete");
            }
        }
    }
    Outcome::of(Script::chunked().end()).await.assert_error("upstream_truncated", 502, true, &[]);
    let usage_is_no_proof = Script::chunked().role().piece("a").usage().end();
    Outcome::of(usage_is_no_proof).await.assert_error("upstream_truncated", 502, true, &["a"]);
}

#[tokio::test]
async fn a_finish_reason_is_proof_whatever_becomes_of_the_rest() {
    for (start, end) in [
        (Script::chunked(), Play::Send(b"0\r\n\r\n".to_vec())),
        (Script::until_close(), Play::Close),
        (Script::chunked(), Play::Close),
        (Script::chunked(), Play::Reset),
        (Script::chunked(), Play::Send(b"no chunk\r\n".to_vec())),
    ] {
        let script = start.role().piece("안녕").finish("length").play(end);
        let outcome = Outcome::of(script).await;
        outcome.assert_end(&["안녕"], Some("length"));
        assert_eq!(outcome.last()["usage"], Value::Null);
    }
    let with_usage = Script::chunked().piece("x").finish("stop").usage().end();
    assert_eq!(Outcome::of(with_usage).await.last()["usage"]["total_tokens"], 25);
}

#[tokio::test]
async fn behind_a_finish_reason_silence_is_no_error() {
    let script = Script::chunked().piece("안녕").finish("stop").play(Play::Silence);
    let outcome = Outcome::with(script, |timeouts| timeouts.total = Duration::from_millis(800)).await;
    outcome.assert_end(&["안녕"], Some("stop"));
    outcome.upstream.left().await;
}

#[tokio::test]
async fn done_is_proof_without_a_finish_reason() {
    for script in
        [Script::chunked().role().piece("안녕").done().end(), Script::until_close().piece("안녕").done().end()]
    {
        Outcome::of(script).await.assert_end(&["안녕"], None);
    }
    Outcome::of(Script::chunked().done().end()).await.assert_error("upstream_truncated", 502, true, &[]);
}

#[tokio::test]
async fn a_finish_reason_of_the_upstreams_own_is_not_passed_on() {
    let script = Script::chunked().piece("x").finish(PRIVATE).done().end();
    Outcome::of(script).await.assert_end(&["x"], Some("unknown"));
}

#[tokio::test]
async fn what_comes_behind_done_is_ignored() {
    let behind = Script::chunked().role().piece("안녕").finish("stop").done();
    for script in [
        behind.clone().piece("more").finish("length").end(),
        behind.clone().event(&error(PRIVATE, &json!(500))).play(Play::Reset),
        behind.clone().bytes(b"\xff\xff not an event").end(),
        behind.clone().play(Play::Silence),
        behind.clone().play(Play::Close),
    ] {
        Outcome::of(script).await.assert_end(&["안녕"], Some("stop"));
    }
    let together = format!("data: [DONE]\n\ndata: {}\n\n", delta(&json!({"content": "more"}), &Value::Null));
    Outcome::of(Script::chunked().piece("a").bytes(together.as_bytes()).end()).await.assert_end(&["a"], None);
}

#[tokio::test]
async fn a_stream_that_goes_on_behind_done_spoils_no_later_request() {
    for transport in TRANSPORTS {
        let upstream = ScriptedUpstream::over(transport).await;
        upstream.then(Script::chunked().piece("a").done().piece(PRIVATE).play(Play::Silence));
        let app = upstream.app().await;
        read(&app, 0, &upstream).await;
        assert_eq!(app.chat(&json!({"message": "x"})).await.json()["response"], "안녕하세요! 무엇을 도와드릴까요?");
    }
}

#[tokio::test]
async fn an_event_that_is_not_json_is_an_error_and_is_not_quoted() {
    let malformed = [
        format!("{{\"choices\":[{{\"delta\":{{\"content\":\"{PRIVATE}"),
        format!("{PRIVATE} of a proxy"),
        format!("oices\":\"{PRIVATE}\"}}"),
        format!("[\"{PRIVATE}\"]"),
        format!("\"{PRIVATE}\""),
        format!("{{}} {PRIVATE}"),
        format!("[done] {PRIVATE}"),
    ];
    let rest = format!("data: {}\n\ndata: [DONE]\n\n", delta(&json!({"content": "more"}), &json!("stop")));
    for data in malformed {
        for pieces in [&[][..], &["안", "녕"]] {
            // The rest of the answer comes with it, in the same packet.
            let together = format!("data: {data}\n\n{rest}");
            let script = Script::chunked().role().pieces(pieces).bytes(together.as_bytes()).end();
            let words = Outcome::of(script).await.assert_error("upstream_protocol", 502, true, pieces);
            assert_eq!(words, "OpenAI API gave something that is not an answer: a stream event that is not JSON");
        }
    }
}

#[tokio::test]
async fn a_line_of_more_than_16_mebibytes_is_an_error() {
    let long = vec![b'x'; 16 * 1024 * 1024];
    for start in [&b"data: "[..], b": ", b""] {
        let script = Script::chunked().piece("안녕").bytes(&[start, &long, b"x"].concat()).play(Play::Silence);
        let outcome = Outcome::of(script).await;
        let words = outcome.assert_error("upstream_too_large", 502, false, &["안녕"]);
        assert_eq!(words, "OpenAI API gave more than 16777216 bytes");
        outcome.upstream.left().await;
    }
}

#[tokio::test]
async fn an_answer_of_more_than_16_mebibytes_is_an_error_with_what_fits() {
    let piece = "x".repeat(1_000_000);
    let script = (0..17).fold(Script::chunked(), |script, _| script.piece(&piece)).play(Play::Silence);
    let outcome = Outcome::over(Transport::Plain, script, |_| {}).await;
    let words = outcome.assert_error("too_large", 502, false, &vec![piece.as_str(); 16]);
    assert_eq!(words, "the answer has more than 16777216 bytes");
    outcome.upstream.left().await;
}

/// A comment every now and then, for longer than any test waits.
fn only_comments(script: Script) -> Script {
    let comment = b": keep-alive\n\n";
    let every = Duration::from_millis(50);
    let count = PATIENCE.as_millis() / every.as_millis();
    (0..count).fold(script, |script, _| script.bytes(comment).play(Play::Pause(every)))
}

#[tokio::test]
async fn comments_are_no_first_word() {
    let limit = Duration::from_millis(600);
    for start in [Script::chunked(), Script::chunked().role()] {
        let began = Instant::now();
        let outcome = Outcome::with(only_comments(start), |timeouts| timeouts.first_token = limit).await;
        let words = outcome.assert_error("upstream_timeout", 504, true, &[]);
        assert_eq!(words, "OpenAI API gave no first word within 600ms");
        assert!((limit..PATIENCE / 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn comments_are_no_further_word() {
    let limit = Duration::from_millis(200);
    let began = Instant::now();
    let script = only_comments(Script::chunked().role().piece("안녕"));
    let outcome = Outcome::with(script, |timeouts| timeouts.idle = limit).await;
    let words = outcome.assert_error("upstream_stalled", 504, true, &["안녕"]);
    assert_eq!(words, "OpenAI API gave no further word within 200ms");
    assert!((limit..PATIENCE / 2).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_flood_of_comments_does_not_hold_off_the_limits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/v1", listener.local_addr().unwrap()).parse().unwrap();
    let flood = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let comments = ": keep-alive\n\n".repeat(1000);
        let mut bytes = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec();
        while stream.write_all(&bytes).await.is_ok() {
            bytes = comments.clone().into_bytes();
        }
    });
    let limit = Duration::from_millis(200);
    let app = TestApp::start_with(&base, |config| config.upstream.timeouts.first_token = limit).await;
    let began = Instant::now();
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(events[1].data["code"], "upstream_timeout");
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    flood.await.expect("the service leaves, and writing fails");
}

#[tokio::test]
async fn a_silent_upstream_is_left() {
    let limit = Duration::from_millis(150);
    let silent = Outcome::with([Play::Silence], |timeouts| timeouts.first_token = limit).await;
    let words = silent.assert_error("upstream_timeout", 504, true, &[]);
    assert_eq!(words, "OpenAI API gave no answer within 150ms");
    silent.upstream.left().await;

    let script = Script::chunked().piece("안녕").play(Play::Silence);
    let stalled = Outcome::with(script, |timeouts| timeouts.idle = limit).await;
    stalled.assert_error("upstream_stalled", 504, true, &["안녕"]);
    stalled.upstream.left().await;
}

#[tokio::test]
async fn a_stream_that_drips_for_ever_ends_at_the_total_limit() {
    let limit = Duration::from_millis(900);
    let every = Duration::from_millis(50);
    let drip = |script: Script, _| script.piece("x").play(Play::Pause(every));
    let script = (0..PATIENCE.as_millis() / every.as_millis()).fold(Script::chunked(), drip);
    for transport in TRANSPORTS {
        let began = Instant::now();
        let outcome = Outcome::over(transport, script.clone(), |timeouts| timeouts.total = limit).await;
        let pieces = contents(&outcome.events);
        assert!(!pieces.is_empty() && pieces.len() <= 19, "{}", pieces.len());
        let words = outcome.assert_error("upstream_deadline", 504, true, &pieces);
        assert_eq!(words, "OpenAI API gave no end of its answer within 900ms");
        assert!((limit..PATIENCE / 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn what_is_merely_odd_is_read_over() {
    let script = Script::chunked()
        .bytes(b"\xef\xbb\xbf: a comment first\n\nid: 7\nretry: 1\nother: x\n\n")
        .event(r#"{"choices":[]}"#)
        .event(r#"{"choices":null,"usage":null}"#)
        .event("{}")
        .event(r#"{"choices":[{}]}"#)
        .event(r#"{"choices":[{"index":0,"delta":{},"unknown":[{"deep":{"er":1}}]}],"unknown":null}"#)
        .event(r#"{"choices":[{"index":0,"delta":{"content":null,"role":"assistant","tool_calls":[]}}]}"#)
        .event(r#"{"choices":[{"index":0,"delta":{"content":7}}]}"#)
        .event(r#"{"choices":[{"index":1,"delta":{"content":"another answer"},"finish_reason":"length"}]}"#)
        .event(r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}],"usage":"odd"}"#)
        .bytes(b"event: message\ndata: {\"choices\":[{\"delta\":\ndata: {\"content\":\"b\"}}]}\n\n")
        .bytes(b"data:{\"choices\":[{\"delta\":{\"content\":\"c\"}}]}\r\n\r\n")
        .bytes(b"data: {\"choices\":[{\"delta\":{\"content\":\"d\"}}]}\r\r")
        .event(r#"{"choices":[{"delta":{"content":[{"type":"text","text":"e"}]}}]}"#)
        .event(r#"{"choices":[{"delta":{"content":"f"},"finish_reason":"stop"}]}"#)
        .done()
        .end();
    let outcome = Outcome::of(script).await;
    outcome.assert_end(&["a", "b", "c", "d", "e", "f"], Some("stop"));
}

#[tokio::test]
async fn a_refusal_comes_in_the_models_own_words() {
    let refusal = |text: &str| delta(&json!({"refusal": text}), &Value::Null);
    let script = Script::chunked().role().event(&refusal("I can't")).event(&refusal(" help.")).finish("stop");
    Outcome::of(script.done().end()).await.assert_end(&["I can't", " help."], Some("stop"));
}

#[tokio::test]
async fn an_answer_without_a_word_ends_in_good_order() {
    let script = Script::chunked().role().finish("stop").usage().done().end();
    let outcome = Outcome::of(script).await;
    outcome.assert_end(&[], Some("stop"));
    assert_eq!(outcome.events.len(), 2, "START and END");
}

#[tokio::test]
async fn any_text_arrives_as_it_was_sent() {
    let pieces = [
        " ",
        "\u{0}",
        "\n\n",
        "\r\n",
        "e\u{301}",
        "👩‍👩‍👧‍👦",
        "🇰",
        "🇷",
        "\u{202e}rtl",
        "data: x\n\nevent: evil\n\n",
        "[DONE]",
        "\"\\/\u{8}\u{2028}\u{fffe}",
        "</script>",
        "{\"type\":\"END\"}",
    ];
    Outcome::of(Script::answer(&pieces)).await.assert_end(&pieces, Some("stop"));
}

#[tokio::test]
async fn invalid_utf8_becomes_the_replacement_character() {
    let event = |text: &[u8]| [&b"data: {\"choices\":[{\"delta\":{\"content\":\""[..], text, b"\"}}]}\n\n"].concat();
    let script = Script::chunked().bytes(&event(b"a\xff")).bytes(&event(b"\xec\x95b")).finish("stop").done().end();
    Outcome::of(script).await.assert_end(&["a\u{fffd}", "\u{fffd}b"], Some("stop"));
}

#[tokio::test]
async fn a_body_that_is_no_stream_is_an_error_and_is_not_quoted() {
    let html = "content-type: text/html; charset=utf-8\r\n";
    let page = format!("<html>{PRIVATE}</html>");
    let whole = answer(PRIVATE).to_string();
    let limited = error("slow", &json!(429));
    for (headers, body, code, status) in [
        (html, page.as_str(), "upstream_protocol", 502),
        ("", page.as_str(), "upstream_protocol", 502),
        ("", &whole[..whole.len() - 9], "upstream_protocol", 502),
        ("", limited.as_str(), "upstream_rate_limited", 429),
        ("content-type: text/plain\r\n", page.as_str(), "upstream_truncated", 502),
        ("content-type: text/event-stream\r\n", &whole[..whole.len() - 9], "upstream_truncated", 502),
        ("content-type: text/event-stream\r\n", "", "upstream_truncated", 502),
    ] {
        let outcome = Outcome::of([Play::Send(response(200, headers, body))]).await;
        outcome.assert_error(code, status, true, &[]);
    }
}

#[tokio::test]
async fn a_stream_by_another_name_is_read_all_the_same() {
    for content_type in ["", "content-type: text/plain\r\n", "content-type: application/octet-stream\r\n"] {
        let script = Script::with_type(content_type).role().piece("안녕").finish("stop").done().end();
        Outcome::of(script).await.assert_end(&["안녕"], Some("stop"));
    }
}

#[tokio::test]
async fn wherever_the_bytes_are_cut_the_events_are_the_same() {
    let events = [
        format!("data: {}\n\n", delta(&json!({"content": "안녕"}), &Value::Null)),
        ": comment\r\n\r\n".to_owned(),
        "data: {\"choices\":[{\"delta\":\r\ndata: {\"content\":\"👩‍👩‍👧\\n\\ud83d\\ude00\"}}]}\r\n\r\n".to_owned(),
        "data: {\"choices\":[{\"delta\":{\"content\":\"é\"}}]}\r\r".to_owned(),
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n".to_owned(),
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3}}\n\n"
            .to_owned(),
        "data: [DONE]\n\n".to_owned(),
    ];
    let body = events.concat().into_bytes();
    for transport in [Transport::Plain, Transport::Http2] {
        cut_anywhere(transport, &body).await;
    }
}

async fn cut_anywhere(transport: Transport, body: &[u8]) {
    let upstream = ScriptedUpstream::over(transport).await;
    let app = upstream.app().await;
    let mut expected = None;
    let whole = [Script::chunked().bytes(body)];
    // Each part is an HTTP chunk of its own, and those are handed over one by one however TCP carries them.
    let in_two = (1..body.len()).map(|at| Script::chunked().bytes(&body[..at]).bytes(&body[at..]));
    let byte_by_byte = body.chunks(1).fold(Script::chunked(), Script::bytes);
    for script in whole.into_iter().chain(in_two).chain([byte_by_byte]) {
        let shown = format!("{script:?}");
        upstream.then(script.end());
        let mut reading = app.chat_as_stream(&json!({"message": "x"})).await;
        let events = reading.rest().await;
        assert_eq!(reading.text(), format!("{RETRY}{}", text(&events)), "nothing but events");
        assert_eq!(contents(&events), ["안녕", "👩‍👩‍👧\n😀", "é"], "{shown}");
        let behind_start = text(&events[1..]);
        assert_eq!(expected.get_or_insert(behind_start.clone()), &behind_start, "{shown}");
    }
    assert_eq!(upstream.seen().len(), body.len() + 1);
}

#[tokio::test]
async fn a_cut_inside_a_packet_of_http_is_invisible_too() {
    let script: Vec<_> = Script::answer(&["안녕", "하세요!"]).into_iter().collect();
    let bytes: Vec<u8> = script
        .into_iter()
        .flat_map(|play| match play {
            Play::Send(bytes) => bytes,
            other => panic!("{other:?}"),
        })
        .collect();
    // The pause only makes it likely that the halves travel alone; the outcome must not depend on it.
    for at in (1..bytes.len()).step_by(29) {
        let (head, tail) = bytes.split_at(at);
        let script = [Play::Send(head.to_vec()), Play::Pause(Duration::from_millis(1)), Play::Send(tail.to_vec())];
        let outcome = Outcome::over(Transport::Plain, script, |_| {}).await;
        outcome.assert_end(&["안녕", "하세요!"], Some("stop"));
    }
}

#[tokio::test]
async fn a_stream_that_outlives_the_service_ends_with_an_error() {
    for transport in TRANSPORTS {
        outlives_the_service(ScriptedUpstream::over(transport).await).await;
    }
}

async fn outlives_the_service(upstream: ScriptedUpstream) {
    upstream.then(Script::chunked().piece("안녕").play(Play::Silence));
    let mut app = upstream.app_with(|config| config.limits.shutdown_grace = Duration::from_millis(150)).await;
    let mut reading = app.chat_as_stream(&json!({"message": "x"})).await;
    let mut events = reading.take(2).await;
    let served = app.stop();
    events.extend(reading.rest().await);
    let outcome = Outcome { events, upstream };
    let words = outcome.assert_error("shutdown", 503, true, &["안녕"]);
    assert_eq!(words, "the service is stopping");
    outcome.upstream.left().await;
    assert!(!served.await.unwrap(), "the grace was not enough");
}

#[tokio::test]
async fn a_failed_stream_spoils_no_later_one() {
    for transport in TRANSPORTS {
        let upstream = ScriptedUpstream::over(transport).await;
        let app = upstream.app().await;
        upstream
            .then([Play::Reset])
            .then_status(500, "", "{}")
            .then(Script::chunked().piece("a").event("{"))
            .then(Script::chunked().piece("b").play(Play::Close))
            .then(Script::answer(&["c"]));
        for expected in ["ERROR", "ERROR", "ERROR", "ERROR", "END"] {
            let events = read(&app, 0, &upstream).await;
            assert_eq!(events.last().unwrap().kind(), expected, "{transport:?}");
        }
    }
}
