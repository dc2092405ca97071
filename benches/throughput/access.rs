//! What it costs to know callers and to count what they ask for, and what it costs to say no.

use std::{io, time::Instant};

use crate::{
    http::post_with,
    load::{self, Load, Measured},
    process::Process,
    report::{Found, Plan},
    target::{QUESTION, SERVICE, Target},
};

/// Keys, and limits that nobody reaches.
pub(crate) const GUARDED: [(&str, &str); 4] = [
    ("API_KEYS", "first:a-key-that-is-not-used,bench:a-key-for-this-bench,last:another-key-nobody-has"),
    ("RATE_LIMIT_REQUESTS_PER_MINUTE", "1000000000"),
    ("RATE_LIMIT_TOKENS_PER_MINUTE", "4000000000"),
    ("MAX_CONCURRENT_STREAMS", "1000"),
];

/// A limit that the first request uses up for longer than the measurement takes.
pub(crate) const EXHAUSTED: [(&str, &str); 3] =
    [("API_KEYS", "bench:a-key-for-this-bench"), ("RATE_LIMIT_REQUESTS_PER_MINUTE", "1"), ("RATE_LIMIT_BURST", "1")];

/// An address that is not let in.
pub(crate) const BLOCKING: [(&str, &str); 1] = [("BLOCKED_IPS", "127.0.0.0/8")];

const AUTHORIZATION: &str = "authorization: Bearer a-key-for-this-bench\r\n";

const GUARDED_SERVICE: Target = Target { name: "service, keys and limits", role: "service-guarded", path: "/chat" };
const UNKNOWN: Target = Target { name: "refused: no key (401)", role: "service-guarded", path: "/chat" };
const OVER: Target = Target { name: "refused: over the limit (429)", role: "service-exhausted", path: "/chat" };
const BLOCKED: Target = Target { name: "refused: blocked address (403)", role: "service-blocking", path: "/chat" };
/// The least that saying no can cost over HTTP with axum, whoever asks.
const REFUSING: Target = Target { name: "bare axum that refuses all (401)", role: "bare-refusing", path: "/chat" };

const CONNECTIONS: usize = 64;

pub(crate) async fn report(plan: &Plan) {
    let upstream = plan.start_upstream("simulator");
    let mut found = Found::new();
    for target in plan.visits(&[SERVICE, GUARDED_SERVICE, UNKNOWN, OVER, BLOCKED, REFUSING]) {
        let process = plan.start(target, &upstream);
        found.add(target.name, measure(target, &process, Load::of(CONNECTIONS, plan.duration)).await);
    }
    found.print(
        "Access: `POST /chat` by whom, 64 connections",
        &[
            ("requests/s", 0, |m| m.answers.count() / m.seconds),
            ("p50 µs", 0, |m| m.answers.percentile(50)),
            ("CPU µs/request", 1, cpu),
        ],
    );
    let cpu = |target: Target| found.median(target.name, cpu);
    println!("keys and limits, CPU per request: {:+.1} µs (goal: at most 3)", cpu(GUARDED_SERVICE) - cpu(SERVICE));
    for target in [UNKNOWN, OVER, BLOCKED, REFUSING] {
        println!(
            "{} / served, CPU per request: {:.2} (goal: at most 0.20)",
            target.name,
            cpu(target) / cpu(GUARDED_SERVICE)
        );
    }
}

fn cpu(measured: &Measured) -> f64 {
    measured.cpu_micros / measured.answers.count()
}

async fn measure(target: &Target, process: &Process, load: Load) -> Measured {
    let (headers, status) = match target.name {
        name if name == GUARDED_SERVICE.name => (AUTHORIZATION, "200"),
        name if name == OVER.name => (AUTHORIZATION, "429"),
        name if name == UNKNOWN.name || name == REFUSING.name => ("", "401"),
        name if name == BLOCKED.name => ("", "403"),
        _ => ("", "200"),
    };
    let request = post_with(process.address, target.path, headers, QUESTION);
    if target.name == OVER.name {
        // The one that is answered.
        let mut connection = crate::http::Connection::open(process.address).await.unwrap();
        connection.send(&request).await.unwrap();
        connection.answer().await.unwrap();
    }
    load::run(process, load, async move |connection, tally| {
        let begin = Instant::now();
        connection.send(&request).await?;
        let length = connection.answer_of(status).await?;
        connection.take(length.ok_or_else(|| io::Error::other("an answer without a length"))?).await?;
        tally.answer(begin.elapsed());
        Ok(())
    })
    .await
}
