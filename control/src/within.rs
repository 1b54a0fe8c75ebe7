//! Durations of a retention policy: `30d`, `1y6m`, `12h`, `2w`.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A calendar duration longer than zero, written as numbers with units: `y` years, `m` months (not
/// minutes), `w` weeks, `d` days, `h` hours.
///
/// Each unit at most once, in any order: `1y6m` and `6m1y` are the same. Years, months, weeks and days
/// are the calendar's, so that `1d` before 12:00 is 12:00 of the day before even when the clocks changed
/// between; hours are always 3600 seconds.
#[derive(Clone, Copy, Debug)]
pub struct Within(Span);

impl Within {
    /// The moment this long before `moment`, on the calendar of `tz`.
    ///
    /// A day that the earlier month lacks becomes that month's last (a month before March 31 is
    /// February 28 or 29). A moment before the first that can be told is that first one.
    pub fn before(&self, moment: Timestamp, tz: &TimeZone) -> Timestamp {
        moment
            .to_zoned(tz.clone())
            .checked_sub(self.0)
            .map_or(Timestamp::MIN, |cutoff| cutoff.timestamp())
    }

    fn numbers(&self) -> [(i64, char); 5] {
        [
            (self.0.get_years().into(), 'y'),
            (self.0.get_months().into(), 'm'),
            (self.0.get_weeks().into(), 'w'),
            (self.0.get_days().into(), 'd'),
            (self.0.get_hours().into(), 'h'),
        ]
    }
}

impl PartialEq for Within {
    /// As written: `7d` and `1w` differ.
    fn eq(&self, other: &Self) -> bool {
        self.0.fieldwise() == other.0.fieldwise()
    }
}

impl Eq for Within {}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.numbers()
            .iter()
            .filter(|(number, _)| *number != 0)
            .try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

impl FromStr for Within {
    type Err = ParseWithinError;

    fn from_str(text: &str) -> Result<Self, ParseWithinError> {
        let mut span = Span::new();
        let mut seen = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (number, unit, after) = split_first(text, rest)?;
            if seen.contains(unit) {
                return Err(ParseWithinError::RepeatedUnit {
                    text: text.to_owned(),
                    unit,
                });
            }
            seen.push(unit);
            span = with_unit(span, text, number, unit)?;
            rest = after;
        }
        if span.is_zero() {
            return Err(ParseWithinError::Zero {
                text: text.to_owned(),
            });
        }
        Ok(Self(span))
    }
}

impl Serialize for Within {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Within {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseWithinError {
    /// Nothing but zeros, or nothing at all.
    #[error("duration '{text}' is zero and would keep nothing: write one like '30d' or '1y6m'")]
    Zero {
        /// What was parsed.
        text: String,
    },
    /// Something other than a digit where a number should begin.
    #[error(
        "duration '{text}': '{rest}' should begin with a whole number: write one like '30d' or '1y6m'"
    )]
    NoNumber {
        /// What was parsed.
        text: String,
        /// What was left of it.
        rest: String,
    },
    /// A number with nothing behind it.
    #[error(
        "duration '{text}' ends in a number without a unit: add y (years), m (months), w (weeks), d (days) or h (hours)"
    )]
    NoUnit {
        /// What was parsed.
        text: String,
    },
    /// A letter that is no unit.
    #[error(
        "duration '{text}': '{unit}' is not a unit: use y (years), m (months), w (weeks), d (days) or h (hours)"
    )]
    UnknownUnit {
        /// What was parsed.
        text: String,
        /// The letter.
        unit: char,
    },
    /// A unit is there twice.
    #[error("duration '{text}' has the unit '{unit}' twice: add the numbers up")]
    RepeatedUnit {
        /// What was parsed.
        text: String,
        /// The unit.
        unit: char,
    },
    /// A number no calendar reaches.
    #[error(
        "duration '{text}' is longer than the calendar, which ends after 9999 years: shorten it"
    )]
    TooLong {
        /// What was parsed.
        text: String,
    },
}

/// The first number of `rest`, its unit, and what comes after; `text` is for the errors.
fn split_first<'a>(
    text: &str,
    rest: &'a str,
) -> Result<(&'a str, char, &'a str), ParseWithinError> {
    let number_len =
        rest.find(|c: char| !c.is_ascii_digit())
            .ok_or_else(|| ParseWithinError::NoUnit {
                text: text.to_owned(),
            })?;
    if number_len == 0 {
        return Err(ParseWithinError::NoNumber {
            text: text.to_owned(),
            rest: rest.to_owned(),
        });
    }
    let (number, after) = rest.split_at(number_len);
    let mut letters = after.chars();
    let unit = letters.next().expect("find stopped at a letter");
    Ok((number, unit, letters.as_str()))
}

fn with_unit(span: Span, text: &str, number: &str, unit: char) -> Result<Span, ParseWithinError> {
    let too_long = || ParseWithinError::TooLong {
        text: text.to_owned(),
    };
    let number: i64 = number.parse().map_err(|_| too_long())?;
    match unit {
        'y' => span.try_years(number),
        'm' => span.try_months(number),
        'w' => span.try_weeks(number),
        'd' => span.try_days(number),
        'h' => span.try_hours(number),
        _ => {
            return Err(ParseWithinError::UnknownUnit {
                text: text.to_owned(),
                unit,
            });
        }
    }
    .map_err(|_| too_long())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error as ValueError, StrDeserializer};

    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    #[test]
    fn durations_count_back_on_the_calendar() {
        for (within, from, to) in [
            ("12h", "2026-11-22T03:00+01:00", "2026-11-21T15:00+01:00"),
            ("30d", "2026-11-22T03:00+01:00", "2026-10-23T03:00+02:00"),
            ("2w", "2026-11-22T03:00+01:00", "2026-11-08T03:00+01:00"),
            ("1y6m", "2026-11-22T03:00+01:00", "2025-05-22T03:00+02:00"),
            ("6m1y", "2026-11-22T03:00+01:00", "2025-05-22T03:00+02:00"),
            // A month's last day stays the last day; a leap day likewise.
            ("1m", "2026-03-31T12:00+02:00", "2026-02-28T12:00+01:00"),
            ("1y", "2028-02-29T12:00+01:00", "2027-02-28T12:00+01:00"),
            // Clocks went forward on 2026-03-29 and back on 2026-10-25: days follow them, hours do not.
            ("1d", "2026-03-29T12:00+02:00", "2026-03-28T12:00+01:00"),
            ("24h", "2026-03-29T12:00+02:00", "2026-03-28T11:00+01:00"),
            ("1d", "2026-10-25T12:00+01:00", "2026-10-24T12:00+02:00"),
            ("24h", "2026-10-25T12:00+01:00", "2026-10-24T13:00+02:00"),
            // Days first, then hours.
            ("1d1h", "2026-03-30T02:30+02:00", "2026-03-29T01:30+01:00"),
        ] {
            let parsed: Within = within.parse().unwrap();
            let cutoff = parsed.before(from.parse().unwrap(), &berlin());
            assert_eq!(cutoff, to.parse().unwrap(), "{within} before {from}");
        }
    }

    #[test]
    fn duration_beyond_the_calendar_reaches_its_beginning() {
        let within: Within = "19998y".parse().unwrap();
        let moment = "2026-11-22T03:00Z".parse().unwrap();
        assert_eq!(within.before(moment, &TimeZone::UTC), Timestamp::MIN);
    }

    #[test]
    fn errors_say_what_to_write_instead() {
        for (text, message) in [
            ("", "is zero"),
            ("0d", "is zero"),
            ("d", "'d' should begin with a whole number"),
            ("-3d", "'-3d' should begin with a whole number"),
            ("1y 6m", "' 6m' should begin with a whole number"),
            ("1.5y", "'.' is not a unit"),
            ("30", "number without a unit"),
            ("1y6", "number without a unit"),
            ("30min", "'in' should begin with a whole number"),
            ("30D", "'D' is not a unit"),
            ("5s", "'s' is not a unit"),
            ("1d2d", "'d' twice"),
            ("19999y", "longer than the calendar"),
            ("99999999999999999999h", "longer than the calendar"),
        ] {
            let error = text.parse::<Within>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
            assert!(error.contains(&format!("'{text}'")), "{text}: {error}");
        }
    }

    #[test]
    fn durations_are_texts_in_settings() {
        let text: StrDeserializer<'_, ValueError> = "1y6m".into_deserializer();
        assert_eq!(Within::deserialize(text), Ok("1y6m".parse().unwrap()));
        let text: StrDeserializer<'_, ValueError> = "soon".into_deserializer();
        assert!(Within::deserialize(text).is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_gives_an_error(text in ".*") {
            let _ = text.parse::<Within>();
        }

        #[test]
        fn printed_durations_parse_to_themselves(text in "([0-9]{1,3}y)?([0-9]{1,3}m)?([0-9]{1,3}w)?([0-9]{1,3}d)?([0-9]{1,3}h)?") {
            if let Ok(within) = text.parse::<Within>() {
                prop_assert_eq!(within.to_string().parse(), Ok(within));
            }
        }

        #[test]
        fn cutoff_lies_before_the_moment(text in "[1-9][0-9]{0,2}[ymwdh]", seconds in 0i64..4_000_000_000) {
            let moment = Timestamp::from_second(seconds).unwrap();
            let within: Within = text.parse().unwrap();
            prop_assert!(within.before(moment, &berlin()) < moment);
        }
    }
}
