//! A path to the upstream that dies without a word: no FIN, no RST, nothing.

use std::time::{Duration, Instant};

use ai_service::config::{Config, Timeouts};
use serde_json::json;

use super::{NONE, ask, broken, failures, first_words, gated, upstream};
use crate::support::{
    PATIENCE, Play, ScriptedUpstream, TestApp, Transport,
    events::Script,
    eventually,
    upstream::{answer, response},
};

/// The shortest that can be configured.
const LIMIT: Duration = Duration::from_secs(1);

async fn impatient(upstream: &ScriptedUpstream) -> TestApp {
    upstream.app_with(|config| limit(&mut config.upstream.timeouts)).await
}

/// A stream waits that long for its first word, and a whole answer for its end.
fn limit(timeouts: &mut Timeouts) {
    (timeouts.first_token, timeouts.whole) = (LIMIT, LIMIT);
}

/// The first question may find the path dead. The second is answered.
async fn is_left(upstream: &ScriptedUpstream, app: &TestApp, case: &str) {
    upstream.edge().swallow_open();
    let first = ask(app).await;
    assert!(matches!(first.status.as_u16(), 200 | 504), "{case}: {}", first.text());
    let began = Instant::now();
    let second = ask(app).await;
    assert_eq!(second.status, 200, "{case}: {}", second.text());
    assert!(began.elapsed() < Duration::from_secs(3), "{case}");
}

#[tokio::test]
async fn the_second_question_after_an_idle_path_died_is_answered() {
    for transport in [Transport::Plain, Transport::Tls, Transport::Http2] {
        let upstream = ScriptedUpstream::over(transport).await;
        let app = impatient(&upstream).await;
        assert_eq!(ask(&app).await.status, 200);
        is_left(&upstream, &app, &format!("{transport:?}")).await;
    }
}

#[tokio::test]
async fn the_second_question_is_answered_also_where_many_idle_connections_died() {
    for transport in [Transport::Plain, Transport::Tls, Transport::Http2] {
        let upstream = ScriptedUpstream::over(transport).await;
        upstream.edge().streams_a_connection(2);
        upstream.answers(|_| {
            let pause = Play::Pause(Duration::from_millis(50));
            Some(vec![pause, Play::Send(response(200, "", &answer("x").to_string()))])
        });
        let app = impatient(&upstream).await;
        assert_eq!(failures(&app, 6).await, NONE);
        is_left(&upstream, &app, &format!("{transport:?}")).await;
    }
}

#[tokio::test]
async fn the_second_question_after_a_path_with_running_answers_died_is_answered() {
    for transport in [Transport::Plain, Transport::Tls, Transport::Http2] {
        let upstream = ScriptedUpstream::over(transport).await;
        let _gate = gated(&upstream);
        let app = impatient(&upstream).await;
        let _running = first_words(&app, 5).await;
        assert_eq!(failures(&app, 2).await, NONE);
        is_left(&upstream, &app, &format!("{transport:?}")).await;
    }
}

#[tokio::test]
async fn the_second_stream_after_a_path_died_begins() {
    for transport in [Transport::Plain, Transport::Tls, Transport::Http2] {
        let upstream = ScriptedUpstream::over(transport).await;
        let app = impatient(&upstream).await;
        assert_eq!(ask(&app).await.status, 200);
        upstream.edge().swallow_open();
        let stream = async || app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
        upstream.answers(|_| Some(Script::answer(&["안녕"]).into_iter().collect()));
        stream().await;
        let second = stream().await;
        assert_eq!(second.last().unwrap().kind(), "END", "{transport:?}: {second:?}");
    }
}

#[tokio::test]
async fn an_answer_whose_path_died_ends_with_an_error_and_the_next_one_is_whole() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = upstream.app_with(|config| config.upstream.timeouts.idle = LIMIT).await;
    let mut readings = first_words(&app, 3).await;
    upstream.edge().swallow_open();
    for reading in &mut readings {
        let last = reading.rest().await.pop().unwrap();
        assert_eq!(last.kind(), "ERROR");
        assert!(["upstream_stalled", "upstream_reset"].contains(&last.data["code"].as_str().unwrap()), "{last:?}");
    }
    let again = first_words(&app, 3).await;
    gate.cancel();
    assert_eq!(broken(again).await, 0);
}

#[tokio::test]
async fn a_time_out_closes_the_connection_it_happened_on() {
    for transport in [Transport::Plain, Transport::Tls, Transport::Http2] {
        let upstream = ScriptedUpstream::over(transport).await;
        let app = impatient(&upstream).await;
        assert_eq!(ask(&app).await.status, 200);
        upstream.then([Play::Silence]);
        assert_eq!(ask(&app).await.error(504).1, "upstream_deadline");
        eventually(async || upstream.edge().open_connections() == 0).await;
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(upstream.edge().requests(), [2, 1], "{transport:?}");
    }
}

#[tokio::test]
async fn a_time_out_costs_the_answers_beside_it_nothing() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = impatient(&upstream).await;
    let running = first_words(&app, 10).await;
    for _ in 0..3 {
        upstream.then([Play::Silence]);
        assert_eq!(ask(&app).await.error(504).1, "upstream_deadline");
        assert_eq!(ask(&app).await.status, 200);
    }
    gate.cancel();
    assert_eq!(broken(running).await, 0);
    // Those that were left are closed behind their last answer.
    eventually(async || upstream.edge().open_connections() <= 1).await;
}

#[tokio::test]
async fn a_dead_network_is_an_error_in_time_and_is_used_again_when_it_lives() {
    for transport in [Transport::Plain, Transport::Tls, Transport::Http2] {
        let upstream = ScriptedUpstream::over(transport).await;
        let app = upstream
            .app_with(|config| {
                limit(&mut config.upstream.timeouts);
                config.upstream.timeouts.connect = LIMIT / 2;
            })
            .await;
        assert_eq!(ask(&app).await.status, 200);
        upstream.edge().swallow_all(true);
        for _ in 0..3 {
            let answer = tokio::time::timeout(PATIENCE, ask(&app)).await.expect("in time");
            let code = answer.error(504).1;
            assert!(matches!(code.as_str(), "upstream_timeout" | "upstream_deadline"), "{code}");
        }
        upstream.edge().swallow_all(false);
        let answers = [ask(&app).await, ask(&app).await].map(|answer| answer.status.as_u16());
        assert_eq!(answers[1], 200, "{transport:?}: {answers:?}");
    }
}

/// Silence that is noticed soon.
fn watchful(config: &mut Config) {
    config.upstream.connections.silence = Duration::from_millis(300);
    config.upstream.connections.ping_answer = Duration::from_millis(500);
}

#[tokio::test]
async fn a_silent_connection_with_running_answers_is_asked_whether_it_is_alive() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = upstream.app_with(watchful).await;
    let running = first_words(&app, 3).await;
    eventually(async || upstream.edge().pings() >= 3).await;
    gate.cancel();
    assert_eq!(broken(running).await, 0, "one that answers is kept");
    assert_eq!(upstream.edge().connections(), 1);
}

#[tokio::test]
async fn answers_whose_path_died_end_long_before_their_time_limit() {
    let upstream = upstream().await;
    let _gate = gated(&upstream);
    let app = upstream.app_with(watchful).await;
    let mut running = first_words(&app, 3).await;
    upstream.edge().swallow_open();
    let began = Instant::now();
    for reading in &mut running {
        let last = reading.rest().await.pop().unwrap();
        assert_eq!(last.data["code"], "upstream_reset", "{last:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(ask(&app).await.status, 200);
    eventually(async || upstream.edge().open_connections() == 1).await;
}

#[tokio::test]
async fn an_idle_connection_whose_path_died_is_closed() {
    let upstream = upstream().await;
    let app = upstream.app_with(watchful).await;
    assert_eq!(ask(&app).await.status, 200);
    upstream.edge().swallow_open();
    eventually(async || upstream.edge().open_connections() == 0).await;
    let began = Instant::now();
    assert_eq!(ask(&app).await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
