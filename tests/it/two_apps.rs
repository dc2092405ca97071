//! Two services in one process share nothing.

use serde_json::json;

use crate::support::{ScriptedUpstream, TestApp};

#[tokio::test]
async fn each_has_its_own_upstream_defaults_and_memory() {
    let (first, second) = (ScriptedUpstream::start().await, ScriptedUpstream::start().await);
    let one = TestApp::start_with(&first.base_url, |config| config.defaults.model = "model-one".into()).await;
    let mut two = TestApp::start_with(&second.base_url, |config| config.defaults.model = "model-two".into()).await;

    // What one learns about a model is not known to the other.
    let refusal = json!({"error": {"message": "m", "param": "max_tokens", "code": "unsupported_parameter"}});
    first.then_status(400, "", &refusal.to_string());
    let request = json!({"message": "x", "model": "o3"});
    one.chat(&request).await;
    two.chat(&request).await;
    assert!(first.seen()[1].body.get("max_completion_tokens").is_some());
    assert!(second.seen()[0].body.get("max_tokens").is_some());

    assert_eq!(one.chat(&json!({"message": "x"})).await.json()["model"], "model-one");
    assert_eq!(two.chat(&json!({"message": "x"})).await.json()["model"], "model-two");
    assert_eq!(one.get("/health").await.json()["status"], "healthy");
    assert_eq!(second.seen().iter().filter(|seen| seen.line == "GET /v1/models").count(), 0);

    assert!(two.stop().await.unwrap());
    assert_eq!(one.get("/").await.status, 200, "the end of one is not the end of the other");
}
