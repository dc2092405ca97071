//! Addresses: whose are let in, whose word on them counts, and who fails too often.

use reqwest::Method;
use serde_json::json;

use super::{ALICE, KEYS, tokens::jwt};
use crate::support::{ScriptedUpstream, TestApp};

async fn start(pairs: &[(&str, &str)]) -> (ScriptedUpstream, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start_from(&upstream.base_url, pairs).await;
    (upstream, app)
}

/// What a caller of that address gets, who comes through the proxy on this machine.
async fn status(app: &TestApp, forwarded: &[&str], path: &str) -> u16 {
    let headers: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
    app.request(Method::GET, path, &headers, Vec::new()).await.status.as_u16()
}

#[tokio::test]
async fn callers_behind_a_trusted_proxy_are_told_apart_and_one_network_of_ipv6_is_one() {
    let pairs = [
        ("RATE_LIMIT_REQUESTS_PER_MINUTE", "1"),
        ("RATE_LIMIT_BURST", "1"),
        ("TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8"),
    ];
    let (_upstream, app) = start(&pairs).await;
    for (forwarded, expected) in [
        (&["203.0.113.7"][..], 200),
        (&["203.0.113.7"], 429),
        (&["203.0.113.8"], 200),
        // Only the rightmost that no proxy of ours is was seen by one of ours.
        (&["198.51.100.1, 203.0.113.7"], 429),
        (&["203.0.113.9, 203.0.113.7, 10.0.0.2"], 429),
        (&["203.0.113.9", "203.0.113.7", "10.0.0.2"], 429),
        (&["203.0.113.7, 10.1.2.3, 10.0.0.2"], 429),
        (&["2001:db8:1:2::1"], 200),
        (&["2001:db8:1:2:ffff::9"], 429),
        (&["[2001:db8:1:2::7]:443"], 429),
        (&["2001:db8:1:3::1"], 200),
        (&["::ffff:203.0.113.8"], 429),
        // What cannot be read was written by the proxy itself, for all that is known.
        (&["unknown"], 200),
        (&["fe80::1%eth0"], 429),
        (&[""], 429),
        (&[], 429),
    ] {
        assert_eq!(status(&app, forwarded, "/models").await, expected, "{forwarded:?}");
    }
    let hops = vec!["10.0.0.1"; 1000].join(", ");
    assert_eq!(status(&app, &[&hops], "/models").await, 200);
    // That other header is nobody's business.
    let headers = [("forwarded", "for=203.0.113.99"), ("x-real-ip", "203.0.113.99")];
    app.request(Method::GET, "/models", &headers, Vec::new()).await.error(429);
}

#[tokio::test]
async fn an_empty_part_of_a_proxys_word_says_nothing() {
    let (_upstream, app) = start(&[("BLOCKED_IPS", "203.0.113.7"), ("TRUSTED_PROXIES", "127.0.0.1")]).await;
    for forwarded in [&["203.0.113.7,"][..], &["203.0.113.7, ,"], &["203.0.113.7", ""], &["203.0.113.7", " , "]] {
        assert_eq!(status(&app, forwarded, "/").await, 403, "{forwarded:?}");
    }
    assert_eq!(status(&app, &["203.0.113.8,"], "/").await, 200);
}

#[test]
fn a_proxy_that_nobody_named_is_told_of_once() {
    let say = |variables: &[(&str, &str)], forwarded: bool| {
        let service = crate::process::Running::start(&["--demo"], variables);
        let header = if forwarded { "X-Forwarded-For: 203.0.113.7\r\n" } else { "" };
        for path in ["/models", "/health", "/models"] {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", service.port)).unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
            std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
            std::io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap();
        }
        service.signal("-TERM");
        service.end().1.matches("TRUSTED_PROXIES").count()
    };
    let jwt = ("JWT_SECRET", "a secret of at least thirty-two bytes");
    assert_eq!(say(&[("API_KEYS", KEYS)], true), 1);
    assert_eq!(say(&[jwt], true), 1);
    assert_eq!(say(&[("API_KEYS", KEYS)], false), 0);
    assert_eq!(say(&[("API_KEYS", KEYS), ("TRUSTED_PROXIES", "10.0.0.1")], true), 0);
    assert_eq!(say(&[], true), 0, "nobody is told apart");
}

#[tokio::test]
async fn nobody_else_is_believed() {
    let (_upstream, app) = start(&[("RATE_LIMIT_REQUESTS_PER_MINUTE", "1"), ("RATE_LIMIT_BURST", "2")]).await;
    for (n, expected) in [200, 200, 429, 429].into_iter().enumerate() {
        assert_eq!(status(&app, &[&format!("203.0.113.{n}")], "/models").await, expected);
    }
}

#[tokio::test]
async fn blocked_addresses_get_403_on_every_route_and_a_good_key_does_not_help() {
    let pairs = [
        ("API_KEYS", KEYS),
        ("TRUSTED_PROXIES", "127.0.0.1"),
        ("BLOCKED_IPS", "203.0.113.0/28, 2001:db8::/32"),
        ("ALLOWED_IPS", "203.0.113.0/24, 2001:db8::/31, 127.0.0.1"),
    ];
    let (_upstream, app) = start(&pairs).await;
    for (address, is_allowed) in [
        ("203.0.113.15", false),
        ("203.0.113.16", true),
        ("2001:db8:ffff::1", false),
        ("2001:db9::1", true),
        ("198.51.100.1", false),
        ("::ffff:203.0.113.1", false),
        ("127.0.0.1", true),
    ] {
        let bearer = format!("Bearer {ALICE}");
        let caller = app.asked_with(&[("x-forwarded-for", address), ("authorization", &bearer)]);
        for path in ["/", "/health", "/models", "/docs", "/nope"] {
            let answer = caller.get(path).await;
            let expected = match path {
                _ if !is_allowed => 403,
                "/nope" => 404,
                _ => 200,
            };
            assert_eq!(answer.status, expected, "{address} {path}");
            if !is_allowed {
                let (detail, code) = answer.error(403);
                let expected = ("this address is not allowed", "address_blocked");
                assert_eq!((detail.as_str().unwrap(), code.as_str()), expected);
                assert_eq!(answer.header("retry-after"), None, "waiting does not help");
            }
        }
    }
}

/// Twenty guesses from that address, and one more.
async fn guess(app: &TestApp, address: &str) {
    for n in 0..20 {
        let guess = if n % 2 == 0 { format!("Bearer guess-{n}") } else { "Basic x".to_owned() };
        app.asked_with(&[("x-forwarded-for", address), ("authorization", &guess)]).get("/models").await.error(401);
    }
    let refused =
        app.asked_with(&[("x-forwarded-for", address), ("authorization", "Bearer more")]).get("/models").await;
    assert_eq!(refused.error(403).1, "address_blocked");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((580..=600).contains(&wait), "{wait}");
}

#[tokio::test]
async fn guesses_from_an_address_that_guessed_twenty_times_are_refused_for_a_while() {
    let (upstream, app) = start(&[("API_KEYS", KEYS), ("TRUSTED_PROXIES", "127.0.0.1")]).await;
    // Whoever brings nothing tries nothing out.
    for _ in 0..30 {
        assert_eq!(status(&app, &["203.0.113.7"], "/models").await, 401);
    }
    guess(&app, "203.0.113.7").await;
    assert_eq!(status(&app, &["203.0.113.7"], "/models").await, 401);
    assert_eq!(status(&app, &["203.0.113.7"], "/health").await, 200, "what is public stays so");
    let other = app.asked_with(&[("x-forwarded-for", "203.0.113.8"), ("authorization", "Bearer guess")]);
    other.get("/models").await.error(401);
    assert!(upstream.seen().iter().all(|seen| seen.line.starts_with("GET")));

    // Any of a network of IPv6.
    for n in 0..20 {
        let caller = [("x-forwarded-for", &*format!("2001:db8::{n:x}")), ("authorization", "Bearer guess")];
        app.asked_with(&caller).get("/models").await.error(401);
    }
    let same = [("x-forwarded-for", "2001:db8::ffff:1"), ("authorization", "Bearer guess")];
    app.asked_with(&same).get("/models").await.error(403);
    let other = [("x-forwarded-for", "2001:db8:0:1::1"), ("authorization", "Bearer guess")];
    app.asked_with(&other).get("/models").await.error(401);
}

#[tokio::test]
async fn who_is_known_passes_whatever_others_have_done_from_the_same_address() {
    const SECRET: &str = "a secret of at least thirty-two bytes";
    let pairs = [("API_KEYS", KEYS), ("TRUSTED_PROXIES", "127.0.0.1"), ("JWT_SECRET", SECRET)];
    let (_upstream, app) = start(&pairs).await;
    guess(&app, "203.0.113.7").await;
    let from_there = |token: &str| {
        app.asked_with(&[("x-forwarded-for", "203.0.113.7"), ("authorization", &format!("Bearer {token}"))])
    };
    let alice = from_there(ALICE);
    assert_eq!(alice.chat(&json!({"message": "x"})).await.status, 200);
    assert_eq!(from_there(&jwt(SECRET, |_| {})).get("/models").await.status, 200);
    let begun = alice.post("/chat/stream", &json!({"message": "x"})).await.json();
    let with_ticket = begun["stream_url"].as_str().unwrap();
    assert_eq!(status(&app, &["203.0.113.7"], with_ticket).await, 200);
    let socket = |token: &str| {
        app.asked_with(&[
            ("x-forwarded-for", "203.0.113.7"),
            ("sec-websocket-protocol", &format!("chat, bearer.{token}")),
        ])
    };
    assert_ne!(socket(ALICE).get("/chat/ws").await.status, 403, "no WebSocket, but its caller is known");
    socket("guess").get("/chat/ws").await.error(403);
    from_there("guess").get("/models").await.error(403);
}

#[tokio::test]
async fn what_cannot_be_a_guess_never_counts_as_one() {
    const SECRET: &str = "a secret of at least thirty-two bytes";
    let pairs = [
        ("API_KEYS", KEYS),
        ("JWT_SECRET", SECRET),
        ("JWT_AUDIENCE", "ai-service"),
        ("JWT_ISSUER", "https://login.example"),
    ];
    let (_upstream, app) = start(&pairs).await;
    let now = chrono::Utc::now().timestamp();
    let unusable = [
        jwt(SECRET, |claims| claims["exp"] = json!(now - 3600)),
        jwt(SECRET, |claims| claims["nbf"] = json!(now + 3600)),
        jwt(SECRET, |claims| claims["aud"] = json!("another")),
        jwt(SECRET, |claims| claims["iss"] = json!("https://another.example")),
        jwt(SECRET, |claims| drop(claims.as_object_mut().unwrap().remove("sub"))),
    ];
    for token in &unusable {
        for _ in 0..30 {
            app.asked_by(token).get("/models").await.error(401);
        }
    }
    for n in 0..30 {
        let path = format!("/chat/stream/3e458467-c21f-4429-a90d-e0d2f496e3b2?ticket=guess-{n}");
        app.get(&path).await.error(401);
    }
    assert_eq!(app.asked_by(ALICE).get("/models").await.status, 200);
    assert_eq!(app.asked_by(&jwt(SECRET, |_| {})).get("/models").await.status, 200);
    // None of them was counted: twenty guesses are still needed.
    for _ in 0..20 {
        app.asked_by("guess").get("/models").await.error(401);
    }
    app.asked_by("guess").get("/models").await.error(403);
    app.asked_by(&unusable[0]).get("/models").await.error(401);
}

#[tokio::test]
async fn what_is_asked_twenty_times_and_refused_for_other_reasons_blocks_nobody() {
    let (_upstream, app) = start(&[("API_KEYS", KEYS), ("RATE_LIMIT_REQUESTS_PER_MINUTE", "1")]).await;
    let alice = app.asked_by(ALICE);
    for _ in 0..30 {
        alice.get("/nope").await;
    }
    alice.get("/nope").await.error(429);
}
