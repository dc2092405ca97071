//! As many connections as there is need for, and how they are made.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{NONE, ask, begun, broken, failures, first_words, gated, lost, upstream};
use crate::support::{
    Play, ScriptedUpstream, TestApp, Transport,
    events::{Script, contents},
    eventually,
    upstream::answer,
};

#[tokio::test]
async fn whole_answers_and_streams_share_one_connection() {
    let upstream = upstream().await;
    let app = upstream.app().await;
    assert_eq!(ask(&app).await.status, 200);
    upstream.then(Script::answer(&["안녕", "하세요!"]));
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(contents(&events), ["안녕", "하세요!"]);
    assert_eq!(upstream.edge().requests(), [2]);
    let seen = &upstream.seen()[1];
    assert_eq!((seen.line.as_str(), seen.body["stream"].as_bool()), ("POST /v1/chat/completions", Some(true)));
    assert!(seen.header("authorization").unwrap().starts_with("Bearer "));
}

#[tokio::test]
async fn an_authority_is_trusted_by_the_file_that_holds_it() {
    for transport in [Transport::Tls, Transport::Http2] {
        let upstream = ScriptedUpstream::over(transport).await;
        let file = upstream.certificate().authority_file().to_str().unwrap();
        let app = TestApp::start_from(&upstream.base_url, &[("UPSTREAM_CA_FILE", file)]).await;
        assert_eq!(ask(&app).await.status, 200);
        let stranger = TestApp::start(&upstream.base_url).await;
        assert_eq!(ask(&stranger).await.error(502).1, "upstream_tls");
    }
}

#[tokio::test]
async fn an_edge_that_offers_http_1_only_is_spoken_to_in_that() {
    let upstream = upstream().await;
    upstream.edge().without_http2(true);
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 5).await;
    assert_eq!(failures(&app, 5).await, NONE);
    assert!(upstream.edge().open_connections() > 5, "one for each stream");
    gate.cancel();
    assert_eq!(broken(running).await, 0);
}

#[tokio::test]
async fn when_an_edge_begins_to_speak_http_2_new_connections_do() {
    let upstream = upstream().await;
    upstream.edge().without_http2(true);
    let app = upstream.app().await;
    assert_eq!(failures(&app, 5).await, NONE);
    upstream.edge().without_http2(false);
    let gate = gated(&upstream);
    // Who finds the old ones taken has the first new one made; those that come later share it.
    let first = first_words(&app, 10).await;
    let second = first_words(&app, 40).await;
    assert!(upstream.edge().most_streams() > 1, "{:?}", upstream.edge().requests());
    gate.cancel();
    assert_eq!(broken(first).await + broken(second).await, 0);
}

/// Streams at once at so many a connection: each has its first word while none has its last.
async fn all_speak_at_once(streams: usize, a_connection: u32) {
    let upstream = upstream().await;
    upstream.edge().streams_a_connection(a_connection);
    let gate = gated(&upstream);
    let app = upstream.app_with(|config| config.limits.connections = 1000).await;
    let running = first_words(&app, streams).await;
    let (connections, most) = (upstream.edge().connections(), upstream.edge().most_streams());
    let a_connection = usize::try_from(a_connection).unwrap();
    assert!(most <= a_connection, "{most}");
    assert_eq!(upstream.edge().refused_over_limit(), 0);
    assert!(connections >= streams.div_ceil(a_connection), "{connections}");
    assert_eq!(upstream.edge().refused_over_limit(), 0, "the limit is known before it is reached");
    // Filled to a part, and not one for each.
    assert!(connections <= 1 + 4 * streams / a_connection, "{connections} connections for {streams} streams");
    gate.cancel();
    assert_eq!(broken(running).await, 0);
    eventually(async || upstream.edge().streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_streams_at_a_hundred_a_connection_all_have_their_first_word() {
    all_speak_at_once(300, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn six_hundred_streams_at_a_hundred_a_connection_all_have_their_first_word() {
    let upstream = upstream().await;
    upstream.edge().streams_a_connection(100);
    let gate = gated(&upstream);
    let app = upstream.app().await;
    // Without readers, who would need more open files than a usual shell allows.
    let streams = begun(&app, 600).await;
    assert_eq!(upstream.edge().streams(), 600);
    assert!(upstream.edge().most_streams() <= 100, "{}", upstream.edge().most_streams());
    assert!((6..=24).contains(&upstream.edge().connections()), "{}", upstream.edge().connections());
    gate.cancel();
    assert_eq!(lost(&app, &streams).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_allows_few_streams_a_connection_gets_more_connections() {
    all_speak_at_once(60, 8).await;
    all_speak_at_once(12, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_a_connection_begin_within_two_seconds_of_asking() {
    let upstream = upstream().await;
    upstream.edge().streams_a_connection(100);
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let first = first_words(&app, 100).await;
    let began = Instant::now();
    let second = first_words(&app, 100).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    gate.cancel();
    assert_eq!(broken(first).await + broken(second).await, 0);
}

#[tokio::test]
async fn a_slow_handshake_is_waited_for() {
    let upstream = upstream().await;
    upstream.edge().slow_handshake(Duration::from_millis(400));
    let app = upstream.app().await;
    assert_eq!(failures(&app, 10).await, NONE);
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_a_504_in_time_and_spoils_nothing_later() {
    let upstream = upstream().await;
    upstream.edge().mute(true);
    let app = upstream.app_with(|config| config.upstream.timeouts.connect = Duration::from_millis(300)).await;
    let began = Instant::now();
    assert_eq!(ask(&app).await.error(504).1, "upstream_timeout");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    upstream.edge().mute(false);
    assert_eq!(ask(&app).await.status, 200);
    eventually(async || upstream.edge().open_connections() == 1).await;
}

#[tokio::test]
async fn while_new_connections_hang_those_that_are_open_are_used() {
    let upstream = upstream().await;
    upstream.edge().streams_a_connection(100);
    let app = upstream.app_with(|config| config.upstream.timeouts.connect = Duration::from_millis(300)).await;
    assert_eq!(ask(&app).await.status, 200);
    upstream.edge().mute(true);
    for _ in 0..5 {
        assert_eq!(failures(&app, 20).await, NONE);
    }
}

#[tokio::test]
async fn large_answers_at_once_arrive_whole() {
    let upstream = upstream().await;
    let text = "가나다라".repeat(200_000);
    for _ in 0..6 {
        upstream.then_json(&answer(&text));
    }
    let app = upstream.app().await;
    let ask = || async { assert!(ask(&app).await.json()["response"] == text.as_str()) };
    futures_util::future::join_all((0..6).map(|_| ask())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_streams_are_over_one_connection_is_enough_again() {
    let upstream = upstream().await;
    upstream.edge().streams_a_connection(20);
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 100).await;
    gate.cancel();
    assert_eq!(broken(running).await, 0);
    let before = upstream.edge().connections();
    for _ in 0..5 {
        assert_eq!(failures(&app, 10).await, NONE);
    }
    assert_eq!(upstream.edge().connections(), before, "no further ones");
    drop(app);
    eventually(async || upstream.edge().open_connections() == 0).await;
}

#[tokio::test]
async fn a_question_over_http_1_that_breaks_off_costs_its_own_connection() {
    for transport in [Transport::Plain, Transport::Tls] {
        let upstream = ScriptedUpstream::over(transport).await;
        let app = upstream.app().await;
        upstream.then([Play::Reset]);
        assert_eq!(ask(&app).await.error(502).1, "upstream_reset");
        assert_eq!(ask(&app).await.status, 200);
        assert_eq!(upstream.edge().requests(), [1, 1]);
    }
}

#[tokio::test]
async fn requests_beyond_the_connections_there_can_be_wait_for_a_free_one() {
    for transport in [Transport::Plain, Transport::Tls, Transport::Http2] {
        let upstream = ScriptedUpstream::over(transport).await;
        upstream.edge().streams_a_connection(1);
        let gate = gated(&upstream);
        let app = upstream.app_with(|config| config.upstream.connections.most = 3).await;
        let running = first_words(&app, 2).await;
        assert_eq!(failures(&app, 20).await, NONE, "{transport:?}");
        assert!(upstream.edge().open_connections() <= 3, "{transport:?}");
        // One that is stopped makes room as well.
        let stopped = app.begin(&json!({"message": "x"})).await;
        app.events(&stopped).await.take(2).await;
        let waits = app.begin(&json!({"message": "x"})).await;
        assert_eq!(app.cancel(&stopped).await.status, 200);
        app.events(&waits).await.take(2).await;
        gate.cancel();
        assert_eq!(broken(running).await, 0);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_makes_room_for_another_where_there_can_be_no_more() {
    let upstream = upstream().await;
    upstream.edge().streams_a_connection(1);
    let _gate = gated(&upstream);
    let app = upstream.app_with(|config| config.upstream.connections.most = 1).await;
    let _running = first_words(&app, 1).await;
    let waits = app.begin(&json!({"message": "x"})).await;
    upstream.edge().cut();
    let events = app.events(&waits).await.take(2).await;
    assert_eq!(events[1].data["content"], super::BEFORE, "{events:?}");
}
