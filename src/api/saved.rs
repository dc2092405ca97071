//! Messages as they are saved, in the form of the original's file: a list of `{"role","content","timestamp"}`.

use chrono::{DateTime, NaiveDateTime};
use serde::{
    Serialize,
    de::{IgnoredAny, MapAccess},
};
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    api::{
        chat::{RoleDocument, conversation_id, role},
        extract::{FromFields, FromJson},
        validation::{Fields, Issue, Judge, List, Loc, Object, Scalar},
    },
    config::Limits,
    conversations::{MAX_MESSAGES, StoredMessage},
    ids::ConversationId,
    timestamp::Timestamp,
};

/// Most bytes of a body with a whole conversation: what a full one takes as JSON.
const MAX_BODY_BYTES: usize = 20 * 1024 * 1024;

/// Most characters of a title that is given.
const MAX_TITLE: usize = 200;

/// One message of a stored conversation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StoredMessage, example = json!({
    "role": "user", "content": "부산에서 하루를 어떻게 보낼까요?", "timestamp": "2026-11-22T23:17:31.899397",
}))]
pub(crate) struct SavedMessage {
    /// `system`, `developer`, `user` or `assistant`
    pub(crate) role: &'static str,
    pub(crate) content: String,
    /// ISO 8601, as it was given.
    pub(crate) timestamp: String,
    /// Only there, and `true`, when somebody stopped the answer: the text is what there was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interrupted: Option<bool>,
}

/// One message to be stored.
#[derive(ToSchema)]
#[schema(as = NewMessage)]
#[expect(dead_code, reason = "describes SavedFields to the OpenAPI document")]
pub(crate) struct MessageBody {
    #[schema(inline)]
    role: RoleDocument,
    content: String,
    /// ISO 8601, with an offset or without, kept as it is given; now, if it is left out.
    #[schema(
        pattern = "^([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?$"
    )]
    timestamp: Option<String>,
    /// That somebody stopped the answer.
    interrupted: Option<bool>,
}

/// The body of a save.
#[derive(Debug)]
pub(crate) struct MessageList(pub(crate) Vec<StoredMessage>);

impl FromJson for MessageList {
    fn limit(limits: Limits) -> usize {
        limits.body_bytes.max(MAX_BODY_BYTES)
    }

    fn from_json(text: &str) -> Result<Result<Self, Vec<Issue>>, serde_json::Error> {
        let list: List<SavedFields<'_>, MAX_MESSAGES> = serde_json::from_str(text)?;
        let mut judge = Judge::new();
        if matches!(list, List::Null) {
            judge.report(not_a_list(judge.here()));
        }
        let messages = messages(&mut judge, list);
        Ok(judge.finish(Self(messages)))
    }
}

/// A conversation to be made.
#[derive(Debug)]
pub(crate) struct CreateConversation {
    pub(crate) id: Option<ConversationId>,
    pub(crate) title: Option<String>,
    pub(crate) messages: Vec<StoredMessage>,
}

/// A conversation to be made.
#[derive(ToSchema)]
#[schema(as = NewConversation, example = json!({"id": "trip-to-busan", "title": "부산 여행"}))]
#[expect(dead_code, reason = "describes CreateFields to the OpenAPI document")]
pub(crate) struct CreateBody {
    /// Random if left out.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    id: Option<String>,
    #[schema(max_length = 200)]
    title: Option<String>,
    /// The oldest first.
    #[schema(max_items = 10000)]
    messages: Option<Vec<MessageBody>>,
}

/// The fields of a [`CreateConversation`] as they came.
#[derive(Default)]
pub(crate) struct CreateFields<'a> {
    id: Option<Scalar<'a>>,
    title: Option<Scalar<'a>>,
    messages: List<SavedFields<'a>, MAX_MESSAGES>,
}

impl<'de> Fields<'de> for CreateFields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "id" => self.id = Some(map.next_value()?),
            "title" => self.title = Some(map.next_value()?),
            "messages" => self.messages = map.next_value()?,
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl FromFields for CreateConversation {
    type Fields<'de> = CreateFields<'de>;

    fn body_limit(limits: Limits) -> usize {
        limits.body_bytes.max(MAX_BODY_BYTES)
    }

    fn from_fields(fields: CreateFields<'_>, _: bool) -> Result<Self, Vec<Issue>> {
        let mut judge = Judge::new();
        let id = conversation_id(&mut judge, "id", fields.id);
        let title = judge.optional_text("title", fields.title);
        if title.as_ref().is_some_and(|title| title.chars().count() > MAX_TITLE) {
            let msg = format!("String should have at most {MAX_TITLE} characters");
            judge.report(Issue::new("string_too_long", judge.loc("title"), msg).ctx(json!({"max_length": MAX_TITLE})));
        }
        let messages = judge.at(Loc::Name("messages"), |judge| messages(judge, fields.messages));
        judge.finish(Self { id, title, messages })
    }
}

/// The fields of a message as they came.
#[derive(Default)]
pub(crate) struct SavedFields<'a> {
    role: Option<Scalar<'a>>,
    content: Option<Scalar<'a>>,
    timestamp: Option<Scalar<'a>>,
    interrupted: Option<Scalar<'a>>,
}

impl<'de> Fields<'de> for SavedFields<'de> {
    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "role" => self.role = Some(map.next_value()?),
            "content" => self.content = Some(map.next_value()?),
            "timestamp" => self.timestamp = Some(map.next_value()?),
            "interrupted" => self.interrupted = Some(map.next_value()?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// The messages that stand where the judge is.
fn messages(judge: &mut Judge, list: List<SavedFields<'_>, MAX_MESSAGES>) -> Vec<StoredMessage> {
    match list {
        List::Null => Vec::new(),
        List::Other => {
            judge.report(not_a_list(judge.here()));
            Vec::new()
        }
        List::Items { count, .. } if count > MAX_MESSAGES => {
            let msg = format!("List should have at most {MAX_MESSAGES} items after validation, not {count}");
            let ctx = json!({"field_type": "List", "max_length": MAX_MESSAGES, "actual_length": count});
            judge.report(Issue::new("too_long", judge.here(), msg).ctx(ctx));
            Vec::new()
        }
        List::Items { items, .. } => {
            let now = Timestamp::now().to_string();
            let mut messages = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                if judge.is_full() {
                    break;
                }
                messages.extend(judge.at(Loc::Index(index), |judge| message(judge, item, &now)));
            }
            messages
        }
    }
}

fn not_a_list(loc: Vec<Loc>) -> Issue {
    Issue::new("list_type", loc, "Input should be a valid list")
}

fn message(judge: &mut Judge, item: Object<SavedFields<'_>>, now: &str) -> Option<StoredMessage> {
    let Object::Fields { fields, is_empty } = item else {
        judge.report(Issue::not_an_object(judge.here()));
        return None;
    };
    let role = role(judge, fields.role, is_empty);
    let content = judge.required_text("content", fields.content, is_empty);
    let is_text = matches!(fields.timestamp, Some(Scalar::Text(_)));
    let timestamp = judge.optional_text("timestamp", fields.timestamp).unwrap_or_else(|| now.to_owned());
    if is_text && !is_moment(&timestamp) {
        let msg = "Input should be a valid datetime, such as 2026-11-22T23:17:31.899397";
        judge.report(Issue::new("datetime_parsing", judge.loc("timestamp"), msg));
    }
    let interrupted = match fields.interrupted {
        None | Some(Scalar::Null) => false,
        Some(Scalar::Bool(interrupted)) => interrupted,
        Some(_) => {
            judge.report(Issue::new("bool_type", judge.loc("interrupted"), "Input should be a valid boolean"));
            false
        }
    };
    Some(StoredMessage { role: role?, content, timestamp, interrupted })
}

/// Whether `text` is a moment as Python's `isoformat` writes it: a fraction and an offset may be there or not.
fn is_moment(text: &str) -> bool {
    text.len() <= 40
        && (NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").is_ok()
            || NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").is_ok()
            || DateTime::parse_from_rfc3339(text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_document_says_of_moments_is_taken() {
        let utoipa::openapi::RefOr::T(utoipa::openapi::Schema::Object(schema)) =
            <MessageBody as utoipa::PartialSchema>::schema()
        else {
            panic!("an object")
        };
        let field = serde_json::to_value(&schema.properties["timestamp"]).unwrap();
        let pattern = field["pattern"].as_str().unwrap();
        let moments = proptest::string::string_regex(pattern.trim_matches(['^', '$'])).unwrap();
        let mut runner = proptest::test_runner::TestRunner::default();
        runner
            .run(&moments, |moment| {
                assert!(is_moment(&moment), "{moment}");
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn moments_are_what_python_writes() {
        for good in [
            "2026-11-22T23:17:31.899397",
            "2026-11-22T23:17:31",
            "2026-11-22 23:17:31.5",
            "2026-11-22T23:17:31.899397+09:00",
            "2026-11-22T23:17:31Z",
        ] {
            assert!(is_moment(good), "{good}");
        }
        for bad in ["", "yesterday", "2026-11-22", "2026-13-22T23:17:31", "23:17:31", &"2".repeat(100)] {
            assert!(!is_moment(bad), "{bad}");
        }
    }
}
