//! Another program holds the file: a backup, a shell, a second service.

use std::{fs, path::Path};

use serde_json::json;
use sqlx::{Connection, Executor};

use crate::{
    bad_days::{Caller, connect, messages, on, refusal, seeded},
    process::Running,
};

/// That the service does not start while somebody has done `lock` to the file, and starts when he is gone.
async fn refused_while(file: &Path, lock: &str) {
    // Before the lock: closing a file gives up every lock that this process has on it.
    let before = fs::read(file).unwrap();
    let mut other = connect(file).await;
    other.execute(sqlx::AssertSqlSafe(lock)).await.unwrap();
    let said = refusal(on(file), file);
    assert!(said.contains("another program has locked it. Stop the program"), "{said}");
    other.close().await.unwrap();
    assert!(fs::read(file).unwrap() == before, "it was changed");
    let service = Running::begin(on(file));
    Caller::of(&service).get("/conversations").await.expect(200);
}

#[tokio::test]
async fn a_file_with_a_write_lock_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    refused_while(&seeded(directory.path()).await, "BEGIN EXCLUSIVE").await;
}

#[tokio::test]
async fn a_file_that_somebody_keeps_to_himself_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let lock = "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT";
    refused_while(&seeded(directory.path()).await, lock).await;
}

#[tokio::test]
async fn a_file_that_somebody_is_just_making_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ai-service.db");
    fs::write(&file, "").unwrap();
    refused_while(&file, "BEGIN EXCLUSIVE; CREATE TABLE other (x)").await;
}

#[tokio::test]
async fn a_lock_that_comes_later_costs_saves_503_reads_nothing_and_goes_without_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ai-service.db");
    let service = Running::begin(on(&file));
    let caller = Caller::of(&service);
    let old = messages(4, 100);
    caller.put("old", &old).await.expect(201);

    let mut other = connect(&file).await;
    other.execute("BEGIN EXCLUSIVE").await.unwrap();
    let nothing = json!([]);
    let saved = caller.put("old", &nothing);
    let read = async {
        assert_eq!(caller.messages("old").await.expect(200), old);
        caller.post("/chat", &json!({"message": "x"})).await.expect(200);
    };
    let (saved, ()) = tokio::join!(saved, read);
    saved.refused(503, "storage_unavailable");
    other.execute("ROLLBACK").await.unwrap();

    assert_eq!(caller.messages("old").await.expect(200), old);
    caller.turn("old", "and now?").await.expect(200);
    assert_eq!(caller.messages("old").await.expect(200).as_array().unwrap().len(), 6);
    other.close().await.unwrap();
}
