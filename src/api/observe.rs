//! The outermost layer: gives each request its id, refuses what could be read in two ways, writes the bodies of errors, and
//! logs one line.
//!
//! The line says method, matched route, status, time, request id, and what a handler attached as [`Spent`]. It
//! never says a body, a path as it was sent, a query string or a header: those are the caller's.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use axum::{
    BoxError,
    body::{Body, HttpBody},
    http::{HeaderName, HeaderValue, Method, Request, header},
    response::{IntoResponse, IntoResponseParts, Response, ResponseParts},
};
use bytes::Bytes;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{
    api::{error::ApiError, framing},
    ids::{RequestId, RequestIds},
    message::Usage,
};

/// The header that carries a [`RequestId`].
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a request cost; a handler attaches it to its response for the log.
#[derive(Clone, Debug)]
pub(crate) struct Spent {
    pub(crate) model: String,
    pub(crate) usage: Option<Usage>,
}

impl IntoResponseParts for Spent {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}

/// The names of routes, by the paths that match them: `/chat/stream/{stream_id}`, never a path as it was sent. The same
/// matcher as axum's, asked a second time, because axum tells a matched path only to what is inside its router.
type Routes = matchit::Router<Arc<str>>;

/// Puts [`Observe`] around a service.
#[derive(Clone)]
pub(crate) struct ObserveLayer {
    ids: Arc<RequestIds>,
    routes: Arc<Routes>,
}

impl ObserveLayer {
    /// `paths` as axum writes them.
    pub(crate) fn new(paths: &[String]) -> Self {
        let mut routes = Routes::new();
        for path in paths {
            // axum has accepted these paths already; one that is refused here would be logged without a name.
            let _ = routes.insert(path.as_str(), Arc::from(path.as_str()));
        }
        Self { ids: Arc::default(), routes: Arc::new(routes) }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, ids: Arc::clone(&self.ids), routes: Arc::clone(&self.routes) }
    }
}

/// The layer's service. Written out, because `axum::middleware::from_fn` takes three allocations a request more.
#[derive(Clone)]
pub(crate) struct Observe<S> {
    inner: S,
    ids: Arc<RequestIds>,
    routes: Arc<Routes>,
}

impl<S> Observe<S> {
    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The answer to what is no request.
    pub(crate) fn refuse(&self, error: ApiError) -> Response {
        let request_id = self.ids.next();
        let mut line = Line { method: None, route: None, started: Instant::now(), request_id, answered: false };
        line.finish(error.into_response())
    }
}

impl<S> std::fmt::Debug for Observe<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observe").field("ids", &self.ids).finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for Observe<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible>,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Observing<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let given = request.headers().get(REQUEST_ID).map(HeaderValue::as_bytes);
        let line = Line {
            method: Some(request.method().clone()),
            route: self.routes.at(request.uri().path()).ok().map(|matched| Arc::clone(matched.value)),
            started: Instant::now(),
            request_id: given.and_then(RequestId::accept).unwrap_or_else(|| self.ids.next()),
            answered: false,
        };
        let step = match framing::check(&request) {
            Ok(()) => Step::Passed { inner: self.inner.call(request) },
            Err(error) => Step::Refused { error: Some(error) },
        };
        Observing { step, line }
    }
}

pin_project! {
    /// A request on its way.
    pub(crate) struct Observing<F> {
        #[pin]
        step: Step<F>,
        line: Line,
    }
}

pin_project! {
    #[project = StepNow]
    enum Step<F> {
        Passed { #[pin] inner: F },
        Refused { error: Option<ApiError> },
    }
}

impl<F, B> Future for Observing<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.step.project() {
            StepNow::Passed { inner } => {
                let Ok(response) = ready!(inner.poll(context));
                response.map(Body::new)
            }
            StepNow::Refused { error } => error.take().unwrap_or(ApiError::Internal).into_response(),
        };
        Poll::Ready(Ok(this.line.finish(response)))
    }
}

/// The log line of one request. Dropped unanswered, the caller has left: that is 499, as nginx calls it.
struct Line {
    /// None could be read.
    method: Option<Method>,
    route: Option<Arc<str>>,
    started: Instant,
    request_id: RequestId,
    answered: bool,
}

impl Line {
    /// The response with its id, and with a body if it is an error's.
    fn finish(&mut self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(self.request_id.as_str()) {
            headers.insert(REQUEST_ID, id);
        }
        // Answers are what they say they are, tell other sites nothing of where they were read, and stand in no frame.
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        let error = response.extensions_mut().remove::<ApiError>();
        if let Some(error) = &error {
            error.write(&self.request_id, &mut response);
        }
        self.answered = true;
        self.write(response.status().as_u16(), error.as_ref(), response.extensions().get::<Spent>());
        response
    }

    fn write(&self, status: u16, error: Option<&ApiError>, spent: Option<&Spent>) {
        let micros = u32::try_from(self.started.elapsed().as_micros()).unwrap_or(u32::MAX);
        let reason = error.and_then(ApiError::reason);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    method = self.method.as_ref().map_or("(none)", Method::as_str),
                    route = self.route.as_deref().unwrap_or("(none)"),
                    status,
                    ms = f64::from(micros) / 1000.0,
                    request_id = self.request_id.as_str(),
                    code = error.map(ApiError::code),
                    reason,
                    model = error.map_or(spent.map(|spent| spent.model.as_str()), ApiError::model),
                    tokens = spent.and_then(|spent| spent.usage).map(|usage| usage.total_tokens),
                    "request"
                )
            };
        }
        match error {
            // There may be very many, and the server says how many there were.
            Some(ApiError::TooManyConnections { .. }) => log!(debug),
            _ if status >= 500 => log!(warn),
            _ => log!(info),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.answered {
            self.write(499, None, None);
        }
    }
}
