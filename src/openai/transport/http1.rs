//! A connection that speaks HTTP/1.1: one request at a time.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::openai::{
    error::UpstreamError,
    transport::{
        Request, Response, Unanswered,
        body::Body,
        io::{Io, LastTime},
        pool::Pool,
    },
};

/// Most headers of a response. More than any upstream sends; hyper's own 100 is less.
const MAX_HEADERS: usize = 256;

/// A connection between two requests.
#[derive(Debug)]
pub(super) struct Http1 {
    sender: http1::SendRequest<Full<Bytes>>,
    pub(super) last_read: LastTime,
    /// Since when it has no request.
    pub(super) idle_since: Instant,
}

impl Http1 {
    /// Begins to speak.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) async fn new(io: Io, pool: Weak<Pool>) -> Result<Self, UpstreamError> {
        let last_read = io.last_read();
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_HEADERS);
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|_| UpstreamError::Interrupted)?;
        super::pool::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the upstream ended with an error");
            }
            if let Some(pool) = pool.upgrade() {
                pool.has_room();
            }
        });
        Ok(Self { sender, last_read, idle_since: Instant::now() })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// A connection with a request. Dropped before the response is read to its end, it is closed, for HTTP/1.1 has no other
/// way to stop a response.
#[derive(Debug)]
pub(super) struct Http1Lease {
    connection: Option<Http1>,
    pool: Weak<Pool>,
    /// When the request began; `None` when giving it up says nothing about the connection.
    began: Option<Instant>,
}

impl Http1Lease {
    pub(super) fn new(connection: Http1, pool: &Arc<Pool>) -> Self {
        Self { connection: Some(connection), pool: Arc::downgrade(pool), began: Some(Instant::now()) }
    }

    pub(super) async fn send(
        mut self,
        request: &Request<'_>,
        host: &hyper::header::HeaderValue,
    ) -> Result<Response, Unanswered> {
        let Some(Http1 { sender, .. }) = &mut self.connection else { return Err(Unanswered::NotProcessed) };
        // Whoever had it before may have read the end before the connection has noticed it.
        if sender.ready().await.is_err() {
            return Err(Unanswered::NotProcessed);
        }
        let mut message = hyper::Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = request.endpoint.origin.clone();
        *message.headers_mut() = request.headers.clone();
        message.headers_mut().insert(HOST, host.clone());
        match sender.try_send_request(message).await {
            Ok(response) => Ok(response.map(|body| Body::http1(body, self))),
            Err(mut error) => match error.take_message() {
                Some(_) => Err(Unanswered::NotProcessed),
                None => Err(Unanswered::Broken),
            },
        }
    }

    /// The answer has come, so that leaving what is behind it says nothing about the connection.
    pub(super) fn without_doubt(mut self) -> Self {
        self.began = None;
        self
    }

    /// The response has been read to its end.
    pub(super) fn finish(mut self) {
        if let (Some(connection), Some(pool)) = (self.connection.take(), self.pool.upgrade()) {
            pool.give_back(connection);
        }
    }
}

impl Drop for Http1Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if let (Some(pool), Some(began)) = (self.pool.upgrade(), self.began) {
            pool.doubt(&connection.last_read, began);
        }
    }
}
