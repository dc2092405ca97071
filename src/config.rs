//! Every setting once: its variable, type, default and unit. The only file that reads the environment.
//!
//! Variables come from the process environment and, where that lacks one, from the file `.env` in the working
//! directory. A blank value counts as unset, because compose files pass `${NAME:-}`. All mistakes are collected
//! and reported together.

mod access;
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

use std::{borrow::Cow, collections::BTreeMap, fmt};

use url::Url;

use reader::Reader;

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
        read.check_proxies();
        let config = Self {
            listen: read.listen(),
            upstream: Upstream {
                max_retries: read.max_retries(),
                timeouts: read.timeouts(),
                connections: upstream_connections(demo),
                ..if demo { Upstream::placeholder() } else { read.upstream() }
            },
            defaults: read.defaults(),
            cors: read.cors(),
            log: read.log(),
            limits: read.limits(demo),
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
    /// What to tell the operator at start, though it is allowed.
    #[must_use]
    pub fn warnings(&self) -> Vec<Cow<'static, str>> {
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
        if !self.listen.is_loopback() && !is_protected {
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
        read.listen();
        read.upstream();
        read.max_retries();
        read.defaults();
        read.cors();
        read.log();
        read.limits(false);
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
        assert_eq!(config(&[("HOST", "127.0.0.1")]).unwrap().warnings().len(), 0);
        assert_eq!(config(&[("HOST", "::1")]).unwrap().warnings().len(), 0);
        assert_eq!(config(&[]).unwrap().warnings().len(), 1);
        let key = ("API_KEYS", "web:a-key-of-sixteen-x");
        assert_eq!(config(&[key]).unwrap().warnings().len(), 0);
        assert_eq!(config(&[("ALLOWED_IPS", "10.0.0.0/8")]).unwrap().warnings().len(), 0);
        let plain = [("HOST", "localhost"), ("OPENAI_BASE_URL", "http://llm.example/v1")];
        assert_eq!(config(&plain).unwrap().warnings().len(), 1);
        for protection in [
            ("API_KEYS", "alice:a-key-of-sixteen-x"),
            ("JWT_SECRET", "a secret of at least thirty-two bytes"),
            ("ALLOWED_IPS", "10.0.0.0/8"),
        ] {
            assert_eq!(config(&[protection]).unwrap().warnings(), [""; 0], "{protection:?}");
        }
        let trusting = config(&[("HOST", "::1"), ("TRUSTED_PROXIES", "10.0.0.1,::/0")]).unwrap().warnings();
        let [warning] = &trusting[..] else {
            panic!("one warning");
        };
        assert!(warning.contains("TRUSTED_PROXIES"), "{warning}");
    }
}
