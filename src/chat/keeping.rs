//! Storing a turn when its answer is there, and giving a new conversation its title.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    chat::{OpenAiService, UNTITLED},
    conversations::{StoreError, StoredMessage, Turn},
    ids::{ConversationId, Owner},
    message::{Message, Role, Usage},
    timestamp::Timestamp,
};

/// A question that waits for its answer, to be stored with it.
#[derive(Clone, Debug)]
pub(super) struct Keeping(Arc<Question>);

#[derive(Debug)]
struct Question {
    service: OpenAiService,
    owner: Owner,
    id: ConversationId,
    text: String,
    asked_at: Timestamp,
    is_kept: AtomicBool,
}

impl Keeping {
    pub(super) fn new(service: OpenAiService, owner: Owner, id: ConversationId, text: String) -> Self {
        let (asked_at, is_kept) = (Timestamp::now(), AtomicBool::new(false));
        Self(Arc::new(Question { service, owner, id, text, asked_at, is_kept }))
    }

    /// Stores the question with its answer, once: a stream may be stopped while that is done. `interrupted`: the answer
    /// is what there was when somebody stopped it; if that is nothing, there is nothing to store.
    ///
    /// # Errors
    /// Nothing was stored.
    pub(super) async fn keep(&self, answer: String, usage: Option<Usage>, interrupted: bool) -> Result<(), StoreError> {
        let Question { service, owner, id, text, asked_at, is_kept } = &*self.0;
        if (interrupted && answer.is_empty()) || is_kept.load(Ordering::Relaxed) {
            return Ok(());
        }
        let message = |role, content, at: Timestamp, interrupted| StoredMessage {
            role,
            content,
            timestamp: at.to_string(),
            interrupted,
        };
        let title_from = [Message::new(Role::User, text.as_str()), Message::new(Role::Assistant, answer.as_str())];
        let turn = Turn {
            question: message(Role::User, text.clone(), *asked_at, false),
            answer: message(Role::Assistant, answer, Timestamp::now(), interrupted),
            usage,
        };
        let appended = service.conversations().append(owner, id.clone(), turn).await?;
        is_kept.store(true, Ordering::Relaxed);
        if appended.messages == 2 && !appended.has_title && !interrupted && service.makes_titles() {
            let (service, owner, id) = (service.clone(), owner.clone(), id.clone());
            let tasks = service.tasks().clone();
            tasks.spawn(async move { make_title(&service, &owner, id, &title_from).await });
        }
        Ok(())
    }
}

/// Makes a title and stores it, unless somebody else has given one in the meantime.
async fn make_title(service: &OpenAiService, owner: &Owner, id: ConversationId, conversation: &[Message]) {
    let title = service.generate_title(owner, conversation).await;
    if title == UNTITLED {
        // Shown without one; it may be asked for later.
        return;
    }
    // A failure is in the log, and a title is no loss.
    let _ = service.conversations().set_title(owner, id, title, true).await;
}
