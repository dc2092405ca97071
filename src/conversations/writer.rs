//! Writes, acknowledged when they are durable.
//!
//! SQLite has one writer at a time, and a commit waits for the disk. So one task writes, and what has queued up while
//! the disk was busy goes into one commit. PostgreSQL does as much by itself.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
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
    /// What most writes are.
    fn as_turn(&self) -> Option<(&Owner, &ConversationId, &Turn)> {
        match self {
            Self::Append { owner, id, turn } => Some((owner, id, turn)),
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

async fn run(pool: Pool, mut orders: mpsc::Receiver<Order>, closing: CancellationToken) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            taken = orders.recv_many(&mut batch, BATCH) => if taken == 0 { return },
            // What is in the queue already is still written.
            () = closing.cancelled(), if !orders.is_closed() => {
                orders.close();
                continue;
            }
        }
        let (writes, replies): (Vec<_>, Vec<_>) = batch.drain(..).map(|order| (order.write, order.reply)).unzip();
        for (outcome, reply) in write_all(&pool, &writes).await.into_iter().zip(replies) {
            // Whoever has left does not want to know.
            let _ = reply.send(outcome);
        }
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
        Write::Append { owner, id, turn } => {
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
