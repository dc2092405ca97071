//! What a question may have cost, as far as the upstream let it be known.

use crate::{message::Usage, openai::wire::Text};

/// Most bytes that are kept of what is billed and not passed on. Of more, the count is taken for the rest as well.
const MAX_UNSEEN_BYTES: usize = 256 * 1024;

/// What a question may have cost: known while it is asked, and after it has ended in whatever way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Calls that may have been billed: the one that is answered, and those that took the question and broke.
    pub calls: u32,
    /// What the upstream counted for the one that is answered.
    pub usage: Option<Usage>,
    unseen: String,
    unseen_bytes: usize,
}

impl Cost {
    /// What is billed as part of the answer and not passed on, such as thought: as much of it as was kept, and how many
    /// bytes it was.
    #[must_use]
    pub fn unseen(&self) -> (&str, usize) {
        (&self.unseen, self.unseen_bytes)
    }

    /// Adds what an answer has cost to what the question had cost before.
    pub fn add(&mut self, answer: Self) {
        *self = Self { calls: self.calls + answer.calls, ..answer };
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.usage.is_none() && self.unseen_bytes == 0
    }

    /// A later count replaces an earlier one, but for zeros, which are no counts.
    pub(super) fn add_usage(&mut self, later: Usage) {
        let Some(usage) = &mut self.usage else {
            self.usage = Some(later);
            return;
        };
        let later_or = |later: u64, earlier: u64| if later == 0 { earlier } else { later };
        usage.prompt_tokens = later_or(later.prompt_tokens, usage.prompt_tokens);
        usage.completion_tokens = later_or(later.completion_tokens, usage.completion_tokens);
        let sum = usage.prompt_tokens.saturating_add(usage.completion_tokens);
        usage.total_tokens = later_or(later.total_tokens, usage.total_tokens).max(sum);
    }

    pub(super) fn add_unseen(&mut self, text: &Text<'_>) {
        self.add_unseen_text(text.0.as_deref().unwrap_or_default());
    }

    pub(super) fn add_unseen_text(&mut self, text: &str) {
        self.unseen_bytes += text.len();
        let room = MAX_UNSEEN_BYTES.saturating_sub(self.unseen.len());
        self.unseen.push_str(text.get(..text.floor_char_boundary(room)).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_never_replace_numbers() {
        let usage =
            |prompt_tokens, completion_tokens, total_tokens| Usage { prompt_tokens, completion_tokens, total_tokens };
        for (counts, expected) in [
            (&[usage(9, 4, 13), usage(0, 0, 0)][..], usage(9, 4, 13)),
            (&[usage(9, 0, 9), usage(0, 4, 4)], usage(9, 4, 13)),
            (&[usage(9, 1, 10), usage(9, 4, 13)], usage(9, 4, 13)),
            (&[usage(0, 0, 13)], usage(0, 0, 13)),
        ] {
            let mut cost = Cost::default();
            counts.iter().for_each(|usage| cost.add_usage(*usage));
            assert_eq!(cost.usage, Some(expected));
        }
    }

    #[test]
    fn of_much_thought_the_beginning_is_kept() {
        let mut cost = Cost::default();
        (0..100).for_each(|_| cost.add_unseen_text(&"한".repeat(2000)));
        let (kept, bytes) = cost.unseen();
        assert_eq!((bytes, kept.len() <= MAX_UNSEEN_BYTES && kept.len() > MAX_UNSEEN_BYTES - 4), (600_000, true));
    }
}
