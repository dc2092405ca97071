//! Streams at the pace of a model: every word is a read and a write of its own.

use std::time::Duration;

use crate::{
    load::{self, Load, Measured},
    report::{Found, Plan},
    target::Target,
};

use super::{ALL, BARE, MERGING, SERVICE, cpu_per_word, question, read, upstream::PACED};

const STREAMS: usize = 200;

/// Streams begin evenly spread over the length of one. A part of a millisecond more than that, so that they do not
/// speak in step.
const STAGGER: Duration = Duration::from_micros(10_300);

pub(crate) async fn report(plan: &Plan) {
    let upstream = plan.start_upstream(PACED.role);
    let mut found = Found::new();
    for target in plan.visits(&ALL) {
        let process = plan.start(target, &upstream);
        let request = question(process.address, target);
        let load = Load {
            connections: STREAMS,
            stagger: STAGGER,
            warm_up: STAGGER * (STREAMS as u32),
            duration: plan.duration,
        };
        let measured = load::run(&process, load, async move |connection, tally| {
            read(connection, &request, PACED.words, tally).await
        });
        found.add(target.name, measured.await);
    }
    let interval = PACED.interval.as_millis();
    found.print(
        &format!("Paced: {STREAMS} streams of {} words, one every {interval} ms", PACED.words),
        &[
            ("words/s", 0, |m| m.words / m.seconds),
            ("CPU µs/word", 2, cpu_per_word),
            ("first word p50 µs", 0, first_word),
            ("first word p99 µs", 0, |m| m.firsts.percentile(99)),
            ("gap p99 ms", 2, |m| m.gaps.percentile(99) / 1000.0),
        ],
    );
    let cpu = |target: Target| found.median(target.name, cpu_per_word);
    let first = |target: Target| found.median(target.name, first_word);
    println!("service / bare, CPU per word: {:.2} (goal: at most 1.15)", cpu(SERVICE) / cpu(BARE));
    println!("service / merging bare, CPU per word: {:.2}", cpu(SERVICE) / cpu(MERGING));
    println!("service - bare, p50 to the first word: {:.0} µs (goal: at most 100)", first(SERVICE) - first(BARE));
}

fn first_word(measured: &Measured) -> f64 {
    measured.firsts.percentile(50)
}
