//! A streamed answer: from the upstream's bytes to pieces of text, and to the proof that the answer is complete.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    config::Timeouts,
    openai::{
        cost::Cost,
        error::{Stage, UpstreamError},
        reading::{End, Ending, Reading},
        redact::Secrets,
        sse::{self, Decoder},
        transport::{Arrived, Body, Response},
    },
};

/// Time limits of one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamLimits {
    /// From when the whole is counted, retries and waits included.
    pub(super) started: Instant,
    /// From when the first word is: when the question was sent that is being answered.
    pub(super) asked: Instant,
    pub(super) timeouts: Timeouts,
}

/// After the finish reason only the usage is missing, which is not worth a long wait.
const USAGE_WAIT: Duration = Duration::from_secs(5);

/// About how many bytes are taken in before they are handed on.
const GATHER_BYTES: usize = 16 * 1024;

/// How often a stream that has something in hand lets others run before it looks for more. hyper hands a body over
/// one HTTP chunk at a time, by way of another task: one turn is what that task needs to hand over what has arrived.
/// Without it a burst cost a bare service of this stack 6.1 µs of CPU a word instead of 1.3.
const GATHER_TURNS: u32 = 1;

/// Words that come closer to each other than this may come together.
const CROWDED: Duration = Duration::from_millis(1);

/// How often the end of a body is looked for, in the same way.
const LET_GO_TURNS: u32 = 2;

/// A running answer.
#[derive(Debug)]
pub struct AnswerStream {
    /// Without the head it came with: headers and address would be kept as long as the stream is open.
    body: Body,
    limits: StreamLimits,
    decoder: Decoder,
    reading: Reading,
    /// Its head said that it is no stream. What it says counts more, where it says anything.
    is_labelled_whole: bool,
    /// When the last meaningful event came; `None` before the first word.
    last_event: Option<Instant>,
    /// Goes off at the deadline or before it: moving a timer at every event would cost more than looking again.
    alarm: Pin<Box<Sleep>>,
}

impl AnswerStream {
    pub(super) fn new(response: Response, limits: StreamLimits, secrets: Secrets) -> Self {
        let alarm = Box::pin(sleep_until(limits.asked + limits.timeouts.first_token));
        let (decoder, reading) = (Decoder::default(), Reading::new(secrets));
        let content_type = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let is_labelled_whole =
            [&b"application/json"[..], b"text/html"].iter().any(|kind| content_type.starts_with(kind));
        let body = response.into_body();
        Self { body, limits, decoder, reading, is_labelled_whole, last_event: None, alarm }
    }

    /// Hands the next pieces of text, in order, to `on_text`: at least one, unless the answer has ended. What has arrived
    /// together is handed on together. `Some` when the upstream has said that the answer is complete.
    ///
    /// # Errors
    /// The answer broke, stalled, or is not one. The pieces before that have been handed on.
    pub async fn next(&mut self, mut on_text: impl FnMut(&str) + Send) -> Result<Option<Ending>, UpstreamError> {
        loop {
            if self.reading.take_has_text() {
                return Ok(None);
            }
            if let Some(outcome) = self.reading.outcome() {
                return outcome.map(Some);
            }
            self.wait(&mut on_text).await;
        }
    }

    /// What the answer has cost, as far as it has come.
    pub fn cost(&mut self) -> Cost {
        // An error that refuses the question, told where an answer should begin, is a refusal like any other.
        let is_refused = self.reading.is_refused();
        let mut cost = self.reading.take_cost();
        cost.calls = u32::from(!is_refused);
        cost
    }

    /// Waits for bytes, within the limits, and takes in all that have arrived.
    async fn wait(&mut self, on_text: &mut (impl FnMut(&str) + Send)) {
        let Some(first) = self.arrival(on_text).await else { return };
        self.take_in(first, on_text);
        // Where words come one by one, there is nothing to be gathered, and looking for it would cost every word a turn.
        let is_crowded = self.last_event.is_some_and(|last| last.elapsed() < CROWDED);
        let mut turns = if is_crowded { 0 } else { GATHER_TURNS };
        let mut gathered = 0;
        while gathered < GATHER_BYTES && !self.reading.is_over() {
            if let Some(arrived) = self.look() {
                if let Arrived::Bytes(bytes) = &arrived {
                    gathered += bytes.len();
                }
                self.take_in(arrived, on_text);
                turns = 0;
            } else if turns < GATHER_TURNS {
                turn().await;
                turns += 1;
            } else {
                break;
            }
        }
        if self.reading.take_has_news() {
            self.last_event = Some(Instant::now());
        }
        if self.reading.is_done() {
            self.let_go().await;
        }
    }

    /// The next part of the body. `None` when the time for it is over.
    async fn arrival(&mut self, on_text: &mut (impl FnMut(&str) + Send)) -> Option<Arrived> {
        let (deadline, ..) = self.deadline();
        if deadline < self.alarm.deadline() {
            self.alarm.as_mut().reset(deadline);
        }
        loop {
            tokio::select! {
                biased;
                bytes = self.body.next() => return Some(bytes),
                () = self.alarm.as_mut() => {
                    let (deadline, stage, limit) = self.deadline();
                    if Instant::now() < deadline {
                        self.alarm.as_mut().reset(deadline);
                    } else {
                        self.reading.end(End::Broken, UpstreamError::Timeout { stage, limit }, on_text);
                        if self.reading.is_done() {
                            self.body.finish();
                        }
                        return None;
                    }
                }
            }
        }
    }

    /// The next part of the body, if it is there already.
    fn look(&mut self) -> Option<Arrived> {
        pin!(self.body.next()).now_or_never()
    }

    /// Until when to wait, for what, and which limit that is.
    fn deadline(&self) -> (Instant, Stage, Duration) {
        let Timeouts { first_token, idle, total, .. } = self.limits.timeouts;
        let next = match (self.reading.finished_at(), self.last_event) {
            (Some(finished), _) => (finished + USAGE_WAIT, Stage::Idle, idle),
            (None, Some(last)) => (last + idle, Stage::Idle, idle),
            (None, None) => (self.limits.asked + first_token, Stage::FirstToken, first_token),
        };
        let end = self.limits.started + total;
        if end < next.0 { (end, Stage::Total, total) } else { next }
    }

    fn take_in(&mut self, arrived: Arrived, on_text: &mut impl FnMut(&str)) {
        let reading = &mut self.reading;
        let (taken, end, otherwise) = match arrived {
            Arrived::Bytes(bytes) => {
                let taken = self.decoder.feed(&bytes, |event| reading.event(event, on_text));
                if taken.is_err() {
                    reading.fail(UpstreamError::TooLarge { limit: sse::MAX_LINE_BYTES });
                }
                return;
            }
            // What is there of a last event counts: half of one cannot be read.
            Arrived::End => {
                let taken = self.decoder.finish(|event| reading.event(event, on_text));
                let is_nothing = self.is_labelled_whole && reading.has_said_nothing();
                let whole = UpstreamError::Protocol("a whole body where a stream was asked for");
                (taken, End::Orderly, if is_nothing { whole } else { UpstreamError::Truncated })
            }
            Arrived::Broken => {
                let taken = self.decoder.finish(|event| reading.event(event, on_text));
                (taken, End::Broken, UpstreamError::Interrupted)
            }
        };
        if taken.is_err() {
            reading.fail(UpstreamError::TooLarge { limit: sse::MAX_LINE_BYTES });
        }
        reading.end(end, otherwise, on_text);
    }

    /// After `[DONE]` only the end of the body is left. It is nearly always there already; else it is waited for in the
    /// background, so that an answer that is complete costs its connection nothing.
    async fn let_go(&mut self) {
        for _ in 0..=LET_GO_TURNS {
            match self.look() {
                Some(Arrived::Bytes(_)) => {}
                Some(Arrived::End | Arrived::Broken) => return,
                None => turn().await,
            }
        }
        self.body.finish();
    }
}

/// Lets the tasks run that are ready now. Unlike `yield_now` it does not look for new I/O in between, which would cost
/// a system call at every word.
async fn turn() {
    let mut had_turn = false;
    poll_fn(|context| {
        if std::mem::replace(&mut had_turn, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
