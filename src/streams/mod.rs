//! The stream log: what stands between the producer of a stream and its readers.
//!
//! ```text
//!   upstream ──▶ pump ──▶ log ──▶ any number of readers, each a cursor
//! ```
//!
//! An entry is one event, encoded once when it enters the log; every reader writes those bytes. Entries are numbered
//! from 1 without a gap. A reader that leaves, lags or returns cannot slow, stop or truncate the producer.
//!
//! [`StreamLog`] has the primitives; [`Follow`] is the algorithm above them, written once. What an event says is
//! decided in [`event`]; this folder does not know where text comes from.

pub mod event;
mod follow;
mod memory;

pub use follow::{Follow, Followed};
pub use memory::{MemoryLog, MemoryLogLimits};

use std::{fmt, pin::Pin, sync::Arc};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::ids::{Owner, StreamId};

/// The number of an entry: 1 is START. As a cursor: the last entry that was read, 0 before the first.
pub type Seq = u64;

/// How a stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    Running,
    /// Ended with END because the upstream said so.
    Finished,
    /// Ended with END because somebody stopped it.
    Cancelled,
    /// Ended with ERROR.
    Failed,
}

impl Status {
    #[must_use]
    pub fn is_ended(self) -> bool {
        self != Self::Running
    }
}

/// Entries that enter the log together: their bytes, back to back, and where each ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub bytes: Bytes,
    /// The offset behind each entry.
    pub ends: Vec<usize>,
    /// How many bytes of the answer's text they bring: so much more there will be in END.
    pub text: usize,
    /// What the stream is after the last entry; only the last entry of a stream ends it.
    pub ends_with: Option<Status>,
}

/// How much entries are that are about to enter the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub entries: usize,
    pub bytes: usize,
    /// Of the answer's text.
    pub text: usize,
}

/// The log's memory is used up by running streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream log is full")]
pub struct LogFull {
    /// The one that takes up most, which should end. `None`: room is about to come by itself.
    pub largest: Option<StreamId>,
}

/// What an append came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log's last entry is another one: somebody else has ended the stream.
    #[error("the log has moved on")]
    Conflict,
    /// There is no such stream (any more).
    #[error("no such stream")]
    Missing,
}

/// Why a stream cannot be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The log's memory is used up by running streams.
    #[error("the stream log is full")]
    Full,
    /// The id exists.
    #[error("the stream exists")]
    Exists,
}

/// Where a stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub status: Status,
    pub last: Seq,
    pub owner: Owner,
}

/// Some entries from a cursor on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Whole entries, in order, many to a piece.
    pub pieces: Vec<Bytes>,
    /// The last entry in `pieces`; the cursor itself when there is none.
    pub last: Seq,
    /// How the stream stood, and whether `last` is its last entry.
    pub status: Status,
    pub at_end: bool,
    /// Whether `last` was the last entry so far.
    pub is_last: bool,
}

/// A future without a name, so that a log can be chosen at run time.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The primitives of a log. Implementations keep entries as they are given; they do not look into them.
pub trait StreamLog: Send + Sync + fmt::Debug {
    /// Creates a stream with its first entries. `held` is what it holds besides; see [`StreamLog::hold`].
    fn create(&self, id: StreamId, owner: Owner, start: Batch, held: usize) -> Pending<'_, Result<(), CreateError>>;

    /// Says how many bytes a running stream holds besides its entries and its text: a question that waits for an answer. They
    /// count like entries.
    fn hold(&self, _id: StreamId, _bytes: usize) {}

    /// Whether a running stream may bring that much more. Ended streams give way for it.
    ///
    /// # Errors
    /// There is no room now. It is best asked again in a moment, when the stream that is named has ended.
    fn room_for(&self, _id: StreamId, _more: &Size) -> Result<(), LogFull> {
        Ok(())
    }

    /// Appends entries behind entry `behind`, if that is the last one and the stream runs. All of them or none.
    fn append(&self, id: StreamId, behind: Seq, batch: Batch) -> Pending<'_, Result<(), AppendError>>;

    /// Entries behind `cursor`, about 64 KiB of them at most, but at least one if there is one. `None`: no such stream.
    fn read(&self, id: StreamId, cursor: Seq) -> Pending<'_, Option<Slice>>;

    /// How a stream stands.
    fn state(&self, id: StreamId) -> Pending<'_, Option<State>>;

    /// Notifies whoever waits for entries. A hint, no more: the log itself is the truth.
    fn watch(&self, id: StreamId) -> Pending<'_, Option<Arc<Notify>>>;
}

#[cfg(test)]
pub(crate) use memory::stepped;
