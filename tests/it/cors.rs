//! Which pages may call.

use ai_service::config::AllowedOrigins;
use reqwest::Method;

use crate::support::{Answer, ScriptedUpstream, TestApp};

async fn preflight(app: &TestApp, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,last-event-id"),
    ];
    app.request(Method::OPTIONS, "/chat", &headers, Vec::new()).await
}

#[tokio::test]
async fn by_default_any_page_may_call_without_credentials() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let asked = preflight(&app, "https://evil.example").await;
    assert_eq!(asked.status, 200);
    assert_eq!(asked.header("access-control-allow-origin"), Some("*"));
    assert_eq!(asked.header("access-control-allow-credentials"), None);
    let methods = asked.header("access-control-allow-methods").unwrap();
    assert!(["GET", "POST", "PUT", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
    let headers = asked.header("access-control-allow-headers").unwrap();
    let needed = ["content-type", "authorization", "last-event-id", "idempotency-key", "x-request-id"];
    assert!(needed.iter().all(|name| headers.contains(name)), "{headers}");

    let answer = app.request(Method::GET, "/", &[("origin", "https://evil.example")], Vec::new()).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"), "{exposed}");
}

#[tokio::test]
async fn listed_pages_may_call_with_credentials_and_no_others() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_with(&upstream.base_url, |config| {
        config.cors = AllowedOrigins::List(vec!["https://a.example".into(), "http://localhost:3000".into()]);
    })
    .await;
    for origin in ["https://a.example", "http://localhost:3000"] {
        let asked = preflight(&app, origin).await;
        assert_eq!(asked.header("access-control-allow-origin"), Some(origin));
        assert_eq!(asked.header("access-control-allow-credentials"), Some("true"));
        let vary = asked.header("vary").unwrap().to_lowercase();
        assert!(vary.contains("origin"), "{vary}");
    }
    for origin in [
        "https://b.example",
        "http://a.example",
        "https://a.example:444",
        "https://a.example.evil.com",
        "null",
        "https://A.example",
        "https://a.example.",
        "https://a.example https://b.example",
    ] {
        assert_eq!(preflight(&app, origin).await.header("access-control-allow-origin"), None, "{origin}");
    }
}

#[tokio::test]
async fn errors_may_be_read_by_pages_too() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for path in ["/nope", "/chat"] {
        let answer = app.request(Method::GET, path, &[("origin", "https://a.example")], Vec::new()).await;
        assert!(answer.status.is_client_error());
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    }
}
