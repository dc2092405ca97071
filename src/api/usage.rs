//! `GET /usage`: what the caller has used up.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        docs::ReadErrors,
        error::ApiError,
        extract::{Caller, Json},
    },
    chat,
    conversations::Used,
    state::AppState,
};

pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(usage))
}

/// Say what the caller has used
///
/// Requests and tokens of today and of this month, by the server's clock. Every chat counts once, however it ended; where
/// the upstream did not say what it cost, the tokens are estimated. A service that is killed loses what it has counted
/// within its last second.
#[utoipa::path(
    get, path = "/usage", tag = "service", operation_id = "usage",
    responses((status = 200, description = "What was used", body = UsageReportBody), ReadErrors),
)]
async fn usage(
    State(state): State<AppState>,
    Caller(chat::Caller { owner, .. }): Caller,
) -> Result<Json<UsageReportBody>, ApiError> {
    let report = state.usage.report(&owner).await?;
    Ok(Json(UsageReportBody { today: report.today.into(), month: report.month.into() }))
}

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UsageReport, example = json!({
    "today": {
        "requests": 2, "prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50, "estimated_tokens": 0,
    },
    "month": {
        "requests": 31, "prompt_tokens": 310, "completion_tokens": 465, "total_tokens": 775, "estimated_tokens": 25,
    },
}))]
struct UsageReportBody {
    today: UsedBody,
    /// Since the first of the month, today included.
    month: UsedBody,
}

/// Requests and tokens.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Used)]
struct UsedBody {
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    /// Of all tokens, those that were estimated.
    estimated_tokens: u64,
}

impl From<Used> for UsedBody {
    fn from(used: Used) -> Self {
        let Used { requests, prompt_tokens, completion_tokens, estimated_tokens } = used;
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        Self { requests, prompt_tokens, completion_tokens, total_tokens, estimated_tokens }
    }
}
