//! Which pages may call: any without credentials, or the listed ones with them.
//!
//! tower-http decides; this only asks it when there is something to decide. A request without an `Origin` comes from no
//! page of another origin, and answers to it carry none of the headers, as the original's do. (They were 3 % of the
//! instructions of a request from another server.)

use std::task::{Context, Poll};

use axum::http::{HeaderName, HeaderValue, Method, Request, header};
use futures_util::future::Either;
use tower::{Layer, Service};
use tower_http::cors::{AllowOrigin, Cors, CorsLayer};

use crate::{api::observe::REQUEST_ID, config::AllowedOrigins};

/// Puts [`CrossOrigin`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct CrossOriginLayer(CorsLayer);

impl CrossOriginLayer {
    pub(crate) fn new(origins: &AllowedOrigins) -> Self {
        let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
        let headers = [
            header::ACCEPT,
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            REQUEST_ID,
        ];
        let exposed = [
            REQUEST_ID,
            header::RETRY_AFTER,
            HeaderName::from_static("idempotent-replayed"),
            HeaderName::from_static("x-ratelimit-limit-requests"),
            HeaderName::from_static("x-ratelimit-remaining-requests"),
            HeaderName::from_static("x-ratelimit-reset-requests"),
            HeaderName::from_static("x-ratelimit-limit-tokens"),
            HeaderName::from_static("x-ratelimit-remaining-tokens"),
            HeaderName::from_static("x-ratelimit-reset-tokens"),
        ];
        let layer = CorsLayer::new()
            .allow_methods(methods)
            .allow_headers(headers)
            .expose_headers(exposed)
            .max_age(std::time::Duration::from_secs(600));
        Self(match origins {
            AllowedOrigins::Any => layer.allow_origin(AllowOrigin::any()),
            AllowedOrigins::List(list) => {
                let list = list.iter().filter_map(|origin| HeaderValue::try_from(origin).ok());
                layer.allow_origin(AllowOrigin::list(list)).allow_credentials(true)
            }
        })
    }
}

impl<S> Layer<S> for CrossOriginLayer {
    type Service = CrossOrigin<S>;

    fn layer(&self, inner: S) -> CrossOrigin<S> {
        CrossOrigin { inner, cors: self.0.clone() }
    }
}

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct CrossOrigin<S> {
    inner: S,
    cors: CorsLayer,
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
        if request.headers().contains_key(header::ORIGIN) || request.method() == Method::OPTIONS {
            // The one that is ready stays behind in a clone, as tower asks for.
            let ready = self.inner.clone();
            let ready = std::mem::replace(&mut self.inner, ready);
            Either::Left(self.cors.layer(ready).call(request))
        } else {
            Either::Right(self.inner.call(request))
        }
    }
}
