//! JSON that OpenAI's own libraries read and `serde_json` does not: half a character, and numbers that are none.
//!
//! JavaScript's strings, and Python's, may hold half of a character that takes two: a model's piece ends inside an emoji,
//! and the other half comes with the next one. Rust's strings cannot. A half goes through the parser as a stand-in, a
//! private character, and [`Halves`] puts the halves together behind it. Only what did not parse comes here.

use std::borrow::Cow;

/// Where the stand-ins of U+D800 to U+DFFF begin: in the last plane for private use.
const STAND_INS: u32 = 0x10_0000;

const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// JSON that was written anew.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repaired {
    pub(super) json: String,
    /// Whether its texts hold stand-ins.
    pub(super) has_halves: bool,
}

/// `json` with what `serde_json` refuses written so that it does not. `None`: there is nothing of that kind.
pub(super) fn repaired(json: &str) -> Option<Repaired> {
    // Who writes private characters of that plane gets them as they are, and halves replaced.
    let is_taken = json.chars().any(|c| half_of(c).is_some()) || json.to_ascii_lowercase().contains("\\udbf");
    let mut out = String::with_capacity(json.len() + 16);
    let (mut rest, mut in_string, mut changed, mut has_halves) = (json, false, false, false);
    while let Some(at) = rest.find(if in_string { &['"', '\\'][..] } else { &['"', 'N', 'I', '-'][..] }) {
        let (before, from) = rest.split_at_checked(at)?;
        out.push_str(before);
        let taken = if let Some((unit, length)) = lone_half(from, in_string) {
            (changed, has_halves) = (true, !is_taken);
            out.push(if is_taken { REPLACEMENT } else { stand_in(unit) });
            length
        } else if let Some(length) = no_number(from, in_string) {
            changed = true;
            out.push_str("null");
            length
        } else {
            let length = escape_length(from);
            out.push_str(from.get(..length)?);
            length
        };
        in_string ^= from.starts_with('"');
        rest = from.get(taken..)?;
    }
    out.push_str(rest);
    changed.then_some(Repaired { json: out, has_halves })
}

/// How many bytes belong together at the start of `text`: an escape, a pair of them, or one character.
fn escape_length(text: &str) -> usize {
    match (unit(text), text.get(6..).and_then(unit)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
        (Some(_), _) => 6,
        _ if text.starts_with('\\') => 1 + text.chars().nth(1).map_or(0, char::len_utf8),
        _ => 1,
    }
}

/// The number in an escape `\uXXXX` at the start of `text`.
fn unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

/// Half a character at the start of `text`, and the length of its escape.
fn lone_half(text: &str, in_string: bool) -> Option<(u16, usize)> {
    let unit = unit(text).filter(|unit| in_string && (0xd800..=0xdfff).contains(unit))?;
    (escape_length(text) == 6).then_some((unit, 6))
}

/// The length of what Python writes for a number that is none.
fn no_number(text: &str, in_string: bool) -> Option<usize> {
    let words = ["NaN", "Infinity", "-Infinity"];
    words.iter().find(|word| !in_string && text.starts_with(**word)).map(|word| word.len())
}

fn stand_in(unit: u16) -> char {
    char::from_u32(STAND_INS + u32::from(unit)).unwrap_or(REPLACEMENT)
}

fn half_of(c: char) -> Option<u16> {
    let unit = u32::from(c).checked_sub(STAND_INS)?;
    u16::try_from(unit).ok().filter(|unit| (0xd800..=0xdfff).contains(unit))
}

/// Puts halves together, within a text and from one to the next.
#[derive(Debug, Default)]
pub(super) struct Halves(Option<u16>);

impl Halves {
    /// `text` as it goes on behind the one before it. `has_halves`: it may hold stand-ins.
    pub(super) fn join<'a>(&mut self, text: Cow<'a, str>, has_halves: bool) -> Cow<'a, str> {
        if !has_halves && self.0.is_none() {
            return text;
        }
        let mut out = String::with_capacity(text.len() + 4);
        for c in text.chars() {
            let half = half_of(c).filter(|_| has_halves);
            match (self.0.take(), half) {
                (Some(high), Some(low @ 0xdc00..)) => {
                    out.extend(char::decode_utf16([high, low]).map(|c| c.unwrap_or(REPLACEMENT)));
                    continue;
                }
                (Some(_), _) => out.push(REPLACEMENT),
                (None, _) => {}
            }
            match half {
                Some(high @ ..0xdc00) => self.0 = Some(high),
                Some(_) => out.push(REPLACEMENT),
                None => out.push(c),
            }
        }
        out.into()
    }

    /// What is left at the end of an answer.
    pub(super) fn rest(&mut self) -> Option<&'static str> {
        self.0.take().map(|_| "\u{fffd}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: &[&str]) -> String {
        let mut halves = Halves::default();
        let mut out = String::new();
        for piece in pieces {
            let json = format!("\"{piece}\"");
            let (text, is_repaired) = match serde_json::from_str::<String>(&json) {
                Ok(text) => (text, false),
                Err(_) => {
                    let Repaired { json, has_halves } = repaired(&json).unwrap();
                    (serde_json::from_str(&json).unwrap(), has_halves)
                }
            };
            out.push_str(&halves.join(text.into(), is_repaired));
        }
        out.push_str(halves.rest().unwrap_or_default());
        out
    }

    #[test]
    fn halves_of_a_character_find_each_other_and_others_are_replaced() {
        for (pieces, expected) in [
            (&[r"\ud83d", r"\ude00 b"][..], "😀 b"),
            (&[r"a\uD83D", "", r"\uDE00"], "a😀"),
            (&[r"\ud83d", "x"], "\u{fffd}x"),
            (&[r"\ud83d", r"\ud83d\ude00"], "\u{fffd}😀"),
            (&[r"\ud83d", r"\ud83d", r"\ude00"], "\u{fffd}😀"),
            (&[r"x\ude00"], "x\u{fffd}"),
            (&[r"\ud83d"], "\u{fffd}"),
            (&[r"\ud83d\n\\ude00\u0041"], "\u{fffd}\n\\ude00A"),
            (&["\u{10d83d}", r"\udbf6\udc3d\ud83d"], "\u{10d83d}\u{10d83d}\u{fffd}"),
        ] {
            assert_eq!(texts(pieces), expected, "{pieces:?}");
        }
    }

    #[test]
    fn numbers_that_are_none_become_null_and_nothing_else_changes() {
        let json = r#"{"a":NaN,"b":[-Infinity,Infinity,-1,"NaN -Infinity \" I"],"N":true}"#;
        let expected = r#"{"a":null,"b":[null,null,-1,"NaN -Infinity \" I"],"N":true}"#;
        assert_eq!(repaired(json).unwrap(), Repaired { json: expected.to_owned(), has_halves: false });
        for same in [r#"{"a":"\ud83d\ude00 \\ud83d"}"#, "", "\"", "\"\\", "\"\\u12", "\"\\ué", "\"\\é", "{\"a\":-1"] {
            assert_eq!(repaired(same), None, "{same}");
        }
    }
}
