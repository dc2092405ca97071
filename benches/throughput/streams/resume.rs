//! A finished stream, read again from its start. Only the service can: the others keep nothing.

use std::io;

use crate::{
    http::{Connection, get},
    load::{self, Load, Measured},
    process::Process,
    report::{Found, Plan},
};

use super::{SERVICE, question, read, upstream::LONG};

const CONNECTIONS: usize = 32;

pub(crate) async fn report(plan: &Plan) {
    let upstream = plan.start_upstream(LONG.role);
    let mut found = Found::new();
    for target in plan.visits(&[SERVICE]) {
        let process = plan.start(target, &upstream);
        let request = get(process.address, &finished_stream(&process).await.unwrap());
        let load = Load::of(CONNECTIONS, plan.duration);
        let measured = load::run(&process, load, async move |connection, tally| {
            read(connection, &request, LONG.words, tally).await
        });
        found.add(target.name, measured.await);
    }
    let title = "Resume: a finished stream, read from its start";
    found.print(
        &format!("{title}; {} words that came one by one, {CONNECTIONS} connections", LONG.words),
        &[
            ("replays/s", 0, |m| m.answers.count() / m.seconds),
            ("CPU µs/replay", 1, cpu),
            ("p50 µs", 0, |m| m.answers.percentile(50)),
            ("p99 µs", 0, |m| m.answers.percentile(99)),
            ("words/HTTP chunk", 1, |m| m.words / m.chunks),
        ],
    );
}

fn cpu(measured: &Measured) -> f64 {
    measured.cpu_micros / measured.answers.count()
}

/// The path of a stream that has been read to its end.
async fn finished_stream(process: &Process) -> io::Result<String> {
    let mut connection = Connection::open(process.address).await?;
    connection.send(&question(process.address, &SERVICE)).await?;
    connection.answer().await?;
    let mut id = None;
    while let Some(events) = connection.chunk().await? {
        let events = String::from_utf8_lossy(events);
        let named = events.split_once(r#""stream_id":""#).and_then(|(_, rest)| rest.split_once('"'));
        id = id.or(named.map(|(id, _)| id.to_owned()));
    }
    id.map(|id| format!("/chat/stream/{id}")).ok_or_else(|| io::Error::other("a stream without a START"))
}
