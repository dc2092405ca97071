//! `X-Request-Id` on every answer.

use reqwest::Method;

use crate::support::{ScriptedUpstream, TestApp};

#[tokio::test]
async fn every_answer_has_one_and_no_two_are_the_same() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let mut ids = std::collections::BTreeSet::new();
    for path in ["/", "/health", "/models", "/docs", "/redoc", "/openapi.json", "/chat", "/nope"] {
        let id = app.get(path).await.header("x-request-id").unwrap().to_owned();
        assert!(uuid::Uuid::parse_str(&id).is_ok(), "{id}");
        ids.insert(id);
    }
    assert_eq!(ids.len(), 8);
}

#[tokio::test]
async fn the_callers_own_is_kept_when_it_is_harmless() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let long = "x".repeat(65);
    for (given, kept) in
        [("my.id_1-2", true), ("a b", false), ("${jndi:ldap}", false), (long.as_str(), false), ("", false)]
    {
        let answer = app.request(Method::GET, "/nope", &[("x-request-id", given)], Vec::new()).await;
        assert_eq!(answer.header("x-request-id") == Some(given), kept, "{given:?}");
        answer.error(404);
    }
}
