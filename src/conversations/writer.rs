//! Writes, acknowledged when they are durable.
//!
//! SQLite has one writer at a time, and a commit waits for the disk. So one task writes, and what has queued up while
//! the disk was busy goes into one commit. PostgreSQL does as much by itself.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    conversations::{
        Appended, Saved, StoredMessage, Turn, UsageBatch,
        database::{Connections, Pool, Transaction, is_held},
        error::StoreError,
        queries, usage,
    },
    ids::{ConversationId, Owner},
};

/// Writes that wait for the writer; more wait for room.
const QUEUE: usize = 256;

/// Most writes of one commit.
const BATCH: usize = 64;

/// A write of more text than this waits until the small ones are done, and has a commit of its own.
const LARGE_BYTES: usize = 256 * 1024;

/// Most large writes that wait beside the queue.
const LARGE_QUEUE: usize = 256;

/// Set once a conversation is removed or cleared.
pub(super) type Gone = Arc<AtomicBool>;

/// What is to be written.
#[derive(Debug)]
pub(super) enum Write {
    Create {
        owner: Owner,
        id: ConversationId,
        title: Option<String>,
        messages: Vec<StoredMessage>,
    },
    Save {
        owner: Owner,
        id: ConversationId,
        messages: Vec<StoredMessage>,
    },
    Append {
        owner: Owner,
        id: ConversationId,
        turn: Box<Turn>,
        /// Whether the conversation was removed or cleared while the answer was waited for.
        gone: Option<Gone>,
    },
    Clear {
        owner: Owner,
        id: ConversationId,
    },
    Delete {
        owner: Owner,
        id: ConversationId,
    },
    Title {
        owner: Owner,
        id: ConversationId,
        title: String,
        only_first: bool,
    },
    Usage(UsageBatch),
    /// Nothing, but as if it were something.
    Probe,
}

impl Write {
    /// Whether it takes so long that others should not wait for it.
    fn is_large(&self) -> bool {
        let bytes = match self {
            Self::Create { messages, .. } | Self::Save { messages, .. } => {
                messages.iter().map(|message| message.content.len() + 64).sum()
            }
            Self::Append { turn, .. } => turn.question.content.len() + turn.answer.content.len(),
            _ => 0,
        };
        bytes > LARGE_BYTES
    }

    /// The conversation that it writes.
    fn conversation(&self) -> Option<(&Owner, &ConversationId)> {
        match self {
            Self::Create { owner, id, .. }
            | Self::Save { owner, id, .. }
            | Self::Append { owner, id, .. }
            | Self::Clear { owner, id }
            | Self::Delete { owner, id }
            | Self::Title { owner, id, .. } => Some((owner, id)),
            Self::Usage(_) | Self::Probe => None,
        }
    }

    /// Whether there is nothing left to add it to.
    fn is_moot(&self) -> bool {
        matches!(self, Self::Append { gone: Some(gone), .. } if gone.load(Ordering::Acquire))
    }

    /// What most writes are.
    fn as_turn(&self) -> Option<(&Owner, &ConversationId, &Turn)> {
        match self {
            Self::Append { owner, id, turn, .. } => Some((owner, id, turn)),
            _ => None,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Saved(Saved),
    Appended(Appended),
    Yes,
    /// It was removed or cleared meanwhile. Nothing was written.
    Gone,
    /// What was asked for is not there, is there already, or has no room. Nothing was written.
    No,
}

type Outcome = Result<Done, StoreError>;

/// Takes writes.
#[derive(Debug)]
pub(super) struct Writer {
    way: Way,
    /// Whether the last write failed.
    failed: Arc<AtomicBool>,
    closing: CancellationToken,
}

#[derive(Debug)]
enum Way {
    /// To the one task that writes.
    Queue(mpsc::Sender<Order>),
    /// Each by itself.
    Direct(Connections),
}

#[derive(Debug)]
struct Order {
    write: Write,
    reply: oneshot::Sender<Outcome>,
}

impl Writer {
    pub(super) fn start(connections: &Connections, tasks: &TaskTracker) -> Self {
        let failed = Arc::new(AtomicBool::new(false));
        let closing = CancellationToken::new();
        let way = match connections.pool() {
            Pool::Postgres(_) => Way::Direct(connections.clone()),
            pool @ Pool::Sqlite { .. } => {
                let (sender, orders) = mpsc::channel(QUEUE);
                tasks.spawn(run(pool.clone(), orders, closing.clone()));
                Way::Queue(sender)
            }
        };
        Self { way, failed, closing }
    }

    /// Writes, and returns when what was written is durable. Of a caller who leaves before that, either all is written or
    /// nothing.
    pub(super) async fn write(&self, write: Write) -> Outcome {
        let outcome = match &self.way {
            Way::Queue(queue) => {
                let (reply, outcome) = oneshot::channel();
                match queue.send(Order { write, reply }).await {
                    Ok(()) => outcome.await.unwrap_or(Err(StoreError::Unavailable)),
                    Err(_) => Err(StoreError::Unavailable),
                }
            }
            Way::Direct(connections) => {
                let written = async {
                    connections.ready().await?;
                    if write.is_moot() {
                        return Ok(Done::Gone);
                    }
                    let done = commit(connections.pool(), std::slice::from_ref(&write)).await;
                    let mut done = done.map_err(|error| StoreError::from_database(&error))?;
                    done.pop().ok_or(StoreError::Unavailable)
                };
                timeout(connections.timeout(), written).await.unwrap_or_else(|_| {
                    tracing::error!("the conversations' database did not answer in time");
                    Err(StoreError::Unavailable)
                })
            }
        };
        self.failed.store(outcome.is_err(), Ordering::Relaxed);
        outcome
    }

    /// Whether the last write failed.
    pub(super) fn last_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Takes no more.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }
}

/// What small writes come to is told at once; between two large ones all small ones are done that have come meanwhile.
async fn run(pool: Pool, mut orders: mpsc::Receiver<Order>, closing: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut large = VecDeque::new();
    loop {
        if !large.is_empty() {
            // Without waiting: there is something to do.
            while batch.len() < BATCH && large.len() < LARGE_QUEUE {
                let Ok(order) = orders.try_recv() else { break };
                put(order, &mut batch, &mut large);
            }
            if batch.is_empty() {
                batch.extend(large.pop_front());
            }
            write_batch(&pool, &mut batch).await;
            batch.extend(large.pop_front());
            write_batch(&pool, &mut batch).await;
            continue;
        }
        let mut came = Vec::new();
        tokio::select! {
            biased;
            taken = orders.recv_many(&mut came, BATCH) => if taken == 0 { return },
            // What is in the queue already is still written.
            () = closing.cancelled(), if !orders.is_closed() => {
                orders.close();
                continue;
            }
        }
        came.into_iter().for_each(|order| put(order, &mut batch, &mut large));
        write_batch(&pool, &mut batch).await;
    }
}

/// Puts a write where it belongs. One of a conversation that a large one waits for stays behind that.
fn put(order: Order, small: &mut Vec<Order>, large: &mut VecDeque<Order>) {
    let same = |waits: &Order| order.write.conversation().is_some_and(|it| waits.write.conversation() == Some(it));
    if order.write.is_large() || large.iter().any(same) {
        large.push_back(order);
    } else {
        small.push(order);
    }
}

/// Writes all of it and says what came of each.
async fn write_batch(pool: &Pool, batch: &mut Vec<Order>) {
    for moot in batch.extract_if(.., |order| order.write.is_moot()) {
        let _ = moot.reply.send(Ok(Done::Gone));
    }
    if batch.is_empty() {
        return;
    }
    let (writes, replies): (Vec<_>, Vec<_>) = batch.drain(..).map(|order| (order.write, order.reply)).unzip();
    for (outcome, reply) in write_all(pool, &writes).await.into_iter().zip(replies) {
        // Whoever has left does not want to know.
        let _ = reply.send(outcome);
    }
}

/// All in one commit; when that fails, each in its own, so that nobody fails for another's sake. A file that somebody
/// else holds was waited for already, for all.
async fn write_all(pool: &Pool, writes: &[Write]) -> Vec<Outcome> {
    match commit(pool, writes).await {
        Ok(done) => return done.into_iter().map(Ok).collect(),
        Err(error) if writes.len() == 1 || is_held(&error) => {
            return vec![Err(StoreError::from_database(&error)); writes.len()];
        }
        Err(_) => {}
    }
    let mut outcomes = Vec::with_capacity(writes.len());
    for write in writes {
        let done = commit(pool, std::slice::from_ref(write)).await;
        let done = done.map_err(|error| StoreError::from_database(&error));
        outcomes.push(done.and_then(|mut done| done.pop().ok_or(StoreError::Unavailable)));
    }
    outcomes
}

async fn commit(pool: &Pool, writes: &[Write]) -> Result<Vec<Done>, sqlx::Error> {
    if let Pool::Sqlite { write, .. } = pool
        && let Some(turns) = writes.iter().map(Write::as_turn).collect::<Option<Vec<_>>>()
    {
        let appended = queries::append_together(write, &turns).await?;
        return Ok(appended.into_iter().map(|appended| appended.map_or(Done::No, Done::Appended)).collect());
    }
    let mut transaction = Transaction::begin(pool).await?;
    let all = apply_all(&mut transaction, writes).await;
    transaction.end(all).await
}

async fn apply_all(transaction: &mut Transaction, writes: &[Write]) -> Result<Vec<Done>, sqlx::Error> {
    let mut done = Vec::with_capacity(writes.len());
    for write in writes {
        done.push(apply(transaction, write).await?);
    }
    Ok(done)
}

async fn apply(transaction: &mut Transaction, write: &Write) -> Result<Done, sqlx::Error> {
    let yes = |is_done| if is_done { Done::Yes } else { Done::No };
    Ok(match write {
        Write::Create { owner, id, title, messages } => {
            let created = queries::create(transaction, owner, id, title.as_deref(), messages).await?;
            created.map_or(Done::No, Done::Saved)
        }
        Write::Save { owner, id, messages } => Done::Saved(queries::save(transaction, owner, id, messages).await?),
        Write::Append { owner, id, turn, .. } => {
            queries::append(transaction, owner, id, turn).await?.map_or(Done::No, Done::Appended)
        }
        Write::Clear { owner, id } => yes(queries::clear(transaction, owner, id).await?),
        Write::Delete { owner, id } => yes(queries::delete(transaction, owner, id).await?),
        Write::Title { owner, id, title, only_first } => {
            yes(queries::set_title(transaction, owner, id, title, *only_first).await?)
        }
        Write::Usage(batch) => {
            usage::add(transaction, batch).await?;
            Done::Yes
        }
        Write::Probe => {
            queries::probe(transaction).await?;
            Done::Yes
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Database,
        conversations::{Conversations, MAX_MESSAGE_BYTES},
        message::Role,
    };

    fn message(bytes: usize) -> StoredMessage {
        StoredMessage { role: Role::User, content: "x".repeat(bytes), timestamp: String::new(), interrupted: false }
    }

    fn id(text: &str) -> ConversationId {
        ConversationId::parse(text).unwrap()
    }

    #[tokio::test]
    async fn small_writes_wait_for_one_large_one_at_most_and_those_of_one_conversation_stay_in_order() {
        let owner = Owner::default();
        let conversations = Conversations::open(&Database::SqliteInMemory).await.unwrap();
        let large = |n: usize| {
            let messages = vec![message(MAX_MESSAGE_BYTES); 4];
            conversations.save(&owner, id(&format!("large-{n}")), messages)
        };
        let larges = futures_util::future::join_all((0..16).map(large));
        tokio::pin!(larges);
        assert!(futures_util::poll!(larges.as_mut()).is_pending(), "all of them are in the queue");
        let turn = || Turn { question: message(1), answer: message(1), usage: None };
        let behind = conversations.append(&owner, id("large-15"), turn());
        tokio::pin!(behind);
        assert!(futures_util::poll!(behind.as_mut()).is_pending());
        conversations.append(&owner, id("small"), turn()).await.unwrap();
        assert!(futures_util::poll!(behind.as_mut()).is_pending(), "it does not come before what it waits for");
        assert!(larges.await.iter().all(Result::is_ok));
        assert_eq!(behind.await.unwrap().messages, 6);
        conversations.close().await;
    }

    #[tokio::test]
    async fn what_waits_is_written_when_the_writer_is_closed() {
        let owner = Owner::default();
        let conversations = Conversations::open(&Database::SqliteInMemory).await.unwrap();
        let saves = (0..5).map(|n| conversations.save(&owner, id(&n.to_string()), vec![message(LARGE_BYTES + 1)]));
        let saves = futures_util::future::join_all(saves);
        tokio::pin!(saves);
        assert!(futures_util::poll!(saves.as_mut()).is_pending());
        let (saved, ()) = tokio::join!(saves, conversations.close());
        assert!(saved.iter().all(Result::is_ok));
    }
}
