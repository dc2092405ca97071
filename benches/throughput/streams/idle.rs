//! Open streams that say nothing: what they cost by being there.

use std::{io, time::Duration};

use tokio::time::{sleep, timeout};

use crate::{
    http::Connection,
    process::{Process, allow_open_files},
    report::{Found, Plan},
    target::Target,
};

use super::{ALL, BARE, SERVICE, question, upstream::SILENT, words_in};

const STREAMS: usize = 1000;

/// A target has two connections a stream, and the service lets in as many callers as half of its files allow.
const OPEN_FILES: usize = 2 * STREAMS + 500;

/// At least as long as the longest of the periods in which a stream looks after itself, but for the keep-alive.
const SHORTEST: Duration = Duration::from_secs(5);

/// What one measurement found.
#[derive(Debug)]
struct Measured {
    kib_per_stream: f64,
    cpu_percent: f64,
    rss_mib: f64,
}

pub(crate) async fn report(plan: &Plan) {
    let allowed = allow_open_files(OPEN_FILES);
    if allowed < OPEN_FILES {
        println!("\nIdle: left out, because it takes {OPEN_FILES} open files and {allowed} are allowed (ulimit -n)");
        return;
    }
    let upstream = plan.start_upstream(SILENT.role);
    let mut found = Found::new();
    for target in plan.visits(&ALL) {
        let process = plan.start(target, &upstream);
        found.add(target.name, measure(&process, target, plan.duration.max(SHORTEST)).await.unwrap());
    }
    found.print(
        &format!("Idle: {STREAMS} open streams, silent after the first word"),
        &[("KiB/stream", 1, |m| m.kib_per_stream), ("CPU %", 2, |m| m.cpu_percent), ("RSS MiB", 1, |m| m.rss_mib)],
    );
    let memory = |target: Target| found.median(target.name, |m| m.kib_per_stream);
    println!("service / bare, memory per stream: {:.2} (goal: at most 1.15)", memory(SERVICE) / memory(BARE));
}

async fn measure(process: &Process, target: &Target, duration: Duration) -> io::Result<Measured> {
    let request = question(process.address, target);
    // What the first of all streams sets up is nobody's in particular.
    let first = open(process, &request).await?;
    settle().await;
    let rss_before = process.rss_mib();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(open(process, &request).await?);
    }
    settle().await;
    let cpu_before = process.cpu_micros();
    sleep(duration).await;
    let (cpu_micros, rss_mib) = (process.cpu_micros() - cpu_before, process.rss_mib());
    assert!(first.is_open() && streams.iter().all(Connection::is_open), "a stream has ended");
    Ok(Measured {
        kib_per_stream: (rss_mib - rss_before) * 1024.0 / STREAMS as f64,
        cpu_percent: cpu_micros / 1e6 / duration.as_secs_f64() * 100.0,
        rss_mib,
    })
}

/// A stream, read up to its first word.
async fn open(process: &Process, request: &[u8]) -> io::Result<Connection> {
    let mut connection = Connection::open(process.address).await?;
    let first_word = async {
        connection.send(request).await?;
        connection.answer().await?;
        while let Some(events) = connection.chunk().await? {
            if words_in(events) > 0 {
                return Ok(());
            }
        }
        Err(io::Error::other("a stream without a word"))
    };
    timeout(Duration::from_secs(5), first_word).await??;
    Ok(connection)
}

async fn settle() {
    sleep(Duration::from_millis(500)).await;
}
