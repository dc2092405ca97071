//! Which models there are, and whether the upstream can be reached: one free question answers both.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};
use tokio_util::task::TaskTracker;

use crate::openai::{Client, Model, ModelList, UpstreamError};

/// A model as the service lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedModel {
    pub id: String,
    pub name: String,
    pub description: String,
}

/// Names and descriptions of the original's fixed list, in its order.
const KNOWN: [(&str, &str, &str); 3] = [
    ("gpt-3.5-turbo", "GPT-3.5 Turbo", "빠르고 효율적인 모델"),
    ("gpt-4", "GPT-4", "가장 강력한 모델"),
    ("gpt-4-turbo-preview", "GPT-4 Turbo", "GPT-4의 빠른 버전"),
];

/// Words in the ids of models that do not chat.
const NOT_CHAT: [&str; 20] = [
    "embedding",
    "embed",
    "whisper",
    "tts",
    "transcribe",
    "dall-e",
    "image",
    "moderation",
    "realtime",
    "audio",
    "instruct",
    "babbage",
    "davinci",
    "curie",
    "ada",
    "sora",
    "codex",
    "rerank",
    "computer-use",
    "deep-research",
];

/// Asks the upstream for its models at most once in [`ModelCatalog::PERIOD`], however many want to know.
#[derive(Clone, Debug)]
pub struct ModelCatalog {
    client: Arc<Client>,
    tasks: TaskTracker,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    checked: Option<(Instant, Result<(), UpstreamError>)>,
    /// The last good list, kept while the upstream cannot be asked.
    models: Option<Arc<[ListedModel]>>,
    /// The log knows that the list cannot be had, though chats may work.
    has_told: bool,
}

impl State {
    fn tell_once(&mut self, what: &'static str) {
        if !std::mem::replace(&mut self.has_told, true) {
            tracing::warn!("{what}");
        }
    }
}

impl ModelCatalog {
    /// How long an answer, good or bad, counts.
    pub const PERIOD: Duration = Duration::from_secs(15);

    #[must_use]
    pub fn new(client: Arc<Client>, tasks: TaskTracker) -> Self {
        Self { client, tasks, state: Arc::default() }
    }

    /// Whether the upstream answers our key: whether chats can work, not whether one list can be read.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn check(&self) -> Result<(), UpstreamError> {
        let (outcome, _) = self.fresh().await;
        outcome
    }

    /// The chat models upstream offers; the last ones known while it cannot be asked; the original's fixed list
    /// before it ever could.
    pub async fn models(&self) -> Arc<[ListedModel]> {
        let (_, models) = self.fresh().await;
        models.unwrap_or_else(|| KNOWN.iter().map(|(id, ..)| listed(id, "")).collect())
    }

    /// What was learned within the period; asks if nothing was. Whoever waits meanwhile shares the answer.
    async fn fresh(&self) -> (Result<(), UpstreamError>, Option<Arc<[ListedModel]>>) {
        let mut state = Arc::clone(&self.state).lock_owned().await;
        if let Some((at, outcome)) = &state.checked
            && at.elapsed() < Self::PERIOD
        {
            return (outcome.clone(), state.models.clone());
        }
        let client = Arc::clone(&self.client);
        // On a task of its own, so that a caller who leaves does not stop the question and let the next one ask again.
        let asking = self.tasks.spawn(async move {
            let outcome = match client.models().await {
                Ok(ModelList::Listed(models)) => {
                    state.models = Some(chat_models(&models));
                    state.has_told = false;
                    Ok(())
                }
                Ok(ModelList::NotAllowed) => {
                    state.tell_once("the upstream's key may not list models; that says nothing about chats");
                    Ok(())
                }
                // There is no list, and there are chats: that is what the question was about.
                Err(UpstreamError::Unusable(_) | UpstreamError::Protocol(_) | UpstreamError::InvalidRequest(_))
                    if client.chats_work() =>
                {
                    state.tell_once("the upstream gives no list of models, though it answers chats");
                    Ok(())
                }
                Err(error) => {
                    let reason = error.in_own_words();
                    tracing::warn!(reason, "the upstream cannot be asked for its models");
                    Err(error)
                }
            };
            state.checked = Some((Instant::now(), outcome.clone()));
            (outcome, state.models.clone())
        });
        asking.await.unwrap_or((Err(UpstreamError::Interrupted), None))
    }
}

/// Those that chat: first the original's, in its order, then the newest first.
fn chat_models(models: &[Model]) -> Arc<[ListedModel]> {
    let chats = |model: &&Model| !NOT_CHAT.iter().any(|word| has_word(&model.id, word));
    let rank = |id: &str| KNOWN.iter().position(|(known, ..)| *known == id).unwrap_or(KNOWN.len());
    let mut chat: Vec<_> = models.iter().filter(chats).collect();
    chat.sort_by(|a, b| {
        let key = |m: &Model| (rank(&m.id), -m.created);
        key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
    });
    chat.dedup_by(|a, b| a.id == b.id);
    chat.into_iter().map(|model| listed(&model.id, &model.owned_by)).collect()
}

/// Whether `word` stands in `id` between separators; `ada` is a word of `text-ada-001` and not of `llama-adapt`.
fn has_word(id: &str, word: &str) -> bool {
    let boundary = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphabetic());
    id.match_indices(word).any(|(start, _)| {
        let (before, after) = id.split_at(start);
        boundary(before.chars().next_back()) && boundary(after.get(word.len()..).and_then(|rest| rest.chars().next()))
    })
}

fn listed(id: &str, owned_by: &str) -> ListedModel {
    if let Some((_, name, description)) = KNOWN.iter().find(|(known, ..)| *known == id) {
        return ListedModel { id: id.into(), name: (*name).into(), description: (*description).into() };
    }
    let description = match owned_by {
        "" => "채팅 모델".to_owned(),
        "openai" | "system" | "openai-internal" => "OpenAI 채팅 모델".to_owned(),
        owner => format!("{owner} 채팅 모델"),
    };
    ListedModel { id: id.into(), name: display_name(id), description }
}

/// `gpt-4o-mini` → `GPT-4o Mini`, as the original spells its names; other families keep their id.
fn display_name(id: &str) -> String {
    let Some(rest) = id.strip_prefix("gpt-") else {
        return id.to_owned();
    };
    // A date stays as it is: `2024-08-06` is one thing.
    let mut name = String::from("GPT-");
    for (index, part) in rest.split('-').enumerate() {
        let is_number = part.bytes().all(|b| b.is_ascii_digit());
        match (index, is_number) {
            (0, _) => {}
            (_, true) if name.ends_with(|c: char| c.is_ascii_digit()) && index > 1 => name.push('-'),
            _ => name.push(' '),
        }
        let mut letters = part.chars();
        match letters.next() {
            Some(first) if index > 0 => {
                name.push(first.to_ascii_uppercase());
                name.push_str(letters.as_str());
            }
            _ => name.push_str(part),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, created: i64, owned_by: &str) -> Model {
        Model { id: id.into(), created, owned_by: owned_by.into() }
    }

    #[test]
    fn chat_models_are_listed_the_originals_first_then_the_newest() {
        let listed = chat_models(&[
            model("text-embedding-3-small", 9, "openai"),
            model("gpt-4o", 5, "system"),
            model("gpt-4o-audio-preview", 8, "system"),
            model("gpt-4o-2024-08-06", 6, "system"),
            model("o3", 7, "system"),
            model("gpt-4", 1, "openai"),
            model("gpt-3.5-turbo", 1, "openai"),
            model("gpt-3.5-turbo-instruct", 2, "system"),
            model("dall-e-3", 3, "system"),
            model("meta/llama-adapt", 4, "meta"),
        ]);
        let ids: Vec<_> = listed.iter().map(|m| m.id.as_str()).collect();
        assert_eq!(ids, ["gpt-3.5-turbo", "gpt-4", "o3", "gpt-4o-2024-08-06", "gpt-4o", "meta/llama-adapt"]);
        assert_eq!(listed[0].description, "빠르고 효율적인 모델");
        assert_eq!(listed[3].name, "GPT-4o 2024-08-06");
        assert_eq!(listed[5].description, "meta 채팅 모델");
    }

    #[test]
    fn names_are_spelled_as_the_original_spells_them() {
        for (id, name) in [
            ("gpt-4o-mini", "GPT-4o Mini"),
            ("gpt-4-turbo", "GPT-4 Turbo"),
            ("gpt-4-1106-preview", "GPT-4 1106 Preview"),
            ("o4-mini", "o4-mini"),
        ] {
            assert_eq!(display_name(id), name);
        }
    }
}
