//! PostgreSQL goes away and comes back, in each of the ways in which it can.

use std::time::{Duration, Instant};

use ai_service::{
    config::{Config, Database},
    server::App,
};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::{
    conversations::{ask, messages, said},
    support::{
        Answer, PATIENCE, ScriptedUpstream, TestApp,
        database::{Kind, TestDatabase, connect},
        events::Script,
        eventually, variables,
        weak_link::WeakLink,
    },
};

/// What a caller is promised: two seconds; and a little for a busy machine.
const SOON: Duration = Duration::from_millis(2300);

/// A PostgreSQL behind a link, and a service that has it through that.
struct Outage {
    database: TestDatabase,
    link: WeakLink,
    upstream: ScriptedUpstream,
}

impl Outage {
    async fn prepare() -> Self {
        let database = TestDatabase::new(Kind::Postgres).await;
        let url = database.postgres_url().expect("PostgreSQL");
        let server = url.socket_addrs(|| None).expect("an address")[0];
        let upstream = ScriptedUpstream::start().await;
        upstream.echo();
        Self { link: WeakLink::to(server).await, database, upstream }
    }

    /// The database's address on this side of the link.
    fn database(&self) -> Database {
        let mut url = self.database.postgres_url().expect("PostgreSQL").clone();
        url.set_port(Some(self.link.address.port())).expect("a port");
        Database::Postgres(url.as_str().into())
    }

    async fn app(&self) -> TestApp {
        let behind = |config: &mut Config| config.conversations.database = self.database();
        self.database.app_with(&self.upstream, behind).await
    }

    /// Ends everything, in any state of the link.
    async fn end(self, app: TestApp) {
        drop(app);
        self.database.remove().await;
    }
}

/// Every way to ask for a conversation.
async fn ask_everything(app: &TestApp) -> Vec<(String, Answer, Duration)> {
    let turn = json!({"message": "x", "conversation_id": "c"});
    let list = json!([{"role": "user", "content": "x"}]);
    let requests = [
        (Method::GET, "/conversations", Value::Null),
        (Method::POST, "/conversations", json!({})),
        (Method::GET, "/conversations/c", Value::Null),
        (Method::PUT, "/conversations/c", list),
        (Method::DELETE, "/conversations/c", Value::Null),
        (Method::GET, "/conversations/c/messages", Value::Null),
        (Method::DELETE, "/conversations/c/messages", Value::Null),
        (Method::GET, "/conversations/c/summary", Value::Null),
        (Method::POST, "/conversations/c/title", json!({})),
        (Method::POST, "/chat", turn.clone()),
        (Method::POST, "/chat/stream", turn),
    ];
    join_all(requests.into_iter().map(async |(method, path, body)| {
        let begun = Instant::now();
        let answer = app.send(method.clone(), path, &body).await;
        (format!("{method} {path}"), answer, begun.elapsed())
    }))
    .await
}

/// That everything about conversations is refused as promised, and nothing else is refused.
async fn assert_away(app: &TestApp, upstream: &ScriptedUpstream) {
    let before = upstream.seen().len();
    for (request, answer, time) in ask_everything(app).await {
        let (detail, code) = answer.error(503);
        assert_eq!((code.as_str(), answer.header("retry-after")), ("storage_unavailable", Some("2")), "{request}");
        assert!(detail.as_str().unwrap().contains("conversations cannot be reached at the moment"), "{detail}");
        assert!(time < SOON, "{request} took {time:?}");
    }
    assert_eq!(upstream.seen().len(), before, "nothing was paid for");
    let begun = Instant::now();
    assert_eq!(app.chat(&json!({"message": "hello"})).await.json()["response"], "re: hello");
    let events = app.chat_as_stream(&json!({"message": "hello"})).await.rest().await;
    assert_eq!(events.last().unwrap().data["full_content"], "re: hello");
    assert_eq!(app.get("/health").await.json()["status"], "healthy");
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody else waits: {:?}", begun.elapsed());
}

/// That everything is as it was, at the first try or soon.
async fn assert_back(app: &TestApp) {
    eventually(async || app.get("/conversations").await.status == 200).await;
    eventually(async || ask(app, "kept", "again").await.status == 200).await;
    let stored = messages(app, "kept").await;
    assert_eq!(said(&stored)[1], ("assistant", "re: first"));
    for (request, answer, _) in ask_everything(app).await {
        assert_ne!(answer.status, 503, "{request}");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn a_database_that_refuses_is_said_soon_and_is_back_by_itself() {
    let outage = Outage::prepare().await;
    let app = outage.app().await;
    ask(&app, "kept", "first").await;
    outage.link.refuse().await;
    assert_away(&app, &outage.upstream).await;
    outage.link.mend().await;
    assert_back(&app).await;
    outage.end(app).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn a_database_that_hangs_is_said_soon_and_is_back_by_itself() {
    let outage = Outage::prepare().await;
    let app = outage.app().await;
    ask(&app, "kept", "first").await;
    outage.link.hang().await;
    assert_away(&app, &outage.upstream).await;
    outage.link.mend().await;
    assert_back(&app).await;
    outage.end(app).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn connections_that_hang_for_ever_are_given_up() {
    let outage = Outage::prepare().await;
    let app = outage.app().await;
    ask(&app, "kept", "first").await;
    // As many connections as there can be, all of them in the middle of something.
    let mut holder = connect(outage.database.postgres_url().expect("PostgreSQL")).await;
    holder.execute("BEGIN; LOCK TABLE conversations").await.unwrap();
    let asking = join_all((0..20).map(|_| app.get("/conversations")));
    let hang = async {
        outage.database.waiting(16).await;
        outage.link.hang().await;
        holder.execute("COMMIT").await.unwrap();
    };
    let (answers, ()) = tokio::join!(asking, hang);
    assert!(answers.iter().all(|answer| answer.status == 503));
    assert_away(&app, &outage.upstream).await;
    // Another machine answers now, and it knows nothing of the old connections.
    outage.link.replace().await;
    let begun = Instant::now();
    assert_back(&app).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    outage.end(app).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn what_was_left_half_way_does_not_lock_its_conversation_for_ever() {
    let outage = Outage::prepare().await;
    let app = outage.app().await;
    ask(&app, "kept", "first").await;
    // A turn is being stored: its conversation is locked, its messages are still to be written.
    let mut holder = connect(outage.database.postgres_url().expect("PostgreSQL")).await;
    holder.execute("BEGIN; LOCK TABLE messages IN EXCLUSIVE MODE").await.unwrap();
    let hang = async {
        outage.database.waiting(1).await;
        outage.link.hang().await;
        holder.execute("COMMIT").await.unwrap();
    };
    let (answer, ()) = tokio::join!(ask(&app, "kept", "lost"), hang);
    assert_eq!(answer.error(503).1, "storage_unavailable");
    outage.link.replace().await;
    assert_back(&app).await;
    let stored = messages(&app, "kept").await;
    assert!(!said(&stored).contains(&("user", "lost")), "nor half of it: {stored:?}");
    outage.end(app).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn connections_that_died_unnoticed_cost_nobody_a_request() {
    let outage = Outage::prepare().await;
    let app = outage.app().await;
    ask(&app, "kept", "first").await;
    join_all((0..4).map(|_| app.get("/conversations"))).await;
    outage.link.hang().await;
    outage.link.replace().await;
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(app.get("/conversations/kept").await.status, 200);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    assert_back(&app).await;
    outage.end(app).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn a_restarted_database_costs_nobody_a_request() {
    let outage = Outage::prepare().await;
    let app = outage.app().await;
    for n in 0..5 {
        assert_eq!(ask(&app, "c", &n.to_string()).await.status, 200);
        join_all((0..20).map(|_| app.get("/conversations"))).await;
        outage.link.break_off().await;
    }
    let answers = join_all((0..20).map(|_| app.get("/conversations"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(messages(&app, "c").await.len(), 10);
    outage.end(app).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn a_service_starts_without_its_database_and_has_it_when_it_is_there() {
    join_all([false, true].map(async |is_silent| {
        let outage = Outage::prepare().await;
        if is_silent {
            outage.link.hang().await;
        } else {
            outage.link.refuse().await;
        }
        let begun = Instant::now();
        let app = outage.app().await;
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert_away(&app, &outage.upstream).await;
        outage.link.mend().await;
        eventually(async || ask(&app, "kept", "first").await.status == 200).await;
        assert_back(&app).await;
        outage.end(app).await;
    }))
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn a_stream_that_outlives_its_database_hands_its_text_to_its_readers() {
    join_all([false, true].map(async |is_silent| {
        let outage = Outage::prepare().await;
        let app = outage.app().await;
        ask(&app, "kept", "first").await;
        outage.upstream.then(Script::chunked().piece("하나").hold().piece("둘").finish("stop").done().end());
        let id = app.begin(&json!({"message": "x", "conversation_id": "kept"})).await;
        app.events(&id).await.take(2).await;
        if is_silent {
            outage.link.hang().await;
        } else {
            outage.link.refuse().await;
        }
        outage.upstream.release();
        let begun = Instant::now();
        let last = app.events(&id).await.rest().await.pop().unwrap().data;
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert_eq!((&last["type"], &last["code"]), (&json!("ERROR"), &json!("storage_unavailable")));
        assert_eq!((&last["status"], &last["retryable"]), (&json!(503), &json!(true)));
        assert_eq!(last["partial"], "하나둘");
        outage.link.mend().await;
        eventually(async || app.get("/conversations/kept").await.status == 200).await;
        assert_eq!(messages(&app, "kept").await.len(), 2, "nothing of it was stored");
        outage.end(app).await;
    }))
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn a_database_that_hangs_does_not_hold_up_the_end() {
    let outage = Outage::prepare().await;
    let app = outage.app().await;
    join_all((0..20).map(|_| app.get("/conversations"))).await;
    outage.link.hang().await;
    let refused = join_all((0..20).map(|_| app.get("/conversations"))).await;
    assert!(refused.iter().all(|answer| answer.status == 503));
    let begun = Instant::now();
    tokio::time::timeout(PATIENCE, app.stop_gracefully()).await.expect("the end");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    outage.database.remove().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn a_service_that_gave_up_making_tables_lets_the_next_one_make_them() {
    let outage = Outage::prepare().await;
    // Somebody is about to make a table of the same name, for longer than the first service waits.
    let mut holder = connect(outage.database.postgres_url().expect("PostgreSQL")).await;
    holder.execute("BEGIN; CREATE TABLE conversations (x INTEGER)").await.unwrap();
    let first = outage.app().await;
    holder.execute("ROLLBACK").await.unwrap();
    let second = outage.app().await;
    eventually(async || ask(&second, "kept", "first").await.status == 200).await;
    assert_eq!(messages(&first, "kept").await.len(), 2);
    drop(second);
    outage.end(first).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL; run by make test"]
async fn what_waiting_does_not_mend_is_said_at_the_start() {
    let outage = Outage::prepare().await;
    let url = outage.database.postgres_url().expect("PostgreSQL").clone();
    let changed = |change: fn(&mut url::Url)| {
        let mut url = url.clone();
        change(&mut url);
        url
    };
    for (url, problem) in [
        (changed(|url| url.set_password(Some("canary-password")).unwrap()), "the user or the password is refused"),
        (changed(|url| url.set_username("nobody-of-that-name").unwrap()), "the user or the password is refused"),
        (changed(|url| url.set_path("no_such_database")), "there is no such database"),
    ] {
        let mut config = Config::from_variables(&variables(&outage.upstream.base_url), false).unwrap();
        config.conversations.database = Database::Postgres(url.as_str().into());
        let error = App::open(&config).await.expect_err("refused").to_string();
        assert!(error.contains(problem), "{error}");
        assert!(!error.contains("canary-password") && !error.contains(url.password().unwrap()), "{error}");
    }
    outage.database.remove().await;
}
