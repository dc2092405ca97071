//! What comes back as a whole: read to its proper end, bounded, decoded leniently.

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_LENGTH, HeaderMap};

use crate::{
    message::Usage,
    openai::{
        cost::Cost,
        error::UpstreamError,
        reading::{End, Ending, Reading},
        redact::Secrets,
        sse::{self, Decoder},
        transport::{Arrived, Response},
        wire,
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

/// The text of a whole answer, be it one or a stream that was sent in its place.
pub(super) fn decode(body: &[u8], secrets: &Secrets, cost: &mut Cost) -> Result<Answer, UpstreamError> {
    let mut reading = Reading::new(secrets.clone());
    let mut text = String::new();
    let mut on_text = |piece: &str| text.push_str(piece);
    if reading.whole(body, &mut on_text) {
        reading.end_of_whole(&mut on_text);
    } else {
        read_as_stream(body, &mut reading, &mut on_text)?;
    }
    let outcome = reading.outcome();
    if reading.is_refused() {
        cost.calls = cost.calls.saturating_sub(1);
    }
    cost.add(reading.take_cost());
    match outcome {
        // The same for a stream in its place: a reason that is no text's says what there was instead.
        Some(Ok(Ending { finish_reason, .. })) if text.is_empty() && finish_reason != Some("stop") => {
            Err(UpstreamError::Empty { finish_reason: finish_reason.unwrap_or("unknown") })
        }
        Some(Ok(ending)) => Ok(Answer { text, usage: ending.usage }),
        Some(Err(error)) => Err(error),
        None => Err(UpstreamError::Truncated),
    }
}

fn read_as_stream(body: &[u8], reading: &mut Reading, on_text: &mut impl FnMut(&str)) -> Result<(), UpstreamError> {
    let mut has_events = false;
    let mut decoder = Decoder::default();
    let mut take = |event: sse::Event<'_>| {
        has_events |= !event.is_loose || event.data.starts_with("[DONE]");
        reading.event(event, on_text);
    };
    let taken = decoder.feed(body, &mut take).and_then(|()| decoder.finish(&mut take));
    taken.map_err(|_| UpstreamError::TooLarge { limit: MAX_ANSWER_BYTES })?;
    if !has_events {
        return Err(UpstreamError::Protocol("a body that is not a chat completion"));
    }
    reading.end(End::Orderly, UpstreamError::Truncated, on_text);
    Ok(())
}

/// The models of a list.
pub(super) fn decode_models(body: &[u8]) -> Result<Vec<Model>, UpstreamError> {
    let models = wire::models(body).ok_or(UpstreamError::Protocol("a malformed model list"))?;
    Ok(models.into_iter().map(Model::from).collect())
}

impl From<wire::WireModel> for Model {
    fn from(model: wire::WireModel) -> Self {
        Self { id: model.id, created: model.created, owned_by: model.owned_by }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_decoded_leniently() {
        let text =
            |body: &str| decode(body.as_bytes(), &Secrets::default(), &mut Cost::default()).map(|answer| answer.text);
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
        let error = |body: &str| decode(body.as_bytes(), &Secrets::default(), &mut Cost::default()).unwrap_err();
        let limited = error(r#"{"error":{"message":"slow down","code":429}}"#);
        assert!(matches!(limited, UpstreamError::RateLimited { .. }), "{limited:?}");
        let failed = error(r#"{"error":{"message":"broke"},"choices":[]}"#);
        assert!(matches!(&failed, UpstreamError::Failed(said) if said.to_string() == "broke"), "{failed:?}");
    }
}
