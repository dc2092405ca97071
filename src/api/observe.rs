//! The outermost layer: gives each request its id, writes the bodies of errors, and logs one line.
//!
//! The line says method, matched route, status, time, request id, and what a handler attached as [`Spent`]. It
//! never says a body, a path as it was sent, a query string or a header: those are the caller's.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method},
    middleware::Next,
    response::{IntoResponseParts, Response, ResponseParts},
};

use crate::{api::error::ApiError, ids::RequestId, message::Usage};

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

/// The layer.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).map(HeaderValue::as_bytes);
    let request_id = given.and_then(RequestId::accept).unwrap_or_else(RequestId::random);
    let mut line = Line {
        method: request.method().clone(),
        route: request.extensions().get::<MatchedPath>().cloned(),
        started: Instant::now(),
        request_id,
        answered: false,
    };
    let mut response = next.run(request).await;

    if let Ok(id) = HeaderValue::from_str(line.request_id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let error = response.extensions_mut().remove::<ApiError>();
    if let Some(error) = &error {
        error.write(&line.request_id, &mut response);
    }
    line.answered = true;
    line.write(response.status().as_u16(), error.as_ref(), response.extensions().get::<Spent>());
    response
}

/// The log line of one request. Dropped unanswered, the caller has left: that is 499, as nginx calls it.
struct Line {
    method: Method,
    route: Option<MatchedPath>,
    started: Instant,
    request_id: RequestId,
    answered: bool,
}

impl Line {
    fn write(&self, status: u16, error: Option<&ApiError>, spent: Option<&Spent>) {
        let micros = u32::try_from(self.started.elapsed().as_micros()).unwrap_or(u32::MAX);
        let reason = error.and_then(ApiError::reason);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    method = self.method.as_str(),
                    route = self.route.as_ref().map_or("(none)", MatchedPath::as_str),
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
        if status >= 500 { log!(warn) } else { log!(info) }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.answered {
            self.write(499, None, None);
        }
    }
}
