//! Every ending of a chat counts once, as what it was: looked up in the database behind the service.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};

use super::Service;
use crate::support::{
    Play,
    events::Script,
    upstream::{answer, response},
};

/// A row of usage: ending, whether it is an estimate, requests, tokens of prompts and of answers.
pub(super) type Row = (String, i64, i64, i64, i64);

/// A database in a file, and the variable that names it.
pub(super) struct Database {
    pub(super) url: String,
    _directory: tempfile::TempDir,
}

impl Database {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("ai-service.db").display());
        Self { url, _directory: directory }
    }

    pub(super) async fn open(&self) -> SqlitePool {
        let path = self.url.trim_start_matches("sqlite://");
        SqlitePool::connect_with(SqliteConnectOptions::new().filename(path)).await.unwrap()
    }

    /// What is counted for that caller.
    pub(super) async fn rows(&self, owner: &str) -> Vec<Row> {
        const SQL: &str = "SELECT ending, estimated, requests, prompt_tokens, completion_tokens FROM usage \
            WHERE owner = $1 ORDER BY ending, estimated";
        sqlx::query_as(SQL).bind(owner).fetch_all(&self.open().await).await.unwrap()
    }
}

fn row(ending: &str, estimated: i64, [requests, prompt, completion]: [i64; 3]) -> Row {
    (ending.to_owned(), estimated, requests, prompt, completion)
}

/// What is counted once the service has ended, after `play` has been played.
async fn counted(pairs: &[(&str, &str)], play: impl AsyncFnOnce(&Service)) -> Vec<Row> {
    let database = Database::new();
    let pairs: Vec<_> = [("DATABASE_URL", database.url.as_str())].iter().chain(pairs).copied().collect();
    let service = Service::start_with(&pairs).await;
    play(&service).await;
    service.app.stop_gracefully().await;
    assert_eq!(database.rows("key:bob").await, [], "nothing of somebody else's");
    database.rows("key:alice").await
}

/// "twelve bytes" are three tokens, and so is the answer of twelve bytes; a message has four more.
fn question() -> Value {
    json!({"message": "twelve bytes"})
}

const PIECE: &str = "twelve bytes";

fn endless() -> Script {
    Script::chunked().role().piece(PIECE).play(Play::Silence)
}

#[tokio::test]
async fn whole_answers_and_streams_that_are_done_count_what_the_upstream_says() {
    let counted = counted(&[], async |service| {
        let alice = &service.alice;
        alice.chat(&question()).await;
        service.upstream.then(Script::answer(&["x"])).then(Script::answer(&["x"]));
        let id = alice.begin(&question()).await;
        alice.events(&id).await.rest().await;
        alice.chat_as_stream(&question()).await.rest().await;
        // An upstream that does not say what it took.
        let mut silent = answer(PIECE);
        silent.as_object_mut().unwrap().remove("usage");
        service.upstream.then_json(&silent);
        alice.chat(&question()).await;
        service.upstream.then(Script::chunked().role().piece(PIECE).finish("stop").done().end());
        alice.chat_as_stream(&question()).await.rest().await;
    });
    assert_eq!(counted.await, [row("done", 0, [3, 30, 45]), row("done", 1, [2, 14, 6])]);
}

#[tokio::test]
async fn a_stream_that_is_stopped_is_cancelled() {
    let counted = counted(&[], async |service| {
        service.upstream.then(endless());
        let id = service.alice.begin(&question()).await;
        service.alice.events(&id).await.take(2).await;
        service.bob.cancel(&id).await.error(404);
        assert_eq!(service.alice.cancel(&id).await.status, 200);
        service.alice.cancel(&id).await.error(404);
    });
    assert_eq!(counted.await, [row("cancelled", 1, [1, 7, 3])]);
}

#[tokio::test]
async fn whoever_leaves_has_left() {
    let counted = counted(&[("STREAM_ORPHAN_SECONDS", "1")], async |service| {
        let (upstream, alice) = (&service.upstream, &service.alice);
        upstream.then([Play::Silence]);
        let body = question();
        tokio::select! {
            answer = alice.chat(&body) => panic!("{answer:?}"),
            () = upstream.arrived(1) => {}
        }
        upstream.left().await;
        upstream.then(endless());
        let id = alice.begin(&json!({"message": PIECE, "on_disconnect": "cancel"})).await;
        let mut reading = alice.events(&id).await;
        reading.take(2).await;
        drop(reading);
        upstream.left().await;
        // One that nobody ever reads.
        upstream.then(endless());
        alice.begin(&question()).await;
        upstream.left().await;
    });
    assert_eq!(counted.await, [row("left", 1, [3, 21, 6])]);
}

#[tokio::test]
async fn what_gave_no_answer_has_failed_and_costs_nothing_if_it_was_refused() {
    let counted = counted(&[], async |service| {
        for script in [vec![Play::Reset], vec![Play::Send(response(500, "", "{}"))]] {
            service.upstream.then(script.clone()).then(script);
            assert_eq!(service.alice.chat(&question()).await.status, 502);
            let id = service.alice.begin(&question()).await;
            service.alice.events(&id).await.rest().await;
        }
    });
    // Those whose connection broke behind the question may have been billed: seven tokens each.
    assert_eq!(counted.await, [row("failed", 1, [4, 14, 0])]);
}

#[tokio::test]
async fn what_broke_off_was_cut_and_so_was_what_the_end_of_the_service_ended() {
    let counted = counted(&[("SHUTDOWN_GRACE_SECONDS", "0")], async |service| {
        service.upstream.then(Script::chunked().role().piece(PIECE).play(Play::Reset)).then(endless());
        let id = service.alice.begin(&question()).await;
        service.alice.events(&id).await.rest().await;
        let id = service.alice.begin(&question()).await;
        service.alice.events(&id).await.take(2).await;
    });
    assert_eq!(counted.await, [row("cut", 1, [2, 14, 6])]);
}

#[tokio::test]
async fn what_was_refused_before_it_was_asked_is_no_chat() {
    let pairs =
        [("RATE_LIMIT_TOKENS_PER_MINUTE", "100"), ("MAX_CONCURRENT_STREAMS", "1"), ("STREAM_ORPHAN_SECONDS", "0")];
    let counted = counted(&pairs, async |service| {
        let alice = &service.alice;
        alice.chat(&json!({})).await.error(422);
        service.upstream.then(endless());
        let id = alice.begin(&json!({"message": PIECE, "max_tokens": 90})).await;
        alice.chat(&question()).await.error(429);
        alice.post("/chat/stream", &question()).await.error(429);
        alice.events(&id).await.take(2).await;
        alice.cancel(&id).await;
    });
    assert_eq!(counted.await, [row("cancelled", 1, [1, 7, 3])]);
}

#[tokio::test]
async fn the_same_request_again_counts_once_and_titles_count_as_what_they_are() {
    let counted = counted(&[], async |service| {
        let headers = [("content-type", "application/json"), ("idempotency-key", "again")];
        let body = json!({"message": PIECE, "conversation_id": "trip"}).to_string().into_bytes();
        service.upstream.then_json(&answer("x")).then_status(500, "", "{}");
        let again = (0..10).map(|_| service.alice.request(reqwest::Method::POST, "/chat", &headers, body.clone()));
        let answers = futures_util::future::join_all(again).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
        // Its title, made in the background, fails.
        service.upstream.arrived(2).await;
        service.upstream.then_json(&answer("제목"));
        service.alice.post("/conversations/trip/title", &json!({})).await;
    });
    assert_eq!(counted.await, [row("done", 0, [2, 20, 30]), row("failed", 1, [1, 0, 0])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_endings_at_once_are_all_counted() {
    let counted = counted(&[], async |service| {
        let one = async |n: usize| match n % 3 {
            0 => drop(service.alice.chat(&question()).await),
            1 => drop(service.alice.get("/usage").await),
            _ => {
                let body = question();
                let _ = tokio::time::timeout(Duration::from_millis(n as u64), service.alice.chat(&body)).await;
            }
        };
        futures_util::future::join_all((0..150).map(one)).await;
    });
    let counted = counted.await;
    let requests: i64 = counted.iter().map(|row| row.2).sum();
    let done = counted.iter().find(|row| row.0 == "done").unwrap();
    assert!((50..=100).contains(&requests) && done.3 == done.2 * 10, "{counted:?}");
}
