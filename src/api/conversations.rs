//! `/conversations`: what is stored, listed, read, replaced, cleared and named.

use axum::{
    extract::{FromRequestParts, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        docs::{BodyErrors, ConversationErrors, ReadErrors, WriteErrors},
        error::ApiError,
        extract::{Caller, ConversationPath, Json},
        saved::{CreateConversation, MessageList, SavedMessage},
        validation::{Issue, Loc},
    },
    chat::{self, ChatError},
    conversations::{Conversation, Cursor, MAX_PAGE, StoredMessage},
    ids::ConversationId,
    state::AppState,
    timestamp::Timestamp,
};

/// Conversations of a page, when the caller does not say how many.
const USUAL_PAGE: u32 = 20;

pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read, save, delete))
        .routes(routes!(messages, clear))
        .routes(routes!(summary))
        .routes(routes!(title))
}

/// List conversations
///
/// The newest first, by the time they were made. `next_cursor` is where the next page begins; new conversations do not
/// shift the pages behind.
#[utoipa::path(
    get, path = "/conversations", tag = "conversations", operation_id = "list_conversations",
    params(
        ("limit" = Option<u32>, Query, description = "Conversations on a page; 20 if left out", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before",
            pattern = r"^([0-9]{1,18}\.[A-Za-z0-9_-]{1,64})?$"),
    ),
    responses(
        (status = 200, description = "A page of conversations", body = PageBody),
        (status = 422, description = "No such limit or cursor: `invalid_request`", body = crate::api::error::ValidationErrorDocument),
        ReadErrors,
    ),
)]
async fn list(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
    PageQuery { limit, cursor }: PageQuery,
) -> Result<Json<PageBody>, ApiError> {
    let page = state.service.conversations().list(&owner, cursor.as_ref(), limit).await?;
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    Ok(Json(PageBody { conversations: page.conversations.into_iter().map(Into::into).collect(), next_cursor }))
}

/// Make a conversation
///
/// All fields are optional; without an `id` it gets a random one. A conversation is also made by the first `POST /chat`
/// that names it, and by `PUT`.
#[utoipa::path(
    post, path = "/conversations", tag = "conversations", operation_id = "create_conversation",
    request_body(content = crate::api::saved::CreateBody, description = "The conversation"),
    responses(
        (status = 201, description = "The conversation exists", body = ConversationBody,
            headers(("Location" = String, description = "Its address"))),
        (status = 409, description = "There is one of that id: `conversation_exists`", body = crate::api::error::ErrorDocument),
        (status = 400, description = "The body cannot be read: `unreadable_body`, `body_interrupted`", body = crate::api::error::ErrorDocument),
        BodyErrors, ReadErrors, WriteErrors,
    ),
)]
async fn create(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
    Json(request): Json<CreateConversation>,
) -> Result<Response, ApiError> {
    let CreateConversation { id, title, messages } = request;
    let id = id.unwrap_or_else(ConversationId::random);
    let made = state.service.conversations().create(&owner, id, title, messages).await?;
    Ok(created(made))
}

/// Read a conversation
///
/// What it is called, how long it is and what it has used up; its messages are at `GET …/messages`.
#[utoipa::path(
    get, path = "/conversations/{conversation_id}", tag = "conversations", operation_id = "read_conversation",
    params(("conversation_id" = String, Path, description = "`[A-Za-z0-9_-]{1,64}`", example = json!("trip-to-busan"))),
    responses((status = 200, description = "The conversation with its messages", body = WholeBody), ConversationErrors, ReadErrors),
)]
async fn read(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
    ConversationPath(id): ConversationPath,
) -> Result<Json<WholeBody>, ApiError> {
    let conversations = state.service.conversations();
    let found = conversations.find(&owner, &id).await?.ok_or(ApiError::ConversationNotFound)?;
    let messages = conversations.messages(&owner, &id).await?.ok_or(ApiError::ConversationNotFound)?;
    let messages: Vec<SavedMessage> = messages.into_iter().map(Into::into).collect();
    let mut conversation = ConversationBody::from(found);
    // A turn may have come in between the two looks.
    conversation.total_messages = u64::try_from(messages.len()).unwrap_or(u64::MAX);
    Ok(Json(WholeBody { conversation, messages }))
}

/// Save a conversation
///
/// Replaces its messages by those of the body, which is the list that `GET …/messages` gives and that the original
/// service saved as a file. Made when there is none.
#[utoipa::path(
    put, path = "/conversations/{conversation_id}", tag = "conversations", operation_id = "save_conversation",
    params(("conversation_id" = String, Path, description = "`[A-Za-z0-9_-]{1,64}`", example = json!("trip-to-busan"))),
    request_body(content = Vec<crate::api::saved::MessageBody>, description = "All messages, the oldest first", example = json!([
        {"role": "user", "content": "부산에서 하루를 어떻게 보낼까요?", "timestamp": "2026-11-22T23:17:31.899397"},
        {"role": "assistant", "content": "해운대에서 시작해 보세요.", "timestamp": "2026-11-22T23:17:33.120934"},
    ])),
    responses(
        (status = 200, description = "The messages were replaced", body = ConversationBody),
        (status = 201, description = "The conversation was made", body = ConversationBody,
            headers(("Location" = String, description = "Its address"))),
        (status = 400, description = "The body cannot be read: `unreadable_body`, `body_interrupted`", body = crate::api::error::ErrorDocument),
        ConversationErrors, BodyErrors, ReadErrors, WriteErrors,
    ),
)]
async fn save(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
    ConversationPath(id): ConversationPath,
    Json(MessageList(messages)): Json<MessageList>,
) -> Result<Response, ApiError> {
    let saved = state.service.save_conversation(&owner, id, messages).await?;
    Ok(if saved.is_new {
        created(saved.conversation)
    } else {
        Json(ConversationBody::from(saved.conversation)).into_response()
    })
}

/// Remove a conversation
///
/// With everything that was said in it, for good.
#[utoipa::path(
    delete, path = "/conversations/{conversation_id}", tag = "conversations", operation_id = "delete_conversation",
    params(("conversation_id" = String, Path, description = "`[A-Za-z0-9_-]{1,64}`", example = json!("trip-to-busan"))),
    responses((status = 200, description = "The conversation is gone", body = RemovedBody), ConversationErrors, ReadErrors, WriteErrors),
)]
async fn delete(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
    ConversationPath(id): ConversationPath,
) -> Result<Json<RemovedBody>, ApiError> {
    if !state.service.conversations().delete(&owner, id.clone()).await? {
        return Err(ApiError::ConversationNotFound);
    }
    Ok(Json(RemovedBody { message: "대화가 삭제되었습니다", conversation_id: id }))
}

/// Read a conversation's messages
///
/// The list that `PUT` takes, in the form in which the original service saved its file.
#[utoipa::path(
    get, path = "/conversations/{conversation_id}/messages", tag = "conversations", operation_id = "read_messages",
    params(("conversation_id" = String, Path, description = "`[A-Za-z0-9_-]{1,64}`", example = json!("trip-to-busan"))),
    responses((status = 200, description = "All messages, the oldest first", body = Vec<SavedMessage>, example = json!([
        {"role": "user", "content": "부산에서 하루를 어떻게 보낼까요?", "timestamp": "2026-11-22T23:17:31.899397"},
    ])), ConversationErrors, ReadErrors),
)]
async fn messages(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
    ConversationPath(id): ConversationPath,
) -> Result<Response, ApiError> {
    let messages = state.service.load_conversation(&owner, &id).await?.ok_or(ApiError::ConversationNotFound)?;
    let messages: Vec<SavedMessage> = messages.into_iter().map(Into::into).collect();
    // Two spaces a level, as Python's `json.dump(…, ensure_ascii=False, indent=2)` writes a file.
    let file = serde_json::to_vec_pretty(&messages).map_err(|_| ApiError::Internal)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], file).into_response())
}

/// Clear a conversation
///
/// Removes its messages. The conversation, its title and what it has used up stay.
#[utoipa::path(
    delete, path = "/conversations/{conversation_id}/messages", tag = "conversations", operation_id = "clear_conversation",
    params(("conversation_id" = String, Path, description = "`[A-Za-z0-9_-]{1,64}`", example = json!("trip-to-busan"))),
    responses((status = 200, description = "The conversation has no messages", body = RemovedBody), ConversationErrors, ReadErrors, WriteErrors),
)]
async fn clear(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
    ConversationPath(id): ConversationPath,
) -> Result<Json<RemovedBody>, ApiError> {
    if !state.service.clear_conversation(&owner, id.clone()).await? {
        return Err(ApiError::ConversationNotFound);
    }
    Ok(Json(RemovedBody { message: "대화 내용이 삭제되었습니다", conversation_id: id }))
}

/// Sum a conversation up
///
/// In numbers: the model is not asked.
#[utoipa::path(
    get, path = "/conversations/{conversation_id}/summary", tag = "conversations", operation_id = "summarize_conversation",
    params(("conversation_id" = String, Path, description = "`[A-Za-z0-9_-]{1,64}`", example = json!("trip-to-busan"))),
    responses((status = 200, description = "What the conversation amounts to", body = SummaryBody), ConversationErrors, ReadErrors),
)]
async fn summary(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
    ConversationPath(id): ConversationPath,
) -> Result<Json<SummaryBody>, ApiError> {
    let summary = state.service.get_conversation_summary(&owner, &id).await?.ok_or(ApiError::ConversationNotFound)?;
    let counts = summary.counts;
    Ok(Json(SummaryBody {
        total_messages: counts.messages,
        user_messages: counts.user_messages,
        ai_messages: counts.ai_messages,
        prompt_tokens: counts.prompt_tokens,
        completion_tokens: counts.completion_tokens,
        total_tokens: counts.prompt_tokens.saturating_add(counts.completion_tokens),
        first_message_at: summary.first_message_at,
        last_message_at: summary.last_message_at,
    }))
}

/// Make a title
///
/// Asks the model for one of at most ten characters, in the conversation's language, and stores it. When none can be
/// made the answer is `새 대화`, and a title that is there stays.
#[utoipa::path(
    post, path = "/conversations/{conversation_id}/title", tag = "conversations", operation_id = "title_conversation",
    params(("conversation_id" = String, Path, description = "`[A-Za-z0-9_-]{1,64}`", example = json!("trip-to-busan"))),
    responses((status = 200, description = "The title", body = TitleBody), ConversationErrors, ReadErrors, WriteErrors),
)]
async fn title(
    State(state): State<AppState>,
    Caller(caller): Caller,
    ConversationPath(id): ConversationPath,
) -> Result<Json<TitleBody>, ApiError> {
    let title = state.service.retitle(&caller, &id).await.map_err(|error| match error {
        ChatError::Store(error) => error.into(),
        ChatError::OverLimit(over) => over.into(),
        // No answer is no title, and no error.
        ChatError::Upstream(_) => ApiError::Internal,
    });
    let title = title?.ok_or(ApiError::ConversationNotFound)?;
    Ok(Json(TitleBody { title }))
}

fn created(conversation: Conversation) -> Response {
    let location = HeaderValue::try_from(format!("/conversations/{}", conversation.id));
    let location = location.map(|location| [(header::LOCATION, location)]).ok();
    (StatusCode::CREATED, location, Json(ConversationBody::from(conversation))).into_response()
}

/// Which page of a list.
#[derive(Debug)]
struct PageQuery {
    limit: u32,
    cursor: Option<Cursor>,
}

impl<S: Send + Sync> FromRequestParts<S> for PageQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut issues = Vec::new();
        let (mut limit, mut cursor) = (USUAL_PAGE, None);
        let query = parts.uri.query().unwrap_or_default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let loc = |name| vec![Loc::Name("query"), Loc::Name(name)];
            match name {
                "limit" => match value.parse() {
                    Ok(number) if (1..=MAX_PAGE).contains(&number) => limit = number,
                    _ => {
                        let msg = format!("Input should be a whole number from 1 to {MAX_PAGE}");
                        issues.push(Issue::new("int_range", loc("limit"), msg).ctx(json!({"ge": 1, "le": MAX_PAGE})));
                    }
                },
                "cursor" if value.is_empty() => {}
                "cursor" => match Cursor::parse(value) {
                    Some(place) => cursor = Some(place),
                    None => issues.push(Issue::new("value_error", loc("cursor"), "Input should be a next_cursor")),
                },
                _ => {}
            }
        }
        if issues.is_empty() { Ok(Self { limit, cursor }) } else { Err(ApiError::Invalid(issues)) }
    }
}

/// Some conversations.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConversationPage, example = json!({
    "conversations": [{
        "id": "trip-to-busan", "title": "부산 여행", "created_at": "2026-11-22T23:17:31.899397",
        "updated_at": "2026-11-22T23:17:31.899397", "total_messages": 2,
    }],
    "next_cursor": "1795389451899397.trip-to-busan",
}))]
struct PageBody {
    conversations: Vec<ConversationBody>,
    /// Where the next page begins; `null` on the last.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// A conversation without its messages.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Conversation, example = json!({
    "id": "trip-to-busan", "title": "부산 여행", "created_at": "2026-11-22T23:17:31.899397",
    "updated_at": "2026-11-22T23:17:31.899397", "total_messages": 2,
}))]
struct ConversationBody {
    #[schema(value_type = String)]
    id: ConversationId,
    /// `null` until one is made or given.
    #[schema(required)]
    title: Option<String>,
    #[schema(value_type = String)]
    created_at: Timestamp,
    #[schema(value_type = String)]
    updated_at: Timestamp,
    total_messages: u64,
}

impl From<Conversation> for ConversationBody {
    fn from(conversation: Conversation) -> Self {
        let Conversation { id, title, created_at, updated_at, counts } = conversation;
        Self { id, title, created_at, updated_at, total_messages: counts.messages }
    }
}

/// A conversation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WholeConversation, example = json!({
    "id": "trip-to-busan", "title": "부산 여행", "created_at": "2026-11-22T23:17:31.899397",
    "updated_at": "2026-11-22T23:17:31.899397", "total_messages": 2,
    "messages": [
        {"role": "user", "content": "부산에서 하루를 어떻게 보낼까요?", "timestamp": "2026-11-22T23:17:31.899397"},
        {"role": "assistant", "content": "해운대에서 시작해 보세요.", "timestamp": "2026-11-22T23:17:33.120934"},
    ],
}))]
struct WholeBody {
    #[serde(flatten)]
    conversation: ConversationBody,
    /// The oldest first.
    messages: Vec<SavedMessage>,
}

/// What was removed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConversationRemoved, example = json!({"message": "대화가 삭제되었습니다", "conversation_id": "trip-to-busan"}))]
struct RemovedBody {
    message: &'static str,
    #[schema(value_type = String)]
    conversation_id: ConversationId,
}

/// What a conversation amounts to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConversationSummary, example = json!({
    "total_messages": 2, "user_messages": 1, "ai_messages": 1, "prompt_tokens": 10, "completion_tokens": 15,
    "total_tokens": 25, "first_message_at": "2026-11-22T23:17:31.899397", "last_message_at": "2026-11-22T23:17:33.120934",
}))]
struct SummaryBody {
    total_messages: u64,
    user_messages: u64,
    ai_messages: u64,
    /// What its turns have used up, also those that were cleared or replaced since.
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    /// `null` while there are no messages.
    #[schema(required)]
    first_message_at: Option<String>,
    #[schema(required)]
    last_message_at: Option<String>,
}

/// A title.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ConversationTitle, example = json!({"title": "부산 여행"}))]
struct TitleBody {
    title: String,
}

impl From<StoredMessage> for SavedMessage {
    fn from(message: StoredMessage) -> Self {
        let StoredMessage { role, content, timestamp, interrupted } = message;
        Self { role: role.as_str(), content, timestamp, interrupted: interrupted.then_some(true) }
    }
}
