//! What of a stored conversation is sent with a question: its end, as much as fits a budget of tokens.

use crate::{
    conversations::{Conversations, StoreError},
    ids::{ConversationId, Owner},
    message::{Message, Role},
    tokens::{TOKENS_PER_MESSAGE, TokenCounter, Vocabulary},
};

/// Messages that are read at once: more than most conversations have.
const PAGE: u32 = 128;

/// Cuts histories. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct History {
    conversations: Conversations,
    counter: TokenCounter,
    max_tokens: usize,
}

impl History {
    pub(super) fn new(conversations: Conversations, counter: TokenCounter, max_tokens: usize) -> Self {
        Self { conversations, counter, max_tokens }
    }

    /// The newest messages that fit, oldest first, beginning with a question. The stored conversation stays whole.
    ///
    /// # Errors
    /// The conversation cannot be read.
    pub(super) async fn load(&self, owner: &Owner, id: &ConversationId, model: &str) -> Result<Recalled, StoreError> {
        let mut kept = Kept { newest_first: Vec::new(), tokens: 0, is_full: false };
        let (mut before, mut count, mut bytes) = (u64::MAX, 0, 0);
        loop {
            let page = self.conversations.newest(owner, id, before, PAGE).await?;
            let is_last = page.messages.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            if let (Some((newest, _)), Some((oldest, _))) = (page.messages.first(), page.messages.last()) {
                (before, count, bytes) = (*oldest, count.max(newest + 1), page.bytes);
            }
            kept = self.take(kept, page.messages.into_iter().map(|(_, message)| message).collect(), model).await?;
            if is_last || kept.is_full {
                return Ok(Recalled { messages: kept.without_a_lone_answer(), count, bytes });
            }
        }
    }

    /// Takes messages until the budget is used up.
    async fn take(&self, mut kept: Kept, page: Vec<Message>, model: &str) -> Result<Kept, StoreError> {
        // No text has more tokens than bytes, which tells of most conversations that they fit.
        let at_most: usize = page.iter().map(|message| message.content.len() + TOKENS_PER_MESSAGE).sum();
        if kept.tokens + at_most <= self.max_tokens {
            kept.tokens += at_most;
            kept.newest_first.extend(page);
            return Ok(kept);
        }
        // The budget holds for what was taken by its bytes, too, so that is counted again with the rest.
        let (counter, max_tokens, vocabulary) = (self.counter.clone(), self.max_tokens, Vocabulary::of(model));
        let turn = self.counter.turn().await.ok_or(StoreError::Unavailable)?;
        let counted = turn.count(move || {
            let all = std::mem::take(&mut kept.newest_first).into_iter().chain(page);
            kept.tokens = 0;
            for message in all {
                kept.tokens += counter.count(vocabulary, &message.content) + TOKENS_PER_MESSAGE;
                if kept.tokens > max_tokens {
                    kept.is_full = true;
                    break;
                }
                kept.newest_first.push(message);
            }
            kept
        });
        counted.await.ok_or(StoreError::Unavailable)
    }
}

/// What of a conversation is sent, and how large all of it is.
#[derive(Debug)]
pub(super) struct Recalled {
    pub(super) messages: Vec<Message>,
    pub(super) count: u64,
    pub(super) bytes: u64,
}

struct Kept {
    newest_first: Vec<Message>,
    tokens: usize,
    /// Something did not fit.
    is_full: bool,
}

impl Kept {
    fn without_a_lone_answer(self) -> Vec<Message> {
        let mut oldest_first = self.newest_first;
        oldest_first.reverse();
        if self.is_full {
            // An answer whose question is gone would answer nothing.
            let first = oldest_first.iter().position(|message| message.role == Role::User);
            oldest_first.drain(..first.unwrap_or(oldest_first.len()));
        }
        oldest_first
    }
}
