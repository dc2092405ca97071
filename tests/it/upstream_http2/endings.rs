//! How answers end on a connection that others use too.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde_json::json;

use super::{BEFORE, BEHIND, ask, begun, broken, first_words, gated, lost, upstream};
use crate::support::{
    Play, ScriptedUpstream, TestApp,
    dice::number,
    events::Script,
    eventually,
    upstream::{answer, response},
};

/// Whole answers and streams, in turn, whose last frame comes late; the callers that got no whole one.
async fn mixed_answers(upstream: &ScriptedUpstream, app: &TestApp, count: usize) -> usize {
    upstream.answers(|seen| {
        Some(match seen.body["stream"].as_bool() {
            Some(true) => Script::answer(&["안녕", "하세요!"]).into_iter().collect(),
            _ => vec![Play::Send(response(200, "", &answer("x").to_string()))],
        })
    });
    let failed = AtomicUsize::new(0);
    stream::iter(0..count)
        .for_each_concurrent(40, |n| {
            let failed = &failed;
            async move {
                let is_whole = if n % 2 == 0 {
                    ask(app).await.status == 200
                } else {
                    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
                    events.last().is_some_and(|last| last.kind() == "END")
                };
                failed.fetch_add(usize::from(!is_whole), Ordering::Relaxed);
            }
        })
        .await;
    failed.into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_complete_is_never_reset() {
    for late in [0, 2, 20] {
        let upstream = upstream().await;
        upstream.edge().ends_late(Duration::from_millis(late));
        let app = upstream.app().await;
        assert_eq!(mixed_answers(&upstream, &app, 1500).await, 0, "late by {late} ms");
        eventually(async || upstream.edge().streams() == 0).await;
        assert_eq!((upstream.edge().resets(), upstream.edge().needless_resets()), (0, 0), "late by {late} ms");
    }
}

#[tokio::test]
async fn an_answer_of_any_status_or_framing_is_read_to_its_end() {
    let upstream = upstream().await;
    upstream.edge().ends_late(Duration::from_millis(5));
    let app = upstream.app().await;
    let body = answer("x").to_string();
    let chunked =
        format!("HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for script in [
        response(200, "", &body),
        chunked.into_bytes(),
        response(400, "", "{}"),
        response(429, "", r#"{"error":{"message":"slow"}}"#),
        response(500, "", "<html>"),
        response(307, "location: /x\r\n", ""),
        response(200, "", "<html>"),
        response(200, "", ""),
    ] {
        upstream.then([Play::Send(script)]);
        ask(&app).await;
    }
    for script in [response(200, "", &body), response(500, "", "{}"), response(404, "", "<html>")] {
        upstream.then([Play::Send(script)]);
        app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    }
    app.get("/models").await;
    app.get("/health").await;
    eventually(async || upstream.edge().streams() == 0).await;
    assert_eq!((upstream.edge().resets(), upstream.edge().connections()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_whole_answers_break_nothing() {
    let upstream = upstream().await;
    // The last frame is under way when the last byte of the body is read.
    upstream.edge().ends_late(Duration::from_millis(1));
    let app = upstream.app().await;
    let failed = AtomicUsize::new(0);
    stream::iter(0..3000)
        .for_each_concurrent(50, async |_| {
            failed.fetch_add(usize::from(ask(&app).await.status != 200), Ordering::Relaxed);
        })
        .await;
    assert_eq!(failed.into_inner(), 0);
    assert!(upstream.edge().connections() < 10, "{}", upstream.edge().connections());
    assert_eq!(upstream.edge().resets(), 0);
}

/// Words that keep coming, for longer than anything here takes.
fn endless(script: Script, word: &str) -> Vec<Play> {
    // Written once: in a debug build that is what takes long.
    let word = Script::chunked().piece(word).into_iter().nth(1).expect("behind the head");
    let words = std::iter::repeat_n([Play::Pause(Duration::from_millis(10)), word], 1500);
    script.into_iter().chain(words.flatten()).collect()
}

/// An upstream that says endless words to whoever says `stop`, and waits for the gate with everybody else.
fn stopped_or_gated(upstream: &ScriptedUpstream) -> tokio_util::sync::CancellationToken {
    let gate = tokio_util::sync::CancellationToken::new();
    let until = gate.clone();
    let endless = endless(Script::chunked().role().piece(BEFORE), "더 ");
    upstream.answers(move |seen| {
        Some(if seen.body["messages"][0]["content"] == "stop" {
            endless.clone()
        } else {
            let script = Script::chunked().role().piece(BEFORE).play(Play::Until(until.clone())).piece(BEHIND);
            script.finish("stop").usage().done().end().into_iter().collect()
        })
    });
    gate
}

async fn begin_and_stop(app: &TestApp) {
    let id = app.begin(&json!({"message": "stop"})).await;
    let mut reading = app.events(&id).await;
    reading.take(2).await;
    assert_eq!(app.cancel(&id).await.status, 200);
    let last = reading.rest().await.pop().expect("an end");
    assert_eq!(last.data["finish_reason"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_streams_beside_fifteen_hundred_that_are_stopped_none_is_lost() {
    let upstream = upstream().await;
    upstream.edge().streams_a_connection(100);
    upstream.edge().sends_behind_resets(Duration::from_millis(150));
    let gate = stopped_or_gated(&upstream);
    // Nobody reads those that run until they are over, for however long a debug build takes to stop the others.
    let app = upstream.app_with(|config| config.streams.orphan = Duration::ZERO).await;
    let running = begun(&app, 200).await;
    // STOPPED_STREAMS says how many.
    let count = number("STOPPED_STREAMS").unwrap_or(1500);
    let stops = stream::iter(0..count).for_each_concurrent(64, async |_| begin_and_stop(&app).await);
    let patience = Duration::from_secs(60) + Duration::from_millis(50 * count);
    tokio::time::timeout(patience, stops).await.expect("all are stopped");
    gate.cancel();
    assert_eq!(lost(&app, &running).await, 0);
    eventually(async || upstream.edge().streams() == 0).await;
}

#[tokio::test]
async fn a_stop_frees_the_upstream_and_keeps_the_connection() {
    let upstream = upstream().await;
    let gate = stopped_or_gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 3).await;
    for _ in 0..20 {
        begin_and_stop(&app).await;
    }
    eventually(async || upstream.edge().streams() == 3).await;
    assert_eq!(upstream.edge().connections(), 1);
    gate.cancel();
    assert_eq!(broken(running).await, 0);
}

#[tokio::test]
async fn a_reader_who_cancels_by_leaving_frees_the_upstream() {
    let upstream = upstream().await;
    let _gate = gated(&upstream);
    let app = upstream.app().await;
    let mut reading = app.chat_as_stream(&json!({"message": "x", "on_disconnect": "cancel"})).await;
    reading.take(2).await;
    assert_eq!(upstream.edge().streams(), 1);
    drop(reading);
    eventually(async || upstream.edge().streams() == 0).await;
}

#[tokio::test]
async fn a_caller_who_leaves_a_whole_answer_frees_the_upstream_and_costs_nobody_else() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 3).await;
    for _ in 0..5 {
        upstream.then([Play::Silence]);
    }
    let seen = upstream.seen().len();
    let ask = async { futures_util::future::join_all((0..5).map(|_| ask(&app))).await };
    tokio::select! {
        _ = ask => unreachable!("nobody answers"),
        () = upstream.arrived(seen + 5) => {}
    }
    eventually(async || upstream.edge().streams() == 3).await;
    gate.cancel();
    assert_eq!(broken(running).await, 0);
}

#[tokio::test]
async fn a_stream_that_goes_on_behind_done_is_let_go_and_costs_nobody_else() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 3).await;
    for _ in 0..20 {
        upstream.then(endless(Script::chunked().piece("a").done(), "b"));
        let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
        assert_eq!(events.last().unwrap().kind(), "END");
    }
    // Read on in the background, and not for ever.
    eventually(async || upstream.edge().streams() == 3).await;
    gate.cancel();
    assert_eq!(broken(running).await, 0);
    assert_eq!(upstream.edge().connections(), 1);
}
