//! The one error of the API: what it is called, which status it has, what the caller reads.
//!
//! An error travels to the outermost layer inside the response (`into_response` only sets the status and attaches
//! the error); there `api::observe` writes the body, because only it knows the request id.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::validation::Issue,
    chat::{BeginError, Cause, ChatError, Failure, OverLimit},
    conversations::StoreError,
    ids::RequestId,
    limits::Standing,
    openai::{ConnectFailure, Stage, UpstreamError},
};

/// Everything a caller can be refused with.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("Not Found")]
    NotFound,
    #[error("Method Not Allowed")]
    MethodNotAllowed,
    /// No such stream, or another caller's, or one that has ended and cannot be stopped.
    #[error("스트리밍 세션을 찾을 수 없습니다")]
    StreamNotFound,
    /// No such conversation, or another caller's.
    #[error("대화를 찾을 수 없습니다")]
    ConversationNotFound,
    /// A conversation was not read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody who is let in.
    #[error("authentication is required")]
    Unauthorized,
    /// The address is not let in; for a while, if it is told how long.
    #[error("this address is not allowed")]
    AddressBlocked { retry_after: Option<Duration> },
    /// More requests than the caller may make.
    #[error("rate limit reached: too many requests")]
    OverRequests { standing: Standing },
    /// More tokens, or more running streams, than the caller may have.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// More requests are being answered than the service takes on at once.
    #[error("the service is busy")]
    Overloaded { retry_after: Duration },
    /// More connections are open than there can be.
    #[error("the service has too many connections")]
    TooManyConnections { retry_after: Duration },
    /// What came is no head of a request.
    #[error("the request's head cannot be read as HTTP/1.1")]
    BadHead,
    #[error("the request's head must have at most {bytes} bytes and {headers} headers")]
    HeadTooLarge { bytes: usize, headers: usize },
    /// Not exactly one valid `Host`.
    #[error("the request must have exactly one valid Host header")]
    BadHost,
    /// More than one way to read how long the body is.
    #[error("the length of the body must be said once, by Content-Length or by Transfer-Encoding: chunked")]
    BadFraming,
    #[error("the address is longer than {limit} bytes")]
    UriTooLong { limit: usize },
    /// An address that is only for WebSockets, asked for anything else.
    #[error("this address is for WebSocket connections")]
    WebSocketRequired,
    /// A page that is not in the list.
    #[error("this origin is not allowed")]
    OriginNotAllowed,
    /// One socket follows as many streams as it may.
    #[error("a socket follows at most {limit} streams at once")]
    TooManyStreams { limit: usize },
    /// Running answers may finish; new ones are not begun.
    #[error("the service is stopping")]
    Stopping,
    /// Running streams use up the memory there is for them.
    #[error("no room for another stream")]
    StreamLogFull,
    #[error("Idempotency-Key must be one header of 1 to 255 visible ASCII characters")]
    InvalidIdempotencyKey,
    #[error("this Idempotency-Key was used for another request")]
    IdempotencyKeyReused,
    /// The body was read and its shape is wrong.
    #[error("the body does not have the expected form")]
    Invalid(Vec<Issue>),
    /// The body is not text, or is nested too deep.
    #[error("There was an error parsing the body")]
    UnreadableBody,
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the body did not arrive within {limit:?}")]
    BodyTimeout { limit: Duration },
    /// The connection ended, or the framing broke, inside the body.
    #[error("the body ended early")]
    BodyInterrupted,
    #[error("{0}")]
    UnsupportedMediaType(&'static str),
    /// The chat gave no answer.
    #[error("채팅 처리 중 오류가 발생했습니다: {error}")]
    Chat { error: ChatError, model: String },
    /// A bug of ours.
    #[error("Internal Server Error")]
    Internal,
}

impl ApiError {
    /// The name of the error, for programs: it never changes. Also the label in metrics and logs.
    pub(crate) fn code(&self) -> &'static str {
        self.kind().1
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// The one table of statuses and codes.
    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::StreamNotFound => (StatusCode::NOT_FOUND, "stream_not_found"),
            Self::ConversationNotFound => (StatusCode::NOT_FOUND, "conversation_not_found"),
            Self::Store(error) => store_kind(error),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::AddressBlocked { .. } => (StatusCode::FORBIDDEN, "address_blocked"),
            Self::OverRequests { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Self::OverLimit(over) | Self::Chat { error: ChatError::OverLimit(over), .. } => over_kind(over),
            Self::Overloaded { .. } | Self::TooManyConnections { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded")
            }
            Self::BadHead => (StatusCode::BAD_REQUEST, "bad_head"),
            Self::HeadTooLarge { .. } => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"),
            Self::BadHost => (StatusCode::BAD_REQUEST, "bad_host"),
            Self::BadFraming => (StatusCode::BAD_REQUEST, "bad_framing"),
            Self::UriTooLong { .. } => (StatusCode::URI_TOO_LONG, "uri_too_long"),
            Self::WebSocketRequired => (StatusCode::UPGRADE_REQUIRED, "websocket_required"),
            Self::OriginNotAllowed => (StatusCode::FORBIDDEN, "origin_not_allowed"),
            Self::TooManyStreams { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_streams"),
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "shutdown"),
            Self::StreamLogFull => (StatusCode::SERVICE_UNAVAILABLE, "stream_log_full"),
            Self::InvalidIdempotencyKey => (StatusCode::BAD_REQUEST, "invalid_idempotency_key"),
            Self::IdempotencyKeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            Self::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
            Self::UnreadableBody => (StatusCode::BAD_REQUEST, "unreadable_body"),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTimeout { .. } => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::BodyInterrupted => (StatusCode::BAD_REQUEST, "body_interrupted"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::Chat { error: ChatError::Upstream(error), .. } => upstream_kind(error),
            Self::Chat { error: ChatError::Store(error), .. } => store_kind(error),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// How long the caller should wait, where waiting helps.
    fn retry_after(&self) -> Option<Duration> {
        let error = match self {
            Self::Chat { error: ChatError::Upstream(error), .. } => error,
            Self::Store(StoreError::Unavailable)
            | Self::Chat { error: ChatError::Store(StoreError::Unavailable), .. } => return Some(STORE_RETRY_AFTER),
            Self::AddressBlocked { retry_after } => return *retry_after,
            Self::Overloaded { retry_after } | Self::TooManyConnections { retry_after } => return Some(*retry_after),
            Self::OverRequests { standing } => return Some(standing.retry_after),
            Self::OverLimit(over) | Self::Chat { error: ChatError::OverLimit(over), .. } => {
                return Some(match over {
                    OverLimit::Tokens { standing, .. } => standing.retry_after,
                    OverLimit::Streams { .. } => DEFAULT_RETRY_AFTER,
                });
            }
            Self::StreamLogFull => return Some(DEFAULT_RETRY_AFTER),
            _ => return None,
        };
        match error {
            UpstreamError::RateLimited { retry_after, .. } | UpstreamError::Overloaded { retry_after } => {
                Some(retry_after.unwrap_or(DEFAULT_RETRY_AFTER))
            }
            UpstreamError::Server { retry_after, .. } => *retry_after,
            UpstreamError::Unavailable { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// The model that was asked, for the log.
    pub(crate) fn model(&self) -> Option<&str> {
        match self {
            Self::Chat { model, .. } => Some(model),
            _ => None,
        }
    }

    /// More than the code says, for the log: never words of the caller or of the upstream.
    pub(crate) fn reason(&self) -> Option<String> {
        let Self::Chat { error: ChatError::Upstream(error), .. } = self else {
            return None;
        };
        error.in_own_words()
    }

    /// What went wrong, as the caller reads it.
    pub(crate) fn detail(&self) -> Detail<'_> {
        match self {
            Self::Invalid(issues) => Detail::Issues(issues),
            other => Detail::Text(other.to_string()),
        }
    }

    /// The body and the headers that go with it.
    pub(crate) fn write(&self, request_id: &RequestId, response: &mut Response) {
        let body = ErrorBody { detail: self.detail(), code: self.code(), request_id: request_id.as_str() };
        // Writing these types to memory cannot fail.
        *response.body_mut() = serde_json::to_vec(&body).unwrap_or_default().into();
        let headers = response.headers_mut();
        // axum has measured the empty body that stood in its place.
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after() {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if matches!(
            self,
            Self::BodyTooLarge { .. }
                | Self::BodyTimeout { .. }
                | Self::BodyInterrupted
                | Self::BadFraming
                | Self::BadHost
                | Self::BadHead
                | Self::HeadTooLarge { .. }
                | Self::TooManyConnections { .. }
        ) {
            // What is left of the body would be read as the next request; and who cannot say whom it asks is not listened to
            // any longer.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if matches!(self, Self::Unauthorized) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self, Self::WebSocketRequired) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
    }
}

/// What a caller is told to wait when the upstream did not say.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

/// What a caller is told to wait for a database that is away: it is asked again with every request.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(2);

fn over_kind(over: &OverLimit) -> (StatusCode, &'static str) {
    match over {
        OverLimit::Tokens { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
        OverLimit::Streams { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_streams"),
    }
}

fn store_kind(error: &StoreError) -> (StatusCode, &'static str) {
    match error {
        StoreError::Exists => (StatusCode::CONFLICT, "conversation_exists"),
        StoreError::MessageTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "message_too_large"),
        StoreError::Full { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "conversation_full"),
        StoreError::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "storage_full"),
        StoreError::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "storage_unavailable"),
    }
}

impl From<BeginError> for ApiError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::NoRoom => Self::StreamLogFull,
            BeginError::Store(error) => Self::Store(error),
            BeginError::OverLimit(over) => Self::OverLimit(over),
        }
    }
}

fn upstream_kind(error: &UpstreamError) -> (StatusCode, &'static str) {
    match error {
        UpstreamError::ContextTooLong(_) => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
        UpstreamError::InvalidRequest(_) => (StatusCode::BAD_REQUEST, "upstream_invalid_request"),
        UpstreamError::ModelNotFound(_) => (StatusCode::NOT_FOUND, "model_not_found"),
        UpstreamError::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "upstream_rate_limited"),
        UpstreamError::Unauthorized => (StatusCode::BAD_GATEWAY, "upstream_auth"),
        UpstreamError::QuotaExceeded => (StatusCode::SERVICE_UNAVAILABLE, "upstream_quota"),
        UpstreamError::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, "upstream_overloaded"),
        UpstreamError::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "upstream_unavailable"),
        UpstreamError::Unreachable(ConnectFailure::Tls) => (StatusCode::BAD_GATEWAY, "upstream_tls"),
        UpstreamError::Unreachable(_) => (StatusCode::BAD_GATEWAY, "upstream_unreachable"),
        UpstreamError::Interrupted => (StatusCode::BAD_GATEWAY, "upstream_reset"),
        UpstreamError::Truncated => (StatusCode::BAD_GATEWAY, "upstream_truncated"),
        UpstreamError::Protocol(_) | UpstreamError::Unusable(_) => (StatusCode::BAD_GATEWAY, "upstream_protocol"),
        UpstreamError::TooLarge { .. } => (StatusCode::BAD_GATEWAY, "upstream_too_large"),
        UpstreamError::Empty { .. } => (StatusCode::BAD_GATEWAY, "upstream_empty"),
        UpstreamError::Timeout { stage: Stage::Idle, .. } => (StatusCode::GATEWAY_TIMEOUT, "upstream_stalled"),
        UpstreamError::Timeout { stage: Stage::Total, .. } => (StatusCode::GATEWAY_TIMEOUT, "upstream_deadline"),
        UpstreamError::Timeout { .. } | UpstreamError::Server { status: 408 | 504, .. } => {
            (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout")
        }
        UpstreamError::Server { .. } | UpstreamError::Failed(_) => (StatusCode::BAD_GATEWAY, "upstream_error"),
    }
}

/// What a failure is called in the events of a stream.
pub(crate) fn describe(cause: Cause<'_>) -> Failure {
    let (status, code) = match cause {
        Cause::Upstream(error) => upstream_kind(error),
        Cause::Store(error) => store_kind(error),
    };
    let retryable = match cause {
        Cause::Upstream(
            UpstreamError::QuotaExceeded
            | UpstreamError::Unauthorized
            | UpstreamError::TooLarge { .. }
            | UpstreamError::Unusable(_),
        ) => false,
        _ => status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
    };
    Failure { code, status: status.as_u16(), retryable }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    detail: Detail<'a>,
    code: &'static str,
    request_id: &'a str,
}

/// What went wrong, in words or as a list of mistakes.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Detail<'a> {
    Text(String),
    Issues(&'a [Issue]),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// An error, as every route answers it.
#[derive(ToSchema)]
#[schema(as = ErrorBody, example = json!({
    "detail": "채팅 처리 중 오류가 발생했습니다: AI 응답 생성 중 오류가 발생했습니다: OpenAI API is overloaded",
    "code": "upstream_overloaded",
    "request_id": "3e458467-c21f-4429-a90d-e0d2f496e3b2",
}))]
#[expect(dead_code, reason = "describes ErrorBody to the OpenAPI document")]
pub(crate) struct ErrorDocument {
    /// What went wrong, for people; Korean or English.
    detail: String,
    /// What went wrong, for programs. Never changes.
    code: String,
    /// The `X-Request-Id` of the answer, to find the request in the log.
    request_id: String,
}

/// A body that does not have the expected form.
#[derive(ToSchema)]
#[schema(as = ValidationError, example = json!({
    "detail": [{"type": "missing", "loc": ["body", "message"], "msg": "Field required", "input": {}}],
    "code": "invalid_request",
    "request_id": "3e458467-c21f-4429-a90d-e0d2f496e3b2",
}))]
#[expect(dead_code, reason = "describes ErrorBody to the OpenAPI document")]
pub(crate) struct ValidationErrorDocument {
    /// Every mistake, at most 100.
    detail: Vec<IssueDocument>,
    /// `invalid_request`
    code: String,
    /// The `X-Request-Id` of the answer, to find the request in the log.
    request_id: String,
}

/// One mistake, as Pydantic reports it.
#[derive(ToSchema)]
#[schema(as = ValidationIssue)]
#[expect(dead_code, reason = "describes Issue to the OpenAPI document")]
struct IssueDocument {
    /// What kind of mistake, such as `missing` or `string_type`.
    #[schema(rename = "type", example = "missing")]
    kind: String,
    /// The way to the field: names, and positions in lists. For malformed JSON, the position of the character.
    #[schema(example = json!(["body", "message"]))]
    loc: Vec<serde_json::Value>,
    #[schema(example = "Field required")]
    msg: String,
    /// What was given; left out wherever it may hold a message's text.
    #[schema(value_type = Option<serde_json::Value>)]
    input: Option<serde_json::Value>,
    /// The limits that apply.
    #[schema(value_type = Option<Object>)]
    ctx: Option<serde_json::Value>,
}
