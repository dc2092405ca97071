//! What can be wrong with a database: while it is in use, and when it is opened.

use sqlx::error::ErrorKind;

use crate::conversations::{MAX_CONVERSATION_BYTES, MAX_MESSAGES};

/// Why a conversation was not read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The owner has a conversation of that id.
    #[error("the conversation exists")]
    Exists,
    #[error("a stored message has at most {limit} bytes")]
    MessageTooLarge { limit: usize },
    #[error("a conversation has at most {messages} messages and {bytes} bytes")]
    Full { messages: usize, bytes: usize },
    /// The disk is full: nothing was written, and reading goes on.
    #[error("no space left to store conversations")]
    NoSpace,
    /// The database does not answer, or not in time.
    #[error("conversations cannot be reached at the moment")]
    Unavailable,
}

impl StoreError {
    /// A conversation that has reached its limits.
    #[must_use]
    pub fn full() -> Self {
        Self::Full { messages: MAX_MESSAGES, bytes: MAX_CONVERSATION_BYTES }
    }

    /// Says in the log what the database said: about itself, never about a conversation.
    pub(super) fn from_database(error: &sqlx::Error) -> Self {
        let code = code(error);
        let told = if code.as_deref().is_some_and(is_disk_full) { Self::NoSpace } else { Self::Unavailable };
        tracing::error!(code, kind = kind(error), "the conversations' database failed");
        told
    }
}

/// The database's own code: SQLite's number, PostgreSQL's SQLSTATE.
pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(std::borrow::Cow::into_owned)
}

/// SQLITE_FULL; SQLITE_IOERR_SHMSIZE, which is the same for the index of SQLite's log; PostgreSQL's disk_full.
pub(super) fn is_disk_full(code: &str) -> bool {
    matches!(code, "13" | "4874" | "53100")
}

/// What kind of failure it is. Messages of databases quote values, so they are not passed on.
fn kind(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => match error.kind() {
            ErrorKind::Other => "database".to_owned(),
            kind => format!("{kind:?}"),
        },
        sqlx::Error::Io(error) => format!("I/O: {}", error.kind()),
        sqlx::Error::PoolTimedOut => "no connection in time".to_owned(),
        sqlx::Error::PoolClosed => "closed".to_owned(),
        sqlx::Error::WorkerCrashed => "the database's thread ended".to_owned(),
        sqlx::Error::Tls(_) => "TLS".to_owned(),
        _ => "other".to_owned(),
    }
}

/// Why a database cannot be used at all: what is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the database {place}: {problem}. {remedy}")]
pub struct OpenError {
    /// The file, or host and name; never a password.
    pub place: String,
    pub problem: String,
    pub remedy: &'static str,
}
