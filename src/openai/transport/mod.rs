//! The road to the upstream: a request goes out on a connection, and its response comes back.
//!
//! | what stands between | who asks |
//! |---|---|
//! | nothing | [`pool`]: connections of this service, HTTP/2 where the upstream speaks it, else HTTP/1.1 |
//! | a proxy that the environment names | [`proxied`]: reqwest, over HTTP/1.1 |
//!
//! A request that the upstream has certainly not processed goes out again at once and by itself: it counts as no retry,
//! for it cannot have been billed. Everything else that fails is an [`UpstreamError`], and the caller's to retry.

mod body;
mod dial;
mod http1;
mod http2;
mod io;
mod pool;
mod proxied;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{HeaderMap, Method, Uri, header::HeaderValue, http::uri::InvalidUri};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::time::sleep;
use url::Url;

use crate::{
    config::Upstream,
    openai::{client::ClientError, error::UpstreamError},
};

pub(super) use body::{Arrived, Body};
use dial::Dialer;
use pool::Pool;
use proxied::Proxied;

/// The head of a response, and its body on the way.
pub(super) type Response = hyper::Response<Body>;

/// How often a request goes out again that the upstream has not processed.
const MAX_REFUSALS: u32 = 10;

/// After how long without a byte a request that is given up puts its connection in doubt.
const DOUBTFUL: Duration = Duration::from_millis(500);

/// What a URL is on each protocol.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    url: Url,
    /// Scheme, host and path: what HTTP/2 sends.
    absolute: Uri,
    /// Path alone: what HTTP/1.1 sends, beside a `Host`.
    origin: Uri,
}

impl Endpoint {
    /// # Errors
    /// A URL that cannot be written in a request.
    pub(super) fn new(url: &Url) -> Result<Self, InvalidUri> {
        Ok(Self { url: url.clone(), absolute: url.as_str().parse()?, origin: url.path().parse()? })
    }
}

/// A request that can be sent more than once.
#[derive(Clone, Debug)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) endpoint: &'a Endpoint,
    /// Without `Host`.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why there is no response.
#[derive(Debug)]
enum Unanswered {
    /// The upstream has not processed the request, and never will.
    NotProcessed,
    /// The connection broke while the request was under way.
    Broken,
}

/// Connections to one upstream.
#[derive(Debug)]
pub(super) struct Transport(Way);

#[derive(Debug)]
enum Way {
    Direct(Arc<Pool>),
    Proxied(Box<Proxied>),
}

impl Transport {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// TLS or the client cannot start.
    pub(super) fn new(upstream: &Upstream) -> Result<Self, ClientError> {
        let base: Uri = upstream.base_url.as_str().parse().map_err(|_| ClientError::BaseUrl)?;
        // The system's proxy is for the world outside this machine.
        let is_local = matches!(upstream.base_url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if !is_local && Matcher::from_system().intercept(&base).is_some() {
            return Ok(Self(Way::Proxied(Box::new(Proxied::new(upstream)?))));
        }
        let host = base.authority().map(|authority| HeaderValue::try_from(authority.as_str()));
        let host = host.and_then(Result::ok).ok_or(ClientError::BaseUrl)?;
        let dialer = Dialer::new(base, upstream)?;
        Ok(Self(Way::Direct(Pool::new(dialer, host, upstream.connections))))
    }

    /// Sends a request, to the head of its response. Dropping the future leaves the upstream.
    ///
    /// # Errors
    /// No connection, or it broke before the head came.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, UpstreamError> {
        let pool = match &self.0 {
            Way::Direct(pool) => pool,
            Way::Proxied(proxied) => return proxied.send(request).await,
        };
        for refusals in 0..MAX_REFUSALS {
            // Another connection serves at once; an upstream that goes on refusing gets time.
            if refusals > 2 {
                sleep(Duration::from_millis(10 << refusals)).await;
            }
            let lease = pool.lease().await?;
            match lease.send(request).await {
                Ok(response) => return Ok(response),
                Err(Unanswered::NotProcessed) => {}
                Err(Unanswered::Broken) => return Err(UpstreamError::Interrupted),
            }
        }
        Err(UpstreamError::Interrupted)
    }
}
