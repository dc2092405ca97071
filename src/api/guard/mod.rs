//! The layer that stands before every route: who calls, from where, how much, and whether there is room at all.
//!
//! Deny by default: a route is private unless it stands in [`policy`]. What is decided here is decided by the route that
//! the router itself would take, never by anything a header says about the address.
//!
//! | order | question | answer |
//! |---|---|---|
//! | 1 | exactly one valid `Host`, one length of the body? | 400 |
//! | 2 | is the address let in? | 403 |
//! | 3 | has it failed to authenticate too often? | 403, `Retry-After` |
//! | 4 | is there room? | 503, `Retry-After` |
//! | 5 | who is it? | 401 |
//! | 6 | has the caller requests left? | 429, `Retry-After` |

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header},
    response::{IntoResponse, Response},
};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{
    access::{AddressKey, AddressRules, Authenticator, Denied, Failures, Tickets, Verdict},
    api::error::ApiError,
    chat::Caller,
    config::{Access, RateLimits},
    ids::{Owner, StreamId},
    limits::{Quota, RateLimiter, Standing},
};

/// How often one stream may be read again by one caller within a minute, before that counts as a storm.
const RECONNECTS: Quota = Quota { what: "reconnects", per_minute: 30, burst: 30 };

/// What a caller waits when there is no room: others are answered meanwhile.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_secs(1);

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
fn policy(path: &str) -> Policy {
    match path {
        "/" | "/health" => Policy::Public,
        path if super::docs::PATHS.contains(&path) => Policy::Public,
        "/chat/stream/{stream_id}" => Policy::Stream,
        "/chat/ws" => Policy::Socket,
        _ => Policy::Private,
    }
}

/// What the guard decides by.
#[derive(Debug)]
pub(crate) struct Rules {
    authenticator: Authenticator,
    addresses: AddressRules,
    failures: Failures,
    tickets: Arc<Tickets>,
    limiter: Arc<dyn RateLimiter>,
    requests: Option<Quota>,
    tokens: Option<Quota>,
    max_in_flight: usize,
    /// Whether there is anything to decide besides room: with nothing configured the service is open, as the original.
    is_active: bool,
}

impl Rules {
    pub(crate) fn new(
        access: &Access,
        limits: &RateLimits,
        limiter: Arc<dyn RateLimiter>,
        tickets: Arc<Tickets>,
    ) -> Self {
        let authenticator = Authenticator::new(access);
        let requests = requests_quota(limits);
        let tokens = tokens_quota(limits);
        let has_addresses = !access.blocked.is_empty() || !access.allowed.is_empty();
        let is_active = has_addresses || !authenticator.is_open() || limits.needs_callers();
        Self {
            authenticator,
            addresses: AddressRules::new(access),
            failures: Failures::default(),
            tickets,
            limiter,
            requests,
            tokens,
            max_in_flight: limits.in_flight,
            is_active,
        }
    }
}

impl Rules {
    /// Whether nobody is told apart.
    pub(crate) fn is_open(&self) -> bool {
        self.authenticator.is_open()
    }
}

/// The quota of requests that is configured.
pub(crate) fn requests_quota(limits: &RateLimits) -> Option<Quota> {
    let quota = |limit| Quota { what: "requests", per_minute: u64::from(limit), burst: u64::from(limits.burst) };
    limits.requests_per_minute.map(quota)
}

/// The quota of tokens that is configured: a whole minute's may be used at once.
pub(crate) fn tokens_quota(limits: &RateLimits) -> Option<Quota> {
    let quota = |limit| Quota { what: "tokens", per_minute: u64::from(limit), burst: u64::from(limit) };
    limits.tokens_per_minute.map(quota)
}

/// Puts [`Guard`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct GuardLayer {
    rules: Arc<Rules>,
    routes: Arc<matchit::Router<Policy>>,
    in_flight: Arc<AtomicUsize>,
}

impl GuardLayer {
    /// `paths` as axum writes them.
    pub(crate) fn new(rules: Rules, paths: &[String]) -> Self {
        let mut routes = matchit::Router::new();
        for path in paths {
            // One that is refused here is private, like every path without a route.
            let _ = routes.insert(path.as_str(), policy(path));
        }
        Self { rules: Arc::new(rules), routes: Arc::new(routes), in_flight: Arc::default() }
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, guard: self.clone(), peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED) }
    }
}

/// The layer's service.
#[derive(Clone, Debug)]
pub(crate) struct Guard<S> {
    inner: S,
    guard: GuardLayer,
    /// Whose connection this is for.
    peer: IpAddr,
}

impl<S> Guard<S> {
    /// For the connection of this peer.
    pub(crate) fn set_peer(&mut self, peer: IpAddr) {
        self.peer = peer;
    }
}

/// What a request gets instead of, or on its way to, an answer.
type Admitted = Result<Option<Pass>, Box<Response>>;

/// Who was let in, and what is told of limits in the answer.
#[derive(Debug)]
struct Pass {
    who: Identity,
    requests: Option<Standing>,
}

/// Who calls; handlers find it in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    Known(Caller),
    /// Whoever has the ticket of this stream, and of nothing else.
    TicketHolder(StreamId),
}

impl Identity {
    /// Whose limits count.
    fn name(&self) -> Arc<str> {
        match self {
            Self::Known(caller) => Arc::clone(&caller.who),
            Self::TicketHolder(id) => format!("ticket:{id}").into(),
        }
    }
}

impl GuardLayer {
    /// Everything but the room, in the order of the table.
    async fn admit(&self, head: &Head, peer: IpAddr) -> Admitted {
        let rules = &*self.rules;
        let address =
            rules.addresses.caller(peer, head.headers.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes));
        if rules.addresses.judge(address) == Verdict::Blocked {
            return Err(refusal(ApiError::AddressBlocked { retry_after: None }));
        }
        if head.policy == Policy::Public {
            return Ok(None);
        }
        let key = AddressKey::of(address);
        if let Some(left) = rules.failures.blocked(key) {
            return Err(refusal(ApiError::AddressBlocked { retry_after: Some(left) }));
        }
        let who = match self.identify(head, key) {
            Ok(who) => who,
            Err(denied) => {
                // Whoever brings nothing tries nothing out.
                if denied == Denied::Invalid && rules.failures.count(key) {
                    tracing::warn!(address = key.name(), "blocked for failing to authenticate too often");
                }
                return Err(refusal(ApiError::Unauthorized));
            }
        };
        let requests = self.count(head, &who.name()).await?;
        Ok(Some(Pass { who, requests }))
    }

    /// Who calls.
    fn identify(&self, head: &Head, key: AddressKey) -> Result<Identity, Denied> {
        let rules = &*self.rules;
        if rules.authenticator.is_open() {
            return Ok(Identity::Known(Caller { owner: Owner::default(), who: key.name().into() }));
        }
        let by_token = |owner: Owner| Identity::Known(Caller { who: owner.as_str().into(), owner });
        let token = head.headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        match rules.authenticator.authenticate(token) {
            Err(Denied::Missing) => {}
            known => return known.map(by_token),
        }
        match head.policy {
            Policy::Socket => match protocol_token(&head.headers) {
                Some(token) => rules.authenticator.owner_of(token).map(by_token),
                None => Err(Denied::Missing),
            },
            Policy::Stream => match (&head.ticket, head.stream) {
                (Some(ticket), Some(id)) if rules.tickets.is_for(ticket, id) => Ok(Identity::TicketHolder(id)),
                (Some(_), _) => Err(Denied::Invalid),
                (None, _) => Err(Denied::Missing),
            },
            Policy::Public | Policy::Private => Err(Denied::Missing),
        }
    }

    /// Counts the request against the caller's limits.
    async fn count(&self, head: &Head, who: &str) -> Result<Option<Standing>, Box<Response>> {
        let Self { rules, .. } = self;
        if let (Policy::Stream, Some(id), true) = (head.policy, head.stream, head.method == Method::GET) {
            // Reading is not limited; reading the same again and again is.
            let reader = format!("{who} {id}");
            return match rules.limiter.take(&reader, RECONNECTS, 1).await {
                Ok(standing) if !standing.is_allowed => Err(refusal(ApiError::OverRequests { standing })),
                _ => Ok(None),
            };
        }
        let Some(quota) = rules.requests else { return Ok(None) };
        match rules.limiter.take(who, quota, 1).await {
            Ok(standing) if !standing.is_allowed => {
                let mut response = refusal(ApiError::OverRequests { standing });
                tell(response.headers_mut(), "requests", quota, &standing);
                Err(response)
            }
            Ok(standing) => Ok(Some(standing)),
            // A limiter that is away lets everybody through: it protects the purse, not the data.
            Err(_) => Ok(None),
        }
    }

    /// Says in the answer where the caller stands.
    async fn tell_standing(&self, pass: &Pass, response: &mut Response) {
        if let (Some(quota), Some(standing)) = (self.rules.requests, &pass.requests) {
            tell(response.headers_mut(), "requests", quota, standing);
        }
        if let Some(quota) = self.rules.tokens
            && let Ok(standing) = self.rules.limiter.take(&pass.who.name(), quota, 0).await
        {
            tell(response.headers_mut(), "tokens", quota, &standing);
        }
    }
}

fn refusal(error: ApiError) -> Box<Response> {
    Box::new(error.into_response())
}

/// OpenAI's headers: <https://platform.openai.com/docs/guides/rate-limits>
fn tell(headers: &mut HeaderMap, what: &'static str, quota: Quota, standing: &Standing) {
    let [limit, remaining, reset] = match what {
        "requests" => ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
        _ => ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
    };
    headers.insert(HeaderName::from_static(limit), HeaderValue::from(quota.per_minute));
    headers.insert(HeaderName::from_static(remaining), HeaderValue::from(standing.remaining));
    if let Ok(value) = HeaderValue::try_from(span(standing.reset)) {
        headers.insert(HeaderName::from_static(reset), value);
    }
}

/// As OpenAI writes spans of time: `6m0s`, `1s`, `20ms`.
fn span(time: Duration) -> String {
    // Never short of the truth: at the time that is told, it must be so.
    let millis = time.as_nanos().div_ceil(1_000_000);
    let (minutes, seconds, rest) = (millis / 60_000, millis / 1000 % 60, millis % 1000);
    match (minutes, seconds, rest) {
        (0, 0, rest) => format!("{rest}ms"),
        (0, seconds, 0) => format!("{seconds}s"),
        (0, seconds, rest) => format!("{seconds}.{rest:03}s"),
        (minutes, seconds, _) => format!("{minutes}m{seconds}s"),
    }
}

/// A token in the list of WebSocket protocols: `bearer.<token>`.
fn protocol_token(headers: &HeaderMap) -> Option<&str> {
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    protocols.flat_map(|list| list.split(',')).find_map(|protocol| protocol.trim().strip_prefix("bearer."))
}

/// What the guard looks at of a request.
#[derive(Debug)]
struct Head {
    method: Method,
    headers: HeaderMap,
    policy: Policy,
    /// The stream that the path names, if it names one.
    stream: Option<StreamId>,
    ticket: Option<String>,
}

impl Head {
    fn of<B>(request: &Request<B>, routes: &matchit::Router<Policy>) -> Self {
        let matched = routes.at(request.uri().path()).ok();
        let policy = matched.as_ref().map_or(Policy::Private, |matched| *matched.value);
        let stream = matched.as_ref().and_then(|matched| matched.params.get("stream_id")).and_then(StreamId::parse);
        let ticket = request.uri().query().and_then(ticket_in).map(str::to_owned);
        let mut headers = HeaderMap::new();
        for name in [header::AUTHORIZATION, header::SEC_WEBSOCKET_PROTOCOL, HeaderName::from_static("x-forwarded-for")]
        {
            for value in request.headers().get_all(&name) {
                headers.append(name.clone(), value.clone());
            }
        }
        Self { method: request.method().clone(), headers, policy, stream, ticket }
    }
}

/// The ticket of a query.
fn ticket_in(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("ticket="))
}

/// That the request has exactly one valid `Host`, the same as in an absolute address, and one length.
///
/// # Errors
/// Something in front may read the request otherwise than this service does.
fn check_framing<B>(request: &Request<B>) -> Result<(), ApiError> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(ApiError::BadHost) };
    let host = host.to_str().ok().filter(|host| is_host(host)).ok_or(ApiError::BadHost)?;
    if request.uri().authority().is_some_and(|authority| !authority.as_str().eq_ignore_ascii_case(host)) {
        return Err(ApiError::BadHost);
    }
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return Err(ApiError::BadFraming);
    }
    Ok(())
}

/// A name or an address, with or without a port. Source: RFC 9110, 7.2.
fn is_host(host: &str) -> bool {
    let port_is_good = |port: &str| port.is_empty() || port.parse::<u16>().is_ok();
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port = if port.is_empty() { Some("") } else { port.strip_prefix(':') };
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port.is_some_and(port_is_good);
    }
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=253).contains(&name.len()) && name.bytes().all(is_name) && port_is_good(port)
}

/// A request's place among those that are answered at once.
#[derive(Debug)]
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    /// `None`: there is no room.
    fn enter(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let entered = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < max).then_some(entered)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<B>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Guarding<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let GuardLayer { rules, routes, in_flight } = &self.guard;
        if let Err(error) = check_framing(&request) {
            return Guarding::refused(error);
        }
        let place = InFlight::enter(in_flight, rules.max_in_flight);
        if place.is_none() && routes.at(request.uri().path()).map_or(true, |found| *found.value != Policy::Public) {
            return Guarding::refused(ApiError::Overloaded { retry_after: OVERLOADED_RETRY_AFTER });
        }
        if !rules.is_active {
            return Guarding { step: Step::Open { inner: self.inner.call(request) }, place };
        }
        let head = Head::of(&request, routes);
        // The one that is ready goes with the request, as tower asks for.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let (guard, peer) = (self.guard.clone(), self.peer);
        let answer = async move {
            let pass = match guard.admit(&head, peer).await {
                Ok(pass) => pass,
                Err(response) => return *response,
            };
            let mut request = request;
            if let Some(pass) = &pass {
                request.extensions_mut().insert(pass.who.clone());
            }
            let Ok(mut response) = inner.call(request).await;
            if let Some(pass) = &pass {
                guard.tell_standing(pass, &mut response).await;
            }
            response
        };
        Guarding { step: Step::Guarded { answer: Box::pin(answer) }, place }
    }
}

pin_project! {
    /// A request on its way past the guard.
    pub(crate) struct Guarding<F> {
        #[pin]
        step: Step<F>,
        // Given back when the head of the answer is there: what is long is the body.
        place: Option<InFlight>,
    }
}

pin_project! {
    #[project = StepNow]
    enum Step<F> {
        /// Nothing is configured that it could be refused for.
        Open { #[pin] inner: F },
        Guarded { answer: Boxed<Response> },
        Refused { error: Option<ApiError> },
    }
}

impl<F> Guarding<F> {
    fn refused(error: ApiError) -> Self {
        Self { step: Step::Refused { error: Some(error) }, place: None }
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Guarding<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.step.project() {
            StepNow::Open { inner } => {
                let Ok(response) = ready!(inner.poll(context));
                response
            }
            StepNow::Guarded { answer } => ready!(answer.as_mut().poll(context)),
            StepNow::Refused { error } => error.take().unwrap_or(ApiError::Internal).into_response(),
        };
        *this.place = None;
        Poll::Ready(Ok(response))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for good in
            ["example.com", "localhost:8000", "127.0.0.1", "[::1]", "[2001:db8::1]:443", "a_b-c.d", "x:", "host:65535"]
        {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "",
            ":80",
            "a,b",
            "evil/?",
            "user@host",
            "host:99999",
            "host:-1",
            "host:8a",
            "[::1",
            "::1",
            "a b",
            "ho%73t",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn spans_are_written_as_openai_writes_them_and_never_too_short() {
        for (nanos, text) in [
            (0, "0ms"),
            (1, "1ms"),
            (20_000_000, "20ms"),
            (1_000_000_000, "1s"),
            (1_000_000_001, "1.001s"),
            (360_000_000_000, "6m0s"),
        ] {
            assert_eq!(span(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn a_token_may_come_as_a_websocket_protocol() {
        let mut headers = HeaderMap::new();
        assert_eq!(protocol_token(&headers), None);
        headers.append(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat, bearer.abc"));
        assert_eq!(protocol_token(&headers), Some("abc"));
    }

    #[test]
    fn only_what_says_nothing_of_anybody_is_public() {
        for path in ["/", "/health", "/docs", "/openapi.json", "/redoc"] {
            assert_eq!(policy(path), Policy::Public, "{path}");
        }
        for path in ["/chat", "/models", "/conversations", "/usage", "/whatever/comes/next"] {
            assert_eq!(policy(path), Policy::Private, "{path}");
        }
    }
}
