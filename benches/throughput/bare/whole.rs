//! `POST /chat`: a question in, a whole answer out.

use std::{borrow::Cow, sync::Arc};

use axum::{
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Message, Question, Upstream, Usage};

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

#[derive(Serialize)]
struct Answer<'a> {
    response: Cow<'a, str>,
    usage: Usage,
    model: &'a str,
}

pub(super) async fn chat(
    State(upstream): State<Arc<Upstream>>,
    body: Bytes,
) -> Result<impl IntoResponse + use<>, StatusCode> {
    let question: Question<'_> = serde_json::from_slice(&body).map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
    let answer = upstream.ask(&question, false).await?.bytes().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    let completion: Completion<'_> = serde_json::from_slice(&answer).map_err(|_| StatusCode::BAD_GATEWAY)?;
    let choice = completion.choices.into_iter().next().ok_or(StatusCode::BAD_GATEWAY)?;
    let answer = Answer { response: choice.message.content, usage: completion.usage, model: &question.model };
    let answer = serde_json::to_vec(&answer).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([(CONTENT_TYPE, "application/json")], answer))
}
