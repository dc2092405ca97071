//! The log: one subscriber, text or JSON, written by a thread of its own so that a full pipe never holds up
//! a request.
//!
//! This file decides form and destination. What is said, and what never is (bodies, prompts, query strings,
//! keys), is decided where it is said; the request line is in `api::observe`.

use std::{
    cell::RefCell,
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use chrono::Utc;
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    fmt::{self, MakeWriter, format::Writer, time::FormatTime},
    layer::SubscriberExt,
};

use crate::config::{Log, LogFormat, LogLevel};

/// Installs the process's log on standard output. What was logged is written when the guard is dropped.
///
/// # Errors
/// A log that is installed already, or no thread to be had.
pub fn init(log: Log) -> Result<Guard, Box<dyn std::error::Error>> {
    let (writer, guard) = background(io::stdout())?;
    tracing::subscriber::set_global_default(subscriber(log, writer))?;
    Ok(guard)
}

/// The subscriber, writing wherever `writer` does.
///
/// Only this crate is heard below WARN: other crates' debug lines show addresses and headers.
pub fn subscriber<W>(log: Log, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let level = match log.level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let others = level.min(LevelFilter::WARN);
    let targets = Targets::new().with_default(others).with_target(env!("CARGO_CRATE_NAME"), level);
    let layer = fmt::layer().with_writer(writer).with_ansi(false).with_target(false).with_timer(Clock);
    let layer = match log.format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets))
}

/// UTC with microseconds, as RFC 3339. Formatting a date was a third of what a line costs; it changes once a second.
#[derive(Clone, Copy, Debug)]
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        thread_local! {
            /// The last second and how it is written.
            static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
        }
        let now = Utc::now();
        SECOND.with_borrow_mut(|(second, text)| {
            if *second != now.timestamp() {
                *second = now.timestamp();
                *text = now.format("%Y-%m-%dT%H:%M:%S").to_string();
            }
            write!(out, "{text}.{:06}Z", now.timestamp_subsec_micros() % 1_000_000)
        })
    }
}

/// Bytes that may wait for a slow reader of the log; beyond them lines are dropped and counted.
const MAX_WAITING: usize = 1024 * 1024;

/// How long lines gather before they are written in one go.
const GATHER: Duration = Duration::from_millis(10);

/// A writer that only copies a line into memory, and the guard of the thread that carries it to `sink`.
///
/// # Errors
/// No thread to be had.
pub fn background(sink: impl Write + Send + 'static) -> io::Result<(LogWriter, Guard)> {
    let queue = Arc::new(Queue::default());
    let thread = {
        let queue = Arc::clone(&queue);
        thread::Builder::new().name("log".into()).spawn(move || queue.carry(sink))?
    };
    Ok((LogWriter(Arc::clone(&queue)), Guard { queue, thread: Some(thread) }))
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until closed and empty: wait for lines, let more gather, write them together.
    fn carry(&self, mut sink: impl Write) {
        let mut lines = Vec::new();
        loop {
            let waiting = self.lock();
            let idle = |w: &mut Waiting| w.bytes.is_empty() && w.dropped == 0 && !w.closed;
            let waiting = self.changed.wait_while(waiting, idle).unwrap_or_else(PoisonError::into_inner);
            let open = |w: &mut Waiting| !w.closed;
            let gathered = self.changed.wait_timeout_while(waiting, GATHER, open);
            let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);

            mem::swap(&mut lines, &mut waiting.bytes);
            let dropped = mem::take(&mut waiting.dropped);
            let closed = waiting.closed;
            drop(waiting);

            // Nobody is left to tell when the log itself cannot be written.
            let _ = sink.write_all(&lines);
            if dropped > 0 {
                let _ = writeln!(sink, "{{\"level\":\"WARN\",\"message\":\"log lines dropped\",\"lines\":{dropped}}}");
            }
            let _ = sink.flush();
            lines.clear();
            if closed && self.lock().bytes.is_empty() {
                return;
            }
        }
    }
}

/// Takes finished lines; never blocks on the destination.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Queue>);

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        if waiting.bytes.len() + line.len() > MAX_WAITING {
            waiting.dropped += 1;
            return Ok(line.len());
        }
        let was_empty = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        if was_empty {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for LogWriter {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

/// Dropping it writes what waits; it gives up after a second when the destination takes nothing.
#[derive(Debug)]
pub struct Guard {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_one();
        let Some(thread) = self.thread.take() else { return };
        for _ in 0..100 {
            if thread.is_finished() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A destination that takes nothing until it is told to.
    struct Blocked {
        released: mpsc::Receiver<()>,
        entered: mpsc::Sender<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            let _ = self.released.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_destination_drops_lines_instead_of_blocking_and_says_how_many() {
        let (release, released) = mpsc::channel();
        let (entered_tx, entered) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Blocked { released, entered: entered_tx, written: Arc::clone(&written) };
        let (mut writer, guard) = background(sink).unwrap();

        writer.write_all(b"first\n").unwrap();
        entered.recv().unwrap();
        let line = vec![b'x'; MAX_WAITING / 4];
        for _ in 0..6 {
            writer.write_all(&line).unwrap();
        }
        drop(release);
        drop(guard);
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(written.starts_with("first\nxxx"), "lines come in their order");
        assert!(written.ends_with("\"lines\":2}\n"), "{:?}", written.lines().last());
    }

    #[test]
    fn everything_said_is_written_when_the_guard_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (writer, guard) = background(std::fs::File::create(&path).unwrap()).unwrap();
        let log = Log { level: LogLevel::Info, format: LogFormat::Json };
        tracing::subscriber::with_default(subscriber(log, writer), || {
            for n in 0..1000 {
                tracing::info!(n, "counting");
            }
            tracing::debug!("not asked for");
        });
        drop(guard);
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1000);
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["n"], 999);
        assert_eq!(last["message"], "counting");
    }
}
