//! `GET /` and `GET /health`: is the service there, and can it reach its upstream.

use axum::{extract::State, routing::get};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{docs::PlainErrors, extract::Json},
    chat::ModelCatalog,
    state::AppState,
    timestamp::Timestamp,
};

/// The service's name, as the original calls itself.
pub(crate) const SERVICE: &str = "ChatGPT Clone AI Service";

/// The version of the contract, which is the original's.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(root)).routes(routes!(health)).route(ALIAS, get(health))
}

/// What monitors ask for as well. Not in the document: it is the same as `/health`.
pub(crate) const ALIAS: &str = "/health/";

/// Say that the service runs
///
/// Asks nobody, and needs no key.
#[utoipa::path(
    get, path = "/", tag = "service", operation_id = "root",
    responses((status = 200, description = "The service runs", body = RootBody), PlainErrors),
)]
async fn root() -> Json<RootBody> {
    Json(RootBody { service: SERVICE, status: "running", version: VERSION, timestamp: Timestamp::now() })
}

/// Say whether the upstream can be reached
///
/// Always 200: the service itself is there. The upstream is asked for its models, which is free, at most once in
/// 15 seconds.
#[utoipa::path(
    get, path = "/health", tag = "service", operation_id = "health",
    responses((status = 200, description = "The service is there", body = HealthBody), PlainErrors),
)]
async fn health(State(catalog): State<ModelCatalog>) -> Json<HealthBody> {
    let error = catalog.check().await.err().map(|error| {
        let said = error.to_string();
        let prefix = "Failed to connect to OpenAI API: ";
        if said.starts_with(prefix) { said } else { format!("{prefix}{said}") }
    });
    let (status, openai_api) = if error.is_none() { ("healthy", "connected") } else { ("unhealthy", "disconnected") };
    Json(HealthBody { status, openai_api, error, timestamp: Timestamp::now() })
}

/// The service itself.
#[derive(Serialize, ToSchema)]
#[schema(as = ServiceInfo, example = json!({
    "service": "ChatGPT Clone AI Service", "status": "running", "version": "1.0.0",
    "timestamp": "2026-11-22T23:17:31.899397",
}))]
struct RootBody {
    service: &'static str,
    /// `running`
    status: &'static str,
    version: &'static str,
    /// ISO 8601 in the server's local time, without offset.
    #[schema(value_type = String)]
    timestamp: Timestamp,
}

/// The service and its upstream.
#[derive(Serialize, ToSchema)]
#[schema(as = Health, example = json!({
    "status": "healthy", "openai_api": "connected", "timestamp": "2026-11-22T23:17:31.899397",
}))]
struct HealthBody {
    /// `healthy` or `unhealthy`
    status: &'static str,
    /// `connected` or `disconnected`
    openai_api: &'static str,
    /// Why the upstream cannot be reached; absent when it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error: Option<String>,
    /// ISO 8601 in the server's local time, without offset.
    #[schema(value_type = String)]
    timestamp: Timestamp,
}
