//! How many tokens a text is, counted with the models' own vocabularies. Those are tables of some ten megabytes, made
//! when they are first needed, which takes a while: count where waiting harms nobody.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::available_parallelism,
};

use dashmap::DashMap;
use tiktoken_rs::{CoreBPE, cl100k_base_singleton, o200k_base_singleton, tokenizer};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

/// What a message costs besides its text: its role and its borders. Source: OpenAI's cookbook on counting tokens.
pub const TOKENS_PER_MESSAGE: usize = 4;

/// Texts are cut into pieces of about this many bytes: the time that some texts take grows with the square of their
/// length. A cut costs a token at most.
const PIECE_BYTES: usize = 4096;

/// Longer texts than this are estimated from samples of about as many bytes.
const MAX_EXACT_BYTES: usize = 512 * 1024;

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

#[derive(Debug)]
struct Remembered {
    counts: DashMap<u64, usize>,
    hasher: RandomState,
    /// As many as may count at once on threads of their own.
    turns: Arc<Semaphore>,
    /// Whether the vocabularies have been made, as far as is known here.
    has_cl100k: AtomicBool,
    has_o200k: AtomicBool,
}

impl Default for Remembered {
    fn default() -> Self {
        let turns = Arc::new(Semaphore::new(available_parallelism().map_or(1, NonZero::get)));
        let (counts, hasher) = (DashMap::new(), RandomState::new());
        Self { counts, hasher, turns, has_cl100k: AtomicBool::new(false), has_o200k: AtomicBool::new(false) }
    }
}

impl Remembered {
    fn has(&self, vocabulary: Vocabulary) -> &AtomicBool {
        match vocabulary {
            Vocabulary::Cl100k => &self.has_cl100k,
            Vocabulary::O200k => &self.has_o200k,
        }
    }
}

/// Texts of together so many bytes are counted in a fraction of a millisecond: nobody has to wait for that on a thread.
const QUICK_BYTES: usize = 4096;

/// The right to count on a thread of its own.
#[derive(Debug)]
pub struct Turn(OwnedSemaphorePermit);

impl Turn {
    /// Counts there. It ends its turn when it is done, whether somebody still waits for it or not. `None`: it panicked.
    pub async fn count<T: Send + 'static>(self, count: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let counting = spawn_blocking(move || {
            let _turn = self.0;
            count()
        });
        counting.await.ok()
    }
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

    /// Waits for a turn to count: there are as many as processors, for more at once would only take longer, and memory.
    /// `None` never comes, as nobody closes what is waited for.
    pub async fn turn(&self) -> Option<Turn> {
        Arc::clone(&self.0.turns).acquire_owned().await.ok().map(Turn)
    }

    /// Whether so many bytes are counted before anybody notices.
    #[must_use]
    pub fn is_quick(&self, vocabulary: Vocabulary, bytes: usize) -> bool {
        bytes <= QUICK_BYTES && self.0.has(vocabulary).load(Ordering::Relaxed)
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
        self.0.has(vocabulary).store(true, Ordering::Relaxed);
        let count = pieces(text).map(|piece| encoder.count_ordinary(piece)).sum();
        if self.0.counts.len() >= MAX_REMEMBERED {
            self.0.counts.clear();
        }
        self.0.counts.insert(key, count);
        count
    }
}

impl TokenCounter {
    /// The tokens of `text`, for bills: a very long one is counted in samples, so that it takes no longer than others.
    #[must_use]
    pub fn estimate(&self, vocabulary: Vocabulary, text: &str) -> usize {
        if text.len() <= MAX_EXACT_BYTES {
            return self.count(vocabulary, text);
        }
        let encoder = vocabulary.encoder();
        let stride = text.len().div_ceil(MAX_EXACT_BYTES);
        let (mut bytes, mut tokens) = (0, 0);
        for piece in pieces(text).step_by(stride) {
            bytes += piece.len();
            tokens += encoder.count_ordinary(piece);
        }
        tokens.saturating_mul(text.len()) / bytes.max(1)
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
    fn a_very_long_text_is_estimated_within_5_percent() {
        let counter = TokenCounter::default();
        for text in
            ["안녕하세요, 부산의 날씨입니다. ".repeat(40_000), "It is sunny in Busan today, isn't it? ".repeat(40_000)]
        {
            let [exact, estimated] =
                [TokenCounter::count, TokenCounter::estimate].map(|count| count(&counter, Vocabulary::O200k, &text));
            assert!(exact.abs_diff(estimated) * 20 <= exact, "{estimated} of {exact}");
        }
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

    #[tokio::test]
    async fn no_more_counts_run_at_once_than_processors_and_whoever_left_keeps_the_turn() {
        let counter = TokenCounter::default();
        let most = available_parallelism().map_or(1, NonZero::get);
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        for _ in 0..most {
            let (turn, wait) = (counter.turn().await.unwrap(), Arc::clone(&wait));
            // Nobody waits for what it counts.
            let counting = turn.count(move || wait.lock().unwrap().recv().is_ok());
            assert!(futures_util::poll!(std::pin::pin!(counting)).is_pending());
        }
        let next = counter.turn();
        tokio::pin!(next);
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        done.send(()).unwrap();
        assert_eq!(next.await.unwrap().count(|| 7).await, Some(7));
        drop(done);
    }
}
