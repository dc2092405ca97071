//! The upstream behind nginx, which ends a connection after its thousandth request.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, stream};
use serde_json::json;

use super::{NONE, ask, begun, broken, failures, first_words, gated, lost};
use crate::support::{Play, ScriptedUpstream, TestApp, eventually, nginx::NginxEdge, upstream::answer};

/// The upstream, nginx before it, and the service before that.
async fn start() -> (ScriptedUpstream, NginxEdge, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let nginx = NginxEdge::of(&upstream.base_url, upstream.certificate(), 100).await;
    let base = format!("https://{}/v1", nginx.address).parse().unwrap();
    let app = TestApp::start_with(&base, |config| {
        config.upstream.authorities = vec![upstream.certificate().authority().clone()];
        config.streams.orphan = std::time::Duration::ZERO;
    })
    .await;
    (upstream, nginx, app)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx; run by make test"]
async fn behind_nginx_five_thousand_answers_come_without_a_failure() {
    let (upstream, _nginx, app) = start().await;
    let gate = gated(&upstream);
    let running = begun(&app, 20).await;
    let failed = AtomicUsize::new(0);
    stream::iter(0..5000)
        .for_each_concurrent(40, async |_| {
            failed.fetch_add(usize::from(ask(&app).await.status != 200), Ordering::Relaxed);
        })
        .await;
    assert_eq!(failed.into_inner(), 0);
    gate.cancel();
    assert_eq!(lost(&app, &running).await, 0, "those that ran all the while");
    assert_eq!(upstream.seen().len(), 5020, "nothing is asked twice");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx; run by make test"]
async fn behind_nginx_three_hundred_streams_all_have_their_first_word() {
    let (upstream, _nginx, app) = start().await;
    let gate = gated(&upstream);
    let running = begun(&app, 300).await;
    assert_eq!(upstream.edge().streams(), 300);
    gate.cancel();
    assert_eq!(lost(&app, &running).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs nginx; run by make test"]
async fn behind_nginx_a_stop_frees_the_upstream_and_costs_nobody_else() {
    let (upstream, _nginx, app) = start().await;
    let gate = gated(&upstream);
    let running = first_words(&app, 10).await;
    for _ in 0..30 {
        let stopped = begun(&app, 5).await;
        for id in &stopped {
            assert_eq!(app.cancel(id).await.status, 200);
        }
        assert_eq!(failures(&app, 5).await, NONE);
    }
    // Those that wait for the gate notice nothing of who has left until they write.
    gate.cancel();
    assert_eq!(broken(running).await, 0);
    eventually(async || upstream.edge().streams() == 0).await;
}

#[tokio::test]
#[ignore = "needs nginx; run by make test"]
async fn behind_nginx_a_stop_closes_the_upstreams_connection() {
    let (upstream, _nginx, app) = start().await;
    upstream.then([Play::Silence]);
    let id = app.begin(&json!({"message": "x"})).await;
    upstream.arrived(1).await;
    assert_eq!(app.cancel(&id).await.status, 200);
    upstream.left().await;
}

#[tokio::test]
#[ignore = "needs nginx; run by make test"]
async fn behind_nginx_large_answers_arrive_whole() {
    let (upstream, _nginx, app) = start().await;
    let text = "가나다라".repeat(200_000);
    for _ in 0..4 {
        upstream.then_json(&answer(&text));
    }
    let ask = || async { assert!(ask(&app).await.json()["response"] == text.as_str()) };
    futures_util::future::join_all((0..4).map(|_| ask())).await;
}
