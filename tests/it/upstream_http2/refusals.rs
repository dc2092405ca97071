//! Requests that the edge certainly has not processed are asked again, and nobody notices; connections that end cost
//! nobody anything. Nothing is retried here that may have been processed.

use std::{
    fs,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;

use super::{NONE, ask, broken, failures, first_words, gated, upstream};
use crate::support::{PATIENCE, Play, ScriptedUpstream, Transport, events::Script, eventually, upstream::edge::Reason};
use crate::{bad_days::among_own_mounts, process::Running};

#[tokio::test]
async fn a_graceful_goaway_costs_no_request() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 20).await;
    upstream.edge().leave();
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        assert_eq!(failures(&app, 10).await, NONE);
    }
    let more = first_words(&app, 20).await;
    gate.cancel();
    assert_eq!(broken(running).await + broken(more).await, 0);
    eventually(async || upstream.edge().open_connections() == 1).await;
}

#[tokio::test]
async fn an_abrupt_goaway_costs_no_request() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 20).await;
    for _ in 0..10 {
        let ask = failures(&app, 10);
        upstream.edge().leave_at_once();
        assert_eq!(ask.await, NONE);
    }
    gate.cancel();
    assert_eq!(broken(running).await, 0);
}

#[tokio::test]
async fn a_request_that_crosses_a_goaway_is_asked_again() {
    for reason in [Reason::NoError, Reason::EnhanceYourCalm] {
        let upstream = upstream().await;
        let gate = gated(&upstream);
        let app = upstream.app().await;
        let running = first_words(&app, 5).await;
        upstream.edge().leave_behind(reason);
        assert_eq!(ask(&app).await.status, 200, "{reason:?}");
        upstream.edge().leave_behind(reason);
        let more = first_words(&app, 1).await;
        upstream.edge().leave_behind(reason);
        assert_eq!(failures(&app, 20).await, NONE, "{reason:?}");
        gate.cancel();
        assert_eq!(broken(running).await + broken(more).await, 0, "{reason:?}");
    }
}

#[tokio::test]
async fn a_refused_stream_is_asked_again() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 5).await;
    for refusals in [1, 2] {
        upstream.edge().refuse(refusals, Reason::Refused);
        assert_eq!(ask(&app).await.status, 200);
        upstream.edge().refuse(refusals, Reason::Refused);
        let more = first_words(&app, 1).await;
        drop(more);
    }
    upstream.edge().refuse(3, Reason::Refused);
    assert_eq!(failures(&app, 20).await, NONE);
    gate.cancel();
    assert_eq!(broken(running).await, 0);
}

#[tokio::test]
async fn an_edge_that_refuses_every_stream_is_an_error_in_time() {
    let upstream = upstream().await;
    let app = upstream.app().await;
    upstream.edge().refuse(100_000, Reason::Refused);
    let answer = tokio::time::timeout(PATIENCE, ask(&app)).await.expect("in time");
    assert!(answer.status.is_server_error(), "{}", answer.text());
    let events = app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
    assert_eq!(events.last().unwrap().kind(), "ERROR");
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_stream_that_is_reset_to_slow_down_is_asked_again_as_what_may_pass() {
    let upstream = upstream().await;
    let app = upstream.app_with(|config| config.upstream.max_retries = 2).await;
    assert_eq!(ask(&app).await.status, 200);
    upstream.edge().refuse(2, Reason::EnhanceYourCalm);
    assert_eq!(ask(&app).await.status, 200);
}

#[tokio::test]
async fn what_may_have_been_processed_is_not_asked_again_unless_retries_say_so() {
    for reason in [Reason::Internal, Reason::Protocol] {
        let upstream = upstream().await;
        let app = upstream.app().await;
        upstream.edge().refuse(1, reason);
        assert_eq!(ask(&app).await.error(502).1, "upstream_reset");
        assert_eq!(ask(&app).await.status, 200);
        let events = async || app.chat_as_stream(&json!({"message": "x"})).await.rest().await;
        upstream.then(Script::chunked().role().piece("안녕").play(Play::Reset));
        assert_eq!(events().await.last().unwrap().data["code"], "upstream_reset");
        assert_eq!(upstream.seen().len(), 2);
    }
}

#[tokio::test]
async fn a_connection_that_takes_so_many_requests_costs_none() {
    let upstream = upstream().await;
    upstream.edge().requests_a_connection(10);
    let app = upstream.app().await;
    for _ in 0..25 {
        assert_eq!(failures(&app, 8).await, NONE);
    }
    assert!(upstream.edge().connections() >= 20, "{}", upstream.edge().connections());
    assert!(upstream.edge().requests().iter().all(|requests| *requests <= 10));
    eventually(async || upstream.edge().open_connections() <= 1).await;
}

#[tokio::test]
async fn a_maximum_age_of_connections_costs_no_request() {
    let upstream = upstream().await;
    upstream.edge().max_age(Duration::from_millis(100));
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 10).await;
    let until = Instant::now() + Duration::from_millis(1200);
    while Instant::now() < until {
        assert_eq!(failures(&app, 4).await, NONE);
    }
    assert!(upstream.edge().connections() >= 5, "{}", upstream.edge().connections());
    gate.cancel();
    assert_eq!(broken(running).await, 0, "what runs outlives the age");
}

#[tokio::test]
async fn a_connection_that_breaks_costs_only_what_ran_on_it() {
    let upstream = upstream().await;
    let gate = gated(&upstream);
    let app = upstream.app().await;
    let running = first_words(&app, 10).await;
    upstream.edge().cut();
    let ends = join_all(running.into_iter().map(async |mut reading| reading.rest().await)).await;
    assert!(ends.iter().all(|events| events.last().unwrap().data["code"] == "upstream_reset"));
    for _ in 0..3 {
        assert_eq!(failures(&app, 10).await, NONE);
    }
    let more = first_words(&app, 10).await;
    gate.cancel();
    assert_eq!(broken(more).await, 0);
}

#[tokio::test]
async fn an_idle_connection_that_breaks_costs_no_request() {
    let upstream = upstream().await;
    let app = upstream.app().await;
    for _ in 0..10 {
        assert_eq!(ask(&app).await.status, 200);
        upstream.edge().cut();
        eventually(async || upstream.edge().open_connections() == 0).await;
        // The service is told by the same network, a moment later.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(upstream.edge().requests(), [1; 10]);
}

/// A host file of its own, as the service sees it.
const HOSTS: &str = r#"mount --bind "$1"/hosts /etc/hosts"#;

#[tokio::test]
async fn where_the_name_leads_is_asked_again_for_new_connections() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let Some(mut command) = among_own_mounts(HOSTS, directory.path()) else { return };
    let first = ScriptedUpstream::over(Transport::Http2).await;
    let port = first.base_url.port().unwrap();
    let authority = first.certificate().authority_file().to_path_buf();
    command.envs([("OPENAI_API_KEY", "sk-test"), ("OPENAI_BASE_URL", &format!("https://localhost:{port}/v1"))]);
    command.env("UPSTREAM_CA_FILE", &authority).env("UPSTREAM_MAX_RETRIES", "0");
    let service = Running::begin(command);
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let ask = async || {
        let request = client.post(service.url("/chat")).header("content-type", "application/json");
        request.body(r#"{"message":"x"}"#).send().await.unwrap().status()
    };
    assert_eq!(ask().await, 200);
    fs::write(&hosts, "127.0.0.2 localhost\n").unwrap();
    let second = first.moved(&format!("127.0.0.2:{port}")).await;
    // The service is told by the same network, a moment later.
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..10 {
        assert_eq!(ask().await, 200);
    }
    assert_eq!(second.seen().iter().filter(|seen| seen.line.starts_with("POST")).count(), 10);
}
