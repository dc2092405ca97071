//! Every query, once for both databases: `$1` is understood by both, and so is all the SQL here.
//!
//! A text that may hold NUL is bound as bytes, because PostgreSQL's text cannot. Every query names the owner.

use std::{
    str::{FromStr, Split},
    sync::Arc,
};

use sqlx::{PgConnection, QueryBuilder, SqliteConnection};

use crate::{
    conversations::{
        Appended, Conversation, Counts, Cursor, MAX_CONVERSATION_BYTES, MAX_MESSAGES, Newest, Saved, StoredMessage,
        Summary, Turn,
        database::{Pool, SqliteConnections, Transaction, roll_back},
    },
    ids::{ConversationId, Owner},
    message::{Message, Role},
    timestamp::Timestamp,
};

/// Runs the same query on whichever pool there is.
macro_rules! on {
    ($pool:expr, $connection:ident => $query:expr) => {
        match $pool {
            Pool::Sqlite { read, .. } => {
                let mut taken = read.take().await?;
                let $connection = taken.connection()?;
                $query
            }
            Pool::Postgres($connection) => $query,
        }
    };
}

/// Runs the same query in whichever transaction there is.
macro_rules! within {
    ($transaction:expr, $connection:ident => $query:expr) => {
        match $transaction {
            Transaction::Sqlite(taken) => {
                let $connection = taken.connection()?;
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

/// What stands between texts that are put together.
const NOTHING: &[u8] = &[];

/// Rows of one INSERT of messages; SQLite takes 32,766 values.
const ROWS_PER_INSERT: usize = 500;

pub(super) async fn list(
    pool: &Pool,
    owner: &Owner,
    cursor: Option<&Cursor>,
    limit: usize,
) -> Result<Vec<(i64, Conversation)>, sqlx::Error> {
    const SQL: &str = select_conversation!(
        "WHERE owner = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC \
         LIMIT CAST($4 AS BIGINT)"
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
    const SQL: &str = "SELECT count(*), string_agg(seq || ' ' || role || ' ' || octet_length(content) || ' ' || \
        octet_length(timestamp) || ' ' || interrupted, ','), string_agg(content, $3), string_agg(timestamp, '') \
        FROM conversations LEFT JOIN messages ON conversation = key WHERE owner = $1 AND id = $2";
    let (rows, packed, contents, timestamps): (i64, Option<String>, Option<Vec<u8>>, Option<String>) = on!(pool, connection => {
        let query = sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).bind(NOTHING);
        query.fetch_one(connection).await?
    });
    if rows == 0 {
        return Ok(None);
    }
    let mut unpacking = Unpacking::new(&contents, &timestamps);
    let mut messages = unpack(&packed, |fields| {
        let (seq, role) = (number(fields)?, Role::parse(fields.next()?)?);
        let content = unpacking.content(number(fields)?)?;
        let timestamp = unpacking.timestamp(number(fields)?)?;
        let interrupted = number::<u8>(fields)? != 0;
        Some((seq, StoredMessage { role, content, timestamp, interrupted }))
    })?;
    messages.sort_unstable_by_key(|(seq, _): &(u64, _)| *seq);
    Ok(Some(messages.into_iter().map(|(_, message)| message).collect()))
}

pub(super) async fn newest(
    pool: &Pool,
    owner: &Owner,
    id: &ConversationId,
    before: u64,
    limit: u32,
) -> Result<Newest, sqlx::Error> {
    // CAST: SQLite looks at a bare limit when it prepares, and so prepares again for every one that is bound.
    const SQL: &str = "SELECT string_agg(seq || ' ' || role || ' ' || octet_length(content), ','), \
        string_agg(content, $5), (SELECT bytes FROM conversations WHERE owner = $1 AND id = $2) \
        FROM (SELECT seq, role, content FROM messages \
        WHERE conversation = (SELECT key FROM conversations WHERE owner = $1 AND id = $2) AND seq < $3 \
        ORDER BY seq DESC LIMIT CAST($4 AS BIGINT)) AS newest";
    let before = i64::try_from(before).unwrap_or(i64::MAX);
    let (packed, contents, bytes): (Option<String>, Option<Vec<u8>>, Option<i64>) = on!(pool, connection => {
        let query = sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).bind(before).bind(i64::from(limit));
        query.bind(NOTHING).fetch_one(connection).await?
    });
    let mut unpacking = Unpacking::new(&contents, &None);
    let mut messages = unpack(&packed, |fields| {
        let (seq, role) = (number(fields)?, Role::parse(fields.next()?)?);
        Some((seq, Message::new(role, unpacking.content(number(fields)?)?)))
    })?;
    messages.sort_unstable_by_key(|(seq, _): &(u64, _)| std::cmp::Reverse(*seq));
    let bytes = if messages.is_empty() { 0 } else { bytes.map_or(0, count) };
    Ok(Newest { messages, bytes })
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

/// Makes a conversation with room for a turn, or makes room in the one that there is. Its row is locked from here on, so
/// that turns come one behind the other.
macro_rules! upsert_for_turn {
    () => {
        "INSERT INTO conversations (owner, id, created_at, updated_at, messages, user_messages, \
         ai_messages, bytes, prompt_tokens, completion_tokens) VALUES ($1, $2, $3, $3, 2, 1, 1, $4, $5, $6) \
         ON CONFLICT (owner, id) DO UPDATE SET updated_at = $3, messages = conversations.messages + 2, \
         user_messages = conversations.user_messages + 1, ai_messages = conversations.ai_messages + 1, \
         bytes = conversations.bytes + $4, prompt_tokens = conversations.prompt_tokens + $5, \
         completion_tokens = conversations.completion_tokens + $6 \
         WHERE conversations.messages + 2 <= $7 AND conversations.bytes + $4 <= $8 \
         RETURNING key, messages, CASE WHEN title IS NULL THEN 0 ELSE 1 END"
    };
}

/// In one go: each statement of its own wakes sqlx's thread and is waited for, which costs more than the statement.
macro_rules! sqlite_append {
    () => {
        concat!(
            upsert_for_turn!(),
            "; INSERT INTO messages (conversation, seq, role, content, timestamp, interrupted) \
             SELECT key, messages - 2, $9, $10, $11, $12 FROM conversations WHERE owner = $1 AND id = $2 \
             AND changes() > 0 UNION ALL \
             SELECT key, messages - 1, $13, $14, $15, $16 FROM conversations WHERE owner = $1 AND id = $2 \
             AND changes() > 0"
        )
    };
}

/// key, messages, whether it has a title. An INTEGER of PostgreSQL's is 32 bits wide, unlike its BIGINT.
type AppendedRow = (i64, i64, i32);

/// Adds a turn, and makes the conversation when there is none. `None`: it has no room.
pub(super) async fn append(
    transaction: &mut Transaction,
    owner: &Owner,
    id: &ConversationId,
    turn: &Turn,
) -> Result<Option<Appended>, sqlx::Error> {
    const SQL: &str = upsert_for_turn!();
    let transaction = match transaction {
        Transaction::Sqlite(taken) => {
            return sqlite_append(taken.connection()?, sqlite_append!(), owner, id, turn).await;
        }
        Transaction::Postgres(transaction) => transaction,
    };
    let Sizes { bytes, prompt_tokens, completion_tokens } = Sizes::of(turn);
    let query = sqlx::query_as(SQL).bind(owner.as_str()).bind(id.as_str()).bind(Timestamp::micros_now());
    let query = query.bind(bytes).bind(prompt_tokens).bind(completion_tokens);
    let query = query.bind(signed(MAX_MESSAGES)).bind(signed(MAX_CONVERSATION_BYTES));
    let row: Option<AppendedRow> = query.fetch_optional(&mut **transaction).await?;
    let Some((key, messages, has_title)) = row else { return Ok(None) };
    insert_turn(transaction, key, messages - 2, turn).await?;
    Ok(Some(Appended { messages: count(messages), has_title: has_title != 0 }))
}

/// The same for many, in a transaction of their own, which begins with the first and is committed with the last.
pub(super) async fn append_together(
    write: &Arc<SqliteConnections>,
    turns: &[(&Owner, &ConversationId, &Turn)],
) -> Result<Vec<Option<Appended>>, sqlx::Error> {
    const ALONE: &str = concat!("BEGIN IMMEDIATE; ", sqlite_append!(), "; COMMIT");
    const FIRST: &str = concat!("BEGIN IMMEDIATE; ", sqlite_append!());
    const LAST: &str = concat!(sqlite_append!(), "; COMMIT");
    let mut taken = write.take().await?;
    let all = async {
        let mut appended = Vec::with_capacity(turns.len());
        for (index, (owner, id, turn)) in turns.iter().enumerate() {
            let sql = match (index == 0, index + 1 == turns.len()) {
                (true, true) => ALONE,
                (true, false) => FIRST,
                (false, true) => LAST,
                (false, false) => sqlite_append!(),
            };
            appended.push(sqlite_append(taken.connection()?, sql, owner, id, turn).await?);
        }
        Ok(appended)
    };
    let appended = all.await;
    if appended.is_err() {
        roll_back(taken).await;
    }
    appended
}

async fn sqlite_append(
    connection: &mut SqliteConnection,
    sql: &'static str,
    owner: &Owner,
    id: &ConversationId,
    turn: &Turn,
) -> Result<Option<Appended>, sqlx::Error> {
    let Sizes { bytes, prompt_tokens, completion_tokens } = Sizes::of(turn);
    let Turn { question, answer, .. } = turn;
    let mut query = sqlx::query_as(sql).bind(owner.as_str()).bind(id.as_str()).bind(Timestamp::micros_now());
    query = query.bind(bytes).bind(prompt_tokens).bind(completion_tokens);
    query = query.bind(signed(MAX_MESSAGES)).bind(signed(MAX_CONVERSATION_BYTES));
    for message in [question, answer] {
        query = query.bind(message.role.as_str()).bind(message.content.as_bytes());
        query = query.bind(message.timestamp.as_str()).bind(i64::from(message.interrupted));
    }
    // All of them, for the rest is not done before the row is taken.
    let rows: Vec<AppendedRow> = query.fetch_all(connection).await?;
    let appended = |(_, messages, has_title)| Appended { messages: count(messages), has_title: has_title != 0 };
    Ok(rows.into_iter().next().map(appended))
}

/// What a turn adds to the sums of its conversation.
struct Sizes {
    bytes: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
}

impl Sizes {
    fn of(turn: &Turn) -> Self {
        // Whatever an upstream says: the sum of all turns stays a number that both databases have.
        let tokens = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX).min(1 << 40);
        let usage = turn.usage.unwrap_or_default();
        Self {
            bytes: signed(turn.question.content.len() + turn.answer.content.len()),
            prompt_tokens: tokens(usage.prompt_tokens),
            completion_tokens: tokens(usage.completion_tokens),
        }
    }
}

async fn insert_turn(connection: &mut PgConnection, key: i64, seq: i64, turn: &Turn) -> Result<(), sqlx::Error> {
    const SQL: &str = "INSERT INTO messages (conversation, seq, role, content, timestamp, interrupted) \
        VALUES ($1, $2, $3, $4, $5, $6), ($1, $7, $8, $9, $10, $11)";
    let mut query = sqlx::query(SQL).bind(key);
    for (seq, message) in (seq..).zip([&turn.question, &turn.answer]) {
        query = query.bind(seq).bind(message.role.as_str()).bind(message.content.as_bytes());
        query = query.bind(message.timestamp.as_str()).bind(i64::from(message.interrupted));
    }
    query.execute(connection).await.map(|_| ())
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

/// Many messages in one row, because every row of its own wakes the task that reads: `packed` has the fields of each,
/// behind commas, and with the lengths of what is one behind the other in the other columns. The order is whatever it is.
fn unpack<T>(
    packed: &Option<String>,
    mut message: impl FnMut(&mut Split<'_, char>) -> Option<T>,
) -> Result<Vec<T>, sqlx::Error> {
    let all = packed.iter().flat_map(|packed| packed.split(','));
    all.map(|fields| message(&mut fields.split(' ')).ok_or_else(|| damaged("a message"))).collect()
}

fn number<T: FromStr>(fields: &mut Split<'_, char>) -> Option<T> {
    fields.next()?.parse().ok()
}

/// What is left to be taken of the texts.
struct Unpacking<'a> {
    contents: &'a [u8],
    timestamps: &'a str,
}

impl<'a> Unpacking<'a> {
    fn new(contents: &'a Option<Vec<u8>>, timestamps: &'a Option<String>) -> Self {
        Self {
            contents: contents.as_deref().unwrap_or_default(),
            timestamps: timestamps.as_deref().unwrap_or_default(),
        }
    }

    fn content(&mut self, bytes: usize) -> Option<String> {
        let (content, rest) = self.contents.split_at_checked(bytes)?;
        self.contents = rest;
        std::str::from_utf8(content).ok().map(str::to_owned)
    }

    fn timestamp(&mut self, bytes: usize) -> Option<String> {
        let (timestamp, rest) = self.timestamps.split_at_checked(bytes)?;
        self.timestamps = rest;
        Some(timestamp.to_owned())
    }
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
