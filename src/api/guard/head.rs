//! What the guard looks at of a request, and what it asks of the route.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};

use super::standing::{POLLS, RECONNECTS};
use crate::{
    api::{health, stream::wants_state},
    ids::StreamId,
    limits::Quota,
};

/// What a route asks of its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Nothing. Never refused for want of room: whoever watches the service must not be misled by its load.
    Public,
    /// To be known.
    Private,
    /// To be known, or to have the ticket of the stream that the path names.
    Stream,
    /// To be known; browsers may say who they are in `Sec-WebSocket-Protocol`, because they cannot in a header.
    Socket,
}

/// The policy of the route with this path, as axum writes it.
pub(crate) fn policy(path: &str) -> Policy {
    match path {
        "/" | "/health" | health::ALIAS => Policy::Public,
        path if crate::api::docs::PATHS.contains(&path) => Policy::Public,
        "/chat/stream/{stream_id}" => Policy::Stream,
        "/chat/ws" => Policy::Socket,
        _ => Policy::Private,
    }
}

/// Whether the request is answered at once and by few bytes, and says whether the service is there.
pub(crate) fn is_short<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    let is_reading = matches!(*request.method(), Method::GET | Method::HEAD);
    is_reading && (matches!(path, "/" | "/health") || path.starts_with("/health/"))
}

/// What is looked at.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) policy: Policy,
    /// The stream that the path names, if it names one.
    pub(super) stream: Option<StreamId>,
    method: &'a Method,
    query: Option<&'a str>,
    headers: &'a HeaderMap,
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl<'a> Head<'a> {
    pub(super) fn of<B>(request: &'a Request<B>, routes: &matchit::Router<Policy>) -> Self {
        let matched = routes.at(request.uri().path()).ok();
        let policy = matched.as_ref().map_or(Policy::Private, |matched| *matched.value);
        let stream = matched.as_ref().and_then(|matched| matched.params.get("stream_id")).and_then(StreamId::parse);
        Self { policy, stream, method: request.method(), query: request.uri().query(), headers: request.headers() }
    }

    /// The stream that is to be read, and what limits that.
    pub(super) fn read(&self) -> Option<(StreamId, Quota)> {
        let id = self.stream.filter(|_| self.policy == Policy::Stream && self.method == Method::GET)?;
        Some((id, if wants_state(self.headers) { POLLS } else { RECONNECTS }))
    }

    pub(super) fn ticket(&self) -> Option<&'a str> {
        self.query.and_then(ticket_in)
    }

    /// The values of `X-Forwarded-For`.
    pub(super) fn forwarded(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes)
    }

    /// The values of `Authorization`.
    pub(super) fn authorization(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes)
    }

    /// A token in the list of WebSocket protocols: `bearer.<token>`.
    pub(super) fn protocol_token(&self) -> Option<&str> {
        let lists = self.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        let protocols = lists.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
        protocols.map(str::trim).find_map(|protocol| protocol.strip_prefix("bearer."))
    }
}

/// The ticket of a query.
fn ticket_in(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("ticket="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_come_as_a_websocket_protocol() {
        let token = |value: &str| {
            let request = Request::get("/chat/ws").header("sec-websocket-protocol", value).body(()).unwrap();
            Head::of(&request, &matchit::Router::new()).protocol_token().map(str::to_owned)
        };
        assert_eq!(token("chat, bearer.abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer.a.b.c,chat").as_deref(), Some("a.b.c"));
        assert_eq!(token("chat"), None);
    }

    #[test]
    fn only_what_says_nothing_of_anybody_is_public() {
        for path in ["/", "/health", "/health/", "/docs", "/openapi.json", "/redoc"] {
            assert_eq!(policy(path), Policy::Public, "{path}");
        }
        for path in ["/chat", "/models", "/conversations", "/usage", "/whatever/comes/next"] {
            assert_eq!(policy(path), Policy::Private, "{path}");
        }
    }

    #[test]
    fn a_path_without_a_route_is_private() {
        let mut routes = matchit::Router::new();
        routes.insert("/", Policy::Public).unwrap();
        for path in ["/nope", "//", "/%2f", "/?x", "/health/"] {
            let request = Request::get(path).body(()).unwrap();
            let expected = if path == "/?x" { Policy::Public } else { Policy::Private };
            assert_eq!(Head::of(&request, &routes).policy, expected, "{path}");
        }
    }
}
