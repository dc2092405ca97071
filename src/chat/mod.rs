//! What a chat is: free of HTTP, of OpenAI's wire format and of storage.

mod catalog;
mod history;
pub mod idempotency;
mod keeping;
mod metering;
mod pump;
mod streams;
mod title;
mod usage;

pub use catalog::{ListedModel, ModelCatalog};
pub use metering::{Caller, Metering, MeteringSettings, OverLimit};
pub use pump::{Cause, Describe, Failure, MAX_TEXT_BYTES};
pub use streams::{ChatStreams, OnDisconnect, Opened, Reader, Snapshot};
pub use title::UNTITLED;
pub use usage::{UsageRecorder, UsageReport};

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use tokio_util::task::TaskTracker;

use crate::{
    config::{self, Defaults},
    conversations::{self, Conversations, Saved, StoreError, StoredMessage, Summary},
    ids::{ConversationId, Owner, StreamId},
    limits::Slot,
    message::{Message, Role, Usage},
    openai::{Answer, Client, Completion, UpstreamError, Wish},
    streams::CreateError,
    tokens::TokenCounter,
};
use history::History;
use keeping::Keeping;
use streams::Beginning;
use usage::Outcome;

/// A question with everything that bears on its answer. `None` means the configured default.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    pub message: String,
    /// What was said before, oldest first.
    pub history: Vec<Message>,
    pub system_prompt: Option<String>,
    pub model: Option<String>,
    /// 0 to 2.
    pub temperature: Option<f64>,
    pub max_tokens: Option<u32>,
}

/// Two requests are the same when everything that bears on the answer is.
impl Hash for ChatRequest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { message, history, system_prompt, model, temperature, max_tokens } = self;
        (message, history, system_prompt, model, temperature.map(f64::to_bits), max_tokens).hash(state);
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct ChatAnswer {
    pub text: String,
    pub usage: Option<Usage>,
    /// The model that was asked for.
    pub model: String,
}

/// A chat that gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChatError {
    /// The text is the original's.
    #[error("AI 응답 생성 중 오류가 발생했습니다: {0}")]
    Upstream(#[from] UpstreamError),
    /// The conversation was not read, or the turn was not stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
}

/// A stream that was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    #[error("no room for another stream")]
    NoRoom,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
}

impl From<CreateError> for BeginError {
    fn from(_: CreateError) -> Self {
        Self::NoRoom
    }
}

/// Answers chats, and keeps conversations. The name and its methods are the original's. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OpenAiService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Arc<Client>,
    defaults: Defaults,
    conversations: Conversations,
    history: History,
    auto_title: bool,
    metering: Metering,
    tasks: TaskTracker,
}

/// What the service stands on besides its upstream.
#[derive(Clone, Debug)]
pub struct Ground {
    pub conversations: Conversations,
    pub metering: Metering,
    pub counter: TokenCounter,
    /// Runs what goes on behind an answer.
    pub tasks: TaskTracker,
}

impl OpenAiService {
    #[must_use]
    pub fn new(client: Arc<Client>, defaults: Defaults, settings: &config::Conversations, ground: Ground) -> Self {
        let Ground { conversations, metering, counter, tasks } = ground;
        let history = History::new(conversations.clone(), counter, settings.history_max_tokens);
        let auto_title = settings.auto_title;
        Self(Arc::new(Inner { client, defaults, conversations, history, auto_title, metering, tasks }))
    }

    /// The model that answers `request`.
    #[must_use]
    pub fn model_for<'a>(&'a self, request: &'a ChatRequest) -> &'a str {
        request.model.as_deref().unwrap_or(&self.0.defaults.model)
    }

    /// Answers a message of a stored conversation, which is made when there is none, and stores both. The stored
    /// messages stand before it; what `request` says of a history is not looked at.
    ///
    /// # Errors
    /// The upstream gave no complete answer, the conversation cannot be read or written, or the caller is over a limit.
    /// Nothing was stored.
    pub async fn chat(
        &self,
        caller: &Caller,
        id: ConversationId,
        mut request: ChatRequest,
    ) -> Result<ChatAnswer, ChatError> {
        let keeping = self.recall(caller, id, &mut request).await?;
        let answer = self.chat_with_history(caller, request).await?;
        match keeping.keep(answer.text.clone(), answer.usage, false).await {
            // It was paid for: its caller gets it, though it has no room in the conversation.
            Err(StoreError::Full { .. }) => {
                tracing::warn!("an answer has no room in its conversation and was not stored");
            }
            kept => kept?,
        }
        Ok(answer)
    }

    /// Answers a message that has a history. Upstream gets `[system?, …history, user]`.
    ///
    /// # Errors
    /// The upstream gave no complete answer, or the caller is over a limit.
    pub async fn chat_with_history(&self, caller: &Caller, request: ChatRequest) -> Result<ChatAnswer, ChatError> {
        let model = self.model_for(&request).to_owned();
        let (temperature, max_tokens) = self.wishes(&request);
        let messages = Arc::new(messages(request));
        let completion = Completion { model: &model, messages: &messages, temperature, max_tokens };
        let answer = self.ask(caller, &completion, &messages).await?;
        Ok(ChatAnswer { text: answer.text, usage: answer.usage, model })
    }

    /// What the caller wants of the answer, or else this service.
    fn wishes(&self, request: &ChatRequest) -> (Option<Wish<f64>>, Wish<u32>) {
        let Defaults { temperature, max_tokens, .. } = self.0.defaults;
        let temperature = request.temperature.map(Wish::Callers).or(temperature.map(Wish::Ours));
        (temperature, Wish::or(request.max_tokens, max_tokens))
    }

    /// Asks the upstream at the caller's expense. `messages` are the completion's.
    async fn ask(
        &self,
        caller: &Caller,
        completion: &Completion<'_>,
        messages: &Arc<Vec<Message>>,
    ) -> Result<Answer, ChatError> {
        let max_tokens = completion.max_tokens.value();
        let mut bill = self.0.metering.open(caller, completion.model, messages, max_tokens).await?;
        bill.is_asked();
        let answered = self.0.client.complete(completion, &mut bill.cost).await;
        match &answered {
            Ok(answer) => bill.settle(Outcome::Done, &answer.text).await,
            Err(_) => bill.settle(Outcome::Failed, "").await,
        }
        Ok(answered?)
    }

    /// Begins to answer a message of a stored conversation, as [`OpenAiService::chat`] does. Both are stored before the
    /// stream says that it has ended; when somebody stops it, with the text so far.
    ///
    /// # Errors
    /// There is no room for another stream, the conversation cannot be read, or the caller is over a limit.
    pub async fn chat_stream(
        &self,
        streams: &ChatStreams,
        caller: &Caller,
        id: ConversationId,
        (mut request, on_disconnect): (ChatRequest, OnDisconnect),
    ) -> Result<StreamId, BeginError> {
        let keeping = self.recall(caller, id, &mut request).await?;
        let beginning = self.beginning(caller, request, on_disconnect).await?;
        Ok(streams.begin(Arc::clone(&self.0.client), Beginning { keeping: Some(keeping), ..beginning }).await?)
    }

    /// Begins to answer a message that has a history, and returns at once. The answer is read from `streams`.
    ///
    /// # Errors
    /// There is no room for another stream, or the caller is over a limit.
    pub async fn chat_stream_with_history(
        &self,
        streams: &ChatStreams,
        caller: &Caller,
        request: ChatRequest,
        on_disconnect: OnDisconnect,
    ) -> Result<StreamId, BeginError> {
        let beginning = self.beginning(caller, request, on_disconnect).await?;
        Ok(streams.begin(Arc::clone(&self.0.client), beginning).await?)
    }

    async fn beginning(
        &self,
        caller: &Caller,
        request: ChatRequest,
        on_disconnect: OnDisconnect,
    ) -> Result<Beginning, OverLimit> {
        let slot = self.0.metering.slot(caller)?;
        let model = self.model_for(&request).to_owned();
        let (temperature, max_tokens) = self.wishes(&request);
        let messages = Arc::new(messages(request));
        let bill = self.0.metering.open(caller, &model, &messages, max_tokens.value()).await?;
        let owner = caller.owner.clone();
        let (keeping, bill) = (None, Some(bill.with(slot)));
        Ok(Beginning { owner, on_disconnect, model, messages, temperature, max_tokens, keeping, bill })
    }

    /// Puts the stored messages before the new one. What would keep the turn from being stored is found out here,
    /// before anything is paid for.
    async fn recall(
        &self,
        caller: &Caller,
        id: ConversationId,
        request: &mut ChatRequest,
    ) -> Result<Keeping, StoreError> {
        conversations::check_text(&request.message)?;
        self.0.conversations.check_writable().await?;
        let model = self.model_for(request).to_owned();
        let awaited = self.0.conversations.await_turn(&caller.owner, &id);
        let recalled = self.0.history.load(&caller.owner, &id, &model).await?;
        conversations::check_room(&request.message, recalled.count, recalled.bytes)?;
        request.history = recalled.messages;
        Ok(Keeping::new(self.clone(), caller.clone(), request.message.clone(), awaited))
    }

    /// A short title for a conversation, in its own language; [`UNTITLED`] when none can be made.
    ///
    /// # Errors
    /// The caller is over a limit: a title costs what any answer does.
    pub async fn generate_title(&self, caller: &Caller, conversation: &[Message]) -> Result<String, OverLimit> {
        let question = Arc::new(title::question(conversation));
        let model = &self.0.defaults.model;
        match self.ask(caller, &title::completion(model, &question), &question).await {
            Ok(answer) => Ok(title::title(&answer.text)),
            Err(ChatError::OverLimit(over)) => Err(over),
            Err(_) => {
                // What the upstream says may quote the conversation.
                tracing::warn!(model, "no title could be made");
                Ok(UNTITLED.to_owned())
            }
        }
    }

    /// Makes a title for a stored conversation and stores it. `None`: the owner has no such conversation.
    ///
    /// # Errors
    /// The conversation cannot be read or written, or the caller is over a limit.
    pub async fn retitle(&self, caller: &Caller, id: &ConversationId) -> Result<Option<String>, ChatError> {
        let owner = &caller.owner;
        if self.0.conversations.find(owner, id).await?.is_none() {
            return Ok(None);
        }
        // Before anything is paid for.
        self.0.conversations.check_writable().await?;
        let recalled = self.0.history.load(owner, id, &self.0.defaults.model).await?;
        let mut messages = recalled.messages;
        if messages.is_empty() {
            // One turn that is over the budget alone: its beginnings are enough.
            let newest = self.0.conversations.newest(owner, id, u64::MAX, 2).await?;
            messages = newest.messages.into_iter().rev().map(|(_, message)| message).collect();
        }
        let title = self.generate_title(caller, &messages).await?;
        // What stands for a title must not take the place of one.
        let only_first = title == UNTITLED;
        self.0.conversations.set_title(owner, id.clone(), title.clone(), only_first).await?;
        Ok(Some(title))
    }

    /// Replaces the messages of a conversation, which is made when there is none.
    ///
    /// # Errors
    /// Messages over a limit, or the database cannot be written.
    pub async fn save_conversation(
        &self,
        owner: &Owner,
        id: ConversationId,
        messages: Vec<StoredMessage>,
    ) -> Result<Saved, StoreError> {
        self.0.conversations.save(owner, id, messages).await
    }

    /// The messages of a conversation, oldest first. `None`: the owner has no such conversation.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn load_conversation(
        &self,
        owner: &Owner,
        id: &ConversationId,
    ) -> Result<Option<Vec<StoredMessage>>, StoreError> {
        self.0.conversations.messages(owner, id).await
    }

    /// Removes the messages of a conversation. False: the owner has no such conversation.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn clear_conversation(&self, owner: &Owner, id: ConversationId) -> Result<bool, StoreError> {
        self.0.conversations.clear(owner, id).await
    }

    /// What a conversation amounts to. `None`: the owner has no such conversation.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn get_conversation_summary(
        &self,
        owner: &Owner,
        id: &ConversationId,
    ) -> Result<Option<Summary>, StoreError> {
        self.0.conversations.summary(owner, id).await
    }

    /// One of the caller's places for running streams, for what goes on though its caller has left; taken even where all of
    /// them are.
    #[must_use]
    pub fn occupy(&self, caller: &Caller) -> Option<Slot> {
        self.0.metering.occupy(caller)
    }

    /// The stored conversations, for what is not the original's.
    #[must_use]
    pub fn conversations(&self) -> &Conversations {
        &self.0.conversations
    }

    fn makes_titles(&self) -> bool {
        self.0.auto_title
    }

    fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }
}

fn messages(request: ChatRequest) -> Vec<Message> {
    let system = request.system_prompt.map(|prompt| Message::new(Role::System, prompt));
    let user = Message::new(Role::User, request.message);
    system.into_iter().chain(request.history).chain([user]).collect()
}

#[cfg(test)]
impl OpenAiService {
    /// The service as `config` has it, with conversations in memory.
    pub(crate) async fn in_memory(client: Arc<Client>, config: &config::Config, tasks: &TaskTracker) -> Self {
        let conversations = Conversations::open(&config::Database::SqliteInMemory).await.unwrap();
        let counter = TokenCounter::default();
        let limiter = Arc::new(crate::limits::MemoryLimiter::default());
        let settings = MeteringSettings { limiter, tokens: None, streams: None };
        let usage = UsageRecorder::new(conversations.clone());
        let metering = Metering::new(settings, counter.clone(), usage, tasks.clone());
        let ground = Ground { conversations, metering, counter, tasks: tasks.clone() };
        Self::new(client, config.defaults.clone(), &config.conversations, ground)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_gets_the_system_prompt_the_history_and_then_the_message() {
        let request = ChatRequest {
            message: "now".into(),
            history: vec![Message::new(Role::User, "before"), Message::new(Role::Assistant, "answer")],
            system_prompt: Some("be brief".into()),
            ..ChatRequest::default()
        };
        let said: Vec<_> = messages(request).into_iter().map(|m| (m.role, m.content)).collect();
        let expected =
            [(Role::System, "be brief"), (Role::User, "before"), (Role::Assistant, "answer"), (Role::User, "now")];
        assert_eq!(said, expected.map(|(role, text)| (role, text.to_owned())));
    }
}
