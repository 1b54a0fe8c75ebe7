//! Points in time, as tokens, certificates and files of trust carry them.

use std::fmt;
use std::time::Duration;

use time::OffsetDateTime;

use crate::codec::{DecodeError, Reader, put_varint};

/// Milliseconds since 1970-01-01 UTC, at most the end of the year 9999, which is the last that a
/// certificate can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMs(u64);

impl UnixMs {
    /// 1970-01-01T00:00:00Z.
    pub const ZERO: Self = Self(0);
    /// 9999-12-31T23:59:59Z.
    pub const MAX: Self = Self(253_402_300_799_000);

    /// So many milliseconds; more than [`UnixMs::MAX`] is that.
    pub const fn from_millis(millis: u64) -> Self {
        if millis > Self::MAX.0 {
            Self::MAX
        } else {
            Self(millis)
        }
    }

    /// So many seconds; more than [`UnixMs::MAX`] is that.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self::from_millis(seconds.saturating_mul(1000))
    }

    /// The milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds, rounded down.
    pub const fn as_seconds(self) -> u64 {
        self.0 / 1000
    }

    /// The start of its second: certificates know no smaller unit.
    pub const fn to_second(self) -> Self {
        Self::from_seconds(self.as_seconds())
    }

    /// This much later.
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self::from_millis(self.0.saturating_add(millis))
    }

    /// This much earlier, but not before 1970.
    pub fn before(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(millis))
    }

    /// As certificates are written with.
    pub fn to_date(self) -> OffsetDateTime {
        i64::try_from(self.as_seconds())
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .expect("the largest value is in the year 9999")
    }

    /// Appends it as a varint.
    pub fn put(self, out: &mut Vec<u8>) {
        put_varint(out, self.0);
    }

    /// Reads what [`UnixMs::put`] wrote.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.varint("time", Self::MAX.0).map(Self)
    }
}

impl fmt::Display for UnixMs {
    /// RFC 3339 in UTC, to the second.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date = self.to_date();
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            date.hour(),
            date.minute(),
            date.second()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc_and_never_leave_the_calendar() {
        for (millis, shown) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_764_063_022_999, "2025-11-25T09:30:22Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(UnixMs::from_millis(millis).to_string(), shown);
        }
        assert_eq!(UnixMs::MAX.after(Duration::MAX), UnixMs::MAX);
        assert_eq!(UnixMs::ZERO.before(Duration::MAX), UnixMs::ZERO);
    }
}
