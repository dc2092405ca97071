//! What every handler can ask for: handles, cheap to clone.

use axum::extract::FromRef;
use tokio_util::sync::CancellationToken;

use crate::{
    chat::{ChatStreams, ModelCatalog, OpenAiService},
    config::Limits,
};

#[derive(Clone, Debug)]
pub(crate) struct AppState {
    pub(crate) service: OpenAiService,
    pub(crate) catalog: ModelCatalog,
    pub(crate) streams: ChatStreams,
    pub(crate) closing: Closing,
    pub(crate) limits: Limits,
}

/// Cancelled when readers of streams must go.
#[derive(Clone, Debug)]
pub(crate) struct Closing(pub(crate) CancellationToken);

impl FromRef<AppState> for ChatStreams {
    fn from_ref(state: &AppState) -> Self {
        state.streams.clone()
    }
}

impl FromRef<AppState> for OpenAiService {
    fn from_ref(state: &AppState) -> Self {
        state.service.clone()
    }
}

impl FromRef<AppState> for ModelCatalog {
    fn from_ref(state: &AppState) -> Self {
        state.catalog.clone()
    }
}

impl FromRef<AppState> for Limits {
    fn from_ref(state: &AppState) -> Self {
        state.limits
    }
}
