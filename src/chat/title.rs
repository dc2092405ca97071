//! Titles of conversations: asked of the model, and made harmless.

use unicode_segmentation::UnicodeSegmentation;

use crate::{
    message::{Message, Role},
    openai::{Completion, Wish},
};

/// The title of a conversation for which none could be made. The text is the original's.
pub const UNTITLED: &str = "새 대화";

/// Most characters of a title, as people count them. The model is asked for ten and does not always listen.
const MAX_CHARACTERS: usize = 60;

/// Most bytes of a message that are sent to find a title: what it is about shows by then, and all of a long one would
/// cost as much as its answer did.
const MAX_QUOTED_BYTES: usize = 4096;

/// What is asked for a title of at most ten characters, in the conversation's own language.
pub(super) fn question(conversation: &[Message]) -> Vec<Message> {
    let quoted = |message: &Message| {
        let end = message.content.floor_char_boundary(MAX_QUOTED_BYTES);
        Message::new(message.role, message.content.get(..end).unwrap_or_default())
    };
    let mut messages: Vec<_> = conversation.iter().map(quoted).collect();
    messages.push(Message::new(
        Role::User,
        "위 대화에 어울리는 제목을 10자 이내로, 대화와 같은 언어로 지어 주세요. 따옴표 없이 제목만 답하세요.",
    ));
    messages
}

/// How it is asked.
pub(super) fn completion<'a>(model: &'a str, question: &'a [Message]) -> Completion<'a> {
    Completion { model, messages: question, temperature: Some(Wish::Ours(0.2)), max_tokens: Wish::Ours(30) }
}

/// The title that the answer makes; [`UNTITLED`] if it makes none.
pub(super) fn title(answer: &str) -> String {
    let title = tidy(answer);
    if title.is_empty() { UNTITLED.to_owned() } else { title }
}

/// The first line with words, without the quotation marks that models like to put around a title, and without
/// characters that nobody sees but that change how their surroundings look. Cut between characters, not within.
fn tidy(text: &str) -> String {
    let quotes = ['"', '\'', '“', '”', '‘', '’', '「', '」', '《', '》'];
    let tidy = |line: &str| {
        let visible: String = line.chars().filter(|c| !is_invisible(*c)).collect();
        visible.trim().trim_matches(quotes).trim().graphemes(true).take(MAX_CHARACTERS).collect::<String>()
    };
    text.lines().map(tidy).find(|line| !line.is_empty()).unwrap_or_default()
}

/// Control characters, changes of direction, and spaces of no width. The joiners stay: emoji families, and some
/// scripts, are made with them.
fn is_invisible(c: char) -> bool {
    let hidden = ['\u{200b}', '\u{200e}', '\u{200f}', '\u{feff}', '\u{2028}', '\u{2029}', '\u{061c}'];
    c.is_control()
        || hidden.contains(&c)
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_lose_their_quotes_their_second_line_and_what_is_invisible() {
        for (text, expected) in [
            ("\"인사\"", "인사"),
            ("\n 「여행 계획」 \nmore", "여행 계획"),
            ("It's", "It's"),
            (" \n", ""),
            ("", ""),
            ("a\u{202e}b\0c\u{200b}", "abc"),
            ("👨‍👩‍👧‍👦 가족", "👨‍👩‍👧‍👦 가족"),
        ] {
            assert_eq!(tidy(text), expected);
        }
    }

    #[test]
    fn of_long_messages_the_beginning_is_quoted() {
        let long = "한".repeat(MAX_QUOTED_BYTES);
        let asked = question(&[Message::new(Role::User, long.as_str()), Message::new(Role::Assistant, "네!")]);
        assert_eq!(asked[0].content, "한".repeat(MAX_QUOTED_BYTES / 3));
        assert_eq!((asked[1].content.as_str(), asked.len()), ("네!", 3));
    }

    #[test]
    fn a_long_title_is_cut_between_characters() {
        let family = "👨‍👩‍👧‍👦";
        assert_eq!(tidy(&family.repeat(100)), family.repeat(MAX_CHARACTERS));
        let jamo = "\u{1112}\u{1161}\u{11ab}";
        assert_eq!(tidy(&jamo.repeat(100)), jamo.repeat(MAX_CHARACTERS));
    }
}
