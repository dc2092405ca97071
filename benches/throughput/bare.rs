//! The least that an axum service in front of reqwest can do for `POST /chat`: parse, ask, parse, answer.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::post,
    serve::ListenerExt,
};
use bytes::Bytes;
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
}

#[derive(Serialize, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Completion<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    message: Message<'a>,
}

#[derive(Serialize, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

#[derive(Serialize)]
struct Answer<'a> {
    response: &'a str,
    usage: Usage,
    model: &'a str,
}

struct Upstream {
    client: reqwest::Client,
    url: reqwest::Url,
}

pub(crate) async fn serve(listener: TcpListener, upstream: &str) {
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().unwrap();
    let url = format!("{upstream}/chat/completions").parse().unwrap();
    let router = Router::new().route("/chat", post(chat)).with_state(Arc::new(Upstream { client, url }));
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    axum::serve(listener, router).await.unwrap();
}

async fn chat(State(upstream): State<Arc<Upstream>>, body: Bytes) -> Result<impl IntoResponse, StatusCode> {
    let question: Question<'_> = serde_json::from_slice(&body).map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
    let asked = Asked {
        model: &question.model,
        messages: [
            Message { role: "system".into(), content: question.system_prompt },
            Message { role: "user".into(), content: question.message },
        ],
        temperature: question.temperature,
        max_tokens: question.max_tokens,
    };
    let asked = serde_json::to_vec(&asked).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let request = upstream.client.post(upstream.url.clone()).bearer_auth("sk-bench");
    let request = request.header(CONTENT_TYPE, "application/json").body(asked);
    let answer = async { request.send().await?.error_for_status()?.bytes().await };
    let answer = answer.await.map_err(|_: reqwest::Error| StatusCode::BAD_GATEWAY)?;
    let completion: Completion<'_> = serde_json::from_slice(&answer).map_err(|_| StatusCode::BAD_GATEWAY)?;
    let choice = completion.choices.first().ok_or(StatusCode::BAD_GATEWAY)?;
    let answer = Answer { response: &choice.message.content, usage: completion.usage, model: &question.model };
    let answer = serde_json::to_vec(&answer).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([(CONTENT_TYPE, "application/json")], answer))
}
