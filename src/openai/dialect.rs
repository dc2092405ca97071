//! What each model has taught us about the parameters it takes.
//!
//! Models differ: reasoning models refuse `max_tokens` and any `temperature`, some compatible servers know no
//! `max_completion_tokens`, others no `stream_options`. A table of models would age, and so would one of sentences: the
//! upstream's refusal names the parameter, wherever and however it does, and that is enough to ask once more without it. What
//! helped is remembered for the model, for a day; what did not help taught nothing.

use std::time::Duration;

use dashmap::DashMap;
use serde_json::Value;
use tokio::time::Instant;

use crate::openai::{
    classify::is_context,
    request::{Completion, Wish},
    told::ErrorBody,
};

/// How to write a request for one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dialect {
    pub(super) limit: Limit,
    /// The model takes no `temperature`.
    pub(super) no_temperature: bool,
    /// The server knows no `stream_options`.
    pub(super) no_stream_options: bool,
}

/// How the most tokens of an answer are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Limit {
    /// `max_tokens`
    #[default]
    Usual,
    /// `max_completion_tokens`
    Newer,
    /// Not at all.
    None,
}

/// The parameters that a refusal names, of those that this service sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    temperature: bool,
    stream_options: bool,
    max_tokens: bool,
    max_completion_tokens: bool,
}

/// Where a refusal repeats what was sent, and so names everything.
const ECHOES: [&str; 4] = ["input", "body", "request", "received"];

impl Refused {
    /// The one that the refusal says it is about; else all that its words name; else all that it names anywhere.
    pub(super) fn by(refusal: &[u8]) -> Self {
        let error = ErrorBody::read(refusal);
        if is_context(&error) {
            // Such a refusal counts what was asked for, and is about the messages.
            return Self::default();
        }
        let mut everywhere = Vec::new();
        match serde_json::from_slice(refusal) {
            Ok(value) => texts(&value, &mut everywhere),
            Err(_) => everywhere.push(String::from_utf8_lossy(refusal).into_owned()),
        }
        let named = [Self::named_in(&error.param), Self::named_in(&error.message)];
        let anywhere = || everywhere.iter().map(|text| Self::named_in(text)).fold(Self::default(), Self::or);
        named.into_iter().find(|named| *named != Self::default()).unwrap_or_else(anywhere)
    }

    fn named_in(text: &str) -> Self {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut named = Self::default();
        for word in text.split(|c| !is_part(c)) {
            match word {
                "temperature" => named.temperature = true,
                "stream_options" | "include_usage" => named.stream_options = true,
                "max_tokens" => named.max_tokens = true,
                "max_completion_tokens" => named.max_completion_tokens = true,
                _ => {}
            }
        }
        named
    }

    fn or(self, other: Self) -> Self {
        Self {
            temperature: self.temperature || other.temperature,
            stream_options: self.stream_options || other.stream_options,
            max_tokens: self.max_tokens || other.max_tokens,
            max_completion_tokens: self.max_completion_tokens || other.max_completion_tokens,
        }
    }

    fn names(self, limit: Limit) -> bool {
        match limit {
            Limit::Usual => self.max_tokens,
            Limit::Newer => self.max_completion_tokens,
            Limit::None => false,
        }
    }
}

/// Every text in a refusal but for what it repeats of the question.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| !ECHOES.contains(&name.as_str())) {
                found.push(name.clone());
                texts(value, found);
            }
        }
        _ => {}
    }
}

impl Dialect {
    /// The dialect to try next, or `None` when the refusal names nothing that can be written otherwise, or was `tried`.
    ///
    /// What the caller asked for by himself is not left out: it is his to know that the model does not take it.
    pub(super) fn repaired(self, refused: &Refused, completion: &Completion<'_>, tried: &[Self]) -> Option<Self> {
        let mut next = self;
        if refused.temperature && matches!(completion.temperature, Some(Wish::Ours(_))) {
            next.no_temperature = true;
        }
        next.no_stream_options |= refused.stream_options;
        if refused.names(self.limit) {
            let others = [Limit::Usual, Limit::Newer, Limit::None].into_iter();
            let may_go = |limit: &Limit| *limit != Limit::None || matches!(completion.max_tokens, Wish::Ours(_));
            let is_new = |limit: &Limit| *limit != self.limit && tried.iter().all(|before| before.limit != *limit);
            next.limit = others.filter(may_go).find(is_new).unwrap_or(self.limit);
        }
        (next != self).then_some(next)
    }
}

/// The dialects learned so far, by model. Models that take the usual parameters are not in it.
#[derive(Debug, Default)]
pub(super) struct Dialects(DashMap<String, (Dialect, Instant)>);

impl Dialects {
    /// Most models remembered. Only what an upstream has accepted is learned, so that these are models that exist.
    const MAX_MODELS: usize = 1000;

    /// How long it counts: servers are changed, and learn what they did not know.
    const LIFE: Duration = Duration::from_secs(24 * 3600);

    pub(super) fn of(&self, model: &str) -> Dialect {
        let known = self.0.get(model).filter(|known| known.1.elapsed() < Self::LIFE);
        known.map(|known| known.0).unwrap_or_default()
    }

    /// The upstream has accepted a question that was written like this, and not as it was written before.
    pub(super) fn learn(&self, model: &str, dialect: Dialect) {
        if self.0.len() >= Self::MAX_MODELS && !self.0.contains_key(model) {
            self.0.retain(|_, (_, learned)| learned.elapsed() < Self::LIFE);
            let oldest = self.0.iter().min_by_key(|entry| entry.1).map(|entry| entry.key().clone());
            if let Some(oldest) = oldest.filter(|_| self.0.len() >= Self::MAX_MODELS) {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(model.to_owned(), (dialect, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(temperature: Wish<f64>, max_tokens: Wish<u32>) -> Completion<'static> {
        Completion { model: "m", messages: &[], temperature: Some(temperature), max_tokens }
    }

    fn ours() -> Completion<'static> {
        completion(Wish::Ours(0.7), Wish::Ours(2000))
    }

    fn next(dialect: Dialect, body: &str, completion: &Completion<'_>, tried: &[Dialect]) -> Option<Dialect> {
        dialect.repaired(&Refused::by(body.as_bytes()), completion, tried)
    }

    #[test]
    fn a_refusal_is_recognised_by_the_name_in_it_whatever_stands_around_it() {
        for body in [
            r#"{"error":{"message":"Unsupported value: 'temperature' does not support 0.7","param":"temperature"}}"#,
            r#"{"error":{"message":"Model incompatible request argument supplied: temperature","param":null}}"#,
            r#"{"error":{"message":"invalid temperature: only 1 is allowed for this model"}}"#,
            r#"{"error":"`temperature` is deprecated for this model."}"#,
            r#"{"detail":[{"type":"extra_forbidden","loc":["body","temperature"],"msg":"no","input":{"max_tokens":1}}]}"#,
            "temperature: unknown field",
        ] {
            let expected = Dialect { no_temperature: true, ..Dialect::default() };
            assert_eq!(next(Dialect::default(), body, &ours(), &[]), Some(expected), "{body}");
        }
        let two = r#"{"message":"Unrecognized request arguments supplied: stream_options, temperature"}"#;
        let expected = Dialect { no_temperature: true, no_stream_options: true, ..Dialect::default() };
        assert_eq!(next(Dialect::default(), two, &ours(), &[]), Some(expected));
    }

    #[test]
    fn a_limit_is_written_by_its_other_name_and_then_left_out() {
        let (usual, limits) = (Dialect::default(), |limit| Dialect { limit, ..Dialect::default() });
        let (old, new) = ("max_tokens is not supported", "max_completion_tokens is unknown");
        assert_eq!(next(usual, old, &ours(), &[]), Some(limits(Limit::Newer)));
        assert_eq!(next(limits(Limit::Newer), new, &ours(), &[usual]), Some(limits(Limit::None)));
        assert_eq!(next(limits(Limit::Newer), new, &ours(), &[]), Some(usual), "one learned before may have aged");
        assert_eq!(next(limits(Limit::None), old, &ours(), &[usual]), None);
        let callers = completion(Wish::Ours(0.7), Wish::Callers(9));
        assert_eq!(next(usual, old, &callers, &[]), Some(limits(Limit::Newer)));
        assert_eq!(next(limits(Limit::Newer), new, &callers, &[usual]), None);
    }

    #[test]
    fn what_the_caller_asked_for_and_what_is_no_parameter_of_ours_is_not_repaired() {
        let callers = completion(Wish::Callers(0.2), Wish::Ours(2000));
        assert_eq!(next(Dialect::default(), "temperature is not supported", &callers, &[]), None);
        for other in [
            r#"{"error":{"message":"Unsupported parameter: 'top_p'","param":"top_p"}}"#,
            r#"{"error":{"message":"the temperatures are odd, mytemperature too"}}"#,
            r#"{"error":{"message":"maximum context length is 9 tokens; you asked for 2000 in max_tokens"}}"#,
            r#"{"detail":"bad","input":{"temperature":0.7}}"#,
            "{}",
            "",
        ] {
            assert_eq!(next(Dialect::default(), other, &ours(), &[]), None, "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_in_models_and_in_time() {
        let dialects = Dialects::default();
        let learned = Dialect { no_temperature: true, ..Dialect::default() };
        for n in 0..Dialects::MAX_MODELS + 5 {
            dialects.learn(&n.to_string(), learned);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(dialects.0.len(), Dialects::MAX_MODELS);
        assert_eq!((dialects.of("3"), dialects.of("1004")), (Dialect::default(), learned), "the oldest went");
        tokio::time::advance(Dialects::LIFE).await;
        assert_eq!(dialects.of("1004"), Dialect::default());
        dialects.learn("new", learned);
        assert_eq!(dialects.0.len(), 1, "what is too old is forgotten");
    }
}
