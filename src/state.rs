//! What every handler can ask for: handles, cheap to clone.

use axum::extract::FromRef;

use crate::{
    chat::{ModelCatalog, OpenAiService},
    config::Limits,
};

#[derive(Clone, Debug)]
pub(crate) struct AppState {
    pub(crate) service: OpenAiService,
    pub(crate) catalog: ModelCatalog,
    pub(crate) limits: Limits,
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
