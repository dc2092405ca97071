//! Every route of the OpenAPI document, with every kind of credentials that are none.

use reqwest::Method;
use serde_json::Value;

use super::{ALICE, KEYS, UNKNOWN, tokens::jwt};
use crate::support::{ScriptedUpstream, TestApp};

const SECRET: &str = "canary-jwt-secret-of-32-bytes-and-more";

/// A service that knows keys and tokens, behind a proxy: each request can come from an address of its own, for whoever
/// fails twenty times is not listened to.
async fn service() -> (ScriptedUpstream, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let pairs = [
        ("API_KEYS", KEYS),
        ("JWT_SECRET", SECRET),
        ("JWT_ISSUER", "https://login.example"),
        ("TRUSTED_PROXIES", "127.0.0.1"),
        ("RATE_LIMIT_REQUESTS_PER_MINUTE", "100000"),
        ("RATE_LIMIT_TOKENS_PER_MINUTE", "100000"),
    ];
    let app = TestApp::start_from(&upstream.base_url, &pairs).await;
    (upstream, app)
}

/// Method and path of every operation, and whether the document says that it needs a token.
async fn operations(app: &TestApp) -> Vec<(Method, String, bool)> {
    let document = app.get("/openapi.json").await.json();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace("{stream_id}", UNKNOWN).replace("{conversation_id}", "trip");
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let bearer = serde_json::json!({"bearer": []});
            let is_private = operation["security"].as_array().is_some_and(|list| list.contains(&bearer));
            found.push((method, path.clone(), is_private));
        }
    }
    assert_eq!(found.len(), 18);
    found
}

/// Ways to come without being let in: what is added to the address, and the headers.
fn credentials() -> Vec<(String, Vec<(&'static str, String)>)> {
    let bearer = |token: &str| vec![("authorization", format!("Bearer {token}"))];
    let good = jwt(SECRET, |_| {});
    let expired = jwt(SECRET, |claims| claims["exp"] = (chrono::Utc::now().timestamp() - 61).into());
    let of_others = jwt(SECRET, |claims| claims["iss"] = "https://evil.example".into());
    let of_nobody = jwt(SECRET, |claims| drop(claims.as_object_mut().unwrap().remove("sub")));
    let forged = jwt("another-secret-of-32-bytes-and-more!", |_| {});
    let [_, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    // {"alg":"none","typ":"JWT"}, {"alg":"HS384","typ":"JWT"}
    let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
    let other = format!("eyJhbGciOiJIUzM4NCIsInR5cCI6IkpXVCJ9.{claims}.{signature}");
    let mut ways: Vec<(String, Vec<(&'static str, String)>)> = vec![
        (String::new(), vec![]),
        (String::new(), vec![("authorization", String::new())]),
        (String::new(), vec![("authorization", "Bearer".into())]),
        (String::new(), vec![("authorization", ALICE.into())]),
        (String::new(), vec![("authorization", format!("Basic {ALICE}"))]),
        (String::new(), vec![("authorization", "Basic YWxpY2U6eA==".into())]),
        (String::new(), vec![("authorization", format!("Bearer {ALICE}")), ("authorization", "Bearer x".into())]),
        (
            String::new(),
            vec![("authorization", format!("Bearer {ALICE}")), ("authorization", format!("Bearer {ALICE}"))],
        ),
        (String::new(), vec![("x-api-key", ALICE.into()), ("cookie", format!("token={ALICE}"))]),
        (String::new(), vec![("proxy-authorization", format!("Bearer {ALICE}"))]),
        (String::new(), bearer(&format!("{ALICE} {ALICE}"))),
        (String::new(), bearer(&format!("alice:{ALICE}"))),
        (String::new(), bearer(&"x".repeat(20_000))),
    ];
    let near = [format!("{ALICE}x"), ALICE.to_uppercase(), ALICE[1..].to_owned(), ALICE.replace("1f6c", "1f6d")];
    ways.extend(near.iter().map(|token| (String::new(), bearer(token))));
    let tokens = [expired, of_others, of_nobody, forged, none, other, format!("{good}x"), good.replace('.', "")];
    ways.extend(tokens.iter().map(|token| (String::new(), bearer(token))));
    for name in ["api_key", "token", "ticket", "access_token", "key", "authorization"] {
        ways.push((format!("?{name}={ALICE}"), vec![]));
        ways.push((format!("?{name}={good}"), vec![]));
    }
    ways
}

#[tokio::test(flavor = "multi_thread")]
async fn no_private_route_answers_without_good_credentials_and_every_refusal_is_the_same() {
    let (upstream, app) = service().await;
    let operations = operations(&app).await;
    let public: Vec<_> = operations.iter().filter(|(.., private)| !private).map(|(_, path, _)| path.as_str()).collect();
    assert_eq!(public, ["/", "/health"], "the document says what is public");
    let mut refusal = None;
    let mut address = 0_u32;
    for (method, path, is_private) in &operations {
        for (query, headers) in credentials() {
            address += 1;
            let from = std::net::Ipv4Addr::from(0x0a00_0000 + address).to_string();
            let mut headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            headers.push(("x-forwarded-for", &from));
            let body = br#"{"message":"x"}"#.to_vec();
            headers.push(("content-type", "application/json"));
            let answer = app.request(method.clone(), &format!("{path}{query}"), &headers, body).await;
            if !is_private {
                assert_eq!(answer.status, 200, "{method} {path}");
                continue;
            }
            let (detail, code) = answer.error(401);
            assert_eq!((detail.as_str().unwrap(), code.as_str()), ("authentication is required", "unauthorized"));
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{method} {path} {headers:?}");
            let essence = answer.essence();
            assert_eq!(refusal.get_or_insert_with(|| essence.clone()), &essence, "{method} {path} {headers:?}");
        }
    }
    let asked: Vec<_> = upstream.seen().into_iter().filter(|seen| seen.line != "GET /v1/models").collect();
    assert!(asked.is_empty(), "nobody was asked: {asked:?}");
}

#[tokio::test]
async fn with_a_key_or_a_token_every_route_answers_and_says_where_the_caller_stands() {
    let (_upstream, app) = service().await;
    let token = jwt(SECRET, |_| {});
    for caller in [app.asked_by(ALICE), app.asked_by(&token)] {
        for (method, path, is_private) in operations(&app).await {
            for body in [r#"{"message":"x"}"#, "{", "[]"] {
                let headers = [("content-type", "application/json")];
                let answer = caller.request(method.clone(), &path, &headers, body.as_bytes().to_vec()).await;
                assert!(![401, 403].contains(&answer.status.as_u16()), "{method} {path}: {}", answer.text());
                for name in ["limit", "remaining", "reset"] {
                    for of in ["requests", "tokens"] {
                        let header = answer.header(&format!("x-ratelimit-{name}-{of}"));
                        assert_eq!(header.is_some(), is_private, "{method} {path} {name} {of}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_route_is_private_too_and_no_other_spelling_of_a_route_is_public() {
    let (_upstream, app) = service().await;
    for path in [
        "/nope",
        "//",
        "/Health",
        "/%68ealth",
        "/docs/",
        "/docs/..",
        "/docs/../chat",
        "/chat/",
        "/health;x",
        "/metrics",
        "/ready",
        "/health/live",
        "/docs/assets",
        "/.well-known/x",
        "/redoc/x",
    ] {
        // As it stands here: a client would tidy it up.
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = app.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{path}: {answer}");
    }
    for method in ["PUT", "PATCH", "OPTIONS", "TRACE", "FOO", "HEAD"] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(app.request(method.clone(), "/chat", &[], Vec::new()).await.status, 401, "{method}");
    }
    let known = app.asked_by(ALICE);
    known.get("/nope").await.error(404);
    known.request(Method::PATCH, "/chat", &[], Vec::new()).await.error(405);
}

#[tokio::test]
async fn without_documents_there_is_no_sign_of_them() {
    let upstream = ScriptedUpstream::start().await;
    let pages = ["/docs", "/redoc", "/openapi.json", "/docs/assets/index.css", "/redoc/redoc.standalone.js"];
    let closed = TestApp::start_from(&upstream.base_url, &[("API_KEYS", KEYS), ("DOCS", "off")]).await;
    let open = TestApp::start_from(&upstream.base_url, &[("DOCS", "off")]).await;
    for page in pages {
        assert_eq!(closed.get(page).await.essence(), closed.get("/nope").await.essence(), "{page}");
        closed.asked_by(ALICE).get(page).await.error(404);
        open.get(page).await.error(404);
    }
    let value: Value = open.get("/").await.json();
    assert_eq!(value["status"], "running");
}
