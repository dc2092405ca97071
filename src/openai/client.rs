//! The calls: send, wait within limits, read a bounded answer, decode it.

use std::{future::Future, time::Duration};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue},
    redirect,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use url::Url;

use crate::{
    config::{Timeouts, Upstream},
    message::{Message, Usage},
    openai::{
        classify::{classify, classify_inside, transport_failure},
        dialect::{Dialect, Dialects},
        error::{Stage, UpstreamError},
        stream::{AnswerStream, StreamLimits},
        wire::{self, CompletionRequest, ErrorBody, ModelList, StreamOptions},
    },
};

/// Most bytes a whole answer may have.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Most bytes of an error body that are read.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// What to ask a model.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    pub model: &'a str,
    pub messages: &'a [Message],
    /// 0 to 2.
    pub temperature: f64,
    /// Most tokens of the answer.
    pub max_tokens: u32,
}

/// A whole answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The model's text, or the words with which it refused.
    pub text: String,
    /// `None` when the upstream did not say.
    pub usage: Option<Usage>,
}

/// Shows the length of the text and never the text.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("bytes", &self.text.len()).field("usage", &self.usage).finish()
    }
}

/// A model that the upstream lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub id: String,
    /// Unix time in seconds; 0 when the upstream did not say.
    pub created: i64,
    pub owned_by: String,
}

/// A client that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the key, organization or project cannot be sent in a header")]
    Header(#[from] InvalidHeaderValue),
    #[error("the HTTP client cannot start (are CA certificates installed?): {0}")]
    Http(#[from] reqwest::Error),
    #[error("OPENAI_BASE_URL cannot take a path")]
    BaseUrl,
}

/// Talks to one upstream. One per app; it is shared by reference.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    completions: Url,
    models: Url,
    api_key: SecretString,
    timeouts: Timeouts,
    dialects: Dialects,
}

impl Client {
    /// Builds the connection pool; connects to nothing yet.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(upstream: &Upstream) -> Result<Self, ClientError> {
        let mut builder = reqwest::Client::builder()
            .default_headers(headers(upstream)?)
            .connect_timeout(upstream.timeouts.connect)
            .redirect(redirect::Policy::none())
            .referer(false)
            .tcp_nodelay(true);
        if matches!(upstream.base_url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            // The system's proxy is for the world outside this machine.
            builder = builder.no_proxy();
        }
        Ok(Self {
            http: builder.build()?,
            completions: endpoint(&upstream.base_url, &["chat", "completions"])?,
            models: endpoint(&upstream.base_url, &["models"])?,
            api_key: upstream.api_key.clone(),
            timeouts: upstream.timeouts,
            dialects: Dialects::default(),
        })
    }

    /// Asks for a whole answer.
    ///
    /// # Errors
    /// Every way in which there is no complete answer with text.
    pub async fn complete(&self, completion: &Completion<'_>) -> Result<Answer, UpstreamError> {
        within(self.timeouts.whole.min(self.timeouts.total), Stage::Total, async {
            let response = self.send(completion, Form::Whole).await?;
            let body = read(response, MAX_ANSWER_BYTES).await?;
            decode(&body, self.api_key.expose_secret())
        })
        .await
    }

    /// Asks for an answer piece by piece. Returns when the upstream has begun to answer.
    ///
    /// # Errors
    /// Every way in which an answer does not begin.
    pub async fn stream(&self, completion: &Completion<'_>) -> Result<AnswerStream, UpstreamError> {
        let limits = StreamLimits::from_now(self.timeouts);
        let response = self.send(completion, Form::Stream).await?;
        let content_type = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if content_type.starts_with(b"application/json") || content_type.starts_with(b"text/html") {
            // Not a stream, whatever its status says; it may still say why.
            let body = read(response, MAX_ERROR_BYTES).await?;
            let whole = UpstreamError::Protocol("a whole body where a stream was asked for");
            return Err(decode(&body, self.api_key.expose_secret()).err().unwrap_or(whole));
        }
        Ok(AnswerStream::new(response, limits, self.api_key.clone()))
    }

    /// Asks which models there are; costs nothing.
    ///
    /// # Errors
    /// Every way in which there is no list.
    pub async fn models(&self) -> Result<Vec<Model>, UpstreamError> {
        within(self.timeouts.models, Stage::FirstByte, async {
            let response = self.execute(Request::new(Method::GET, self.models.clone())).await?;
            let response = self.accepted(response).await?;
            let body = read(response, MAX_ANSWER_BYTES).await?;
            let list: ModelList =
                serde_json::from_slice(&body).map_err(|_| UpstreamError::Protocol("a malformed model list"))?;
            Ok(list.data.into_iter().map(Model::from).collect())
        })
        .await
    }

    /// Sends a completion and returns the response once its head says success, whatever its body will be.
    ///
    /// When the model refuses a parameter that can be written otherwise, it is asked again, at most once for each
    /// such parameter, and its dialect is remembered.
    async fn send(&self, completion: &Completion<'_>, form: Form) -> Result<Response, UpstreamError> {
        let mut dialect = self.dialects.of(completion.model);
        let mut repairs_left = 2;
        loop {
            let mut request = Request::new(Method::POST, self.completions.clone());
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(encode(completion, dialect, form)?.into());
            let response = self.execute(request).await?;
            if response.status() != StatusCode::BAD_REQUEST || repairs_left == 0 {
                return self.accepted(response).await;
            }
            let (status, headers) = (response.status(), response.headers().clone());
            let body = read(response, MAX_ERROR_BYTES).await.unwrap_or_default();
            let Some(repaired) = ErrorBody::parse(&body).and_then(|error| dialect.repaired(&error)) else {
                return Err(classify(status, &headers, &body, self.api_key.expose_secret()));
            };
            repairs_left -= 1;
            dialect = repaired;
            self.dialects.learn(completion.model, dialect);
            tracing::info!(model = completion.model, ?dialect, "learned which parameters the model takes");
        }
    }

    /// One request, to the head of its response.
    async fn execute(&self, request: Request) -> Result<Response, UpstreamError> {
        within(self.timeouts.first_token, Stage::FirstByte, async {
            let sent = self.http.execute(request).await;
            sent.map_err(|error| transport_failure(&error, self.timeouts.connect))
        })
        .await
    }

    /// The response if its status is a success, else what its body says.
    async fn accepted(&self, response: Response) -> Result<Response, UpstreamError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let headers = response.headers().clone();
        // An error's body only explains; without it the status still speaks.
        let body = read(response, MAX_ERROR_BYTES).await.unwrap_or_default();
        Err(classify(status, &headers, &body, self.api_key.expose_secret()))
    }
}

async fn within<T>(
    limit: Duration,
    stage: Stage,
    work: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    timeout(limit, work).await.unwrap_or(Err(UpstreamError::Timeout { stage, limit }))
}

fn headers(upstream: &Upstream) -> Result<HeaderMap, InvalidHeaderValue> {
    let mut headers = HeaderMap::new();
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", upstream.api_key.expose_secret()))?;
    bearer.set_sensitive(true);
    headers.insert(AUTHORIZATION, bearer);
    let named = [("openai-organization", &upstream.organization), ("openai-project", &upstream.project)];
    for (name, value) in named {
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), HeaderValue::try_from(value)?);
        }
    }
    Ok(headers)
}

/// `base` with `segments` behind its path, whether or not that ends with a slash.
fn endpoint(base: &Url, segments: &[&str]) -> Result<Url, ClientError> {
    let mut url = base.clone();
    url.path_segments_mut().map_err(|()| ClientError::BaseUrl)?.pop_if_empty().extend(segments);
    Ok(url)
}

/// How an answer is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Whole,
    Stream,
}

fn encode(completion: &Completion<'_>, dialect: Dialect, form: Form) -> Result<Vec<u8>, UpstreamError> {
    let limit = Some(completion.max_tokens);
    let is_stream = form == Form::Stream;
    let request = CompletionRequest {
        model: completion.model,
        messages: completion.messages,
        temperature: (!dialect.no_temperature).then_some(completion.temperature),
        max_tokens: if dialect.newer_limit_name { None } else { limit },
        max_completion_tokens: if dialect.newer_limit_name { limit } else { None },
        stream: is_stream.then_some(true),
        stream_options: is_stream.then_some(StreamOptions { include_usage: true }),
    };
    // Room for all of it, so that writing does not move it again and again.
    let text: usize = completion.messages.iter().map(|message| message.content.len() + 64).sum();
    let mut body = Vec::with_capacity(text + 256);
    let written = serde_json::to_writer(&mut body, &request);
    written.map(|()| body).map_err(|_| UpstreamError::Protocol("a request that cannot be written"))
}

/// The whole body, if it ends properly and is not longer than `limit`.
async fn read(mut response: Response, limit: usize) -> Result<Bytes, UpstreamError> {
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    if announced > limit {
        return Err(UpstreamError::TooLarge { limit });
    }
    let mut next = async || response.chunk().await.map_err(|_| UpstreamError::Interrupted);
    let Some(first) = next().await? else {
        return Ok(Bytes::new());
    };
    if first.len() == announced {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(announced.max(first.len()));
    whole.extend_from_slice(&first);
    while let Some(chunk) = next().await? {
        if whole.len() + chunk.len() > limit {
            return Err(UpstreamError::TooLarge { limit });
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

fn decode(body: &[u8], secret: &str) -> Result<Answer, UpstreamError> {
    let malformed = |_| UpstreamError::Protocol("a body that is not a chat completion");
    let completion: wire::Completion<'_> = serde_json::from_slice(body).map_err(malformed)?;
    if completion.error.is_some() {
        return Err(classify_inside(body, secret));
    }
    let usage = completion.usage();
    let choice = completion.choices.into_iter().flatten().next();
    let choice = choice.ok_or(UpstreamError::Protocol("no choices"))?;
    let (content, refusal) = choice.message.map(|m| (m.content.0, m.refusal.0)).unwrap_or_default();
    let text = content.filter(|text| !text.is_empty()).or(refusal);
    let finish_reason = choice.finish_reason.0.as_deref().map_or("unknown", known_finish_reason);
    match text {
        Some(text) => Ok(Answer { text: text.into_owned(), usage }),
        // A model may well have nothing to say; one that was cut off before its first word failed.
        None if finish_reason == "stop" => Ok(Answer { text: String::new(), usage }),
        None => Err(UpstreamError::Empty { finish_reason }),
    }
}

/// The reason as one of OpenAI's own, so that no text of the upstream travels in it.
pub(super) fn known_finish_reason(reason: &str) -> &'static str {
    match reason {
        "stop" => "stop",
        "length" => "length",
        "content_filter" => "content_filter",
        "tool_calls" => "tool_calls",
        "function_call" => "function_call",
        _ => "unknown",
    }
}

impl From<wire::WireModel> for Model {
    fn from(model: wire::WireModel) -> Self {
        Self {
            id: model.id,
            created: model.created.and_then(|created| created.as_i64()).unwrap_or(0),
            owned_by: model.owned_by.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_keep_the_base_path_with_and_without_a_slash() {
        for (base, expected) in [
            ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
            ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/chat/completions"),
            ("https://x.example/openai/deployments/a/", "https://x.example/openai/deployments/a/chat/completions"),
        ] {
            let url = endpoint(&Url::parse(base).unwrap(), &["chat", "completions"]).unwrap();
            assert_eq!(url.as_str(), expected);
        }
    }

    #[test]
    fn answers_are_decoded_leniently() {
        let text = |body: &str| decode(body.as_bytes(), "").map(|answer| answer.text);
        let refused = r#"{"choices":[{"message":{"content":null,"refusal":"I can't."},"finish_reason":"stop"}]}"#;
        assert_eq!(text(refused).unwrap(), "I can't.");
        let silent = r#"{"choices":[{"message":{"content":null},"finish_reason":"stop"}],"usage":"odd"}"#;
        assert_eq!(text(silent).unwrap(), "");
        let spent = r#"{"choices":[{"message":{"content":""},"finish_reason":"length"}]}"#;
        assert_eq!(text(spent), Err(UpstreamError::Empty { finish_reason: "length" }));
        for none in [r"{}", r#"{"choices":[]}"#, r#"{"choices":null}"#] {
            assert_eq!(text(none), Err(UpstreamError::Protocol("no choices")), "{none}");
        }
        for garbage in ["", "<html>", "[]x", r#"{"choices":[{"message":{"content":"cut"#] {
            assert!(matches!(text(garbage), Err(UpstreamError::Protocol(_))), "{garbage}");
        }
    }

    #[test]
    fn an_error_in_a_200_counts_as_the_status_it_names() {
        let error = |body: &str| decode(body.as_bytes(), "").unwrap_err();
        let limited = error(r#"{"error":{"message":"slow down","code":429}}"#);
        assert!(matches!(limited, UpstreamError::RateLimited { .. }), "{limited:?}");
        let failed = error(r#"{"error":{"message":"broke"},"choices":[]}"#);
        assert_eq!(failed, UpstreamError::Server { status: 502 });
    }
}
