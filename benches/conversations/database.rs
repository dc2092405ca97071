//! The database that is measured on: made through the library, with messages as people write them.

use std::path::Path;

use ai_service::{
    config::Database,
    conversations::{Conversations, StoredMessage},
    ids::{ConversationId, Owner},
    message::Role,
};
use futures_util::{StreamExt, stream};

/// How many conversations, and how many messages each has.
pub(crate) const CONVERSATIONS: usize = 10_000;
pub(crate) const MESSAGES: usize = 20;

/// How many long ones, and how many messages each of them has.
pub(crate) const LONG_CONVERSATIONS: usize = 100;
const LONG_MESSAGES: usize = 100;

/// Saves that are on their way at once.
const AT_ONCE: usize = 64;

const KOREAN: &str = "부산에서 하루를 보낸다면 아침에는 해운대에서 바다를 보고, 점심에는 국밥을 먹고, 오후에는 감천문화마을을 걷는 것이 \
    좋습니다. 저녁에는 광안리에서 다리의 불빛을 보며 회를 드셔 보세요. ";
const ENGLISH: &str = "If you have a day in Busan, begin at the beach of Haeundae, have a bowl of pork soup for lunch and \
    walk through the painted village of Gamcheon in the afternoon. In the evening, watch the bridge from Gwangalli. ";

pub(crate) fn id(number: usize) -> ConversationId {
    ConversationId::parse(&format!("conversation-{}", number % CONVERSATIONS)).unwrap()
}

pub(crate) fn long_id(number: usize) -> ConversationId {
    ConversationId::parse(&format!("long-{}", number % LONG_CONVERSATIONS)).unwrap()
}

/// The messages of a conversation: questions of some 150 bytes and answers of some 450, every other conversation Korean.
pub(crate) fn messages(conversation: usize, count: usize) -> impl Iterator<Item = StoredMessage> {
    (0..count).map(move |number| {
        let is_question = number % 2 == 0;
        let text = [KOREAN, ENGLISH][conversation % 2];
        // 100 to 198 bytes, or three times as many.
        let bytes = (100 + (conversation * 7 + number * 13) % 99) * if is_question { 1 } else { 3 };
        let content = text.repeat(3);
        let content = format!("{conversation}/{number} {}", &content[..content.floor_char_boundary(bytes)]);
        let role = if is_question { Role::User } else { Role::Assistant };
        StoredMessage { role, content, timestamp: "2026-11-22T23:17:31.899397".to_owned(), interrupted: false }
    })
}

fn all() -> impl Iterator<Item = (ConversationId, Vec<StoredMessage>)> {
    let usual = (0..CONVERSATIONS).map(|number| (id(number), messages(number, MESSAGES).collect()));
    usual.chain((0..LONG_CONVERSATIONS).map(|number| (long_id(number), messages(number, LONG_MESSAGES).collect())))
}

pub(crate) fn total_messages() -> usize {
    CONVERSATIONS * MESSAGES + LONG_CONVERSATIONS * LONG_MESSAGES
}

pub(crate) fn text_bytes() -> usize {
    all().flat_map(|(_, messages)| messages).map(|message| message.content.len()).sum()
}

pub(crate) async fn make(file: &Path) {
    let conversations = Conversations::open(&Database::Sqlite(file.to_owned())).await.unwrap();
    let (store, owner) = (&conversations, &Owner::default());
    let saves = stream::iter(all()).map(|(id, messages)| async move { store.save(owner, id, messages).await.unwrap() });
    saves.buffer_unordered(AT_ONCE).for_each(|_| async {}).await;
    conversations.close().await;
}
