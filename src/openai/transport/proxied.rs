//! Through a proxy that the environment names: reqwest knows every kind there is. Over HTTP/1.1, because reqwest would
//! put all requests on one HTTP/2 connection, however few it takes.

use std::sync::{Mutex, PoisonError};

use reqwest::redirect;
use rustls::ClientConfig;
use tokio::time::Instant;

use crate::{
    config::{ConnectionLimits, Upstream},
    openai::{
        classify::transport_failure,
        client::ClientError,
        error::UpstreamError,
        tls,
        transport::{DOUBTFUL, Request, Response, body::Body},
    },
};

/// Requests that go through a proxy.
#[derive(Debug)]
pub(super) struct Proxied {
    settings: Settings,
    client: Mutex<reqwest::Client>,
}

#[derive(Debug)]
struct Settings {
    tls: ClientConfig,
    connect: std::time::Duration,
    connections: ConnectionLimits,
}

impl Settings {
    fn client(&self) -> Result<reqwest::Client, reqwest::Error> {
        let ConnectionLimits { silence, ping_answer, idle, .. } = self.connections;
        let builder = reqwest::Client::builder()
            .connect_timeout(self.connect)
            .redirect(redirect::Policy::none())
            .referer(false)
            .http1_only()
            .tcp_nodelay(true)
            .tcp_keepalive(silence)
            .pool_idle_timeout(idle)
            .tls_backend_preconfigured(self.tls.clone());
        #[cfg(target_os = "linux")]
        let builder = builder.tcp_user_timeout(silence + ping_answer);
        builder.build()
    }
}

impl Proxied {
    /// # Errors
    /// TLS or reqwest cannot start.
    pub(super) fn new(upstream: &Upstream) -> Result<Self, ClientError> {
        let settings = Settings {
            tls: tls::client_config(&upstream.authorities)?,
            connect: upstream.timeouts.connect,
            connections: upstream.connections,
        };
        Ok(Self { client: Mutex::new(settings.client()?), settings })
    }

    /// Sends a request, to the head of its response.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, UpstreamError> {
        let mut message = reqwest::Request::new(request.method.clone(), request.endpoint.url.clone());
        *message.headers_mut() = request.headers.clone();
        *message.body_mut() = (!request.body.is_empty()).then(|| request.body.clone().into());
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let given_up = GivenUp { proxied: self, began: Instant::now() };
        let answered = client.execute(message).await;
        std::mem::forget(given_up);
        let response = answered.map_err(|error| transport_failure(&error, self.settings.connect))?;
        Ok(hyper::Response::from(response).map(Body::proxied))
    }
}

/// A request that is given up after a while of silence leaves connections in doubt, the idle ones too: a new client has
/// none.
struct GivenUp<'a> {
    proxied: &'a Proxied,
    began: Instant,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if self.began.elapsed() < DOUBTFUL {
            return;
        }
        if let Ok(client) = self.proxied.settings.client() {
            *self.proxied.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
        }
    }
}
