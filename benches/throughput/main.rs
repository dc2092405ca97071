//! `cargo bench`: what `POST /chat` costs, next to a bare pass-through and to the simulated OpenAI itself.
//!
//! Every target is a process of its own (this binary again, with a role as its argument), so that its CPU time and
//! memory are its own. Where `taskset` is there, load and upstream share CPU 0 and the target has CPU 1 to itself.
//! Absolute numbers differ between machines and hours: compare within one run. `BENCH_SECONDS` (3) is the length of
//! a measurement, `BENCH_ROUNDS` (3) how often each is made; medians are printed.
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

mod bare;
mod load;
mod process;
mod target;

use std::{
    env,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use load::Measured;
use process::{Pinning, Process};
use target::Target;

/// How many connections the load has: one shows the time a request takes, many what the target can do.
const CONNECTIONS: [usize; 2] = [1, 64];

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

async fn report() {
    let seconds = Duration::from_secs_f64(setting("BENCH_SECONDS", 3.0).clamp(0.1, 60.0));
    let rounds = setting("BENCH_ROUNDS", 3.0).clamp(1.0, 100.0) as usize;
    let start = median((0..10).map(|_| start_to_first_200()));
    let pinning = Pinning::of_this_process();
    println!("\n{rounds} rounds of {:.1} s each, medians; {pinning}\n", seconds.as_secs_f64());

    let upstream = Process::start(target::ROLE, "simulator", None, pinning.upstream());
    let mut measured: Vec<(Target, usize, Measured)> = Vec::new();
    for round in 0..rounds {
        let mut order = target::ALL;
        if round % 2 == 1 {
            order.reverse();
        }
        for target in order {
            let process = Process::start(target::ROLE, target.role, Some(&upstream.address), pinning.target());
            for connections in CONNECTIONS {
                let load = load::run(&process, target.path, target.body, connections, seconds);
                measured.push((target, connections, load.await));
            }
        }
    }

    let of = |target: Target, connections: usize, figure: fn(&Measured) -> f64| {
        let same = measured.iter().filter(|(t, c, _)| t.name == target.name && *c == connections);
        median(same.map(|(.., measured)| figure(measured)))
    };
    println!("| target | connections | requests/s | p50 µs | p99 µs | CPU µs/request | RSS MiB |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (target, connections) in target::ALL.into_iter().flat_map(|t| CONNECTIONS.map(|c| (t, c))) {
        let of = |figure| of(target, connections, figure);
        println!(
            "| {} | {connections} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} |",
            target.name,
            of(|m| m.per_second),
            of(|m| m.p50_micros),
            of(|m| m.p99_micros),
            of(|m| m.cpu_micros),
            of(|m| m.rss_mib),
        );
    }
    let cpu = |target| of(target, CONNECTIONS[1], |m| m.cpu_micros);
    println!("\nservice / bare CPU per request at 64 connections: {:.2}", cpu(target::SERVICE) / cpu(target::BARE));
    println!("start to first 200: {start:.1} ms");
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

/// Milliseconds from starting the program itself, with `--demo`, to its first answer.
fn start_to_first_200() -> f64 {
    // A `.env` that lies about must not decide what is measured.
    let directory = tempfile::tempdir().unwrap();
    let address = process::free_address();
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_ai-service")));
    command.arg("--demo").current_dir(directory.path()).env_clear();
    command.env("HOST", address.ip().to_string()).env("PORT", address.port().to_string());
    let begin = Instant::now();
    let _process = process::spawn(&mut command);
    while !load::answers_200(address) {
        assert!(begin.elapsed() < Duration::from_secs(10), "ai-service --demo does not answer");
        std::thread::sleep(Duration::from_micros(500));
    }
    begin.elapsed().as_secs_f64() * 1000.0
}
