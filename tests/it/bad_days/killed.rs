//! `kill -9` in the middle of saving. What was acknowledged is there exactly; what was not is there wholly or not at all;
//! the file opens without repair.
//!
//! `KILL_ROUNDS` says how often, `KILL_SEED` with which chance.

use std::{path::Path, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    bad_days::{Caller, asking, connect, messages, on, seeded},
    process::{Running, command},
    support::{
        ScriptedUpstream,
        dice::{self, Dice, number},
    },
};

/// Callers who save at once.
const WRITERS: usize = 6;

/// Conversations of each.
const EACH: usize = 3;

/// A conversation as it must be, `None` if it must not be there. A timestamp that the service gives is `null` until it
/// has been read.
type State = Option<Vec<Value>>;

/// What is known of a conversation.
struct Known {
    id: String,
    acknowledged: State,
    /// What it will be once the change that was on its way is through.
    asked: Option<State>,
}

/// One caller with his conversations.
struct Writer {
    dice: Dice,
    known: Vec<Known>,
}

impl Writer {
    fn new(number: usize, seed: u64) -> Self {
        let known = |n| Known { id: format!("writer-{number}-{n}"), acknowledged: None, asked: None };
        Self { dice: Dice(seed.wrapping_add(1 << number)), known: (0..EACH).map(known).collect() }
    }

    /// Changes one conversation after the other until the service is gone; tells of each change that is acknowledged.
    async fn write(mut self, caller: Caller, acknowledged: mpsc::Sender<()>) -> Self {
        loop {
            let Self { dice, known } = &mut self;
            let one = &mut known[dice.below(EACH)];
            let (method, path, body, after) = change(dice, one);
            let fine = match (&one.acknowledged, &after) {
                (None, Some(_)) if path == "/chat" => 200,
                (None, Some(_)) => 201,
                (None, None) => 404,
                _ => 200,
            };
            one.asked = Some(after.clone());
            let said = caller.ask(method.clone(), &path, body.as_ref()).await;
            match said.status() {
                None => return self,
                Some(status) => assert_eq!(status, fine, "{method} {path}: {said:?}"),
            }
            one.acknowledged = after;
            one.asked = None;
            let _ = acknowledged.try_send(());
        }
    }
}

/// A change to a conversation: how it is asked for, and what then is there.
fn change(dice: &mut Dice, known: &Known) -> (Method, String, Option<Value>, State) {
    let Known { id, acknowledged, .. } = known;
    let path = format!("/conversations/{id}");
    match dice.below(10) {
        0 => (Method::DELETE, path, None, None),
        1 => (Method::DELETE, path + "/messages", None, acknowledged.as_ref().map(|_| Vec::new())),
        2..5 => {
            // From one message in a page to many pages of the file.
            let count = dice.pick(&[1, 2, 10, 10, 10, 60]);
            let messages: Vec<Value> = (0..count).map(|_| message(dice, "user", true)).collect();
            (Method::PUT, path, Some(json!(messages)), Some(messages))
        }
        _ => {
            let question = message(dice, "user", false);
            let body = json!({"message": question["content"], "conversation_id": id});
            let answer = json!({"role": "assistant", "content": ANSWER, "timestamp": null});
            let after = acknowledged.iter().flatten().cloned().chain([question, answer]).collect();
            (Method::POST, "/chat".to_owned(), Some(body), Some(after))
        }
    }
}

/// What the scripted upstream says to everything.
const ANSWER: &str = "안녕하세요! 무엇을 도와드릴까요?";

fn message(dice: &mut Dice, role: &str, with_time: bool) -> Value {
    let words = ["부산 ", "바다 ", "sea ", "\u{0}", "🏖 "];
    let length = dice.below(150);
    let text: String = (0..length).map(|_| dice.pick(&words)).collect();
    let timestamp = with_time.then_some("2026-11-22T23:17:31.899397");
    json!({"role": role, "content": format!("{:x} {text}", dice.roll()), "timestamp": timestamp})
}

/// Whether `found` is `expected`; a timestamp that was not known may be any.
fn same(found: &State, expected: &State) -> bool {
    let equal = |(found, expected): (&Value, &Value)| {
        let mut expected = expected.clone();
        if expected["timestamp"].is_null() {
            expected["timestamp"] = found["timestamp"].clone();
        }
        *found == expected
    };
    match (found, expected) {
        (Some(found), Some(expected)) => found.len() == expected.len() && found.iter().zip(expected).all(equal),
        (found, expected) => found.is_none() && expected.is_none(),
    }
}

/// Changes that were on their way at a kill, by what became of them.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    acknowledged: usize,
    done: usize,
    undone: usize,
}

/// That the service has what it must have, and learns the rest from it.
async fn check(caller: &Caller, writers: &mut [Writer], tally: &mut Tally) {
    for known in writers.iter_mut().flat_map(|writer| &mut writer.known) {
        let said = caller.messages(&known.id).await;
        let found = match said.status() {
            Some(404) => None,
            _ => serde_json::from_value(said.expect(200)).unwrap(),
        };
        let asked = known.asked.take();
        let is_done = asked.as_ref().is_some_and(|asked| same(&found, asked));
        let is_undone = same(&found, &known.acknowledged);
        let expected = (&known.acknowledged, &asked);
        assert!(is_done || is_undone, "{}: neither old nor new\n{found:?}\n{expected:?}", known.id);
        if asked.is_some() && is_done != is_undone {
            *(if is_done { &mut tally.done } else { &mut tally.undone }) += 1;
        }
        known.acknowledged = found;
    }
}

/// That SQLite finds nothing wrong with the file, and that what is written twice is the same twice.
async fn check_file(file: &Path) {
    const COUNTS: &str = "SELECT count(*) FROM conversations WHERE
        (messages, user_messages, ai_messages, bytes) != (SELECT count(*), count(*) FILTER (WHERE role = 'user'),
            count(*) FILTER (WHERE role = 'assistant'), coalesce(sum(length(content)), 0)
            FROM messages WHERE conversation = key)
        OR messages != (SELECT coalesce(max(seq) + 1, 0) FROM messages WHERE conversation = key)";
    let mut connection = connect(file).await;
    let check: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.unwrap();
    assert_eq!(check, "ok");
    let orphans = sqlx::query("PRAGMA foreign_key_check").fetch_all(&mut connection).await.unwrap();
    assert!(orphans.is_empty(), "messages without a conversation");
    let wrong: i64 = sqlx::query_scalar(COUNTS).fetch_one(&mut connection).await.unwrap();
    assert_eq!(wrong, 0, "conversations whose counts are not those of their messages");
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_at_any_moment_each_save_is_there_wholly_or_not_at_all() {
    let rounds = number("KILL_ROUNDS").unwrap_or(10);
    let seed = number("KILL_SEED").unwrap_or_else(dice::seed);
    println!("KILL_SEED={seed} KILL_ROUNDS={rounds}");
    let mut dice = Dice(seed);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ai-service.db");
    let upstream = ScriptedUpstream::start().await;
    let mut writers: Vec<_> = (0..WRITERS).map(|number| Writer::new(number, seed)).collect();
    let mut tally = Tally::default();
    let start = || {
        let mut command = command();
        command.envs(asking(&upstream, &file));
        command
    };

    for round in 0..=rounds {
        if dice.one_in(8) {
            // Also while it is starting, which may be while it is recovering.
            let mut child = start().stdout(std::process::Stdio::null()).spawn().unwrap();
            tokio::time::sleep(Duration::from_micros(u64::try_from(dice.below(20_000)).unwrap())).await;
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let service = Running::begin(start());
        let caller = Caller::of(&service);
        check(&caller, &mut writers, &mut tally).await;
        check_file(&file).await;
        if round == rounds {
            break;
        }
        let (sender, mut acknowledged) = mpsc::channel(1024);
        let mut running = JoinSet::new();
        for writer in writers.drain(..) {
            running.spawn(writer.write(caller.clone(), sender.clone()));
        }
        // So many saves, and then a moment.
        for _ in 0..dice.below(25) {
            acknowledged.recv().await.unwrap();
            tally.acknowledged += 1;
        }
        tokio::time::sleep(Duration::from_micros(u64::try_from(dice.below(3000)).unwrap())).await;
        service.kill();
        while let Some(writer) = running.join_next().await {
            writers.push(writer.unwrap());
        }
    }
    println!("{tally:?}");
    let Tally { acknowledged, done, undone } = tally;
    assert!(rounds < 100 || [acknowledged, done, undone].iter().all(|count| *count > 20), "{tally:?}");
}

#[tokio::test]
async fn a_file_of_which_only_the_beginning_was_made_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    let file = seeded(directory.path()).await;
    let mut connection = connect(&file).await;
    let undo = "DROP TABLE messages; DROP TABLE conversations; DROP TABLE usage; DROP TABLE usage_batches; \
        DELETE FROM _sqlx_migrations";
    connection.execute(undo).await.unwrap();
    connection.close().await.unwrap();
    let service = Running::begin(on(&file));
    Caller::of(&service).put("new", &messages(2, 10)).await.expect(201);
}
