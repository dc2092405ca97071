//! The chat API that answers: where it is, who asks it, and with how much patience.

use std::{fs, time::Duration};

use rustls::pki_types::{
    CertificateDer,
    pem::{self, PemObject},
};
use secrecy::SecretString;
use url::Url;

use super::Reader;

/// The address of OpenAI's own API.
pub const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";

/// The chat API that answers.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `OPENAI_API_KEY`, or the content of the file that `OPENAI_API_KEY_FILE` names: one or several, separated by commas
    /// or lines. Required, except for `--demo`.
    pub api_keys: Vec<SecretString>,
    /// `OPENAI_BASE_URL`, version included. Default <https://api.openai.com/v1>.
    pub base_url: Url,
    /// `UPSTREAM_CA_FILE`: PEM certificates that are trusted besides the system's, for an upstream or a proxy that
    /// inspects TLS with a private authority.
    pub authorities: Vec<CertificateDer<'static>>,
    /// `OPENAI_ORG_ID`, sent as `OpenAI-Organization`.
    pub organization: Option<String>,
    /// `OPENAI_PROJECT_ID`, sent as `OpenAI-Project`.
    pub project: Option<String>,
    /// `UPSTREAM_MAX_RETRIES`: how often a question is asked again that failed before its answer began, 0 to 10. 2.
    pub max_retries: u32,
    pub breaker: BreakerLimits,
    pub timeouts: Timeouts,
    pub connections: ConnectionLimits,
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
    /// `UPSTREAM_FIRST_TOKEN_TIMEOUT_SECONDS`: to the first word of a stream, thought included. 60 s.
    pub first_token: Duration,
    /// `UPSTREAM_IDLE_TIMEOUT_SECONDS`: from one meaningful event of a stream to the next. 60 s.
    pub idle: Duration,
    /// `UPSTREAM_TOTAL_TIMEOUT_SECONDS`: to the end of an answer. 900 s for a stream.
    pub total: Duration,
    /// To the end of a whole answer, its head included. 600 s, or `total` where that is set.
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

/// How connections to the upstream are kept, and how a path that died without a word is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// How long a connection with running answers may be silent before an HTTP/2 PING asks whether it is alive, or TCP
    /// does. 10 s.
    pub silence: Duration,
    /// How long the answer to that may take before the connection is given up. 10 s.
    pub ping_answer: Duration,
    /// How long a connection without a request is kept. 90 s.
    pub idle: Duration,
    /// How old a connection gets before new requests go to another one, whose address is resolved anew. 600 s.
    pub age: Duration,
    /// Most at a time: half of the open files that there can be. Requests beyond wait for one to be free.
    pub most: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(10),
            ping_answer: Duration::from_secs(10),
            idle: Duration::from_secs(90),
            age: Duration::from_secs(600),
            most: usize::MAX,
        }
    }
}

/// As often as OpenAI's own libraries do.
const MAX_RETRIES: u32 = 2;

impl Upstream {
    pub(super) fn placeholder() -> Self {
        Self {
            api_keys: vec![SecretString::from("sk-demo")],
            base_url: parse_fixed(OPENAI_BASE_URL),
            authorities: Vec::new(),
            organization: None,
            project: None,
            max_retries: MAX_RETRIES,
            breaker: BreakerLimits::default(),
            timeouts: Timeouts::default(),
            connections: ConnectionLimits::default(),
        }
    }
}

#[expect(clippy::expect_used, reason = "the argument is a constant that a test parses")]
fn parse_fixed(url: &'static str) -> Url {
    Url::parse(url).expect("a constant")
}

impl Reader<'_> {
    pub(super) fn upstream(&mut self) -> Upstream {
        Upstream {
            api_keys: self.secrets("OPENAI_API_KEY", "OPENAI_API_KEY_FILE"),
            base_url: self.base_url(),
            authorities: self.authorities(),
            organization: self.header_text("OPENAI_ORG_ID"),
            project: self.header_text("OPENAI_PROJECT_ID"),
            max_retries: MAX_RETRIES,
            breaker: BreakerLimits::default(),
            timeouts: Timeouts::default(),
            connections: ConnectionLimits::default(),
        }
    }

    pub(super) fn max_retries(&mut self) -> u32 {
        let count = |v: &str| v.parse().ok().filter(|n| (0..=10).contains(n));
        self.parse("UPSTREAM_MAX_RETRIES", MAX_RETRIES, "a whole number from 0 to 10", count)
    }

    pub(super) fn timeouts(&mut self) -> Timeouts {
        let usual = Timeouts::default();
        let is_set = self.text("UPSTREAM_TOTAL_TIMEOUT_SECONDS").is_some();
        let total = self.seconds("UPSTREAM_TOTAL_TIMEOUT_SECONDS", usual.total, 1..=86400);
        Timeouts {
            first_token: self.seconds("UPSTREAM_FIRST_TOKEN_TIMEOUT_SECONDS", usual.first_token, 1..=3600),
            idle: self.seconds("UPSTREAM_IDLE_TIMEOUT_SECONDS", usual.idle, 1..=3600),
            total,
            // Who says how long an answer may take means every answer.
            whole: if is_set { total } else { usual.whole },
            ..usual
        }
    }

    /// What the environment says of proxies is understood by the HTTP client, which ignores what it does not understand: a
    /// question must not go out directly because of a slip of the pen.
    pub(super) fn check_proxies(&mut self) {
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            let Some(value) = self.foreign(name) else { continue };
            let whole = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
            if Url::parse(&whole).is_ok_and(|url| url.host_str().is_some_and(|host| !host.is_empty())) {
                continue;
            }
            // The value is not shown: it may carry a password.
            self.problems.push(format!("{name} is not the address of a proxy"));
        }
    }

    fn authorities(&mut self) -> Vec<CertificateDer<'static>> {
        let name = "UPSTREAM_CA_FILE";
        let Some(path) = self.text(name).map(str::to_owned) else { return Vec::new() };
        let read = fs::read(&path).map_err(pem::Error::Io);
        // A mark at its beginning would hide the first certificate.
        let certificates: Result<Vec<_>, _> = read.and_then(|text| {
            let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
            CertificateDer::pem_slice_iter(text).collect()
        });
        let problem = match certificates {
            Ok(certificates) if !certificates.is_empty() => return certificates,
            Ok(_) => format!("{name}: {path:?} holds no certificate in PEM"),
            Err(error) => format!("{name}: cannot read {path:?}: {error}"),
        };
        self.problems.push(problem);
        Vec::new()
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
            Ok(url) if url.path().trim_end_matches('/').ends_with("/chat/completions") => {
                format!("{name} ends with /chat/completions; give what stands before it")
            }
            Ok(url) => return url,
        };
        self.problems.push(problem);
        default
    }
}
