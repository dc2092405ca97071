//! What a connection reads and writes, and when it last read.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::client::TlsStream;

/// When something last happened on a connection, to the millisecond. Shared between the connection and those who want to
/// know whether it is alive.
#[derive(Clone, Debug)]
pub(super) struct LastTime(Arc<Clock>);

#[derive(Debug)]
struct Clock {
    opened: Instant,
    /// Milliseconds since then.
    last: AtomicU64,
}

impl LastTime {
    pub(super) fn now() -> Self {
        Self(Arc::new(Clock { opened: Instant::now(), last: AtomicU64::new(0) }))
    }

    /// How old the connection is.
    pub(super) fn age(&self) -> Duration {
        self.0.opened.elapsed()
    }

    pub(super) fn at(&self) -> Instant {
        self.0.opened + Duration::from_millis(self.0.last.load(Ordering::Relaxed))
    }

    /// It happens now.
    pub(super) fn touch(&self) {
        let since = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.last.store(since, Ordering::Relaxed);
    }
}

/// How many connections are open.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenCount(Arc<AtomicUsize>);

impl OpenCount {
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn one_more(&self) -> CountedOpen {
        self.0.fetch_add(1, Ordering::Relaxed);
        CountedOpen(self.clone())
    }
}

/// Counts a connection until it is dropped.
#[derive(Debug)]
struct CountedOpen(OpenCount);

impl Drop for CountedOpen {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection's bytes, in the clear.
#[derive(Debug)]
pub(super) struct Io {
    stream: Stream,
    last_read: LastTime,
    _counted: CountedOpen,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    // In a box because it is large and there may be thousands of the other.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    pub(super) fn plain(stream: TcpStream, open: &OpenCount) -> Self {
        Self { stream: Stream::Plain(stream), last_read: LastTime::now(), _counted: open.one_more() }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, open: &OpenCount) -> Self {
        Self { stream: Stream::Tls(Box::new(stream)), last_read: LastTime::now(), _counted: open.one_more() }
    }

    pub(super) fn last_read(&self) -> LastTime {
        self.last_read.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        ready!(read)?;
        self.last_read.touch();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
