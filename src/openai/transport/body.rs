//! The body of a response, from whichever connection.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use h2::RecvStream;
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use crate::openai::transport::{http1::Http1Lease, http2::Http2Lease, pool::spawn};

/// How long the end of a body is waited for in the background, once its answer is complete.
const END_WAIT: Duration = Duration::from_secs(5);

/// How many bytes may come until then.
const END_BYTES: usize = 64 * 1024;

/// What a look at a body showed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::openai) enum Arrived {
    Bytes(Bytes),
    End,
    /// The connection or the stream broke.
    Broken,
}

/// The body of a response. Dropped before its end, it leaves the upstream: HTTP/2 resets the stream, HTTP/1.1 closes the
/// connection.
#[derive(Debug)]
pub(in crate::openai) struct Body(Inner);

#[derive(Debug)]
enum Inner {
    Http1(Incoming, Http1Lease),
    /// The stream stands before its lease, so that it is reset before another request may take its place.
    Http2(RecvStream, Http2Lease),
    Proxied(reqwest::Body),
    Ended,
    Broken,
}

impl Body {
    pub(super) fn http1(body: Incoming, lease: Http1Lease) -> Self {
        Self(Inner::Http1(body, lease))
    }

    pub(super) fn http2(body: RecvStream, lease: Http2Lease) -> Self {
        Self(Inner::Http2(body, lease))
    }

    pub(super) fn proxied(body: reqwest::Body) -> Self {
        Self(Inner::Proxied(body))
    }

    /// What comes next. Dropping the future loses nothing.
    pub(in crate::openai) async fn next(&mut self) -> Arrived {
        poll_fn(|context| self.poll_next(context)).await
    }

    pub(in crate::openai) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Arrived> {
        let arrived = match &mut self.0 {
            Inner::Http1(body, _) => ready!(poll_frames(body, context)),
            Inner::Http2(stream, lease) => match ready!(stream.poll_data(context)) {
                Some(Ok(bytes)) => {
                    // The stream is read as fast as it comes; what its reader does with it is bounded elsewhere.
                    drop(stream.flow_control().release_capacity(bytes.len()));
                    if bytes.is_empty() && !stream.is_end_stream() {
                        lease.saw_empty_frame();
                    }
                    Arrived::Bytes(bytes)
                }
                Some(Err(_)) => Arrived::Broken,
                // Trailers say nothing here.
                None => Arrived::End,
            },
            Inner::Proxied(body) => ready!(poll_frames(body, context)),
            Inner::Ended => Arrived::End,
            Inner::Broken => Arrived::Broken,
        };
        match &arrived {
            Arrived::Bytes(_) => {}
            Arrived::End => {
                if let Inner::Http1(_, lease) = std::mem::replace(&mut self.0, Inner::Ended) {
                    lease.finish();
                }
            }
            Arrived::Broken => self.0 = Inner::Broken,
        }
        Poll::Ready(arrived)
    }

    /// The answer is complete, so that only the end of the body is missing: an HTTP/2 stream must not be reset for that,
    /// nor an HTTP/1.1 connection closed. The end is waited for in the background, within limits.
    pub(in crate::openai) fn finish(&mut self) {
        let mut rest = match std::mem::replace(&mut self.0, Inner::Ended) {
            Inner::Ended | Inner::Broken => return,
            // All has come that was announced. The connection knows that too, or will when it is asked for.
            Inner::Http1(body, lease) if body.is_end_stream() => return lease.finish(),
            Inner::Http2(stream, _) if stream.is_end_stream() => return,
            Inner::Http1(body, lease) => Self(Inner::Http1(body, lease.without_doubt())),
            Inner::Http2(stream, lease) => Self(Inner::Http2(stream, lease.without_doubt())),
            rest @ Inner::Proxied(_) => Self(rest),
        };
        if matches!(rest.next().now_or_never(), Some(Arrived::End | Arrived::Broken)) {
            return;
        }
        let drain = async move {
            let mut bytes = 0;
            while let Arrived::Bytes(more) = rest.next().await {
                bytes += more.len();
                if bytes > END_BYTES {
                    return;
                }
            }
        };
        spawn(async move {
            // Whatever has not ended by then is dropped, and so left.
            let _ = timeout(END_WAIT, drain).await;
        });
    }
}

/// The next data of `body`; other frames say nothing here.
fn poll_frames<B>(body: &mut B, context: &mut Context<'_>) -> Poll<Arrived>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    loop {
        match ready!(Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Poll::Ready(Arrived::Bytes(bytes));
                }
            }
            Some(Err(_)) => return Poll::Ready(Arrived::Broken),
            None => return Poll::Ready(Arrived::End),
        }
    }
}
