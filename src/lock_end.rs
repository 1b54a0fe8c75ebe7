//! When a retention lock is to end, in the user's words.

use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use undercroft_format::lock::LockEnd;
use undercroft_format::trust::time::UnixMs;

use crate::units::parse_duration;

/// A time, or how long from when the lock is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockTime {
    /// So long.
    After(Duration),
    /// At this moment.
    At(Timestamp),
    /// When local clocks show this.
    Local(DateTime),
}

impl FromStr for LockTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(duration) = parse_duration(text) {
            return Ok(Self::After(duration));
        }
        if let Some(seconds) = text.strip_suffix('s').and_then(|text| text.parse().ok()) {
            return Ok(Self::After(Duration::from_secs(seconds)));
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self::At(time));
        }
        let is_date = !text.contains([':', 'T', ' ']);
        if is_date && let Ok(date) = text.parse::<Date>() {
            // All of that day.
            let next = date
                .checked_add(1.day())
                .map_err(|error| error.to_string())?;
            return Ok(Self::Local(next.into()));
        }
        match text.parse::<DateTime>() {
            Ok(local) => Ok(Self::Local(local)),
            Err(_) => Err(format!(
                "'{text}' is neither a time, as in 2027-01-31 or 2027-01-31T03:00, nor a duration, as in 12h, 30d or 52w"
            )),
        }
    }
}

impl LockTime {
    /// What it means where clocks show the time of `zone`.
    pub fn resolve(self, zone: &TimeZone) -> anyhow::Result<LockEnd> {
        let time = match self {
            Self::After(duration) => return Ok(LockEnd::After(duration)),
            Self::At(time) => time,
            Self::Local(local) => local
                .to_zoned(zone.clone())
                .context("finding the end of the lock in local time")?
                .timestamp(),
        };
        let ms = time.as_millisecond().max(0) as u64;
        Ok(LockEnd::At(UnixMs::from_millis(ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations_are_told_apart() {
        let end = |text: &str| {
            let time: LockTime = text.parse().expect(text);
            time.resolve(&TimeZone::UTC).expect(text)
        };
        let at = |seconds| LockEnd::At(UnixMs::from_seconds(seconds));
        assert_eq!(end("30d"), LockEnd::After(Duration::from_secs(30 * 86_400)));
        assert_eq!(end("5s"), LockEnd::After(Duration::from_secs(5)));
        assert_eq!(end("2027-01-31T03:00"), at(1_801_364_400));
        assert_eq!(end("2027-01-31T03:00:00+01:00"), at(1_801_360_800));
        assert_eq!(end("2027-01-31"), at(1_801_440_000), "all of that day");
        for wrong in ["", "tomorrow", "2027-13-01", "0d", "-5d"] {
            assert!(wrong.parse::<LockTime>().is_err(), "{wrong}");
        }
    }
}
