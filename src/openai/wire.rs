//! OpenAI's JSON, as far as this service speaks it. Private to this folder.
//!
//! What is written is exact. What is read is read leniently: unknown fields are ignored, missing ones have a
//! meaning, and a field of an unexpected type counts as missing, because servers that only resemble OpenAI's
//! differ in exactly these.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::message::{Message, Usage};

/// Body of `POST /chat/completions`.
#[derive(Debug, Serialize)]
pub(super) struct CompletionRequest<'a> {
    pub(super) model: &'a str,
    pub(super) messages: &'a [Message],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stream_options: Option<StreamOptions>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
}

/// Body of a whole answer.
#[derive(Debug, Deserialize)]
pub(super) struct Completion<'a> {
    #[serde(default, borrow)]
    pub(super) choices: Option<Vec<Choice<'a>>>,
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    /// Some servers answer 200 with an error in the body.
    #[serde(default)]
    pub(super) error: Option<IgnoredAny>,
}

impl Completion<'_> {
    /// What the answer cost; `None` when that is missing or is not an object.
    pub(super) fn usage(&self) -> Option<Usage> {
        read_usage(self.usage?)
    }
}

fn read_usage(raw: &RawValue) -> Option<Usage> {
    let usage: WireUsage = serde_json::from_str(raw.get()).ok()?;
    Some(usage.into())
}

/// The data of one event of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk<'a> {
    /// Empty in the event that carries the usage, and in some that carry nothing.
    #[serde(default, borrow)]
    pub(super) choices: Option<Vec<ChunkChoice<'a>>>,
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) error: Option<IgnoredAny>,
}

impl Chunk<'_> {
    /// What the answer cost so far; most events do not say.
    pub(super) fn usage(&self) -> Option<Usage> {
        read_usage(self.usage?)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ChunkChoice<'a> {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(default, borrow)]
    pub(super) delta: Option<AnswerMessage<'a>>,
    #[serde(default, borrow)]
    pub(super) finish_reason: Text<'a>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(default, borrow)]
    pub(super) message: Option<AnswerMessage<'a>>,
    #[serde(default, borrow)]
    pub(super) finish_reason: Text<'a>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AnswerMessage<'a> {
    #[serde(default, borrow)]
    pub(super) content: Text<'a>,
    #[serde(default, borrow)]
    pub(super) refusal: Text<'a>,
}

/// Counts, each of which may be missing or odd.
#[derive(Debug, Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Count,
    #[serde(default)]
    completion_tokens: Count,
    #[serde(default)]
    total_tokens: Count,
}

impl From<WireUsage> for Usage {
    fn from(wire: WireUsage) -> Self {
        let (prompt, completion) = (wire.prompt_tokens.0, wire.completion_tokens.0);
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: wire.total_tokens.0.max(prompt.saturating_add(completion)),
        }
    }
}

/// A string; a list of parts counts as their texts joined; anything else counts as no text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Text<'a>(pub(super) Option<Cow<'a, str>>);

/// A count; a number with a fraction is cut, anything else counts as 0.
#[derive(Debug, Default)]
struct Count(u64);

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(default, borrow)]
    text: Text<'a>,
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Borrowed(v))))
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Owned(v.to_owned()))))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Text(None))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Text(None))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Text(None))
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Text(None))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Text(None))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut joined: Option<String> = None;
        while let Some(part) = seq.next_element::<Part<'de>>()? {
            if let Some(text) = part.text.0 {
                joined.get_or_insert_default().push_str(&text);
            }
        }
        Ok(Text(joined.map(Cow::Owned)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        #[expect(clippy::as_conversions, reason = "a float to an integer saturates, which is what is wanted")]
        let cut = || value.as_f64().map(|n| n as u64);
        Ok(Self(value.as_u64().or_else(cut).unwrap_or(0)))
    }
}

/// Body of `GET /models`.
#[derive(Debug, Deserialize)]
pub(super) struct ModelList {
    #[serde(default)]
    pub(super) data: Vec<WireModel>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireModel {
    pub(super) id: String,
    /// Unix time in seconds.
    #[serde(default)]
    pub(super) created: Option<serde_json::Number>,
    #[serde(default)]
    pub(super) owned_by: Option<String>,
}

/// An error body, in whatever form: `{"error":{…}}`, the inner object alone, or not JSON at all.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    pub(super) message: String,
    pub(super) kind: String,
    pub(super) param: String,
    /// A number becomes its digits.
    pub(super) code: String,
}

impl ErrorBody {
    /// `None` when it is not JSON.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let body: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        let inner = body.get("error").unwrap_or(&body);
        let field = |name: &str| match inner.get(name) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let message = inner.as_str().map_or_else(|| field("message"), str::to_owned);
        Some(Self { message, kind: field("type"), param: field("param"), code: field("code") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(json: &str) -> Option<String> {
        let message: AnswerMessage<'_> = serde_json::from_str(json).unwrap();
        message.content.0.map(Cow::into_owned)
    }

    #[test]
    fn content_is_read_in_every_form_that_servers_send() {
        for (json, expected) in [
            (r#"{"content":"hi"}"#, Some("hi")),
            (r#"{"content":"안\n녕","x":{"y":[1]}}"#, Some("안\n녕")),
            (r#"{"content":""}"#, Some("")),
            (r#"{"content":null}"#, None),
            (r"{}", None),
            (r#"{"content":[{"type":"text","text":"a"},{"type":"image"},{"text":"b"}]}"#, Some("ab")),
            (r#"{"content":{"text":"x"}}"#, None),
            (r#"{"content":7}"#, None),
            (r#"{"content":false}"#, None),
        ] {
            assert_eq!(content(json).as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn usage_is_read_whatever_is_missing_in_it() {
        for (json, expected) in [
            (r#"{"prompt_tokens":10,"completion_tokens":15,"total_tokens":25,"x":{}}"#, (10, 15, 25)),
            (r#"{"prompt_tokens":10,"completion_tokens":15}"#, (10, 15, 25)),
            (r#"{"prompt_tokens":10.0,"completion_tokens":null,"total_tokens":"many"}"#, (10, 0, 10)),
            (r"{}", (0, 0, 0)),
        ] {
            let usage = Usage::from(serde_json::from_str::<WireUsage>(json).unwrap());
            assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), expected, "{json}");
        }
    }

    #[test]
    fn error_bodies_are_read_in_every_form_that_servers_send() {
        let body = |message: &str, kind: &str, param: &str, code: &str| ErrorBody {
            message: message.into(),
            kind: kind.into(),
            param: param.into(),
            code: code.into(),
        };
        for (json, expected) in [
            (r#"{"error":{"message":"m","type":"t","param":null,"code":"c"}}"#, Some(body("m", "t", "", "c"))),
            (r#"{"error":{"message":"m","code":429}}"#, Some(body("m", "", "", "429"))),
            (r#"{"message":"m","type":"t","param":"p"}"#, Some(body("m", "t", "p", ""))),
            (r#"{"error":"plain"}"#, Some(body("plain", "", "", ""))),
            (r#"{"error":null}"#, Some(body("", "", "", ""))),
            ("[]", Some(body("", "", "", ""))),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(ErrorBody::parse(json.as_bytes()), expected, "{json}");
        }
    }
}
