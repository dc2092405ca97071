//! A stream that breaks when what is written to it gets nowhere.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

pin_project! {
    /// A stream that breaks when what is written to it does not get anywhere for a while: a reader who does not read
    /// must not hold what is his for ever. He may come back with his cursor.
    #[derive(Debug)]
    pub(super) struct Progressing<S> {
        #[pin]
        stream: S,
        limit: Duration,
        // Only there while a write waits, which is rare.
        stuck: Option<Pin<Box<Sleep>>>,
    }
}

impl<S> Progressing<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, stuck: None }
    }

    /// Watches a write's outcome.
    fn watch<T>(self: Pin<&mut Self>, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let this = self.project();
        if outcome.is_ready() {
            *this.stuck = None;
            return outcome;
        }
        let limit = *this.limit;
        let stuck = this.stuck.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite> AsyncWrite for Progressing<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = self.as_mut().project().stream.poll_write(context, bytes);
        self.watch(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.as_mut().project().stream.poll_write_vectored(context, slices);
        self.watch(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = self.as_mut().project().stream.poll_flush(context);
        self.watch(context, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(context)
    }
}

impl<S: AsyncRead> AsyncRead for Progressing<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::Instant,
    };

    #[tokio::test(start_paused = true)]
    async fn a_write_that_gets_nowhere_fails_after_its_time_and_one_that_moves_does_not() {
        let (here, mut there) = duplex(1000);
        let limit = Duration::from_secs(30);
        let mut here = Progressing::new(here, limit);
        here.write_all(&[0; 1000]).await.unwrap();

        let started = Instant::now();
        let slowly = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(20)).await;
                there.read_exact(&mut [0; 100]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(here.write_all(&[0; 1000]), slowly);
        written.unwrap();
        assert_eq!(started.elapsed().as_secs(), 200);

        let started = Instant::now();
        assert_eq!(here.write_all(&[0; 1]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed(), limit);
    }
}
