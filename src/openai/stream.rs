//! A streamed answer: from the upstream's bytes to pieces of text, and to the proof that the answer is complete.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    config::Timeouts,
    message::Usage,
    openai::{
        answer::known_finish_reason,
        classify::classify_inside,
        error::{Stage, UpstreamError},
        redact::Secrets,
        sse::{self, Decoder},
        transport::{Arrived, Body, Response},
        wire::Chunk,
    },
};

/// How an answer ended, according to the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Why the model stopped; some servers do not say.
    pub finish_reason: Option<&'static str>,
    pub usage: Option<Usage>,
}

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
    secrets: Secrets,
    decoder: Decoder,
    reading: Reading,
    /// When the last meaningful event came; `None` before the first word.
    last_event: Option<Instant>,
    /// Goes off at the deadline or before it: moving a timer at every event would cost more than looking again.
    alarm: Pin<Box<Sleep>>,
}

/// What the events so far said.
#[derive(Debug, Default)]
struct Reading {
    /// Whether text has been handed on.
    has_text: bool,
    finish_reason: Option<&'static str>,
    finished_at: Option<Instant>,
    usage: Option<Usage>,
    is_done: bool,
    has_news: bool,
    failure: Option<UpstreamError>,
}

impl AnswerStream {
    pub(super) fn new(response: Response, limits: StreamLimits, secrets: Secrets) -> Self {
        let alarm = Box::pin(sleep_until(limits.asked + limits.timeouts.first_token));
        let (decoder, reading) = (Decoder::default(), Reading::default());
        let body = response.into_body();
        Self { body, limits, secrets, decoder, reading, last_event: None, alarm }
    }

    /// Hands the next pieces of text, in order, to `on_text`: at least one, unless the answer has ended. What has arrived
    /// together is handed on together. `Some` when the upstream has said that the answer is complete.
    ///
    /// # Errors
    /// The answer broke, stalled, or is not one. The pieces before that have been handed on.
    pub async fn next(&mut self, mut on_text: impl FnMut(&str) + Send) -> Result<Option<Ending>, UpstreamError> {
        loop {
            if std::mem::take(&mut self.reading.has_text) {
                return Ok(None);
            }
            if let Some(failure) = self.reading.failure.take() {
                return Err(failure);
            }
            if self.reading.is_done {
                return Ok(Some(Ending { finish_reason: self.reading.finish_reason, usage: self.reading.usage }));
            }
            self.wait(&mut on_text).await;
        }
    }

    /// Waits for bytes, within the limits, and takes in all that have arrived.
    async fn wait(&mut self, on_text: &mut (impl FnMut(&str) + Send)) {
        let Some(first) = self.arrival().await else { return };
        self.take_in(first, on_text);
        // Where words come one by one, there is nothing to be gathered, and looking for it would cost every word a turn.
        let is_crowded = self.last_event.is_some_and(|last| last.elapsed() < CROWDED);
        let mut turns = if is_crowded { 0 } else { GATHER_TURNS };
        let mut gathered = 0;
        while gathered < GATHER_BYTES && self.wants_more() {
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
        if std::mem::take(&mut self.reading.has_news) {
            self.last_event = Some(Instant::now());
        }
        if self.reading.is_done {
            self.let_go().await;
        }
    }

    /// The next part of the body. `None` when the time for it is over.
    async fn arrival(&mut self) -> Option<Arrived> {
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
                    } else if self.reading.finish_reason.is_some() {
                        self.reading.is_done = true;
                        self.body.finish();
                        return None;
                    } else {
                        self.reading.failure = Some(UpstreamError::Timeout { stage, limit });
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

    fn wants_more(&self) -> bool {
        !self.reading.is_done && self.reading.failure.is_none()
    }

    /// Until when to wait, for what, and which limit that is.
    fn deadline(&self) -> (Instant, Stage, Duration) {
        let Timeouts { first_token, idle, total, .. } = self.limits.timeouts;
        let next = match (self.reading.finished_at, self.last_event) {
            (Some(finished), _) => (finished + USAGE_WAIT, Stage::Idle, idle),
            (None, Some(last)) => (last + idle, Stage::Idle, idle),
            (None, None) => (self.limits.asked + first_token, Stage::FirstToken, first_token),
        };
        let end = self.limits.started + total;
        if end < next.0 { (end, Stage::Total, total) } else { next }
    }

    fn take_in(&mut self, arrived: Arrived, on_text: &mut impl FnMut(&str)) {
        let reading = &mut self.reading;
        match arrived {
            Arrived::Bytes(bytes) => {
                let secrets = &self.secrets;
                if self.decoder.feed(&bytes, |event| reading.event(event, secrets, on_text)).is_err() {
                    reading.fail(UpstreamError::TooLarge { limit: sse::MAX_LINE_BYTES });
                }
            }
            // With a finish reason the text is complete, whatever became of the rest.
            Arrived::End | Arrived::Broken if reading.finish_reason.is_some() => reading.is_done = true,
            Arrived::End => reading.fail(UpstreamError::Truncated),
            Arrived::Broken => reading.fail(UpstreamError::Interrupted),
        }
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

impl Reading {
    fn fail(&mut self, failure: UpstreamError) {
        if !self.is_done {
            self.failure.get_or_insert(failure);
        }
    }

    fn event(&mut self, event: sse::Event<'_>, secrets: &Secrets, on_text: &mut impl FnMut(&str)) {
        if self.is_done || self.failure.is_some() {
            return;
        }
        let data = event.data;
        if data.starts_with("[DONE]") {
            self.is_done = true;
            return;
        }
        let Ok(chunk) = serde_json::from_str::<Chunk<'_>>(data) else {
            return self.fail(UpstreamError::Protocol("a stream event that is not JSON"));
        };
        if chunk.error.is_some() || event.name == "error" {
            return self.fail(classify_inside(data.as_bytes(), secrets));
        }
        if let Some(usage) = chunk.usage() {
            self.usage = Some(usage);
            self.has_news = true;
        }
        // Only one choice is asked for; others would be somebody else's answer.
        for choice in chunk.choices.into_iter().flatten().filter(|choice| choice.index == 0) {
            let delta = choice.delta.map(|delta| (delta.content.0, delta.refusal.0));
            let (content, refusal) = delta.unwrap_or_default();
            if let Some(text) = content.filter(|text| !text.is_empty()).or(refusal).filter(|text| !text.is_empty()) {
                on_text(&text);
                self.has_text = true;
                self.has_news = true;
            }
            if let Some(reason) = choice.finish_reason.0 {
                self.finish_reason = Some(known_finish_reason(&reason));
                self.finished_at = Some(Instant::now());
                self.has_news = true;
            }
        }
    }
}
