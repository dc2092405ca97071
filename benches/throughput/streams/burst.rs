//! Streams whose words all come at once: what reading, recoding and writing a word costs when nothing waits.

use crate::{
    load::{self, Load},
    report::{Found, Plan},
};

use super::{ALL, MERGING, SERVICE, cpu_per_word, question, read, upstream::BURST};

const CONNECTIONS: usize = 32;

pub(crate) async fn report(plan: &Plan) {
    let upstream = plan.start_upstream(BURST.role);
    let mut found = Found::new();
    for target in plan.visits(&ALL) {
        let process = plan.start(target, &upstream);
        let request = question(process.address, target);
        let load = Load::of(CONNECTIONS, plan.duration);
        let measured = load::run(&process, load, async move |connection, tally| {
            read(connection, &request, BURST.words, tally).await
        });
        found.add(target.name, measured.await);
    }
    let title = format!("Burst: streams of {} words, all at once, {CONNECTIONS} connections", BURST.words);
    found.print(
        &title,
        &[
            ("words/s", 0, |m| m.words / m.seconds),
            ("CPU µs/word", 2, cpu_per_word),
            ("words/HTTP chunk", 1, |m| m.words / m.chunks),
            ("bytes/word", 0, |m| m.bytes / m.words),
            ("RSS MiB", 1, |m| m.rss_mib),
        ],
    );
    let cpu = |target: super::Target| found.median(target.name, cpu_per_word);
    println!("service / merging bare, CPU per word: {:.2} (goal: at most 1.40)", cpu(SERVICE) / cpu(MERGING));
}
