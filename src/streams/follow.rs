//! Reading a stream from a cursor to its end: replay, then live, from one source of order.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use crate::{
    ids::StreamId,
    streams::{Seq, Status, StreamLog},
};

/// How long a reader trusts that no wake-up was lost.
const POLL: Duration = Duration::from_secs(5);

/// A reader: a cursor into a stream, nothing more.
#[derive(Debug)]
pub struct Follow {
    log: Arc<dyn StreamLog>,
    id: StreamId,
    cursor: Seq,
    wake: Arc<Notify>,
    /// Armed before the last read: until it fires, there is nothing that was not read.
    notified: Pin<Box<OwnedNotified>>,
    /// Whether the last read has shown that there is nothing more.
    is_drained: bool,
    /// One timer for the reader's whole life: setting one up for every wait would cost more than the wait.
    poll: Interval,
    ended: bool,
}

/// What a reader gets next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Whole entries, in order.
    Entries(Vec<Bytes>),
    /// There is nothing behind the cursor, and there never will be.
    End(Status),
    /// The stream is gone: it expired, or gave way to others.
    Gone,
}

impl Follow {
    /// A reader that begins behind `cursor`. `None`: no such stream.
    pub async fn from(log: Arc<dyn StreamLog>, id: StreamId, cursor: Seq) -> Option<Self> {
        let wake = log.watch(id).await?;
        let mut poll = interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let notified = Box::pin(Arc::clone(&wake).notified_owned());
        Some(Self { log, id, cursor, wake, notified, is_drained: false, poll, ended: false })
    }

    /// The last entry that was handed out.
    #[must_use]
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// The next entries, as soon as there are any. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Followed {
        loop {
            if self.is_drained && !self.ended {
                // A lost hint costs one period.
                tokio::select! {
                    biased;
                    () = self.notified.as_mut() => {}
                    _ = self.poll.tick() => {}
                }
            }
            // Before the read: what comes in between has notified it by the time it is waited for.
            self.notified.set(Arc::clone(&self.wake).notified_owned());
            self.is_drained = false;
            let Some(slice) = self.log.read(self.id, self.cursor).await else {
                return Followed::Gone;
            };
            self.is_drained = slice.is_last;
            if !slice.pieces.is_empty() {
                self.cursor = slice.last;
                self.ended = slice.at_end;
                return Followed::Entries(slice.pieces);
            }
            if slice.at_end {
                self.ended = true;
                return Followed::End(slice.status);
            }
        }
    }

    /// Whether the last entries handed out were the last there are.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }
}
