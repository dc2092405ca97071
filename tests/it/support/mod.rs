//! What the tests stand on: the service on a real port, an upstream that does as it is told, and the log.

pub mod browser;
pub mod cutting_proxy;
pub mod database;
pub mod dice;
pub mod events;
pub mod log;
pub mod nginx;
pub mod upstream;
pub mod weak_link;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use ai_service::{
    config::{Config, Variables},
    server::App,
};
use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, HeaderName},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use url::Url;

pub use upstream::{Play, ScriptedUpstream, Transport};

/// The key with which every test's service asks its upstream. It must never be seen anywhere else.
pub const CANARY_KEY: &str = "sk-canary-4f1b9c72e0";

/// Longer than anything a passing test waits for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The variables that every test starts from. Nothing is asked again, so that a test sees each failure by itself; those
/// of `upstream_retries` say otherwise.
pub fn variables(upstream: &Url) -> Variables {
    let pairs = [
        ("OPENAI_API_KEY", CANARY_KEY),
        ("OPENAI_BASE_URL", upstream.as_str()),
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("DATABASE_URL", "sqlite::memory:"),
        ("UPSTREAM_MAX_RETRIES", "0"),
    ];
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
}

/// The service on a real port. It stops when it is dropped.
pub struct TestApp {
    pub address: SocketAddr,
    /// What stands before every path.
    base: String,
    client: reqwest::Client,
    shutdown: CancellationToken,
    served: Option<JoinHandle<bool>>,
}

impl TestApp {
    /// The service with every default.
    pub async fn start(upstream: &Url) -> Self {
        Self::start_with(upstream, |_| {}).await
    }

    /// The service with a configuration of its own.
    pub async fn start_with(upstream: &Url, change: impl FnOnce(&mut Config)) -> Self {
        log::capture();
        let mut config = Config::from_variables(&variables(upstream), false).expect("a valid configuration");
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let app = App::open(&config).await.expect("an app");
        let served = tokio::spawn(app.serve(listener, shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
        Self { address, base: format!("http://{address}"), client, shutdown, served: Some(served) }
    }

    /// The service as these variables have it, with those that every test starts from.
    pub async fn start_from(upstream: &Url, pairs: &[(&str, &str)]) -> Self {
        let mut all = variables(upstream);
        all.extend(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let config = Config::from_variables(&all, false).expect("a valid configuration");
        Self::start_with(upstream, |usual| *usual = config).await
    }

    /// The same service, asked with that token every time.
    pub fn asked_by(&self, token: &str) -> Self {
        self.asked_with(&[("authorization", &format!("Bearer {token}"))])
    }

    /// The same service, asked with these headers every time.
    pub fn asked_with(&self, headers: &[(&'static str, &str)]) -> Self {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("ASCII")));
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).default_headers(headers.collect());
        let client = client.build().expect("a client");
        // Dropping this one stops nothing.
        Self {
            address: self.address,
            base: self.base.clone(),
            client,
            shutdown: CancellationToken::new(),
            served: None,
        }
    }

    /// The same service, asked by this client at another address.
    pub fn at(&self, base: &str, client: reqwest::Client) -> Self {
        let shutdown = CancellationToken::new();
        Self { address: self.address, base: base.to_owned(), client, shutdown, served: None }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub async fn request(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request = self.client.request(method, self.url(path)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::read(request.send().await.expect("an answer")).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], Vec::new()).await
    }

    /// A request with a JSON body.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.request(method, path, &[("content-type", "application/json")], body.to_string().into_bytes()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, body).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.request(Method::DELETE, path, &[], Vec::new()).await
    }

    /// `POST /chat` with a JSON body.
    pub async fn chat(&self, body: &Value) -> Answer {
        self.chat_bytes(body.to_string().into_bytes()).await
    }

    /// `POST /chat` with whatever bytes.
    pub async fn chat_bytes(&self, body: Vec<u8>) -> Answer {
        self.request(Method::POST, "/chat", &[("content-type", "application/json")], body).await
    }

    /// Sends bytes as they are and reads until the service closes the connection.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        stream.write_all(bytes).await.expect("written");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        // A reset after the answer is an end like any other.
        let _ = read.expect("the connection is closed");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The orderly end, with everything that runs in the background; whether everything finished.
    pub async fn stop_gracefully(mut self) -> bool {
        self.stop().await.expect("no panic")
    }

    /// Asks for the orderly end; tells whether everything finished.
    pub fn stop(&mut self) -> JoinHandle<bool> {
        self.shutdown.cancel();
        self.served.take().expect("not stopped before")
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Waits until `condition` holds: what happens in the background tells nobody when it has.
pub async fn eventually(condition: impl AsyncFn() -> bool) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < until, "it never came to be");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    async fn read(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.expect("a whole body").to_vec();
        Self { status, headers, body }
    }

    /// Everything that tells this answer from another: not the request's own name, nor the time.
    pub fn essence(&self) -> (u16, BTreeMap<String, String>, String) {
        let id = self.header("x-request-id").expect("an id").to_owned();
        let body = String::from_utf8_lossy(&self.body).replace(&id, "(request id)");
        let own = ["x-request-id", "date"];
        let headers = self.headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().expect("ASCII").to_owned()));
        (self.status.as_u16(), headers.collect(), body)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    /// The code of an error, whichever it is.
    #[track_caller]
    pub fn error_code(&self) -> String {
        self.error(self.status.as_u16()).1
    }

    /// That this is an error in the contract's form, and its `detail` and `code`.
    #[track_caller]
    pub fn error(&self, status: u16) -> (Value, String) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body = self.json();
        let keys: Vec<_> = body.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, ["code", "detail", "request_id"]);
        assert_eq!(body["request_id"].as_str(), self.header("x-request-id"));
        (body["detail"].clone(), body["code"].as_str().expect("a code").to_owned())
    }
}

/// That `text` is a moment as the original writes it: `2026-11-22T23:17:31.899397`.
#[track_caller]
pub fn assert_timestamp(value: &Value) {
    let text = value.as_str().expect("a string");
    chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.6f").unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(text.len(), "2026-11-22T23:17:31.899397".len(), "{text}");
}
