//! What hyper reads from and writes to: a stream with the time limits between requests, an orderly close, and the answer
//! to a head that is none.
//!
//! hyper's own time limit counts from the end of the last answer, for the pause and the head together. Here each has its
//! own, with one timer a connection that is set once and looked at.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::life::{Life, Phase};

/// How long a connection may wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a head, from its first byte; and for a new connection to say something.
    pub(super) head: Duration,
    /// For the next request.
    pub(super) keep_alive: Duration,
}

/// How long what is still sent after an early answer is read and thrown away, so that the answer arrives: closing at once
/// would reset the connection, and the answer with it. Source: RFC 9112, 9.6.
const LINGER: Duration = Duration::from_secs(5);

/// The same in bytes.
const LINGER_BYTES: usize = 8 * 1024 * 1024;

/// What answers a head that hyper cannot read, in the place of hyper's own answer.
pub(super) type Unreadable = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

pin_project! {
    /// The stream of one connection.
    pub(super) struct Transport<S> {
        #[pin]
        stream: S,
        life: Arc<Life>,
        patience: Patience,
        // When what is waited for now is too late. `None`: a head has begun, and it is not known yet whether it has to be
        // waited for.
        deadline: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
        unreadable: Unreadable,
        // What is written instead of what hyper says of a head, and how much of it is written already.
        refusal: Option<(Vec<u8>, usize)>,
        closing: Closing,
    }
}

/// How far closing has come.
#[derive(Debug)]
enum Closing {
    /// What was written may not be sent yet.
    Open,
    /// The other side knows that nothing more comes.
    Said,
    /// What it sends all the same is thrown away.
    Lingering { left: usize, until: Pin<Box<Sleep>> },
}

impl<S> fmt::Debug for Transport<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("life", &self.life).field("closing", &self.closing).finish_non_exhaustive()
    }
}

impl<S> Transport<S> {
    pub(super) fn new(stream: S, life: Arc<Life>, patience: Patience, unreadable: Unreadable) -> Self {
        let deadline = Some(Instant::now() + patience.head);
        Self { stream, life, patience, deadline, timer: None, unreadable, refusal: None, closing: Closing::Open }
    }

    /// Whether what is waited for is too late; if not, the task is woken when it is.
    fn is_late(self: Pin<&mut Self>, context: &mut Context<'_>) -> bool {
        let this = self.project();
        let deadline = *this.deadline.get_or_insert_with(|| Instant::now() + this.patience.head);
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(context).is_ready() {
            if timer.deadline() >= deadline {
                return true;
            }
            // It was set for an earlier wait.
            timer.as_mut().reset(deadline);
        }
        false
    }

    /// Takes note of what hyper has to say while nobody has asked anything: that it cannot read a head.
    fn refuse(self: Pin<&mut Self>, said: &[u8]) {
        let this = self.project();
        if this.refusal.is_none() {
            *this.refusal = Some(((this.unreadable)(said), 0));
            // Where this head ends nobody knows.
            this.life.set_unread(true);
        }
    }
}

impl<S: AsyncWrite> Transport<S> {
    fn poll_refusal(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        let Some((bytes, written)) = this.refusal else { return Poll::Ready(Ok(())) };
        while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
            let count = ready!(this.stream.as_mut().poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = self.as_mut().project().stream.poll_read(context, buffer);
        let phase = self.life.phase();
        if !phase.is_between() {
            return outcome;
        }
        if outcome.is_ready() {
            if phase != Phase::Head && buffer.filled().len() > before {
                self.life.set(Phase::Head);
                // It is mostly there as a whole, and then no clock is looked at.
                *self.project().deadline = None;
            }
            return outcome;
        }
        if !self.as_mut().is_late(context) {
            return Poll::Pending;
        }
        // Between requests the connection ends as if the other side had ended it.
        Poll::Ready(if phase == Phase::Head { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) })
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.life.phase().is_between() {
            self.as_mut().refuse(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        self.project().stream.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.life.phase().is_between() {
            self.as_mut().refuse(slices.first().map_or(&[], |slice| slice));
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        self.project().stream.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_refusal(context))?;
        let this = self.project();
        ready!(this.stream.poll_flush(context))?;
        // hyper flushes the stream when it has nothing left to write to it.
        if this.life.change(Phase::Answered, Phase::Kept) {
            let now = Instant::now();
            this.life.idle_from(now);
            *this.deadline = Some(now + this.patience.keep_alive);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_refusal(context))?;
        let mut this = self.project();
        loop {
            match this.closing {
                Closing::Open => {
                    ready!(this.stream.as_mut().poll_shutdown(context))?;
                    *this.closing = Closing::Said;
                }
                Closing::Said if !this.life.is_unread() => return Poll::Ready(Ok(())),
                Closing::Said => {
                    let until = Box::pin(sleep_until(Instant::now() + LINGER));
                    *this.closing = Closing::Lingering { left: LINGER_BYTES, until };
                }
                Closing::Lingering { left, until } => {
                    let mut bytes = [0; 8192];
                    let mut thrown_away = ReadBuf::new(&mut bytes);
                    let is_over = until.as_mut().poll(context).is_ready();
                    if is_over || *left == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    let read = ready!(this.stream.as_mut().poll_read(context, &mut thrown_away));
                    if read.is_err() || thrown_away.filled().is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                    *left = left.saturating_sub(thrown_away.filled().len());
                }
            }
        }
    }
}
