//! OpenAI's JSON, as far as this service speaks it. Private to this folder.
//!
//! What is written is exact. What is read is read leniently: unknown fields are ignored, missing ones have a
//! meaning, and a field of an unexpected type counts as missing, because servers that only resemble OpenAI's
//! differ in exactly these.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

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

/// A whole answer, or the data of one event of a stream: both have the same form, but for `message` and `delta`.
///
/// Read by visitors of its own instead of a derived struct, which would fail over a field of another type, or over one
/// that stands there twice. Here an odd field counts as missing, and of two the last one counts.
#[derive(Debug, Default)]
pub(super) struct Chunk<'a> {
    /// Empty in the event that carries the usage, and in some that carry nothing.
    pub(super) choices: Vec<Choice<'a>>,
    /// Whether there was a list of choices, be it empty.
    pub(super) has_choices: bool,
    usage: Option<&'a RawValue>,
    /// A field of a server's own, such as `x_groq`, which may hold the usage.
    extension: Option<&'a RawValue>,
    /// Whether it tells an error.
    pub(super) has_error: bool,
}

impl Chunk<'_> {
    /// What the answer cost so far; most events do not say.
    pub(super) fn usage(&self) -> Option<Usage> {
        let inside = |raw: &RawValue| serde_json::from_str::<Holder<'_>>(raw.get()).ok().and_then(Holder::usage);
        let of_choice = || self.choices.iter().filter_map(|choice| choice.usage).find_map(read_usage);
        self.usage.and_then(read_usage).or_else(of_choice).or_else(|| self.extension.and_then(inside))
    }

    /// Whether it has nothing that belongs to an answer.
    pub(super) fn is_foreign(&self) -> bool {
        !self.has_choices && self.usage.is_none() && self.extension.is_none()
    }
}

/// Something else that holds a usage.
#[derive(Deserialize)]
struct Holder<'a> {
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
}

impl Holder<'_> {
    fn usage(self) -> Option<Usage> {
        read_usage(self.usage?)
    }
}

/// `None` when that is not an object, or one that says nothing: zeros are no counts.
fn read_usage(raw: &RawValue) -> Option<Usage> {
    let usage: WireUsage = serde_json::from_str(raw.get()).ok()?;
    Some(Usage::from(usage)).filter(|usage| *usage != Usage::default())
}

/// One of the answers that were asked for.
#[derive(Debug, Default)]
pub(super) struct Choice<'a> {
    pub(super) index: u64,
    /// Its `delta`, or, where it has none, its `message`.
    pub(super) said: Option<Delta<'a>>,
    pub(super) is_piece: bool,
    pub(super) finish_reason: Text<'a>,
    /// What a server behind the server said, where that is passed on.
    pub(super) native_finish_reason: Text<'a>,
    usage: Option<&'a RawValue>,
    /// The error that it tells, if any.
    pub(super) error: Option<&'a RawValue>,
}

/// A message, or a piece of one.
#[derive(Debug, Default)]
pub(super) struct Delta<'a> {
    pub(super) content: Text<'a>,
    pub(super) refusal: Text<'a>,
    /// Thought, which is billed and not passed on.
    pub(super) reasoning: Text<'a>,
    pub(super) tools: Option<&'a RawValue>,
    /// Whether it says anything else.
    pub(super) has_more: bool,
    pub(super) error: Option<&'a RawValue>,
}

impl<'a> Delta<'a> {
    /// The text to pass on: the model's, or the words with which it refused.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        self.content.filled().or_else(|| self.refusal.filled())
    }

    /// Whether it is more than a sign that the upstream is there.
    pub(super) fn says_something(&self) -> bool {
        let texts = [&self.content, &self.refusal, &self.reasoning];
        self.has_more || self.tools.is_some() || texts.iter().any(|text| text.has_text())
    }
}

/// The texts in calls of tools: their names and arguments, whole or in pieces.
pub(super) fn texts_of_tools(raw: &RawValue, mut on_text: impl FnMut(&str)) {
    fn walk(value: &Value, on_text: &mut impl FnMut(&str)) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| walk(item, on_text)),
            Value::Object(fields) => {
                for name in ["function", "name", "arguments"] {
                    match fields.get(name) {
                        Some(Value::String(text)) => on_text(text),
                        Some(inner) => walk(inner, on_text),
                        None => {}
                    }
                }
            }
            _ => {}
        }
    }
    if let Ok(value) = serde_json::from_str(raw.get()) {
        walk(&value, &mut on_text);
    }
}

/// Whether that is more than `null`, `false`, `0`, `""`, `{}` or `[]`: what counts as true where the libraries ask.
fn says(raw: &RawValue) -> bool {
    let text = raw.get();
    let is_empty = |open, close| {
        text.strip_prefix(open)
            .and_then(|rest: &str| rest.strip_suffix(close))
            .is_some_and(|rest| rest.trim().is_empty())
    };
    !(matches!(text, "null" | "false" | "0" | "\"\"") || is_empty('{', '}') || is_empty('[', ']'))
}

/// A type whose fields are read one by one.
trait Fields<'de>: Default {
    /// Reads the value of the field of that name, whatever it is.
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

impl<'de> Fields<'de> for Chunk<'de> {
    #[inline]
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "choices" => {
                let List(choices) = map.next_value()?;
                self.has_choices = choices.is_some();
                self.choices = choices.unwrap_or_default();
            }
            "usage" => self.usage = map.next_value()?,
            "error" | "errors" => self.has_error |= says(map.next_value()?),
            name if name.starts_with("x_") => self.extension = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Fields<'de> for Choice<'de> {
    #[inline]
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "index" => self.index = map.next_value::<Count>()?.0,
            "delta" => {
                let Object(delta) = map.next_value()?;
                if delta.is_some() || self.is_piece {
                    (self.is_piece, self.said) = (delta.is_some(), delta);
                }
            }
            "message" if self.is_piece => skip(map)?,
            "message" => self.said = map.next_value::<Object<_>>()?.0,
            "finish_reason" => self.finish_reason = map.next_value()?,
            "native_finish_reason" => self.native_finish_reason = map.next_value()?,
            "usage" => self.usage = map.next_value()?,
            "error" => self.error = map.next_value::<Option<&RawValue>>()?.filter(|raw| says(raw)),
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Fields<'de> for Delta<'de> {
    #[inline]
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "content" => self.content = map.next_value()?,
            "refusal" => self.refusal = map.next_value()?,
            "role" | "name" | "id" | "index" | "type" => skip(map)?,
            // The same thought may stand there by two names.
            "reasoning_content" | "reasoning" | "thinking" => {
                let text: Text<'_> = map.next_value()?;
                if text.has_text() {
                    self.reasoning = text;
                }
            }
            "tool_calls" | "function_call" => {
                let raw: &RawValue = map.next_value()?;
                if says(raw) {
                    self.tools = Some(raw);
                }
            }
            "error" => self.error = map.next_value::<Option<&RawValue>>()?.filter(|raw| says(raw)),
            _ => self.has_more |= says(map.next_value()?),
        }
        Ok(())
    }
}

/// A field's name.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(v.to_owned())))
            }
        }
        deserializer.deserialize_identifier(NameVisitor)
    }
}

#[inline]
fn fields_of<'de, T: Fields<'de>, A: MapAccess<'de>>(mut map: A) -> Result<T, A::Error> {
    let mut value = T::default();
    while let Some(Name(name)) = map.next_key()? {
        value.field(&name, &mut map)?;
    }
    Ok(value)
}

impl<'de> Deserialize<'de> for Chunk<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ChunkVisitor;
        impl<'de> Visitor<'de> for ChunkVisitor {
            type Value = Chunk<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                fields_of(map)
            }
        }
        deserializer.deserialize_map(ChunkVisitor)
    }
}

/// An object; anything else counts as none.
struct Object<T>(Option<T>);

/// A list of objects; what is none is left out, and anything but a list counts as none.
struct List<T>(Option<Vec<T>>);

/// Implements a visitor for the values that count as nothing.
macro_rules! nothing {
    ($nothing:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any value")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($nothing)
        }
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($nothing)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($nothing)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($nothing)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($nothing)
        }
    };
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Fields<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;
    nothing!(Object(None));
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Object(None))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Object(None))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Ok(Object(Some(fields_of(map)?)))
    }
}

impl<'de, T: Fields<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Fields<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = List<T>;
    nothing!(List(None));
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(List(None))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Object(item)) = seq.next_element()? {
            if let Some(item) = item {
                // There is nearly always one.
                items.reserve_exact(1);
                items.push(item);
            }
        }
        Ok(List(Some(items)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(List(None))
    }
}

impl<'de, T: Fields<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

/// Counts, each of which may be missing or odd. Some servers give them other names.
#[derive(Debug, Default)]
struct WireUsage {
    prompt_tokens: Count,
    completion_tokens: Count,
    total_tokens: Count,
}

impl<'de> Fields<'de> for WireUsage {
    #[inline]
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "prompt_tokens" | "input_tokens" => self.prompt_tokens = map.next_value()?,
            "completion_tokens" | "output_tokens" => self.completion_tokens = map.next_value()?,
            "total_tokens" => self.total_tokens = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for WireUsage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::deserialize(deserializer).map(|Object(usage)| usage.unwrap_or_default())
    }
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

/// A string; a list of strings and parts counts as their texts joined; anything else counts as no text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Text<'a>(pub(super) Option<Cow<'a, str>>);

impl<'a> Text<'a> {
    fn has_text(&self) -> bool {
        self.0.as_deref().is_some_and(|text| !text.is_empty())
    }

    /// The text, if there is any: the empty one is none.
    pub(super) fn filled(self) -> Option<Cow<'a, str>> {
        self.0.filter(|text| !text.is_empty())
    }
}

/// A count; a number with a fraction is cut, digits in a string are read, anything else counts as 0.
#[derive(Debug, Default)]
struct Count(u64);

/// A part of a list of texts.
#[derive(Default)]
struct Part<'a> {
    text: Text<'a>,
    is_thought: bool,
}

impl<'de> Fields<'de> for Part<'de> {
    #[inline]
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "text" => self.text = map.next_value()?,
            "type" => {
                let kind: Text<'_> = map.next_value()?;
                self.is_thought = matches!(kind.0.as_deref(), Some("thinking" | "reasoning"));
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// A part, or a string that stands for one.
struct PartText<'a>(Option<Cow<'a, str>>);

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = PartText<'de>;
    nothing!(PartText(None));
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(PartText(Some(Cow::Borrowed(v))))
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(PartText(Some(Cow::Owned(v.to_owned()))))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(PartText(None))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let part: Part<'de> = fields_of(map)?;
        Ok(PartText(if part.is_thought { None } else { part.text.0 }))
    }
}

impl<'de> Deserialize<'de> for PartText<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;
    nothing!(Text(None));
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Borrowed(v))))
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Owned(v.to_owned()))))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut joined: Option<String> = None;
        while let Some(PartText(part)) = seq.next_element()? {
            if let Some(text) = part {
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

struct CountVisitor;

impl<'de> Visitor<'de> for CountVisitor {
    type Value = Count;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Count(0))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Count(0))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Count(u64::try_from(v).unwrap_or(0)))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
        Ok(Count(v))
    }
    #[expect(clippy::as_conversions, reason = "a float to an integer saturates, which is what is wanted")]
    fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
        Ok(Count(v as u64))
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Count(v.trim().parse().unwrap_or(0)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Count(0))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Count(0))
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

/// A model of a list, as far as it is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WireModel {
    pub(super) id: String,
    /// Unix time in seconds.
    pub(super) created: i64,
    pub(super) owned_by: String,
}

/// The models of `GET /models`: a list by the name of `data` or `models`, or without a name. `None`: there is no list, or
/// nothing in it that names a model though there is something.
pub(super) fn models(body: &[u8]) -> Option<Vec<WireModel>> {
    let body: Value = serde_json::from_slice(body.strip_prefix(BOM).unwrap_or(body)).ok()?;
    let list = body.as_array().or_else(|| ["data", "models"].iter().find_map(|name| body.get(name)?.as_array()))?;
    let models: Vec<_> = list.iter().filter_map(model).collect();
    (!models.is_empty() || list.is_empty()).then_some(models)
}

fn model(entry: &Value) -> Option<WireModel> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let id = entry.as_str().or_else(|| ["id", "name", "model"].iter().find_map(|name| text(name)))?;
    let created = entry.get("created").and_then(Value::as_i64).unwrap_or(0);
    Some(WireModel { id: id.to_owned(), created, owned_by: text("owned_by").unwrap_or_default().to_owned() })
}

/// Stands before some texts, and says nothing.
const BOM: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use super::*;

    fn content(json: &str) -> Option<String> {
        let Object(message) = serde_json::from_str::<Object<Delta<'_>>>(json).unwrap();
        message.unwrap().content.0.map(Cow::into_owned)
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
            (r#"{"content":["a",null,7," b",{"type":"thinking","text":"x"},["y"]]}"#, Some("a b")),
            (r#"{"content":"first","content":"last"}"#, Some("last")),
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
}
