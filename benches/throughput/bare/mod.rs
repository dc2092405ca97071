//! The least that an axum service in front of reqwest can do: parse, ask, parse, answer.

mod stream;
mod whole;

use std::{borrow::Cow, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::post,
    serve::ListenerExt,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

#[derive(Deserialize)]
struct Question<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    system_prompt: Cow<'a, str>,
    #[serde(borrow)]
    model: Cow<'a, str>,
    temperature: f64,
    max_tokens: u32,
}

#[derive(Serialize)]
struct Asked<'a> {
    model: &'a str,
    messages: [Message<'a>; 2],
    temperature: f64,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

struct Upstream {
    client: reqwest::Client,
    url: reqwest::Url,
    /// Whether a stream hands on together what has come together.
    merges: bool,
}

pub(crate) async fn serve(listener: TcpListener, upstream: &str, merges: bool) {
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().unwrap();
    let url = format!("{upstream}/chat/completions").parse().unwrap();
    let upstream = Arc::new(Upstream { client, url, merges });
    let router = Router::new().route("/chat", post(whole::chat)).route("/chat/stream", post(stream::chat));
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    axum::serve(listener, router.with_state(upstream)).await.unwrap();
}

/// Says no to everybody, with a body as long as an error's.
pub(crate) async fn refuse(listener: TcpListener) {
    const BODY: &str = r#"{"detail":"authentication is required","error":{"code":"unauthorized","request_id":"req_0123456789abcdef0123456789abcdef"}}"#;
    let router =
        Router::new().fallback(|| async { (StatusCode::UNAUTHORIZED, [(CONTENT_TYPE, "application/json")], BODY) });
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    axum::serve(listener, router).await.unwrap();
}

impl Upstream {
    async fn ask(&self, question: &Question<'_>, streams: bool) -> Result<reqwest::Response, StatusCode> {
        let message = |role, content| Message { role: Cow::Borrowed(role), content: Cow::Borrowed(content) };
        let asked = Asked {
            model: &question.model,
            messages: [message("system", &question.system_prompt), message("user", &question.message)],
            temperature: question.temperature,
            max_tokens: question.max_tokens,
            stream: streams.then_some(true),
            stream_options: streams.then_some(StreamOptions { include_usage: true }),
        };
        let asked = serde_json::to_vec(&asked).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let request = self.client.post(self.url.clone()).bearer_auth("sk-bench");
        let request = request.header(CONTENT_TYPE, "application/json").body(asked);
        let answer = async { request.send().await?.error_for_status() };
        answer.await.map_err(|_: reqwest::Error| StatusCode::BAD_GATEWAY)
    }
}
