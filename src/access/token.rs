//! Bearer tokens: API keys and JSON Web Tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{DecodingKey, Validation, decode};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    config::{Access, ApiKey, Jwt},
    ids::Owner,
};

/// Longest token that is looked at, in bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Longest `sub`, in bytes.
const MAX_SUBJECT_BYTES: usize = 256;

/// How far clocks may differ, in seconds.
const LEEWAY_SECONDS: u64 = 60;

/// Why a caller is not let in. Callers are told no more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No `Authorization` header.
    Missing,
    /// Not exactly one header with a bearer token that is known and valid.
    Invalid,
    /// What cannot be used and cannot be a guess either: a token with a good signature which has expired, is not valid yet
    /// or is meant for somebody else; a ticket.
    Unusable,
}

/// Knows the tokens.
pub struct Authenticator {
    keys: Vec<(Owner, [u8; 32])>,
    jwt: Option<Verifier>,
}

/// What a JWT is verified with.
struct Verifier {
    key: DecodingKey,
    validation: Validation,
    /// Looks at the signature alone.
    signature: Validation,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("keys", &self.keys.len()).field("jwt", &self.jwt.is_some()).finish()
    }
}

/// What of a JWT is looked at, besides what its validation looks at.
#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl Authenticator {
    #[must_use]
    pub fn new(access: &Access) -> Self {
        let owner = |key: &ApiKey| (Owner::new(&format!("key:{}", key.name)), key.digest);
        Self { keys: access.keys.iter().map(owner).collect(), jwt: access.jwt.as_ref().map(verifier) }
    }

    /// Whether everybody is let in, because nobody could be told from others.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.keys.is_empty() && self.jwt.is_none()
    }

    /// Who comes with these `Authorization` headers. API keys and JWTs name different callers, whatever their names are.
    ///
    /// # Errors
    /// Nobody who is let in.
    pub fn authenticate<'a>(&self, mut headers: impl Iterator<Item = &'a [u8]>) -> Result<Owner, Denied> {
        let header = headers.next().ok_or(Denied::Missing)?;
        if headers.next().is_some() {
            return Err(Denied::Invalid);
        }
        self.owner_of(bearer(header).ok_or(Denied::Invalid)?)
    }

    /// Whose `token` is.
    ///
    /// # Errors
    /// Nobody's.
    pub fn owner_of(&self, token: &str) -> Result<Owner, Denied> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Denied::Invalid);
        }
        let given = digest(&SHA256, token.as_bytes());
        // Every key is compared, so that the time tells nothing of which one is alike.
        let mut found = None;
        for (owner, known) in &self.keys {
            if verify_slices_are_equal(given.as_ref(), known).is_ok() {
                found = Some(owner);
            }
        }
        if let Some(owner) = found {
            return Ok(owner.clone());
        }
        let jwt = self.jwt.as_ref().ok_or(Denied::Invalid)?;
        let claims = decode::<Claims>(token, &jwt.key, &jwt.validation).map_err(|_| jwt.refused(token))?.claims;
        let is_good = (1..=MAX_SUBJECT_BYTES).contains(&claims.sub.len()) && !claims.sub.contains(char::is_control);
        if is_good { Ok(Owner::new(&format!("jwt:{}", claims.sub))) } else { Err(Denied::Unusable) }
    }
}

/// When a JWT ends. A library that verifies may have read it as a number of any form.
#[derive(Deserialize)]
struct Expiry {
    exp: f64,
}

impl Authenticator {
    /// How long whoever came with this token, and is let in, may stay: `None` for API keys, which do not expire.
    #[must_use]
    pub fn expires_in(&self, header: Option<&[u8]>, protocol: Option<&str>) -> Option<Duration> {
        let token = header.map_or(protocol, bearer)?;
        // It has been verified: here it is only read.
        let claims = self.jwt.as_ref().and(token.split('.').nth(1))?;
        let Expiry { exp } = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let until = Duration::try_from_secs_f64(exp).ok()? + Duration::from_secs(LEEWAY_SECONDS);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(until.saturating_sub(now))
    }
}

impl Verifier {
    /// What a token is that is not accepted: whoever signed it is no guesser.
    fn refused(&self, token: &str) -> Denied {
        match decode::<IgnoredAny>(token, &self.key, &self.signature) {
            Ok(_) => Denied::Unusable,
            Err(_) => Denied::Invalid,
        }
    }
}

/// The token of `Bearer <token>`. The scheme's case does not matter; RFC 6750 and RFC 9110.
fn bearer(header: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, token) = text.split_once(' ')?;
    let token = token.trim_matches(' ');
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && is_token).then_some(token)
}

fn verifier(jwt: &Jwt) -> Verifier {
    // The algorithm is the configuration's, never the token's own: that is how tokens are forged.
    let mut validation = Validation::new(jwt.algorithm);
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    let mut required = vec!["exp", "sub"];
    match &jwt.audience {
        Some(audience) => {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        // A token for somebody else says so; without a name of our own there is nothing to compare it with.
        None => validation.validate_aud = false,
    }
    if let Some(issuer) = &jwt.issuer {
        validation.set_issuer(&[issuer]);
        required.push("iss");
    }
    validation.set_required_spec_claims(&required);
    let mut signature = Validation::new(jwt.algorithm);
    signature.validate_exp = false;
    signature.validate_aud = false;
    signature.required_spec_claims.clear();
    Verifier { key: jwt.key.clone(), validation, signature }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    use serde_json::{Value, json};

    const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

    fn authenticator() -> Authenticator {
        let jwt = Jwt {
            algorithm: Algorithm::HS256,
            key: DecodingKey::from_secret(SECRET),
            audience: Some("ai-service".into()),
            issuer: Some("https://login.example".into()),
        };
        let keys = vec![ApiKey::new("alice", "key-of-alice"), ApiKey::new("bob", "key-of-bob")];
        Authenticator::new(&Access { keys, jwt: Some(jwt), ..Access::default() })
    }

    fn now() -> i64 {
        chrono::Utc::now().timestamp()
    }

    fn claims(change: impl FnOnce(&mut Value)) -> Value {
        let mut claims = json!({
            "sub": "alice", "aud": "ai-service", "iss": "https://login.example", "exp": now() + 300,
        });
        change(&mut claims);
        claims
    }

    fn token(claims: &Value) -> String {
        encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET)).unwrap()
    }

    #[test]
    fn a_key_names_its_caller_in_any_usual_spelling_of_the_header() {
        let known = authenticator();
        for header in ["Bearer key-of-alice", "bearer key-of-alice", "BEARER   key-of-alice "] {
            assert_eq!(known.authenticate([header.as_bytes()].into_iter()), Ok(Owner::new("key:alice")), "{header}");
        }
        assert_eq!(known.owner_of("key-of-bob"), Ok(Owner::new("key:bob")));
    }

    #[test]
    fn everything_else_is_refused() {
        let known = authenticator();
        assert_eq!(known.authenticate(std::iter::empty()), Err(Denied::Missing));
        let long = format!("Bearer {}", "x".repeat(1 << 20));
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "key-of-alice",
            "Basic key-of-alice",
            "Bearer key-of-alic",
            "Bearer key-of-alicee",
            "Bearer Key-of-alice",
            "Bearer key of alice",
            "Bearer 키",
            "Bearer key-of-alice\u{0}",
            &long,
        ] {
            assert_eq!(known.authenticate([header.as_bytes()].into_iter()), Err(Denied::Invalid), "{header:.40}");
        }
        assert_eq!(known.authenticate([&b"Bearer \xff"[..]].into_iter()), Err(Denied::Invalid));
        let twice = ["Bearer key-of-alice".as_bytes(); 2];
        assert_eq!(known.authenticate(twice.into_iter()), Err(Denied::Invalid));
    }

    #[test]
    fn a_token_names_another_caller_than_a_key_of_the_same_name() {
        assert_eq!(authenticator().owner_of(&token(&claims(|_| {}))), Ok(Owner::new("jwt:alice")));
    }

    #[test]
    fn a_token_must_be_ours_and_in_time_by_a_minute() {
        let known = authenticator();
        let good: [fn(&mut Value); 3] = [
            |claims| claims["exp"] = json!(now() - 50),
            |claims| claims["nbf"] = json!(now() + 50),
            |claims| claims["aud"] = json!(["other", "ai-service"]),
        ];
        for change in good {
            let claims = claims(change);
            assert!(known.owner_of(&token(&claims)).is_ok(), "{claims}");
        }
        let bad: [fn(&mut Value); 12] = [
            |claims| claims["exp"] = json!(now() - 70),
            |claims| claims["nbf"] = json!(now() + 70),
            |claims| claims["aud"] = json!("other"),
            |claims| claims["iss"] = json!("https://evil.example"),
            |claims| claims["sub"] = json!(""),
            |claims| claims["sub"] = json!("a\nb"),
            |claims| claims["sub"] = json!("x".repeat(257)),
            |claims| claims["sub"] = json!(7),
            |claims| drop(claims.as_object_mut().unwrap().remove("exp")),
            |claims| drop(claims.as_object_mut().unwrap().remove("aud")),
            |claims| drop(claims.as_object_mut().unwrap().remove("iss")),
            |claims| drop(claims.as_object_mut().unwrap().remove("sub")),
        ];
        for change in bad {
            let claims = claims(change);
            assert_eq!(known.owner_of(&token(&claims)), Err(Denied::Unusable), "{claims}");
            let forged =
                encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(b"another")).unwrap();
            assert_eq!(known.owner_of(&forged), Err(Denied::Invalid), "{claims}");
        }
    }

    #[test]
    fn a_token_does_not_choose_its_algorithm() {
        let known = authenticator();
        let good = token(&claims(|_| {}));
        let mut parts: Vec<_> = good.split('.').collect();
        // {"alg":"none","typ":"JWT"}
        parts[0] = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
        for forged in
            [parts.join("."), format!("{}.{}.", parts[0], parts[1]), good.chars().take(good.len() - 2).collect()]
        {
            assert_eq!(known.owner_of(&forged), Err(Denied::Invalid));
        }
        let other = encode(&Header::new(Algorithm::HS384), &claims(|_| {}), &EncodingKey::from_secret(SECRET));
        assert_eq!(known.owner_of(&other.unwrap()), Err(Denied::Invalid));
    }
}
