//! What every handler can ask for: handles, cheap to clone.

use std::{ops::Deref, sync::Arc};

use axum::extract::FromRef;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Tickets,
    chat::{ChatStreams, ModelCatalog, OpenAiService, UsageRecorder, idempotency::Idempotency},
    config::Limits,
    limits::{Limited, Room},
};

/// The handles, behind one pointer: it is cloned for every request.
#[derive(Clone, Debug)]
pub(crate) struct AppState(Arc<Handles>);

#[derive(Debug)]
pub(crate) struct Handles {
    pub(crate) service: OpenAiService,
    pub(crate) catalog: ModelCatalog,
    pub(crate) streams: ChatStreams,
    pub(crate) idempotency: Idempotency,
    pub(crate) closing: Closing,
    pub(crate) sockets: Sockets,
    /// What is begun here is waited for at the end.
    pub(crate) tasks: TaskTracker,
    pub(crate) limits: Limits,
    /// For bodies that are being read.
    pub(crate) bodies: Room,
    pub(crate) usage: UsageRecorder,
    /// For what counts as a request and does not come as one: a chat over a WebSocket.
    pub(crate) requests: Limited,
    /// The same for a stream that is read again.
    pub(crate) reconnects: Limited,
    /// There where a stream's address needs one.
    pub(crate) tickets: Option<Arc<Tickets>>,
    /// What a proxy in front has before every path of this service.
    pub(crate) root_path: String,
}

impl From<Handles> for AppState {
    fn from(handles: Handles) -> Self {
        Self(Arc::new(handles))
    }
}

impl Deref for AppState {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.0
    }
}

/// Cancelled when readers of streams must go.
#[derive(Clone, Debug)]
pub(crate) struct Closing(pub(crate) CancellationToken);

/// The WebSockets of one app. Each runs in a task that axum begins, so the app's end waits for them here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) open: TaskTracker,
    /// Cancelled when sockets may begin nothing more, and end with their last stream.
    pub(crate) draining: CancellationToken,
}

/// A connection's place among those that may be open at once. A WebSocket takes it over.
#[derive(Clone, Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "it is there to be held")] pub(crate) Arc<OwnedSemaphorePermit>);

impl FromRef<AppState> for ChatStreams {
    fn from_ref(state: &AppState) -> Self {
        state.streams.clone()
    }
}

impl FromRef<AppState> for ModelCatalog {
    fn from_ref(state: &AppState) -> Self {
        state.catalog.clone()
    }
}

impl FromRef<AppState> for Room {
    fn from_ref(state: &AppState) -> Self {
        state.bodies.clone()
    }
}

impl FromRef<AppState> for Limits {
    fn from_ref(state: &AppState) -> Self {
        state.limits
    }
}
