//! What an upstream says of an error, in whatever wrapping it comes.

use serde_json::Value;

use crate::openai::sse::Decoder;

/// An error as its body tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    /// Empty where it gives no reason, and of a page of HTML.
    pub(super) message: String,
    pub(super) kind: String,
    pub(super) param: String,
    /// A number becomes its digits.
    pub(super) code: String,
    pub(super) form: Form,
}

/// What the body was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    #[default]
    Nothing,
    Json,
    Text,
    /// A page: made for people in front of a browser by whatever stands in between, and never quoted.
    Page,
}

/// By what names errors are wrapped, and reasons given.
const WRAPPINGS: [&str; 5] = ["error", "errors", "detail", "fault", "response"];
const REASONS: [&str; 8] = ["message", "msg", "detail", "error_message", "error_msg", "description", "title", "reason"];

/// Deeper than anybody wraps.
const MAX_WRAPPINGS: usize = 6;

impl ErrorBody {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
        if text.is_empty() {
            return Self::default();
        }
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            return Self { form: Form::Json, ..unwrapped(&value, 0) };
        }
        if let Some(value) = first_event(bytes) {
            return Self { form: Form::Json, ..unwrapped(&value, 0) };
        }
        let is_page = text.starts_with('<') || text.to_ascii_lowercase().contains("<html");
        // What is no text at all is not quoted either.
        let is_garbage =
            text.chars().any(|c| c == char::REPLACEMENT_CHARACTER || (c.is_control() && !c.is_whitespace()));
        if is_page || is_garbage {
            return Self { form: Form::Page, ..Self::default() };
        }
        Self { message: text.to_owned(), form: Form::Text, ..Self::default() }
    }
}

/// The JSON of the first event, if the body is a stream of them.
fn first_event(bytes: &[u8]) -> Option<Value> {
    let mut first = None;
    let mut decoder = Decoder::default();
    let mut take = |event: crate::openai::sse::Event<'_>| {
        first = first.take().or_else(|| serde_json::from_str(event.data).ok());
    };
    decoder.feed(bytes, &mut take).ok()?;
    decoder.finish(&mut take).ok()?;
    first
}

fn unwrapped(value: &Value, depth: usize) -> ErrorBody {
    if depth > MAX_WRAPPINGS {
        return ErrorBody::default();
    }
    match value {
        Value::String(text) => {
            // Some put the JSON of the server behind them into their own message.
            let inner = Some(text.trim()).filter(|text| text.starts_with(['{', '[']));
            match inner.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
                Some(inner) => unwrapped(&inner, depth + 1),
                None => ErrorBody { message: text.clone(), ..ErrorBody::default() },
            }
        }
        Value::Array(list) => list.first().map(|first| unwrapped(first, depth + 1)).unwrap_or_default(),
        Value::Object(fields) => {
            let text = |name: &str| match fields.get(name) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Number(number)) => number.to_string(),
                _ => String::new(),
            };
            let first_of = |names: &[&str]| names.iter().map(|name| text(name)).find(|text| !text.is_empty());
            let is_wrapped = |name: &&&str| {
                fields.get(**name).is_some_and(|inner| inner.is_object() || inner.is_array() || inner.is_string())
            };
            let inner = WRAPPINGS.iter().find(is_wrapped).and_then(|name| fields.get(*name));
            let inner = inner.map(|inner| unwrapped(inner, depth + 1)).unwrap_or_default();
            let own = first_of(&REASONS).unwrap_or_default();
            let own = if own.starts_with(['{', '[']) { unwrapped(&Value::String(own), depth + 1).message } else { own };
            let or = |inner: String, outer: String| if inner.is_empty() { outer } else { inner };
            ErrorBody {
                message: or(inner.message, own),
                kind: or(inner.kind, first_of(&["type", "status"]).unwrap_or_default()),
                param: or(inner.param, first_of(&["param", "parameter"]).unwrap_or_default()),
                code: or(inner.code, first_of(&["code", "error_code"]).unwrap_or_default()),
                form: Form::Json,
            }
        }
        _ => ErrorBody::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_in_every_wrapping() {
        let body = |message: &str, kind: &str, param: &str, code: &str| ErrorBody {
            message: message.into(),
            kind: kind.into(),
            param: param.into(),
            code: code.into(),
            form: Form::Json,
        };
        for (json, expected) in [
            (r#"{"error":{"message":"m","type":"t","param":null,"code":"c"}}"#, body("m", "t", "", "c")),
            (r#"{"error":{"message":"m","code":429}}"#, body("m", "", "", "429")),
            (r#"{"message":"m","type":"t","param":"p"}"#, body("m", "t", "p", "")),
            (r#"{"error":"plain"}"#, body("plain", "", "", "")),
            (r#"{"error":"plain","message":"m"}"#, body("plain", "", "", "")),
            (r#"{"error":null,"message":"m"}"#, body("m", "", "", "")),
            (r#"{"error":null}"#, body("", "", "", "")),
            (r#"[{"error":{"code":400,"message":"m","status":"S"}}]"#, body("m", "S", "", "400")),
            (r#"{"detail":"m"}"#, body("m", "", "", "")),
            (r#"{"detail":[{"loc":["body"],"msg":"m","type":"t"}]}"#, body("m", "t", "", "")),
            (r#"{"errors":[{"message":"m"}],"code":7}"#, body("m", "", "", "7")),
            (r#"{"error":{"error":{"message":"m"}}}"#, body("m", "", "", "")),
            (r#"{"error":{"message":"{\"error\":{\"message\":\"m\"}}","code":"c"}}"#, body("m", "", "", "c")),
            ("\u{feff}{\"msg\":\"m\"}", body("m", "", "", "")),
            ("data: {\"error\":{\"message\":\"m\"}}\n\ndata: [DONE]\n\n", body("m", "", "", "")),
            ("event: error\ndata: {\"message\":\"m\"}", body("m", "", "", "")),
            ("error: {\"code\":500,\"message\":\"m\"}\n\n", body("m", "", "", "500")),
            ("[]", body("", "", "", "")),
        ] {
            assert_eq!(ErrorBody::read(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn what_is_no_json_is_told_apart() {
        for (text, message, form) in [
            ("", "", Form::Nothing),
            (" \n", "", Form::Nothing),
            (" model is required\n", "model is required", Form::Text),
            ("<!doctype html><html>x</html>", "", Form::Page),
            ("oops <HTML>", "", Form::Page),
            ("\u{1f}\u{8b}\u{8}x", "", Form::Page),
        ] {
            let read = ErrorBody::read(text.as_bytes());
            assert_eq!((read.message.as_str(), read.form), (message, form), "{text:?}");
        }
    }
}
