//! Every conversation belongs to its owner. Over HTTP everybody is the same caller, so this asks the library.

use ai_service::{
    conversations::{Conversations, StoredMessage, Turn},
    ids::{ConversationId, Owner},
    message::{Role, Usage},
};

use crate::support::database::{TestDatabase, on_every_database};

on_every_database!(
    anothers_conversation_is_as_unknown_as_none,
    the_same_id_may_exist_for_everybody,
    owners_are_who_they_are_to_the_letter,
);

fn id(name: &str) -> ConversationId {
    ConversationId::parse(name).expect("an id")
}

fn message(role: Role, content: &str) -> StoredMessage {
    StoredMessage { role, content: content.to_owned(), timestamp: "2026-11-22T23:17:31".to_owned(), interrupted: false }
}

fn turn(question: &str) -> Turn {
    let usage = Usage { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 };
    let (question, answer) = (message(Role::User, question), message(Role::Assistant, "answer"));
    Turn { question, answer, usage: Some(usage) }
}

/// All that an owner can learn of a conversation.
async fn everything(conversations: &Conversations, owner: &Owner, id: &ConversationId) -> String {
    let found = conversations.find(owner, id).await.unwrap();
    let messages = conversations.messages(owner, id).await.unwrap();
    let newest = conversations.newest(owner, id, u64::MAX, 10).await.unwrap();
    let contents = |list: &[StoredMessage]| list.iter().map(|message| message.content.clone()).collect::<Vec<_>>();
    let texts = messages.as_deref().map(contents);
    format!("{found:?} {:?} {messages:?} {newest:?} {texts:?}", conversations.summary(owner, id).await.unwrap())
}

async fn anothers_conversation_is_as_unknown_as_none(database: &TestDatabase) {
    let conversations = &database.open().await;
    let (owner, stranger) = (&Owner::new("owner"), &Owner::new("stranger"));
    let (theirs, nobodys) = (&id("theirs"), &id("nobodys"));
    conversations.create(owner, theirs.clone(), Some("title".into()), vec![]).await.unwrap();
    conversations.append(owner, theirs.clone(), turn("q")).await.unwrap();
    let before = everything(conversations, owner, theirs).await;

    // What a stranger is told, of a conversation that somebody else has and of one that nobody has.
    for id in [theirs, nobodys] {
        let c = conversations;
        assert_eq!(c.find(stranger, id).await.unwrap(), None);
        assert_eq!(c.summary(stranger, id).await.unwrap(), None);
        assert_eq!(c.messages(stranger, id).await.unwrap(), None);
        assert_eq!(c.newest(stranger, id, u64::MAX, 10).await.unwrap(), Default::default());
        assert!(!c.clear(stranger, id.clone()).await.unwrap());
        assert!(!c.delete(stranger, id.clone()).await.unwrap());
        assert!(!c.set_title(stranger, id.clone(), "stolen".into(), false).await.unwrap());
        assert!(!c.set_title(stranger, id.clone(), "stolen".into(), true).await.unwrap());
        assert_eq!(c.list(stranger, None, 100).await.unwrap().conversations, []);
        // Each way to make one makes the stranger's own.
        let appended = c.append(stranger, id.clone(), turn("own")).await.unwrap();
        assert_eq!((appended.messages, appended.has_title), (2, false));
        assert!(c.delete(stranger, id.clone()).await.unwrap());
        assert!(c.save(stranger, id.clone(), vec![message(Role::User, "own")]).await.unwrap().is_new);
        assert!(c.delete(stranger, id.clone()).await.unwrap());
        let made = c.create(stranger, id.clone(), None, vec![]).await.unwrap();
        assert_eq!((made.title, made.counts.messages, made.counts.prompt_tokens), (None, 0, 0));
        assert!(c.delete(stranger, id.clone()).await.unwrap());
        assert_eq!(everything(c, owner, theirs).await, before);
    }
    assert_eq!(conversations.list(owner, None, 100).await.unwrap().conversations.len(), 1);
    conversations.close().await;
}

async fn the_same_id_may_exist_for_everybody(database: &TestDatabase) {
    let conversations = database.open().await;
    let owners = ["a", "b", "c"].map(Owner::new);
    let same = id("same");
    for owner in &owners {
        conversations.append(owner, same.clone(), turn(owner.as_str())).await.unwrap();
        conversations.set_title(owner, same.clone(), owner.as_str().to_owned(), true).await.unwrap();
    }
    let [first, second, third] = &owners;
    let untouched = everything(&conversations, third, &same).await;
    conversations.clear(first, same.clone()).await.unwrap();
    conversations.append(second, same.clone(), turn("more")).await.unwrap();
    conversations.delete(first, same.clone()).await.unwrap();
    assert_eq!(conversations.find(first, &same).await.unwrap(), None);
    assert_eq!(everything(&conversations, third, &same).await, untouched);
    let texts =
        |messages: Option<Vec<StoredMessage>>| messages.unwrap().into_iter().map(|m| m.content).collect::<Vec<_>>();
    assert_eq!(texts(conversations.messages(second, &same).await.unwrap()), ["b", "answer", "more", "answer"]);
    assert_eq!(texts(conversations.messages(third, &same).await.unwrap()), ["c", "answer"]);

    // Pages of one owner hold nothing of another, and another's cursor leads nowhere else.
    let page = conversations.list(second, None, 1).await.unwrap();
    assert_eq!((page.conversations.len(), page.next), (1, None));
    conversations.create(third, id("later"), None, vec![]).await.unwrap();
    let cursor = conversations.list(third, None, 1).await.unwrap().next.unwrap();
    let with_it = conversations.list(second, Some(&cursor), 100).await.unwrap();
    assert!(with_it.conversations.iter().all(|found| found.title.as_deref() == Some("b")), "{with_it:?}");
    conversations.close().await;
}

async fn owners_are_who_they_are_to_the_letter(database: &TestDatabase) {
    let conversations = database.open().await;
    let names = ["", " ", "a", "A", "a ", "é", "e\u{301}", "관리자", "👨‍👩‍👧‍👦", "%", "_", "'", "a' OR '1'='1"];
    let same = id("same");
    for name in names {
        let made = conversations.create(&Owner::new(name), same.clone(), Some(name.to_owned()), vec![]).await;
        assert!(made.is_ok(), "{name:?}");
    }
    for name in names {
        let list = conversations.list(&Owner::new(name), None, 100).await.unwrap().conversations;
        let titles: Vec<_> = list.iter().map(|found| found.title.as_deref()).collect();
        assert_eq!(titles, [Some(name)]);
    }
    // So are ids.
    let owner = Owner::new("a");
    for name in ["x", "X", "-x", "_x"] {
        assert!(conversations.save(&owner, id(name), vec![]).await.unwrap().is_new, "{name}");
    }
    conversations.close().await;
}
