//! Every setting once: its variable, type, default and unit. The only file that reads the environment.
//!
//! Variables come from the process environment and, where that lacks one, from the file `.env` in the working
//! directory. A blank value counts as unset, because compose files pass `${NAME:-}`. All mistakes are collected
//! and reported together.

mod access;

pub use access::{Access, ApiKey, Docs, Jwt, RateLimits};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    net::IpAddr,
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// The address of OpenAI's own API.
pub const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";

/// The whole configuration of one app. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Listen,
    pub upstream: Upstream,
    pub defaults: Defaults,
    pub cors: AllowedOrigins,
    pub log: Log,
    pub limits: Limits,
    pub streams: Streams,
    pub conversations: Conversations,
    pub access: Access,
    pub rate_limits: RateLimits,
}

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

/// The chat API that answers.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `OPENAI_API_KEY`, or the content of the file that `OPENAI_API_KEY_FILE` names: one or several, separated by commas
    /// or lines. Required, except for `--demo`.
    pub api_keys: Vec<SecretString>,
    /// `OPENAI_BASE_URL`, version included. Default <https://api.openai.com/v1>.
    pub base_url: Url,
    /// `OPENAI_ORG_ID`, sent as `OpenAI-Organization`.
    pub organization: Option<String>,
    /// `OPENAI_PROJECT_ID`, sent as `OpenAI-Project`.
    pub project: Option<String>,
    /// `UPSTREAM_MAX_RETRIES`: how often a question is asked again that failed before its answer began, 0 to 10. 2.
    pub max_retries: u32,
    pub breaker: BreakerLimits,
    pub timeouts: Timeouts,
}

/// When a key that fails is left alone, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerLimits {
    /// So many failures, 5, …; 0 is never.
    pub failures: usize,
    /// … in that time, 10 s.
    pub within: Duration,
    /// 5 s at first, doubled each time it still fails, …
    pub open: Duration,
    /// … up to this, 60 s.
    pub longest: Duration,
}

impl Default for BreakerLimits {
    fn default() -> Self {
        Self {
            failures: 5,
            within: Duration::from_secs(10),
            open: Duration::from_secs(5),
            longest: Duration::from_secs(60),
        }
    }
}

/// How long the upstream may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To a connection, TLS included. 5 s.
    pub connect: Duration,
    /// `UPSTREAM_FIRST_TOKEN_TIMEOUT_SECONDS`: to the first word of a stream, or the first byte of a whole answer. 60 s.
    pub first_token: Duration,
    /// `UPSTREAM_IDLE_TIMEOUT_SECONDS`: from one meaningful event of a stream to the next. 60 s.
    pub idle: Duration,
    /// `UPSTREAM_TOTAL_TIMEOUT_SECONDS`: to the end of a stream. 900 s.
    pub total: Duration,
    /// To the end of a whole answer, if `total` is not shorter. 600 s.
    pub whole: Duration,
    /// To the model list, which `/health` waits for. 5 s.
    pub models: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_token: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(900),
            whole: Duration::from_secs(600),
            models: Duration::from_secs(5),
        }
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
    /// `DEFAULT_TEMPERATURE`, 0 to 2. Default 0.7.
    pub temperature: f64,
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

/// Bounds on what a caller may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `MAX_BODY_BYTES`: the largest request body. Default 2 MiB.
    pub body_bytes: usize,
    /// Time for a request's head, and for a kept connection to say something. 10 s.
    pub head_time: Duration,
    /// Time for a request's body. 30 s.
    pub body_time: Duration,
    /// How long what is written to a caller may get nowhere. 30 s.
    pub write_time: Duration,
    /// Connections at once. `MAX_CONNECTIONS`; by default what the limit on open files allows for: each may need
    /// another one to the upstream.
    pub connections: usize,
    /// `SHUTDOWN_GRACE_SECONDS`: time for running answers after SIGTERM. Default 30 s.
    pub shutdown_grace: Duration,
}

/// Everything that is wrong with the configuration, a line each.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the configuration has {} problem(s):", self.0.len())?;
        for problem in &self.0 {
            writeln!(f, "  - {problem}")?;
        }
        f.write_str("See .env.example for every variable; `ai-service --demo` runs without a key.")
    }
}

impl std::error::Error for ConfigError {}

/// Variables by name, before they are understood.
pub type Variables = BTreeMap<String, String>;

/// The process environment, completed by `.env`.
///
/// # Errors
/// A `.env` that is there but cannot be read.
pub fn variables() -> Result<Variables, ConfigError> {
    let mut found = Variables::new();
    match dotenvy::dotenv_iter() {
        Ok(lines) => {
            for line in lines {
                // dotenvy's own message quotes the line, which may hold the key.
                let (name, value) = line.map_err(|_| {
                    ConfigError(vec![".env: a line is not NAME=value; quote values with spaces".into()])
                })?;
                found.insert(name, value);
            }
        }
        Err(error) if error.not_found() => {}
        Err(_) => return Err(ConfigError(vec![".env is there but cannot be read".into()])),
    }
    // A variable that is not UTF-8 cannot be one of ours: all of ours are ASCII.
    found.extend(
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    );
    Ok(found)
}

impl Config {
    /// Understands `variables`. With `demo`, the upstream is filled in later by [`Config::with_upstream`] and its
    /// variables are not looked at.
    ///
    /// # Errors
    /// All problems at once.
    pub fn from_variables(variables: &Variables, demo: bool) -> Result<Self, ConfigError> {
        let mut read = Reader::new(variables);
        let config = Self {
            listen: read.listen(),
            upstream: Upstream {
                max_retries: read.max_retries(),
                timeouts: read.timeouts(),
                ..if demo { Upstream::placeholder() } else { read.upstream() }
            },
            defaults: read.defaults(),
            cors: read.cors(),
            log: read.log(),
            limits: read.limits(),
            streams: read.streams(),
            conversations: read.conversations(demo),
            access: read.access(),
            rate_limits: read.rate_limits(),
        };
        read.finish(config)
    }

    /// Where to listen, and nothing else: what `healthcheck` needs.
    ///
    /// # Errors
    /// A bad `HOST` or `PORT`.
    pub fn listen_from(variables: &Variables) -> Result<Listen, ConfigError> {
        let mut read = Reader::new(variables);
        let listen = read.listen();
        read.finish(listen)
    }

    /// The same configuration with another upstream, asked with a key that is no secret: the simulator. Its failures are
    /// asked for, and must not get in the way of what is asked next.
    #[must_use]
    pub fn with_upstream(mut self, base_url: Url) -> Self {
        self.upstream.base_url = base_url;
        self.upstream.breaker.failures = 0;
        self
    }
}

/// As often as OpenAI's own libraries do.
const MAX_RETRIES: u32 = 2;

impl Upstream {
    fn placeholder() -> Self {
        Self {
            api_keys: vec![SecretString::from("sk-demo")],
            base_url: parse_fixed(OPENAI_BASE_URL),
            organization: None,
            project: None,
            max_retries: MAX_RETRIES,
            breaker: BreakerLimits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

#[expect(clippy::expect_used, reason = "the argument is a constant that a test parses")]
fn parse_fixed(url: &'static str) -> Url {
    Url::parse(url).expect("a constant")
}

/// Reads variables by name and remembers what it was asked for and what was wrong.
struct Reader<'a> {
    variables: &'a Variables,
    asked: BTreeSet<&'static str>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(variables: &'a Variables) -> Self {
        Self { variables, asked: BTreeSet::new(), problems: Vec::new() }
    }

    fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.problems.is_empty() { Ok(value) } else { Err(ConfigError(self.problems)) }
    }

    /// The trimmed value; blank is unset.
    fn text(&mut self, name: &'static str) -> Option<&'a str> {
        self.asked.insert(name);
        self.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The value as `understand` sees it, or `default`. The problem says what was expected, and shows the value:
    /// not for secrets.
    fn parse<T>(
        &mut self,
        name: &'static str,
        default: T,
        expected: &str,
        understand: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(value) = self.text(name) else {
            return default;
        };
        understand(value).unwrap_or_else(|| {
            let shown: String = value.chars().take(60).collect();
            self.problems.push(format!("{name} must be {expected}, not {shown:?}"));
            default
        })
    }

    fn listen(&mut self) -> Listen {
        let host = |v: &str| (v == "localhost" || v.parse::<IpAddr>().is_ok()).then(|| v.to_owned());
        Listen {
            host: self.parse("HOST", "0.0.0.0".to_owned(), "an IP address or localhost", host),
            port: self.parse("PORT", 8000, "a port from 0 to 65535", |v| v.parse().ok()),
        }
    }

    fn upstream(&mut self) -> Upstream {
        Upstream {
            api_keys: self.secrets("OPENAI_API_KEY", "OPENAI_API_KEY_FILE"),
            base_url: self.base_url(),
            organization: self.header_text("OPENAI_ORG_ID"),
            project: self.header_text("OPENAI_PROJECT_ID"),
            max_retries: MAX_RETRIES,
            breaker: BreakerLimits::default(),
            timeouts: Timeouts::default(),
        }
    }

    fn max_retries(&mut self) -> u32 {
        let count = |v: &str| v.parse().ok().filter(|n| (0..=10).contains(n));
        self.parse("UPSTREAM_MAX_RETRIES", MAX_RETRIES, "a whole number from 0 to 10", count)
    }

    fn timeouts(&mut self) -> Timeouts {
        let usual = Timeouts::default();
        Timeouts {
            first_token: self.seconds("UPSTREAM_FIRST_TOKEN_TIMEOUT_SECONDS", usual.first_token, 1..=3600),
            idle: self.seconds("UPSTREAM_IDLE_TIMEOUT_SECONDS", usual.idle, 1..=3600),
            total: self.seconds("UPSTREAM_TOTAL_TIMEOUT_SECONDS", usual.total, 1..=86400),
            ..usual
        }
    }

    fn streams(&mut self) -> Streams {
        let bytes = |v: &str| v.parse().ok().filter(|n| *n >= 1024 * 1024);
        Streams {
            ttl: self.seconds("STREAM_TTL_SECONDS", Duration::from_secs(600), 1..=86400),
            orphan: self.seconds("STREAM_ORPHAN_SECONDS", Duration::from_secs(60), 0..=86400),
            max_bytes: self.parse("STREAM_LOG_MAX_BYTES", 256 * 1024 * 1024, "bytes, at least 1048576", bytes),
        }
    }

    fn seconds(&mut self, name: &'static str, default: Duration, range: RangeInclusive<u64>) -> Duration {
        let expected = format!("whole seconds from {} to {}", range.start(), range.end());
        let seconds = |v: &str| v.parse().ok().filter(|s| range.contains(s)).map(Duration::from_secs);
        self.parse(name, default, &expected, seconds)
    }

    /// Secrets of which one must be there at least, separated by commas or lines. No problem shows a value.
    fn secrets(&mut self, name: &'static str, file_name: &'static str) -> Vec<SecretString> {
        let problems = self.problems.len();
        let Some(text) = self.secret_value(name, file_name) else {
            if self.problems.len() == problems {
                self.problems.push(format!("{name} (or {file_name}) is required"));
            }
            return Vec::new();
        };
        let values: Vec<String> = words(text.expose_secret()).map(str::to_owned).collect();
        let problem = if values.is_empty() {
            Some("holds no key")
        } else if !values.iter().all(|value| value.bytes().all(|b| b.is_ascii_graphic())) {
            Some("must be one word of visible ASCII characters, or several separated by commas")
        } else if values.iter().collect::<BTreeSet<_>>().len() < values.len() {
            Some("holds a key twice")
        } else {
            None
        };
        self.problems.extend(problem.map(|problem| format!("{name} {problem}")));
        values.into_iter().map(SecretString::from).collect()
    }

    /// A secret of one word.
    fn optional_secret(&mut self, name: &'static str, file_name: &'static str) -> Option<SecretString> {
        let value = self.secret_value(name, file_name)?;
        if !value.expose_secret().bytes().all(|b| b.is_ascii_graphic()) {
            self.problems.push(format!("{name} must be one word of visible ASCII characters"));
        }
        Some(value)
    }

    /// A secret from its variable or from the file that its `_FILE` variable names. No problem shows its value.
    fn secret_value(&mut self, name: &'static str, file_name: &'static str) -> Option<SecretString> {
        let direct = self.text(name);
        let from_file = self.text(file_name).and_then(|path| match fs::read_to_string(path) {
            Ok(content) if content.trim().is_empty() => {
                self.problems.push(format!("{file_name}: the file {path:?} is empty"));
                None
            }
            Ok(content) => Some(content.trim().to_owned()),
            Err(error) => {
                self.problems.push(format!("{file_name}: cannot read {path:?}: {error}"));
                None
            }
        });
        let value = match (direct, from_file) {
            (Some(direct), Some(file)) if !words(direct).eq(words(&file)) => {
                self.problems.push(format!("{name} and {file_name} are both set and differ; keep one"));
                return None;
            }
            (Some(direct), _) => direct.to_owned(),
            (None, Some(file)) => file,
            (None, None) => return None,
        };
        Some(SecretString::from(value))
    }

    fn conversations(&mut self, demo: bool) -> Conversations {
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

    fn switch(&mut self, name: &'static str, default: bool) -> bool {
        self.parse(name, default, "on or off", |v| match v.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Some(true),
            "off" | "false" | "no" | "0" => Some(false),
            _ => None,
        })
    }

    fn base_url(&mut self) -> Url {
        let name = "OPENAI_BASE_URL";
        let default = parse_fixed(OPENAI_BASE_URL);
        // The value is not shown: it may carry a password, which is one of the mistakes.
        let Some(value) = self.text(name) else {
            return default;
        };
        let problem = match Url::parse(value) {
            Err(error) => format!("{name} is not a URL: {error}"),
            Ok(url) if !matches!(url.scheme(), "http" | "https") => {
                format!("{name} must start with http:// or https://")
            }
            Ok(url) if url.host_str().is_none_or(str::is_empty) => format!("{name} names no host"),
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                format!("{name} must not carry a user or a password; the key has its own variable")
            }
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                format!("{name} must end with the path, usually /v1")
            }
            Ok(url) => return url,
        };
        self.problems.push(problem);
        default
    }

    fn header_text(&mut self, name: &'static str) -> Option<String> {
        let plain = |v: &str| v.bytes().all(|b| b.is_ascii_graphic()).then(|| Some(v.to_owned()));
        self.parse(name, None, "one word of visible ASCII characters", plain)
    }

    fn defaults(&mut self) -> Defaults {
        let temperature = |v: &str| v.parse().ok().filter(|t| (0.0..=2.0).contains(t));
        let max_tokens = |v: &str| v.parse().ok().filter(|n| (1..=MAX_TOKENS_LIMIT).contains(n));
        let model = |v: &str| is_model_name(v).then(|| v.to_owned());
        Defaults {
            model: self.parse("DEFAULT_MODEL", "gpt-3.5-turbo".to_owned(), "a model's name", model),
            temperature: self.parse("DEFAULT_TEMPERATURE", 0.7, "a number from 0 to 2", temperature),
            max_tokens: self.parse("DEFAULT_MAX_TOKENS", 2000, "a whole number of at least 1", max_tokens),
        }
    }

    fn cors(&mut self) -> AllowedOrigins {
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

    fn log(&mut self) -> Log {
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
        let levels = "DEBUG, INFO, WARNING, ERROR or CRITICAL";
        Log {
            level: self.parse("LOG_LEVEL", LogLevel::Info, levels, level),
            format: self.parse("LOG_FORMAT", LogFormat::Text, "text or json", format),
        }
    }

    fn limits(&mut self) -> Limits {
        let bytes = |v: &str| v.parse().ok().filter(|n| (1024..=64 * 1024 * 1024).contains(n));
        let count = |v: &str| v.parse().ok().filter(|n| *n >= 1);
        let two_mib = 2 * 1024 * 1024;
        Limits {
            body_bytes: self.parse("MAX_BODY_BYTES", two_mib, "bytes, from 1024 to 67108864", bytes),
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
            connections: self.parse("MAX_CONNECTIONS", connections_by_default(), "a whole number of at least 1", count),
            shutdown_grace: self.seconds("SHUTDOWN_GRACE_SECONDS", Duration::from_secs(30), 0..=3600),
        }
    }
}

/// Half of the open files that this process may have, less some for everything else.
fn connections_by_default() -> usize {
    // Linux tells in a file; elsewhere the usual limit of a shell is assumed.
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let files = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(1024_usize);
    (files.saturating_sub(64) / 2).max(16)
}

/// What stands between commas and line ends.
fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', '\n']).map(str::trim).filter(|word| !word.is_empty())
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
    let url = Url::parse(text).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.path() == "/"
        && !text.ends_with('/')
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    plain.then(|| url.origin().ascii_serialization())
}

impl Config {
    /// What to tell the operator at start, though it is allowed.
    #[must_use]
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        let Access { keys, jwt, allowed, trusted_proxies, .. } = &self.access;
        let is_protected = !keys.is_empty() || jwt.is_some() || !allowed.is_empty();
        if !self.listen.is_loopback() && !is_protected {
            warnings.push(
                "listening beyond this machine with nothing protecting it: whoever reaches this port chats at \
                 this service's expense; set API_KEYS, or HOST=127.0.0.1, or put a proxy that authenticates in front",
            );
        }
        if trusted_proxies.iter().any(|net| net.prefix_len() == 0) {
            warnings.push("TRUSTED_PROXIES trusts every address: anybody can say in X-Forwarded-For who they are");
        }
        let url = &self.upstream.base_url;
        let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if url.scheme() == "http" && !local && !self.upstream.api_keys.is_empty() {
            warnings.push("OPENAI_BASE_URL is http://: the key and every message travel unencrypted");
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    fn config(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut all = variables(&[("OPENAI_API_KEY", "sk-test")]);
        all.extend(variables(pairs));
        Config::from_variables(&all, false)
    }

    #[test]
    fn a_key_is_all_that_is_needed() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen, Listen { host: "0.0.0.0".into(), port: 8000 });
        assert_eq!(config.upstream.base_url.as_str(), OPENAI_BASE_URL);
        let defaults = Defaults { model: "gpt-3.5-turbo".into(), temperature: 0.7, max_tokens: 2000 };
        assert_eq!(config.defaults, defaults);
        let Timeouts { connect, first_token, idle, total, whole, models } = config.upstream.timeouts;
        let seconds = [connect, first_token, idle, total, whole, models].map(|time| time.as_secs());
        assert_eq!(seconds, [5, 60, 60, 900, 600, 5]);
        assert_eq!(config.cors, AllowedOrigins::Any);
        assert_eq!(config.log, Log { level: LogLevel::Info, format: LogFormat::Text });
    }

    #[test]
    fn every_mistake_is_reported_at_once_and_no_secret_with_it() {
        let bad = variables(&[
            ("OPENAI_BASE_URL", "https://user:hunter2@example.com/v1"),
            ("PORT", "80000"),
            ("HOST", "not a host"),
            ("DEFAULT_TEMPERATURE", "3"),
            ("DEFAULT_MAX_TOKENS", "0"),
            ("DEFAULT_MODEL", "gpt 4"),
            ("LOG_LEVEL", "loud"),
            ("LOG_FORMAT", "xml"),
            ("CORS_ALLOW_ORIGINS", "https://a.example/path"),
            ("MAX_BODY_BYTES", "-1"),
            ("SHUTDOWN_GRACE_SECONDS", "soon"),
            ("UPSTREAM_MAX_RETRIES", "11"),
        ]);
        let error = Config::from_variables(&bad, false).unwrap_err();
        let text = error.to_string();
        for name in bad.keys().map(String::as_str).chain(["OPENAI_API_KEY"]) {
            assert!(text.contains(name), "{name} is missing in:\n{text}");
        }
        assert_eq!(error.0.len(), 13);
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn blank_is_unset_and_padding_is_dropped() {
        let config = config(&[("OPENAI_BASE_URL", "  "), ("PORT", " 9000 "), ("OPENAI_ORG_ID", "")]).unwrap();
        assert_eq!(config.upstream.base_url.as_str(), OPENAI_BASE_URL);
        assert_eq!(config.listen.port, 9000);
        assert_eq!(config.upstream.organization, None);
    }

    #[test]
    fn pythons_level_names_work() {
        for (name, level) in [
            ("debug", LogLevel::Debug),
            ("WARNING", LogLevel::Warn),
            ("Critical", LogLevel::Error),
            ("INFO", LogLevel::Info),
        ] {
            assert_eq!(config(&[("LOG_LEVEL", name)]).unwrap().log.level, level);
        }
    }

    #[test]
    fn origins_are_kept_as_browsers_send_them() {
        let list = config(&[("CORS_ALLOW_ORIGINS", "https://A.example:443, http://localhost:3000,")]).unwrap().cors;
        let expected = vec!["https://a.example".to_owned(), "http://localhost:3000".to_owned()];
        assert_eq!(list, AllowedOrigins::List(expected));
        for bad in ["https://a.example/", "a.example", "*,https://a.example", "null", ","] {
            assert!(config(&[("CORS_ALLOW_ORIGINS", bad)]).is_err(), "{bad}");
        }
    }

    fn shown(keys: &[SecretString]) -> Vec<&str> {
        keys.iter().map(ExposeSecret::expose_secret).collect()
    }

    #[test]
    fn several_keys_are_separated_by_commas_or_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, "sk-1\r\nsk-2\n\nsk-3,sk-4\n").unwrap();
        let file = path.to_str().unwrap();
        let keys =
            |pairs: &[(&str, &str)]| Config::from_variables(&variables(pairs), false).map(|c| c.upstream.api_keys);
        assert_eq!(shown(&keys(&[("OPENAI_API_KEY", " sk-1, sk-2,")]).unwrap()), ["sk-1", "sk-2"]);
        let all = ["sk-1", "sk-2", "sk-3", "sk-4"];
        assert_eq!(shown(&keys(&[("OPENAI_API_KEY_FILE", file)]).unwrap()), all);
        let both = [("OPENAI_API_KEY_FILE", file), ("OPENAI_API_KEY", "sk-1,sk-2,sk-3,sk-4")];
        assert_eq!(shown(&keys(&both).unwrap()), all);
        for (bad, problem) in [(",", "no key"), ("sk-1,sk-canary,sk-canary", "twice"), ("sk-1,sk canary", "one word")] {
            let error = keys(&[("OPENAI_API_KEY", bad)]).unwrap_err().to_string();
            assert!(error.contains(problem) && !error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn the_key_may_come_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "sk-from-file\n").unwrap();
        let file = path.to_str().unwrap();
        let key =
            |pairs: &[(&str, &str)]| Config::from_variables(&variables(pairs), false).map(|c| c.upstream.api_keys);

        let read = key(&[("OPENAI_API_KEY_FILE", file)]).unwrap();
        assert_eq!(shown(&read), ["sk-from-file"]);
        key(&[("OPENAI_API_KEY_FILE", file), ("OPENAI_API_KEY", "sk-from-file")]).unwrap();
        let differ = key(&[("OPENAI_API_KEY_FILE", file), ("OPENAI_API_KEY", "sk-other")]).unwrap_err().to_string();
        assert!(differ.contains("differ") && !differ.contains("sk-other"), "{differ}");
        let missing = key(&[("OPENAI_API_KEY_FILE", "/nowhere/key")]).unwrap_err();
        assert_eq!(missing.0.len(), 1, "{missing}");
        fs::write(&path, " \n").unwrap();
        assert!(key(&[("OPENAI_API_KEY_FILE", file)]).unwrap_err().to_string().contains("is empty"));
        let spaced = key(&[("OPENAI_API_KEY", "sk two")]).unwrap_err().to_string();
        assert!(!spaced.contains("sk two"), "{spaced}");
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", config(&[("OPENAI_API_KEY", "sk-canary")]).unwrap());
        assert!(!shown.contains("canary"), "{shown}");
    }

    #[test]
    fn env_example_lists_exactly_the_variables_that_are_read_with_their_defaults() {
        let text = include_str!("../.env.example");
        let lines = text.lines().map(|line| line.trim_start_matches("# "));
        let listed: Variables = lines
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();

        let mut read = Reader::new(&listed);
        read.listen();
        read.upstream();
        read.max_retries();
        read.defaults();
        read.cors();
        read.log();
        read.limits();
        read.timeouts();
        read.streams();
        read.conversations(false);
        read.access();
        read.rate_limits();
        let asked: Vec<_> = read.asked.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(listed.keys().cloned().collect::<Vec<_>>(), asked);

        let mut shown = listed.clone();
        shown.remove("OPENAI_API_KEY_FILE");
        for file in ["DATABASE_URL_FILE", "API_KEYS_FILE", "JWT_SECRET_FILE", "JWT_PUBLIC_KEY_FILE"] {
            shown.remove(file);
        }
        let from_example = Config::from_variables(&shown, false).unwrap();
        let from_nothing = config(&[]).unwrap();
        let settings = |c: &Config| {
            // Every field, so that a new one is not forgotten; of the upstream, what has a default.
            let Config { listen, defaults, cors, log, limits, streams, conversations, upstream, access, rate_limits } =
                c;
            let (outer, inner) = ((listen, defaults, cors, log, limits), (streams, conversations, access, rate_limits));
            format!("{outer:?} {inner:?} {:?}", (upstream.max_retries, upstream.timeouts))
        };
        assert_eq!(settings(&from_example), settings(&from_nothing));
        assert_eq!(from_example.upstream.base_url, from_nothing.upstream.base_url);
    }

    #[test]
    fn a_warning_is_given_beyond_loopback_and_for_plain_http() {
        assert_eq!(config(&[("HOST", "127.0.0.1")]).unwrap().warnings().len(), 0);
        assert_eq!(config(&[("HOST", "::1")]).unwrap().warnings().len(), 0);
        assert_eq!(config(&[]).unwrap().warnings().len(), 1);
        let key = ("API_KEYS", "web:a-key-of-sixteen-x");
        assert_eq!(config(&[key]).unwrap().warnings().len(), 0);
        assert_eq!(config(&[("ALLOWED_IPS", "10.0.0.0/8")]).unwrap().warnings().len(), 0);
        let plain = [("HOST", "localhost"), ("OPENAI_BASE_URL", "http://llm.example/v1")];
        assert_eq!(config(&plain).unwrap().warnings().len(), 1);
    }
}
