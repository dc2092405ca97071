//! Tickets: what lets somebody who cannot send a header read and stop one stream. A browser's EventSource is one.
//!
//! A ticket is a keyed hash of the stream's id. There is nothing to store and nothing to expire: a stream's id is never
//! used again, so the ticket is worth nothing once the stream is gone.

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::ids::StreamId;

/// Bytes of a ticket before it is written as text: 128 bits cannot be guessed.
const TICKET_BYTES: usize = 16;

/// Makes tickets and knows them again.
pub struct Tickets(hmac::Key);

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// With a key of their own, which nobody else has and which ends with the process, as its streams do. `None`: the
    /// system has no randomness to give.
    #[must_use]
    pub fn random() -> Option<Self> {
        let key = rand::generate::<[u8; 32]>(&rand::SystemRandom::new()).ok()?.expose();
        Some(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The ticket for a stream: 22 characters that need no escaping in an address.
    #[must_use]
    pub fn issue(&self, id: StreamId) -> String {
        URL_SAFE_NO_PAD.encode(self.tag(id))
    }

    /// Whether `ticket` is the one for that stream. Takes the same time whatever is wrong with it.
    #[must_use]
    pub fn is_for(&self, ticket: &str, id: StreamId) -> bool {
        let mut given = [0; TICKET_BYTES];
        // A longer text does not fit, and decodes to nothing.
        let is_whole = URL_SAFE_NO_PAD.decode_slice(ticket, &mut given) == Ok(TICKET_BYTES);
        verify_slices_are_equal(&given, &self.tag(id)).is_ok() && is_whole
    }

    fn tag(&self, id: StreamId) -> [u8; TICKET_BYTES] {
        let tag = hmac::sign(&self.0, format!("stream {id}").as_bytes());
        let mut first = [0; TICKET_BYTES];
        first.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_for_one_stream_of_one_process() {
        let tickets = Tickets::random().unwrap();
        let (id, other) = (StreamId::random(), StreamId::random());
        let ticket = tickets.issue(id);
        assert_eq!(ticket.len(), 22);
        assert!(ticket.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')));
        assert!(tickets.is_for(&ticket, id));
        assert!(!tickets.is_for(&ticket, other));
        assert!(!Tickets::random().unwrap().is_for(&ticket, id));
        let mut altered = ticket.clone().into_bytes();
        altered[3] = if altered[3] == b'A' { b'B' } else { b'A' };
        let altered = String::from_utf8(altered).unwrap();
        let short: String = ticket.chars().take(21).collect();
        for bad in ["", "A", &altered, &short, &format!("{ticket}A"), &format!("{ticket}=="), "한글", &"A".repeat(9999)]
        {
            assert!(!tickets.is_for(bad, id), "{bad:.40}");
        }
    }
}
