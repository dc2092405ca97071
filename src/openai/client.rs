//! The calls: send, wait within limits, read a bounded answer, decode it.

use std::{future::Future, time::Duration};

use reqwest::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue},
    redirect,
};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use url::Url;

use crate::{
    config::{Timeouts, Upstream},
    openai::{
        answer::{Answer, MAX_ANSWER_BYTES, Model, decode, decode_models, read},
        classify::{classify, transport_failure},
        dialect::Dialects,
        error::{Stage, UpstreamError},
        redact::Secrets,
        request::{Completion, Form, Question},
        stream::{AnswerStream, StreamLimits},
    },
};

/// Most bytes of an error body that are read.
const MAX_ERROR_BYTES: usize = 64 * 1024;

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
    secrets: Secrets,
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
            secrets: Secrets::new(std::slice::from_ref(&upstream.api_key)),
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
            decode(&body, &self.secrets)
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
            return Err(decode(&body, &self.secrets).err().unwrap_or(whole));
        }
        Ok(AnswerStream::new(response, limits, self.secrets.clone()))
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
            decode_models(&body)
        })
        .await
    }

    /// Sends a completion and returns the response once its head says success, whatever its body will be.
    ///
    /// When the model refuses a parameter that can be written otherwise, it is asked again, at most once for each
    /// such parameter, and its dialect is remembered.
    async fn send(&self, completion: &Completion<'_>, form: Form) -> Result<Response, UpstreamError> {
        let mut question = Question::new(completion, form, self.dialects.of(completion.model))?;
        loop {
            let mut request = Request::new(Method::POST, self.completions.clone());
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(question.body().into());
            let response = self.execute(request).await?;
            if response.status() != StatusCode::BAD_REQUEST {
                return self.accepted(response).await;
            }
            let (status, headers) = (response.status(), response.headers().clone());
            let body = read(response, MAX_ERROR_BYTES).await.unwrap_or_default();
            let Some(dialect) = question.repair(&body)? else {
                return Err(classify(status, &headers, &body, &self.secrets));
            };
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
        Err(classify(status, &headers, &body, &self.secrets))
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
}
