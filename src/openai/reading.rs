//! What an upstream's answer says, whole or in pieces, and whether it is complete.
//!
//! There is one proof for all: a stream, a whole answer, one that comes as the other, what of it is stored and what is
//! charged. [`Reading::is_complete`] is the only place that decides it.
//!
//! | what the upstream said | it then | the answer |
//! |---|---|---|
//! | an error, wherever and by whatever name | whatever | failed |
//! | a finish reason with nothing beside or behind it | ends, breaks or falls silent | is complete |
//! | a finish reason beside text | says `[DONE]`, or ends in good order | is complete |
//! | text, and no finish reason | says `[DONE]` | is complete |
//! | anything else | whatever | is not |
//!
//! An empty finish reason is none, and one that names a failure is an error. What comes behind a finish reason takes it back.

use std::borrow::Cow;

use tokio::time::Instant;

use crate::{
    message::Usage,
    openai::{
        classify::classify_inside,
        cost::Cost,
        error::UpstreamError,
        lenient::{Halves, repaired},
        redact::Secrets,
        sse,
        wire::{self, Choice, Chunk, Delta},
    },
};

/// How an answer ended, according to the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Why the model stopped; some servers do not say.
    pub finish_reason: Option<&'static str>,
    pub usage: Option<Usage>,
}

/// How the upstream came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It said `[DONE]`.
    Said,
    /// The body ended in good order.
    Orderly,
    /// The connection broke, or it fell silent.
    Broken,
}

/// A reason that the upstream gave for the end.
#[derive(Clone, Copy, Debug)]
struct Finish {
    reason: &'static str,
    /// Whether it came without text beside it, as OpenAI sends it. Some servers send one with every piece.
    is_alone: bool,
    at: Instant,
}

/// What an answer has said so far.
#[derive(Debug)]
pub(super) struct Reading {
    secrets: Secrets,
    finish: Option<Finish>,
    /// Whether text has ever come, and whether it came in pieces.
    has_said: bool,
    has_deltas: bool,
    has_choice: bool,
    halves: Halves,
    /// Whether text has been handed on, and whether anything was said, since somebody asked.
    has_text: bool,
    has_news: bool,
    is_done: bool,
    failure: Option<UpstreamError>,
    is_refused: bool,
    cost: Cost,
}

impl Reading {
    pub(super) fn new(secrets: Secrets) -> Self {
        Self {
            secrets,
            finish: None,
            has_said: false,
            has_deltas: false,
            has_choice: false,
            halves: Halves::default(),
            has_text: false,
            has_news: false,
            is_done: false,
            failure: None,
            is_refused: false,
            cost: Cost::default(),
        }
    }

    /// The proof.
    fn is_complete(&self, end: End) -> bool {
        match (end, self.finish) {
            (End::Said, None) => self.has_said,
            (End::Said | End::Orderly, Some(_)) => true,
            (End::Broken, Some(finish)) => finish.is_alone,
            (End::Orderly | End::Broken, None) => false,
        }
    }

    /// The upstream has come to an end; `otherwise` is what that means for an answer that is not complete.
    pub(super) fn end(&mut self, end: End, otherwise: UpstreamError, on_text: &mut impl FnMut(&str)) {
        if self.is_over() {
            return;
        }
        if let Some(rest) = self.halves.rest() {
            self.say(rest.into(), false, on_text);
        }
        if self.is_complete(end) {
            self.is_done = true;
        } else {
            self.fail(otherwise);
        }
    }

    /// A whole answer has been read. The form proves that all of it is there, so that only what it says can tell otherwise.
    pub(super) fn end_of_whole(&mut self, on_text: &mut impl FnMut(&str)) {
        let finish_reason = self.finish.map_or("unknown", |finish| finish.reason);
        let empty = match self.has_choice {
            true => UpstreamError::Empty { finish_reason },
            false => UpstreamError::Protocol("no choices"),
        };
        // A model may well have nothing to say; one that was cut off before its first word failed.
        if self.has_said || finish_reason == "stop" {
            self.finish.get_or_insert(Finish { reason: finish_reason, is_alone: false, at: Instant::now() });
        } else {
            self.finish = None;
        }
        self.end(End::Orderly, empty, on_text);
    }

    pub(super) fn fail(&mut self, failure: UpstreamError) {
        if !self.is_done {
            self.is_refused = failure.is_refusal() && self.has_said_nothing();
            self.failure.get_or_insert(failure);
        }
    }

    /// Whether the upstream refused the question in place of an answer, which costs nothing.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Nothing that still comes matters.
    pub(super) fn is_over(&self) -> bool {
        self.is_done || self.failure.is_some()
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Whether text has been handed on since the last time.
    pub(super) fn take_has_text(&mut self) -> bool {
        std::mem::take(&mut self.has_text)
    }

    /// Whether the upstream has said anything of the answer since the last time: text or not, but more than that it is there.
    pub(super) fn take_has_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Since when only what comes behind the text is missing.
    pub(super) fn finished_at(&self) -> Option<Instant> {
        self.finish.filter(|finish| finish.is_alone).map(|finish| finish.at)
    }

    /// How it ended, once it has.
    pub(super) fn outcome(&mut self) -> Option<Result<Ending, UpstreamError>> {
        if let Some(failure) = self.failure.take() {
            return Some(Err(failure));
        }
        let finish_reason = self.finish.map(|finish| finish.reason);
        self.is_done.then_some(Ok(Ending { finish_reason, usage: self.cost.usage }))
    }

    /// What it has cost so far.
    pub(super) fn take_cost(&mut self) -> Cost {
        std::mem::take(&mut self.cost)
    }

    /// Whether nothing was said that may have been billed.
    pub(super) fn has_said_nothing(&self) -> bool {
        !self.has_said && self.cost.is_nothing()
    }

    /// Takes in an event of a stream.
    pub(super) fn event(&mut self, event: sse::Event<'_>, on_text: &mut impl FnMut(&str)) {
        if self.is_over() {
            return;
        }
        if event.data.starts_with("[DONE]") {
            return self.end(End::Said, UpstreamError::Truncated, on_text);
        }
        match serde_json::from_str::<Chunk<'_>>(event.data) {
            Ok(_) if event.name == "error" => self.fail(classify_inside(event.data.as_bytes(), &self.secrets)),
            Ok(chunk) => self.chunk(chunk, event.data, false, on_text),
            Err(_) => self.odd_event(event, on_text),
        }
    }

    /// An event whose data is no object of JSON.
    #[cold]
    fn odd_event(&mut self, event: sse::Event<'_>, on_text: &mut impl FnMut(&str)) {
        let data = event.data.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        if event.name == "error" {
            return self.fail(classify_inside(data.as_bytes(), &self.secrets));
        }
        if data.eq_ignore_ascii_case("[done]") || data.eq_ignore_ascii_case("\"[done]\"") {
            return self.end(End::Said, UpstreamError::Truncated, on_text);
        }
        if self.odd_json(data, on_text) {
            return;
        }
        if data.contains('\n') {
            // Events with one line feed between them, where two belong.
            return data.lines().for_each(|line| self.event(sse::Event { data: line, ..event }, on_text));
        }
        // A word is a sign that the upstream is there, whatever word it is.
        let is_word = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        let is_other_event = !matches!(event.name, "" | "message");
        if data.chars().all(is_word) || is_other_event || event.is_loose || self.finished_at().is_some() {
            return;
        }
        self.fail(UpstreamError::Protocol("a stream event that is not JSON"));
    }

    /// Whether that is JSON after all.
    fn odd_json(&mut self, json: &str, on_text: &mut impl FnMut(&str)) -> bool {
        if json.starts_with('[') && tells_error(json) {
            self.fail(classify_inside(json.as_bytes(), &self.secrets));
            return true;
        }
        let mended = repaired(json);
        let (json, has_halves) = mended.as_ref().map_or((json, false), |mended| (&mended.json, mended.has_halves));
        let Ok(chunk) = serde_json::from_str::<Chunk<'_>>(json) else { return false };
        self.chunk(chunk, json, has_halves, on_text);
        true
    }

    /// Takes in a whole answer. False: it is none.
    pub(super) fn whole(&mut self, body: &[u8], on_text: &mut impl FnMut(&str)) -> bool {
        if let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(body) {
            let json = std::str::from_utf8(body).unwrap_or_default();
            self.chunk(chunk, json, false, on_text);
        } else {
            let text = String::from_utf8_lossy(body);
            let json = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            if !self.odd_json(json, on_text) {
                return false;
            }
        }
        if let Some(rest) = self.halves.rest() {
            self.say(rest.into(), false, on_text);
        }
        true
    }

    /// `json` is what the chunk was read from.
    fn chunk(&mut self, chunk: Chunk<'_>, json: &str, has_halves: bool, on_text: &mut impl FnMut(&str)) {
        if let Some(usage) = chunk.usage() {
            self.cost.add_usage(usage);
            self.has_news = true;
        }
        let has_error = chunk.has_error || (chunk.is_foreign() && json.len() > 2 && tells_error(json));
        // Only one choice is asked for; others would be somebody else's answer.
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            self.choice(choice, has_halves, on_text);
        }
        if has_error {
            self.fail(classify_inside(json.as_bytes(), &self.secrets));
        }
    }

    fn choice(&mut self, choice: Choice<'_>, has_halves: bool, on_text: &mut impl FnMut(&str)) {
        let Choice { said, is_piece, finish_reason, native_finish_reason, error, .. } = choice;
        self.has_choice = true;
        // A stream may end with the whole message once more.
        let said = said.filter(|_| is_piece || !self.has_deltas);
        let told = error.or(said.as_ref().and_then(|said| said.error));
        let mut has_text = false;
        if let Some(said) = said.filter(Delta::says_something) {
            self.has_news = true;
            // Whatever was said of an end before, it was none.
            self.finish = None;
            self.cost.add_unseen(&said.reasoning);
            if let Some(tools) = said.tools {
                wire::texts_of_tools(tools, |text| self.cost.add_unseen_text(text));
            }
            if let Some(text) = said.text() {
                has_text = true;
                self.has_deltas |= is_piece;
                self.say(text, has_halves, on_text);
            }
        }
        if let Some(told) = told {
            self.fail(classify_inside(told.get().as_bytes(), &self.secrets));
        }
        let native = native_finish_reason.filled();
        for reason in finish_reason.filled().into_iter().chain(native.filter(|reason| names_failure(reason))) {
            self.has_news = true;
            if names_failure(&reason) {
                self.fail(UpstreamError::Server { status: 502, retry_after: None });
            } else {
                let reason = known_finish_reason(&reason);
                self.finish = Some(Finish { reason, is_alone: !has_text, at: Instant::now() });
            }
        }
    }

    fn say(&mut self, text: Cow<'_, str>, has_halves: bool, on_text: &mut impl FnMut(&str)) {
        let text = self.halves.join(text, has_halves);
        if !text.is_empty() {
            on_text(&text);
            (self.has_said, self.has_text) = (true, true);
        }
    }
}

/// Whether an object that belongs to no answer tells an error, wherever it does.
#[cold]
fn tells_error(json: &str) -> bool {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(json) else { return false };
    let value = value.as_array().and_then(|list| list.first()).unwrap_or(&value);
    let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let number = |name: &str| value.get(name).and_then(serde_json::Value::as_u64);
    let says_why = ["message", "detail", "msg", "error_message", "error_msg"].iter().any(|name| !text(name).is_empty());
    let is_status = |name| number(name).is_some_and(|status| (400..600).contains(&status));
    let is_named = ["object", "type", "status", "event", "level"].iter().any(|name| names_failure(text(name)));
    let is_coded = ["code", "error_code", "errcode"].iter().any(|name| {
        number(name).is_some_and(|code| code != 0 && code != 200)
            || !matches!(text(name), "" | "0" | "200" | "ok" | "success")
    });
    let has_error = value.get("error").is_some_and(|error| error.as_str() != Some("") && !error.is_null());
    has_error
        || is_named
        || value.get("success").and_then(serde_json::Value::as_bool) == Some(false)
        || ["status", "status_code", "statusCode"].into_iter().any(is_status)
        || (says_why && is_coded)
}

/// Whether a reason for the end says that there was none: the upstream failed, gave up or was stopped.
fn names_failure(reason: &str) -> bool {
    const FAILURES: [&str; 11] = [
        "error",
        "fail",
        "abort",
        "cancel",
        "timeout",
        "timed_out",
        "interrupt",
        "insufficient",
        "overload",
        "exception",
        "disconnect",
    ];
    let reason = reason.to_ascii_lowercase();
    FAILURES.iter().any(|word| reason.contains(word))
}

/// The reason as one of OpenAI's own, so that no text of the upstream travels in it.
pub(super) fn known_finish_reason(reason: &str) -> &'static str {
    match reason {
        "stop" => "stop",
        "length" => "length",
        "content_filter" => "content_filter",
        "tool_calls" => "tool_calls",
        "function_call" => "function_call",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_from_what_is_none_whatever_it_is_called() {
        for error in [
            r#"{"message":"boom","code":500}"#,
            r#"{"detail":"boom","status":502}"#,
            r#"{"type":"ServerError"}"#,
            r#"{"status":"failed"}"#,
            r#"{"msg":"boom","code":"E17"}"#,
            r#"{"success":false}"#,
            r#"[{"error":{"message":"boom"}}]"#,
        ] {
            assert!(tells_error(error), "{error}");
        }
        for none in [
            r#"{"type":"ping"}"#,
            r#"{"id":"x","object":"chat.completion.chunk"}"#,
            r#"{"message":"processing"}"#,
            r#"{"message":"ok","code":0}"#,
            r#"{"status":"running"}"#,
            r#"{"error":null}"#,
            "[1]",
            "{",
        ] {
            assert!(!tells_error(none), "{none}");
        }
    }

    #[test]
    fn a_reason_that_names_a_failure_is_no_end() {
        for failure in
            ["error", "ERROR", "network_error", "abort", "cancelled", "insufficient_system_resource", "timeout"]
        {
            assert!(names_failure(failure), "{failure}");
        }
        for end in ["stop", "length", "content_filter", "tool_calls", "eos", "end_turn", "SAFETY", "max_tokens"] {
            assert!(!names_failure(end), "{end}");
        }
    }
}
