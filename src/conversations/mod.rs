//! Conversations that last: SQL through sqlx, in SQLite or in PostgreSQL.
//!
//! ```text
//!   Conversations ──reads──▶ pool ──▶ SQLite file, or PostgreSQL
//!                 ──writes─▶ writer (SQLite: one at a time, many in one commit) ──▶
//! ```
//!
//! Every conversation belongs to its owner, and every query names the owner: another's conversation does not exist. A
//! write is acknowledged when it is durable, and is there wholly or not at all. `queries` has each query once, for
//! both databases.

mod awaited;
mod backup;
mod database;
mod error;
mod postgres;
mod queries;
mod usage;
mod writer;

pub use awaited::AwaitedTurn;
pub use backup::{BackupError, back_up};
pub use error::{OpenError, StoreError};
pub use usage::{UsageBatch, UsageRow, Used};

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::{
    config::Database,
    ids::{ConversationId, Owner},
    message::{Message, Role, Usage},
    timestamp::Timestamp,
};
use awaited::{Awaited, GivenUp};
use database::Connections;
use writer::{Done, Write, Writer};

/// Most messages of one conversation.
pub const MAX_MESSAGES: usize = 10_000;

/// Most bytes of one message's text; an answer may have as many as the conversation has room for.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Most bytes of all messages of one conversation: it is loaded as a whole.
pub const MAX_CONVERSATION_BYTES: usize = 16 * 1024 * 1024;

/// Most conversations on one page of the list.
pub const MAX_PAGE: u32 = 100;

/// A message as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredMessage {
    pub role: Role,
    pub content: String,
    /// ISO 8601, as it was given.
    pub timestamp: String,
    /// Somebody stopped the answer: the text is what there was.
    pub interrupted: bool,
}

/// Shows the length and never the text, so that no message reaches a log by way of a `{:?}`.
impl std::fmt::Debug for StoredMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { role, content, timestamp, interrupted } = self;
        f.debug_struct("StoredMessage")
            .field("role", role)
            .field("bytes", &content.len())
            .field("timestamp", timestamp)
            .field("interrupted", interrupted)
            .finish()
    }
}

/// A conversation without its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    pub id: ConversationId,
    /// `None` until one is made or given.
    pub title: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub counts: Counts,
}

/// What a conversation's messages amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub messages: u64,
    pub user_messages: u64,
    pub ai_messages: u64,
    /// All that its turns have used up, also those that were cleared or replaced since.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

/// The end of a conversation, or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// The newest first, each with its number: 0, 1, 2 …
    pub messages: Vec<(u64, Message)>,
    /// Of the text of all messages of the conversation; 0 where `messages` is empty.
    pub bytes: u64,
}

/// What a conversation amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub counts: Counts,
    /// As the message has it; `None` while there are no messages.
    pub first_message_at: Option<String>,
    pub last_message_at: Option<String>,
}

/// A question and its answer, which are stored together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub question: StoredMessage,
    pub answer: StoredMessage,
    pub usage: Option<Usage>,
}

/// What has become of a conversation to which a turn was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// How many messages it has now.
    pub messages: u64,
    pub has_title: bool,
}

/// Where a page of the list begins: behind the conversation that was made then and has this id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Microseconds since 1970.
    created_at: i64,
    id: ConversationId,
}

impl Cursor {
    /// Reads what [`Cursor`]'s `Display` wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (created_at, id) = text.split_once('.')?;
        let created_at = created_at.bytes().all(|b| b.is_ascii_digit()).then(|| created_at.parse().ok()).flatten()?;
        Some(Self { created_at, id: ConversationId::parse(id)? })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.created_at, self.id)
    }
}

/// Some conversations, the newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub conversations: Vec<Conversation>,
    /// Where the next page begins; `None` when this is the last.
    pub next: Option<Cursor>,
}

/// What a save did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub conversation: Conversation,
    /// Whether it did not exist before.
    pub is_new: bool,
}

/// The conversations of all owners. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Conversations(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connections: Connections,
    writer: Writer,
    awaited: Awaited,
    /// The writer's, so that the end can wait for it.
    tasks: TaskTracker,
}

impl Conversations {
    /// Opens the database, makes it where it is missing, and brings its tables up to date.
    ///
    /// # Errors
    /// A database that cannot be used, with what to do about it. A PostgreSQL that is away is no error: it is asked
    /// again with every request.
    pub async fn open(database: &Database) -> Result<Self, OpenError> {
        let connections = Connections::open(database).await?;
        let tasks = TaskTracker::new();
        let writer = Writer::start(&connections, &tasks);
        Ok(Self(Arc::new(Shared { connections, writer, awaited: Awaited::default(), tasks })))
    }

    /// Waits for what is being written, and closes the database. What is asked for later is refused.
    pub async fn close(&self) {
        self.0.writer.close();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.connections.close().await;
    }

    /// The owner's conversations behind `cursor`, by the time they were made, the newest first.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn list(&self, owner: &Owner, cursor: Option<&Cursor>, limit: u32) -> Result<Page, StoreError> {
        let limit = usize::try_from(limit.clamp(1, MAX_PAGE)).unwrap_or(1);
        let read = self.0.connections.reading(queries::list(self.pool(), owner, cursor, limit + 1));
        let mut rows = read.await?;
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| has_more);
        let next = last.map(|(created_at, last)| Cursor { created_at: *created_at, id: last.id.clone() });
        Ok(Page { conversations: rows.into_iter().map(|(_, conversation)| conversation).collect(), next })
    }

    /// A conversation without its messages. `None`: the owner has none of that id.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn find(&self, owner: &Owner, id: &ConversationId) -> Result<Option<Conversation>, StoreError> {
        self.0.connections.reading(queries::find(self.pool(), owner, id)).await
    }

    /// What a conversation amounts to. `None`: the owner has none of that id.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn summary(&self, owner: &Owner, id: &ConversationId) -> Result<Option<Summary>, StoreError> {
        self.0.connections.reading(queries::summary(self.pool(), owner, id)).await
    }

    /// All messages, the oldest first. `None`: the owner has no such conversation.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn messages(&self, owner: &Owner, id: &ConversationId) -> Result<Option<Vec<StoredMessage>>, StoreError> {
        self.0.connections.reading(queries::messages(self.pool(), owner, id)).await
    }

    /// At most `limit` messages before the one numbered `before`. Without such a conversation there are none.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn newest(
        &self,
        owner: &Owner,
        id: &ConversationId,
        before: u64,
        limit: u32,
    ) -> Result<Newest, StoreError> {
        self.0.connections.reading(queries::newest(self.pool(), owner, id, before, limit)).await
    }

    /// Makes a conversation.
    ///
    /// # Errors
    /// [`StoreError::Exists`]; messages over a limit; the database cannot be written.
    pub async fn create(
        &self,
        owner: &Owner,
        id: ConversationId,
        title: Option<String>,
        messages: Vec<StoredMessage>,
    ) -> Result<Conversation, StoreError> {
        check(&messages)?;
        let done = self.write(Write::Create { owner: owner.clone(), id, title, messages });
        match done.await? {
            Done::Saved(saved) => Ok(saved.conversation),
            _ => Err(StoreError::Exists),
        }
    }

    /// Replaces a conversation's messages; makes it when there is none.
    ///
    /// # Errors
    /// Messages over a limit; the database cannot be written.
    pub async fn save(
        &self,
        owner: &Owner,
        id: ConversationId,
        messages: Vec<StoredMessage>,
    ) -> Result<Saved, StoreError> {
        check(&messages)?;
        match self.write(Write::Save { owner: owner.clone(), id, messages }).await? {
            Done::Saved(saved) => Ok(saved),
            _ => Err(StoreError::Unavailable),
        }
    }

    /// Adds a question and its answer; makes the conversation when there is none.
    ///
    /// # Errors
    /// The conversation has no room for them; the database cannot be written.
    pub async fn append(&self, owner: &Owner, id: ConversationId, turn: Turn) -> Result<Appended, StoreError> {
        check(std::slice::from_ref(&turn.question))?;
        match self.write(Write::Append { owner: owner.clone(), id, turn: Box::new(turn), gone: None }).await? {
            Done::Appended(appended) => Ok(appended),
            _ => Err(StoreError::full()),
        }
    }

    /// Says that a turn of that conversation is being waited for, until what is returned is dropped.
    #[must_use]
    pub fn await_turn(&self, owner: &Owner, id: &ConversationId) -> AwaitedTurn {
        self.0.awaited.begin(owner, id)
    }

    /// Adds a turn that was waited for. `None`: its conversation was removed or cleared meanwhile, and stays so.
    ///
    /// # Errors
    /// As [`Conversations::append`].
    pub async fn append_awaited(&self, turn: Turn, awaited: &AwaitedTurn) -> Result<Option<Appended>, StoreError> {
        check(std::slice::from_ref(&turn.question))?;
        let ((owner, id), gone) = (awaited.name().clone(), Some(awaited.gone()));
        match self.write(Write::Append { owner, id, turn: Box::new(turn), gone }).await? {
            Done::Appended(appended) => Ok(Some(appended)),
            Done::Gone => Ok(None),
            _ => Err(StoreError::full()),
        }
    }

    /// Removes a conversation's messages and keeps the rest of it. False: the owner has none of that id.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn clear(&self, owner: &Owner, id: ConversationId) -> Result<bool, StoreError> {
        let given_up = self.0.awaited.give_up(owner, &id);
        self.remove(Write::Clear { owner: owner.clone(), id }, given_up).await
    }

    /// Removes a conversation. False: the owner has none of that id.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn delete(&self, owner: &Owner, id: ConversationId) -> Result<bool, StoreError> {
        let given_up = self.0.awaited.give_up(owner, &id);
        self.remove(Write::Delete { owner: owner.clone(), id }, given_up).await
    }

    async fn remove(&self, write: Write, given_up: GivenUp) -> Result<bool, StoreError> {
        let done = self.write(write).await;
        if !matches!(done, Ok(Done::Yes)) {
            given_up.take_back();
        }
        Ok(done? == Done::Yes)
    }

    /// Gives a conversation its title; one it has already stays when `only_first`. False: there is nothing to give it to.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn set_title(
        &self,
        owner: &Owner,
        id: ConversationId,
        title: String,
        only_first: bool,
    ) -> Result<bool, StoreError> {
        let write = Write::Title { owner: owner.clone(), id, title, only_first };
        Ok(self.write(write).await? == Done::Yes)
    }

    /// Adds what callers have used up, once for each number of a batch.
    ///
    /// # Errors
    /// The database cannot be written; whether it was, is not always known.
    pub async fn add_usage(&self, batch: UsageBatch) -> Result<(), StoreError> {
        self.write(Write::Usage(batch)).await.map(|_| ())
    }

    /// What `owner` has used from the day `first` to the day `last`, both included, as far as it was added.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn used(&self, owner: &Owner, first: &str, last: &str) -> Result<Used, StoreError> {
        self.0.connections.reading(usage::used(self.pool(), owner, first, last)).await
    }

    /// Whether writing works: refuses what the next write would be refused with.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn check_writable(&self) -> Result<(), StoreError> {
        if self.0.writer.last_failed() { self.write(Write::Probe).await.map(|_| ()) } else { Ok(()) }
    }

    async fn write(&self, write: Write) -> Result<Done, StoreError> {
        self.0.writer.write(write).await
    }

    fn pool(&self) -> &database::Pool {
        self.0.connections.pool()
    }
}

/// That every message, and all together, are within the limits.
///
/// # Errors
/// The limit that is passed.
pub fn check(messages: &[StoredMessage]) -> Result<(), StoreError> {
    let mut bytes = 0;
    for message in messages {
        // An answer may be as long as models make it: it is kept as it is, or not at all.
        if message.role != Role::Assistant {
            check_text(&message.content)?;
        }
        bytes += message.content.len();
    }
    if messages.len() > MAX_MESSAGES || bytes > MAX_CONVERSATION_BYTES {
        return Err(StoreError::full());
    }
    Ok(())
}

/// That a question of this text has room in a conversation of so many messages and bytes, with an answer.
///
/// # Errors
/// The limit that would be passed.
pub fn check_room(question: &str, messages: u64, bytes: u64) -> Result<(), StoreError> {
    let [messages, bytes] = [messages, bytes].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    if messages.saturating_add(2) > MAX_MESSAGES || bytes.saturating_add(question.len()) > MAX_CONVERSATION_BYTES {
        return Err(StoreError::full());
    }
    Ok(())
}

/// That a message of this text can be stored.
///
/// # Errors
/// It is too large.
pub fn check_text(text: &str) -> Result<(), StoreError> {
    if text.len() > MAX_MESSAGE_BYTES {
        return Err(StoreError::MessageTooLarge { limit: MAX_MESSAGE_BYTES });
    }
    Ok(())
}
