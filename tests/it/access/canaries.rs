//! Secrets, planted wherever there is a place for one, and looked for wherever something is said.

use ai_service::config::{Config, Variables};
use reqwest::Method;
use serde_json::json;

use super::{ALICE, BOB, KEYS, tokens::jwt};
use crate::support::{Answer, CANARY_KEY, Play, ScriptedUpstream, TestApp, events::Script, log, variables};

const SECRET: &str = "canary-jwt-secret-of-32-bytes-and-more";
const PASSWORD: &str = "canary-database-password";
const PROMPT: &str = "canary-prompt";
const STORED: &str = "canary-stored";

/// Everything that is not said where it belongs: in the answer to the one whose it is.
#[track_caller]
fn assert_clean(what: &str, said: &str, secrets: &[&str]) {
    for secret in [CANARY_KEY, ALICE, BOB, SECRET, PASSWORD, PROMPT, STORED].iter().chain(secrets) {
        assert!(!said.contains(secret), "{secret} in {what}: {said:.2000}");
    }
}

fn all(answer: &Answer) -> String {
    format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body))
}

/// Requests that are refused, for every reason there is.
async fn refusals(app: &TestApp, token: &str) -> Vec<Answer> {
    let json = ("content-type", "application/json");
    let text = |text: &str| text.as_bytes().to_vec();
    let mut answers = Vec::new();
    // Those who fail come from elsewhere, and are blocked in the end.
    let elsewhere = |token: &str| {
        app.asked_with(&[("x-forwarded-for", "203.0.113.7"), ("authorization", &format!("Bearer {token}"))])
    };
    for caller in [app.asked_by(token), elsewhere("canary-nobody"), elsewhere(&format!("{BOB}x"))] {
        for (method, path, headers, body) in [
            (Method::POST, "/chat", vec![json], json!({"message": [PROMPT]}).to_string()),
            (Method::POST, "/chat", vec![json], json!({"message": PROMPT, "model": "nope nope"}).to_string()),
            (Method::POST, "/chat", vec![json], format!("{{\"message\": \"{PROMPT}\"")),
            (Method::POST, "/chat", vec![json], format!("\"{PROMPT}\"")),
            (Method::POST, "/chat", vec![("content-type", "text/plain")], PROMPT.to_owned()),
            (Method::POST, "/chat", vec![json, ("idempotency-key", "a b")], json!({"message": PROMPT}).to_string()),
            (Method::POST, "/chat/stream", vec![json], json!({"message": PROMPT, "max_tokens": 0}).to_string()),
            (
                Method::PUT,
                "/conversations/canary-prompt",
                vec![json],
                json!([{"role": STORED, "content": STORED}]).to_string(),
            ),
            (Method::PUT, "/conversations/c", vec![json], json!([{"role": "user", "content": STORED}]).to_string()),
            (Method::GET, "/conversations/canary-prompt", vec![], String::new()),
            (Method::GET, "/canary-prompt?ticket=canary-prompt", vec![], String::new()),
            (Method::GET, "/conversations?cursor=canary-prompt", vec![], String::new()),
            (Method::GET, "/chat/stream/canary-prompt?ticket=canary-prompt", vec![], String::new()),
            (
                Method::GET,
                "/usage",
                vec![("cookie", PROMPT), ("user-agent", PROMPT), ("referer", PROMPT)],
                String::new(),
            ),
        ] {
            answers.push(caller.request(method, path, &headers, text(&body)).await);
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_found_in_logs_refusals_documents_or_the_shown_configuration() {
    let upstream = ScriptedUpstream::start().await;
    let database = format!("postgres://user:{PASSWORD}@127.0.0.1:1/db");
    let directory = tempfile::tempdir().unwrap();
    let stored = format!("sqlite://{}", directory.path().join("db").display());
    let token = jwt(SECRET, |_| {});
    let mut all_pairs: Variables = variables(&upstream.base_url);
    for url in [&database, &stored] {
        let pairs = [
            ("API_KEYS", KEYS),
            ("JWT_SECRET", SECRET),
            ("DATABASE_URL", url),
            ("TRUSTED_PROXIES", "127.0.0.1"),
            // It would take the answer that is meant for another.
            ("AUTO_TITLE", "off"),
            ("RATE_LIMIT_REQUESTS_PER_MINUTE", "600"),
            ("RATE_LIMIT_TOKENS_PER_MINUTE", "1000"),
            ("MAX_CONCURRENT_STREAMS", "2"),
        ];
        let app = TestApp::start_from(&upstream.base_url, &pairs).await;
        all_pairs.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        for refused in refusals(&app, &token).await {
            assert_clean("an answer", &all(&refused), &[&token]);
        }
        for public in ["/", "/health", "/openapi.json", "/docs", "/redoc"] {
            assert_clean(public, &all(&app.get(public).await), &[&token]);
        }
        // An upstream that says what it should not.
        let (alice, elsewhere) = (app.asked_by(ALICE), app.asked_with(&[("x-forwarded-for", "203.0.113.7")]));
        let echo = json!({"error": {"message": format!("Incorrect API key provided: {CANARY_KEY}")}}).to_string();
        for status in [400, 500] {
            upstream.then_status(status, "", &echo);
            assert_clean("an error", &all(&alice.chat(&json!({"message": PROMPT})).await), &[&token]);
        }
        // And chats that work, are stopped, or break.
        let chat = json!({"message": PROMPT, "system_prompt": PROMPT, "max_tokens": 10});
        for script in [
            Script::answer(&[STORED]),
            Script::chunked().piece(STORED).play(Play::Reset),
            Script::chunked().piece(STORED).play(Play::Silence),
        ] {
            upstream.then(script);
            let begun = alice.post("/chat/stream", &chat).await.json();
            let address = begun["stream_url"].as_str().unwrap_or_else(|| panic!("{begun}"));
            let ticket = address.split_once("ticket=").unwrap().1;
            let id = begun["stream_id"].as_str().unwrap();
            alice.events(id).await.take(2).await;
            elsewhere.get(&format!("/chat/stream/{id}?ticket=x{ticket}")).await.error(401);
            app.delete(address).await;
            alice.chat(&json!({"message": PROMPT, "conversation_id": "kept"})).await;
            assert_clean("the log", &log::text(), &[&token, ticket]);
        }
        upstream.then_status(401, "", &echo);
        assert_clean("an error", &all(&alice.chat(&json!({"message": PROMPT})).await), &[&token]);
        app.stop_gracefully().await;
    }
    let config = Config::from_variables(&all_pairs, false).unwrap();
    assert_clean("the configuration", &format!("{config:?} {config:#?}"), &[&token]);
    // The digest of a key is as good as the key to whoever can try keys out.
    let shown = format!("{:?}", config.access.keys);
    assert!(shown.contains("alice") && !shown.contains("digest"), "{shown}");
    assert_clean("the log", &log::text(), &[&token]);
}
