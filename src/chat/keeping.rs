//! Storing a turn when its answer is there, and giving a new conversation its title.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    chat::{Caller, OpenAiService, UNTITLED},
    conversations::{AwaitedTurn, StoreError, StoredMessage, Turn},
    ids::ConversationId,
    message::{Message, Role, Usage},
    timestamp::Timestamp,
};

/// A question that waits for its answer, to be stored with it.
#[derive(Clone, Debug)]
pub(super) struct Keeping(Arc<Question>);

#[derive(Debug)]
struct Question {
    service: OpenAiService,
    caller: Caller,
    id: ConversationId,
    text: String,
    asked_at: Timestamp,
    is_kept: AtomicBool,
    awaited: AwaitedTurn,
}

impl Keeping {
    pub(super) fn new(service: OpenAiService, caller: Caller, text: String, awaited: AwaitedTurn) -> Self {
        let (asked_at, is_kept) = (Timestamp::now(), AtomicBool::new(false));
        let id = awaited.id().clone();
        Self(Arc::new(Question { service, caller, id, text, asked_at, is_kept, awaited }))
    }

    /// What it holds in memory.
    pub(super) fn bytes(&self) -> usize {
        self.0.text.len()
    }

    /// Stores the question with its answer, once: a stream may be stopped while that is done. `interrupted`: the answer
    /// is what there was when somebody stopped it; if that is nothing, there is nothing to store. Nor is there when the
    /// conversation was removed or cleared meanwhile.
    ///
    /// # Errors
    /// Nothing was stored.
    pub(super) async fn keep(&self, answer: String, usage: Option<Usage>, interrupted: bool) -> Result<(), StoreError> {
        let Question { service, caller, id, text, asked_at, is_kept, awaited } = &*self.0;
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
        let appended = service.conversations().append_awaited(turn, awaited).await?;
        is_kept.store(true, Ordering::Relaxed);
        let Some(appended) = appended else { return Ok(()) };
        if appended.messages == 2 && !appended.has_title && !interrupted && service.makes_titles() {
            let (service, caller, id) = (service.clone(), caller.clone(), id.clone());
            let tasks = service.tasks().clone();
            tasks.spawn(async move { make_title(&service, &caller, id, &title_from).await });
        }
        Ok(())
    }
}

/// Makes a title and stores it, unless somebody else has given one in the meantime.
async fn make_title(service: &OpenAiService, caller: &Caller, id: ConversationId, conversation: &[Message]) {
    let title = match service.generate_title(caller, conversation).await {
        Ok(title) if title != UNTITLED => title,
        // Shown without one; it may be asked for later.
        _ => return,
    };
    // A failure is in the log, and a title is no loss.
    let _ = service.conversations().set_title(&caller.owner, id, title, true).await;
}
