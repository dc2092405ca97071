//! Takes credentials out of texts that come from outside.

use std::{cmp::Reverse, sync::Arc};

use secrecy::{ExposeSecret, SecretString};

/// Beginnings of words that name a key, an organization or a project.
const MARKS: [&str; 5] = ["sk-", "org-", "proj_", "sess-", "Bearer"];

/// Every key of this service: what no text may show.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets(Arc<[SecretString]>);

impl Secrets {
    pub(super) fn new(keys: &[SecretString]) -> Self {
        let mut keys = keys.to_vec();
        // The longest first, for one key may be the beginning of another.
        keys.sort_by_key(|key| Reverse(key.expose_secret().len()));
        Self(keys.into())
    }

    /// `text` with every key, and every word that looks like a credential, replaced by `[redacted]`.
    ///
    /// A word is a run of `[A-Za-z0-9_*.-]`, which includes the stars with which OpenAI masks keys. The words behind
    /// `Bearer` go too.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for key in self.0.iter().map(ExposeSecret::expose_secret).filter(|key| key.len() >= 8) {
            if text.contains(key) {
                text = text.replace(key, "[redacted]");
            }
        }
        redact_words(&text)
    }
}

fn redact_words(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '*' | '.' | '-');
    let mut out = String::with_capacity(text.len());
    let mut bearer = false;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let in_word = is_word(first);
        let length = rest.find(|c| is_word(c) != in_word).unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        if in_word && (bearer || MARKS.iter().any(|mark| run.starts_with(mark))) {
            // A full stop that ends the sentence is not part of the key.
            out.push_str("[redacted]");
            out.push_str(if run.ends_with('.') { "." } else { "" });
            bearer = run == "Bearer";
        } else {
            out.push_str(run);
            bearer = bearer && !in_word;
        }
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_account_names_are_taken_out_and_the_sentence_stays() {
        let secrets = Secrets::new(&["hunter2h".into(), "hunter2hunter2".into(), "correct-horse".into()]);
        for (text, expected) in [
            (
                "Incorrect API key provided: sk-proj-****21sA. You can find your API key at x.",
                "Incorrect API key provided: [redacted]. You can find your API key at x.",
            ),
            (
                "Rate limit reached for gpt-4o in organization org-AbC123 on tokens per min (TPM): Limit 30000",
                "Rate limit reached for gpt-4o in organization [redacted] on tokens per min (TPM): Limit 30000",
            ),
            ("header Bearer abc.def-1 was bad", "header [redacted] [redacted] was bad"),
            ("the secret is hunter2hunter2, not correct-horse!", "the secret is [redacted], not [redacted]!"),
            ("열쇠 sk-abc가 틀렸습니다", "열쇠 [redacted]가 틀렸습니다"),
            ("risk-free ask-me", "risk-free ask-me"),
            ("", ""),
        ] {
            assert_eq!(secrets.redact(text), expected);
        }
    }
}
