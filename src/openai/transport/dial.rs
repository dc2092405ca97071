//! A new connection: the name resolved anew, TCP, TLS, and the protocol that both sides speak.

use std::{
    error::Error,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::{
    config::Upstream,
    openai::{
        classify::connect_failure,
        client::ClientError,
        error::{Stage, UpstreamError},
        tls,
        transport::io::{Io, OpenCount},
    },
};

/// How often TCP looks for a silent peer before it gives up.
const KEEP_ALIVE_PROBES: u32 = 3;

/// What both sides speak on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Makes connections to one host.
#[derive(Debug)]
pub(super) struct Dialer {
    base: Uri,
    tcp: HttpConnector,
    /// `None` for `http://`.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    limit: Duration,
    /// What it has made and is still there.
    pub(super) open: OpenCount,
    /// Why the last attempt failed, so that the log says it once and not for every request.
    trouble: Mutex<Option<String>>,
}

impl Dialer {
    pub(super) fn new(base: Uri, upstream: &Upstream) -> Result<Self, ClientError> {
        let limit = upstream.timeouts.connect;
        let (silence, answer) = (upstream.connections.silence, upstream.connections.ping_answer);
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(limit));
        // A path that died without a word: what is sent is not acknowledged, or nobody answers the probes.
        tcp.set_keepalive(Some(silence));
        tcp.set_keepalive_interval(Some(answer / KEEP_ALIVE_PROBES));
        tcp.set_keepalive_retries(Some(KEEP_ALIVE_PROBES));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(silence + answer));
        let tls = if base.scheme_str() == Some("https") { Some(Self::tls(&base, upstream)?) } else { None };
        Ok(Self { base, tcp, tls, limit, open: OpenCount::default(), trouble: Mutex::new(None) })
    }

    fn tls(base: &Uri, upstream: &Upstream) -> Result<(Arc<ClientConfig>, ServerName<'static>), ClientError> {
        let host = base.host().unwrap_or_default();
        let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| ClientError::BaseUrl)?;
        let mut config = tls::client_config(&upstream.authorities)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok((Arc::new(config), name))
    }

    /// Whether the other side may speak HTTP/2.
    pub(super) fn may_speak_http2(&self) -> bool {
        self.tls.is_some()
    }

    /// # Errors
    /// No connection, or none in time.
    pub(super) async fn dial(&self) -> Result<(Io, Protocol), UpstreamError> {
        let late = UpstreamError::Timeout { stage: Stage::Connect, limit: self.limit };
        let connected = timeout(self.limit, self.connect()).await.unwrap_or(Err((late, String::new())));
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match connected {
            Ok(connected) => {
                *trouble = None;
                Ok(connected)
            }
            Err((error, cause)) => {
                let cause = if cause.is_empty() { error.to_string() } else { cause };
                if trouble.as_ref() != Some(&cause) {
                    tracing::warn!(cause, "cannot connect to the upstream");
                    *trouble = Some(cause);
                }
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<(Io, Protocol), (UpstreamError, String)> {
        let tcp = self.tcp.clone().call(self.base.clone()).await;
        let tcp = tcp.map_err(|error| failure(&error, self.limit))?.into_inner();
        let Some((tls, name)) = &self.tls else {
            return Ok((Io::plain(tcp, &self.open), Protocol::Http1));
        };
        let stream = TlsConnector::from(Arc::clone(tls))
            .connect(name.clone(), tcp)
            .await
            .map_err(|error| failure(&error, self.limit))?;
        let protocol = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        Ok((Io::tls(stream, &self.open), protocol))
    }
}

/// What an operator has to know: the innermost cause says most.
fn failure(error: &(dyn Error + 'static), limit: Duration) -> (UpstreamError, String) {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let is_late = cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    let error = if is_late {
        UpstreamError::Timeout { stage: Stage::Connect, limit }
    } else {
        UpstreamError::Unreachable(connect_failure(error))
    };
    (error, cause.to_string())
}
