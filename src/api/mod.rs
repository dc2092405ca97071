//! HTTP in and out. Only this folder names an axum extractor or chooses a status.

mod chat;
mod conversations;
mod cors;
mod docs;
mod error;
mod extract;
mod framing;
pub(crate) mod fuzzing;
mod guard;
mod health;
mod json_error;
mod models;
mod observe;
mod saved;
mod socket;
mod stream;
mod usage;
mod validation;

use std::{any::Any, net::IpAddr};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
};
use tower::Layer;
use tower_http::catch_panic::{CatchPanic, CatchPanicLayer, ResponseForPanic};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    config::{AllowedOrigins, Docs},
    state::AppState,
};
use cors::{CrossOrigin, CrossOriginLayer};
use error::ApiError;
pub(crate) use error::describe;
pub(crate) use framing::{MAX_HEAD_BYTES, MAX_HEADERS, answer_to_unreadable};
pub(crate) use guard::{Crowded, Rules, is_short, requests_quota, tokens_quota};
use guard::{Guard, GuardLayer};
use observe::{Observe, ObserveLayer};

/// Every route, and every layer around them: what answers a request. Cheap to clone.
pub(crate) type Api = Observe<CrossOrigin<CatchPanic<Guard<Router>, Panicked>>>;

/// What decides who gets an answer.
#[derive(Debug)]
pub(crate) struct Doors<'a> {
    pub(crate) origins: &'a AllowedOrigins,
    pub(crate) rules: Rules,
    pub(crate) docs: Docs,
    /// The path below which a proxy in front serves this service.
    pub(crate) root_path: &'a str,
}

pub(crate) fn api(state: AppState, doors: Doors<'_>) -> Api {
    let Doors { origins, rules, docs, root_path } = doors;
    let (routes, mut document) = OpenApiRouter::with_openapi(docs::Document::openapi())
        .merge(health::router())
        .merge(chat::router())
        .merge(stream::router())
        .merge(socket::router(origins))
        .merge(conversations::router())
        .merge(models::router())
        .merge(usage::router())
        .split_for_parts();
    let mut paths: Vec<_> = document.paths.paths.keys().cloned().collect();
    paths.push(health::ALIAS.to_owned());
    docs::say_who_may_call(&mut document, rules.is_open());
    docs::say_where(&mut document, root_path);
    docs::tell_names_apart(&mut document);
    let routes = if docs == Docs::On {
        paths.extend(docs::PATHS.map(str::to_owned));
        routes.merge(docs::router(&document))
    } else {
        routes
    };
    layered(routes.with_state(state), &paths, (origins, rules))
}

/// The same, for the connection of this peer.
pub(crate) fn for_peer(mut api: Api, peer: IpAddr) -> Api {
    api.get_mut().get_mut().get_mut().set_peer(peer);
    api
}

/// What stands around the routes, and what answers where there is none.
///
/// The layers are around the router and not in it, where each would be boxed anew for every route and cloned with it for
/// every request. `paths` are the router's own, so that a request's can be named.
fn layered(routes: Router, paths: &[String], (origins, rules): (&AllowedOrigins, Rules)) -> Api {
    let routes =
        routes.fallback(async || ApiError::NotFound).method_not_allowed_fallback(async || ApiError::MethodNotAllowed);
    let catch_panic = CatchPanicLayer::custom(Panicked);
    // The first one sees a request first.
    let guard = GuardLayer::new(rules, paths);
    (ObserveLayer::new(paths), CrossOriginLayer::new(origins), catch_panic, guard).layer(routes)
}

/// Answers for a handler that panicked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panicked;

impl ResponseForPanic for Panicked {
    type ResponseBody = Body;

    fn response_for_panic(&mut self, _: Box<dyn Any + Send>) -> Response {
        // Rust has printed the place; what the panic says may hold anything.
        tracing::error!("a handler panicked");
        ApiError::Internal.into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{http::Request, routing::get};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_panic_is_a_500_in_the_form_of_every_error() {
        async fn broken() -> &'static str {
            panic!("canary")
        }
        let routes = Router::new().route("/broken", get(broken));
        let limiter = std::sync::Arc::new(crate::limits::MemoryLimiter::default());
        let tickets = std::sync::Arc::new(crate::access::Tickets::random());
        let config = crate::config::Config::from_variables(&[("OPENAI_API_KEY".into(), "x".into())].into(), false);
        let config = config.unwrap();
        let rules = Rules::new(&config.access, &config.rate_limits, limiter, tickets);
        let app = layered(routes, &["/broken".into()], (&AllowedOrigins::Any, rules));
        let request = Request::get("/broken")
            .header("host", "localhost")
            .header("x-request-id", "panic-1")
            .body(Body::empty())
            .unwrap();
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let expected = r#"{"detail":"Internal Server Error","code":"internal","request_id":"panic-1"}"#;
        assert_eq!(body, expected);
    }
}
