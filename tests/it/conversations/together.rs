//! Many at once, in one service and in two on one database.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ai_service::{
    conversations::{Conversations, StoreError, StoredMessage, Turn},
    ids::{ConversationId, Owner},
    message::Role,
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::{
    conversations::{ask, messages, said},
    support::{
        ScriptedUpstream, TestApp,
        database::{Kind, TestDatabase, on_every_database},
    },
};

on_every_database!(fifty_turns_at_once_are_fifty_whole_turns, streams_and_answers_at_once_are_whole_turns);

on_every_database!(
    shared:
    services_that_start_at_once_on_an_empty_database_all_start,
    two_services_on_one_database_store_whole_turns,
    two_services_see_what_the_other_has_acknowledged,
    nobody_fails_for_anothers_sake,
    a_storm_of_writes_leaves_whole_conversations_at_every_moment,
    pages_hold_while_others_write,
);

/// That each of these questions is there once, with its own answer behind it.
fn assert_whole_turns(stored: &[Value], questions: impl IntoIterator<Item = String>) {
    let said = said(stored);
    for pair in said.chunks(2) {
        let [("user", question), ("assistant", answer)] = pair else { panic!("{pair:?}") };
        assert_eq!(*answer, format!("re: {question}"));
    }
    let asked: Vec<_> = said.iter().step_by(2).map(|(_, question)| (*question).to_owned()).collect();
    let expected = BTreeSet::from_iter(questions);
    assert_eq!(asked.len(), expected.len());
    assert_eq!(BTreeSet::from_iter(asked), expected);
}

/// That the numbers of a conversation's messages are 0, 1, 2 … and that it counts them right.
async fn assert_numbered(conversations: &Conversations, owner: &Owner, id: &ConversationId) {
    let newest = conversations.newest(owner, id, u64::MAX, 10_000).await.unwrap();
    let numbers: Vec<_> = newest.messages.iter().rev().map(|(number, _)| *number).collect();
    assert_eq!(numbers, Vec::from_iter(0..numbers.len() as u64));
    let Some(found) = conversations.find(owner, id).await.unwrap() else { return };
    let by = |role| newest.messages.iter().filter(|(_, message)| message.role == role).count() as u64;
    let counted = (numbers.len() as u64, by(Role::User), by(Role::Assistant));
    assert_eq!((found.counts.messages, found.counts.user_messages, found.counts.ai_messages), counted);
    let bytes: usize = newest.messages.iter().map(|(_, message)| message.content.len()).sum();
    assert_eq!(newest.bytes, bytes as u64);
}

async fn fifty_turns_at_once_are_fifty_whole_turns(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    upstream.echo();
    let app = database.app(&upstream).await;
    let questions: Vec<_> = (0..50).map(|n| format!("질문 {n}")).collect();
    let answers = join_all(questions.iter().map(|question| ask(&app, "c", question))).await;
    for (answer, question) in answers.iter().zip(&questions) {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["response"], format!("re: {question}"));
    }
    assert_whole_turns(&messages(&app, "c").await, questions);
    let summary = app.get("/conversations/c/summary").await.json();
    assert_eq!((&summary["total_messages"], &summary["total_tokens"]), (&json!(100), &json!(50 * 25)));
}

async fn stream(app: &TestApp, question: &str) {
    let events = app.chat_as_stream(&json!({"message": question, "conversation_id": "c"})).await.rest().await;
    assert_eq!(events.last().unwrap().data["full_content"], format!("re: {question}"));
}

async fn streams_and_answers_at_once_are_whole_turns(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    upstream.echo();
    let app = database.app(&upstream).await;
    let questions: Vec<_> = (0..20).map(|n| format!("질문 {n}")).collect();
    let (whole, streamed) = questions.split_at(10);
    let asking = join_all(whole.iter().map(|question| ask(&app, "c", question)));
    let streaming = join_all(streamed.iter().map(|question| stream(&app, question)));
    let (answers, _) = tokio::join!(asking, streaming);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_whole_turns(&messages(&app, "c").await, questions);
}

async fn services_that_start_at_once_on_an_empty_database_all_start(database: &TestDatabase) {
    let owner = &Owner::default();
    let starting = (0..8).map(async |n| {
        let store = database.open().await;
        store.create(owner, ConversationId::parse(&n.to_string()).unwrap(), None, vec![]).await.unwrap();
        store.close().await;
    });
    join_all(starting).await;
    let store = database.open().await;
    assert_eq!(store.list(owner, None, 100).await.unwrap().conversations.len(), 8);
    store.close().await;
}

async fn two_services_on_one_database_store_whole_turns(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    upstream.echo();
    let (one, two) = (database.app(&upstream).await, database.app(&upstream).await);
    let questions: Vec<_> = (0..40).map(|n| format!("질문 {n}")).collect();
    let (ones, twos) = questions.split_at(20);
    let asking = |app, questions: &[String]| {
        let questions = questions.to_vec();
        async move {
            let answers = join_all(questions.iter().map(|question| ask(app, "c", question))).await;
            assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        }
    };
    tokio::join!(asking(&one, ones), asking(&two, twos));
    assert_whole_turns(&messages(&one, "c").await, questions);
    assert_eq!(messages(&one, "c").await, messages(&two, "c").await);
    let conversations = database.open().await;
    assert_numbered(&conversations, &Owner::default(), &ConversationId::parse("c").unwrap()).await;
    conversations.close().await;
}

async fn two_services_see_what_the_other_has_acknowledged(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    upstream.echo();
    let (one, two) = (database.app(&upstream).await, database.app(&upstream).await);
    for n in 0..10 {
        let (writer, reader) = if n % 2 == 0 { (&one, &two) } else { (&two, &one) };
        ask(writer, "c", &n.to_string()).await;
        let stored = messages(reader, "c").await;
        assert_whole_turns(&stored, (0..=n).map(|n: i32| n.to_string()));
        // And what is sent with the next question is what both have said.
        assert_eq!(upstream.seen().pop().unwrap().body["messages"].as_array().unwrap().len() as i32, n * 2 + 1);
    }
    one.delete("/conversations/c").await;
    assert_eq!(two.get("/conversations/c").await.status, 404);
}

async fn nobody_fails_for_anothers_sake(database: &TestDatabase) {
    let upstream = ScriptedUpstream::start().await;
    let app = database.app(&upstream).await;
    // A conversation that this database will not have.
    database
        .execute(match database.postgres_url() {
            Some(_) => "ALTER TABLE conversations ADD CHECK (id <> 'bad')",
            None => {
                "CREATE TRIGGER bad BEFORE INSERT ON conversations WHEN NEW.id = 'bad' \
             BEGIN SELECT RAISE(ABORT, 'canary-private'); END"
            }
        })
        .await;
    let ids: Vec<_> = (0..40).map(|n| if n % 10 == 5 { "bad".to_owned() } else { n.to_string() }).collect();
    let made = join_all(ids.iter().map(async |id| app.post("/conversations", &json!({"id": id})).await)).await;
    for (id, answer) in ids.iter().zip(made) {
        if id == "bad" {
            assert!(!answer.text().contains("canary-private"), "{}", answer.text());
            assert_eq!(answer.error(503).1, "storage_unavailable");
        } else {
            assert_eq!(answer.status, 201, "{id}: {}", answer.text());
        }
    }
    assert_eq!(app.get("/conversations?limit=100").await.json()["conversations"].as_array().unwrap().len(), 36);
}

/// Others wait behind it for as long as it is tried, and not for as long as each of them would be.
#[tokio::test]
async fn a_file_that_somebody_holds_is_said_once_to_all() {
    let upstream = ScriptedUpstream::start().await;
    let database = TestDatabase::new(Kind::File).await;
    let app = database.app(&upstream).await;
    let mut holder = database.sqlite().await;
    let held = holder.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let begun = Instant::now();
    let answers = join_all((0..10).map(async |_| app.post("/conversations", &json!({})).await)).await;
    assert!(answers.iter().all(|answer| answer.status == 503), "{answers:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(app.get("/conversations").await.json()["conversations"], json!([]), "reading goes on");
    held.rollback().await.unwrap();
    assert_eq!(app.post("/conversations", &json!({})).await.status, 201);
}

fn stored(role: Role, content: String) -> StoredMessage {
    StoredMessage { role, content, timestamp: "2026-11-22T23:17:31".to_owned(), interrupted: false }
}

/// That this is what was saved last, whole, and behind it whole turns.
fn assert_whole(messages: &[StoredMessage]) {
    let contents: Vec<_> = messages.iter().map(|message| message.content.as_str()).collect();
    let saved = contents.iter().take_while(|content| content.starts_with("saved")).count();
    assert!(saved == 0 || saved == 3, "{contents:?}");
    assert!(contents[..saved].windows(2).all(|two| two[0] == two[1]), "of one save: {contents:?}");
    for pair in contents[saved..].chunks(2) {
        let [question, answer] = pair else { panic!("half a turn: {contents:?}") };
        assert_eq!(*answer, format!("re: {question}"), "{contents:?}");
    }
}

async fn a_storm_of_writes_leaves_whole_conversations_at_every_moment(database: &TestDatabase) {
    let stores = [database.open().await, database.open().await];
    let owner = Owner::new("owner");
    let ids = ["a", "b"].map(|id| ConversationId::parse(id).unwrap());
    let writing = join_all((0..160_usize).map(|n| {
        // Neighbours do different things to the same conversation, by different ways.
        let (store, id, owner) = (&stores[n % 2], ids[n / 2 % 2].clone(), &owner);
        async move {
            match n / 4 % 8 {
                0 => {
                    let saved = vec![stored(Role::User, format!("saved {n}")); 3];
                    store.save(owner, id, saved).await.unwrap();
                }
                1 => _ = store.delete(owner, id).await.unwrap(),
                2 => _ = store.clear(owner, id).await.unwrap(),
                3 => match store.create(owner, id, None, vec![]).await {
                    Ok(_) | Err(StoreError::Exists) => {}
                    Err(error) => panic!("{error}"),
                },
                4 => _ = store.set_title(owner, id, n.to_string(), n % 2 == 0).await.unwrap(),
                _ => {
                    let question = stored(Role::User, format!("asked {n}"));
                    let answer = stored(Role::Assistant, format!("re: asked {n}"));
                    store.append(owner, id, Turn { question, answer, usage: None }).await.unwrap();
                }
            }
        }
    }));
    let reading = async {
        for _ in 0..50 {
            for (store, id) in [(&stores[0], &ids[0]), (&stores[1], &ids[1])] {
                assert_whole(&store.messages(&owner, id).await.unwrap().unwrap_or_default());
                if let Some(summary) = store.summary(&owner, id).await.unwrap() {
                    let counts = summary.counts;
                    assert_eq!(counts.user_messages + counts.ai_messages, counts.messages);
                    assert_eq!(summary.first_message_at.is_none(), counts.messages == 0);
                }
            }
        }
    };
    tokio::join!(writing, reading);
    for id in &ids {
        assert_numbered(&stores[0], &owner, id).await;
        assert_whole(&stores[1].messages(&owner, id).await.unwrap().unwrap_or_default());
    }
    for store in stores {
        store.close().await;
    }
}

async fn pages_hold_while_others_write(database: &TestDatabase) {
    let stores = [database.open().await, database.open().await];
    let owner = Owner::new("owner");
    let id = |name: &str, n: usize| ConversationId::parse(&format!("{name}-{n}")).unwrap();
    let mut staying = BTreeSet::new();
    for n in 0..30 {
        for name in ["stays", "goes"] {
            stores[0].create(&owner, id(name, n), None, vec![]).await.unwrap();
        }
        staying.insert(id("stays", n).to_string());
    }
    let writing = async {
        for n in 0..30 {
            stores[1].delete(&owner, id("goes", n)).await.unwrap();
            stores[1].create(&owner, id("comes", n), None, vec![]).await.unwrap();
            stores[1].save(&owner, id("stays", n), vec![stored(Role::User, n.to_string())]).await.unwrap();
        }
    };
    let reading = async {
        for limit in [1, 4, 7] {
            let (mut found, mut cursor) = (Vec::new(), None);
            loop {
                let page = stores[0].list(&owner, cursor.as_ref(), limit).await.unwrap();
                found.extend(page.conversations.into_iter().map(|conversation| conversation.id.to_string()));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            let once = BTreeSet::from_iter(&found);
            assert_eq!(once.len(), found.len(), "nothing twice: {found:?}");
            assert!(staying.iter().all(|id| once.contains(id)), "nothing left out: {found:?}");
        }
    };
    tokio::join!(writing, reading);
    for store in stores {
        store.close().await;
    }
}
