//! Newtypes for the names that things go by.

use std::fmt;

use uuid::Uuid;

/// Names one request in its answer (`X-Request-Id`), in its errors and in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// Longest id accepted from a caller, in bytes.
    pub const MAX_LEN: usize = 64;

    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string())
    }

    /// The caller's own id, if it is `[A-Za-z0-9._-]{1,64}`: it is written to logs and headers, so nothing
    /// else gets through.
    #[must_use]
    pub fn accept(candidate: &[u8]) -> Option<Self> {
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if candidate.is_empty() || candidate.len() > Self::MAX_LEN || !candidate.iter().all(allowed) {
            return None;
        }
        std::str::from_utf8(candidate).ok().map(|s| Self(s.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_id_is_taken_only_when_it_is_harmless() {
        for good in ["a", "A.b_c-9", &"x".repeat(64)] {
            assert_eq!(RequestId::accept(good.as_bytes()).unwrap().as_str(), good);
        }
        for bad in ["", " ", "a b", "a\r\nx", "${jndi:x}", "\x1b[31m", "한글", &"x".repeat(65)] {
            assert_eq!(RequestId::accept(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
