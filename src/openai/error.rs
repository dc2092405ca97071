//! What can go wrong with the upstream, by cause. No text here carries a URL, a key or a message.

use std::time::Duration;

use crate::openai::redact::Secrets;

/// Why the upstream gave no answer. Each variant is a cause; which status a caller sees is decided in `api::error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection: refused, unreachable, or the name is unknown.
    #[error("Failed to connect to OpenAI API: {0}")]
    Unreachable(ConnectFailure),
    /// No connection, or no first byte, or no last byte, in the time allowed.
    #[error("OpenAI API gave no {stage} within {limit:?}")]
    Timeout { stage: Stage, limit: Duration },
    /// The connection broke, or the answer ended early.
    #[error("the connection to OpenAI API broke before the answer was complete")]
    Interrupted,
    /// A stream ended in good order, but never said that the answer was complete.
    #[error("OpenAI API ended the stream before the answer was complete")]
    Truncated,
    /// Something that is not an answer: HTML, malformed JSON, a redirect, no choices.
    #[error("OpenAI API gave something that is not an answer: {0}")]
    Protocol(&'static str),
    /// The same, where asking again would bring the same: there is no chat API at this address, or it answers in a way that
    /// was not asked for.
    #[error("OpenAI API gave something that is not an answer: {0}")]
    Unusable(&'static str),
    /// The upstream told an error in place of an answer, or in the middle of one.
    #[error("{0}")]
    Failed(Said),
    /// More bytes than an answer may have.
    #[error("OpenAI API gave more than {limit} bytes")]
    TooLarge { limit: usize },
    /// A complete answer without a word of text, such as a reasoning model whose token budget ran out.
    #[error("the model finished ({finish_reason}) without any text; a larger max_tokens may help")]
    Empty { finish_reason: &'static str },
    /// The messages do not fit the model.
    #[error("{0}")]
    ContextTooLong(Said),
    /// A parameter that this model does not take.
    #[error("{0}")]
    InvalidRequest(Said),
    /// No such model, or none that this key may use.
    #[error("{0}")]
    ModelNotFound(Said),
    /// Too many requests or tokens in a short time.
    #[error("{message}")]
    RateLimited { message: Said, retry_after: Option<Duration> },
    /// Our key was refused. The upstream's text names the key, so it is not kept.
    #[error("OpenAI API did not accept this service's credentials")]
    Unauthorized,
    /// The account has no money or no quota left.
    #[error("the quota of this service's OpenAI account is used up")]
    QuotaExceeded,
    /// The upstream has more to do than it can.
    #[error("OpenAI API is overloaded")]
    Overloaded { retry_after: Option<Duration> },
    /// The upstream has failed so often that it is not asked now.
    #[error("OpenAI API has failed too often and is not asked for now")]
    Unavailable { retry_after: Duration },
    /// The upstream failed.
    #[error("OpenAI API failed with status {status}")]
    Server { status: u16, retry_after: Option<Duration> },
}

impl UpstreamError {
    /// Whether another key might get another answer.
    pub(super) fn is_about_the_key(&self) -> bool {
        matches!(self, Self::Unauthorized | Self::QuotaExceeded | Self::RateLimited { .. })
    }

    /// Whether the upstream says that it did not take the question, which then costs nothing.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::ContextTooLong(_)
                | Self::InvalidRequest(_)
                | Self::ModelNotFound(_)
                | Self::RateLimited { .. }
                | Self::Unauthorized
                | Self::QuotaExceeded
                | Self::Overloaded { .. }
        )
    }

    /// Whether a question that ended like this, before the head of an answer that is one, may have been billed: it was
    /// taken, and nobody said that it was refused.
    pub(super) fn may_have_been_billed(&self) -> bool {
        match self {
            Self::Interrupted => true,
            Self::Timeout { stage, .. } => *stage != Stage::Connect,
            _ => false,
        }
    }

    /// The error in this service's own words; `None` where the words are the upstream's, which may quote a prompt.
    #[must_use]
    pub fn in_own_words(&self) -> Option<String> {
        match self {
            Self::ContextTooLong(_)
            | Self::InvalidRequest(_)
            | Self::ModelNotFound(_)
            | Self::RateLimited { .. }
            | Self::Failed(_) => None,
            error => Some(error.to_string()),
        }
    }
}

/// How connecting failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectFailure {
    #[error("the connection was refused or the host is unreachable")]
    Refused,
    #[error("the host name cannot be resolved")]
    UnknownHost,
    #[error("TLS failed")]
    Tls,
    /// And with what.
    #[error("the proxy in between refused the connection")]
    Proxy(&'static str),
}

/// What was waited for in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stage {
    #[error("connection")]
    Connect,
    #[error("answer")]
    FirstByte,
    #[error("end of its answer")]
    Total,
    #[error("first word")]
    FirstToken,
    #[error("further word")]
    Idle,
}

/// The upstream's own words, without anything that looks like a credential and not longer than 500 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// Longest text passed on, in characters.
    pub const MAX_CHARS: usize = 500;

    pub(super) fn new(text: &str, secrets: &Secrets) -> Self {
        Self(secrets.redact(text).chars().take(Self::MAX_CHARS).collect())
    }

    /// In our own words, where a proxy gives a page instead of any.
    pub(super) fn too_large() -> Self {
        Self("the question is too large for the upstream".to_owned())
    }

    /// In our own words, for those who did not ask the upstream themselves: what it said was for somebody else.
    pub(super) fn every_key_is_limited() -> Self {
        Self("OpenAI API limits this service for the model for now".to_owned())
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
