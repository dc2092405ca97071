//! An upstream that does as it is told: a real server whose every byte, pause and break is scripted.
//!
//! Scripts are written as HTTP/1.1. Over HTTP/2 the same ones are played by what an edge is in production: chunks become
//! DATA frames, the end of a body END_STREAM, and what breaks a connection breaks the stream.

pub mod certificate;
pub mod edge;
mod framing;
mod http2;
mod path;

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ai_service::config::Config;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::{
    certificate::Certificate,
    edge::{Edge, Record},
    path::Path,
};
use super::{PATIENCE, TestApp, events::Script};

/// One step of an answer.
#[derive(Clone, Debug)]
pub enum Play {
    /// These bytes, in a packet of their own.
    Send(Vec<u8>),
    /// Nothing for a while.
    Pause(Duration),
    /// Nothing until [`ScriptedUpstream::release`].
    Hold,
    /// Nothing until the test cancels this, for however many wait for it.
    Until(CancellationToken),
    /// The connection ends in good order.
    Close,
    /// The connection breaks.
    Reset,
    /// Nothing until the other side leaves.
    Silence,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `POST /v1/chat/completions`
    pub line: String,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP/1.1 without TLS.
    Plain,
    /// HTTP/1.1 inside TLS.
    Tls,
    /// HTTP/2 inside TLS, and HTTP/1.1 for those who do not speak it.
    Http2,
}

/// Each of them: what is true of one must be true of all.
pub const TRANSPORTS: [Transport; 3] = [Transport::Plain, Transport::Tls, Transport::Http2];

/// What finds the script for a request that has none.
type Answering = Box<dyn Fn(&Seen) -> Option<Vec<Play>> + Send + Sync>;

#[derive(Default)]
struct Shared {
    scripts: Mutex<VecDeque<Vec<Play>>>,
    seen: Mutex<Vec<Seen>>,
    is_echo: AtomicBool,
    answering: Mutex<Option<Answering>>,
    arrived: Notify,
    release: Notify,
    left: Notify,
    edge: Edge,
}

/// The upstream. It stops when it is dropped.
pub struct ScriptedUpstream {
    pub base_url: Url,
    shared: Arc<Shared>,
    certificate: Arc<Certificate>,
    task: JoinHandle<()>,
}

impl ScriptedUpstream {
    pub async fn start() -> Self {
        Self::over(Transport::Plain).await
    }

    pub async fn over(transport: Transport) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::on(listener, transport, Arc::new(Certificate::new()))
    }

    /// Another one with the same certificate, at that address. This one closes its connections.
    pub async fn moved(mut self, address: &str) -> Self {
        self.task.abort();
        // Until then it takes connections.
        let _ = (&mut self.task).await;
        let listener = TcpListener::bind(address).await.expect("the address");
        Self::on(listener, Transport::Http2, Arc::clone(&self.certificate))
    }

    fn on(listener: TcpListener, transport: Transport, certificate: Arc<Certificate>) -> Self {
        let scheme = if transport == Transport::Plain { "http" } else { "https" };
        let base_url = format!("{scheme}://{}/v1", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared::default());
        let tls = [&["h2", "http/1.1"][..], &["http/1.1"]].map(|protocols| certificate.server(protocols));
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                // They end with the upstream.
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (shared, [both, http1]) = (Arc::clone(&shared), tls.clone());
                    let tls = match transport {
                        Transport::Plain => None,
                        Transport::Http2 if shared.edge.speaks_http2() => Some(both),
                        Transport::Tls | Transport::Http2 => Some(http1),
                    };
                    connections.spawn(async move {
                        // However a connection ends: the service under test sees it and answers.
                        let _ = serve(stream, tls.map(TlsAcceptor::from), shared).await;
                    });
                    while connections.try_join_next().is_some() {}
                }
            }
        });
        Self { base_url: Url::parse(&base_url).expect("a URL"), shared, certificate, task }
    }

    /// The switches of its edge, and what that has counted.
    pub fn edge(&self) -> &Edge {
        &self.shared.edge
    }

    /// What its clients must trust, if it speaks TLS.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The service with every default before this upstream.
    pub async fn app(&self) -> TestApp {
        self.app_with(|_| {}).await
    }

    /// The service before this upstream, with a configuration of its own.
    pub async fn app_with(&self, change: impl FnOnce(&mut Config)) -> TestApp {
        TestApp::start_with(&self.base_url, |config| {
            config.upstream.authorities = vec![self.certificate.authority().clone()];
            change(config);
        })
        .await
    }

    /// From now on a request without a script gets this one, if there is one.
    pub fn answers(&self, answering: impl Fn(&Seen) -> Option<Vec<Play>> + Send + Sync + 'static) -> &Self {
        *self.shared.answering.lock().expect("answering") = Some(Box::new(answering));
        self
    }

    /// What to do with the next request that has no script yet. Without one it gets [`answer`].
    pub fn then(&self, script: impl IntoIterator<Item = Play>) -> &Self {
        self.shared.scripts.lock().expect("scripts").push_back(script.into_iter().collect());
        self
    }

    /// From now on a request without a script gets its question back, behind `re: `: many may be asked at once, and each
    /// answer tells whose it is.
    pub fn echo(&self) -> &Self {
        self.shared.is_echo.store(true, Ordering::SeqCst);
        self
    }

    /// The next request gets this status and body.
    pub fn then_status(&self, status: u16, headers: &str, body: &str) -> &Self {
        self.then([Play::Send(response(status, headers, body))])
    }

    /// The next request gets this JSON with status 200.
    pub fn then_json(&self, body: &Value) -> &Self {
        self.then_status(200, "", &body.to_string())
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("seen").clone()
    }

    /// Waits until `count` requests have arrived.
    pub async fn arrived(&self, count: usize) {
        let wait = async {
            while self.seen().len() < count {
                let arrival = self.shared.arrived.notified();
                if self.seen().len() < count {
                    arrival.await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the requests arrive");
    }

    /// Lets one [`Play::Hold`] go on.
    pub fn release(&self) {
        self.shared.release.notify_one();
    }

    /// Waits until the other side has left a connection in [`Play::Silence`].
    pub async fn left(&self) {
        tokio::time::timeout(PATIENCE, self.shared.left.notified()).await.expect("the connection is closed");
    }
}

impl Drop for ScriptedUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A whole answer with that text, as OpenAI gives it.
pub fn answer(text: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1767225600, "model": "gpt-4o-2024-08-06",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": null, "annotations": []},
            "logprobs": null, "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 10, "completion_tokens": 15, "total_tokens": 25,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "service_tier": "default", "system_fingerprint": "fp_1",
    })
}

/// The bytes of a response. `headers` are whole lines.
pub fn response(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let content_type =
        if headers.to_lowercase().contains("content-type:") { "" } else { "content-type: application/json\r\n" };
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\n{content_type}{headers}content-length: {length}\r\n\r\n{body}").into_bytes()
}

/// One connection.
async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let record = shared.edge.connect();
    let mut path = Path::new(stream, Arc::clone(&record));
    if shared.edge.is_mute() {
        return until_closed(&mut path).await;
    }
    let Some(tls) = tls else { return converse(path, &record, &shared).await };
    tokio::time::sleep(shared.edge.handshake_wait()).await;
    let stream = tls.accept(path).await?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        http2::serve(stream, record, shared).await
    } else {
        converse(stream, &record, &shared).await
    }
}

async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut rest = [0; 64];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

impl Shared {
    /// What to do with a request.
    fn script(&self, seen: Seen) -> Vec<Play> {
        let is_models = seen.line.ends_with("/models");
        let echo = self.is_echo.load(Ordering::SeqCst).then(|| echo(&seen.body)).flatten();
        let script = self.scripts.lock().expect("scripts").pop_front();
        let script = script.or_else(|| self.answering.lock().expect("answering").as_ref()?(&seen)).or(echo);
        self.seen.lock().expect("seen").push(seen);
        self.arrived.notify_waiters();
        script.unwrap_or_else(|| {
            let models = json!({"object": "list", "data": [{"id": "gpt-4o", "object": "model", "created": 5}]});
            let body = if is_models { models } else { answer("안녕하세요! 무엇을 도와드릴까요?") };
            vec![Play::Send(response(200, "", &body.to_string()))]
        })
    }
}

/// A connection of HTTP/1.1.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, record: &Record, shared: &Shared) -> io::Result<()> {
    let mut unread = Vec::new();
    loop {
        let Some(seen) = read_request(&mut stream, &mut unread).await? else { return Ok(()) };
        record.begun();
        for step in shared.script(seen) {
            match step {
                Play::Send(bytes) => {
                    stream.write_all(&bytes).await?;
                    stream.flush().await?;
                }
                Play::Pause(time) => tokio::time::sleep(time).await,
                Play::Hold => shared.release.notified().await,
                Play::Until(gate) => gate.cancelled().await,
                Play::Close => return stream.shutdown().await,
                Play::Reset => {
                    record.is_cut.store(true, Ordering::SeqCst);
                    return Ok(());
                }
                Play::Silence => {
                    // A connection that breaks has been left too.
                    let _ = until_closed(&mut stream).await;
                    shared.left.notify_one();
                    return Ok(());
                }
            }
        }
        record.ended();
    }
}

/// The answer that repeats the question, whole or streamed as that was asked.
fn echo(body: &Value) -> Option<Vec<Play>> {
    let question = body["messages"].as_array()?.last()?["content"].as_str()?;
    let text = format!("re: {question}");
    Some(match body["stream"].as_bool() {
        Some(true) => Script::answer(&["re: ", question]).into_iter().collect(),
        _ => vec![Play::Send(response(200, "", &answer(&text).to_string()))],
    })
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin), unread: &mut Vec<u8>) -> io::Result<Option<Seen>> {
    let head_end = loop {
        if let Some(at) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&unread[..head_end]).into_owned();
    let mut lines = head.lines();
    let line = lines.next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, n)| n.parse().expect("a length"));
    while unread.len() < head_end + length {
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
    let body: Vec<u8> = unread.drain(..head_end + length).skip(head_end).collect();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
    Ok(Some(Seen { line, headers, body }))
}
