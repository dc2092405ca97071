//! Which pages may call: any without credentials, or the listed ones with them.
//!
//! tower-http decides; this only asks it when there is something to decide. A request without an `Origin` comes from no
//! page of another origin, and answers to it carry none of the headers, as the original's do. (They were 3 % of the
//! instructions of a request from another server.) With a list of origins they carry `Vary`, so that no cache takes an
//! answer for one page for an answer for another. And `OPTIONS` that is no browser's question is a request like any other.

use std::task::{Context, Poll};

use axum::http::{HeaderName, HeaderValue, Method, Request, header};
use futures_util::future::Either;
use tower::{Layer, Service};
use tower_http::cors::{AllowHeaders, AllowOrigin, Cors, CorsLayer};

use crate::{
    api::{guard::standing_names, observe::REQUEST_ID},
    config::AllowedOrigins,
};

/// Puts [`CrossOrigin`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct CrossOriginLayer {
    cors: CorsLayer,
    /// Whether the answer depends on the origin.
    varies: bool,
}

impl CrossOriginLayer {
    pub(crate) fn new(origins: &AllowedOrigins) -> Self {
        let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
        let exposed = [REQUEST_ID, header::RETRY_AFTER, HeaderName::from_static("idempotent-replayed")];
        let layer = CorsLayer::new()
            .allow_methods(methods)
            // Whatever a page's libraries add, such as traces: the origin is the lock, not the names of headers.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(exposed.into_iter().chain(standing_names()).collect::<Vec<_>>())
            .max_age(std::time::Duration::from_secs(600));
        let cors = match origins {
            AllowedOrigins::Any => layer.allow_origin(AllowOrigin::any()),
            AllowedOrigins::List(list) => {
                let list = list.iter().filter_map(|origin| HeaderValue::try_from(origin).ok());
                layer.allow_origin(AllowOrigin::list(list)).allow_credentials(true)
            }
        };
        Self { cors, varies: matches!(origins, AllowedOrigins::List(_)) }
    }
}

impl<S> Layer<S> for CrossOriginLayer {
    type Service = CrossOrigin<S>;

    fn layer(&self, inner: S) -> CrossOrigin<S> {
        CrossOrigin { inner, layer: self.clone() }
    }
}

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct CrossOrigin<S> {
    inner: S,
    layer: CrossOriginLayer,
}

impl<S> CrossOrigin<S> {
    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S, B> Service<Request<B>> for CrossOrigin<S>
where
    S: Service<Request<B>> + Clone,
    Cors<S>: Service<Request<B>, Response = S::Response, Error = S::Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<<Cors<S> as Service<Request<B>>>::Future, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let headers = request.headers();
        let has_origin = headers.contains_key(header::ORIGIN);
        // tower-http would take every OPTIONS for a browser's question, and answer it before anybody looks who asks.
        let is_decided = if request.method() == Method::OPTIONS {
            has_origin && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        } else {
            has_origin || self.layer.varies
        };
        if is_decided {
            // The one that is ready stays behind in a clone, as tower asks for.
            let ready = self.inner.clone();
            let ready = std::mem::replace(&mut self.inner, ready);
            Either::Left(self.layer.cors.layer(ready).call(request))
        } else {
            Either::Right(self.inner.call(request))
        }
    }
}
