//! The log of every service in this process, kept in memory.

use std::{
    io::{self, Write},
    sync::{Mutex, Once, PoisonError},
};

use ai_service::{
    config::{Log, LogFormat, LogLevel},
    telemetry,
};
use serde_json::Value;

static CAPTURED: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static START: Once = Once::new();

/// Starts capturing, at the finest level, once.
pub fn capture() {
    START.call_once(|| {
        let log = Log { level: LogLevel::Trace, format: LogFormat::Json };
        tracing::subscriber::set_global_default(telemetry::subscriber(log, || Sink)).expect("the first log");
    });
}

struct Sink;

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        CAPTURED.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything logged so far.
pub fn text() -> String {
    String::from_utf8(CAPTURED.lock().unwrap_or_else(PoisonError::into_inner).clone()).expect("UTF-8")
}

/// The lines of the request with that id.
pub fn lines_of(request_id: &str) -> Vec<Value> {
    lines_with("request_id", request_id)
}

/// The lines of the stream with that id.
pub fn lines_of_stream(stream_id: &str) -> Vec<Value> {
    lines_with("stream_id", stream_id)
}

fn lines_with(field: &str, value: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text().lines().map(parse).filter(|line| line[field] == value).collect()
}
