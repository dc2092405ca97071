//! What a chat is: free of HTTP, of OpenAI's wire format and of storage.

mod catalog;
pub mod idempotency;
mod pump;
mod streams;

pub use catalog::{ListedModel, ModelCatalog};
pub use pump::{Describe, Failure, MAX_TEXT_BYTES};
pub use streams::{ChatStreams, OnDisconnect, Opened, Reader, Snapshot};

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::{
    config::Defaults,
    ids::StreamId,
    message::{Message, Role, Usage},
    openai::{Client, Completion, UpstreamError},
    streams::{CreateError, Owner},
};
use streams::Beginning;

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

/// A chat that gave no answer. The text is the original's.
#[derive(Clone, Debug, thiserror::Error)]
#[error("AI 응답 생성 중 오류가 발생했습니다: {0}")]
pub struct ChatError(#[from] pub UpstreamError);

/// The title of a conversation for which none could be made.
pub const UNTITLED: &str = "새 대화";

/// Answers chats. The name and its methods are the original's.
#[derive(Clone, Debug)]
pub struct OpenAiService {
    client: Arc<Client>,
    defaults: Arc<Defaults>,
}

impl OpenAiService {
    #[must_use]
    pub fn new(client: Arc<Client>, defaults: Defaults) -> Self {
        Self { client, defaults: Arc::new(defaults) }
    }

    /// The model that answers `request`.
    #[must_use]
    pub fn model_for<'a>(&'a self, request: &'a ChatRequest) -> &'a str {
        request.model.as_deref().unwrap_or(&self.defaults.model)
    }

    /// Answers a message that has a history. Upstream gets `[system?, …history, user]`.
    ///
    /// # Errors
    /// The upstream gave no complete answer.
    pub async fn chat_with_history(&self, request: ChatRequest) -> Result<ChatAnswer, ChatError> {
        let model = self.model_for(&request).to_owned();
        let temperature = request.temperature.unwrap_or(self.defaults.temperature);
        let max_tokens = request.max_tokens.unwrap_or(self.defaults.max_tokens);
        let messages = messages(request);
        let completion = Completion { model: &model, messages: &messages, temperature, max_tokens };
        let answer = self.client.complete(&completion).await?;
        Ok(ChatAnswer { text: answer.text, usage: answer.usage, model })
    }

    /// Begins to answer a message that has a history, and returns at once. The answer is read from `streams`.
    ///
    /// # Errors
    /// There is no room for another stream.
    pub async fn chat_stream_with_history(
        &self,
        streams: &ChatStreams,
        owner: Owner,
        request: ChatRequest,
        on_disconnect: OnDisconnect,
    ) -> Result<StreamId, CreateError> {
        let beginning = Beginning {
            owner,
            on_disconnect,
            model: self.model_for(&request).to_owned(),
            temperature: request.temperature.unwrap_or(self.defaults.temperature),
            max_tokens: request.max_tokens.unwrap_or(self.defaults.max_tokens),
            messages: messages(request),
        };
        streams.begin(Arc::clone(&self.client), beginning).await
    }

    /// A short title for a conversation, in its own language; [`UNTITLED`] when none can be made.
    pub async fn generate_title(&self, conversation: &[Message]) -> String {
        let mut messages = conversation.to_vec();
        messages.push(Message::new(
            Role::User,
            "위 대화에 어울리는 제목을 10자 이내로, 대화와 같은 언어로 지어 주세요. 따옴표 없이 제목만 답하세요.",
        ));
        let completion =
            Completion { model: &self.defaults.model, messages: &messages, temperature: 0.2, max_tokens: 30 };
        let title = match self.client.complete(&completion).await {
            Ok(answer) => tidy_title(&answer.text),
            Err(error) => {
                tracing::warn!(%error, "no title could be made");
                String::new()
            }
        };
        if title.is_empty() { UNTITLED.to_owned() } else { title }
    }
}

fn messages(request: ChatRequest) -> Vec<Message> {
    let system = request.system_prompt.map(|prompt| Message::new(Role::System, prompt));
    let user = Message::new(Role::User, request.message);
    system.into_iter().chain(request.history).chain([user]).collect()
}

/// The first line with words, without the quotation marks that models like to put around a title.
fn tidy_title(text: &str) -> String {
    let quotes = ['"', '\'', '“', '”', '‘', '’', '「', '」', '《', '》'];
    let tidy = |line: &str| line.trim().trim_matches(quotes).trim().to_owned();
    text.lines().map(tidy).find(|line| !line.is_empty()).unwrap_or_default()
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

    #[test]
    fn titles_lose_their_quotes_and_their_second_line() {
        for (text, expected) in
            [("\"인사\"", "인사"), ("\n 「여행 계획」 \nmore", "여행 계획"), ("It's", "It's"), (" \n", ""), ("", "")]
        {
            assert_eq!(tidy_title(text), expected);
        }
    }
}
