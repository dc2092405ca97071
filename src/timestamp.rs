//! The moment an answer was made, as the original wrote it: ISO 8601, microseconds, the server's local time,
//! no offset. Clients parse it with Java's `LocalDateTime` and Python's `datetime.fromisoformat`.

use std::fmt;

use chrono::{DateTime, Datelike, Local, NaiveDateTime, Timelike, Utc};
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

    /// The moment that many microseconds after 1970, UTC; the epoch for a number that no moment has.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(DateTime::from_timestamp_micros(micros).unwrap_or_default().with_timezone(&Local).naive_local())
    }

    /// Its day: `2026-11-22`.
    #[must_use]
    pub fn day(self) -> String {
        self.text().get(..10).and_then(|day| std::str::from_utf8(day).ok()).unwrap_or_default().to_owned()
    }

    /// Now, in microseconds since 1970, UTC.
    #[must_use]
    pub fn micros_now() -> i64 {
        Utc::now().timestamp_micros()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl Timestamp {
    fn text(self) -> [u8; 26] {
        let mut text = *b"0000-00-00T00:00:00.000000";
        let (date, time) = (self.0.date(), self.0.time());
        // A leap second counts its nanoseconds beyond a second.
        let micros = time.nanosecond() / 1000 % 1_000_000;
        let year = u32::try_from(date.year()).unwrap_or(0);
        let fields = [
            (0..4, year),
            (5..7, date.month()),
            (8..10, date.day()),
            (11..13, time.hour()),
            (14..16, time.minute()),
            (17..19, time.second()),
            (20..26, micros),
        ];
        for (place, value) in fields {
            put(text.get_mut(place).unwrap_or_default(), value);
        }
        text
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

/// Writes `value` into all of `place`, with leading zeros. A format string takes five times as long, and every answer
/// has a timestamp.
fn put(place: &mut [u8], mut value: u32) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDate;

    #[test]
    fn every_field_is_written_as_a_format_string_would() {
        let first = NaiveDate::from_ymd_opt(1999, 12, 31).unwrap().and_hms_micro_opt(23, 59, 58, 7).unwrap();
        for step in 0..2000_i64 {
            let moment = first + chrono::TimeDelta::microseconds(step * 1_234_567_891_011);
            let json = serde_json::to_string(&Timestamp(moment)).unwrap();
            assert_eq!(json, format!("\"{}\"", moment.format("%Y-%m-%dT%H:%M:%S%.6f")));
        }
    }

    #[test]
    fn a_whole_second_still_shows_six_digits() {
        let moment = NaiveDate::from_ymd_opt(2026, 11, 22).unwrap().and_hms_opt(23, 17, 31).unwrap();
        let json = serde_json::to_string(&Timestamp(moment)).unwrap();
        assert_eq!(json, r#""2026-11-22T23:17:31.000000""#);
    }
}
