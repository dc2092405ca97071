//! Reading a JSON body field by field, and saying what is wrong with it the way FastAPI does.
//!
//! Two steps. Decoding takes the body apart in one pass: a field that is wanted becomes a [`Scalar`], a list or an
//! object, everything else is skipped without being kept. Judging then turns each into a value or an [`Issue`],
//! so that all mistakes are reported together and in the order of the fields, whatever order the caller wrote.

use std::{borrow::Cow, fmt, marker::PhantomData, ops::RangeInclusive};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json};

/// One mistake, in Pydantic's form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Issue {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) loc: Vec<Loc>,
    pub(crate) msg: Cow<'static, str>,
    /// What was given; left out for anything that may hold a message's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) input: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ctx: Option<Value>,
}

/// A step of the way to the mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Loc {
    Name(&'static str),
    Index(usize),
}

impl Issue {
    pub(crate) fn new(kind: &'static str, loc: Vec<Loc>, msg: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, loc, msg: msg.into(), input: None, ctx: None }
    }

    pub(crate) fn input(mut self, input: Option<Value>) -> Self {
        self.input = input;
        self
    }

    pub(crate) fn ctx(mut self, ctx: Value) -> Self {
        self.ctx = Some(ctx);
        self
    }

    /// A field that is not there. Its parent is the input, which is shown only when there is nothing in it.
    fn missing(loc: Vec<Loc>, parent_is_empty: bool) -> Self {
        Self::new("missing", loc, "Field required").input(parent_is_empty.then(|| json!({})))
    }

    pub(crate) fn not_an_object(loc: Vec<Loc>) -> Self {
        let msg = "Input should be a valid dictionary or object to extract fields from";
        Self::new("model_attributes_type", loc, msg)
    }
}

/// A value as far as a field of text or number needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scalar<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// An integer beyond `i64`, or a number with a fraction or an exponent.
    Float(f64),
    Text(Cow<'a, str>),
    List,
    Object,
}

impl Scalar<'_> {
    /// What an error may show of it: a number's own forms, and short texts where a number was wanted.
    fn shown(&self) -> Option<Value> {
        match self {
            Self::Null => Some(Value::Null),
            Self::Bool(value) => Some(json!(value)),
            Self::Int(value) => Some(json!(value)),
            Self::Float(value) => Some(json!(value)),
            Self::Text(text) => Some(json!(text.chars().take(64).collect::<String>())),
            Self::List | Self::Object => None,
        }
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Int(v))
    }
    #[expect(clippy::as_conversions, reason = "beyond i64 only the size matters")]
    fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(v).map_or(Scalar::Float(v as f64), Scalar::Int))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Float(v))
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(v)))
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(v.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        skip_seq(seq)?;
        Ok(Scalar::List)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        skip_map(map)?;
        Ok(Scalar::Object)
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

fn skip_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

fn skip_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

/// The fields of one kind of object, filled as they are met. A field that is met twice counts as it was last.
pub(crate) trait Fields<'de>: Default {
    /// Takes the value of `name` from `map`, or skips it.
    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

/// What stands where an object should.
#[derive(Debug)]
pub(crate) enum Object<F> {
    Fields {
        fields: F,
        is_empty: bool,
    },
    /// Something else.
    Other,
}

struct ObjectVisitor<F>(PhantomData<F>);

impl<'de, F: Fields<'de>> Visitor<'de> for ObjectVisitor<F> {
    type Value = Object<F>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = F::default();
        let mut is_empty = true;
        while let Some(key) = map.next_key::<Scalar<'de>>()? {
            is_empty = false;
            let Scalar::Text(name) = key else {
                return Err(A::Error::custom("a key is not a string"));
            };
            fields.take(&name, &mut map)?;
        }
        Ok(Object::Fields { fields, is_empty })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        skip_seq(seq)?;
        Ok(Object::Other)
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Object::Other)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Object::Other)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Object::Other)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Object::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Object::Other)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Object::Other)
    }
}

impl<'de, F: Fields<'de>> Deserialize<'de> for Object<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ObjectVisitor(PhantomData))
    }
}

/// What stands where a list of objects should. At most `MAX` are kept; the rest are only counted.
#[derive(Debug, Default)]
pub(crate) enum List<F, const MAX: usize> {
    #[default]
    Null,
    Items {
        items: Vec<Object<F>>,
        count: usize,
    },
    /// Something else.
    Other,
}

struct ListVisitor<F, const MAX: usize>(PhantomData<F>);

impl<'de, F: Fields<'de>, const MAX: usize> Visitor<'de> for ListVisitor<F, MAX> {
    type Value = List<F, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() < MAX {
            let Some(item) = seq.next_element()? else { break };
            items.push(item);
        }
        let mut count = items.len();
        if count == MAX {
            while seq.next_element::<IgnoredAny>()?.is_some() {
                count += 1;
            }
        }
        Ok(List::Items { items, count })
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(List::Null)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        skip_map(map)?;
        Ok(List::Other)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(List::Other)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(List::Other)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(List::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(List::Other)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(List::Other)
    }
}

impl<'de, F: Fields<'de>, const MAX: usize> Deserialize<'de> for List<F, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

/// Turns decoded fields into values and collects what is wrong with them.
#[derive(Debug)]
pub(crate) struct Judge {
    path: Vec<Loc>,
    issues: Vec<Issue>,
}

impl Judge {
    /// Most issues that are reported, so that a body of mistakes does not become an answer many times its size.
    pub(crate) const MAX_ISSUES: usize = 100;

    pub(crate) fn new() -> Self {
        Self { path: vec![Loc::Name("body")], issues: Vec::new() }
    }

    /// `value`, if nothing was wrong.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, Vec<Issue>> {
        if self.issues.is_empty() { Ok(value) } else { Err(self.issues) }
    }

    pub(crate) fn report(&mut self, issue: Issue) {
        if self.issues.len() < Self::MAX_ISSUES {
            self.issues.push(issue);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.issues.len() >= Self::MAX_ISSUES
    }

    /// Judges what lies at `step` below where it is now.
    pub(crate) fn at<T>(&mut self, step: Loc, judge: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let value = judge(self);
        self.path.pop();
        value
    }

    pub(crate) fn loc(&self, name: &'static str) -> Vec<Loc> {
        self.path.iter().cloned().chain([Loc::Name(name)]).collect()
    }

    pub(crate) fn here(&self) -> Vec<Loc> {
        self.path.clone()
    }

    /// A text that must be there. Its content is never shown.
    pub(crate) fn required_text(
        &mut self,
        name: &'static str,
        field: Option<Scalar<'_>>,
        parent_is_empty: bool,
    ) -> String {
        let issue = match field {
            Some(Scalar::Text(text)) => return text.into_owned(),
            Some(_) => Issue::new("string_type", self.loc(name), "Input should be a valid string"),
            None => Issue::missing(self.loc(name), parent_is_empty),
        };
        self.report(issue);
        String::new()
    }

    /// A text or null. Its content is never shown.
    pub(crate) fn optional_text(&mut self, name: &'static str, field: Option<Scalar<'_>>) -> Option<String> {
        match field {
            None | Some(Scalar::Null) => None,
            field => Some(self.required_text(name, field, false)),
        }
    }

    /// A number or null; a numeric string counts, `true` does not.
    pub(crate) fn optional_number(
        &mut self,
        name: &'static str,
        field: Option<Scalar<'_>>,
        range: RangeInclusive<f64>,
    ) -> Option<f64> {
        let field = field?;
        let value = match &field {
            Scalar::Null => return None,
            #[expect(clippy::as_conversions, reason = "what is lost is far out of any range")]
            Scalar::Int(value) => Ok(*value as f64),
            Scalar::Float(value) => Ok(*value),
            Scalar::Text(text) => parse_number(text)
                .ok_or(("float_parsing", "Input should be a valid number, unable to parse string as a number")),
            _ => Err(("float_type", "Input should be a valid number")),
        };
        let issue = match value {
            // Pydantic looks at the upper bound first, which is what NaN fails at.
            Ok(value) if value.is_nan() || value > *range.end() => bound_issue("le", self.loc(name), range.end()),
            Ok(value) if value < *range.start() => bound_issue("ge", self.loc(name), range.start()),
            Ok(value) => return Some(value),
            Err((kind, msg)) => Issue::new(kind, self.loc(name), msg),
        };
        self.report(issue.input(field.shown()));
        None
    }

    /// A whole number or null; a numeric string and `5.0` count, `true` does not.
    pub(crate) fn optional_integer(
        &mut self,
        name: &'static str,
        field: Option<Scalar<'_>>,
        range: RangeInclusive<u32>,
    ) -> Option<u32> {
        let field = field?;
        let too_large = ("int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size");
        let value = match &field {
            Scalar::Null => return None,
            Scalar::Int(value) => Ok(*value),
            Scalar::Float(value) if value.fract() != 0.0 => {
                Err(("int_from_float", "Input should be a valid integer, got a number with a fractional part"))
            }
            Scalar::Float(value) => whole(*value).ok_or(too_large),
            Scalar::Text(text) => parse_integer(text)
                .ok_or(("int_parsing", "Input should be a valid integer, unable to parse string as an integer")),
            _ => Err(("int_type", "Input should be a valid integer")),
        };
        let issue = match value {
            Ok(value) if value < i64::from(*range.start()) => bound_issue("ge", self.loc(name), range.start()),
            Ok(value) => match u32::try_from(value).ok().filter(|value| range.contains(value)) {
                Some(value) => return Some(value),
                None => bound_issue("le", self.loc(name), range.end()),
            },
            Err((kind, msg)) => Issue::new(kind, self.loc(name), msg),
        };
        self.report(issue.input(field.shown()));
        None
    }
}

fn bound_issue(bound: &'static str, loc: Vec<Loc>, limit: &(impl fmt::Display + Serialize)) -> Issue {
    let (kind, words) = match bound {
        "le" => ("less_than_equal", "less"),
        _ => ("greater_than_equal", "greater"),
    };
    Issue::new(kind, loc, format!("Input should be {words} than or equal to {limit}")).ctx(json!({ bound: limit }))
}

/// As Pydantic reads it: outer space and underscores between digits are allowed.
fn parse_number(text: &str) -> Option<f64> {
    without_underscores(text.trim())?.parse().ok()
}

/// As Pydantic reads it: also a sign, leading zeros and a fraction of zeros.
fn parse_integer(text: &str) -> Option<i64> {
    let text = without_underscores(text.trim())?;
    let digits = match text.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.bytes().all(|b| b == b'0') => whole,
        Some(_) => return None,
        None => &text,
    };
    digits.parse().ok()
}

fn without_underscores(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('_') {
        return Some(Cow::Borrowed(text));
    }
    let between_digits = text.split('_').collect::<Vec<_>>().windows(2).all(|pair| match pair {
        [left, right] => {
            left.ends_with(|c: char| c.is_ascii_digit()) && right.starts_with(|c: char| c.is_ascii_digit())
        }
        _ => false,
    });
    between_digits.then(|| Cow::Owned(text.replace('_', "")))
}

#[expect(clippy::as_conversions, reason = "checked to lie within i64 before")]
fn whole(value: f64) -> Option<i64> {
    (-9.2e18..=9.2e18).contains(&value).then_some(value as i64)
}
