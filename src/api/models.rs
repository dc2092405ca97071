//! `GET /models`: the chat models that can be asked.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{docs::PlainErrors, extract::Json},
    chat::{ListedModel, ModelCatalog},
    state::AppState,
};

pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(models))
}

/// List the models that can be asked
///
/// The chat models that the upstream offers, asked for at most once in 15 seconds. While it cannot be asked: the
/// last list known, or a fixed one.
#[utoipa::path(
    get, path = "/models", tag = "chat", operation_id = "models",
    responses((status = 200, description = "The models", body = ModelsBody), PlainErrors),
)]
async fn models(State(catalog): State<ModelCatalog>) -> Json<ModelsBody> {
    let models = catalog.models().await.iter().cloned().map(ModelBody::from).collect();
    Json(ModelsBody { models })
}

/// The models that can be asked.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelList, example = json!({"models": [
    {"id": "gpt-3.5-turbo", "name": "GPT-3.5 Turbo", "description": "빠르고 효율적인 모델"},
]}))]
struct ModelsBody {
    models: Vec<ModelBody>,
}

/// A model that can be asked.
#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
struct ModelBody {
    /// What `model` of a request takes.
    id: String,
    /// For people.
    name: String,
    /// For people, in Korean.
    description: String,
}

impl From<ListedModel> for ModelBody {
    fn from(model: ListedModel) -> Self {
        Self { id: model.id, name: model.name, description: model.description }
    }
}
