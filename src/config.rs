//! Every setting once: its variable, type, default and unit. The only file that reads the environment.
//!
//! Variables come from the process environment and, where that lacks one, from the file `.env` in the working
//! directory. A blank value counts as unset, because compose files pass `${NAME:-}`. All mistakes are collected
//! and reported together.

mod access;
mod dotenv;
mod reader;
mod settings;
mod upstream;

pub use access::{Access, ApiKey, Docs, Jwt, RateLimits};
use settings::upstream_connections;
pub use settings::{
    AllowedOrigins, ConnectionBound, Conversations, Database, Defaults, Limits, Listen, Log, LogFormat, LogLevel,
    MAX_TOKENS_LIMIT, RESERVED_CONNECTIONS, Streams, is_model_name,
};
pub use upstream::{BreakerLimits, ConnectionLimits, OPENAI_BASE_URL, Timeouts, Upstream};

use std::{borrow::Cow, collections::BTreeMap, fmt, path::Path};

use url::Url;

use reader::Reader;

/// The whole configuration of one app. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Listen,
    pub upstream: Upstream,
    pub defaults: Defaults,
    /// `ROOT_PATH`: the path below which a proxy in front serves this service, such as `/ai`. Empty by default.
    pub root_path: String,
    pub cors: AllowedOrigins,
    pub log: Log,
    pub limits: Limits,
    pub streams: Streams,
    pub conversations: Conversations,
    pub access: Access,
    pub rate_limits: RateLimits,
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

/// The process environment, completed by the `.env` of the working directory; those of the directories above may be
/// another program's, or of whoever may write there. With it, what to tell the operator of the file.
///
/// # Errors
/// A `.env` that is there but cannot be read.
pub fn variables() -> Result<(Variables, Vec<String>), ConfigError> {
    let entries = dotenv::read(Path::new(".env"))?;
    let warnings = entries.iter().filter_map(|entry| unknown(&entry.name, entry.line)).collect();
    let mut found: Variables = entries.into_iter().map(|entry| (entry.name, entry.value)).collect();
    // A variable that is not UTF-8 cannot be one of ours: all of ours are ASCII.
    found.extend(
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    );
    Ok((found, warnings))
}

/// Every variable of the service.
fn known_names() -> Vec<&'static str> {
    let nothing = Variables::new();
    let mut read = Reader::new(&nothing);
    read_everything(&mut read, false);
    read.asked.into_iter().collect()
}

/// What to say of a name in `.env`, if it is none of the service's. The name itself is shown only if it looks like one: what
/// else stands before a `=` may be part of a key.
fn unknown(name: &str, line: usize) -> Option<String> {
    let known = known_names();
    // Compose reads the same file for itself.
    if known.contains(&name) || name == "PORT_ON_HOST" || name.starts_with("COMPOSE_") {
        return None;
    }
    let looks_like_one =
        name.len() <= 64 && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let shown = if looks_like_one { format!(" {name}") } else { String::new() };
    let meant = name.to_ascii_uppercase();
    let nearest = known.into_iter().map(|known| (distance(&meant, known), known)).min();
    let hint = match nearest {
        Some((far, known)) if far <= known.len() / 2 => format!("; did you mean {known}?"),
        _ => String::new(),
    };
    Some(format!(".env, line {line}: no variable of this service has the name{shown}, so it has no effect{hint}"))
}

/// How many letters have to be put in, taken out or changed to make one name of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(row.first_mut().unwrap_or(&mut 0), i + 1);
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(other.bytes()) {
            let changed = diagonal + usize::from(a != b);
            diagonal = *cell;
            left = changed.min(left + 1).min(*cell + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// What may stand at the beginning of a file that an editor says is UTF-8, and belongs to no value.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Every variable, understood.
fn read_everything(read: &mut Reader<'_>, demo: bool) -> Config {
    Config {
        listen: read.listen(),
        upstream: Upstream {
            max_retries: read.max_retries(),
            timeouts: read.timeouts(),
            connections: upstream_connections(demo),
            ..if demo { Upstream::placeholder() } else { read.upstream() }
        },
        defaults: read.defaults(),
        root_path: read.root_path(),
        cors: read.cors(),
        log: read.log(),
        limits: read.limits(demo),
        streams: read.streams(),
        conversations: read.conversations(demo),
        access: read.access(),
        rate_limits: read.rate_limits(),
    }
}

impl Config {
    /// Understands `variables`. With `demo`, the upstream is filled in later by [`Config::with_upstream`] and its
    /// variables are not looked at.
    ///
    /// # Errors
    /// All problems at once.
    pub fn from_variables(variables: &Variables, demo: bool) -> Result<Self, ConfigError> {
        let mut read = Reader::new(variables);
        read.check_proxies();
        let config = read_everything(&mut read, demo);
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

    /// Where conversations are, and nothing else: what `backup` needs.
    ///
    /// # Errors
    /// A bad `DATABASE_URL`.
    pub fn database_from(variables: &Variables) -> Result<Database, ConfigError> {
        let mut read = Reader::new(variables);
        let database = read.conversations(false).database;
        read.finish(database)
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

impl Config {
    /// What to tell the operator at start, though it is allowed. What a `demo` answers costs nobody anything.
    #[must_use]
    pub fn warnings(&self, demo: bool) -> Vec<Cow<'static, str>> {
        let mut warnings: Vec<Cow<'static, str>> = Vec::new();
        if let ConnectionBound::OpenFiles { files, wanted: Some(wanted) } = self.limits.bound {
            let possible = self.limits.connections;
            warnings.push(Cow::Owned(format!(
                "MAX_CONNECTIONS is {wanted}, and {files} open files allow for {possible} connections, each with one to \
                 the upstream: there can be {possible}; raise the limit on open files (ulimit -n, LimitNOFILE)",
            )));
        }
        let Access { keys, jwt, allowed, trusted_proxies, .. } = &self.access;
        let is_protected = !keys.is_empty() || jwt.is_some() || !allowed.is_empty();
        if !self.listen.is_loopback() && !is_protected && !demo {
            warnings.push(
                "listening beyond this machine with nothing protecting it: whoever reaches this port chats at \
                 this service's expense; set API_KEYS, a JWT_ variable or ALLOWED_IPS, or HOST=127.0.0.1"
                    .into(),
            );
        }
        if trusted_proxies.iter().any(|net| net.prefix_len() == 0) {
            warnings
                .push("TRUSTED_PROXIES trusts every address: anybody can say in X-Forwarded-For who they are".into());
        }
        let url = &self.upstream.base_url;
        let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if url.scheme() == "http" && !local && !self.upstream.api_keys.is_empty() {
            warnings.push("OPENAI_BASE_URL is http://: the key and every message travel unencrypted".into());
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use secrecy::{ExposeSecret, SecretString};

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
        let defaults = Defaults { model: "gpt-3.5-turbo".into(), temperature: Some(0.7), max_tokens: 2000 };
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
        let apps =
            "capacitor://localhost, ionic://localhost,tauri://localhost,chrome-extension://abcdefghij,app://x:8080";
        let AllowedOrigins::List(apps) = config(&[("CORS_ALLOW_ORIGINS", apps)]).unwrap().cors else {
            panic!("a list")
        };
        assert_eq!(apps.len(), 5);
        assert_eq!((apps[0].as_str(), apps[4].as_str()), ("capacitor://localhost", "app://x:8080"));
        for bad in [
            "https://a.example/",
            "a.example",
            "*,https://a.example",
            "null",
            ",",
            "capacitor://localhost/",
            "capacitor://localhost/path",
            "app://x?y",
            "app://x#y",
            "app://*",
            "app://*.example",
            "app://",
            "app:x",
            "app://user@x",
            "app://x:99999",
            "app://x:",
            "1app://x",
            "://x",
            "file://x",
            "wss://a.example",
            "https://*.example",
        ] {
            assert!(config(&[("CORS_ALLOW_ORIGINS", bad)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_root_path_is_a_path_and_nothing_else() {
        for (given, expected) in [
            ("", ""),
            ("/", ""),
            ("/ai", "/ai"),
            ("/ai/", "/ai"),
            ("/a.b/c-d_e~f", "/a.b/c-d_e~f"),
            ("/%EA%B0%80", "/%EA%B0%80"),
        ] {
            assert_eq!(config(&[("ROOT_PATH", given)]).unwrap().root_path, expected, "{given}");
        }
        for bad in [
            "ai",
            "//ai",
            "/ai//x",
            "/a b",
            "/ai?x",
            "/ai#x",
            "/../x",
            "/./x",
            "https://a.example/ai",
            "/가",
            "/%zz",
            "/a\\b",
        ] {
            let error = config(&[("ROOT_PATH", bad)]).unwrap_err().to_string();
            assert!(error.contains("ROOT_PATH"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_name_that_is_not_known_gets_the_nearest_that_is() {
        let said = unknown("RATE_LIMIT_REQUEST_PER_MINUTE", 3).unwrap();
        assert!(said.contains("line 3") && said.contains(" RATE_LIMIT_REQUEST_PER_MINUTE,"), "{said}");
        assert!(said.contains("did you mean RATE_LIMIT_REQUESTS_PER_MINUTE?"), "{said}");
        for (name, nearest) in [
            ("APIKEYS", "API_KEYS"),
            ("api_keys", "API_KEYS"),
            ("OPENAI_KEY", "OPENAI_API_KEY"),
            ("CORS_ALLOWED_ORIGINS", "CORS_ALLOW_ORIGINS"),
            ("TRUSTED_PROXY", "TRUSTED_PROXIES"),
        ] {
            let said = unknown(name, 1).unwrap();
            assert!(said.contains(&format!("did you mean {nearest}?")), "{said}");
        }
        assert!(!unknown("HTTPS_PROXY", 1).unwrap().contains("secret"));
        let key = unknown("c2VjcmV0LWtleQ", 1).unwrap();
        assert!(!key.contains("c2Vj"), "{key}");
        for known in known_names().into_iter().chain(["PORT_ON_HOST", "COMPOSE_PROJECT_NAME"]) {
            assert_eq!(unknown(known, 1), None, "{known}");
        }
        assert_eq!((distance("", "abc"), distance("abc", "abc"), distance("kitten", "sitting")), (3, 0, 3));
    }

    #[test]
    fn quotes_around_a_value_are_no_part_of_it() {
        // As `docker run --env-file` hands them over.
        let names = [
            "OPENAI_API_KEY",
            "API_KEYS",
            "JWT_SECRET",
            "JWT_ISSUER",
            "JWT_AUDIENCE",
            "DATABASE_URL",
            "OPENAI_ORG_ID",
            "OPENAI_BASE_URL",
            "PORT",
            "DEFAULT_MODEL",
            "CORS_ALLOW_ORIGINS",
            "LOG_LEVEL",
            "UPSTREAM_CA_FILE",
        ];
        for quote in ['"', '\''] {
            for name in names {
                let value = format!("{quote}canary-0123456789abcdef{quote}");
                let error = Config::from_variables(&variables(&[(name, &value)]), false).unwrap_err();
                let own: Vec<_> = error.0.iter().filter(|problem| problem.starts_with(name)).collect();
                assert!(own.iter().any(|problem| problem.contains("has quotes around it")), "{name}: {error}");
                let is_secret =
                    !["PORT", "DEFAULT_MODEL", "CORS_ALLOW_ORIGINS", "LOG_LEVEL", "UPSTREAM_CA_FILE"].contains(&name);
                assert!(!is_secret || !error.to_string().contains("canary"), "{error}");
            }
            for (name, value) in [
                ("OPENAI_API_KEY", format!("sk-one,{quote}canary{quote}")),
                ("API_KEYS", format!("web:{quote}canary-0123456789abcdef{quote}")),
                ("API_KEYS", format!("web:0123456789abcdef,{quote}app:canary-0123456789abcdef{quote}")),
            ] {
                let error = Config::from_variables(&variables(&[(name, &value)]), false).unwrap_err().to_string();
                assert!(error.contains("has quotes around it") && !error.contains("canary"), "{error}");
            }
        }
        assert!(
            config(&[("JWT_SECRET", "\"a secret of at least thirty-two bytes")]).is_ok(),
            "one quote is a character"
        );
    }

    #[test]
    fn a_files_byte_order_mark_is_no_part_of_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, format!("\u{feff}{content}")).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let pairs = [
            ("OPENAI_API_KEY_FILE", file("openai", "sk-one\r\n")),
            ("API_KEYS_FILE", file("keys", "alice:a-key-of-sixteen-x\n")),
            ("JWT_SECRET_FILE", file("secret", "a secret of at least thirty-two bytes\n")),
            ("DATABASE_URL_FILE", file("database", "postgres://user:password@db/name\n")),
        ];
        let pairs: Vec<_> = pairs.iter().map(|(name, path)| (*name, path.as_str())).collect();
        let config = Config::from_variables(&variables(&pairs), false).unwrap();
        assert_eq!(shown(&config.upstream.api_keys), ["sk-one"]);
        assert_eq!(config.access.keys, [ApiKey::new("alice", "a-key-of-sixteen-x")]);
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let pem = file("pem", pem);
        assert!(
            Config::from_variables(&variables(&[("JWT_PUBLIC_KEY_FILE", &pem)]), true).unwrap().access.jwt.is_some()
        );
        let empty = Config::from_variables(&variables(&[("OPENAI_API_KEY_FILE", &file("empty", "\n"))]), false);
        assert!(empty.unwrap_err().to_string().contains("is empty"));
    }

    #[test]
    fn the_placeholder_is_no_key() {
        for key in [
            "sk-your-key",
            "sk-real,sk-your-key",
            "your-api-key",
            "YOUR_OPENAI_API_KEY",
            "sk-your-api-key-here",
            "sk-...",
        ] {
            let error = Config::from_variables(&variables(&[("OPENAI_API_KEY", key)]), false).unwrap_err().to_string();
            assert!(error.contains("OPENAI_API_KEY is a placeholder"), "{key}: {error}");
            assert!(Config::from_variables(&variables(&[("OPENAI_API_KEY", key)]), true).is_ok(), "a demo needs none");
        }
        assert!(config(&[("OPENAI_API_KEY", "sk-yourself0123")]).is_ok());
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
        let secrets = [
            ("OPENAI_API_KEY", "sk-canary"),
            ("API_KEYS", "alice:canary-of-sixteen-characters"),
            ("JWT_SECRET", "canary of at least thirty-two bytes"),
            ("DATABASE_URL", "postgres://user:canary@db/name"),
        ];
        let config = config(&secrets).unwrap();
        let shown = format!("{config:?} {config:#?}");
        assert!(!shown.contains("canary") && shown.contains("alice"), "{shown}");
    }

    #[test]
    fn every_secret_may_come_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let openai = file("openai", "sk-one\n");
        let keys = file("keys", "alice:a-key-of-sixteen-x\nbob:b-key-of-sixteen-x\n");
        let secret = file("secret", "a secret of at least thirty-two bytes\n");
        let database = file("database", "postgres://user:password@db/name\n");
        let pairs = [
            ("OPENAI_API_KEY_FILE", openai.as_str()),
            ("API_KEYS_FILE", &keys),
            ("JWT_SECRET_FILE", &secret),
            ("DATABASE_URL_FILE", &database),
        ];
        let config = Config::from_variables(&variables(&pairs), false).unwrap();
        assert_eq!((config.upstream.api_keys.len(), config.access.keys.len()), (1, 2));
        assert!(config.access.jwt.is_some() && matches!(config.conversations.database, Database::Postgres(_)));
        for (name, _) in pairs {
            let missing = Config::from_variables(&variables(&[(name, "/nowhere")]), true);
            if name != "OPENAI_API_KEY_FILE" {
                assert!(missing.unwrap_err().to_string().contains(name), "{name}");
            }
        }
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
        read_everything(&mut read, false);
        let asked: Vec<_> = read.asked.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(listed.keys().cloned().collect::<Vec<_>>(), asked);

        let mut shown = listed.clone();
        // The one in the file is refused.
        shown.insert("OPENAI_API_KEY".into(), "sk-test".into());
        shown.remove("OPENAI_API_KEY_FILE");
        for file in ["DATABASE_URL_FILE", "API_KEYS_FILE", "JWT_SECRET_FILE", "JWT_PUBLIC_KEY_FILE"] {
            shown.remove(file);
        }
        let from_example = Config::from_variables(&shown, false).unwrap();
        let from_nothing = config(&[]).unwrap();
        let settings = |c: &Config| {
            // Every field, so that a new one is not forgotten; of the upstream, what has a default.
            let Config { listen, defaults, root_path, cors, log, .. } = c;
            let Config { limits, streams, conversations, upstream, access, rate_limits, .. } = c;
            let outer = (listen, defaults, root_path, cors, log);
            let inner = (limits, streams, conversations, access, rate_limits);
            // Whoever sets the time of an answer sets it for whole ones, too; the example shows that of streams.
            let timeouts = Timeouts { whole: Timeouts::default().whole, ..upstream.timeouts };
            format!("{outer:?} {inner:?} {:?}", (upstream.max_retries, timeouts))
        };
        assert_eq!(settings(&from_example), settings(&from_nothing));
        assert_eq!(from_example.upstream.base_url, from_nothing.upstream.base_url);
    }

    #[test]
    fn a_whole_answer_has_600_seconds_or_what_is_set_for_every_answer() {
        let timeouts = |pairs: &[(&str, &str)]| config(pairs).unwrap().upstream.timeouts;
        let seconds = |timeouts: Timeouts| (timeouts.whole.as_secs(), timeouts.total.as_secs());
        assert_eq!(seconds(timeouts(&[])), (600, 900));
        assert_eq!(seconds(timeouts(&[("UPSTREAM_TOTAL_TIMEOUT_SECONDS", " ")])), (600, 900));
        assert_eq!(seconds(timeouts(&[("UPSTREAM_TOTAL_TIMEOUT_SECONDS", "1800")])), (1800, 1800));
    }

    #[test]
    fn an_address_that_names_the_route_is_refused_with_what_to_give_instead() {
        for path in ["/v1/chat/completions", "/v1/chat/completions/"] {
            let error = config(&[("OPENAI_BASE_URL", &format!("http://llm.example{path}"))]).unwrap_err().to_string();
            assert!(error.contains("give what stands before it"), "{error}");
        }
    }

    #[test]
    fn what_names_no_proxy_is_a_mistake_and_not_ignored() {
        for value in ["::::", "http://", "http://user:canary@:x"] {
            let error = config(&[("HTTPS_PROXY", value)]).unwrap_err().to_string();
            assert!(error.contains("HTTPS_PROXY") && !error.contains("canary"), "{error}");
        }
        for value in ["http://proxy:3128", "proxy:3128", "socks5://user:word@10.0.0.1:1080", " "] {
            config(&[("http_proxy", value)]).unwrap();
        }
    }

    #[test]
    fn a_temperature_may_be_left_to_the_model() {
        let temperature =
            |value: &str| config(&[("DEFAULT_TEMPERATURE", value)]).map(|config| config.defaults.temperature);
        assert_eq!((temperature("none").unwrap(), temperature("1").unwrap()), (None, Some(1.0)));
        assert!(temperature("nothing").is_err());
    }

    #[test]
    fn a_warning_is_given_beyond_loopback_and_for_plain_http() {
        assert_eq!(config(&[("HOST", "127.0.0.1")]).unwrap().warnings(false).len(), 0);
        assert_eq!(config(&[("HOST", "::1")]).unwrap().warnings(false).len(), 0);
        assert_eq!(config(&[]).unwrap().warnings(false).len(), 1);
        let key = ("API_KEYS", "web:a-key-of-sixteen-x");
        assert_eq!(config(&[key]).unwrap().warnings(false).len(), 0);
        assert_eq!(config(&[("ALLOWED_IPS", "10.0.0.0/8")]).unwrap().warnings(false).len(), 0);
        let plain = [("HOST", "localhost"), ("OPENAI_BASE_URL", "http://llm.example/v1")];
        assert_eq!(config(&plain).unwrap().warnings(false).len(), 1);
        for protection in [
            ("API_KEYS", "alice:a-key-of-sixteen-x"),
            ("JWT_SECRET", "a secret of at least thirty-two bytes"),
            ("ALLOWED_IPS", "10.0.0.0/8"),
        ] {
            assert_eq!(config(&[protection]).unwrap().warnings(false), [""; 0], "{protection:?}");
        }
        assert_eq!(config(&[]).unwrap().warnings(true), [""; 0], "a demo costs nothing");
        let trusting = config(&[("HOST", "::1"), ("TRUSTED_PROXIES", "10.0.0.1,::/0")]).unwrap().warnings(false);
        let [warning] = &trusting[..] else {
            panic!("one warning");
        };
        assert!(warning.contains("TRUSTED_PROXIES"), "{warning}");
    }
}
