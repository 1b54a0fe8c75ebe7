//! A rate and when it holds: `50MiB/s@mon-fri 08:00-18:00`.
//!
//! What a schedule says is said of the clock on the wall: an hour that a change to summer time leaves out
//! never comes, one that a change back repeats comes twice.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::rate::{ByteRate, RateError};

/// Minutes of a day.
const DAY: u16 = 24 * 60;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A rate, always or by schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    rate: ByteRate,
    schedule: Option<Schedule>,
}

/// Hours of some days of the week.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Schedule {
    /// A bit per day on which it begins, Monday's lowest.
    days: u8,
    /// Minutes of the day: from the first, up to but without the last, which may be the next day's.
    from: u16,
    to: u16,
    is_utc: bool,
}

/// Text that is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// Its rate is none.
    #[error(transparent)]
    Rate(#[from] RateError),
    /// Its schedule is none.
    #[error(
        "{word:?} does not belong in a schedule: write one like mon-fri 08:00-18:00, sat,sun or 22:00-06:00 UTC"
    )]
    Schedule {
        /// What is wrong.
        word: String,
    },
}

impl Rule {
    fn holds_at(&self, time: Timestamp, local: &TimeZone) -> bool {
        let Some(schedule) = &self.schedule else {
            return true;
        };
        let zone = match schedule.is_utc {
            true => TimeZone::UTC,
            false => local.clone(),
        };
        let at = time.to_zoned(zone);
        let day = at.weekday().to_monday_zero_offset() as u16;
        let minute = at.hour() as u16 * 60 + at.minute() as u16;
        schedule.holds(day, minute)
    }
}

impl Schedule {
    fn holds(&self, day: u16, minute: u16) -> bool {
        let begins_on = |day: u16| self.days & (1 << (day % 7)) != 0;
        if self.from < self.to {
            return begins_on(day) && (self.from..self.to).contains(&minute);
        }
        // Over midnight: the second half belongs to the day before.
        (begins_on(day) && minute >= self.from) || (begins_on(day + 6) && minute < self.to)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    /// `RATE[@[DAYS] [HH:MM-HH:MM] [UTC]]`; days are names of three letters, lists and ranges of them.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (rate, schedule) = match text.split_once('@') {
            None => (text, None),
            Some((rate, schedule)) => (rate, Some(schedule.parse()?)),
        };
        Ok(Self {
            rate: rate.parse()?,
            schedule,
        })
    }
}

impl FromStr for Schedule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let error = |word: &str| RuleError::Schedule {
            word: word.chars().take(80).collect(),
        };
        let (mut days, mut hours, mut is_utc) = (None, None, false);
        for word in text.split_whitespace() {
            let is_hours = word.starts_with(|letter: char| letter.is_ascii_digit());
            if is_utc {
                return Err(error(word));
            } else if word.eq_ignore_ascii_case("utc") {
                is_utc = true;
            } else if is_hours && hours.is_none() {
                hours = Some(parse_hours(word).ok_or_else(|| error(word))?);
            } else if !is_hours && days.is_none() && hours.is_none() {
                days = Some(parse_days(word).ok_or_else(|| error(word))?);
            } else {
                return Err(error(word));
            }
        }
        if days.is_none() && hours.is_none() {
            return Err(error(text));
        }
        let (from, to) = hours.unwrap_or((0, DAY));
        Ok(Self {
            days: days.unwrap_or(0x7f),
            from,
            to,
            is_utc,
        })
    }
}

fn parse_days(text: &str) -> Option<u8> {
    let day = |name: &str| DAYS.iter().position(|day| name.eq_ignore_ascii_case(day));
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        for place in first..=(if last < first { last + 7 } else { last }) {
            days |= 1 << (place % 7);
        }
    }
    Some(days)
}

fn parse_hours(text: &str) -> Option<(u16, u16)> {
    let minute = |text: &str| {
        let (hour, minute) = text.split_once(':')?;
        let is_number = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(hour) || !is_number(minute) {
            return None;
        }
        let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
        let at = hour * 60 + minute;
        (minute < 60 && at <= DAY).then_some(at)
    };
    let (from, to) = text.split_once('-')?;
    let (from, to) = (minute(from)?, minute(to)?);
    (from < DAY && from != to).then_some((from, to))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rate)?;
        match &self.schedule {
            None => Ok(()),
            Some(schedule) => write!(f, "@{schedule}"),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.days != 0x7f {
            let days = (0..7).filter(|day| self.days & (1 << day) != 0);
            words.push(days.map(|day| DAYS[day]).collect::<Vec<_>>().join(","));
        }
        let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        if (self.from, self.to) != (0, DAY) || words.is_empty() {
            words.push(format!("{}-{}", time(self.from), time(self.to)));
        }
        if self.is_utc {
            words.push("UTC".to_owned());
        }
        f.write_str(&words.join(" "))
    }
}

/// Rules for one direction: of those that hold, the lowest counts; if none does, there is no limit.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    local: TimeZone,
}

impl Default for Rules {
    /// No rules.
    fn default() -> Self {
        Self::new(Vec::new(), TimeZone::UTC)
    }
}

impl Rules {
    /// Rules whose schedules are read in the time zone `local`, unless they name another.
    pub fn new(rules: Vec<Rule>, local: TimeZone) -> Self {
        Self { rules, local }
    }

    /// The rate that holds at `time`.
    pub fn rate_at(&self, time: Timestamp) -> Option<ByteRate> {
        let holds = |rule: &&Rule| rule.holds_at(time, &self.local);
        let holding = self.rules.iter().filter(holds);
        holding.map(|rule| rule.rate).min()
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(texts: &[&str], zone: &str) -> Rules {
        let rules = texts.iter().map(|text| text.parse().expect(text)).collect();
        Rules::new(rules, TimeZone::get(zone).expect("it is known"))
    }

    /// The rate in MiB/s; 0 if there is none.
    fn at(rules: &Rules, time: &str) -> u64 {
        let time: Timestamp = time.parse().expect(time);
        rules
            .rate_at(time)
            .map_or(0, |rate| rate.per_second() >> 20)
    }

    #[test]
    fn the_lowest_of_those_that_hold_counts() {
        let rules = rules(
            &[
                "50M@mon-fri 08:00-18:00",
                "20M@12:00-13:00",
                "10M@sat,sun",
                "90M",
            ],
            "UTC",
        );
        for (time, rate) in [
            ("2026-11-25T07:59:59Z", 90),
            ("2026-11-25T08:00:00Z", 50),
            ("2026-11-25T12:00:00Z", 20),
            ("2026-11-25T12:59:59Z", 20),
            ("2026-11-25T13:00:00Z", 50),
            ("2026-11-25T18:00:00Z", 90),
            ("2026-11-28T12:30:00Z", 10),
        ] {
            assert_eq!(at(&rules, time), rate, "{time}");
        }
        assert_eq!(at(&Rules::default(), "2026-11-25T12:00:00Z"), 0);
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let rules = rules(&["5M@fri 22:00-06:00"], "UTC");
        for (time, rate) in [
            ("2026-11-27T05:00:00Z", 0),
            ("2026-11-27T21:59:00Z", 0),
            ("2026-11-27T22:00:00Z", 5),
            ("2026-11-28T05:59:00Z", 5),
            ("2026-11-28T06:00:00Z", 0),
            ("2026-11-28T22:30:00Z", 0),
        ] {
            assert_eq!(at(&rules, time), rate, "{time}");
        }
    }

    #[test]
    fn hours_are_those_of_the_wall_through_changes_of_the_clock() {
        // Berlin: UTC+1, from 2026-03-29T01:00Z UTC+2, from 2026-10-25T01:00Z UTC+1 again.
        let rules = rules(
            &["5M@02:00-03:00", "7M@08:00-18:00", "9M@20:00-21:00 UTC"],
            "Europe/Berlin",
        );
        for (time, rate) in [
            ("2026-03-28T01:30:00Z", 5),
            ("2026-03-28T07:00:00Z", 7),
            // The hour that is left out.
            ("2026-03-29T00:59:59Z", 0),
            ("2026-03-29T01:00:00Z", 0),
            ("2026-03-29T05:59:00Z", 0),
            ("2026-03-29T06:00:00Z", 7),
            ("2026-03-29T16:00:00Z", 0),
            // The hour that comes twice.
            ("2026-10-25T00:00:00Z", 5),
            ("2026-10-25T01:30:00Z", 5),
            ("2026-10-25T02:00:00Z", 0),
            ("2026-07-01T20:30:00Z", 9),
            ("2026-12-01T20:30:00Z", 9),
        ] {
            assert_eq!(at(&rules, time), rate, "{time}");
        }
    }

    #[test]
    fn rules_are_shown_as_they_are_read() {
        for (text, shown) in [
            ("50MiB/s", "50MiB/s"),
            (
                "50M@MON-Wed,sun 08:00-18:00 utc",
                "50MiB/s@mon,tue,wed,sun 08:00-18:00 UTC",
            ),
            ("1M@fri-mon", "1MiB/s@mon,fri,sat,sun"),
            ("1M@ 00:00-24:00", "1MiB/s@00:00-24:00"),
            ("1M@sat 22:00-00:00", "1MiB/s@sat 22:00-00:00"),
        ] {
            let rule: Rule = text.parse().expect(text);
            assert_eq!(rule.to_string(), shown);
            assert_eq!(shown.parse(), Ok(rule));
        }
        for text in [
            "",
            "@",
            "1M@",
            "1M@monday",
            "1M@8-18",
            "1M@08:00",
            "1M@08:00-08:00",
            "1M@24:00-01:00",
            "1M@08:00-24:30",
            "1M@08:60-09:00",
            "1M@mon 08:00-09:00 CET",
            "1M@08:00-09:00 mon",
            "1M@mon,",
            "1M@UTC",
            "1M@mon tue",
            "x@mon",
            "1M@+8:00-09:00",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in ".{0,40}", schedule in "[a-z0-9:,@ -]{0,30}") {
            let _ = text.parse::<Rule>();
            let _ = format!("1M@{schedule}").parse::<Rule>();
        }
    }
}
