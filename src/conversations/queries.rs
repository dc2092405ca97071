//! Every query, once for both databases: `$1` is understood by both, and so is all the SQL here.
//!
//! A text that may hold NUL is bound as bytes, because PostgreSQL's text cannot. Every query names the owner.

use sqlx::QueryBuilder;

use crate::{
    conversations::{
        Appended, Conversation, Counts, Cursor, MAX_CONVERSATION_BYTES, MAX_MESSAGES, Newest, Saved, StoredMessage,
        Summary, Turn,
        database::{Pool, Transaction},
    },
    ids::{ConversationId, Owner},
    message::Role,
    timestamp::Timestamp,
};

/// Runs the same query on whichever pool there is.
macro_rules! on {
    ($pool:expr, $connection:ident => $query:expr) => {
        match $pool {
            Pool::Sqlite { read: $connection, .. } => $query,
            Pool::Postgres($connection) => $query,
        }
    };
}

/// Runs the same query in whichever transaction there is.
macro_rules! within {
    ($transaction:expr, $connection:ident => $query:expr) => {
        match $transaction {
            Transaction::Sqlite(transaction) => {
                let $connection = &mut **transaction;
                $query
            }
            Transaction::Postgres(transaction) => {
                let $connection = &mut **transaction;
                $query
            }
        }
    };
}

pub(super) use {on, within};

/// The columns of a [`Conversation`], in the order of [`ConversationRow`].
macro_rules! select_conversation {
    ($rest:literal) => {
        concat!(
            "SELECT id, title, created_at, updated_at, messages, user_messages, ai_messages, prompt_tokens, \
             completion_tokens FROM conversations ",
            $rest
        )
    };
}

type ConversationRow = (String, Option<Vec<u8>>, i64, i64, i64, i64, i64, i64, i64);

/// role, content, timestamp, interrupted
type MessageRow = (String, Vec<u8>, String, i64);

/// Rows of one INSERT of messages; SQLite takes 32,766 values.
const ROWS_PER_INSERT: usize = 500;

pub(super) async fn list(
    pool: &Pool,
    owner: &Owner,
    cursor: Option<&Cursor>,
    limit: usize,
) -> Result<Vec<(i64, Conversation)>, sqlx::Error> {
    const SQL: &str = select_conversation!(
        "WHERE owner = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"
    );
    let (created_at, id) = cursor.map_or((i64::MAX, ""), |cursor| (cursor.created_at, cursor.id.as_str()));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows: Vec<ConversationRow> = on!(pool, connection => {
        sqlx::query_as(SQL).bind(owner.as_str()).bind(created_at).bind(id).bind(limit).fetch_all(connection).await?
    });
    rows.into_iter().map(|row| Ok((row.2, conversation(row)?))).collect()
}

pub(super) async fn find(pool: &Pool, owner: &Owner, id: &ConversationId) -> Result<Option<Conversation>, sqlx::Error> {
    const SQL: &str = select_conversation!("WHERE owner = $1 AND id = $2");
    let row: Option<ConversationRow> = on!(pool, connection => {
        sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).fetch_optional(connection).await?
    });
    row.map(conversation).transpose()
}

pub(super) async fn summary(pool: &Pool, owner: &Owner, id: &ConversationId) -> Result<Option<Summary>, sqlx::Error> {
    const SQL: &str = "SELECT messages, user_messages, ai_messages, prompt_tokens, completion_tokens, \
        (SELECT timestamp FROM messages WHERE conversation = key ORDER BY seq LIMIT 1), \
        (SELECT timestamp FROM messages WHERE conversation = key ORDER BY seq DESC LIMIT 1) \
        FROM conversations WHERE owner = $1 AND id = $2";
    type Row = (i64, i64, i64, i64, i64, Option<String>, Option<String>);
    let row: Option<Row> = on!(pool, connection => {
        sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).fetch_optional(connection).await?
    });
    Ok(row.map(|(messages, user, ai, prompt, completion, first_message_at, last_message_at)| Summary {
        counts: Counts {
            messages: count(messages),
            user_messages: count(user),
            ai_messages: count(ai),
            prompt_tokens: count(prompt),
            completion_tokens: count(completion),
        },
        first_message_at,
        last_message_at,
    }))
}

pub(super) async fn messages(
    pool: &Pool,
    owner: &Owner,
    id: &ConversationId,
) -> Result<Option<Vec<StoredMessage>>, sqlx::Error> {
    // A conversation without messages has one row of NULLs. One query sees one moment.
    const SQL: &str = "SELECT role, content, timestamp, interrupted FROM conversations \
        LEFT JOIN messages ON conversation = key WHERE owner = $1 AND id = $2 ORDER BY seq";
    type Row = (Option<String>, Option<Vec<u8>>, Option<String>, Option<i64>);
    let rows: Vec<Row> = on!(pool, connection => {
        sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).fetch_all(connection).await?
    });
    if rows.is_empty() {
        return Ok(None);
    }
    let whole = |(role, content, timestamp, interrupted): Row| Some((role?, content?, timestamp?, interrupted?));
    rows.into_iter().filter_map(whole).map(message).collect::<Result<_, _>>().map(Some)
}

pub(super) async fn newest(
    pool: &Pool,
    owner: &Owner,
    id: &ConversationId,
    before: u64,
    limit: u32,
) -> Result<Newest, sqlx::Error> {
    const SQL: &str = "SELECT seq, role, content, timestamp, interrupted, \
        (SELECT bytes FROM conversations WHERE owner = $1 AND id = $2) FROM messages \
        WHERE conversation = (SELECT key FROM conversations WHERE owner = $1 AND id = $2) AND seq < $3 \
        ORDER BY seq DESC LIMIT $4";
    let before = i64::try_from(before).unwrap_or(i64::MAX);
    let rows: Vec<(i64, String, Vec<u8>, String, i64, i64)> = on!(pool, connection => {
        let query = sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).bind(before).bind(i64::from(limit));
        query.fetch_all(connection).await?
    });
    let mut newest = Newest { messages: Vec::with_capacity(rows.len()), bytes: 0 };
    for (seq, role, content, timestamp, interrupted, bytes) in rows {
        newest.messages.push((count(seq), message((role, content, timestamp, interrupted))?));
        newest.bytes = count(bytes);
    }
    Ok(newest)
}

/// Makes a conversation with its messages. `None`: there is one of that id.
pub(super) async fn create(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &ConversationId,
    title: Option<&str>,
    messages: &[StoredMessage],
) -> Result<Option<Saved>, sqlx::Error> {
    const SQL: &str = "INSERT INTO conversations (owner, id, title, created_at, updated_at, messages, user_messages, \
        ai_messages, bytes, prompt_tokens, completion_tokens) VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8, 0, 0) \
        ON CONFLICT (owner, id) DO NOTHING RETURNING key";
    let sums = Sums::of(messages);
    let key: Option<i64> = within!(transaction, connection => {
        let query = sqlx::query_scalar(SQL).bind(owner.as_str()).bind(id.as_str()).bind(title.map(str::as_bytes));
        let query = query.bind(Timestamp::micros_now());
        let query = query.bind(sums.messages).bind(sums.user_messages).bind(sums.ai_messages).bind(sums.bytes);
        query.fetch_optional(connection).await?
    });
    let Some(key) = key else { return Ok(None) };
    insert(transaction, key, 0, messages).await?;
    reread(transaction, owner, id).await.map(|conversation| Some(Saved { conversation, is_new: true }))
}

/// Replaces a conversation's messages, and makes it when there is none.
pub(super) async fn save(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &ConversationId,
    messages: &[StoredMessage],
) -> Result<Saved, sqlx::Error> {
    const SQL: &str = "UPDATE conversations SET updated_at = $3, messages = $4, user_messages = $5, ai_messages = $6, \
        bytes = $7 WHERE owner = $1 AND id = $2 RETURNING key";
    let sums = Sums::of(messages);
    let key: i64 = loop {
        // First, because somebody else who makes the same one is waited for.
        if let Some(saved) = create(transaction, owner, id, None, messages).await? {
            return Ok(saved);
        }
        let key = within!(transaction, connection => {
            let query = sqlx::query_scalar(SQL).bind(owner.as_str()).bind(id.as_str());
            let query = query.bind(Timestamp::micros_now());
            let query = query.bind(sums.messages).bind(sums.user_messages).bind(sums.ai_messages).bind(sums.bytes);
            query.fetch_optional(connection).await?
        });
        // In PostgreSQL, what was there a moment ago may have been removed since.
        if let Some(key) = key {
            break key;
        }
    };
    delete_messages(transaction, key).await?;
    insert(transaction, key, 0, messages).await?;
    let conversation = reread(transaction, owner, id).await?;
    Ok(Saved { conversation, is_new: false })
}

/// Adds a turn, and makes the conversation when there is none. `None`: it has no room.
pub(super) async fn append(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &ConversationId,
    turn: &Turn,
) -> Result<Option<Appended>, sqlx::Error> {
    // The row is locked from here on, so that turns come one behind the other.
    const SQL: &str = "INSERT INTO conversations (owner, id, created_at, updated_at, messages, user_messages, \
        ai_messages, bytes, prompt_tokens, completion_tokens) VALUES ($1, $2, $3, $3, 2, 1, 1, $4, $5, $6) \
        ON CONFLICT (owner, id) DO UPDATE SET updated_at = $3, messages = conversations.messages + 2, \
        user_messages = conversations.user_messages + 1, ai_messages = conversations.ai_messages + 1, \
        bytes = conversations.bytes + $4, prompt_tokens = conversations.prompt_tokens + $5, \
        completion_tokens = conversations.completion_tokens + $6 \
        WHERE conversations.messages + 2 <= $7 AND conversations.bytes + $4 <= $8 \
        RETURNING key, messages, CASE WHEN title IS NULL THEN 0 ELSE 1 END";
    let bytes = signed(turn.question.content.len() + turn.answer.content.len());
    let usage = turn.usage.unwrap_or_default();
    // Whatever an upstream says: the sum of all turns stays a number that both databases have.
    let tokens = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX).min(1 << 40);
    // An INTEGER of PostgreSQL's is 32 bits wide, unlike its BIGINT.
    let row: Option<(i64, i64, i32)> = within!(transaction, connection => {
        let query = sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).bind(Timestamp::micros_now());
        let query = query.bind(bytes).bind(tokens(usage.prompt_tokens)).bind(tokens(usage.completion_tokens));
        query.bind(signed(MAX_MESSAGES)).bind(signed(MAX_CONVERSATION_BYTES)).fetch_optional(connection).await?
    });
    let Some((key, messages, has_title)) = row else { return Ok(None) };
    insert_turn(transaction, key, messages - 2, turn).await?;
    Ok(Some(Appended { messages: count(messages), has_title: has_title != 0 }))
}

async fn insert_turn(transaction: &mut Transaction, key: i64, seq: i64, turn: &Turn) -> Result<(), sqlx::Error> {
    const SQL: &str = "INSERT INTO messages (conversation, seq, role, content, timestamp, interrupted) \
        VALUES ($1, $2, $3, $4, $5, $6), ($1, $7, $8, $9, $10, $11)";
    let Turn { question, answer, .. } = turn;
    within!(transaction, connection => {
        let query = sqlx::query(SQL).bind(key);
        let query = query.bind(seq).bind(question.role.as_str()).bind(question.content.as_bytes());
        let query = query.bind(question.timestamp.as_str()).bind(i64::from(question.interrupted));
        let query = query.bind(seq + 1).bind(answer.role.as_str()).bind(answer.content.as_bytes());
        let query = query.bind(answer.timestamp.as_str()).bind(i64::from(answer.interrupted));
        query.execute(connection).await.map(|_| ())
    })
}

/// Removes all messages. False: no such conversation.
pub(super) async fn clear(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &ConversationId,
) -> Result<bool, sqlx::Error> {
    const SQL: &str = "UPDATE conversations SET updated_at = $3, messages = 0, user_messages = 0, ai_messages = 0, \
        bytes = 0 WHERE owner = $1 AND id = $2 RETURNING key";
    let key: Option<i64> = within!(transaction, connection => {
        let query = sqlx::query_scalar(SQL).bind(owner.as_str()).bind(id.as_str());
        query.bind(Timestamp::micros_now()).fetch_optional(connection).await?
    });
    let Some(key) = key else { return Ok(false) };
    delete_messages(transaction, key).await?;
    Ok(true)
}

/// Removes a conversation with its messages. False: there was none.
pub(super) async fn delete(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &ConversationId,
) -> Result<bool, sqlx::Error> {
    const SQL: &str = "DELETE FROM conversations WHERE owner = $1 AND id = $2";
    within!(transaction, connection => {
        let done = sqlx::query(SQL).bind(owner.as_str()).bind(id.as_str()).execute(connection).await?;
        Ok(done.rows_affected() > 0)
    })
}

/// Sets the title. False: no such conversation, or it has one and `only_first`.
pub(super) async fn set_title(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &ConversationId,
    title: &str,
    only_first: bool,
) -> Result<bool, sqlx::Error> {
    const SQL: &str = "UPDATE conversations SET title = $3 WHERE owner = $1 AND id = $2 AND (title IS NULL OR $4 = 0)";
    within!(transaction, connection => {
        let query = sqlx::query(SQL).bind(owner.as_str()).bind(id.as_str()).bind(title.as_bytes());
        let done = query.bind(i64::from(only_first)).execute(connection).await?;
        Ok(done.rows_affected() > 0)
    })
}

/// Writes something and leaves nothing behind, when its transaction is not committed.
pub(super) async fn probe(transaction: &mut Transaction) -> Result<(), sqlx::Error> {
    const SQL: &str = "INSERT INTO conversations (owner, id, created_at, updated_at, messages, user_messages, \
        ai_messages, bytes, prompt_tokens, completion_tokens) VALUES ('', '', 0, 0, 0, 0, 0, 0, 0, 0) \
        ON CONFLICT (owner, id) DO NOTHING";
    within!(transaction, connection => sqlx::query(SQL).execute(connection).await.map(|_| ()))?;
    within!(transaction, connection => {
        let remove = "DELETE FROM conversations WHERE owner = '' AND id = ''";
        sqlx::query(remove).execute(connection).await.map(|_| ())
    })
}

async fn delete_messages(transaction: &mut Transaction, key: i64) -> Result<(), sqlx::Error> {
    const SQL: &str = "DELETE FROM messages WHERE conversation = $1";
    within!(transaction, connection => sqlx::query(SQL).bind(key).execute(connection).await.map(|_| ()))
}

/// Adds messages from number `seq` on.
async fn insert(
    transaction: &mut Transaction,
    key: i64,
    seq: i64,
    messages: &[StoredMessage],
) -> Result<(), sqlx::Error> {
    const SQL: &str = "INSERT INTO messages (conversation, seq, role, content, timestamp, interrupted) ";
    for (index, rows) in messages.chunks(ROWS_PER_INSERT).enumerate() {
        let first = seq + signed(index * ROWS_PER_INSERT);
        within!(transaction, connection => {
            let mut query = QueryBuilder::new(SQL);
            query.push_values((first..).zip(rows), |mut row, (seq, message)| {
                row.push_bind(key).push_bind(seq).push_bind(message.role.as_str());
                row.push_bind(message.content.as_bytes()).push_bind(message.timestamp.as_str());
                row.push_bind(i64::from(message.interrupted));
            });
            // Of few lengths only, which are worth remembering.
            query.build().persistent(rows.len() == ROWS_PER_INSERT).execute(connection).await?;
        });
    }
    Ok(())
}

async fn reread(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &ConversationId,
) -> Result<Conversation, sqlx::Error> {
    const SQL: &str = select_conversation!("WHERE owner = $1 AND id = $2");
    let row: ConversationRow = within!(transaction, connection => {
        sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).fetch_one(connection).await?
    });
    conversation(row)
}

/// What a list of messages amounts to.
struct Sums {
    messages: i64,
    user_messages: i64,
    ai_messages: i64,
    bytes: i64,
}

impl Sums {
    fn of(messages: &[StoredMessage]) -> Self {
        let by = |role| signed(messages.iter().filter(|message| message.role == role).count());
        Self {
            messages: signed(messages.len()),
            user_messages: by(Role::User),
            ai_messages: by(Role::Assistant),
            bytes: signed(messages.iter().map(|message| message.content.len()).sum()),
        }
    }
}

fn conversation(row: ConversationRow) -> Result<Conversation, sqlx::Error> {
    let (id, title, created_at, updated_at, messages, user_messages, ai_messages, prompt_tokens, completion_tokens) =
        row;
    Ok(Conversation {
        id: ConversationId::parse(&id).ok_or_else(|| damaged("an id"))?,
        title: title.map(text).transpose()?,
        created_at: Timestamp::from_micros(created_at),
        updated_at: Timestamp::from_micros(updated_at),
        counts: Counts {
            messages: count(messages),
            user_messages: count(user_messages),
            ai_messages: count(ai_messages),
            prompt_tokens: count(prompt_tokens),
            completion_tokens: count(completion_tokens),
        },
    })
}

fn message((role, content, timestamp, interrupted): MessageRow) -> Result<StoredMessage, sqlx::Error> {
    let role = Role::parse(&role).ok_or_else(|| damaged("a role"))?;
    Ok(StoredMessage { role, content: text(content)?, timestamp, interrupted: interrupted != 0 })
}

fn text(bytes: Vec<u8>) -> Result<String, sqlx::Error> {
    String::from_utf8(bytes).map_err(|_| damaged("a text"))
}

fn damaged(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("{what} is not one").into())
}

/// A number that counts something.
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
