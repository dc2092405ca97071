//! The moment an answer was made, as the original wrote it: ISO 8601, microseconds, the server's local time,
//! no offset. Clients parse it with Java's `LocalDateTime` and Python's `datetime.fromisoformat`.

use chrono::{Local, NaiveDateTime};
use serde::{Serialize, Serializer};

/// A local wall-clock moment. Serializes as `2026-11-22T23:17:31.899397`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(NaiveDateTime);

impl Timestamp {
    /// Now, in the time zone that `TZ` names (UTC in the container).
    #[must_use]
    pub fn now() -> Self {
        Self(Local::now().naive_local())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.format("%Y-%m-%dT%H:%M:%S%.6f"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDate;

    #[test]
    fn a_whole_second_still_shows_six_digits() {
        let moment = NaiveDate::from_ymd_opt(2026, 11, 22).unwrap().and_hms_opt(23, 17, 31).unwrap();
        let json = serde_json::to_string(&Timestamp(moment)).unwrap();
        assert_eq!(json, r#""2026-11-22T23:17:31.000000""#);
    }
}
