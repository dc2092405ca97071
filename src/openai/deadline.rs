//! When something must be over.

use std::{future::Future, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use crate::openai::error::{Stage, UpstreamError};

/// When something must be over, and what to say if it is not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
    stage: Stage,
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration, stage: Stage) -> Self {
        Self { at: Instant::now() + limit, stage, limit }
    }

    /// The one that comes first.
    pub(super) fn min(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }

    pub(super) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// What `work` comes to, if it does in time.
    ///
    /// # Errors
    /// Its own, and that it was too slow.
    pub(super) fn bounds<T>(
        self,
        work: impl Future<Output = Result<T, UpstreamError>>,
    ) -> impl Future<Output = Result<T, UpstreamError>> {
        let late = UpstreamError::Timeout { stage: self.stage, limit: self.limit };
        // Not an `async fn`, which would have room for the work twice: as its argument and as what it waits for.
        timeout_at(self.at, work).map(|outcome| outcome.unwrap_or(Err(late)))
    }
}
