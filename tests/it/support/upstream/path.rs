//! The way of a connection's bytes, which a test may break.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::edge::Record;

/// A TCP connection as the server has it.
pub struct Path {
    stream: TcpStream,
    record: Arc<Record>,
}

impl Path {
    pub fn new(stream: TcpStream, record: Arc<Record>) -> Self {
        Self { stream, record }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        if self.record.is_cut.load(Ordering::SeqCst) {
            // With nothing to linger for, closing sends RST.
            let _ = self.stream.set_zero_linger();
        }
        self.record.closed();
    }
}

impl AsyncRead for Path {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        loop {
            ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
            // That the other side has closed is told in any case, so that tests see it.
            if into.filled().len() == before || !self.record.is_swallowed() {
                return Poll::Ready(Ok(()));
            }
            into.set_filled(before);
        }
    }
}

impl AsyncWrite for Path {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.record.is_swallowed() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.record.is_swallowed() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
