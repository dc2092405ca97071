//! `POST /chat`: a message in, a whole answer out.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use serde::{
    Serialize,
    de::{IgnoredAny, MapAccess},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        docs::{BodyErrors, ChatErrors, IdempotencyKeyParam, KeyErrors, PlainErrors},
        error::ApiError,
        extract::{Caller, FromFields, Held, IdempotencyKey, Json},
        observe::Spent,
        stream::{self, Begun},
        validation::{Fields, Issue, Judge, List, Loc, Object, Scalar},
    },
    chat::{
        self, ChatAnswer, ChatError, ChatRequest, OnDisconnect, OpenAiService, Opened,
        idempotency::{Claim, Outcome},
    },
    config::{MAX_TOKENS_LIMIT, is_model_name},
    ids::ConversationId,
    message::{Message, Role},
    state::AppState,
    timestamp::Timestamp,
};

/// Most messages a history may have.
pub(crate) const MAX_HISTORY: usize = 10_000;

pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(chat))
}

/// Ask a question and wait for the whole answer
///
/// The model gets the system prompt, then the history, then the message. What is left out, or `null`, has the
/// default that the service is configured with. With `Accept: text/event-stream` the answer comes as the events of
/// `GET /chat/stream/{stream_id}`; its START names the stream, so it can be read again there.
#[utoipa::path(
    post, path = "/chat", tag = "chat", operation_id = "chat",
    params(IdempotencyKeyParam),
    request_body(content = ChatBody, description = "The question and what bears on its answer"),
    responses(
        (status = 200, description = "The answer, or its events, each a `StreamEvent`", content(
            (ChatAnswerBody = "application/json"),
            (String = "text/event-stream", example = json!(stream::example())),
        )),
        ChatErrors, BodyErrors, KeyErrors, PlainErrors,
    ),
)]
async fn chat(
    State(state): State<AppState>,
    caller: Caller,
    (key, held): (IdempotencyKey, Held),
    headers: HeaderMap,
    Json(request): Json<StreamRequest>,
) -> Result<Response, ApiError> {
    if stream::accepts(&headers, "text/event-stream") {
        // In a box, as everything here that is not the usual: what a handler may need is moved about for every request.
        return Box::pin(as_stream(state, caller, key, request)).await;
    }
    let model = state.service.model_for(&request.chat).to_owned();
    let failed = |error| ApiError::Chat { error, model };
    let Some(key) = key.0 else {
        let answer = answer(&state.service, &caller.0, request).await.map_err(failed)?;
        return Ok(answered(answer, Timestamp::now()));
    };
    // Cancelled when this request is over, be it that its caller left.
    let present = CancellationToken::new();
    let _present = present.clone().drop_guard();
    let claim = state.idempotency.claim(&caller.0.owner, &key, &("chat", &request.chat, &request.conversation));
    let (is_first, waiting) = match claim {
        Claim::First(ticket) => {
            let waiting = ticket.waiting();
            let (service, is_waited_for) = (state.service.clone(), present.clone());
            // On a task of its own: the answer is kept for a caller who comes back for it.
            state.tasks.spawn(async move {
                let answer = answer_for_keeps(&service, &caller.0, request, is_waited_for).await;
                // Its place is free before the caller knows that it is done.
                drop(held);
                ticket.settle(answer.map_or_else(Outcome::Failed, |answer| Outcome::Answer(answer, Timestamp::now())));
            });
            (true, waiting)
        }
        Claim::Same(waiting) => (false, waiting),
        Claim::Other => return Err(ApiError::IdempotencyKeyReused),
    };
    match waiting.outcome().await {
        Some(Outcome::Answer(answer, at)) => Ok(marked(answered(answer, at), !is_first)),
        Some(Outcome::Failed(error)) => Err(failed(error)),
        Some(Outcome::Stream(_)) | None => Err(ApiError::Internal),
    }
}

/// Answers a request, with or without a conversation.
async fn answer(
    service: &OpenAiService,
    caller: &chat::Caller,
    request: StreamRequest,
) -> Result<ChatAnswer, ChatError> {
    match request.conversation {
        Some(id) => Box::pin(service.chat(caller, id, request.chat)).await,
        None => service.chat_with_history(caller, request.chat).await,
    }
}

/// The same, whether its caller waits for it or not. Once `present` is cancelled nobody may: then it takes one of the
/// caller's places for streams, which go on without their caller too.
async fn answer_for_keeps(
    service: &OpenAiService,
    caller: &chat::Caller,
    request: StreamRequest,
    present: CancellationToken,
) -> Result<ChatAnswer, ChatError> {
    let mut answer = Box::pin(answer(service, caller, request));
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        () = present.cancelled() => {
            let _slot = service.occupy(caller);
            answer.await
        }
    }
}

/// The response, saying that it was made for an earlier request with the same key if it `is_replay`.
pub(crate) fn marked(mut response: Response, is_replay: bool) -> Response {
    if is_replay {
        let name = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    response
}

fn answered(answer: ChatAnswer, timestamp: Timestamp) -> Response {
    let spent = Spent { model: answer.model.clone(), usage: answer.usage };
    let usage = answer.usage.map(UsageBody::from);
    let body = ChatAnswerBody { response: answer.text, usage, model: answer.model, timestamp };
    (spent, Json(body)).into_response()
}

/// The same stream as `POST /chat/stream`, begun and read in one request.
async fn as_stream(
    state: AppState,
    caller: Caller,
    key: IdempotencyKey,
    request: StreamRequest,
) -> Result<Response, ApiError> {
    let owner = caller.0.owner.clone();
    let Begun { spent, id, is_replay } = stream::begin(&state, caller, key, request).await?;
    let response = match state.streams.open(id, &owner, None).await {
        Some(Opened::Reader(reader)) => (spent, stream::events(reader, state.closing.0.clone())).into_response(),
        Some(Opened::NothingLeft) | None => return Err(ApiError::StreamNotFound),
    };
    Ok(marked(response, is_replay))
}

/// A chat request, and what becomes of it when it is a stream and its reader leaves.
#[derive(Clone, Debug, Hash)]
pub(crate) struct StreamRequest {
    pub(crate) chat: ChatRequest,
    /// The conversation that the turn belongs to.
    pub(crate) conversation: Option<ConversationId>,
    pub(crate) on_disconnect: OnDisconnect,
}

/// The fields of a chat request as they came.
#[derive(Default)]
pub(crate) struct ChatFields<'a> {
    message: Option<Scalar<'a>>,
    conversation_history: List<MessageFields<'a>, MAX_HISTORY>,
    conversation_id: Option<Scalar<'a>>,
    system_prompt: Option<Scalar<'a>>,
    model: Option<Scalar<'a>>,
    temperature: Option<Scalar<'a>>,
    max_tokens: Option<Scalar<'a>>,
    on_disconnect: Option<Scalar<'a>>,
}

impl<'de> Fields<'de> for ChatFields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "message" => self.message = Some(map.next_value()?),
            "conversation_history" => self.conversation_history = map.next_value()?,
            "conversation_id" => self.conversation_id = Some(map.next_value()?),
            "system_prompt" => self.system_prompt = Some(map.next_value()?),
            "model" => self.model = Some(map.next_value()?),
            "temperature" => self.temperature = Some(map.next_value()?),
            "max_tokens" => self.max_tokens = Some(map.next_value()?),
            "on_disconnect" => self.on_disconnect = Some(map.next_value()?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// The fields of a message as they came.
#[derive(Default)]
pub(crate) struct MessageFields<'a> {
    role: Option<Scalar<'a>>,
    content: Option<Scalar<'a>>,
}

impl<'de> Fields<'de> for MessageFields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "role" => self.role = Some(map.next_value()?),
            "content" => self.content = Some(map.next_value()?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl FromFields for StreamRequest {
    type Fields<'de> = ChatFields<'de>;

    fn from_fields(fields: ChatFields<'_>, is_empty: bool) -> Result<Self, Vec<Issue>> {
        let mut judge = Judge::new();
        let chat = ChatRequest {
            message: judge.required_text("message", fields.message, is_empty),
            history: history(&mut judge, fields.conversation_history),
            system_prompt: judge.optional_text("system_prompt", fields.system_prompt),
            model: model(&mut judge, fields.model),
            temperature: judge.optional_number("temperature", fields.temperature, 0.0..=2.0),
            max_tokens: judge.optional_integer("max_tokens", fields.max_tokens, 1..=MAX_TOKENS_LIMIT),
        };
        let conversation = conversation_id(&mut judge, "conversation_id", fields.conversation_id);
        if conversation.is_some() && !chat.history.is_empty() {
            let msg = "Input should be empty or left out together with conversation_id";
            judge.report(Issue::new("value_error", judge.loc("conversation_history"), msg));
        }
        let on_disconnect = on_disconnect(&mut judge, fields.on_disconnect);
        judge.finish(Self { chat, conversation, on_disconnect })
    }
}

fn history(judge: &mut Judge, list: List<MessageFields<'_>, MAX_HISTORY>) -> Vec<Message> {
    const NAME: &str = "conversation_history";
    match list {
        List::Null => Vec::new(),
        List::Other => {
            judge.report(Issue::new("list_type", judge.loc(NAME), "Input should be a valid list"));
            Vec::new()
        }
        List::Items { count, .. } if count > MAX_HISTORY => {
            let msg = format!("List should have at most {MAX_HISTORY} items after validation, not {count}");
            let ctx = json!({"field_type": "List", "max_length": MAX_HISTORY, "actual_length": count});
            judge.report(Issue::new("too_long", judge.loc(NAME), msg).ctx(ctx));
            Vec::new()
        }
        List::Items { items, .. } => judge.at(Loc::Name(NAME), |judge| {
            let mut messages = Vec::with_capacity(items.len() + 2);
            for (index, item) in items.into_iter().enumerate() {
                if judge.is_full() {
                    break;
                }
                messages.extend(judge.at(Loc::Index(index), |judge| message(judge, item)));
            }
            messages
        }),
    }
}

fn message(judge: &mut Judge, item: Object<MessageFields<'_>>) -> Option<Message> {
    let Object::Fields { fields, is_empty } = item else {
        judge.report(Issue::not_an_object(judge.here()));
        return None;
    };
    let role = role(judge, fields.role, is_empty);
    let content = judge.required_text("content", fields.content, is_empty);
    Some(Message { role: role?, content })
}

pub(crate) fn role(judge: &mut Judge, field: Option<Scalar<'_>>, parent_is_empty: bool) -> Option<Role> {
    let is_text = matches!(field, Some(Scalar::Text(_)));
    let name = judge.required_text("role", field, parent_is_empty);
    let role = Role::parse(&name);
    if is_text && role.is_none() {
        let expected = "'system', 'developer', 'user' or 'assistant'";
        let issue = Issue::new("literal_error", judge.loc("role"), format!("Input should be {expected}"));
        judge.report(issue.ctx(json!({"expected": expected})));
    }
    role
}

fn model(judge: &mut Judge, field: Option<Scalar<'_>>) -> Option<String> {
    let is_text = matches!(field, Some(Scalar::Text(_)));
    let name = judge.optional_text("model", field)?;
    if is_text && !is_model_name(&name) {
        let pattern = "^[A-Za-z0-9._:/-]{1,128}$";
        let msg = format!("String should match pattern '{pattern}'");
        judge.report(Issue::new("string_pattern_mismatch", judge.loc("model"), msg).ctx(json!({"pattern": pattern})));
    }
    Some(name)
}

/// A conversation's id or null.
pub(crate) fn conversation_id(
    judge: &mut Judge,
    name: &'static str,
    field: Option<Scalar<'_>>,
) -> Option<ConversationId> {
    let is_text = matches!(field, Some(Scalar::Text(_)));
    let text = judge.optional_text(name, field)?;
    let id = ConversationId::parse(&text);
    if is_text && id.is_none() {
        let pattern = ConversationId::PATTERN;
        let msg = format!("String should match pattern '{pattern}'");
        judge.report(Issue::new("string_pattern_mismatch", judge.loc(name), msg).ctx(json!({"pattern": pattern})));
    }
    id
}

fn on_disconnect(judge: &mut Judge, field: Option<Scalar<'_>>) -> OnDisconnect {
    match field {
        None | Some(Scalar::Null) => OnDisconnect::default(),
        Some(Scalar::Text(name)) if name == "continue" => OnDisconnect::Continue,
        Some(Scalar::Text(name)) if name == "cancel" => OnDisconnect::Cancel,
        Some(_) => {
            let expected = "'continue' or 'cancel'";
            let issue = Issue::new("literal_error", judge.loc("on_disconnect"), format!("Input should be {expected}"));
            judge.report(issue.ctx(json!({"expected": expected})));
            OnDisconnect::default()
        }
    }
}

/// A question and what bears on its answer.
#[derive(ToSchema)]
#[schema(as = ChatRequest, example = json!({
    "message": "안녕하세요!",
    "conversation_history": [
        {"role": "user", "content": "제 이름은 민지예요."},
        {"role": "assistant", "content": "반가워요, 민지님!"},
    ],
    "system_prompt": "친절하고 간결하게 답하세요.",
    "model": "gpt-3.5-turbo",
    "temperature": 0.7,
    "max_tokens": 2000,
}))]
#[expect(dead_code, reason = "describes ChatFields to the OpenAPI document")]
pub(crate) struct ChatBody {
    /// The new message of the user.
    message: String,
    /// What was said before, oldest first; nothing, if it is left out.
    #[schema(max_items = 10000)]
    conversation_history: Option<Vec<MessageBody>>,
    /// The stored conversation that the message belongs to; made when there is none. What is stored stands before the
    /// message, and the message and its answer are stored. Not together with `conversation_history`.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    conversation_id: Option<String>,
    /// Instructions to the model, sent before everything else.
    system_prompt: Option<String>,
    /// One of `GET /models`. Default: `DEFAULT_MODEL`.
    #[schema(pattern = "^[A-Za-z0-9._:/-]{1,128}$")]
    model: Option<String>,
    /// How freely the model chooses its words. Default: `DEFAULT_TEMPERATURE`.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// The most tokens the answer may have. Default: `DEFAULT_MAX_TOKENS`.
    #[schema(minimum = 1, maximum = 2147483647)]
    max_tokens: Option<u32>,
    /// Of a stream: whether it goes on when its last reader leaves.
    #[schema(inline)]
    on_disconnect: Option<OnDisconnectDocument>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes OnDisconnect to the OpenAPI document")]
enum OnDisconnectDocument {
    Continue,
    Cancel,
}

/// One message of a conversation.
#[derive(ToSchema)]
#[schema(as = ChatMessage)]
#[expect(dead_code, reason = "describes MessageFields to the OpenAPI document")]
pub(crate) struct MessageBody {
    #[schema(inline)]
    role: RoleDocument,
    content: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes Role to the OpenAPI document")]
pub(crate) enum RoleDocument {
    System,
    Developer,
    User,
    Assistant,
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChatResponse, example = json!({
    "response": "안녕하세요! 무엇을 도와드릴까요?",
    "usage": {"prompt_tokens": 10, "completion_tokens": 15, "total_tokens": 25},
    "model": "gpt-3.5-turbo",
    "timestamp": "2026-11-22T23:17:31.899397",
}))]
struct ChatAnswerBody {
    /// The model's text.
    response: String,
    /// What it cost; `null` when the upstream did not say.
    #[schema(required)]
    usage: Option<UsageBody>,
    /// The model that was asked for.
    model: String,
    /// ISO 8601 in the server's local time, without offset.
    #[schema(value_type = String)]
    timestamp: Timestamp,
}

/// Tokens as the upstream counted them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Usage)]
pub(crate) struct UsageBody {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl From<crate::message::Usage> for UsageBody {
    fn from(usage: crate::message::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.total_tokens,
        }
    }
}
