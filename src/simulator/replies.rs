//! What the simulated model says, and the bytes in which it says it.

use std::fmt::Write as _;

use bytes::Bytes;
use dashmap::DashMap;
use serde_json::json;

/// Models that behave. `text-embedding-3-small` is there because the real list has models that do not chat.
pub const MODELS: &[&str] = &["gpt-3.5-turbo", "gpt-4", "gpt-4-turbo-preview", "gpt-4o", "gpt-4o-mini"];

/// The fixed moment of every answer: Unix time in seconds.
pub(super) const CREATED: u32 = 1_767_225_600;

const GREETING: [&str; 2] = ["Hello! How can I help you today?", "안녕하세요! 무엇을 도와드릴까요?"];

const GENERAL: [&str; 2] = [
    "This is the simulated OpenAI inside ai-service, so this answer costs nothing. Your message arrived, and these \
     words travel the same road as real ones: over HTTP, piece by piece, with usage at the end. Ask a model such as \
     sim-cut or sim-error-429 to see how an error looks.",
    "ai-service 안에 있는 모의 OpenAI가 드리는 답변이라 비용이 들지 않습니다. 보내신 메시지는 잘 도착했고, 이 문장은 실제 \
     답변과 똑같은 길을 지나 HTTP로 한 조각씩 전달됩니다. sim-cut이나 sim-error-429 같은 모델을 부르면 오류가 어떻게 보이는지 \
     확인할 수 있습니다.",
];

const TITLE: [&str; 2] = ["Demo chat", "데모 대화"];

/// A reply and its language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reply {
    Greeting(Language),
    General(Language),
    Title(Language),
    /// Two thousand words.
    Long(Language),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Language {
    English,
    Korean,
}

impl Reply {
    /// The reply to a question, in its language where that is easy to tell.
    pub(super) fn to(question: &str) -> Self {
        let is_hangul = |c: char| ('\u{ac00}'..='\u{d7a3}').contains(&c) || ('\u{3131}'..='\u{318e}').contains(&c);
        let language = if question.chars().any(is_hangul) { Language::Korean } else { Language::English };
        let start: String = question.trim().chars().take(5).collect::<String>().to_lowercase();
        if question.contains("제목을") {
            Self::Title(language)
        } else if ["안녕", "hello", "hi", "hey"].iter().any(|word| start.starts_with(word)) {
            Self::Greeting(language)
        } else {
            Self::General(language)
        }
    }

    pub(super) fn long(self) -> Self {
        match self {
            Self::Greeting(l) | Self::General(l) | Self::Title(l) | Self::Long(l) => Self::Long(l),
        }
    }

    fn text(self) -> String {
        let (texts, language) = match self {
            Self::Greeting(language) => (GREETING, language),
            Self::General(language) | Self::Long(language) => (GENERAL, language),
            Self::Title(language) => (TITLE, language),
        };
        let text = match language {
            Language::English => texts[0],
            Language::Korean => texts[1],
        };
        match self {
            Self::Long(_) => text.split(' ').cycle().take(2000).collect::<Vec<_>>().join(" "),
            _ => text.to_owned(),
        }
    }
}

/// The bytes of one reply by one model, but for the usage, which depends on the question.
#[derive(Clone, Debug)]
pub(super) struct Prebuilt {
    /// A whole answer up to and without `"usage":`.
    pub(super) whole: Bytes,
    /// One event a piece; the first, which has the role and no text, is not counted as one.
    pub(super) events: Vec<Bytes>,
    /// The event with the finish reason.
    pub(super) finish: Bytes,
}

/// Everything said so far, so that saying it again costs nothing. Models and replies are few.
#[derive(Debug, Default)]
pub(super) struct Replies(DashMap<(&'static str, Reply, Option<usize>), Prebuilt>);

impl Replies {
    /// The reply, at most `limit` pieces of it. Limits come from callers, so only the unlimited are remembered.
    pub(super) fn get(&self, model: &'static str, reply: Reply, limit: usize) -> Prebuilt {
        let key = (model, reply, None);
        if let Some(known) = self.0.get(&key)
            && known.pieces() <= limit
        {
            return known.clone();
        }
        let whole = build(model, &reply.text(), usize::MAX);
        if whole.pieces() > limit {
            return build(model, &reply.text(), limit);
        }
        self.0.insert(key, whole.clone());
        whole
    }
}

impl Prebuilt {
    /// How many pieces the text has: what its usage counts as tokens.
    pub(super) fn pieces(&self) -> usize {
        self.events.len() - 1
    }
}

fn build(model: &str, text: &str, limit: usize) -> Prebuilt {
    let all: Vec<&str> = text.split_inclusive(' ').collect();
    let (pieces, finish_reason) = match all.get(..limit) {
        Some(first) if first.len() < all.len() => (first, "length"),
        _ => (all.as_slice(), "stop"),
    };
    let mut events = vec![event(model, &json!({"role": "assistant", "content": "", "refusal": null}), None)];
    events.extend(pieces.iter().map(|piece| event(model, &json!({"content": piece}), None)));
    Prebuilt {
        whole: whole(model, &json!(pieces.concat()), &json!(null), finish_reason),
        events,
        finish: event(model, &json!({}), Some(finish_reason)),
    }
}

/// A whole answer up to and without its usage: the caller appends that and closes the object.
pub(super) fn whole(
    model: &str,
    content: &serde_json::Value,
    refusal: &serde_json::Value,
    finish_reason: &str,
) -> Bytes {
    format!(
        "{{\"id\":\"chatcmpl-sim\",\"object\":\"chat.completion\",\"created\":{CREATED},\"model\":\"{model}\",\
         \"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":{content},\"refusal\":{refusal},\
         \"annotations\":[]}},\"logprobs\":null,\"finish_reason\":\"{finish_reason}\"}}],\
         \"service_tier\":\"default\",\"system_fingerprint\":\"fp_sim\","
    )
    .into()
}

/// One event of a stream.
pub(super) fn event(model: &str, delta: &serde_json::Value, finish_reason: Option<&str>) -> Bytes {
    let finish_reason = json!(finish_reason);
    format!(
        "data: {{\"id\":\"chatcmpl-sim\",\"object\":\"chat.completion.chunk\",\"created\":{CREATED},\
         \"model\":\"{model}\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_sim\",\"choices\":[{{\"index\":0,\
         \"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish_reason}}}],\"usage\":null}}\n\n"
    )
    .into()
}

/// `{"prompt_tokens":…}` as OpenAI writes it.
pub(super) fn usage(prompt: usize, completion: usize) -> String {
    let mut usage = String::with_capacity(160);
    // Writing to a string cannot fail.
    let _ = write!(
        usage,
        "{{\"prompt_tokens\":{prompt},\"completion_tokens\":{completion},\"total_tokens\":{},\
         \"prompt_tokens_details\":{{\"cached_tokens\":0}},\"completion_tokens_details\":{{\"reasoning_tokens\":0}}}}",
        prompt + completion
    );
    usage
}

/// The event that only carries the usage.
pub(super) fn usage_event(model: &str, usage: &str) -> Bytes {
    format!(
        "data: {{\"id\":\"chatcmpl-sim\",\"object\":\"chat.completion.chunk\",\"created\":{CREATED},\
         \"model\":\"{model}\",\"choices\":[],\"usage\":{usage}}}\n\n"
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_in_its_language() {
        for (question, reply) in [
            ("안녕하세요!", Reply::Greeting(Language::Korean)),
            ("Hello there", Reply::Greeting(Language::English)),
            ("What is Rust?", Reply::General(Language::English)),
            ("러스트가 뭐예요?", Reply::General(Language::Korean)),
            ("", Reply::General(Language::English)),
        ] {
            assert_eq!(Reply::to(question), reply, "{question}");
        }
    }

    fn says(reply: &Prebuilt, text: &str) -> bool {
        String::from_utf8_lossy(&reply.whole).contains(&format!("\"content\":{}", json!(text)))
    }

    #[test]
    fn a_limit_cuts_between_words_and_says_so() {
        let replies = Replies::default();
        let cut = replies.get("gpt-4", Reply::Greeting(Language::English), 3);
        assert!(says(&cut, "Hello! How can "));
        assert_eq!(cut.pieces(), 3);
        assert!(String::from_utf8_lossy(&cut.finish).contains(r#""finish_reason":"length""#));
        let whole = replies.get("gpt-4", Reply::Greeting(Language::English), 2000);
        assert!(says(&whole, GREETING[0]));
        assert!(String::from_utf8_lossy(&whole.finish).contains(r#""finish_reason":"stop""#));
        assert_eq!(replies.get("gpt-4", Reply::Long(Language::Korean), 9999).pieces(), 2000);
    }
}
