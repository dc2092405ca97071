//! HTTP byte by byte, as no proper client would send it: nothing may be read in two ways, and behind an error nothing is
//! read at all.

use std::time::Duration;

use ai_service::config::Config;
use reqwest::Method;

use crate::support::{Play, ScriptedUpstream, TestApp, events::Script, upstream::answer, upstream::response};

/// A service that closes what says nothing more, soon.
async fn start() -> (ScriptedUpstream, TestApp) {
    let upstream = ScriptedUpstream::start().await;
    let soon = Duration::from_millis(400);
    let change = |config: &mut Config| (config.limits.head_time, config.limits.keep_alive) = (soon, soon);
    let app = TestApp::start_with(&upstream.base_url, change).await;
    (upstream, app)
}

/// Behind every request that is wrong: one that would show up, had the service read on.
const SMUGGLED: &str = "GET /models HTTP/1.1\r\nHost: x\r\nX-Request-Id: smuggled\r\n\r\n";

/// The statuses of all answers to these bytes.
async fn statuses(app: &TestApp, bytes: &[u8]) -> Vec<u16> {
    let answers = app.raw(bytes).await;
    assert!(!answers.contains("smuggled"), "{answers}");
    let status =
        |answer: &str| answer.get(..3).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
    answers.split("HTTP/1.1 ").skip(1).map(status).collect()
}

/// A request with a body, and what comes behind it.
fn post(headers: &str, body: &str) -> Vec<u8> {
    let head = format!("POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}");
    format!("{head}\r\n{body}{SMUGGLED}").into_bytes()
}

const BODY: &str = r#"{"message":"x"}"#;

/// The body in chunks, of which the first line is this.
fn chunks(first: &str) -> String {
    format!("{first}\r\n{BODY}\r\n0\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_in_an_address_is_dropped() {
    let (_upstream, app) = start().await;
    for (address, status) in [("/health#f", 200), ("/#/chat", 200), ("/nope#/health", 404)] {
        let request = format!("GET {address} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(statuses(&app, request.as_bytes()).await, [status], "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_has_one_length_or_the_connection_ends_with_a_400() {
    let (upstream, app) = start().await;
    for (headers, body) in [
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunks("f")),
        ("Transfer-Encoding: chunked, identity\r\n", chunks("f")),
        ("Transfer-Encoding: identity, chunked\r\n", chunks("f")),
        ("Transfer-Encoding: gzip, chunked\r\n", chunks("f")),
        ("Transfer-Encoding: xchunked\r\n", chunks("f")),
        ("Transfer-Encoding: \x0bchunked\r\n", chunks("f")),
        ("Transfer-Encoding : chunked\r\n", chunks("f")),
        ("Transfer-Encoding:\r\n chunked\r\n", chunks("f")),
        ("Content-Length: +15\r\n", BODY.into()),
        ("Content-Length: -15\r\n", BODY.into()),
        ("Content-Length: 15,15\r\n", BODY.into()),
        ("Content-Length: 0x0f\r\n", BODY.into()),
        ("Content-Length: \r\n", BODY.into()),
        ("Content-Length: 15\r\nContent-Length: 16\r\n", BODY.into()),
        ("Content-Length: 99999999999999999999\r\n", BODY.into()),
        ("Transfer-Encoding: chunked\r\n", chunks("0xf")),
        ("Transfer-Encoding: chunked\r\n", chunks("-1")),
        ("Transfer-Encoding: chunked\r\n", chunks("+f")),
        ("Transfer-Encoding: chunked\r\n", chunks("ffffffffffffffffff")),
        ("Transfer-Encoding: chunked\r\n", chunks(&format!("f;{}", "x".repeat(20_000)))),
        ("Transfer-Encoding: chunked\r\n", format!("f\n{BODY}\n0\n\n")),
        ("Transfer-Encoding: chunked\r\n", format!("f\r\n{BODY}xx0\r\n\r\n")),
    ] {
        assert_eq!(statuses(&app, &post(headers, &body)).await, [400], "{headers:?} {body:.40}");
    }
    assert!(upstream.seen().is_empty(), "nothing of that was understood");
}

/// hyper reads by the chunks alone, and closes; so that whatever stands behind them is nobody's request.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_length_and_chunks_the_chunks_count_and_the_connection_ends() {
    let (upstream, app) = start().await;
    for headers in
        ["Content-Length: 15\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 15\r\n"]
    {
        assert_eq!(statuses(&app, &post(headers, &chunks("f"))).await, [200], "{headers:?}");
        assert_eq!(statuses(&app, &post(headers, "0\r\n\r\n")).await, [422], "{headers:?}");
    }
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_once_is_understood_in_every_proper_form() {
    let (_upstream, app) = start().await;
    for (headers, body) in [
        ("Content-Length:  15 \r\n", BODY.to_owned()),
        ("Content-Length: 15\r\nContent-Length: 15\r\n", BODY.to_owned()),
        ("Transfer-Encoding: Chunked\r\n", chunks("F")),
        ("Transfer-Encoding: chunked\r\n", chunks("00f;name=value")),
        ("Transfer-Encoding: chunked\r\n", format!("f\r\n{BODY}\r\n0\r\nX-Trailer: y\r\n\r\n")),
    ] {
        let request = String::from_utf8(post(headers, &body)).unwrap().replace("smuggled", "next");
        assert_eq!(statuses(&app, request.as_bytes()).await, [200, 200], "{headers:?} {body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_exactly_one_host_and_it_could_be_one() {
    let (_upstream, app) = start().await;
    for hosts in [
        "",
        "Host: \r\n",
        "Host: x\r\nHost: x\r\n",
        "Host: x\r\nHost: y\r\n",
        "Host: x,y\r\n",
        "Host: evil/?\r\n",
        "Host: user@x\r\n",
        "Host: x:99999\r\n",
        "Host: x:+80\r\n",
        "Host: x y\r\n",
        "Host: [::1\r\n",
        "Host: 한\r\n",
    ] {
        for origin in ["", "Origin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n"] {
            for method in ["GET", "OPTIONS"] {
                let bytes = format!("{method} / HTTP/1.1\r\n{hosts}{origin}\r\n{SMUGGLED}");
                assert_eq!(statuses(&app, bytes.as_bytes()).await, [400], "{hosts:?} {method}");
            }
        }
    }
    for (line, expected) in [
        ("GET http://x/ HTTP/1.1", 200),
        ("GET http://X/ HTTP/1.1", 200),
        ("GET http://y/ HTTP/1.1", 400),
        ("GET http://a@x/ HTTP/1.1", 400),
        ("GET http://x:80/ HTTP/1.1", 400),
        ("GET http://y/health HTTP/1.1", 400),
    ] {
        assert_eq!(statuses(&app, format!("{line}\r\nHost: x\r\n\r\n").as_bytes()).await, [expected], "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_lines() {
    let (_upstream, app) = start().await;
    for header in [
        "X-Folded: a\r\n b",
        "X-Folded: a\r\n\tb",
        "X-Space : a",
        "X-Null: a\0b",
        "X-Cr: a\rb",
        "X-Nothing",
        ": x",
        "X@: x",
        " X: y",
    ] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n{SMUGGLED}");
        assert_eq!(statuses(&app, bytes.as_bytes()).await, [400], "{header:?}");
    }
    for line in [
        "GET /",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/1.1 ",
        "GET / x HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET",
        "{}",
    ] {
        let bytes = format!("{line}\r\nHost: x\r\n\r\n{SMUGGLED}");
        assert_eq!(statuses(&app, bytes.as_bytes()).await, [400], "{line:?}");
    }
    assert_eq!(
        statuses(&app, b"POST /chat HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await,
        [400]
    );
    // RFC 9112, 2.2 allows these two, and hyper takes them; whoever sends them means one request.
    assert_eq!(statuses(&app, b"GET / HTTP/1.1\nHost: x\n\n").await, [200]);
    assert_eq!(statuses(&app, b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n").await, [200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_addresses_have_a_measure() {
    let (_upstream, app) = start().await;
    let get = |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes();
    let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
    for (bytes, expected) in [
        (get("/", &"a: b\r\n".repeat(63)), 200),
        (get("/", &"a: b\r\n".repeat(64)), 431),
        (get("/", &format!("a: {}\r\n", "x".repeat(30_000))), 200),
        (get("/", &format!("a: {}\r\n", "x".repeat(33_000))), 431),
        (get(&path(8192), ""), 404),
        (get(&path(8193), ""), 414),
        (get(&format!("/health?{}", path(8192)), ""), 414),
        (get(&path(33_000), ""), 431),
        (get(&path(70_000), ""), 431),
        (format!("{} / HTTP/1.1\r\nHost: x\r\n\r\n", "A".repeat(1024)).into_bytes(), 405),
    ] {
        assert_eq!(statuses(&app, &bytes).await, [expected], "{:.40}", String::from_utf8_lossy(&bytes));
    }
}

/// That these bytes end with an error in the form of every error, as the last answer on their connection, and its code.
async fn code_of_the_last(app: &TestApp, bytes: &[u8]) -> (u16, String) {
    let answers = app.raw(bytes).await;
    let last = answers.rsplit("HTTP/1.1 ").next().unwrap();
    let (head, body) = last.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answers}"));
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    assert_eq!((header("connection"), header("content-type")), (Some("close"), Some("application/json")), "{head}");
    assert_eq!(header("content-length"), Some(body.len().to_string().as_str()), "{last}");
    assert_eq!(header("x-content-type-options"), Some("nosniff"));
    assert!(header("date").is_some_and(|date| date.ends_with("GMT")), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let (code, id) = (body["code"].as_str().unwrap(), body["request_id"].as_str().unwrap());
    assert!(body["detail"].is_string() && header("x-request-id") == Some(id), "{last}");
    let status: u16 = head[..3].parse().unwrap();
    let [line] = &crate::support::log::lines_of(id)[..] else { panic!("one line of the log") };
    assert_eq!((&line["status"], &line["code"]), (&status.into(), &code.into()), "{line}");
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_cannot_be_read_is_refused_in_the_form_of_every_error_with_a_line_in_the_log() {
    let (_upstream, app) = start().await;
    let get = |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    let before = get("/", "");
    let cookie = |bytes: usize| get("/", &format!("Cookie: a={}\r\n", "x".repeat(bytes)));
    for (bytes, status, code) in [
        (cookie(40_000), 431, "head_too_large"),
        (cookie(400_000), 431, "head_too_large"),
        (get("/", &"a: b\r\n".repeat(64)), 431, "head_too_large"),
        (get(&format!("/{}", "x".repeat(33_000)), ""), 431, "head_too_large"),
        (get(&format!("/{}", "x".repeat(70_000)), ""), 431, "head_too_large"),
        (get("/\u{1}", ""), 400, "bad_head"),
        (get("/", "no colon\r\n"), 400, "bad_head"),
        (get("/ x", ""), 400, "bad_head"),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400, "bad_head"),
        ("\u{1}\u{2}\r\n\r\n".to_owned(), 400, "bad_head"),
    ] {
        // As the first on its connection, behind another in the same packet, and with much behind it.
        let much = format!("{bytes}{}", "x".repeat(1_000_000));
        for bytes in [&bytes, &format!("{before}{bytes}"), &much] {
            let (got, code_got) = code_of_the_last(&app, bytes.as_bytes()).await;
            assert_eq!((got, code_got.as_str()), (status, code), "{bytes:.60}");
        }
    }
    assert_eq!(app.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_405_and_no_header_makes_one_method_or_path_another() {
    let (upstream, app) = start().await;
    for line in
        ["TRACE /", "FOO /health", "PATCH /chat", "OPTIONS /chat", "OPTIONS /health", "CONNECT x:80", "CONNECT /"]
    {
        let host = if line.ends_with(":80") { "x:80" } else { "x" };
        let answer = app.raw(format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{line}: {answer}");
        let has_allow = answer.lines().any(|line| line.starts_with("allow: "));
        assert!(has_allow || line.starts_with("CONNECT"), "{answer}");
    }
    assert_eq!(statuses(&app, b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").await, [404]);
    for header in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"] {
        let answer = app.request(Method::POST, "/conversations/none", &[(header, "DELETE")], Vec::new()).await;
        answer.error(405);
    }
    for header in ["X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Path", "X-Forwarded-Prefix", "X-Forwarded-Host"] {
        app.request(Method::GET, "/nope", &[(header, "/health")], Vec::new()).await.error(404);
    }
    assert!(upstream.seen().is_empty());
    // Over the connection that a client would upgrade there is nothing but HTTP/1.1.
    let h2c = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    assert_eq!(statuses(&app, h2c).await, [200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_ends_the_connection_and_nothing_of_it_is_in_the_log() {
    let (_upstream, app) = start().await;
    let noise: Vec<u8> = (0..5000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (name, bytes) in [
        ("TLS", &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03canary-hello\r\n\r\n"[..]),
        ("SSH", b"SSH-2.0-canary-hello\r\n"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("noise", &noise),
        ("zeros", &[0; 5000]),
    ] {
        let answer = app.raw(bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{name}: {answer}");
        assert!(!crate::support::log::text().contains("canary-hello"));
    }
    assert_eq!(app.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_error_in_the_body_nothing_is_read_and_behind_others_everything_is() {
    let (_upstream, app) = start().await;
    let too_large = post("Content-Length: 99999999\r\n", "");
    assert_eq!(statuses(&app, &too_large).await, [413]);
    // The body of a request that nobody reads is still its body.
    let unread = format!("POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
    assert_eq!(statuses(&app, unread.as_bytes()).await, [404]);
    let with_body = format!("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
    assert_eq!(statuses(&app, with_body.as_bytes()).await, [200]);
    let two = "GET /nope HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(statuses(&app, two.as_bytes()).await, [404, 200], "in the order in which they came");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_what_it_is_and_may_stand_in_no_frame() {
    let (upstream, app) = start().await;
    upstream.then([Play::Send(response(200, "", &answer("x").to_string()))]).then(Script::answer(&["x"]));
    let asked = [
        app.get("/").await,
        app.get("/docs").await,
        app.get("/nope").await,
        app.chat(&serde_json::json!({"message": "x"})).await,
        app.chat(&serde_json::json!({})).await,
        app.post("/chat/stream", &serde_json::json!({"message": "x"})).await,
        app.request(Method::OPTIONS, "/chat", &[("origin", "https://a.example")], Vec::new()).await,
    ];
    for answer in asked {
        for (name, value) in
            [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("x-frame-options", "DENY")]
        {
            assert_eq!(answer.header(name), Some(value), "{}", answer.text());
        }
    }
}
