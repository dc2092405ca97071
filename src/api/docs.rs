//! `/docs`, `/redoc` and `/openapi.json`, all from the binary: the pages load nothing from outside.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{HeaderValue, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use utoipa::{
    IntoParams, IntoResponses, OpenApi, PartialSchema, ToSchema,
    openapi::{
        Content, RefOr, Schema,
        schema::{AnyOfBuilder, Ref},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_swagger_ui::Config;

use crate::api::{
    error::{ApiError, ErrorDocument, ValidationErrorDocument},
    guard::{Policy, policy},
    stream::EventBody,
};

/// What the OpenAPI document says besides the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "ChatGPT Clone AI Service",
        description = "Chat with OpenAI's models over HTTP. Every error carries `detail` for people, `code` for \
                       programs and `request_id` for the log. Where callers are limited, every answer says where they \
                       stand in `x-ratelimit-limit-requests`, `x-ratelimit-remaining-requests`, \
                       `x-ratelimit-reset-requests` and the same three of `tokens`.",
        license(name = "MIT", identifier = "MIT"),
    ),
    components(schemas(ErrorDocument, ValidationErrorDocument, RefusedDocument, EventBody)),
    servers((url = ".", description = "This service")),
    tags(
        (name = "chat", description = "Questions and answers"),
        (name = "streams", description = "Answers as they are made, at an address of their own"),
        (name = "conversations", description = "What was said, kept for the next question"),
        (name = "service", description = "The service itself"),
    ),
)]
pub(crate) struct Document;

/// The header that makes a request safe to send again.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes IdempotencyKey to the OpenAPI document")]
pub(crate) struct IdempotencyKeyParam {
    /// The same key and the same body within ten minutes: the same answer or the same stream, paid for once.
    #[param(rename = "Idempotency-Key", pattern = "^[!-~]{1,255}$")]
    idempotency_key: Option<String>,
}

/// The request id of the examples.
const REQUEST_ID: &str = "3e458467-c21f-4429-a90d-e0d2f496e3b2";

/// What any route can answer that is not for everybody.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
enum GuardErrors {
    /// Nobody who is let in: `unauthorized`. The same for no, a wrong and an expired token
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`")), example = json!({"detail": "authentication is required", "code": "unauthorized", "request_id": REQUEST_ID}))]
    Unauthorized(ErrorDocument),
    /// The address is not let in, for a while if there is a `Retry-After`: `address_blocked`
    #[response(status = 403, headers(("Retry-After" = u64, description = "Seconds to wait, where waiting helps")), example = json!({"detail": "this address is not allowed", "code": "address_blocked", "request_id": REQUEST_ID}))]
    AddressBlocked(ErrorDocument),
    /// More than the caller may have now, see `Retry-After`: `rate_limited`, `too_many_streams`
    #[response(status = 429, headers(("Retry-After" = u64, description = "Seconds to wait")), example = json!({"detail": "rate limit reached: too many requests", "code": "rate_limited", "request_id": REQUEST_ID}))]
    RateLimited(ErrorDocument),
    /// More than the service takes on at once, see `Retry-After`: `overloaded`
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds to wait")), example = json!({"detail": "the service is busy", "code": "overloaded", "request_id": REQUEST_ID}))]
    Overloaded(ErrorDocument),
}

/// What any route can answer.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum PlainErrors {
    /// A bug of the service: `internal`
    #[response(status = 500, example = json!({"detail": "Internal Server Error", "code": "internal", "request_id": REQUEST_ID}))]
    Internal(ErrorDocument),
}

/// What any request can be answered with, before anybody knows what it asks for.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes the server's refusals to the OpenAPI document")]
enum HeadErrors {
    /// The head is larger than 32 KiB or has more than 64 headers: `head_too_large`
    #[response(status = 431, example = json!({"detail": "the request's head is too large", "code": "head_too_large", "request_id": REQUEST_ID}))]
    TooLarge(ErrorDocument),
}

/// What any route with a body can answer, besides 400.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum BodyErrors {
    /// The body did not arrive in time: `body_timeout`
    #[response(status = 408, example = json!({"detail": "the body did not arrive within 30s", "code": "body_timeout", "request_id": REQUEST_ID}))]
    Timeout(ErrorDocument),
    /// The body is too large: `body_too_large`
    #[response(status = 413, example = json!({"detail": "the body is larger than 2097152 bytes", "code": "body_too_large", "request_id": REQUEST_ID}))]
    TooLarge(ErrorDocument),
    /// The body is compressed or not UTF-8: `unsupported_media_type`
    #[response(status = 415, example = json!({"detail": "a compressed body is not accepted", "code": "unsupported_media_type", "request_id": REQUEST_ID}))]
    MediaType(ErrorDocument),
    /// The body does not have the expected form: `invalid_request`
    #[response(status = 422)]
    Invalid(ValidationErrorDocument),
}

/// What any route that takes an `Idempotency-Key` can answer. Named behind [`BodyErrors`], whose 422 it takes the place of.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum KeyErrors {
    /// The body does not have the expected form: `invalid_request`. The key was used for another body:
    /// `idempotency_key_reused`, with a text as `detail`
    #[response(status = 422, example = json!({"detail": [{"type": "missing", "loc": ["body", "message"], "msg": "Field required", "input": {}}], "code": "invalid_request", "request_id": REQUEST_ID}))]
    Refused(RefusedDocument),
}

/// Either form of a 422. `anyOf`, because both describe objects that may have further fields, so that none excludes the other.
pub(crate) struct RefusedDocument;

impl PartialSchema for RefusedDocument {
    fn schema() -> RefOr<Schema> {
        let forms = [ValidationErrorDocument::name(), ErrorDocument::name()];
        let refer = |name: &str| Ref::from_schema_name(name);
        forms.iter().fold(AnyOfBuilder::new(), |any_of, name| any_of.item(refer(name))).into()
    }
}

impl ToSchema for RefusedDocument {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Refused")
    }
}

/// What a chat can answer instead of an answer.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum ChatErrors {
    /// The request cannot be answered as it is: `context_length_exceeded`, `upstream_invalid_request`,
    /// `unreadable_body`, `body_interrupted`, `invalid_idempotency_key`
    #[response(status = 400, example = json!({"detail": "채팅 처리 중 오류가 발생했습니다: AI 응답 생성 중 오류가 발생했습니다: This model's maximum context length is 16385 tokens.", "code": "context_length_exceeded", "request_id": REQUEST_ID}))]
    BadRequest(ErrorDocument),
    /// No such model: `model_not_found`
    #[response(status = 404, example = json!({"detail": "채팅 처리 중 오류가 발생했습니다: AI 응답 생성 중 오류가 발생했습니다: The model `gpt-9` does not exist or you do not have access to it.", "code": "model_not_found", "request_id": REQUEST_ID}))]
    NotFound(ErrorDocument),
    /// Too much in too short a time, see `Retry-After`: `upstream_rate_limited`; of the caller, `rate_limited` and, as a
    /// stream, `too_many_streams`
    #[response(status = 429, headers(("Retry-After" = u64, description = "Seconds to wait, where waiting helps")), example = json!({"detail": "채팅 처리 중 오류가 발생했습니다: AI 응답 생성 중 오류가 발생했습니다: Rate limit reached for gpt-4o.", "code": "upstream_rate_limited", "request_id": REQUEST_ID}))]
    RateLimited(ErrorDocument),
    /// The upstream failed: `upstream_auth`, `upstream_empty`, `upstream_error`, `upstream_protocol`,
    /// `upstream_reset`, `upstream_tls`, `upstream_too_large`, `upstream_unreachable`
    #[response(status = 502, example = json!({"detail": "채팅 처리 중 오류가 발생했습니다: AI 응답 생성 중 오류가 발생했습니다: the connection to OpenAI API broke before the answer was complete", "code": "upstream_reset", "request_id": REQUEST_ID}))]
    BadGateway(ErrorDocument),
    /// Nobody can serve now: `overloaded`, `upstream_overloaded`, `upstream_unavailable` and `stream_log_full` (see
    /// `Retry-After`), `upstream_quota`
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds to wait, where waiting helps")), example = json!({"detail": "채팅 처리 중 오류가 발생했습니다: AI 응답 생성 중 오류가 발생했습니다: OpenAI API is overloaded", "code": "upstream_overloaded", "request_id": REQUEST_ID}))]
    Unavailable(ErrorDocument),
    /// The upstream took too long: `upstream_timeout`, `upstream_deadline`
    #[response(status = 504, example = json!({"detail": "채팅 처리 중 오류가 발생했습니다: AI 응답 생성 중 오류가 발생했습니다: OpenAI API gave no answer within 60s", "code": "upstream_timeout", "request_id": REQUEST_ID}))]
    GatewayTimeout(ErrorDocument),
}

/// What beginning a stream can answer instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum StreamStartErrors {
    /// The request cannot be read: `unreadable_body`, `body_interrupted`, `invalid_idempotency_key`
    #[response(status = 400, example = json!({"detail": "There was an error parsing the body", "code": "unreadable_body", "request_id": REQUEST_ID}))]
    BadRequest(ErrorDocument),
    /// No room for another stream now, see `Retry-After`: `stream_log_full`, `overloaded`
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds to wait, where waiting helps")), example = json!({"detail": "no room for another stream", "code": "stream_log_full", "request_id": REQUEST_ID}))]
    Full(ErrorDocument),
}

/// What reading or stopping a stream can answer instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum StreamErrors {
    /// No such stream: `stream_not_found`
    #[response(status = 404, example = json!({"detail": "스트리밍 세션을 찾을 수 없습니다", "code": "stream_not_found", "request_id": REQUEST_ID}))]
    NotFound(ErrorDocument),
}

/// What reading conversations can answer instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum ReadErrors {
    /// A bug of the service: `internal`
    #[response(status = 500, example = json!({"detail": "Internal Server Error", "code": "internal", "request_id": REQUEST_ID}))]
    Internal(ErrorDocument),
    /// The database does not answer, see `Retry-After`: `storage_unavailable`; or the service is busy: `overloaded`
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds to wait")), example = json!({"detail": "conversations cannot be reached at the moment", "code": "storage_unavailable", "request_id": REQUEST_ID}))]
    Unavailable(ErrorDocument),
}

/// What writing conversations can answer besides.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum WriteErrors {
    /// The disk is full: `storage_full`. Nothing was written; reading goes on.
    #[response(status = 507, example = json!({"detail": "no space left to store conversations", "code": "storage_full", "request_id": REQUEST_ID}))]
    NoSpace(ErrorDocument),
}

/// What any route that names a conversation can answer.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum ConversationErrors {
    /// No such conversation: `conversation_not_found`
    #[response(status = 404, example = json!({"detail": "대화를 찾을 수 없습니다", "code": "conversation_not_found", "request_id": REQUEST_ID}))]
    NotFound(ErrorDocument),
}

/// What opening a WebSocket can answer instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes ApiError to the OpenAPI document")]
pub(crate) enum SocketErrors {
    /// The page is not in `CORS_ALLOW_ORIGINS`: `origin_not_allowed`. Or the address is not let in: `address_blocked`
    #[response(status = 403, example = json!({"detail": "this origin is not allowed", "code": "origin_not_allowed", "request_id": REQUEST_ID}))]
    Origin(ErrorDocument),
    /// Not a WebSocket handshake of version 13: `websocket_required`
    #[response(status = 426, example = json!({"detail": "this address is for WebSocket connections", "code": "websocket_required", "request_id": REQUEST_ID}))]
    NoUpgrade(ErrorDocument),
    /// A bug of the service: `internal`
    #[response(status = 500, example = json!({"detail": "Internal Server Error", "code": "internal", "request_id": REQUEST_ID}))]
    Internal(ErrorDocument),
}

/// The name of the scheme by which callers are known.
const BEARER: &str = "bearer";

/// The name of the scheme by which one stream is read and stopped.
const TICKET: &str = "ticket";

/// Says of every route who may call it, and what it answers to others: as the guard has it, which is what decides. If it
/// `is_open`, who calls may be known, but need not be.
pub(crate) fn say_who_may_call(document: &mut utoipa::openapi::OpenApi, is_open: bool) {
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let bearer =
        bearer.description(Some("An API key or a JSON Web Token. Where callers are not told apart, none is needed."));
    let ticket =
        ApiKeyValue::with_description("ticket", "From `stream_url`; for its stream alone, as long as there is one.");
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer.build()));
    components.add_security_scheme(TICKET, SecurityScheme::ApiKey(ApiKey::Query(ticket)));
    let requirement = |name| SecurityRequirement::new::<_, [&str; 0], &str>(name, []);
    for (path, item) in &mut document.paths.paths {
        let mut security = match policy(path) {
            Policy::Public => Vec::new(),
            Policy::Private | Policy::Socket => vec![requirement(BEARER)],
            Policy::Stream => vec![requirement(BEARER), requirement(TICKET)],
        };
        let mut refusals = HeadErrors::responses();
        if !security.is_empty() {
            refusals.extend(GuardErrors::responses());
            if is_open {
                security.insert(0, SecurityRequirement::default());
            }
        }
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            // Said of each, also that it asks for nothing.
            operation.security = Some(security.clone());
            for (status, response) in &refusals {
                operation.responses.responses.entry(status.clone()).or_insert_with(|| response.clone());
            }
        }
    }
}

/// Describes `lastEventId` by its content, which means the same. Some generators write names in a form of their own, in which
/// this one is `last_event_id`, and then leave the whole operation out; a parameter of that kind they skip.
pub(crate) fn tell_names_apart(document: &mut utoipa::openapi::OpenApi) {
    let operations = document.paths.paths.values_mut().filter_map(|item| item.get.as_mut());
    for parameter in operations.flat_map(|operation| operation.parameters.iter_mut().flatten()) {
        if let RefOr::T(parameter) = parameter
            && parameter.name == "lastEventId"
        {
            let content = Content::new(parameter.schema.take());
            parameter.content.insert("text/plain".to_owned(), content.into());
        }
    }
}

/// Says where the service is, if that is known. Else it is where the document is.
pub(crate) fn say_where(document: &mut utoipa::openapi::OpenApi, root_path: &str) {
    if !root_path.is_empty() {
        document.servers.iter_mut().flatten().for_each(|server| root_path.clone_into(&mut server.url));
    }
}

/// The paths of [`router`].
pub(crate) const PATHS: [&str; 5] =
    ["/openapi.json", "/docs", "/docs/assets/{file}", "/redoc", "/redoc/redoc.standalone.js"];

/// The pages, around a finished document.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(document: &utoipa::openapi::OpenApi) -> Router<S> {
    let document = Bytes::from(document.to_json().unwrap_or_default());
    let json = move || {
        let document = document.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], Body::from(document)) }
    };
    let swagger = Arc::new(
        // Relative, as all that the pages name: a proxy may serve them below a path of its own.
        // "none" turns the badge off that would show the document to an outside validator.
        Config::from("openapi.json").validator_url("none").try_it_out_enabled(true).display_request_duration(true),
    );
    let asset = move |Path(file): Path<String>| {
        let swagger = Arc::clone(&swagger);
        async move { swagger_asset(&file, swagger) }
    };
    let [document_path, swagger_path, assets_path, redoc_path, script_path] = PATHS;
    Router::new()
        .route(document_path, get(json))
        .route(swagger_path, get(async || page(SWAGGER_PAGE)))
        .route(assets_path, get(asset))
        .route(redoc_path, get(async || page(REDOC_PAGE)))
        .route(script_path, get(async || script(Bytes::from_static(REDOC_SCRIPT.as_bytes()))))
}

/// What the pages may do: run and show what comes from here, and ask this service. Both write styles into the page, show
/// pictures that they carry with them, and ReDoc searches in a worker that it makes.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; \
     form-action 'self'",
);

fn page(html: &'static str) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(html)).into_response()
}

const SWAGGER_PAGE: &str = include_str!("docs/swagger.html");
const REDOC_PAGE: &str = include_str!("docs/redoc.html");

fn swagger_asset(file: &str, config: Arc<Config<'static>>) -> Result<Response, ApiError> {
    let Ok(Some(file)) = utoipa_swagger_ui::serve(file, config) else {
        return Err(ApiError::NotFound);
    };
    let content_type = HeaderValue::try_from(file.content_type).map_err(|_| ApiError::Internal)?;
    let headers = [(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, CACHED)];
    Ok((headers, Body::from(file.bytes.into_owned())).into_response())
}

/// For a day: the files change only with the binary.
const CACHED: HeaderValue = HeaderValue::from_static("public, max-age=86400");

fn script(body: Bytes) -> Response {
    let content_type = HeaderValue::from_static("text/javascript; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, CACHED)], Body::from(body)).into_response()
}

/// ReDoc's script, taken out of the page that the crate `aide` makes, so that it is cached and a content policy
/// need not allow inline scripts. A constant; made when it is first asked for.
static REDOC_SCRIPT: LazyLock<String> = LazyLock::new(|| {
    let page = aide::redoc::Redoc::new("/openapi.json").html();
    let inline = page.split_once("<script>").map_or("", |(_, rest)| rest);
    let library = inline.rsplit_once("Redoc.init(").map_or("", |(library, _)| library);
    let library = library.rsplit_once("//# sourceMappingURL=").map_or(library, |(code, _)| code);
    // The only outside address that the script loads something from.
    library.replace("https://cdn.redoc.ly/redoc/logo-mini.svg", "data:,")
});
