//! What callers have used, as it is kept: over days and months, restarts, and failures of the database.

use chrono::{Datelike, Days, Local, NaiveDate};
use serde_json::{Value, json};
use sqlx::SqlitePool;

use super::{ALICE, KEYS, Service, endings::Database, numbers, used_today};
use crate::support::{ScriptedUpstream, TestApp, eventually};

async fn start(upstream: &ScriptedUpstream, database: &Database) -> TestApp {
    TestApp::start_from(&upstream.base_url, &[("API_KEYS", KEYS), ("DATABASE_URL", &database.url)]).await
}

fn question() -> Value {
    json!({"message": "x"})
}

#[tokio::test]
async fn what_was_used_outlives_the_service() {
    let (upstream, database) = (ScriptedUpstream::start().await, Database::new());
    for round in 1..=3 {
        let app = start(&upstream, &database).await;
        let alice = app.asked_by(ALICE);
        alice.chat(&question()).await;
        assert_eq!(used_today(&alice).await, [round, round * 10, round * 15, 0]);
        alice.chat(&json!({"message": 7})).await;
        app.stop_gracefully().await;
    }
}

#[tokio::test]
async fn it_is_written_within_a_second_without_anybody_asking() {
    let (upstream, database) = (ScriptedUpstream::start().await, Database::new());
    let app = start(&upstream, &database).await;
    app.asked_by(ALICE).chat(&question()).await;
    eventually(async || !database.rows("key:alice").await.is_empty()).await;
}

#[tokio::test]
async fn today_and_this_month_begin_where_they_begin() {
    let service = Service::start().await;
    let (upstream, database) = (ScriptedUpstream::start().await, Database::new());
    let app = start(&upstream, &database).await;
    let pool = database.open().await;
    let today = Local::now().date_naive();
    let add = async |owner: &str, day: NaiveDate, ending: &str, estimated: i64, prompt: i64| {
        const SQL: &str = "INSERT INTO usage (owner, day, ending, estimated, requests, prompt_tokens, completion_tokens) \
            VALUES ($1, $2, $3, $4, 1, $5, 1)";
        let row = sqlx::query(SQL).bind(owner.to_owned()).bind(day.to_string()).bind(ending.to_owned());
        row.bind(estimated).bind(prompt).execute(&pool).await.unwrap();
    };
    let first = today.with_day(1).unwrap();
    let before = first.checked_sub_days(Days::new(1)).unwrap();
    add("key:alice", today, "done", 0, 100).await;
    add("key:alice", today, "cut", 1, 1000).await;
    add("key:alice", first, "left", 1, 10_000).await;
    add("key:alice", before, "done", 0, 1_000_000).await;
    add("key:bob", today, "done", 0, 7).await;
    let report = app.asked_by(ALICE).get("/usage").await.json();
    let is_first = today == first;
    let expected = if is_first { [3, 11_100, 3, 11_002] } else { [2, 1100, 2, 1001] };
    assert_eq!(numbers(&report["today"]), expected);
    assert_eq!(numbers(&report["month"]), [3, 11_100, 3, 11_002]);
    assert_eq!(used_today(&service.alice).await, [0, 0, 0, 0]);
}

async fn run(pool: &SqlitePool, sql: &'static str) {
    sqlx::query(sql).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_fails_for_a_while_loses_nothing_and_counts_nothing_twice() {
    let (upstream, database) = (ScriptedUpstream::start().await, Database::new());
    let app = start(&upstream, &database).await;
    let alice = app.asked_by(ALICE);
    let pool = database.open().await;
    let mut asked = 0;
    for _ in 0..3 {
        run(&pool, "ALTER TABLE usage RENAME TO usage_elsewhere").await;
        for _ in 0..3 {
            // The chat itself does not mind.
            assert_eq!(alice.chat(&question()).await.status, 200);
            asked += 1;
            assert_eq!(alice.get("/usage").await.error(503).1, "storage_unavailable");
        }
        run(&pool, "ALTER TABLE usage_elsewhere RENAME TO usage").await;
        let at_once = futures_util::future::join_all((0..20).map(|_| used_today(&alice))).await;
        assert!(at_once.iter().all(|used| *used == [asked, asked * 10, asked * 15, 0]), "{at_once:?} of {asked}");
    }
    app.stop_gracefully().await;
    let rows = database.rows("key:alice").await;
    let asked = i64::try_from(asked).unwrap();
    assert_eq!(rows, [("done".to_owned(), 0, asked, asked * 10, asked * 15)]);
}
