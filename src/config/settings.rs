//! The settings of everything but the upstream and the callers.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use rlimit::Resource;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{ConnectionLimits, Reader};

/// Where the service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `HOST`: an IP address or `localhost`. Default `0.0.0.0`.
    pub host: String,
    /// `PORT`. Default 8000; 0 lets the system choose.
    pub port: u16,
}

impl Listen {
    /// Whether only this machine can connect.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// How long streams are kept, and how much of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// `STREAM_TTL_SECONDS`: how long a stream can be read after its end. 600 s.
    pub ttl: Duration,
    /// `STREAM_ORPHAN_SECONDS`: how long a stream runs that nobody ever reads; 0 is for ever. 60 s.
    pub orphan: Duration,
    /// `STREAM_LOG_MAX_BYTES`: memory for the entries of all streams. 256 MiB.
    pub max_bytes: usize,
}

/// Where conversations are stored, and what of them is sent.
#[derive(Clone, Debug)]
pub struct Conversations {
    /// `DATABASE_URL`, or the content of the file that `DATABASE_URL_FILE` names. Default
    /// `sqlite://data/ai-service.db`; in memory with `--demo`.
    pub database: Database,
    /// `HISTORY_MAX_TOKENS`: the most tokens of a stored conversation that are sent with a question. 8,000.
    pub history_max_tokens: usize,
    /// `AUTO_TITLE`: whether a title is made after the first turn. On.
    pub auto_title: bool,
}

/// A place for conversations. `Debug` shows no password.
#[derive(Clone, Debug)]
pub enum Database {
    /// `sqlite::memory:`: gone with the process.
    SqliteInMemory,
    /// `sqlite://…`: a file; made, with its directory, when it is missing.
    Sqlite(PathBuf),
    /// `postgres://…`
    Postgres(SecretString),
}

/// What a request gets that does not say otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// `DEFAULT_MODEL`. Default `gpt-3.5-turbo`.
    pub model: String,
    /// `DEFAULT_TEMPERATURE`, 0 to 2; `none` leaves it to the model. Default 0.7.
    pub temperature: Option<f64>,
    /// `DEFAULT_MAX_TOKENS`, at least 1. Default 2000.
    pub max_tokens: u32,
}

/// `CORS_ALLOW_ORIGINS`: whose pages may call. Default `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// `*`: any page, without credentials.
    Any,
    /// A comma-separated list: these, with credentials.
    List(Vec<String>),
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// `LOG_LEVEL`, in Python's or in Rust's names. Default `INFO`.
    pub level: LogLevel,
    /// `LOG_FORMAT`: `text` or `json`. Default `text`.
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// What bounds the number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionBound {
    /// `MAX_CONNECTIONS`
    Setting,
    /// The limit on open files; `wanted` is a `MAX_CONNECTIONS` that it does not allow.
    OpenFiles { files: usize, wanted: Option<usize> },
}

impl fmt::Display for ConnectionBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting => f.write_str("MAX_CONNECTIONS"),
            Self::OpenFiles { files, .. } => write!(f, "{files} open files"),
        }
    }
}

/// Bounds on what a caller may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `MAX_BODY_BYTES`: the largest request body. Default 2 MiB.
    pub body_bytes: usize,
    /// Time for a request's head, from its first byte, and for a new connection to say something. 10 s.
    pub head_time: Duration,
    /// `KEEP_ALIVE_SECONDS`: how long a connection may wait for the next request. 75 s: longer than load balancers keep
    /// theirs, which would otherwise send a request just when it is closed.
    pub keep_alive: Duration,
    /// Time for a request's body. 30 s.
    pub body_time: Duration,
    /// All bodies that are being read, of which one caller may have a quarter. 256 MiB.
    pub bodies_bytes: usize,
    /// How long what is written to a caller may get nowhere. 30 s.
    pub write_time: Duration,
    /// Connections at once. `MAX_CONNECTIONS`; by default what the limit on open files allows for: each may need
    /// another one to the upstream.
    pub connections: usize,
    /// What bounds them.
    pub bound: ConnectionBound,
    /// `SHUTDOWN_GRACE_SECONDS`: time for running answers after SIGTERM. Default 30 s.
    pub shutdown_grace: Duration,
}

/// See [`Limits::bodies_bytes`].
const BODIES_BYTES: usize = 256 * 1024 * 1024;

impl Reader<'_> {
    pub(super) fn listen(&mut self) -> Listen {
        let host = |v: &str| (v == "localhost" || v.parse::<IpAddr>().is_ok()).then(|| v.to_owned());
        Listen {
            host: self.parse("HOST", "0.0.0.0".to_owned(), "an IP address or localhost", host),
            port: self.parse("PORT", 8000, "a port from 0 to 65535", |v| v.parse().ok()),
        }
    }

    pub(super) fn defaults(&mut self) -> Defaults {
        let temperature = |v: &str| match v.eq_ignore_ascii_case("none") {
            true => Some(None),
            false => v.parse().ok().filter(|t| (0.0..=2.0).contains(t)).map(Some),
        };
        let max_tokens = |v: &str| v.parse().ok().filter(|n| (1..=MAX_TOKENS_LIMIT).contains(n));
        let model = |v: &str| is_model_name(v).then(|| v.to_owned());
        Defaults {
            model: self.parse("DEFAULT_MODEL", "gpt-3.5-turbo".to_owned(), "a model's name", model),
            temperature: self.parse("DEFAULT_TEMPERATURE", Some(0.7), "a number from 0 to 2, or none", temperature),
            max_tokens: self.parse("DEFAULT_MAX_TOKENS", 2000, "a whole number of at least 1", max_tokens),
        }
    }

    pub(super) fn root_path(&mut self) -> String {
        let expected = "a path such as /ai, of A-Z a-z 0-9 . _ ~ - and %XX, without a query";
        self.parse("ROOT_PATH", String::new(), expected, root_path)
    }

    pub(super) fn cors(&mut self) -> AllowedOrigins {
        let expected = "* or a comma-separated list of origins such as https://app.example.com";
        self.parse("CORS_ALLOW_ORIGINS", AllowedOrigins::Any, expected, |value| {
            if value == "*" {
                return Some(AllowedOrigins::Any);
            }
            let origins = value.split(',').map(str::trim).filter(|o| !o.is_empty());
            let origins: Option<Vec<_>> = origins.map(origin).collect();
            origins.filter(|list| !list.is_empty()).map(AllowedOrigins::List)
        })
    }

    pub(super) fn log(&mut self) -> Log {
        let level = |v: &str| match v.to_ascii_uppercase().as_str() {
            "TRACE" | "NOTSET" => Some(LogLevel::Trace),
            "DEBUG" => Some(LogLevel::Debug),
            "INFO" => Some(LogLevel::Info),
            "WARNING" | "WARN" => Some(LogLevel::Warn),
            "ERROR" | "CRITICAL" | "FATAL" => Some(LogLevel::Error),
            _ => None,
        };
        let format = |v: &str| match v.to_ascii_lowercase().as_str() {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        };
        let levels = "TRACE, DEBUG, INFO, WARNING, ERROR or CRITICAL";
        Log {
            level: self.parse("LOG_LEVEL", LogLevel::Info, levels, level),
            format: self.parse("LOG_FORMAT", LogFormat::Text, "text or json", format),
        }
    }

    pub(super) fn limits(&mut self, demo: bool) -> Limits {
        let bytes = |v: &str| v.parse().ok().filter(|n| (1024..=64 * 1024 * 1024).contains(n));
        let count = |v: &str| v.parse().ok().filter(|n: &usize| *n >= 1);
        let two_mib = 2 * 1024 * 1024;
        let files = open_files();
        let possible = possible_connections(files, demo);
        let wanted = self.parse("MAX_CONNECTIONS", None, "a whole number of at least 1", |v| count(v).map(Some));
        let (connections, bound) = match wanted {
            Some(wanted) if wanted <= possible => (wanted, ConnectionBound::Setting),
            wanted => (possible, ConnectionBound::OpenFiles { files, wanted }),
        };
        Limits {
            body_bytes: self.parse("MAX_BODY_BYTES", two_mib, "bytes, from 1024 to 67108864", bytes),
            head_time: Duration::from_secs(10),
            bodies_bytes: BODIES_BYTES,
            body_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
            keep_alive: self.seconds("KEEP_ALIVE_SECONDS", Duration::from_secs(75), 1..=86400),
            connections,
            bound,
            shutdown_grace: self.seconds("SHUTDOWN_GRACE_SECONDS", Duration::from_secs(30), 0..=3600),
        }
    }

    pub(super) fn streams(&mut self) -> Streams {
        let bytes = |v: &str| v.parse().ok().filter(|n| *n >= 1024 * 1024);
        Streams {
            ttl: self.seconds("STREAM_TTL_SECONDS", Duration::from_secs(600), 1..=86400),
            orphan: self.seconds("STREAM_ORPHAN_SECONDS", Duration::from_secs(60), 0..=86400),
            max_bytes: self.parse("STREAM_LOG_MAX_BYTES", 256 * 1024 * 1024, "bytes, at least 1048576", bytes),
        }
    }

    pub(super) fn conversations(&mut self, demo: bool) -> Conversations {
        let name = "DATABASE_URL";
        let default = if demo { Database::SqliteInMemory } else { Database::Sqlite("data/ai-service.db".into()) };
        // The value is not shown: it may carry a password.
        let database = match self.optional_secret(name, "DATABASE_URL_FILE") {
            None => default,
            Some(url) => database(&url).unwrap_or_else(|| {
                let forms = "sqlite://path/to/file.db, sqlite::memory: or postgres://user:password@host:5432/database";
                self.problems.push(format!("{name} must have one of the forms {forms}"));
                default
            }),
        };
        let tokens = |v: &str| v.parse().ok().filter(|n| *n <= 10_000_000);
        Conversations {
            database,
            history_max_tokens: self.parse("HISTORY_MAX_TOKENS", 8000, "a whole number up to 10000000", tokens),
            auto_title: self.switch("AUTO_TITLE", true),
        }
    }
}

/// Files for everything that is not a caller's connection or its answer: the log, the listener, databases, timers.
const FILES_BESIDES: usize = 64;

/// Connections beyond those that there can be: each gets one short answer.
pub const RESERVED_CONNECTIONS: usize = 32;

/// More than any machine serves: what "unlimited" is taken for.
const MOST_CONNECTIONS: usize = 1 << 20;

/// How many connections there can be with so many open files. Each may need one to the upstream as well, and one more
/// where the simulated upstream is in this process.
fn possible_connections(files: usize, demo: bool) -> usize {
    let each = if demo { 3 } else { 2 };
    (files.saturating_sub(FILES_BESIDES + RESERVED_CONNECTIONS) / each).clamp(16, MOST_CONNECTIONS)
}

/// The limits of connections to the upstream: as many as callers may have.
pub(super) fn upstream_connections(demo: bool) -> ConnectionLimits {
    ConnectionLimits { most: possible_connections(open_files(), demo), ..ConnectionLimits::default() }
}

/// How many files this process may have open. Where nobody tells, the usual limit of a shell is assumed.
fn open_files() -> usize {
    Resource::NOFILE.get_soft().map_or(1024, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// The place that `url` names.
fn database(url: &SecretString) -> Option<Database> {
    let text = url.expose_secret();
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        return Some(Database::Postgres(url.clone()));
    }
    if text == ":memory:" {
        return Some(Database::SqliteInMemory);
    }
    let path = text.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        ":memory:" => Some(Database::SqliteInMemory),
        // A query would be sqlx's options, which are the service's own affair.
        path if path.is_empty() || path.contains('?') => None,
        path => Some(Database::Sqlite(path.into())),
    }
}

/// Most tokens one answer may be allowed: what a 32-bit integer of any client holds.
pub const MAX_TOKENS_LIMIT: u32 = 2_147_483_647;

/// Whether `name` can be a model's name: `[A-Za-z0-9._:/-]{1,128}`. It is sent, logged and remembered, so
/// nothing else gets through.
#[must_use]
pub fn is_model_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'/' | b'-'))
}

/// The origin as a browser sends it: scheme, host and a port that is not the default; no path.
fn origin(text: &str) -> Option<String> {
    let (scheme, place) = text.split_once("://")?;
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        return app_origin(scheme, place).then(|| text.to_owned());
    }
    let url = Url::parse(text).ok()?;
    let plain = url.path() == "/"
        && !text.ends_with('/')
        && !text.contains('*')
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    plain.then(|| url.origin().ascii_serialization())
}

/// Whether this is the origin of pages that an app or a browser's extension brings along: a scheme of its own and a name, which
/// are compared as they are written.
fn app_origin(scheme: &str, place: &str) -> bool {
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    // Of these no page has its origin: a mistake that would lock the page out.
    let is_pages = !matches!(scheme.to_ascii_lowercase().as_str(), "ws" | "wss" | "ftp" | "file");
    let (name, port) = match place.split_once(':') {
        Some((name, port)) => (name, port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()),
        None => (place, true),
    };
    let is_name = (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    is_scheme && is_pages && is_name && port
}

/// The path without a slash at its end; empty for the root.
fn root_path(text: &str) -> Option<String> {
    let path = text.strip_suffix('/').unwrap_or(text);
    let is_segment = |segment: &str| {
        let mut parts = segment.split('%');
        let is_plain =
            |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-'));
        let is_escape = |part: &str| part.len() >= 2 && part.bytes().take(2).all(|b| b.is_ascii_hexdigit());
        parts.next().is_some_and(is_plain)
            && parts.all(|part| is_escape(part) && is_plain(part))
            && !matches!(segment, "" | "." | "..")
    };
    let is_path = path.is_empty() || path.strip_prefix('/')?.split('/').all(is_segment);
    is_path.then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_shared_by_callers_their_answers_and_all_else() {
        assert_eq!(possible_connections(1024, false), 464);
        assert_eq!(possible_connections(1024, true), 309);
        assert_eq!(possible_connections(20, false), 16);
        assert_eq!(possible_connections(usize::MAX, false), MOST_CONNECTIONS);
    }
}
