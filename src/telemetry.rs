//! The log: one subscriber, text or JSON, written by a thread of its own so that a full pipe never holds up
//! a request.
//!
//! This file decides form and destination. What is said, and what never is (bodies, prompts, query strings,
//! keys), is decided where it is said; the request line is in `api::observe`.

use std::{
    cell::RefCell,
    io::{self, IsTerminal, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use chrono::Utc;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer,
    field::RecordFields,
    filter::Targets,
    fmt::{self, FormatFields, MakeWriter, format::Writer, time::FormatTime},
    layer::SubscriberExt,
};

use crate::config::{Log, LogFormat, LogLevel};

/// Installs the process's log on standard output. What was logged is written when the guard is dropped.
///
/// # Errors
/// A log that is installed already, or no thread to be had.
pub fn init(log: Log) -> Result<Guard, Box<dyn std::error::Error>> {
    let (writer, guard) = background(io::stdout())?;
    let colors = if io::stdout().is_terminal() { Colors::Usual } else { Colors::None };
    tracing::subscriber::set_global_default(colored(log, writer, colors))?;
    Ok(guard)
}

/// The subscriber, writing wherever `writer` does.
///
/// Only this crate is heard below WARN: other crates' debug lines show addresses and headers.
pub fn subscriber<W>(log: Log, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    colored(log, writer, Colors::None)
}

/// Whether levels have colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colors {
    None,
    /// Unless `NO_COLOR` is set, which tracing-subscriber heeds by itself.
    Usual,
}

fn colored<W>(log: Log, writer: W, colors: Colors) -> impl Subscriber + Send + Sync
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
    let layer = fmt::layer().with_writer(writer).with_target(false).with_timer(Clock);
    let is_plain = colors == Colors::None || log.format == LogFormat::Json;
    let layer = if is_plain { layer.with_ansi(false) } else { layer };
    let layer = match log.format {
        LogFormat::Text => layer.fmt_fields(TextFields).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(targets))
}

/// `name=value` with spaces between. What tracing-subscriber has does the same with more ceremony: quoting a string
/// character by character was a tenth of what a line costs.
#[derive(Clone, Copy, Debug)]
struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> std::fmt::Result {
        let mut visitor = TextVisitor { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct TextVisitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: std::fmt::Result,
}

impl TextVisitor<'_> {
    fn field(&mut self, field: &Field, value: std::fmt::Arguments<'_>) {
        let space = if std::mem::take(&mut self.is_first) { "" } else { " " };
        let written = match field.name() {
            "message" => write!(self.writer, "{space}{value}"),
            name => write!(self.writer, "{space}{name}={value}"),
        };
        self.result = self.result.and(written);
    }
}

impl Visit for TextVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.field(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let is_plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
        if !is_plain {
            return self.field(field, format_args!("{value:?}"));
        }
        let space = if std::mem::take(&mut self.is_first) { "" } else { " " };
        for part in [space, field.name(), "=\"", value, "\""] {
            self.result = self.result.and_then(|()| self.writer.write_str(part));
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, format_args!("{value}"));
    }
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
    fn text_is_quoted_so_that_nobody_can_forge_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (writer, guard) = background(std::fs::File::create(&path).unwrap()).unwrap();
        let log = Log { level: LogLevel::Info, format: LogFormat::Text };
        tracing::subscriber::with_default(subscriber(log, writer), || {
            let none: Option<&str> = None;
            tracing::info!(a = "x y", b = "q\"\\\n\x1b[31m한", n = 7, ms = 1.5, none, d = ?Some(1), "said");
        });
        drop(guard);
        let text = std::fs::read_to_string(path).unwrap();
        let expected = " INFO said a=\"x y\" b=\"q\\\"\\\\\\n\\u{1b}[31m한\" n=7 ms=1.5 d=Some(1)\n";
        assert!(text.ends_with(expected), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn levels_have_colors_on_a_terminal_and_values_and_json_have_none() {
        for (format, colors, has_some) in [
            (LogFormat::Text, Colors::Usual, true),
            (LogFormat::Text, Colors::None, false),
            (LogFormat::Json, Colors::Usual, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let (writer, guard) = background(std::fs::File::create(&path).unwrap()).unwrap();
            let log = Log { level: LogLevel::Info, format };
            tracing::subscriber::with_default(colored(log, writer, colors), || {
                tracing::warn!(b = "\x1b[31m", "said");
            });
            drop(guard);
            let text = std::fs::read_to_string(path).unwrap();
            let expects_color = has_some && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            assert_eq!(text.contains("\x1b[33m WARN"), expects_color, "{text:?}");
            assert!(!text.contains("\x1b[31m"), "{text:?}");
        }
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
