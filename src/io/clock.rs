//! The wall clock: the one place that reads it, and the one way it is written.
//!
//! Owns the current date and time as the operating system tells it. Invariant: nothing else in the
//! crate asks for wall-clock time, so every decision that depends on it takes it as an argument.
//! Durations between events are measured with the monotonic timer, never with this clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// How long before and after 1970 the first and the last second are that RFC 3339 can write: years 0000 to 9999.
const RFC3339_SECONDS: (Duration, Duration) =
    (Duration::from_secs(62_167_219_200), Duration::from_secs(253_402_300_799));

/// By how much the wall clock must leave the monotonic one to count as set.
const SET: Duration = Duration::from_millis(500);

/// Notices when the wall clock was set, or has drifted as far: what waits for an instant of it must then wait anew.
#[derive(Debug)]
pub struct ClockWatch {
    wall: SystemTime,
    at: Instant,
}

impl ClockWatch {
    /// Both clocks as they are now.
    pub fn new(wall: SystemTime, now: Instant) -> Self {
        Self { wall, at: now }
    }

    /// Whether the wall clock was set since that was last so, by both clocks as they are now.
    #[must_use]
    pub fn was_set(&mut self, wall: SystemTime, now: Instant) -> bool {
        let expected = self.wall.checked_add(now.saturating_duration_since(self.at));
        let off = expected.map(|expected| {
            wall.duration_since(expected).unwrap_or_else(|earlier| earlier.duration())
        });
        let set = off.is_none_or(|off| off > SET);
        if set {
            *self = Self::new(wall, now);
        }
        set
    }
}

/// The current wall-clock time.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// The present instant in whole milliseconds since 1970; 0 while the clock is before that.
pub fn millis() -> u64 {
    unix_millis(wall())
}

/// An instant in whole milliseconds since 1970; 0 before that.
pub(crate) fn unix_millis(t: SystemTime) -> u64 {
    let since = t.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An instant in whole seconds since 1970; 0 before that.
pub(crate) fn unix_seconds(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The same instant as a UTC date and time. An instant outside the years 0000 to 9999 becomes the
/// nearest one inside, so the conversion cannot fail.
pub fn utc(t: SystemTime) -> OffsetDateTime {
    let (before, after) = RFC3339_SECONDS;
    t.clamp(UNIX_EPOCH - before, UNIX_EPOCH + after).into()
}

/// An instant as RFC 3339 text in UTC with milliseconds, for example `2026-01-02T03:04:05.678Z`.
///
/// All texts have the same length, so they sort as the instants do.
pub fn rfc3339(t: SystemTime) -> String {
    let t = utc(t);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond(),
    )
}

/// The instant of such a text, in milliseconds since 1970; also with an offset from UTC instead of the `Z`. `None` for
/// another text. A time before 1970 is 0.
pub fn read_rfc3339(text: &str) -> Option<u64> {
    let read = OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(read.unix_timestamp_nanos().max(0) / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_noticed_once() {
        let second = Duration::from_secs(1);
        let (wall, at) = (UNIX_EPOCH + 1000 * second, crate::proto::tests::start());
        let mut watch = ClockWatch::new(wall, at);
        assert!(!watch.was_set(wall + second, at + second));
        assert!(!watch.was_set(wall + 2 * second + SET, at + 2 * second), "drift");
        assert!(watch.was_set(wall + 10 * second, at + 3 * second), "set forwards");
        assert!(!watch.was_set(wall + 11 * second, at + 4 * second));
        assert!(watch.was_set(wall, at + 5 * second), "set backwards");
        assert!(!watch.was_set(wall + second, at + 6 * second));
        let slewed = (1..100).filter(|n: &u32| {
            watch.was_set(wall + second + second.mul_f64(1.1) * *n, at + (6 + n) * second)
        });
        assert_eq!(slewed.count(), 16, "a tenth faster: each time that it is half a second off");
    }

    #[test]
    fn instants_are_written_in_utc_with_milliseconds() {
        let at = |millis| rfc3339(UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_millis(1)), "1969-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59.000Z");
    }

    #[test]
    fn instants_out_of_range_are_clamped() {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(1 << 50)), "9999-12-31T23:59:59.000Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1 << 50)), "0000-01-01T00:00:00.000Z");
    }

    #[test]
    fn texts_are_read_in_any_offset() {
        let read = |text: &str| read_rfc3339(text);
        assert_eq!(read("2026-01-02T03:04:05.678Z"), Some(1_767_323_045_678));
        assert_eq!(read("2026-01-02T04:04:05.678+01:00"), Some(1_767_323_045_678));
        assert_eq!(read("2026-01-02T03:04:05Z"), Some(1_767_323_045_000));
        assert_eq!(read("0333-01-01T02:00:03.0Z"), Some(0));
        assert_eq!(read("2016-12-31T23:59:60Z"), Some(1_483_228_799_999), "a leap second");
        for bad in ["", "yesterday", "2026-01-02", "2026-13-02T03:04:05Z"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_clock_is_past_the_year_2025() {
        assert!(rfc3339(wall()).as_str() > "2025");
    }
}
