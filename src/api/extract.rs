//! Extractors that reject with [`ApiError`], in FastAPI's form.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRef, FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    api::{
        error::ApiError,
        guard::{HeldPlace, IDEMPOTENCY_KEY, Identity},
        json_error::{self, Explanation},
        validation::{Fields, Issue, Loc, Object},
    },
    chat,
    config::Limits,
    ids::{ConversationId, Owner, StreamId},
    limits::{Hold, Room},
    state::AppState,
};

/// Who asks. Without authentication everybody is the same one.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) chat::Caller);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // It stays there: whose body is read is asked later.
        match parts.extensions.get::<Identity>() {
            // The guard is only asked when something is configured.
            None => Ok(Self(chat::Caller::default())),
            Some(Identity::Known(caller)) => Ok(Self(caller.clone())),
            // The guard lets a ticket in where [`StreamOwner`] is asked for, and nowhere else.
            Some(Identity::TicketHolder(_)) => Err(ApiError::Unauthorized),
        }
    }
}

/// The stream that the path names, and whose word counts about it: its caller's, or that of whoever has its ticket.
#[derive(Clone, Debug)]
pub(crate) struct StreamOwner {
    pub(crate) id: StreamId,
    pub(crate) owner: Owner,
}

impl FromRequestParts<AppState> for StreamOwner {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let StreamPath(id) = StreamPath::from_request_parts(parts, state).await?;
        let owner = match parts.extensions.remove::<Identity>() {
            None => Owner::default(),
            Some(Identity::Known(caller)) => caller.owner,
            Some(Identity::TicketHolder(ticket)) if ticket == id => {
                state.streams.owner(id).await.ok_or(ApiError::StreamNotFound)?
            }
            Some(Identity::TicketHolder(_)) => return Err(ApiError::Unauthorized),
        };
        Ok(Self { id, owner })
    }
}

/// The stream that the path names. An id of another form is no stream's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamPath(pub(crate) StreamId);

impl<S: Send + Sync> FromRequestParts<S> for StreamPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // As it was sent: the guard looks at it before anything is decoded, and both must see the same.
        let id = parts.uri.path().rsplit('/').next().and_then(StreamId::parse);
        id.map(Self).ok_or(ApiError::StreamNotFound)
    }
}

/// The conversation that the path names. What can be no conversation's id is none's.
#[derive(Clone, Debug)]
pub(crate) struct ConversationPath(pub(crate) ConversationId);

impl<S: Send + Sync> FromRequestParts<S> for ConversationPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(id)| ConversationId::parse(&id));
        id.map(Self).ok_or(ApiError::ConversationNotFound)
    }
}

/// The caller's name for a request that it may send again: `[!-~]{1,255}`.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

/// The place among the requests in flight of one with an `Idempotency-Key`, for the task that works for it.
#[derive(Clone, Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "it is there to be held")] Option<HeldPlace>);

impl<S: Send + Sync> FromRequestParts<S> for Held {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.remove()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let key = value.to_str().unwrap_or_default();
        let is_good = (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        if is_good && values.next().is_none() {
            Ok(Self(Some(key.to_owned())))
        } else {
            Err(ApiError::InvalidIdempotencyKey)
        }
    }
}

/// A JSON value, in or out. In: a type that is [`FromJson`]. Out: anything that serializes.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

/// A value that is read from the fields of an object, with every mistake reported.
pub(crate) trait FromFields: Sized {
    type Fields<'de>: Fields<'de>;

    /// Most bytes of the body.
    fn body_limit(limits: Limits) -> usize {
        limits.body_bytes
    }

    /// Judges the fields.
    fn from_fields(fields: Self::Fields<'_>, is_empty: bool) -> Result<Self, Vec<Issue>>;
}

/// A value that is read from a body.
pub(crate) trait FromJson: Sized {
    /// Most bytes of the body.
    fn limit(limits: Limits) -> usize;

    /// Decodes and judges.
    fn from_json(text: &str) -> Result<Result<Self, Vec<Issue>>, serde_json::Error>;
}

impl<T: FromFields> FromJson for T {
    fn limit(limits: Limits) -> usize {
        T::body_limit(limits)
    }

    fn from_json(text: &str) -> Result<Result<Self, Vec<Issue>>, serde_json::Error> {
        let object: Object<T::Fields<'_>> = serde_json::from_str(text)?;
        Ok(match object {
            Object::Fields { fields, is_empty } => T::from_fields(fields, is_empty),
            Object::Other => Err(vec![Issue::not_an_object(vec![Loc::Name("body")])]),
        })
    }
}

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    Limits: FromRef<S>,
    Room: FromRef<S>,
    T: FromJson,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let limits = Limits::from_ref(state);
        let limits = Limits { body_bytes: T::limit(limits), ..limits };
        let kind = body_kind(request.headers())?;
        let who = match request.extensions().get::<Identity>() {
            Some(Identity::Known(caller)) => Some(Arc::clone(&caller.who)),
            _ => None,
        };
        // Until it is parsed.
        let mut hold = Room::from_ref(state).hold(who);
        let body = read_body(request, limits, &mut hold).await?;
        if body.is_empty() {
            return Err(ApiError::Invalid(vec![
                Issue::new("missing", vec![Loc::Name("body")], "Field required").input(Some(json!(null))),
            ]));
        }
        match kind {
            BodyKind::Json => parse(&body).map(Self),
            // As FastAPI does; and a page of another site could send text/plain without asking first.
            BodyKind::Other => Err(ApiError::Invalid(vec![
                Issue::not_an_object(vec![Loc::Name("body")])
                    .ctx(json!({"error": "Content-Type must be application/json"})),
            ])),
        }
    }
}

enum BodyKind {
    Json,
    Other,
}

/// What the headers say of the body.
fn body_kind(headers: &HeaderMap) -> Result<BodyKind, ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes);
    if !matches!(encoding, None | Some(b"" | b"identity")) {
        return Err(ApiError::UnsupportedMediaType("a compressed body is not accepted"));
    }
    let Some(content_type) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return Ok(BodyKind::Other);
    };
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let charset = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("charset"));
    if let Some((_, charset)) = charset
        && !matches!(charset.trim_matches('"').to_ascii_lowercase().as_str(), "utf-8" | "utf8" | "us-ascii")
    {
        return Err(ApiError::UnsupportedMediaType("the body must be UTF-8"));
    }
    let subtype = media_type.strip_prefix("application/");
    let is_json = subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"));
    Ok(if is_json { BodyKind::Json } else { BodyKind::Other })
}

/// Bodies up to this size are not counted: `MAX_REQUESTS_IN_FLIGHT` bounds them well enough.
const SMALL_BODY: usize = 64 * 1024;

/// What a caller waits whose body finds no room.
const NO_ROOM_RETRY_AFTER: Duration = Duration::from_secs(1);

async fn read_body(request: Request, limits: Limits, hold: &mut Hold) -> Result<Bytes, ApiError> {
    let limit = limits.body_bytes;
    let too_large = || ApiError::BodyTooLarge { limit };
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| usize::try_from(length).map_or(true, |length| length > limit)) {
        return Err(too_large());
    }
    let body = gather(Limited::new(request.into_body(), limit), hold);
    match timeout(limits.body_time, body).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(Ungathered::NoRoom)) => Err(ApiError::Overloaded { retry_after: NO_ROOM_RETRY_AFTER }),
        Ok(Err(Ungathered::Broken(error))) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(Ungathered::Broken(_))) => Err(ApiError::BodyInterrupted),
        Err(_) => Err(ApiError::BodyTimeout { limit: limits.body_time }),
    }
}

/// Why a body was not read to its end.
enum Ungathered {
    NoRoom,
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

/// The whole body, each part of it counted before the next is waited for.
async fn gather(mut body: Limited<Body>, hold: &mut Hold) -> Result<Bytes, Ungathered> {
    let (mut first, mut whole, mut length) = (Bytes::new(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Ungathered::Broken)?.into_data() else { continue };
        length += data.len();
        // All of it at once when it is no longer small.
        let more = if length - data.len() <= SMALL_BODY { length } else { data.len() };
        if length > SMALL_BODY && !hold.take(more) {
            return Err(Ungathered::NoRoom);
        }
        if length == data.len() {
            // Most bodies come as one, which need not be moved.
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.into() })
}

/// A value from the bytes of its JSON.
pub(crate) fn parse<T: FromJson>(body: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::UnreadableBody)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    T::from_json(text).map_err(|error| malformed(text, &error))?.map_err(ApiError::Invalid)
}

/// Malformed JSON as Python reports it; where Python would have accepted it, in the same form.
fn malformed(text: &str, error: &serde_json::Error) -> ApiError {
    let said = error.to_string();
    let (at, reason) = match json_error::explain(text) {
        Explanation::At(at, reason) => (at, reason),
        Explanation::TooDeep => return ApiError::UnreadableBody,
        Explanation::Accepted if said.contains("surrogate") || said.contains("hex escape") => {
            let msg = "Input should be a valid string, unable to parse raw data as a unicode string";
            return ApiError::Invalid(vec![Issue::new("string_unicode", vec![Loc::Name("body")], msg)]);
        }
        Explanation::Accepted => {
            let is_range = said.starts_with("number out of range");
            let reason = if is_range { "Number out of range" } else { "Expecting value" };
            (character_at(text, error.line(), error.column()), reason)
        }
    };
    let loc = vec![Loc::Name("body"), Loc::Index(at)];
    ApiError::Invalid(vec![
        Issue::new("json_invalid", loc, "JSON decode error").input(Some(json!({}))).ctx(json!({"error": reason})),
    ])
}

/// The position in characters of serde's line and column, which count bytes and from 1.
fn character_at(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let byte = before + column.saturating_sub(1);
    text.char_indices().take_while(|(at, _)| *at < byte).count()
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        // What a usual answer takes, so that writing does not move it again and again.
        let mut body = Vec::with_capacity(1024);
        match serde_json::to_writer(&mut body, &self.0) {
            Ok(()) => ([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response(),
            Err(_) => ApiError::Internal.into_response(),
        }
    }
}
