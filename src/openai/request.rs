//! How a completion is written: the body that is sent, and its repair when the model refuses a parameter.

use bytes::Bytes;

use crate::{
    message::Message,
    openai::{
        dialect::{Dialect, Limit, Refused},
        error::UpstreamError,
        wire::{CompletionRequest, StreamOptions},
    },
};

/// What to ask a model.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    pub model: &'a str,
    pub messages: &'a [Message],
    /// 0 to 2; `None` leaves it to the model.
    pub temperature: Option<Wish<f64>>,
    /// Most tokens of the answer.
    pub max_tokens: Wish<u32>,
}

/// A parameter's value, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish<T> {
    /// The caller named it: it is never left out behind his back.
    Callers(T),
    /// This service's own: who asked misses nothing without it.
    Ours(T),
}

impl<T: Copy> Wish<T> {
    /// What the caller named, or else `ours`.
    pub fn or(callers: Option<T>, ours: T) -> Self {
        callers.map_or(Self::Ours(ours), Self::Callers)
    }

    pub fn value(self) -> T {
        let (Self::Callers(value) | Self::Ours(value)) = self;
        value
    }

    /// What is left of it where the model takes no such parameter.
    pub(super) fn unless_ours(self, is_refused: bool) -> Option<T> {
        match self {
            Self::Ours(_) if is_refused => None,
            wish => Some(wish.value()),
        }
    }
}

/// How an answer is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Whole,
    Stream,
}

/// A completion as it is written for its model. However often it is sent, it is written once for each dialect.
#[derive(Debug)]
pub(super) struct Question<'a> {
    completion: &'a Completion<'a>,
    form: Form,
    dialect: Dialect,
    /// How it has been written before.
    tried: Vec<Dialect>,
    body: Bytes,
}

impl<'a> Question<'a> {
    /// # Errors
    /// It cannot be written.
    pub(super) fn new(completion: &'a Completion<'a>, form: Form, dialect: Dialect) -> Result<Self, UpstreamError> {
        let body = encode(completion, dialect, form)?;
        Ok(Self { completion, form, dialect, tried: Vec::new(), body })
    }

    pub(super) fn model(&self) -> &'a str {
        self.completion.model
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    pub(super) fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// The dialect that was found out by asking, if any had to be.
    pub(super) fn found_out(&self) -> Option<Dialect> {
        (!self.tried.is_empty()).then_some(self.dialect)
    }

    /// Writes the completion otherwise, if `refusal` names a parameter for which that can be done and was not done before.
    /// False: nothing can be repaired.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn repair(&mut self, refusal: &[u8]) -> Result<bool, UpstreamError> {
        let Some(dialect) = self.dialect.repaired(&Refused::by(refusal), self.completion, &self.tried) else {
            return Ok(false);
        };
        let body = encode(self.completion, dialect, self.form)?;
        if body == self.body {
            return Ok(false);
        }
        self.tried.push(std::mem::replace(&mut self.dialect, dialect));
        self.body = body;
        Ok(true)
    }
}

fn encode(completion: &Completion<'_>, dialect: Dialect, form: Form) -> Result<Bytes, UpstreamError> {
    let limit = completion.max_tokens.unless_ours(dialect.limit == Limit::None);
    // A caller's limit that is refused by both names goes out by the usual one, for the upstream to say so.
    let is_newer = dialect.limit == Limit::Newer;
    let is_stream = form == Form::Stream;
    let request = CompletionRequest {
        model: completion.model,
        messages: completion.messages,
        temperature: completion.temperature.and_then(|wish| wish.unless_ours(dialect.no_temperature)),
        max_tokens: if is_newer { None } else { limit },
        max_completion_tokens: if is_newer { limit } else { None },
        stream: is_stream.then_some(true),
        stream_options: (is_stream && !dialect.no_stream_options).then_some(StreamOptions { include_usage: true }),
    };
    // Room for all of it, so that writing does not move it again and again.
    let text: usize = completion.messages.iter().map(|message| message.content.len() + 64).sum();
    let mut body = Vec::with_capacity(text + 256);
    let written = serde_json::to_writer(&mut body, &request);
    written.map(|()| body.into()).map_err(|_| UpstreamError::Protocol("a request that cannot be written"))
}
