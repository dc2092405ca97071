//! `cargo bench --bench conversations`: what it costs to keep a conversation, on SQLite.
//!
//! A database of 10,000 conversations is made once; each measurement runs on a copy of it, in a process of its own (this
//! binary again), as in `benches/throughput`. The same question is asked without a conversation, with the same twenty
//! messages in the request, and with `conversation_id`: what the second costs is sending them, what the third costs
//! beyond that is storing. The files lie where `TMPDIR` says: the disk there decides the times, and hardly the CPU.
//! `BENCH_SECONDS` (3) and `BENCH_ROUNDS` (3) as there; `BENCH_ONLY` names rows: alone, history, conversation, load.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::as_conversions,
    clippy::print_stdout,
    reason = "a benchmark: what fails should stop it, and what it finds is printed"
)]

mod database;
mod load;
#[allow(dead_code, reason = "the other benchmark needs more of it")]
#[path = "../throughput/process.rs"]
mod process;
mod target;

use std::{env, fs, path::Path, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

use load::{Measured, Requests};
use process::{Pinning, Process};

/// How many connections ask at once.
const CONNECTIONS: [usize; 3] = [1, 8, 32];

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [target::ROLE, role, upstream @ ..] => target::play(role, upstream.first().copied()),
        _ if arguments.contains(&"--bench") => measure(),
        // That is `cargo test --all-targets`, which has no time for this.
        _ => println!("run me with cargo bench"),
    }
}

fn measure() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        // Dropping the measurements kills the processes they started.
        tokio::select! {
            () = report() => {}
            _ = tokio::signal::ctrl_c() => println!("\nstopped"),
            _ = terminate.recv() => println!("\nstopped"),
        }
    });
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Alone,
    HistoryInRequest,
    Conversation,
    Load,
}

impl Row {
    const ALL: [Self; 4] = [Self::Alone, Self::HistoryInRequest, Self::Conversation, Self::Load];

    /// Its name in `BENCH_ONLY`.
    fn word(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::HistoryInRequest => "history",
            Self::Conversation => "conversation",
            Self::Load => "load",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Alone => "`POST /chat`",
            Self::HistoryInRequest => "the same with 20 messages in the request",
            Self::Conversation => "the same with `conversation_id`",
            Self::Load => "`GET …/messages` of 100",
        }
    }

    fn requests(self) -> Requests {
        match self {
            Self::Alone => Requests::chat(|_| String::new()),
            Self::HistoryInRequest => Requests::chat(|n| {
                let history: Vec<_> = database::messages(n, database::MESSAGES).collect();
                let history: Vec<_> = history
                    .iter()
                    .map(|message| serde_json::json!({"role": message.role.as_str(), "content": message.content}))
                    .collect();
                format!(r#","conversation_history":{}"#, serde_json::Value::from(history))
            }),
            Self::Conversation => Requests::chat(|n| format!(r#","conversation_id":"{}""#, database::id(n))),
            Self::Load => Requests::get(|n| format!("/conversations/{}/messages", database::long_id(n))),
        }
    }
}

async fn report() {
    let seconds = Duration::from_secs_f64(setting("BENCH_SECONDS", 3.0).clamp(0.1, 60.0));
    let rounds = setting("BENCH_ROUNDS", 3.0).clamp(1.0, 100.0) as usize;
    let only = env::var_os("BENCH_ONLY").map(|only| only.to_string_lossy().into_owned());
    let mut rows = Row::ALL.to_vec();
    rows.retain(|row| only.as_ref().is_none_or(|only| only.split(',').any(|word| word == row.word())));
    if rows.is_empty() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let original = directory.path().join("original.db");
    database::make(&original).await;
    let bytes = fs::metadata(&original).unwrap().len() as f64;
    let text = database::text_bytes() as f64;

    let pinning = Pinning::of_this_process();
    println!("\n{rounds} rounds of {:.1} s each, medians; {pinning}\n", seconds.as_secs_f64());
    let upstream = Process::start(target::ROLE, target::SIMULATOR, None, pinning.upstream());
    let mut measured: Vec<(Row, usize, Measured)> = Vec::new();
    for round in 0..rounds {
        let mut order = rows.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        for row in order {
            let requests = row.requests();
            for connections in CONNECTIONS {
                let copy = directory.path().join("copy.db");
                remove(&copy);
                fs::copy(&original, &copy).unwrap();
                // Not while it is measured.
                fs::File::open(&copy).unwrap().sync_all().unwrap();
                let url = format!("sqlite://{}", copy.display());
                let service = Process::start(target::ROLE, &url, Some(&upstream.address), pinning.target());
                measured.push((row, connections, load::run(&service, &requests, connections, seconds).await));
            }
        }
    }

    let of = |row: Row, connections: usize, figure: fn(&Measured) -> f64| {
        let same = measured.iter().filter(|(r, c, _)| *r == row && *c == connections);
        median(same.map(|(.., measured)| figure(measured)))
    };
    println!("| | connections | requests/s | p50 µs | p99 µs | CPU µs/request | RSS MiB |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (row, connections) in rows.iter().flat_map(|&row| CONNECTIONS.map(|connections| (row, connections))) {
        let of = |figure| of(row, connections, figure);
        println!(
            "| {} | {connections} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} |",
            row.name(),
            of(|m| m.per_second),
            of(|m| m.p50_micros),
            of(|m| m.p99_micros),
            of(|m| m.cpu_micros),
            of(|m| m.rss_mib),
        );
    }
    println!();
    let added = if rows.len() == Row::ALL.len() { CONNECTIONS.as_slice() } else { &[] };
    for &connections in added {
        let cpu = |row| of(row, connections, |m| m.cpu_micros);
        println!(
            "CPU that a conversation adds at {connections}: {:.0} µs to the bare question, {:.0} µs to one with its history",
            cpu(Row::Conversation) - cpu(Row::Alone),
            cpu(Row::Conversation) - cpu(Row::HistoryInRequest),
        );
    }
    let messages = database::total_messages() as f64;
    println!("the file: {:.0} bytes a message, of which {:.0} are its text", bytes / messages, text / messages);
}

fn remove(file: &Path) {
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", file.display()));
    }
}

/// A number from the environment, or `default`.
fn setting(name: &str, default: f64) -> f64 {
    let Some(text) = env::var_os(name) else { return default };
    text.to_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name} must be a number"))
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
