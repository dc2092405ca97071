//! Below a path of a proxy's, as with nginx's `location /ai/ { proxy_pass http://service:8000/; }`.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use url::Url;

use crate::support::{ScriptedUpstream, TestApp, browser::Browser, events::Script};

const KEY: &str = "a-key-of-sixteen-x";

/// A proxy that takes `/ai` off and passes the rest on, one request a connection. What is not below it is a 404.
async fn proxy(service: SocketAddr) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass(client, service));
        }
    });
    format!("http://{address}/ai/").parse().unwrap()
}

async fn pass(mut client: TcpStream, service: SocketAddr) {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if client.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let head = String::from_utf8(head).unwrap();
    let Some((method, rest)) = head.split_once(" /ai/") else {
        let _ = client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        return;
    };
    let head = format!("{method} /{}", rest.replacen("\r\n", "\r\nConnection: close\r\n", 1));
    let mut service = TcpStream::connect(service).await.unwrap();
    service.write_all(head.as_bytes()).await.unwrap();
    let _ = copy_bidirectional(&mut client, &mut service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streams_address_leads_back_through_the_proxy() {
    let upstream = ScriptedUpstream::start().await;
    upstream.then(Script::answer(&["안녕"]));
    let pairs = [("ROOT_PATH", "/ai"), ("API_KEYS", &format!("web:{KEY}"))];
    let app = TestApp::start_from(&upstream.base_url, &pairs).await;
    let base = proxy(app.address).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let begun = client.post(base.join("chat/stream").unwrap()).bearer_auth(KEY);
    let begun = begun.header("content-type", "application/json").body(r#"{"message":"x"}"#).send().await.unwrap();
    let begun: Value = serde_json::from_str(&begun.text().await.unwrap()).unwrap();
    let address = begun["stream_url"].as_str().unwrap();
    assert!(address.starts_with("/ai/chat/stream/") && address.contains("?ticket="), "{address}");
    // What README's pages do.
    let read = client.get(base.join(address).unwrap()).send().await.unwrap();
    assert_eq!(read.status(), 200);
    assert!(read.text().await.unwrap().contains("\"type\":\"END\""));

    let document: Value = serde_json::from_str(
        &client.get(base.join("openapi.json").unwrap()).send().await.unwrap().text().await.unwrap(),
    )
    .unwrap();
    assert_eq!(document["servers"][0]["url"], "/ai");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_the_pages_name_is_there() {
    let upstream = ScriptedUpstream::start().await;
    let app = TestApp::start(&upstream.base_url).await;
    let base = proxy(app.address).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for page in ["docs", "redoc"] {
        let page = base.join(page).unwrap();
        let html = client.get(page.clone()).send().await.unwrap().text().await.unwrap();
        let attributes = html.split(['\n', ' ', '>']).filter_map(|part| {
            ["href=\"", "src=\"", "spec-url=\""].iter().find_map(|name| part.strip_prefix(name))?.strip_suffix('"')
        });
        let named: Vec<_> = attributes.filter(|name| !name.starts_with("data:")).collect();
        assert!(named.len() >= 3, "{html}");
        for name in named {
            let answer = client.get(page.join(name).unwrap()).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{name} of {page}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromium-driver; run by make test"]
async fn the_pages_work_with_and_without_a_root_path() {
    let upstream = ScriptedUpstream::start().await;
    for pairs in [&[][..], &[("ROOT_PATH", "/ai")]] {
        let app = TestApp::start_from(&upstream.base_url, pairs).await;
        let base = proxy(app.address).await;
        let browser = Browser::start().await;
        browser.goto(base.join("docs").unwrap().as_str()).await;
        let block = ".opblock-get:has([data-path=\"/health\"])";
        browser.click(&format!("{block} .opblock-summary-control")).await;
        browser.click(&format!("{block} .execute")).await;
        let row = json!(format!("{block} .live-responses-table tr.response .response-col_status"));
        let status = format!("document.querySelector({row})?.innerText.trim().split('\\n')[0]");
        browser.wait_for(&status).await;
        assert_eq!(browser.script(&format!("return {status}")).await, "200", "{pairs:?}");
        let urls = browser.requested_urls().await;
        assert!(urls.contains(&base.join("health").unwrap().to_string()), "{urls:#?}");

        browser.goto(base.join("redoc").unwrap().as_str()).await;
        browser.wait_for("document.querySelector('[id$=\"/operation/health\"]')?.checkVisibility()").await;
        assert_eq!(browser.console_errors().await, Vec::<String>::new());
    }
}
