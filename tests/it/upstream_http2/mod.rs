//! The upstream as production has it: behind an edge with TLS and HTTP/2, which has limits, ages, refuses and dies.

mod behind_nginx;
mod connections;
mod dead_paths;
mod endings;
mod refusals;

use futures_util::{StreamExt, future::join_all, stream};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Answer, Play, ScriptedUpstream, TestApp, Transport,
    events::{Event, Reading, Script, contents},
    eventually,
    upstream::{answer, response},
};

/// What a stream says before its gate opens, and behind it.
const BEFORE: &str = "안녕";
const BEHIND: &str = "하세요!";

/// Not one failure.
const NONE: [String; 0] = [];

async fn upstream() -> ScriptedUpstream {
    ScriptedUpstream::over(Transport::Http2).await
}

async fn ask(app: &TestApp) -> Answer {
    app.chat(&json!({"message": "x"})).await
}

/// So many questions at once; the statuses of the answers that are no success.
async fn failures(app: &TestApp, count: usize) -> Vec<String> {
    let answers = join_all((0..count).map(|_| ask(app))).await;
    answers.iter().filter(|answer| answer.status != 200).map(Answer::text).collect()
}

/// An upstream whose streams say a word and wait for the gate to say the last one. Whole answers do not wait.
fn gated(upstream: &ScriptedUpstream) -> CancellationToken {
    let gate = CancellationToken::new();
    let until = gate.clone();
    upstream.answers(move |seen| {
        let script = match seen.body["stream"].as_bool() {
            Some(true) => {
                let script = Script::chunked().role().piece(BEFORE).play(Play::Until(until.clone()));
                script.piece(BEHIND).finish("stop").usage().done().end().into_iter().collect()
            }
            _ => vec![Play::Send(response(200, "", &answer("x").to_string()))],
        };
        Some(script)
    });
    gate
}

/// Begins so many streams at once and reads START and the first word of each.
async fn first_words(app: &TestApp, count: usize) -> Vec<Reading> {
    let begun = join_all((0..count).map(|_| async {
        let mut reading = app.chat_as_stream(&json!({"message": "x"})).await;
        let events = reading.take(2).await;
        assert_eq!(events[1].data["content"], BEFORE, "{events:?}");
        reading
    }));
    begun.await
}

/// Begins so many streams that nobody reads yet, and waits until each has its first word.
async fn begun(app: &TestApp, count: usize) -> Vec<String> {
    let streams = stream::iter(0..count).map(async |_| app.begin(&json!({"message": "x"})).await);
    let streams: Vec<_> = streams.buffer_unordered(32).collect().await;
    for id in &streams {
        eventually(async || app.state(id).await["content"] == BEFORE).await;
    }
    streams
}

/// How many of these end without their last word.
async fn lost(app: &TestApp, streams: &[String]) -> usize {
    let mut lost = 0;
    for id in streams {
        let events = app.events(id).await.rest().await;
        lost += usize::from(contents(&events) != [BEFORE, BEHIND] || events.last().unwrap().kind() != "END");
    }
    lost
}

/// How many of these end without their last word.
async fn broken(readings: Vec<Reading>) -> usize {
    let rest = join_all(readings.into_iter().map(async |mut reading| reading.rest().await)).await;
    rest.iter().filter(|events| !is_whole(events)).count()
}

fn is_whole(events: &[Event]) -> bool {
    contents(events) == [BEHIND] && events.last().is_some_and(|last| last.kind() == "END")
}
