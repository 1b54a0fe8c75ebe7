//! Bytes a second, as people write them.

use std::fmt;
use std::str::FromStr;

/// Least rate, in bytes a second: below it, timeouts of the protocol would end what is only slow.
pub const RATE_MIN: u64 = 128 << 10;

/// A rate of [`RATE_MIN`] bytes a second or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteRate(u64);

/// Text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no rate: write one like 50MiB/s, 800K or 400Mbit/s, at least 128KiB/s")]
pub struct RateError {
    text: String,
}

/// Units and their bits.
const UNITS: [(&str, u64); 16] = [
    ("kbit", 1000),
    ("mbit", 1_000_000),
    ("gbit", 1_000_000_000),
    ("kib", 8 << 10),
    ("mib", 8 << 20),
    ("gib", 8 << 30),
    ("kb", 8 << 10),
    ("mb", 8 << 20),
    ("gb", 8 << 30),
    ("k", 8 << 10),
    ("m", 8 << 20),
    ("g", 8 << 30),
    ("b", 8),
    ("", 8),
    ("tib", 8 << 40),
    ("t", 8 << 40),
];

impl ByteRate {
    /// Bytes a second.
    pub const fn per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteRate {
    type Err = RateError;

    /// A number with a unit: binary multiples of bytes (`50MiB/s`, `50M`), or decimal ones of bits
    /// (`400Mbit/s`).
    fn from_str(text: &str) -> Result<Self, RateError> {
        let error = || RateError {
            text: text.chars().take(80).collect(),
        };
        let trimmed = text.trim().to_ascii_lowercase();
        let trimmed = trimmed.strip_suffix("/s").unwrap_or(&trimmed);
        let digits = trimmed
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start();
        let known = UNITS.iter().find(|(name, _)| *name == unit);
        let (_, bits) = known.ok_or_else(error)?;
        let number: f64 = number.parse().map_err(|_| error())?;
        let bytes = number * (*bits as f64) / 8.0;
        // Beyond that nothing is limited.
        if !(RATE_MIN as f64..=(1_u64 << 50) as f64).contains(&bytes) {
            return Err(error());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(1 << 30) => write!(f, "{}GiB/s", bytes >> 30),
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{}MiB/s", bytes >> 20),
            bytes if bytes.is_multiple_of(125_000) => write!(f, "{}Mbit/s", bytes / 125_000),
            bytes if bytes.is_multiple_of(1 << 10) => write!(f, "{}KiB/s", bytes >> 10),
            bytes => write!(f, "{bytes}B/s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("50MiB/s", 50 << 20, "50MiB/s"),
            ("50 M", 50 << 20, "50MiB/s"),
            ("1.5g", 3 << 29, "1536MiB/s"),
            ("800k/s", 800 << 10, "800KiB/s"),
            ("400Mbit/s", 50_000_000, "400Mbit/s"),
            ("131073", 131_073, "131073B/s"),
        ] {
            let rate: ByteRate = text.parse().expect(text);
            assert_eq!(rate.per_second(), bytes, "{text}");
            assert_eq!(rate.to_string(), shown);
            assert_eq!(shown.parse(), Ok(rate));
        }
        for text in [
            "", "M", "1", "100K", "0", "5X", "-1M", "nan", "inf", "9999999T", "1.2.3M",
        ] {
            assert!(text.parse::<ByteRate>().is_err(), "{text}");
        }
    }
}
