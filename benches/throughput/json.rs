//! `POST /chat` for a whole answer, next to a bare pass-through and to the simulated OpenAI itself.

use std::{io, time::Instant};

use crate::{
    http::post,
    load::{self, Load, Measured},
    process::Process,
    report::{Found, Plan},
    target::{BARE, QUESTION, SERVICE, Target},
};

/// The simulated OpenAI without anything in front: the most there is to reach.
const DIRECT: Target = Target { name: "direct", role: "simulator", path: "/v1/chat/completions" };

/// The same question in OpenAI's form.
const DIRECT_QUESTION: &str = r#"{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"Tell me about the quick brown fox, and say \"hello\"."}],"temperature":0.7,"max_tokens":2000}"#;

/// How many connections the load has: one shows the time a request takes, many what the target can do.
const CONNECTIONS: [(usize, &str); 2] = [(1, "1 connection"), (64, "64 connections")];

/// A piece of the answer, by which it is known to be one.
const ANSWER: &[u8] = b"This is the simulated OpenAI";

pub(crate) async fn report(plan: &Plan) {
    let upstream = plan.start_upstream("simulator");
    let mut found = Found::new();
    for target in plan.visits(&[DIRECT, BARE, SERVICE]) {
        let process = plan.start(target, &upstream);
        for (connections, name) in CONNECTIONS {
            let load = Load::of(connections, plan.duration);
            found.add(row(target, name), measure(target, &process, load).await);
        }
    }
    found.print(
        "JSON: `POST /chat`, whole answers",
        &[
            ("requests/s", 0, |m| m.answers.count() / m.seconds),
            ("p50 µs", 0, |m| m.answers.percentile(50)),
            ("p99 µs", 0, |m| m.answers.percentile(99)),
            ("CPU µs/request", 1, cpu),
            ("RSS MiB", 1, |m| m.rss_mib),
        ],
    );
    let cpu = |target| found.median(&row(target, CONNECTIONS[1].1), cpu);
    println!("service / bare, CPU per request at 64 connections: {:.2}", cpu(&SERVICE) / cpu(&BARE));
}

fn row(target: &Target, connections: &str) -> String {
    format!("{}, {connections}", target.name)
}

fn cpu(measured: &Measured) -> f64 {
    measured.cpu_micros / measured.answers.count()
}

async fn measure(target: &Target, process: &Process, load: Load) -> Measured {
    let question = if target.role == DIRECT.role { DIRECT_QUESTION } else { QUESTION };
    let request = post(process.address, target.path, "application/json", question);
    load::run(process, load, async move |connection, tally| {
        let begin = Instant::now();
        connection.send(&request).await?;
        let length = connection.answer().await?.ok_or_else(|| io::Error::other("an answer without a length"))?;
        let answer = connection.take(length).await?;
        if memchr::memmem::find(answer, ANSWER).is_none() {
            return Err(io::Error::other(String::from_utf8_lossy(answer)));
        }
        tally.answer(begin.elapsed());
        Ok(())
    })
    .await
}
