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

    let answer = app.request(Method::GET, "/", &[("origin", "https://evil.example")], Vec::new()).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("x-request-id") && exposed.contains("retry-after"), "{exposed}");
}

#[tokio::test]
async fn a_page_may_send_whatever_headers_it_asks_for() {
    let upstream = ScriptedUpstream::start().await;
    for origins in ["*", "https://a.example"] {
        let app = TestApp::start_from(&upstream.base_url, &[("CORS_ALLOW_ORIGINS", origins)]).await;
        for names in [
            "content-type,baggage",
            "authorization,content-type,idempotency-key,last-event-id,x-request-id",
            "sentry-trace, traceparent, x-requested-with, cache-control",
        ] {
            let headers = [
                ("origin", "https://a.example"),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", names),
            ];
            let asked = app.request(Method::OPTIONS, "/chat", &headers, Vec::new()).await;
            assert_eq!(asked.header("access-control-allow-headers"), Some(names), "{origins}");
            let vary = asked.header("vary").unwrap().to_lowercase();
            assert!(vary.contains("access-control-request-headers"), "{vary}");
        }
        let foreign = [("origin", "https://b.example"), ("access-control-request-method", "POST")];
        let asked = app.request(Method::OPTIONS, "/chat", &foreign, Vec::new()).await;
        assert_eq!(asked.header("access-control-allow-origin"), (origins == "*").then_some("*"), "the lock");
    }
}

#[tokio::test]
async fn a_page_that_an_app_brings_along_may_be_listed() {
    let upstream = ScriptedUpstream::start().await;
    let list = "capacitor://localhost,chrome-extension://abcdefghijklmnop";
    let app = TestApp::start_from(&upstream.base_url, &[("CORS_ALLOW_ORIGINS", list)]).await;
    for origin in list.split(',') {
        let asked = preflight(&app, origin).await;
        assert_eq!(asked.header("access-control-allow-origin"), Some(origin));
    }
    for origin in ["capacitor://other", "ionic://localhost", "capacitor://localhost:1", "chrome-extension://b"] {
        assert_eq!(preflight(&app, origin).await.header("access-control-allow-origin"), None, "{origin}");
    }
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

#[tokio::test]
async fn a_preflight_needs_no_key_and_opens_no_private_network() {
    let upstream = ScriptedUpstream::start().await;
    let keys = [("API_KEYS", "alice:canary-key-of-alice-1f6c"), ("CORS_ALLOW_ORIGINS", "https://a.example")];
    let app = TestApp::start_from(&upstream.base_url, &keys).await;
    let headers = [
        ("origin", "https://a.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
        ("access-control-request-private-network", "true"),
    ];
    let asked = app.request(Method::OPTIONS, "/chat", &headers, Vec::new()).await;
    assert_eq!((asked.status.as_u16(), asked.header("access-control-allow-origin")), (200, Some("https://a.example")));
    assert_eq!(asked.header("access-control-allow-private-network"), None);
    let refused = app.request(Method::POST, "/chat", &headers[..1], Vec::new()).await;
    refused.error(401);
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://a.example"), "the page may read why");
}

#[tokio::test]
async fn with_a_list_every_answer_tells_caches_that_it_depends_on_the_page() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_from(&upstream.base_url, &[("CORS_ALLOW_ORIGINS", "https://a.example")]).await;
    for headers in [&[][..], &[("origin", "https://a.example")], &[("origin", "https://b.example")]] {
        for path in ["/", "/nope"] {
            let answer = app.request(Method::GET, path, headers, Vec::new()).await;
            let vary = answer.header("vary").unwrap_or_else(|| panic!("{headers:?} {path}")).to_lowercase();
            assert!(vary.contains("origin"), "{vary}");
            let allowed = answer.header("access-control-allow-origin");
            assert_eq!(allowed.is_some(), headers.contains(&("origin", "https://a.example")), "{headers:?}");
        }
    }
    let any = TestApp::start(&upstream.base_url).await;
    assert_eq!(any.get("/").await.header("vary"), None, "there every page gets the same");
}

#[tokio::test]
async fn options_that_is_no_preflight_is_answered_by_the_route() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    for headers in [&[][..], &[("origin", "https://a.example")], &[("access-control-request-method", "POST")]] {
        let answer = app.request(Method::OPTIONS, "/chat", headers, Vec::new()).await;
        answer.error(405);
        assert_eq!(answer.header("allow"), Some("POST"), "{headers:?}");
    }
}
