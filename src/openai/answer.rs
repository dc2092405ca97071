//! What comes back as a whole: read to its proper end, bounded, decoded leniently.

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_LENGTH, HeaderMap};

use crate::{
    message::Usage,
    openai::{
        classify::classify_inside,
        error::UpstreamError,
        redact::Secrets,
        transport::{Arrived, Response},
        wire::{self, ModelList},
    },
};

/// Most bytes a whole answer may have.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// A whole answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The model's text, or the words with which it refused.
    pub text: String,
    /// `None` when the upstream did not say.
    pub usage: Option<Usage>,
}

/// Shows the length of the text and never the text.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("bytes", &self.text.len()).field("usage", &self.usage).finish()
    }
}

/// A model that the upstream lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub id: String,
    /// Unix time in seconds; 0 when the upstream did not say.
    pub created: i64,
    pub owned_by: String,
}

/// The whole body, if it ends properly and is not longer than `limit`.
///
/// When as much has come as was announced, the answer is there; what ends the body may come behind it, and is waited for
/// in the background.
pub(super) async fn read(response: Response, limit: usize) -> Result<Bytes, UpstreamError> {
    let announced = announced(response.headers());
    if announced.is_some_and(|length| length > limit) {
        return Err(UpstreamError::TooLarge { limit });
    }
    let mut body = response.into_body();
    let first = match body.next().await {
        Arrived::Bytes(first) => first,
        Arrived::End => return Ok(Bytes::new()),
        Arrived::Broken => return Err(UpstreamError::Interrupted),
    };
    if Some(first.len()) == announced {
        body.finish();
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(announced.unwrap_or(0).max(first.len()));
    whole.extend_from_slice(&first);
    loop {
        match body.next().await {
            Arrived::Bytes(chunk) if whole.len() + chunk.len() > limit => {
                return Err(UpstreamError::TooLarge { limit });
            }
            Arrived::Bytes(chunk) => whole.extend_from_slice(&chunk),
            Arrived::End => return Ok(whole.freeze()),
            Arrived::Broken => return Err(UpstreamError::Interrupted),
        }
        if Some(whole.len()) == announced {
            body.finish();
            return Ok(whole.freeze());
        }
    }
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The text of a whole answer.
pub(super) fn decode(body: &[u8], secrets: &Secrets) -> Result<Answer, UpstreamError> {
    let malformed = |_| UpstreamError::Protocol("a body that is not a chat completion");
    let completion: wire::Completion<'_> = serde_json::from_slice(body).map_err(malformed)?;
    if completion.error.is_some() {
        return Err(classify_inside(body, secrets));
    }
    let usage = completion.usage();
    let choice = completion.choices.into_iter().flatten().next();
    let choice = choice.ok_or(UpstreamError::Protocol("no choices"))?;
    let (content, refusal) = choice.message.map(|m| (m.content.0, m.refusal.0)).unwrap_or_default();
    let text = content.filter(|text| !text.is_empty()).or(refusal);
    let finish_reason = choice.finish_reason.0.as_deref().map_or("unknown", known_finish_reason);
    match text {
        Some(text) => Ok(Answer { text: text.into_owned(), usage }),
        // A model may well have nothing to say; one that was cut off before its first word failed.
        None if finish_reason == "stop" => Ok(Answer { text: String::new(), usage }),
        None => Err(UpstreamError::Empty { finish_reason }),
    }
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

/// The models of a list.
pub(super) fn decode_models(body: &[u8]) -> Result<Vec<Model>, UpstreamError> {
    let list: ModelList =
        serde_json::from_slice(body).map_err(|_| UpstreamError::Protocol("a malformed model list"))?;
    Ok(list.data.into_iter().map(Model::from).collect())
}

impl From<wire::WireModel> for Model {
    fn from(model: wire::WireModel) -> Self {
        Self {
            id: model.id,
            created: model.created.and_then(|created| created.as_i64()).unwrap_or(0),
            owned_by: model.owned_by.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_decoded_leniently() {
        let text = |body: &str| decode(body.as_bytes(), &Secrets::default()).map(|answer| answer.text);
        let refused = r#"{"choices":[{"message":{"content":null,"refusal":"I can't."},"finish_reason":"stop"}]}"#;
        assert_eq!(text(refused).unwrap(), "I can't.");
        let silent = r#"{"choices":[{"message":{"content":null},"finish_reason":"stop"}],"usage":"odd"}"#;
        assert_eq!(text(silent).unwrap(), "");
        let spent = r#"{"choices":[{"message":{"content":""},"finish_reason":"length"}]}"#;
        assert_eq!(text(spent), Err(UpstreamError::Empty { finish_reason: "length" }));
        for none in [r"{}", r#"{"choices":[]}"#, r#"{"choices":null}"#] {
            assert_eq!(text(none), Err(UpstreamError::Protocol("no choices")), "{none}");
        }
        for garbage in ["", "<html>", "[]x", r#"{"choices":[{"message":{"content":"cut"#] {
            assert!(matches!(text(garbage), Err(UpstreamError::Protocol(_))), "{garbage}");
        }
    }

    #[test]
    fn an_error_in_a_200_counts_as_the_status_it_names() {
        let error = |body: &str| decode(body.as_bytes(), &Secrets::default()).unwrap_err();
        let limited = error(r#"{"error":{"message":"slow down","code":429}}"#);
        assert!(matches!(limited, UpstreamError::RateLimited { .. }), "{limited:?}");
        let failed = error(r#"{"error":{"message":"broke"},"choices":[]}"#);
        assert_eq!(failed, UpstreamError::Server { status: 502, retry_after: None });
    }
}
