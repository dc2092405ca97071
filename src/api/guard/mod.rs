//! The layer that stands before every route: who calls, from where, how much, and whether there is room at all.
//!
//! Deny by default: a route is private unless it stands in [`policy`]. What is decided here is decided by the route that
//! the router itself would take, never by anything a header says about the address.
//!
//! | order | question | answer |
//! |---|---|---|
//! | 1 | is there room? | 503, `Retry-After` |
//! | 2 | is the address let in? | 403 |
//! | 3 | who is it? | 401; 403 and `Retry-After` where guesses came from that address too often |
//! | 4 | has the caller requests left? | 429, `Retry-After` |
//!
//! Whoever is known passes, whatever others have done from the same address. Against guessing stands the length of keys;
//! not listening to an address that guesses spares the log, and tells whoever runs a broken client.

mod head;
mod room;
mod rules;
mod standing;

pub(crate) use head::{Policy, is_short, policy};
pub(crate) use room::HeldPlace;
pub(crate) use rules::Rules;
pub(crate) use standing::{names as standing_names, requests_quota, tokens_quota};

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::AtomicUsize},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    http::{HeaderName, Request},
    response::{IntoResponse, Response},
};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::{
    access::{AddressKey, Denied, Verdict},
    api::error::ApiError,
    chat::Caller,
    ids::{Owner, StreamId},
    limits::{Quota, Standing},
};
use head::Head;
use room::{Guarding, InFlight};
use standing::tell;

/// The header with which a request may be sent again.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What a caller waits when there is no room: others are answered meanwhile.
const OVERLOADED_RETRY_AFTER: Duration = Duration::from_secs(1);

/// A request on a connection that is one too many; in its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowded;

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

/// Who calls; handlers find it in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    Known(Caller),
    /// Whoever has the ticket of this stream, and of nothing else.
    TicketHolder(StreamId),
}

/// When whoever asked for a WebSocket is known no longer; in the request's extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expires(pub(crate) Instant);

/// Who was told from others, and how many requests that leaves it.
#[derive(Debug)]
struct Pass {
    who: Identity,
    requests: Option<Standing>,
}

/// A request that goes no further, though its caller is known.
#[derive(Debug)]
struct Refusal {
    error: ApiError,
    pass: Pass,
}

impl GuardLayer {
    /// Everything but the room and the limits, in the order of the table. `None`: everybody may.
    fn admit(&self, head: &Head<'_>, peer: IpAddr) -> Result<Option<Identity>, ApiError> {
        let rules = &*self.rules;
        rules.watch_for_proxies(|| head.forwarded().next().is_some());
        let address = rules.addresses.caller(peer, head.forwarded());
        if rules.addresses.judge(address) == Verdict::Blocked {
            return Err(ApiError::AddressBlocked { retry_after: None });
        }
        if head.policy == Policy::Public {
            return Ok(None);
        }
        let key = AddressKey::of(address);
        match self.identify(head, key) {
            Ok(who) => Ok(Some(who)),
            // Whoever brings nothing, or what cannot be a guess, tries nothing out.
            Err(Denied::Missing | Denied::Unusable) => Err(ApiError::Unauthorized),
            Err(Denied::Invalid) => {
                if let Some(left) = rules.failures.blocked(key) {
                    return Err(ApiError::AddressBlocked { retry_after: Some(left) });
                }
                if rules.failures.count(key) {
                    tracing::warn!(address = key.name(), "guesses from there are refused for a while");
                }
                Err(ApiError::Unauthorized)
            }
        }
    }

    /// Who calls.
    fn identify(&self, head: &Head<'_>, key: AddressKey) -> Result<Identity, Denied> {
        let rules = &*self.rules;
        if rules.is_open() {
            return Ok(Identity::Known(Caller { owner: Owner::default(), who: key.name().into() }));
        }
        let by_token = |owner: Owner| Identity::Known(Caller { who: owner.name(), owner });
        match rules.authenticator.authenticate(head.authorization()) {
            Err(Denied::Missing) => {}
            known => return known.map(by_token),
        }
        match head.policy {
            Policy::Socket => match head.protocol_token() {
                Some(token) => rules.authenticator.owner_of(token).map(by_token),
                None => Err(Denied::Missing),
            },
            Policy::Stream => match (head.ticket(), head.stream) {
                (Some(ticket), Some(id)) if rules.tickets.is_for(ticket, id) => Ok(Identity::TicketHolder(id)),
                // Of 128 bits, and of no use once the stream is gone: nobody guesses one.
                (Some(_), _) => Err(Denied::Unusable),
                (None, _) => Err(Denied::Missing),
            },
            Policy::Public | Policy::Private => Err(Denied::Missing),
        }
    }

    /// Whether a request counts against anything, or has to be told where it stands.
    fn counts(&self, read: Option<(StreamId, Quota)>) -> bool {
        read.is_some() || self.rules.requests.is_some() || self.rules.tokens.is_some()
    }

    /// Counts the request against the caller's limits; `read` is the stream that it reads, and what limits that. A limiter that is away lets
    /// everybody through: it protects the purse, not the data.
    async fn count(&self, who: Identity, read: Option<(StreamId, Quota)>) -> Result<Pass, Box<Refusal>> {
        let Rules { limiter, requests, .. } = &*self.rules;
        let name: Arc<str> = match &who {
            Identity::Known(caller) => Arc::clone(&caller.who),
            Identity::TicketHolder(id) => format!("ticket:{id}").into(),
        };
        // Reading is not limited; reading the same again and again is.
        let again = match read {
            Some((id, quota)) => limiter.take(&format!("{name} {id}"), quota, 1).await.ok(),
            None => None,
        };
        let requests = match requests {
            Some(quota) => limiter.take(&name, *quota, u64::from(read.is_none())).await.ok(),
            None => None,
        };
        let pass = Pass { who, requests };
        match [again, requests].into_iter().flatten().find(|standing| !standing.is_allowed) {
            Some(standing) => Err(Box::new(Refusal { error: ApiError::OverRequests { standing }, pass })),
            None => Ok(pass),
        }
    }

    /// Says in the answer where the caller stands. Whoever has a ticket is no caller.
    async fn tell_standing(&self, pass: &Pass, response: &mut Response) {
        let Identity::Known(caller) = &pass.who else { return };
        let Rules { limiter, requests, tokens, .. } = &*self.rules;
        if let (Some(quota), Some(standing)) = (requests, &pass.requests) {
            tell(response.headers_mut(), *quota, standing);
        }
        if let Some(quota) = tokens
            && let Ok(standing) = limiter.take(&caller.who, *quota, 0).await
        {
            tell(response.headers_mut(), *quota, &standing);
        }
    }
}

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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let GuardLayer { rules, routes, in_flight } = &self.guard;
        if request.extensions().get::<Crowded>().is_some() {
            return Guarding::refused(ApiError::TooManyConnections { retry_after: OVERLOADED_RETRY_AFTER });
        }
        let mut place = match request.uri().path() {
            // Whoever watches the service keeps nobody from it.
            "/" | "/health" => None,
            path => match InFlight::enter(in_flight, rules.max_in_flight) {
                None if routes.at(path).map_or(true, |found| *found.value != Policy::Public) => {
                    return Guarding::refused(ApiError::Overloaded { retry_after: OVERLOADED_RETRY_AFTER });
                }
                place => place,
            },
        };
        if request.uri().path() == "/chat" && request.headers().contains_key(IDEMPOTENCY_KEY) {
            // The work may outlive the request, and then keeps its place.
            place.take().into_iter().for_each(|place| drop(request.extensions_mut().insert(HeldPlace::new(place))));
        }
        if !rules.is_active {
            return Guarding::open(self.inner.call(request), place);
        }
        let head = Head::of(&request, routes);
        let read = head.read();
        // Whatever else it asks, a request is over soon.
        let is_socket = head.policy == Policy::Socket && !rules.is_open();
        let expires_in =
            is_socket.then(|| rules.authenticator.expires_in(head.authorization().next(), head.protocol_token()));
        let expires_in = expires_in.flatten();
        let who = match self.guard.admit(&head, self.peer) {
            Ok(Some(who)) => who,
            Ok(None) => return Guarding::open(self.inner.call(request), place),
            Err(error) => return Guarding::refused(error),
        };
        if let Some(left) = expires_in {
            request.extensions_mut().insert(Expires(Instant::now() + left));
        }
        request.extensions_mut().insert(who.clone());
        if !self.guard.counts(read) {
            return Guarding::open(self.inner.call(request), place);
        }
        // The one that is ready goes with the request, as tower asks for.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let guard = self.guard.clone();
        let answer = async move {
            let (mut response, pass) = match guard.count(who, read).await {
                Ok(pass) => {
                    let Ok(response) = inner.call(request).await;
                    (response, pass)
                }
                Err(refusal) => (refusal.error.into_response(), refusal.pass),
            };
            guard.tell_standing(&pass, &mut response).await;
            response
        };
        Guarding::guarded(Box::pin(answer), place)
    }
}
