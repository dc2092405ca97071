//! The calls: send, wait within limits, read a bounded answer, decode it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
        InvalidHeaderValue,
    },
};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use crate::{
    config::{Timeouts, Upstream},
    openai::{
        answer::{Answer, MAX_ANSWER_BYTES, Model, decode, decode_models, read},
        classify::{COMPRESSED, NOTHING_HERE, classify},
        cost::Cost,
        deadline::Deadline,
        dialect::Dialects,
        error::{Stage, UpstreamError},
        keys::{Keys, Pass},
        redact::Secrets,
        request::{Completion, Form, Question},
        retry::{Failure, Retries},
        stream::{AnswerStream, StreamLimits},
        transport::{Endpoint, Request, Response, Transport},
    },
};

/// Most bytes of an error body that are read.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// How long an error body is waited for.
const ERROR_BODY_TIME: Duration = Duration::from_secs(5);

/// A client that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the key, organization or project cannot be sent in a header")]
    Header(#[from] InvalidHeaderValue),
    #[error("the HTTP client cannot start (are CA certificates installed?): {0}")]
    Http(#[from] reqwest::Error),
    #[error("TLS cannot start (are CA certificates installed?): {0}")]
    Tls(#[from] rustls::Error),
    #[error("OPENAI_BASE_URL cannot take a path")]
    BaseUrl,
}

/// Talks to one upstream. One per app; it is shared by reference.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    keys: Keys,
    completions: Endpoint,
    models: Endpoint,
    /// Of every request.
    headers: HeaderMap,
    secrets: Secrets,
    max_retries: u32,
    timeouts: Timeouts,
    dialects: Dialects,
    /// Whether the last chat that told anything of it found the upstream at its address.
    chats_work: AtomicBool,
}

/// What came of asking for the models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelList {
    Listed(Vec<Model>),
    /// The key may not list them. It may chat all the same.
    NotAllowed,
}

impl Client {
    /// Builds the connection pool; connects to nothing yet.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn new(upstream: &Upstream) -> Result<Self, ClientError> {
        Ok(Self {
            transport: Transport::new(upstream)?,
            keys: Keys::new(&upstream.api_keys, upstream.breaker)?,
            completions: endpoint(&upstream.base_url, &["chat", "completions"])?,
            models: endpoint(&upstream.base_url, &["models"])?,
            headers: headers(upstream)?,
            secrets: Secrets::new(&upstream.api_keys),
            max_retries: upstream.max_retries,
            timeouts: upstream.timeouts,
            dialects: Dialects::default(),
            chats_work: AtomicBool::new(false),
        })
    }

    /// Asks for a whole answer. `cost` tells at any time, and however it ends, what that may have cost.
    ///
    /// # Errors
    /// Every way in which there is no complete answer with text.
    pub async fn complete(&self, completion: &Completion<'_>, cost: &mut Cost) -> Result<Answer, UpstreamError> {
        let deadline = Deadline::after(self.timeouts.whole.min(self.timeouts.total), Stage::Total);
        deadline
            .bounds(async {
                let (response, _) = self.send(completion, Form::Whole, deadline, cost).await?;
                let body = read(response, MAX_ANSWER_BYTES).await?;
                decode(&body, &self.secrets, cost)
            })
            .await
    }

    /// Asks for an answer piece by piece. Returns when the upstream has begun to answer. What that has cost by then is in
    /// `cost`; what the answer costs, the answer tells.
    ///
    /// # Errors
    /// Every way in which an answer does not begin.
    pub async fn stream(&self, completion: &Completion<'_>, cost: &mut Cost) -> Result<AnswerStream, UpstreamError> {
        let started = Instant::now();
        let deadline = Deadline::after(self.timeouts.total, Stage::Total);
        let (response, asked) = self.send(completion, Form::Stream, deadline, cost).await?;
        // From here on the answer counts it.
        cost.calls = cost.calls.saturating_sub(1);
        let limits = StreamLimits { started, asked, timeouts: self.timeouts };
        Ok(AnswerStream::new(response, limits, self.secrets.clone()))
    }

    /// Whether chats are known to work: the last one that told anything of it was answered.
    pub fn chats_work(&self) -> bool {
        self.chats_work.load(Ordering::Relaxed)
    }

    /// Asks which models there are; costs nothing.
    ///
    /// Each key is asked with until one is accepted, resting or not, and nothing else is tried twice: it asks again by
    /// itself who wants to know. What comes of it is held against no key, for a key may chat and not list.
    ///
    /// # Errors
    /// Every way in which there is no list.
    pub async fn models(&self) -> Result<ModelList, UpstreamError> {
        let deadline = Deadline::after(self.timeouts.models, Stage::FirstByte);
        let mut refused = Err(UpstreamError::Unauthorized);
        for bearer in self.keys.for_the_model_list() {
            let list = deadline.bounds(self.models_with(bearer.clone(), deadline)).await;
            match list {
                Ok(ModelList::NotAllowed) => refused = list,
                // One that may not list says more than one that was not let in.
                Err(error) if error.is_about_the_key() => refused = refused.or(Err(error)),
                list => return list,
            }
        }
        refused
    }

    async fn models_with(&self, bearer: HeaderValue, deadline: Deadline) -> Result<ModelList, UpstreamError> {
        let mut headers = self.headers.clone();
        headers.insert(AUTHORIZATION, bearer);
        let request = Request { method: Method::GET, endpoint: &self.models, headers, body: Bytes::new() };
        let response = self.execute(&request, deadline).await.map_err(|failure| failure.error)?;
        if response.status() == StatusCode::FORBIDDEN {
            return Ok(ModelList::NotAllowed);
        }
        if !response.status().is_success() {
            return Err(self.refusal(response).await.0.error);
        }
        decode_models(&read(response, MAX_ANSWER_BYTES).await?).map(ModelList::Listed)
    }

    /// Sends a completion until the head of a response says success, whatever its body will be: with another key when
    /// one is refused, and again as long as that is worth it. Also tells when the request was sent that is answered.
    async fn send(
        &self,
        completion: &Completion<'_>,
        form: Form,
        deadline: Deadline,
        cost: &mut Cost,
    ) -> Result<(Response, Instant), UpstreamError> {
        let model = completion.model;
        // First of all, for without a key there is nothing to write.
        let mut pass = self.keys.first(model)?;
        let mut question = Question::new(completion, form, self.dialects.of(model))?;
        let mut retries = Retries::new(self.max_retries);
        loop {
            let asked = Instant::now();
            // Counted first: whoever asked may leave at any time.
            cost.calls += 1;
            let failure = match self.ask(&mut question, &pass, deadline).await {
                Ok(response) => {
                    pass.succeeded();
                    self.chats_work.store(true, Ordering::Relaxed);
                    return Ok((response, asked));
                }
                Err(failure) => failure,
            };
            if !failure.may_have_been_billed() {
                cost.calls = cost.calls.saturating_sub(1);
            }
            let key = pass.number();
            let failure = match pass.failed(failure) {
                Ok(another) => {
                    pass = another;
                    continue;
                }
                Err(failure) => failure,
            };
            let wait = retries.next(&failure, deadline.left());
            let Some(wait) = wait.filter(|wait| !self.keys.are_open_for(model, *wait)) else {
                return Err(failure.error);
            };
            let status = failure.status.map(|status| status.as_u16());
            let reason = failure.error.in_own_words();
            tracing::info!(key, model, status, reason, ?wait, "the upstream is asked again");
            sleep(wait).await;
            pass = self.keys.after_wait(model, &failure).map_err(|_| failure.error)?;
        }
    }

    /// One attempt, to the head of a response that says success.
    ///
    /// When the model refuses a parameter that can be written otherwise, it is asked again at once, at most once for
    /// each way to write it, and what it accepts is remembered.
    async fn ask(&self, question: &mut Question<'_>, pass: &Pass<'_>, deadline: Deadline) -> Result<Response, Failure> {
        // A stream begins at once; a whole answer is silent until it is complete, its head included.
        let head = match question.form() {
            Form::Stream => deadline.min(Deadline::after(self.timeouts.first_token, Stage::FirstByte)),
            Form::Whole => deadline,
        };
        loop {
            let mut headers = self.headers.clone();
            headers.insert(AUTHORIZATION, pass.bearer());
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let body = question.body();
            let request = Request { method: Method::POST, endpoint: &self.completions, headers, body };
            let response = self.execute(&request, head).await?;
            let status = response.status();
            if status.is_success() {
                if is_compressed(response.headers()) {
                    return Err(Failure::refused(status, response.headers(), COMPRESSED));
                }
                if let Some(dialect) = question.found_out() {
                    self.dialects.learn(question.model(), dialect);
                    tracing::info!(model = question.model(), ?dialect, "learned which parameters the model takes");
                }
                return Ok(response);
            }
            let (failure, body) = Box::pin(self.refusal(response)).await;
            if failure.error == NOTHING_HERE {
                self.chats_work.store(false, Ordering::Relaxed);
                tracing::warn!("nothing answers chats at the address that OPENAI_BASE_URL makes: does it lack /v1?");
            }
            let may_be_repaired = matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY);
            if !may_be_repaired || !question.repair(&body).map_err(Failure::silent)? {
                return Err(failure);
            }
        }
    }

    /// One request, to the head of its response.
    async fn execute(&self, request: &Request<'_>, deadline: Deadline) -> Result<Response, Failure> {
        deadline.bounds(self.transport.send(request)).await.map_err(Failure::silent)
    }

    /// What a response that says no success means, and its body.
    async fn refusal(&self, response: Response) -> (Failure, Bytes) {
        let (status, headers) = (response.status(), response.headers().clone());
        // An error's body only explains; without it the status still speaks.
        let body = timeout(ERROR_BODY_TIME, read(response, MAX_ERROR_BYTES)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        if is_compressed(&headers) {
            // The status speaks without it, where it says more than that the question was bad.
            let error = classify(status, &headers, b"", &self.secrets);
            let error = if matches!(error, UpstreamError::InvalidRequest(_)) { COMPRESSED } else { error };
            return (Failure::refused(status, &headers, error), Bytes::new());
        }
        (Failure::refused(status, &headers, classify(status, &headers, &body, &self.secrets)), body)
    }
}

fn is_compressed(headers: &HeaderMap) -> bool {
    let encodings =
        headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    encodings.map(<[u8]>::trim_ascii).any(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"))
}

fn headers(upstream: &Upstream) -> Result<HeaderMap, InvalidHeaderValue> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    // A stream that is compressed comes in blocks, and an answer that is small anyway gains nothing.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let named = [("openai-organization", &upstream.organization), ("openai-project", &upstream.project)];
    for (name, value) in named {
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), HeaderValue::try_from(value)?);
        }
    }
    Ok(headers)
}

/// `base` with `segments` behind its path, whether or not that ends with a slash.
fn endpoint(base: &Url, segments: &[&str]) -> Result<Endpoint, ClientError> {
    Endpoint::new(&join(base, segments)?).map_err(|_| ClientError::BaseUrl)
}

fn join(base: &Url, segments: &[&str]) -> Result<Url, ClientError> {
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
            let url = join(&Url::parse(base).unwrap(), &["chat", "completions"]).unwrap();
            assert_eq!(url.as_str(), expected);
        }
    }
}
