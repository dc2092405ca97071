//! Newtypes for the names that things go by.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Serialize, Serializer};
use uuid::{Uuid, fmt::Hyphenated};

/// Names one request in its answer (`X-Request-Id`), in its errors and in the log. It is held in place: every request
/// has one, and most never leave the stack.
#[derive(Clone, Copy)]
pub struct RequestId {
    bytes: [u8; Self::MAX_LEN],
    len: usize,
}

impl RequestId {
    /// Longest id accepted from a caller, in bytes.
    pub const MAX_LEN: usize = 64;

    /// The caller's own id, if it is `[A-Za-z0-9._-]{1,64}`: it is written to logs and headers, so nothing
    /// else gets through.
    #[must_use]
    pub fn accept(candidate: &[u8]) -> Option<Self> {
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let is_good = !candidate.is_empty() && candidate.iter().all(allowed);
        if is_good { Self::copy(candidate) } else { None }
    }

    fn copy(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::MAX_LEN];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Self { bytes, len: text.len() })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        // It is ASCII, by either way in.
        self.bytes.get(..self.len).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({})", self.as_str())
    }
}

/// Makes request ids: UUIDs of random form, from one random seed. They are unique, not secret, so they do without a
/// system call each (which was 1 % of a request's instructions and one of its five system calls).
#[derive(Debug)]
pub struct RequestIds {
    seed: (u64, u64),
    count: AtomicU64,
}

impl RequestIds {
    #[must_use]
    pub fn new() -> Self {
        Self { seed: Uuid::new_v4().as_u64_pair(), count: AtomicU64::new(0) }
    }

    /// An id that this process has not given before, and others hardly will.
    #[must_use]
    pub fn next(&self) -> RequestId {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let (high, low) = (scatter(self.seed.0.wrapping_add(count)), scatter(self.seed.1 ^ count));
        let uuid = uuid::Builder::from_random_bytes(*Uuid::from_u64_pair(high, low).as_bytes()).into_uuid();
        let mut text = [0; Hyphenated::LENGTH];
        let text = uuid.hyphenated().encode_lower(&mut text);
        RequestId::copy(text.as_bytes()).unwrap_or(RequestId { bytes: [b'0'; RequestId::MAX_LEN], len: 1 })
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        Self::new()
    }
}

/// SplitMix64's finalizer: one to one, and neighbours end up far apart.
fn scatter(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Names one stream: a random UUID, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(Uuid);

impl StreamId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id in its usual form, `3e458467-c21f-4429-a90d-e0d2f496e3b2`, in either case; no other form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten().map(Self)
    }
}

impl StreamId {
    /// Some of its random bits, as a number.
    #[must_use]
    pub fn chance(self) -> u64 {
        self.0.as_u64_pair().1 & 0xffff_ffff
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for StreamId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Whose a stream or a conversation is. Everybody's are the same until callers are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Owner(Arc<str>);

impl Owner {
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its name, shared.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

/// Names one conversation among those of its owner: `[A-Za-z0-9_-]{1,64}`, chosen by whoever makes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationId(Box<str>);

impl ConversationId {
    /// What [`ConversationId::parse`] accepts, as a regular expression.
    pub const PATTERN: &str = "^[A-Za-z0-9_-]{1,64}$";

    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string().into())
    }

    /// The id, if it is one: cases differ, and nothing is normalized.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        ((1..=64).contains(&text.len()) && text.bytes().all(allowed)).then(|| Self(text.into()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for ConversationId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_id_has_one_form() {
        let text = "3e458467-c21f-4429-a90d-e0d2f496e3b2";
        assert_eq!(StreamId::parse(text).unwrap().to_string(), text);
        assert_eq!(StreamId::parse(&text.to_uppercase()).unwrap().to_string(), text);
        for bad in [
            "",
            "abc",
            text.trim_start_matches('3'),
            &format!("{{{text}}}"),
            &text.replace('-', ""),
            &format!("urn:uuid:{text}"),
        ] {
            assert_eq!(StreamId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_conversation_id_is_made_of_harmless_characters() {
        for good in ["a", "A_b-9", &"x".repeat(64), ConversationId::random().as_str()] {
            assert_eq!(ConversationId::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a.b", "../x", "a/b", "대화", "a\0", "a\n", &"x".repeat(65)] {
            assert_eq!(ConversationId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn request_ids_are_uuids_and_all_different() {
        let (ids, others) = (RequestIds::new(), RequestIds::new());
        let some = |ids: &RequestIds| (0..10_000).map(|_| ids.next().as_str().to_owned()).collect::<Vec<_>>();
        let all: std::collections::BTreeSet<_> = some(&ids).into_iter().chain(some(&others)).collect();
        assert_eq!(all.len(), 20_000);
        assert!(all.iter().all(|id| Uuid::parse_str(id).is_ok_and(|id| id.get_version_num() == 4)));
    }

    #[test]
    fn a_callers_id_is_taken_only_when_it_is_harmless() {
        for good in ["a", "A.b_c-9", &"x".repeat(64)] {
            assert_eq!(RequestId::accept(good.as_bytes()).unwrap().as_str(), good);
        }
        for bad in ["", " ", "a b", "a\r\nx", "${jndi:x}", "\x1b[31m", "한글", &"x".repeat(65)] {
            assert!(RequestId::accept(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }
}
