//! Numbers as people write and read them: sizes, durations, times.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A count of bytes, shown in binary units with three digits: `1.50 GiB`.
#[derive(Clone, Copy)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = 0;
        // 1023.5 would be shown as 1024.
        while value >= 1023.5 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let decimals = match value {
            _ if unit == 0 => 0,
            value if value < 9.995 => 2,
            value if value < 99.95 => 1,
            _ => 0,
        };
        f.pad(&format!("{value:.decimals$} {}", UNITS[unit]))
    }
}

/// Reads a size: a number of bytes, or a number with a binary unit, as in `16M`, `16MiB`, `1.5 G`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: write one like 16M, 512KiB or 1G");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_uppercase();
    let unit = unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(1 << shift).ok_or_else(wrong)?,
        Err(_) => {
            let bytes = number.parse::<f64>().map_err(|_| wrong())? * (1_u64 << shift) as f64;
            if bytes.fract() != 0.0 || bytes >= u64::MAX as f64 {
                return Err(wrong());
            }
            bytes as u64
        }
    };
    Ok(bytes)
}

/// A duration, as in `0.42 s`, `12.3 s`, `4:05 min`, `2:03:09 h`.
#[derive(Clone, Copy)]
pub struct Took(pub Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        let whole = seconds.round() as u64;
        let text = if seconds < 9.995 {
            format!("{seconds:.2} s")
        } else if seconds < 99.95 {
            format!("{seconds:.1} s")
        } else if whole < 3600 {
            format!("{}:{:02} min", whole / 60, whole % 60)
        } else {
            format!(
                "{}:{:02}:{:02} h",
                whole / 3600,
                whole / 60 % 60,
                whole % 60
            )
        };
        f.pad(&text)
    }
}

/// Reads a duration: a number and a unit, as in `30s`, `30min`, `12h`, `7d` or `2w`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a duration: write one like 30s, 30min, 12h, 7d or 2w");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim_start() {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds) {
        None => Err(wrong()),
        Some(0) => Err(format!(
            "'{text}' is no time at all: write one like 30s, 30min, 12h, 7d or 2w"
        )),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

/// The moment `ms` milliseconds after 1970-01-01 UTC; the last that can be told, if it is later.
pub fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::MAX)
}

/// The moment in RFC 3339 with the offset of `tz`, to the second.
pub fn local_time(time: Timestamp, tz: &TimeZone) -> String {
    time.to_zoned(tz.clone())
        .strftime("%Y-%m-%dT%H:%M:%S%:z")
        .to_string()
}

/// `part / whole` as in `3.1x`; `-` where there is nothing to divide by.
pub fn ratio(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.1}x", part as f64 / whole as f64),
    }
}

/// `number thing`, with an `s` where there is not exactly one.
pub fn count(number: u64, thing: &str) -> String {
    match (number, thing.strip_suffix('y')) {
        (1, _) => format!("1 {thing}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        _ => format!("{number} {thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (100 << 20, "100 MiB"),
            (16 << 30, "16.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("16M", Some(16 << 20)),
            ("16MiB", Some(16 << 20)),
            ("1.5 g", Some(3 << 29)),
            ("64kb", Some(64 << 10)),
            ("", None),
            ("M", None),
            ("1X", None),
            ("-1", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_size(text).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, seconds) in [
            ("30s", Some(30)),
            ("30min", Some(1800)),
            ("12 h", Some(43_200)),
            ("7d", Some(604_800)),
            ("2w", Some(1_209_600)),
            ("7", None),
            ("0d", None),
            ("d", None),
            ("1m", None),
            ("99999999999999999999d", None),
            ("9999999999999999999d", None),
        ] {
            let read = parse_duration(text).ok();
            assert_eq!(read, seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn durations_change_their_unit() {
        for (ms, text) in [
            (420, "0.42 s"),
            (12_340, "12.3 s"),
            (245_000, "4:05 min"),
            (7_389_000, "2:03:09 h"),
        ] {
            assert_eq!(Took(Duration::from_millis(ms)).to_string(), text);
        }
    }
}
