//! Streams: begun, read by whoever wants, from wherever, and stopped for certain.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    PATIENCE, Play, ScriptedUpstream, TestApp,
    events::{Event, RETRY, Reading, Script, contents, text},
};

const NOT_FOUND: &str = "스트리밍 세션을 찾을 수 없습니다";

async fn start() -> (ScriptedUpstream, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    (upstream, app)
}

fn question() -> Value {
    json!({"message": "안녕"})
}

/// The contract's example, as it stands there.
fn example(id: &str) -> String {
    format!(
        "retry: 1000\n\
         event: chunk\ndata: {{\"type\":\"START\",\"stream_id\":\"{id}\"}}\nid: 1\n\n\
         event: chunk\ndata: {{\"type\":\"CHUNK\",\"content\":\"안녕\"}}\nid: 2\n\n\
         event: chunk\ndata: {{\"type\":\"CHUNK\",\"content\":\"하세요!\"}}\nid: 3\n\n\
         event: chunk\ndata: {{\"type\":\"END\",\"full_content\":\"안녕하세요!\",\"finish_reason\":\"stop\",\
         \"usage\":{{\"prompt_tokens\":10,\"completion_tokens\":15,\"total_tokens\":25}}}}\nid: 4\n\n"
    )
}

fn end_of(events: &[Event]) -> &Value {
    &events.last().expect("a last event").data
}

/// Asks for the state until `is_it`. For what the service does in its own time and nobody is told.
async fn state_when(app: &TestApp, id: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let asking = async {
        loop {
            let state = app.state(id).await;
            if is_it(&state) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asking).await.expect("the state comes about")
}

/// A reader that can leave and know that the service has noticed.
struct Leaver(TcpStream);

impl Leaver {
    /// Reads the stream up to `until`.
    async fn reading(app: &TestApp, id: &str, until: &str) -> Self {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        let request = format!("GET /chat/stream/{id} HTTP/1.1\r\nHost: {}\r\n\r\n", app.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        let reading = async {
            while !String::from_utf8_lossy(&read).contains(until) {
                assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "{}", String::from_utf8_lossy(&read));
            }
        };
        timeout(PATIENCE, reading).await.expect("so much of the stream");
        Self(stream)
    }

    /// The service closes its side when it has seen this side closed, and with it the reader is gone.
    async fn leave(mut self) {
        self.0.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("the service lets go");
    }
}

#[tokio::test]
async fn a_stream_reads_exactly_as_the_contract_shows_it() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["안녕", "하세요!"]));
    let id = app.begin(&question()).await;
    let mut reading = app.events(&id).await;
    let events = reading.rest().await;
    assert_eq!(events.len(), 4);
    assert_eq!(reading.text(), example(&id));

    let header = |name: &str| reading.headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(header("cache-control"), Some("no-cache, no-transform"));
    assert_eq!(header("x-accel-buffering"), Some("no"));
    assert_eq!(header("content-length"), None);
    assert!(header("x-request-id").is_some());
}

#[tokio::test]
async fn a_stream_is_answered_with_its_address_before_upstream_says_a_word() {
    let (upstream, app) = start().await;
    upstream.then([Play::Silence]);
    let body = question().to_string().into_bytes();
    let answer = app.request(Method::POST, "/chat/stream", &[("content-type", "application/json")], body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let id = answer.json()["stream_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.text(), format!("{{\"stream_id\":\"{id}\",\"status\":\"started\"}}"));
    let is_hyphen = |(at, c): (usize, char)| (c == '-') == matches!(at, 8 | 13 | 18 | 23);
    assert!(id.len() == 36 && id.chars().enumerate().all(is_hyphen), "{id}");
    assert_eq!(&id[14..15], "4", "a random UUID");

    let first = app.events(&id).await.next().await.unwrap();
    assert_eq!(first.data, json!({"type": "START", "stream_id": id}), "also before the first word");
}

#[tokio::test]
async fn upstream_is_asked_to_stream_and_to_say_what_it_cost() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["x"])).then(Script::answer(&["x"]));
    let mut request = json!({
        "message": "now", "system_prompt": "be brief", "model": "gpt-4o", "temperature": 0.25, "max_tokens": 7,
        "conversation_history": [{"role": "user", "content": "before"}], "on_disconnect": "continue",
    });
    app.events(&app.begin(&request).await).await.rest().await;
    request["on_disconnect"] = Value::Null;
    app.chat_as_stream(&request).await.rest().await;

    let expected = json!({
        "model": "gpt-4o", "temperature": 0.25, "max_tokens": 7,
        "stream": true, "stream_options": {"include_usage": true},
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "before"},
            {"role": "user", "content": "now"},
        ],
    });
    let seen = upstream.seen();
    assert_eq!(seen.len(), 2, "one call upstream for each");
    for seen in seen {
        assert_eq!((seen.line.as_str(), &seen.body), ("POST /v1/chat/completions", &expected));
    }
}

#[tokio::test]
async fn upstream_is_asked_at_once_whoever_reads() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["unread"]));
    let id = app.begin(&question()).await;
    let state = state_when(&app, &id, |state| state["status"] != "running").await;
    assert_eq!((&state["status"], &state["content"]), (&json!("finished"), &json!("unread")));
}

#[tokio::test]
async fn every_cursor_gets_exactly_the_rest_during_the_generation_and_after() {
    let (upstream, app) = start().await;
    let pieces = ["안", "녕", "👩‍👩‍👧", "\n\ndata: x\n\n", "끝"];
    let script = pieces.iter().fold(Script::chunked().role(), |script, piece| script.piece(piece).hold());
    upstream.then(script.finish("stop").usage().done().end());
    let id = app.begin(&question()).await;

    let mut first = app.events(&id).await;
    let mut all = first.take(1).await;
    let mut readings: Vec<(u64, Reading)> = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let event = first.next().await.unwrap();
        assert_eq!(event.content(), *piece);
        all.push(event);
        // The log has exactly START and the pieces so far; upstream holds its breath.
        let last = u64::try_from(index + 2).unwrap();
        for cursor in 0..=last {
            readings.push((cursor, app.events_behind(&id, cursor).await.expect("it runs")));
        }
        upstream.release();
    }
    all.extend(first.rest().await);
    let last = all.last().unwrap().id;
    assert_eq!((last, all.last().unwrap().kind()), (7, "END"));
    for cursor in 0..last {
        readings.push((cursor, app.events_behind(&id, cursor).await.expect("something is left")));
    }

    assert_eq!(readings.len(), 3 + 4 + 5 + 6 + 7 + 7);
    for (cursor, mut reading) in readings {
        reading.rest().await;
        let behind: Vec<_> = all.iter().filter(|event| event.id > cursor).cloned().collect();
        assert_eq!(reading.text(), format!("{RETRY}{}", text(&behind)), "behind {cursor}");
    }
    assert_eq!(upstream.seen().len(), 1, "one call upstream for all of them");
}

#[tokio::test]
async fn the_cursor_may_stand_in_the_query_and_the_header_wins() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["a", "b", "c"]));
    let id = app.begin(&question()).await;
    app.events(&id).await.rest().await;
    for (header, query, first) in [
        (None, "?last_event_id=2", 3),
        (None, "?x=y&last_event_id=3", 4),
        (Some("1"), "?last_event_id=3", 2),
        (Some("4"), "?last_event_id=nonsense", 5),
        (Some("0"), "", 1),
        (None, "", 1),
        // As replacements of a browser's EventSource write it, which cannot send headers either.
        (None, "?lastEventId=3", 4),
        (None, "?evs_last_event_id=3&evs_preamble", 4),
        // A client that comes back writes its own behind what the page's address has.
        (None, "?last_event_id=1&lastEventId=3", 4),
        (None, "?lastEventId=3&last_event_id=1", 4),
        (None, "?lastEventId=3&lastEventId=1", 4),
        (None, "?last_event_id=3&lastEventId=", 4),
        (Some("1"), "?lastEventId=3", 2),
        (None, "?last_event_id=%33", 4),
        (None, "?last%45ventId=%33", 4),
        (None, "?last_event_id=%zz", 1),
        (None, "?LASTEVENTID=3", 1),
    ] {
        let mut reading = app.events_with(&id, header, query).await.expect("something is left");
        assert_eq!(reading.rest().await[0].id, first, "{header:?} {query}");
    }
    assert!(app.events_with(&id, None, "?last_event_id=5").await.is_none(), "the end counts in the query too");
    assert!(app.events_with(&id, None, "?lastEventId=5").await.is_none());
    assert!(app.events_with(&id, None, "?evs_last_event_id=%35").await.is_none());
    assert!(app.events_with(&id, Some("5"), "?last_event_id=1").await.is_none());
}

#[tokio::test]
async fn a_cursor_that_makes_no_sense_begins_again_at_start() {
    let (upstream, app) = start().await;
    upstream.then(Script::chunked().piece("a").hold().piece("b").finish("stop").done().end());
    let id = app.begin(&question()).await;
    let mut reading = app.events(&id).await;
    reading.take(2).await;

    let nonsense = [
        "x",
        "-1",
        "+1",
        "1.0",
        "1-0",
        " ",
        "0x1",
        "٣",
        "99999999999999999999999",
        "3e458467-c21f-4429-a90d-e0d2f496e3b2",
    ];
    let mut during = Vec::new();
    for cursor in nonsense.into_iter().chain(["3", "4000", "18446744073709551615"]) {
        // A header cannot say everything that a query can.
        let is_header = cursor.is_ascii() && cursor != " ";
        let query = format!("?last_event_id={cursor}");
        if is_header {
            during.push((cursor, app.events_with(&id, Some(cursor), "").await.expect("it runs")));
        }
        during.push((cursor, app.events_with(&id, None, &query).await.expect("it runs")));
    }
    upstream.release();
    reading.rest().await;
    for (cursor, mut late) in during {
        late.rest().await;
        assert_eq!(late.text(), reading.text(), "{cursor:?} while it ran");
    }
    for cursor in nonsense {
        let mut late = app.events_with(&id, None, &format!("?last_event_id={cursor}")).await.expect("events");
        late.rest().await;
        assert_eq!(late.text(), reading.text(), "{cursor:?} after the end");
    }
}

#[tokio::test]
async fn at_the_end_of_an_ended_stream_there_is_nothing_to_read() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["a"])).then_status(500, "", "{}");
    for last in [3_u64, 2] {
        let id = app.begin(&question()).await;
        app.events(&id).await.rest().await;
        let cursor = last.to_string();
        let path = format!("/chat/stream/{id}");
        let answer = app.request(Method::GET, &path, &[("last-event-id", &cursor)], Vec::new()).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
        assert_eq!(answer.header("content-type"), None);
    }
}

#[tokio::test]
async fn past_the_end_of_an_ended_stream_a_cursor_makes_no_sense_either() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["a"])).then_status(500, "", "{}");
    for last in [3, 2] {
        let id = app.begin(&question()).await;
        let all = app.events(&id).await.rest().await;
        for cursor in [last + 1, 4000, u64::MAX] {
            let mut reading = app.events_behind(&id, cursor).await.expect("everything");
            assert_eq!(reading.rest().await, all, "{cursor}");
        }
        assert!(app.events_behind(&id, last).await.is_none(), "at the end");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_at_any_byte_has_shown_no_id_before_all_of_its_event() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["안녕", "하세요!", "id: 9\n\nid: 9\n"]));
    let id = app.begin(&question()).await;
    let mut reading = app.events(&id).await;
    let events = reading.rest().await;
    let whole = reading.text().as_bytes().to_vec();
    for cut in 0..=whole.len() {
        // A reader that takes an id as soon as its line is there, and data as soon as theirs is.
        let (mut id, mut data) = (0, 0);
        for line in whole[..cut].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            let line = std::str::from_utf8(line).unwrap().trim_end_matches('\n');
            if let Some(told) = line.strip_prefix("id: ") {
                id = told.parse().unwrap();
            } else if let Some(told) = line.strip_prefix("data: ") {
                assert_eq!(serde_json::from_str::<Value>(told).unwrap(), events[data].data);
                data += 1;
            }
        }
        assert!(id == data || id + 1 == data, "cut at {cut}: id {id} with {data} events");
    }
}

#[tokio::test]
async fn no_empty_line_stands_where_there_was_no_data() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["a", "\n\n", "b"]));
    let mut readings = vec![app.chat_as_stream(&question()).await];
    let id = readings[0].take(1).await[0].data["stream_id"].as_str().unwrap().to_owned();
    for cursor in 0..5 {
        readings.push(app.events_behind(&id, cursor).await.expect("something is left"));
    }
    for mut reading in readings {
        reading.rest().await;
        let mut has_data = false;
        for line in reading.text().lines() {
            assert!(!line.is_empty() || has_data, "{}", reading.text());
            has_data = !line.is_empty() && (has_data || line.starts_with("data: "));
        }
    }
}

#[tokio::test]
async fn whoever_does_not_want_events_gets_none() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["a"]));
    let id = app.begin(&question()).await;
    app.events(&id).await.rest().await;
    let path = format!("/chat/stream/{id}");
    for (accept, expected) in [
        ("text/event-stream;q=0, application/json", "application/json"),
        ("application/json, text/event-stream; q=0.000", "application/json"),
        ("text/event-stream;q=0, */*", "application/json"),
        ("text/event-stream;q=0.001, application/json", "text/event-stream; charset=utf-8"),
        ("application/json;q=0", "text/event-stream; charset=utf-8"),
        ("text/event-stream;charset=utf-8;Q=1", "text/event-stream; charset=utf-8"),
        ("*/*", "text/event-stream; charset=utf-8"),
    ] {
        let answer = app.request(Method::GET, &path, &[("accept", accept)], Vec::new()).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some(expected)), "{accept}");
    }
    let headers = [("content-type", "application/json"), ("accept", "text/event-stream;q=0, application/json")];
    let answer = app.request(Method::POST, "/chat", &headers, question().to_string().into_bytes()).await;
    assert_eq!(answer.header("content-type"), Some("application/json"), "{}", answer.text());
}

#[tokio::test]
async fn the_state_so_far_is_told_as_json() {
    let (upstream, app) = start().await;
    upstream.then(Script::chunked().role().piece("안녕").hold().piece("하세요!").finish("stop").usage().done().end());
    let id = app.begin(&question()).await;
    let mut reading = app.events(&id).await;
    reading.take(2).await;
    let answer = app.get_state(&id).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let running = format!(
        "{{\"stream_id\":\"{id}\",\"status\":\"running\",\"content\":\"안녕\",\"last_event_id\":2,\
         \"finish_reason\":null,\"usage\":null}}"
    );
    assert_eq!(answer.text(), running);

    upstream.release();
    reading.rest().await;
    let finished = format!(
        "{{\"stream_id\":\"{id}\",\"status\":\"finished\",\"content\":\"안녕하세요!\",\"last_event_id\":4,\
         \"finish_reason\":\"stop\",\"usage\":{{\"prompt_tokens\":10,\"completion_tokens\":15,\"total_tokens\":25}}}}"
    );
    assert_eq!(app.get_state(&id).await.text(), finished);

    let path = format!("/chat/stream/{id}");
    let both = [("accept", "application/json, text/event-stream"), ("last-event-id", "3")];
    let events = app.request(Method::GET, &path, &both, Vec::new()).await;
    assert!(
        events.text().starts_with("retry: 1000\nevent: chunk\n"),
        "who takes events gets events: {}",
        events.text()
    );
}

#[tokio::test]
async fn chat_gives_the_same_stream_in_one_request() {
    let (upstream, app) = start().await;
    upstream.then(Script::chunked().role().piece("안녕").hold().piece("하세요!").finish("stop").usage().done().end());
    let mut reading = app.chat_as_stream(&question()).await;
    for (name, value) in [("cache-control", "no-cache, no-transform"), ("x-accel-buffering", "no")] {
        assert_eq!(reading.headers[name], value);
    }
    let events = reading.take(2).await;
    let id = events[0].data["stream_id"].as_str().unwrap().to_owned();
    let mut other = app.events_behind(&id, 1).await.expect("it runs");
    assert_eq!(other.next().await.unwrap(), events[1]);
    upstream.release();
    reading.rest().await;
    other.rest().await;
    assert_eq!(reading.text(), example(&id));
    let mut again = app.events(&id).await;
    again.rest().await;
    assert_eq!(again.text(), example(&id), "and it can be read again by its id");
}

#[tokio::test]
async fn a_slow_reader_holds_nobody_up_and_misses_nothing() {
    let (upstream, app) = start().await;
    // Far more than the buffers between the service and a reader hold.
    let piece = "가나다라마바사아".repeat(10_000);
    let pieces = vec![piece.as_str(); 16];
    upstream.then(Script::answer(&pieces));
    let id = app.begin(&question()).await;
    let mut slow = app.events(&id).await;
    slow.take(1).await;
    let mut quick = app.events(&id).await;
    let events = quick.rest().await;
    assert!(end_of(&events)["full_content"] == piece.repeat(16), "the quick reader has everything");
    assert_eq!(app.state(&id).await["status"], "finished");
    slow.rest().await;
    assert!(slow.text() == quick.text(), "the same bytes for both");
}

#[tokio::test]
async fn a_reader_who_leaves_and_returns_gets_what_it_missed() {
    let (upstream, app) = start().await;
    upstream.then(Script::chunked().piece("a").hold().piece("b").hold().finish("stop").done().end());
    let id = app.begin(&question()).await;
    Leaver::reading(&app, &id, "id: 2\n\n").await.leave().await;
    upstream.release();
    let state = state_when(&app, &id, |state| state["last_event_id"] == 3).await;
    assert_eq!((&state["status"], &state["content"]), (&json!("running"), &json!("ab")), "it went on alone");
    upstream.release();
    let events = app.events_behind(&id, 2).await.expect("something is left").rest().await;
    assert_eq!(contents(&events), ["b"]);
    assert_eq!((&end_of(&events)["type"], &end_of(&events)["full_content"]), (&json!("END"), &json!("ab")));
}

#[tokio::test]
async fn with_on_disconnect_cancel_the_last_reader_takes_the_stream_along() {
    let (upstream, app) = start().await;
    upstream.then(Script::chunked().piece("안녕").play(Play::Silence));
    let id = app.begin(&json!({"message": "x", "on_disconnect": "cancel"})).await;
    let first = Leaver::reading(&app, &id, "id: 2\n\n").await;
    let second = Leaver::reading(&app, &id, "id: 2\n\n").await;
    first.leave().await;
    assert_eq!(app.state(&id).await["status"], "running", "one is left");
    second.leave().await;
    upstream.left().await;
    let state = state_when(&app, &id, |state| state["status"] != "running").await;
    assert_eq!((&state["status"], &state["content"]), (&json!("cancelled"), &json!("안녕")));
    let events = app.events(&id).await.rest().await;
    let end = json!({"type": "END", "full_content": "안녕", "finish_reason": "cancelled", "usage": null});
    assert_eq!((events.len(), end_of(&events)), (3, &end));
}

#[tokio::test]
async fn with_on_disconnect_cancel_a_caller_of_chat_takes_the_stream_along() {
    let (upstream, app) = start().await;
    upstream.then(Script::chunked().piece("안녕").play(Play::Silence));
    let mut reading = app.chat_as_stream(&json!({"message": "x", "on_disconnect": "cancel"})).await;
    let id = reading.take(2).await[0].data["stream_id"].as_str().unwrap().to_owned();
    drop(reading);
    upstream.left().await;
    let state = state_when(&app, &id, |state| state["status"] != "running").await;
    assert_eq!((&state["status"], &state["finish_reason"]), (&json!("cancelled"), &json!("cancelled")));
}

#[tokio::test]
async fn another_on_disconnect_is_a_422() {
    let (upstream, app) = start().await;
    for (value, path) in [(json!("stop"), "/chat/stream"), (json!(1), "/chat/stream"), (json!("Cancel"), "/chat")] {
        let body = json!({"message": "x", "on_disconnect": value}).to_string().into_bytes();
        let headers = [("content-type", "application/json"), ("accept", "text/event-stream")];
        let (detail, code) = app.request(Method::POST, path, &headers, body).await.error(422);
        assert_eq!(code, "invalid_request");
        let expected = json!([{
            "type": "literal_error", "loc": ["body", "on_disconnect"], "msg": "Input should be 'continue' or 'cancel'",
            "ctx": {"expected": "'continue' or 'cancel'"},
        }]);
        assert_eq!(detail, expected);
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn mistakes_in_a_stream_request_are_those_of_a_chat() {
    let (upstream, app) = start().await;
    for body in ["{}", "", "[1]", "{\"message\":", r#"{"message":1}"#, r#"{"message":"x","temperature":3}"#] {
        let headers = [("content-type", "application/json")];
        let answer = app.request(Method::POST, "/chat/stream", &headers, body.into()).await;
        let whole = app.chat_bytes(body.into()).await;
        assert_eq!(answer.error(422), whole.error(422), "{body}");
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn delete_stops_the_stream_and_leaves_upstream_at_once() {
    let (upstream, app) = start().await;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        upstream.then(Script::chunked().role().piece("안녕").piece("하세").play(Play::Silence));
        let id = app.begin(&question()).await;
        let mut readings = [app.events(&id).await, app.events_behind(&id, 1).await.expect("it runs")];
        readings[0].take(3).await;

        let asked = Instant::now();
        let (answer, ()) = tokio::join!(app.cancel(&id), upstream.left());
        slowest = slowest.max(asked.elapsed());

        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let expected = format!("{{\"message\":\"스트리밍이 중단되었습니다\",\"stream_id\":\"{id}\"}}");
        assert_eq!(answer.text(), expected);
        let end = json!({"type": "END", "full_content": "안녕하세", "finish_reason": "cancelled", "usage": null});
        for reading in &mut readings {
            assert_eq!(end_of(&reading.rest().await), &end);
        }
        let state = app.state(&id).await;
        assert_eq!((&state["status"], &state["content"]), (&json!("cancelled"), &json!("안녕하세")));
        assert_eq!(app.cancel(&id).await.error(404).0, NOT_FOUND, "a second time");
        assert!(app.events_behind(&id, 4).await.is_none(), "nothing comes behind");
    }
    println!("DELETE to the upstream's connection being closed: {slowest:?} at most");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[tokio::test]
async fn a_stream_can_be_stopped_before_its_first_word_and_before_upstream_answers() {
    let (upstream, app) = start().await;
    for script in [vec![Play::Silence], Script::chunked().role().play(Play::Silence).into_iter().collect()] {
        upstream.then(script);
        let id = app.begin(&question()).await;
        upstream.arrived(upstream.seen().len().max(1)).await;
        let mut reading = app.events(&id).await;
        reading.take(1).await;
        let (answer, ()) = tokio::join!(app.cancel(&id), upstream.left());
        assert_eq!(answer.status, 200);
        let end = json!({"type": "END", "full_content": "", "finish_reason": "cancelled", "usage": null});
        assert_eq!(end_of(&reading.rest().await), &end);
    }
}

#[tokio::test]
async fn what_has_ended_cannot_be_stopped() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["a"])).then_status(500, "", "{}");
    for status in ["finished", "failed"] {
        let id = app.begin(&question()).await;
        let mut reading = app.events(&id).await;
        reading.rest().await;
        let (detail, code) = app.cancel(&id).await.error(404);
        assert_eq!((detail, code.as_str()), (json!(NOT_FOUND), "stream_not_found"));
        assert_eq!(app.state(&id).await["status"], status);
        let mut again = app.events(&id).await;
        again.rest().await;
        assert_eq!(again.text(), reading.text());
    }
}

#[tokio::test]
async fn a_stream_that_does_not_exist_is_a_404_whatever_it_is_called() {
    let (upstream, app) = start().await;
    upstream.then(Script::answer(&["a"]));
    let known = app.begin(&question()).await;
    let (simple, braced) = (known.replace('-', ""), format!("%7B{known}%7D"));
    let long = "a".repeat(5000);
    for id in [
        "3e458467-c21f-4429-a90d-e0d2f496e3b2",
        "00000000-0000-0000-0000-000000000000",
        "nope",
        "1",
        "%20",
        "%00",
        "%ff%fe",
        "..%2F..%2Fmodels",
        "스트림",
        "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz",
        &simple,
        &braced,
        &long,
    ] {
        let path = format!("/chat/stream/{id}");
        for method in [Method::GET, Method::DELETE] {
            let (detail, code) = app.request(method, &path, &[], Vec::new()).await.error(404);
            assert_eq!((detail, code.as_str()), (json!(NOT_FOUND), "stream_not_found"), "{id}");
        }
        assert_eq!(app.get_state(id).await.error(404).0, NOT_FOUND, "{id}");
    }
    assert_eq!(app.events(&known.to_uppercase()).await.rest().await.len(), 3, "a UUID in either case is the same one");
}

#[tokio::test]
async fn head_is_no_reader() {
    let (upstream, app) = start().await;
    upstream.then(Script::chunked().piece("a").hold().finish("stop").done().end());
    let id = app.begin(&json!({"message": "x", "on_disconnect": "cancel"})).await;
    state_when(&app, &id, |state| state["last_event_id"] == 2).await;
    let path = format!("/chat/stream/{id}");
    let answer = app.request(Method::HEAD, &path, &[], Vec::new()).await;
    assert_eq!(answer.status, 405);
    assert!(answer.body.is_empty());
    upstream.release();
    let events = app.events(&id).await.rest().await;
    assert_eq!(end_of(&events)["finish_reason"], "stop", "whoever only asked did not take the stream along");
}

#[tokio::test]
async fn other_methods_on_a_stream_are_405() {
    let (_upstream, app) = start().await;
    for (path, method) in [
        ("/chat/stream", Method::GET),
        ("/chat/stream", Method::DELETE),
        ("/chat/stream/3e458467-c21f-4429-a90d-e0d2f496e3b2", Method::POST),
        ("/chat/stream/3e458467-c21f-4429-a90d-e0d2f496e3b2", Method::PUT),
        ("/chat/stream/3e458467-c21f-4429-a90d-e0d2f496e3b2", Method::HEAD),
    ] {
        let answer = app.request(method.clone(), path, &[], Vec::new()).await;
        assert_eq!(answer.status, 405, "{method} {path}");
        let allow = answer.header("allow").unwrap_or_else(|| panic!("no Allow for {method} {path}"));
        assert!(allow.contains(if path.ends_with("stream") { "POST" } else { "DELETE" }), "{allow}");
    }
}

#[tokio::test]
async fn a_stream_that_nobody_ever_reads_is_given_up() {
    let upstream = ScriptedUpstream::start().await;
    // Long enough for the upstream's first word, however busy the machine is.
    let orphan = Duration::from_secs(1);
    let app = TestApp::start_with(&upstream.base_url, |config| config.streams.orphan = orphan).await;
    upstream.then(Script::chunked().piece("안녕").play(Play::Silence));
    let id = app.begin(&question()).await;
    upstream.left().await;
    let state = state_when(&app, &id, |state| state["status"] != "running").await;
    assert_eq!((&state["status"], &state["content"]), (&json!("failed"), &json!("안녕")));
    let events = app.events(&id).await.rest().await;
    let expected = json!({
        "type": "ERROR", "error": "스트리밍 응답 생성 중 오류가 발생했습니다: nobody read the stream",
        "code": "abandoned", "status": 408, "retryable": true, "partial": "안녕",
    });
    assert_eq!(end_of(&events), &expected);
}

#[tokio::test]
async fn a_stream_that_was_read_once_is_not_given_up() {
    let upstream = ScriptedUpstream::start().await;
    // Long enough for a reader to come in time, however busy the machine is.
    let orphan = Duration::from_secs(1);
    let app = TestApp::start_with(&upstream.base_url, |config| config.streams.orphan = orphan).await;
    let script = Script::chunked().piece("a").play(Play::Pause(orphan * 3 / 2)).piece("b").finish("stop").done().end();
    upstream.then(script.clone()).then(script);
    let read_once = async {
        let id = app.begin(&question()).await;
        Leaver::reading(&app, &id, "id: 1\n\n").await.leave().await;
        upstream.arrived(2).await;
        let state = state_when(&app, &id, |state| state["status"] != "running").await;
        assert_eq!((&state["status"], &state["content"]), (&json!("finished"), &json!("ab")));
    };
    let read_at_once = async { app.chat_as_stream(&question()).await.rest().await };
    let (_, events) = tokio::join!(read_once, read_at_once);
    assert_eq!(contents(&events), ["a", "b"], "POST /chat counts as well");
}

#[tokio::test]
async fn with_an_orphan_time_of_zero_no_stream_is_given_up() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.streams.orphan = Duration::ZERO).await;
    upstream.then(Script::chunked().play(Play::Pause(Duration::from_millis(100))).piece("a").finish("stop").end());
    let id = app.begin(&question()).await;
    let state = state_when(&app, &id, |state| state["status"] != "running").await;
    assert_eq!(state["status"], "finished");
}

#[tokio::test]
async fn after_its_time_an_ended_stream_is_gone_and_a_running_one_is_not() {
    let upstream = ScriptedUpstream::start().await;
    let ttl = Duration::from_millis(1);
    let app = TestApp::start_with(&upstream.base_url, |config| config.streams.ttl = ttl).await;
    upstream.then(Script::chunked().piece("a").hold().finish("stop").done().end()).then(Script::answer(&["b"]));
    let running = app.begin(&question()).await;
    app.events(&running).await.take(2).await;
    let ended = app.begin(&question()).await;
    let gone = async { while app.get_state(&ended).await.status != 404 {} };
    timeout(PATIENCE, gone).await.expect("it expires");
    for method in [Method::GET, Method::DELETE] {
        let (detail, _) = app.request(method, &format!("/chat/stream/{ended}"), &[], Vec::new()).await.error(404);
        assert_eq!(detail, NOT_FOUND);
    }
    assert_eq!(app.state(&running).await["status"], "running", "its time begins with its end");
}

#[tokio::test]
async fn running_streams_are_bounded_and_ended_ones_give_way() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.streams.max_bytes = 8 * 1024).await;
    let mut running = Vec::new();
    let refused = loop {
        upstream.then(Script::chunked().role().hold().piece("a").finish("stop").done().end());
        let body = question().to_string().into_bytes();
        let answer = app.request(Method::POST, "/chat/stream", &[("content-type", "application/json")], body).await;
        if answer.status != 200 {
            break answer;
        }
        running.push(answer.json()["stream_id"].as_str().unwrap().to_owned());
        upstream.arrived(running.len()).await;
        assert!(running.len() < 100, "there is a limit");
    };
    assert!(running.len() > 1);
    assert_eq!(refused.header("retry-after"), Some("5"));
    let (detail, code) = refused.error(503);
    assert_eq!((detail, code.as_str()), (json!("no room for another stream"), "stream_log_full"));
    assert_eq!(upstream.seen().len(), running.len(), "upstream is not asked for what has no room");
    upstream.release();
    let ended = async {
        loop {
            for (at, id) in running.iter().enumerate() {
                if app.state(id).await["status"] == "finished" {
                    return at;
                }
            }
        }
    };
    let ended = running.remove(timeout(PATIENCE, ended).await.expect("one ends"));
    assert_eq!(app.events(&ended).await.rest().await.len(), 3, "it stays until its room is wanted");
    let next = app.begin(&question()).await;
    assert_eq!(app.get_state(&ended).await.status, 404, "it gave way");
    for id in running.iter().chain([&next]) {
        assert_eq!(app.state(id).await["status"], "running", "nothing that runs gives way");
    }
    upstream.arrived(running.len() + 2).await;
    assert_eq!(app.chat(&question()).await.status, 200, "a whole answer needs no room");
}

/// A script of so many pieces of 10,000 bytes.
fn long(pieces: usize) -> Script {
    let piece = "x".repeat(10_000);
    Script::chunked().role().pieces(&vec![piece.as_str(); pieces])
}

#[tokio::test]
async fn when_the_log_is_full_the_largest_running_stream_ends_with_its_text_so_far() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.streams.max_bytes = 1 << 20).await;
    upstream.then(long(30).hold().finish("stop").done().end());
    let large = app.begin(&question()).await;
    let mut reading = app.events(&large).await;
    let mut seen = reading.take(31).await;
    upstream.then(long(10).finish("stop").done().end());
    let small = app.begin(&question()).await;
    let events = app.events(&small).await.rest().await;
    let end = &events.last().unwrap().data;
    assert_eq!((end["type"].as_str(), end["full_content"].as_str().map(str::len)), (Some("END"), Some(100_000)));
    seen.extend(reading.rest().await);
    let end = &seen.last().unwrap().data;
    let told = [&end["type"], &end["code"], &end["status"], &end["retryable"]];
    assert_eq!(told, [&json!("ERROR"), &json!("stream_log_full"), &json!(503), &json!(true)]);
    assert!(
        end["partial"] == contents(&seen).concat(),
        "its text so far: {} bytes of {}",
        end["partial"].as_str().unwrap().len(),
        contents(&seen).concat().len()
    );
    assert_eq!(contents(&seen).concat().len(), 300_000);
}

#[tokio::test]
async fn a_stream_that_is_too_much_for_the_log_alone_ends_with_its_text_so_far() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.streams.max_bytes = 1 << 20).await;
    upstream.then(long(60).finish("stop").done().end());
    let id = app.begin(&question()).await;
    let events = app.events(&id).await.rest().await;
    let end = &events.last().unwrap().data;
    assert_eq!(end["code"], "stream_log_full");
    assert!(
        end["partial"] == contents(&events).concat(),
        "{} bytes of {}",
        end["partial"].as_str().unwrap().len(),
        contents(&events).concat().len()
    );
    assert!((250_000..=370_000).contains(&contents(&events).concat().len()), "{}", contents(&events).concat().len());
    // Ended, it gives way.
    app.begin(&question()).await;
}

#[tokio::test]
async fn a_question_that_waits_counts_until_its_answer_begins() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| config.streams.max_bytes = 1 << 20).await;
    let large = json!({"message": "x".repeat(200_000)});
    for n in 1..=2 {
        let answer = Script::chunked().role().piece("a").hold().finish("stop").done().end();
        upstream.then([Play::Hold].into_iter().chain(answer));
        app.begin(&large).await;
        upstream.arrived(n).await;
    }
    let headers = [("content-type", "application/json")];
    let refused = app.request(Method::POST, "/chat/stream", &headers, large.to_string().into_bytes()).await;
    assert_eq!(refused.error(503).1, "stream_log_full");
    app.begin(&question()).await;
    // One of them is answered.
    upstream.release();
    crate::support::eventually(async || {
        upstream.then([Play::Silence]);
        let body = large.to_string().into_bytes();
        app.request(Method::POST, "/chat/stream", &headers, body).await.status == 200
    })
    .await;
}
