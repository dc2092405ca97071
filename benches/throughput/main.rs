//! `cargo bench`: what the service costs, next to bare services of the same stack that do nothing else.
//!
//! | scenario | what is asked |
//! |---|---|
//! | json | `POST /chat` for whole answers; also beside the simulated OpenAI itself |
//! | burst | streams whose words all come at once |
//! | paced | 200 streams with a word every 20 ms, as models speak |
//! | idle | 1,000 open streams that have fallen silent |
//! | resume | a finished stream, read again from its start |
//!
//! Every target is a process of its own (this binary again, with a role as its argument), so that its CPU time and
//! memory are its own. Where `taskset` is there, load and upstream share CPU 0 and the target has CPU 1 to itself.
//! Absolute numbers differ between machines and hours: compare within one run. `BENCH_SECONDS` (3) is the length of
//! a measurement, `BENCH_ROUNDS` (3) how often each is made; medians are printed. `BENCH_ONLY` names the scenarios to
//! run, separated by commas.
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

mod access;
mod bare;
mod http;
mod json;
mod load;
mod process;
mod report;
mod streams;
mod target;

use std::{
    env,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use process::Pinning;
use report::{Plan, median};

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
            () = Box::pin(report()) => {}
            _ = tokio::signal::ctrl_c() => println!("\nstopped"),
            _ = terminate.recv() => println!("\nstopped"),
        }
    });
}

async fn report() {
    let plan = Plan::from_environment();
    // Before this process, and with it the program, is tied to one CPU.
    let start = plan.wants("json").then(|| median((0..10).map(|_| start_to_first_200())));
    let plan = plan.pinned(Pinning::of_this_process());
    println!("\n{plan}");
    if plan.wants("json") {
        json::report(&plan).await;
    }
    if let Some(start) = start {
        println!("start to first 200: {start:.1} ms");
    }
    if plan.wants("access") {
        access::report(&plan).await;
    }
    if plan.wants("burst") {
        streams::burst::report(&plan).await;
    }
    if plan.wants("paced") {
        streams::paced::report(&plan).await;
    }
    if plan.wants("idle") {
        streams::idle::report(&plan).await;
    }
    if plan.wants("resume") {
        streams::resume::report(&plan).await;
    }
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
    while !http::answers_200(address) {
        assert!(begin.elapsed() < Duration::from_secs(10), "ai-service --demo does not answer");
        std::thread::sleep(Duration::from_micros(500));
    }
    begin.elapsed().as_secs_f64() * 1000.0
}
