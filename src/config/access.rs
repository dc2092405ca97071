//! Who may call, and how much: the settings that make the service safe to expose.

use std::{fmt, net::IpAddr};

use aws_lc_rs::digest::{SHA256, digest};
use ipnet::IpNet;
use jsonwebtoken::{Algorithm, DecodingKey};
use secrecy::{ExposeSecret, SecretString};

use super::{
    Reader,
    reader::{QUOTED, unquoted},
    without_mark,
};

/// Who may call. With neither keys nor JWTs, everybody may, as with the original.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `API_KEYS`, or the content of the file that `API_KEYS_FILE` names: `name:key`, separated by commas or lines.
    pub keys: Vec<ApiKey>,
    /// `JWT_SECRET` (HS256; also `JWT_SECRET_FILE`) or `JWT_PUBLIC_KEY_FILE` (RS256, ES256 or EdDSA, as the key is), with
    /// `JWT_AUDIENCE` and `JWT_ISSUER`.
    pub jwt: Option<Jwt>,
    /// `BLOCKED_IPS`: addresses and networks that get no answer but 403.
    pub blocked: Vec<IpNet>,
    /// `ALLOWED_IPS`: if there are any, only these are let in.
    pub allowed: Vec<IpNet>,
    /// `TRUSTED_PROXIES`: whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
    /// `DOCS`: whether `/docs`, `/redoc` and `/openapi.json` are there, for everybody. On.
    pub docs: Docs,
}

/// Whether there are documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Docs {
    #[default]
    On,
    Off,
}

/// A key by which a caller is known. The key itself is not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub name: String,
    /// SHA-256 of the key.
    pub digest: [u8; 32],
}

impl ApiKey {
    #[must_use]
    pub fn new(name: &str, key: &str) -> Self {
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(digest(&SHA256, key.as_bytes()).as_ref()).for_each(|(to, from)| *to = *from);
        Self { name: name.to_owned(), digest: bytes }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What makes a JSON Web Token valid.
#[derive(Clone)]
pub struct Jwt {
    pub algorithm: Algorithm,
    pub key: DecodingKey,
    /// What `aud` must name.
    pub audience: Option<String>,
    /// What `iss` must be.
    pub issuer: Option<String>,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, audience, issuer, .. } = self;
        f.debug_struct("Jwt")
            .field("algorithm", algorithm)
            .field("audience", audience)
            .field("issuer", issuer)
            .finish_non_exhaustive()
    }
}

/// How much each caller may ask for: each by name, or by address when nobody is told apart. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// `RATE_LIMIT_REQUESTS_PER_MINUTE`
    pub requests_per_minute: Option<u32>,
    /// `RATE_LIMIT_BURST`: so many requests may come at once. A sixth of a minute's, at least 1.
    pub burst: u32,
    /// `RATE_LIMIT_TOKENS_PER_MINUTE`: prompt and answer together.
    pub tokens_per_minute: Option<u32>,
    /// `MAX_CONCURRENT_STREAMS`: streams that run at once.
    pub concurrent_streams: Option<u32>,
    /// `MAX_REQUESTS_IN_FLIGHT`: of all callers together. 4,096.
    pub in_flight: usize,
}

impl RateLimits {
    /// Whether there is a limit for which callers must be told apart.
    #[must_use]
    pub fn needs_callers(&self) -> bool {
        self.requests_per_minute.is_some() || self.tokens_per_minute.is_some() || self.concurrent_streams.is_some()
    }
}

/// Shortest secret for HS256, in bytes: RFC 7518 asks for as many as the hash has.
const MIN_SECRET_BYTES: usize = 32;

/// Shortest API key: what is shorter can be tried out.
const MIN_KEY_BYTES: usize = 16;

impl Reader<'_> {
    pub(super) fn access(&mut self) -> Access {
        Access {
            keys: self.api_keys(),
            jwt: self.jwt(),
            blocked: self.networks("BLOCKED_IPS"),
            allowed: self.networks("ALLOWED_IPS"),
            trusted_proxies: self.networks("TRUSTED_PROXIES"),
            docs: if self.switch("DOCS", true) { Docs::On } else { Docs::Off },
        }
    }

    pub(super) fn rate_limits(&mut self) -> RateLimits {
        let count = |v: &str| v.parse::<u32>().ok().filter(|n| *n >= 1);
        let limit = |v: &str| count(v).map(Some);
        let expected = "a whole number of at least 1";
        let requests_per_minute = self.parse("RATE_LIMIT_REQUESTS_PER_MINUTE", None, expected, limit);
        let burst = requests_per_minute.map_or(1, |limit| limit.div_ceil(6));
        RateLimits {
            requests_per_minute,
            burst: self.parse("RATE_LIMIT_BURST", burst, expected, count),
            tokens_per_minute: self.parse("RATE_LIMIT_TOKENS_PER_MINUTE", None, expected, limit),
            concurrent_streams: self.parse("MAX_CONCURRENT_STREAMS", None, expected, limit),
            in_flight: self.parse("MAX_REQUESTS_IN_FLIGHT", 4096, expected, |v| v.parse().ok().filter(|n| *n >= 1)),
        }
    }

    fn api_keys(&mut self) -> Vec<ApiKey> {
        let name = "API_KEYS";
        let Some(list) = self.secret_text(name, "API_KEYS_FILE") else { return Vec::new() };
        let mut keys: Vec<ApiKey> = Vec::new();
        let entries = list.expose_secret().split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
        for (index, entry) in entries.enumerate() {
            // A message shows the place and the name, never the key.
            let place = format!("{name}: entry {}", index + 1);
            if unquoted(entry).is_some() {
                self.problems.push(format!("{place} {QUOTED}"));
                continue;
            }
            let Some((caller, key)) = entry.split_once(':').map(|(name, key)| (name.trim(), key.trim())) else {
                self.problems.push(format!("{place} is not name:key"));
                continue;
            };
            let is_name = (1..=64).contains(&caller.len())
                && caller.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !is_name {
                self.problems.push(format!("{place} has a name that is not 1 to 64 of A-Z a-z 0-9 . _ -"));
            } else if unquoted(key).is_some() {
                self.problems.push(format!("{place} ({caller}): the key {QUOTED}"));
            } else if key.len() < MIN_KEY_BYTES || !key.bytes().all(|b| b.is_ascii_graphic()) {
                self.problems.push(format!(
                    "{place} ({caller}) has a key that is not at least {MIN_KEY_BYTES} visible ASCII characters"
                ));
            } else {
                keys.push(ApiKey::new(caller, key));
            }
        }
        let is_twice = |key: &ApiKey| keys.iter().filter(|other| other.digest == key.digest).count() > 1;
        if keys.iter().any(is_twice) {
            self.problems.push(format!("{name}: two callers have the same key"));
        }
        keys
    }

    fn jwt(&mut self) -> Option<Jwt> {
        let secret = self.secret_text("JWT_SECRET", "JWT_SECRET_FILE");
        let file_name = "JWT_PUBLIC_KEY_FILE";
        let public = self.text(file_name).and_then(|path| match std::fs::read_to_string(path) {
            Ok(pem) => Some(without_mark(&pem).to_owned()),
            Err(error) => {
                self.problems.push(format!("{file_name}: cannot read {path:?}: {error}"));
                None
            }
        });
        let audience = self.text("JWT_AUDIENCE").map(str::to_owned);
        let issuer = self.text("JWT_ISSUER").map(str::to_owned);
        let (algorithm, key) = match (secret, public) {
            (Some(_), Some(_)) => {
                self.problems.push(format!("JWT_SECRET and {file_name} are both set; keep one"));
                return None;
            }
            (Some(secret), None) => {
                if secret.expose_secret().len() < MIN_SECRET_BYTES {
                    self.problems.push(format!("JWT_SECRET must have at least {MIN_SECRET_BYTES} bytes"));
                    return None;
                }
                (Algorithm::HS256, DecodingKey::from_secret(secret.expose_secret().as_bytes()))
            }
            (None, Some(pem)) => match public_key(&pem) {
                Some(known) => known,
                None => {
                    let expected = "a public key in PEM: RSA, P-256 or Ed25519";
                    self.problems.push(format!("{file_name} must hold {expected}"));
                    return None;
                }
            },
            (None, None) => {
                if audience.is_some() || issuer.is_some() {
                    let needed = "JWT_AUDIENCE and JWT_ISSUER need JWT_SECRET or JWT_PUBLIC_KEY_FILE";
                    self.problems.push(needed.to_owned());
                }
                return None;
            }
        };
        Some(Jwt { algorithm, key, audience, issuer })
    }

    fn networks(&mut self, name: &'static str) -> Vec<IpNet> {
        let expected =
            "a comma-separated list of addresses and networks such as 203.0.113.7, 10.0.0.0/8, 2001:db8::/32";
        self.parse(name, Vec::new(), expected, |list| {
            list.split(',').map(str::trim).filter(|net| !net.is_empty()).map(network).collect()
        })
    }

    /// A secret that may hold anything but control characters, line ends excepted.
    fn secret_text(&mut self, name: &'static str, file_name: &'static str) -> Option<SecretString> {
        let secret = self.secret_value(name, file_name)?;
        if secret.expose_secret().chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r')) {
            self.problems.push(format!("{name} has control characters"));
            return None;
        }
        Some(secret)
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn public_key(pem: &str) -> Option<(Algorithm, DecodingKey)> {
    let pem = pem.as_bytes();
    let ed = DecodingKey::from_ed_pem(pem).map(|key| (Algorithm::EdDSA, key));
    let ec = || DecodingKey::from_ec_pem(pem).map(|key| (Algorithm::ES256, key));
    let rsa = || DecodingKey::from_rsa_pem(pem).map(|key| (Algorithm::RS256, key));
    ed.or_else(|_| ec()).or_else(|_| rsa()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Variables;

    fn access(pairs: &[(&str, &str)]) -> Result<Access, Vec<String>> {
        let variables: Variables = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let mut read = Reader::new(&variables);
        let access = read.access();
        read.finish(access).map_err(|error| error.0)
    }

    #[test]
    fn keys_have_names_and_only_their_digests_are_kept() {
        let list = "alice:a-key-of-sixteen-x, bob : b-key:with-a-colon-x\n,";
        let access = access(&[("API_KEYS", list)]).unwrap();
        let expected = [ApiKey::new("alice", "a-key-of-sixteen-x"), ApiKey::new("bob", "b-key:with-a-colon-x")];
        assert_eq!(access.keys, expected);
        assert!(!format!("{access:?}").contains("sixteen"));
    }

    #[test]
    fn every_mistake_names_its_place_and_no_secret() {
        for (pairs, words) in [
            (&[("API_KEYS", "canary-without-colon")][..], "entry 1 is not name:key"),
            (&[("API_KEYS", "a b:canary-canary-canary")], "name"),
            (&[("API_KEYS", "alice:canary")], "alice"),
            (&[("API_KEYS", "a:canary-canary-canary,b:canary-canary-canary")], "same key"),
            (&[("JWT_SECRET", "canary")], "at least 32 bytes"),
            (&[("JWT_PUBLIC_KEY_FILE", "/nowhere/canary.pem")], "cannot read"),
            (&[("JWT_ISSUER", "x")], "need JWT_SECRET"),
            (&[("BLOCKED_IPS", "10.0.0.0/33")], "BLOCKED_IPS"),
            (&[("TRUSTED_PROXIES", "proxy.example")], "TRUSTED_PROXIES"),
        ] {
            let problems = access(pairs).unwrap_err().join("\n");
            assert!(problems.contains(words), "{problems}");
            let shows_a_secret = problems.contains("canary") && !problems.contains("/nowhere/canary.pem");
            assert!(!shows_a_secret, "{problems}");
        }
    }

    #[test]
    fn the_algorithm_is_the_public_keys() {
        // The example of RFC 8410.
        let ed = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        assert_eq!(public_key(ed).unwrap().0, Algorithm::EdDSA);
        assert!(public_key("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----").is_none());
        assert!(public_key("ssh-ed25519 AAAA").is_none());
    }

    #[test]
    fn addresses_are_networks_of_one() {
        let access = access(&[("ALLOWED_IPS", "203.0.113.7, 10.0.0.0/8,2001:db8::/32,")]).unwrap();
        let shown: Vec<_> = access.allowed.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["203.0.113.7/32", "10.0.0.0/8", "2001:db8::/32"]);
    }
}
