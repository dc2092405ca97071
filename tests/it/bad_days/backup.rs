//! A copy of the database, made while turns are being stored.

use std::{process::Output, thread};

use ai_service::{
    config::Database,
    conversations::Conversations,
    ids::{ConversationId, Owner},
};
use serde_json::json;

use super::{address, on};
use crate::process::{Running, command};

fn back_up(database: &str, to: &std::path::Path) -> Output {
    command().env("DATABASE_URL", database).arg("backup").arg(to).output().unwrap()
}

#[test]
fn a_copy_made_while_turns_are_stored_has_all_that_was_acknowledged_before() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ai.db");
    let service = Running::begin(on(&file));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = service.url("/chat");
    let store = async |n: usize| {
        let body = json!({"message": format!("question {n}"), "conversation_id": "c"});
        let request = client.post(&url).header("content-type", "application/json").body(body.to_string());
        assert_eq!(request.send().await.unwrap().status(), 200);
    };
    let mut stored = 0;
    for copy in 0..3 {
        for _ in 0..3 {
            runtime.block_on(store(stored));
            stored += 1;
        }
        let to = directory.path().join(format!("copy-{copy}.db"));
        let (database, target) = (address(&file), to.clone());
        let copying = thread::spawn(move || back_up(&database, &target));
        let more = runtime.block_on(async {
            let mut more = 0;
            while !copying.is_finished() {
                store(stored + more).await;
                more += 1;
            }
            more
        });
        let output = copying.join().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let messages = runtime.block_on(messages_in(&to));
        let expected = 2 * stored..=2 * (stored + more);
        assert!(expected.contains(&messages) && messages.is_multiple_of(2), "{messages} of {expected:?}");
        stored += more;
        // A second copy takes the place of nothing.
        let again = back_up(&address(&file), &to);
        assert_eq!(again.status.code(), Some(1));
        assert!(String::from_utf8(again.stderr).unwrap().contains("exists"));
    }
    let parts = std::fs::read_dir(directory.path()).unwrap();
    assert!(parts.flatten().all(|entry| !entry.file_name().to_string_lossy().ends_with(".part")));
}

/// Of the only conversation, in the copy opened as a service would.
async fn messages_in(copy: &std::path::Path) -> usize {
    let conversations = Conversations::open(&Database::Sqlite(copy.to_owned())).await.unwrap();
    let id = ConversationId::parse("c").unwrap();
    let messages = conversations.messages(&Owner::default(), &id).await.unwrap().unwrap();
    conversations.close().await;
    messages.len()
}

#[test]
fn what_cannot_be_copied_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("copy.db");
    for (database, expected) in [
        ("sqlite::memory:".to_owned(), "names no SQLite file"),
        ("postgres://user:canary@127.0.0.1:1/db".to_owned(), "pg_dump"),
        (address(&directory.path().join("none.db")), "there is no database"),
    ] {
        let output = back_up(&database, &to);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected) && !said.contains("canary"), "{said}");
        assert!(!to.exists());
    }
}
