//! How a completion is written: the body that is sent, and its repair when the model refuses a parameter.

use bytes::Bytes;

use crate::{
    message::Message,
    openai::{
        dialect::Dialect,
        error::UpstreamError,
        wire::{CompletionRequest, ErrorBody, StreamOptions},
    },
};

/// What to ask a model.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    pub model: &'a str,
    pub messages: &'a [Message],
    /// 0 to 2.
    pub temperature: f64,
    /// Most tokens of the answer.
    pub max_tokens: u32,
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
    repairs_left: u32,
    body: Bytes,
}

impl<'a> Question<'a> {
    /// # Errors
    /// It cannot be written.
    pub(super) fn new(completion: &'a Completion<'a>, form: Form, dialect: Dialect) -> Result<Self, UpstreamError> {
        let body = encode(completion, dialect, form)?;
        // Two parameters can be written otherwise.
        Ok(Self { completion, form, dialect, repairs_left: 2, body })
    }

    pub(super) fn model(&self) -> &'a str {
        self.completion.model
    }

    pub(super) fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// Writes the completion otherwise, if `refusal` names a parameter for which that can be done. The dialect that
    /// it is written in then; `None` when nothing can be repaired.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn repair(&mut self, refusal: &[u8]) -> Result<Option<Dialect>, UpstreamError> {
        let repaired = ErrorBody::parse(refusal).and_then(|error| self.dialect.repaired(&error));
        let Some(dialect) = repaired.filter(|_| self.repairs_left > 0) else {
            return Ok(None);
        };
        self.repairs_left -= 1;
        self.dialect = dialect;
        self.body = encode(self.completion, dialect, self.form)?;
        Ok(Some(dialect))
    }
}

fn encode(completion: &Completion<'_>, dialect: Dialect, form: Form) -> Result<Bytes, UpstreamError> {
    let limit = Some(completion.max_tokens);
    let is_stream = form == Form::Stream;
    let request = CompletionRequest {
        model: completion.model,
        messages: completion.messages,
        temperature: (!dialect.no_temperature).then_some(completion.temperature),
        max_tokens: if dialect.newer_limit_name { None } else { limit },
        max_completion_tokens: if dialect.newer_limit_name { limit } else { None },
        stream: is_stream.then_some(true),
        stream_options: is_stream.then_some(StreamOptions { include_usage: true }),
    };
    // Room for all of it, so that writing does not move it again and again.
    let text: usize = completion.messages.iter().map(|message| message.content.len() + 64).sum();
    let mut body = Vec::with_capacity(text + 256);
    let written = serde_json::to_writer(&mut body, &request);
    written.map(|()| body.into()).map_err(|_| UpstreamError::Protocol("a request that cannot be written"))
}
