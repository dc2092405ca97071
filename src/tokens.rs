//! How many tokens a text is, counted with the models' own vocabularies. Those are tables of some ten megabytes, made
//! when they are first needed, which takes a while: count where waiting harms nobody.

use std::{collections::hash_map::RandomState, hash::BuildHasher, sync::Arc};

use dashmap::DashMap;
use tiktoken_rs::{CoreBPE, cl100k_base_singleton, o200k_base_singleton, tokenizer};

/// What a message costs besides its text: its role and its borders. Source: OpenAI's cookbook on counting tokens.
pub const TOKENS_PER_MESSAGE: usize = 4;

/// Texts are cut into pieces of about this many bytes: the time that some texts take grows with the square of their
/// length. A cut costs a token at most.
const PIECE_BYTES: usize = 4096;

/// Most counts that are remembered.
const MAX_REMEMBERED: usize = 100_000;

/// A vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vocabulary {
    /// GPT-3.5 and GPT-4.
    Cl100k,
    /// GPT-4o and everything since; also what is unknown.
    O200k,
}

impl Vocabulary {
    /// The one that `model` uses.
    #[must_use]
    pub fn of(model: &str) -> Self {
        match tokenizer::get_tokenizer(model) {
            Some(tokenizer::Tokenizer::Cl100kBase) => Self::Cl100k,
            _ => Self::O200k,
        }
    }

    fn encoder(self) -> &'static CoreBPE {
        match self {
            Self::Cl100k => cl100k_base_singleton(),
            Self::O200k => o200k_base_singleton(),
        }
    }
}

/// Counts, and remembers what it has counted: a conversation's old messages come back with every turn. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct TokenCounter(Arc<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    counts: DashMap<u64, usize>,
    hasher: RandomState,
}

impl TokenCounter {
    /// The count of a text that was counted before.
    #[must_use]
    pub fn known(&self, vocabulary: Vocabulary, text: &str) -> Option<usize> {
        self.0.counts.get(&self.key(vocabulary, text)).map(|count| *count)
    }

    fn key(&self, vocabulary: Vocabulary, text: &str) -> u64 {
        // Of 64 bits, keyed at random: that two texts of one process share a key is no matter of concern.
        self.0.hasher.hash_one((vocabulary, text))
    }

    /// Makes the vocabulary now, so that nobody has to wait for it later.
    pub fn prepare(vocabulary: Vocabulary) {
        vocabulary.encoder();
    }

    /// The tokens of `text`, never more than it has bytes. Takes about a millisecond for three thousand, and the time to
    /// make the vocabulary for the first.
    #[must_use]
    pub fn count(&self, vocabulary: Vocabulary, text: &str) -> usize {
        let key = self.key(vocabulary, text);
        if let Some(count) = self.0.counts.get(&key) {
            return *count;
        }
        let encoder = vocabulary.encoder();
        let count = pieces(text).map(|piece| encoder.count_ordinary(piece)).sum();
        if self.0.counts.len() >= MAX_REMEMBERED {
            self.0.counts.clear();
        }
        self.0.counts.insert(key, count);
        count
    }
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, behind) = rest.split_at_checked(rest.floor_char_boundary(PIECE_BYTES)).unwrap_or((rest, ""));
        rest = behind;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_count_as_openai_counts_them() {
        let counter = TokenCounter::default();
        // "tiktoken is great!" is the example of OpenAI's cookbook.
        for (model, text, expected) in [
            ("gpt-3.5-turbo", "hello world", 2),
            ("gpt-4o", "hello world", 2),
            ("gpt-4", "", 0),
            ("gpt-4", "tiktoken is great!", 6),
            ("some-local-model", "tiktoken is great!", 6),
        ] {
            for _ in 0..2 {
                assert_eq!(counter.count(Vocabulary::of(model), text), expected, "{model} {text}");
            }
        }
        let korean = "안녕하세요, 무엇을 도와드릴까요?";
        let [old, new] = ["gpt-4", "gpt-4o"].map(|model| counter.count(Vocabulary::of(model), korean));
        assert!(new < old && old <= korean.len(), "{new} {old}");
    }

    #[test]
    fn a_long_text_is_counted_in_pieces_and_nothing_of_it_is_lost() {
        for text in ["한".repeat(10_000), "ab".repeat(PIECE_BYTES), String::new(), "👨‍👩‍👧‍👦".repeat(999)]
        {
            assert_eq!(pieces(&text).collect::<String>(), text);
            assert!(pieces(&text).all(|piece| !piece.is_empty() && piece.len() <= PIECE_BYTES));
        }
        let spaces = " ".repeat(1 << 20);
        let count = TokenCounter::default().count(Vocabulary::O200k, &spaces);
        assert!((1..1 << 20).contains(&count));
    }
}
