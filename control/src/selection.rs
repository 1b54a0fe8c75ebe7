//! Which snapshot a text means.
//!
//! A text is parsed without knowing the repository ([`SnapshotSpec`]) and resolved against the list of
//! its snapshots. It never means two things: what is ambiguous is an error that lists the choices, and
//! nothing but an exact VM name or the beginning of an id ever selects.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::Serialize;
use undercroft_format::id::SnapshotId;

use crate::near::near_names;

/// Fewer digits of an id would be ambiguous in any repository worth the name, and look like names.
const ID_PREFIX_LEN_MIN: usize = 4;

/// Length of `2026-11-22`.
const DATE_LEN: usize = 10;

/// As many choices as an error message lists before it only counts.
const CHOICES_SHOWN_MAX: usize = 10;

/// What selection and retention need to know of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotSummary {
    /// The snapshot.
    pub id: SnapshotId,
    /// Name of the VM it belongs to; snapshots of equal name belong together.
    pub vm: String,
    /// The moment whose state it holds.
    pub time: Timestamp,
    /// Its tags, in no particular order.
    pub tags: Vec<String>,
    /// Whether it must not be pruned.
    pub protected: bool,
    /// Until when nobody can remove it, if that has not come.
    pub locked_until: Option<Timestamp>,
}

impl SnapshotSummary {
    /// The greater, the newer; ids settle it among equal times, so that there is always one newest.
    pub(crate) fn age_key(&self) -> (Timestamp, SnapshotId) {
        (self.time, self.id)
    }
}

/// A snapshot as a person names it.
///
/// - `3f9c`, `3f9c0a1b…`: the beginning of an id, 4 to all 32 hexadecimal digits, in either case
/// - `web01@latest`: the newest snapshot of a VM
/// - `web01@latest-2`: the second before the newest
/// - `web01@TIME`: the newest at or before a moment. TIME is RFC 3339 (`2026-11-22T03:00:00+01:00`), or
///   without an offset in the time zone given to [`resolve`](Self::resolve): `2026-11-22T03:00`,
///   `2026-11-22 03:00`, seconds and fractions if wanted, `2026-11-22`, `2026-11` or `2026`. What is left
///   out is at its last: `03:00` means the end of that minute, `2026-11-22` that of the day. So the time
///   that a list shows to the second selects the snapshot it stands beside.
///
/// The name ends at the last `@`, so that it may contain others. Text without `@` is an id, never a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSpec {
    text: String,
    wanted: Wanted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// Lower-case digits, 4 to 32 of them.
    IdPrefix(String),
    /// Selects nothing; what was meant can be told only with the list of VMs at hand.
    Unrecognized,
    OfVm {
        vm: String,
        position: Position,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    /// So many before the newest.
    Back(u32),
    /// The newest at or before a moment.
    At(Moment),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Moment {
    Exact(Timestamp),
    Local(DateTime),
}

impl SnapshotSpec {
    /// The snapshot of `snapshots` that this text means, where times without an offset are in `tz`.
    ///
    /// A local time that comes twice, when clocks go back, is its second coming; one that never comes,
    /// when they go forward, is the moment at which it was skipped.
    /// Of snapshots with equal times, the one with the greater id counts as newer.
    ///
    /// # Errors
    /// [`SelectError::NotFound`], [`SelectError::ShortId`], [`SelectError::VmWithoutTime`],
    /// [`SelectError::Ambiguous`] and [`SelectError::NoSnapshotOfVm`]; none is worth a retry with the same
    /// text and list.
    pub fn resolve(
        &self,
        snapshots: &[SnapshotSummary],
        tz: &TimeZone,
    ) -> Result<SnapshotId, SelectError> {
        match &self.wanted {
            Wanted::IdPrefix(prefix) => self.resolve_id(prefix, snapshots, tz),
            Wanted::Unrecognized => Err(self.not_found(&self.text, snapshots)),
            Wanted::OfVm { vm, position } => self.resolve_vm(vm, position, snapshots, tz),
        }
    }

    /// Whether the text may mean snapshot `id`, of which no more than this is known.
    pub fn may_mean(&self, id: SnapshotId) -> bool {
        match &self.wanted {
            Wanted::IdPrefix(prefix) => id.to_string().starts_with(prefix),
            Wanted::Unrecognized => false,
            Wanted::OfVm { .. } => true,
        }
    }

    fn resolve_id(
        &self,
        prefix: &str,
        snapshots: &[SnapshotSummary],
        tz: &TimeZone,
    ) -> Result<SnapshotId, SelectError> {
        let matches = |snapshot: &&SnapshotSummary| snapshot.id.to_string().starts_with(prefix);
        let found = newest_first(snapshots.iter().filter(matches));
        match found[..] {
            [] => Err(self.not_found(&self.text, snapshots)),
            [snapshot] => Ok(snapshot.id),
            _ => Err(SelectError::Ambiguous {
                prefix: prefix.to_owned(),
                choices: found
                    .iter()
                    .map(|snapshot| Choice::new(snapshot, tz))
                    .collect(),
            }),
        }
    }

    fn resolve_vm(
        &self,
        vm: &str,
        position: &Position,
        snapshots: &[SnapshotSummary],
        tz: &TimeZone,
    ) -> Result<SnapshotId, SelectError> {
        let of_vm = newest_first(snapshots.iter().filter(|snapshot| snapshot.vm == vm));
        let Some(oldest) = of_vm.last() else {
            return Err(self.not_found(vm, snapshots));
        };
        let found = match position {
            Position::Back(back) => of_vm.get(*back as usize),
            Position::At(moment) => {
                let moment = moment.in_zone(tz);
                of_vm.iter().find(|snapshot| snapshot.time <= moment)
            }
        };
        found
            .map(|snapshot| snapshot.id)
            .ok_or_else(|| SelectError::NoSnapshotOfVm {
                vm: vm.to_owned(),
                asked: self.text[vm.len() + 1..].to_owned(),
                count: of_vm.len(),
                oldest: Box::new(Choice::new(oldest, tz)),
            })
    }

    fn not_found(&self, name: &str, snapshots: &[SnapshotSummary]) -> SelectError {
        // The whole text may be the name of a VM, also one with an '@' in it.
        if snapshots.iter().any(|snapshot| snapshot.vm == self.text) {
            return SelectError::VmWithoutTime {
                vm: self.text.clone(),
            };
        }
        let digits = self.text.to_ascii_lowercase();
        let begins_so = |snapshot: &SnapshotSummary| snapshot.id.to_string().starts_with(&digits);
        if self.text.len() < ID_PREFIX_LEN_MIN && snapshots.iter().any(begins_so) {
            return SelectError::ShortId {
                text: self.text.clone(),
            };
        }
        let near = near_names(name, snapshots.iter().map(|snapshot| snapshot.vm.as_str()));
        SelectError::NotFound {
            text: self.text.clone(),
            near,
        }
    }
}

impl fmt::Display for SnapshotSpec {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SnapshotSpec {
    type Err = SelectError;

    /// # Errors
    /// [`SelectError::NoName`] and [`SelectError::BadTime`].
    fn from_str(text: &str) -> Result<Self, SelectError> {
        let wanted = match text.rsplit_once('@') {
            None if text.is_empty() => {
                return Err(SelectError::NoName {
                    text: text.to_owned(),
                });
            }
            Some(("", _)) => {
                return Err(SelectError::NoName {
                    text: text.to_owned(),
                });
            }
            None if is_id_prefix(text) => Wanted::IdPrefix(text.to_ascii_lowercase()),
            None => Wanted::Unrecognized,
            Some((vm, time)) => Wanted::OfVm {
                vm: vm.to_owned(),
                position: parse_position(time).ok_or_else(|| SelectError::BadTime {
                    text: text.to_owned(),
                    time: time.to_owned(),
                })?,
            },
        };
        Ok(Self {
            text: text.to_owned(),
            wanted,
        })
    }
}

impl Moment {
    fn in_zone(&self, tz: &TimeZone) -> Timestamp {
        let local = match self {
            Moment::Exact(moment) => return *moment,
            Moment::Local(local) => *local,
        };
        let ambiguous = tz.to_ambiguous_timestamp(local);
        let moment = match ambiguous.offset() {
            AmbiguousOffset::Gap { .. } => ambiguous
                .earlier()
                .map(|before| last_before_gap(before, tz)),
            _ => ambiguous.later(),
        };
        // Only the last hours of the year 9999 cannot be told.
        moment.unwrap_or(Timestamp::MAX)
    }
}

/// The last moment before clocks next go forward after `before`.
fn last_before_gap(before: Timestamp, tz: &TimeZone) -> Timestamp {
    let instant = jiff::Span::new().nanoseconds(1);
    tz.following(before)
        .next()
        .and_then(|transition| transition.timestamp().checked_sub(instant).ok())
        .unwrap_or(before)
}

fn is_id_prefix(text: &str) -> bool {
    (ID_PREFIX_LEN_MIN..=2 * SnapshotId::LEN).contains(&text.len())
        && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn parse_position(text: &str) -> Option<Position> {
    match text.strip_prefix("latest") {
        Some("") => Some(Position::Back(0)),
        Some(back) => {
            let digits = back.strip_prefix('-')?;
            let all_digits = digits.bytes().all(|digit| digit.is_ascii_digit());
            all_digits
                .then(|| digits.parse().ok())
                .flatten()
                .map(Position::Back)
        }
        None => parse_moment(text).map(Position::At),
    }
}

/// The last moment that the text may mean.
///
/// jiff's own parsers take more than is wanted here: some drop what they do not need, be it a time
/// behind a date or an offset behind a time. So the shape decides which of them sees the text.
fn parse_moment(text: &str) -> Option<Moment> {
    let date_len = text.find(['T', 't', ' ']).unwrap_or(text.len());
    let (date, time) = text.split_at(date_len);
    let dated = date.bytes().enumerate().all(|(i, byte)| match i {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    if !dated {
        return None;
    }
    if time.is_empty() {
        let last_day: Date = match date.len() {
            4 => format!("{date}-12-31").parse().ok()?,
            7 => format!("{date}-01").parse::<Date>().ok()?.last_of_month(),
            DATE_LEN => date.parse().ok()?,
            _ => return None,
        };
        return Some(Moment::Local(last_day.at(23, 59, 59, 999_999_999)));
    }
    let clock = &time[1..];
    if date.len() != DATE_LEN || !clock.contains(':') || clock.contains('[') {
        return None;
    }
    let is_clock = |byte: &u8| byte.is_ascii_digit() || b":.".contains(byte);
    let clock_len = clock.bytes().take_while(is_clock).count();
    let rest = rest_of_period(&clock[..clock_len]);
    if clock_len == clock.len() {
        let local: DateTime = text.parse().ok()?;
        return Some(Moment::Local(local.saturating_add(rest)));
    }
    let exact: Timestamp = text.parse().ok()?;
    Some(Moment::Exact(
        exact.checked_add(rest).unwrap_or(Timestamp::MAX),
    ))
}

/// From the beginning to the last nanosecond of the minute or second that `clock` names.
fn rest_of_period(clock: &str) -> SignedDuration {
    let period = match clock.matches(':').count() {
        _ if clock.contains('.') => return SignedDuration::ZERO,
        ..=1 => SignedDuration::from_mins(1),
        _ => SignedDuration::from_secs(1),
    };
    period - SignedDuration::from_nanos(1)
}

/// Each snapshot once, newest first.
fn newest_first<'a>(
    snapshots: impl Iterator<Item = &'a SnapshotSummary>,
) -> Vec<&'a SnapshotSummary> {
    let mut sorted: Vec<_> = snapshots.collect();
    sorted.sort_by_key(|snapshot| Reverse(snapshot.age_key()));
    sorted.dedup_by_key(|snapshot| snapshot.id);
    sorted
}

/// One snapshot that a text may have meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its VM.
    pub vm: String,
    /// Its time, in the zone that [`SnapshotSpec::resolve`] was given.
    pub time: Zoned,
}

impl Choice {
    fn new(snapshot: &SnapshotSummary, tz: &TimeZone) -> Self {
        Self {
            id: snapshot.id,
            vm: snapshot.vm.clone(),
            time: snapshot.time.to_zoned(tz.clone()),
        }
    }

    /// RFC 3339 to the last digit: written behind an `@` it finds this snapshot again.
    fn time_text(&self) -> impl fmt::Display {
        let time = self.time.timestamp();
        time.display_with_offset(self.time.offset())
    }
}

/// A text does not parse, or means no snapshot, or more than one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// No id begins so, and no VM with snapshots is called so.
    #[error(
        "snapshot '{text}' not found: no id begins like that and no VM of that name has snapshots; {}",
        did_you_mean(near)
    )]
    NotFound {
        /// What was asked for.
        text: String,
        /// VMs with similar names, the most similar first; may be empty.
        near: Vec<String>,
    },
    /// The text is no id but the whole name of a VM.
    #[error(
        "snapshot '{vm}' not found: it is the name of a VM, write '{vm}@latest' for its newest snapshot or '{vm}@TIME'"
    )]
    VmWithoutTime {
        /// The VM.
        vm: String,
    },
    /// Ids begin so, but the text is too short to be taken for the beginning of one.
    #[error(
        "snapshot '{text}' not found: it is too short for an id, write at least {ID_PREFIX_LEN_MIN} digits"
    )]
    ShortId {
        /// What was asked for.
        text: String,
    },
    /// Several ids begin so.
    #[error(
        "snapshot '{prefix}' is ambiguous, write more digits of one of the {} ids that begin like that:{}",
        choices.len(),
        choice_lines(choices)
    )]
    Ambiguous {
        /// The digits asked for, in lower case.
        prefix: String,
        /// All that match, newest first.
        choices: Vec<Choice>,
    },
    /// The VM has snapshots, but none so old.
    #[error(
        "VM '{vm}' has no snapshot '{asked}': it has {count}, the oldest of them {} of {}",
        oldest.id.short(),
        oldest.time_text()
    )]
    NoSnapshotOfVm {
        /// The VM.
        vm: String,
        /// What stood behind the `@`.
        asked: String,
        /// How many snapshots it has; `latest-N` goes up to one less.
        count: usize,
        /// The oldest snapshot it has.
        oldest: Box<Choice>,
    },
    /// What stands behind the last `@` is no time.
    #[error(
        "snapshot '{text}': '{time}' is not a time; write latest, latest-N, 2026-11-22, 2026-11-22T03:00 or 2026-11-22T03:00:00+01:00 behind the last '@', also when the VM's name contains an '@'"
    )]
    BadTime {
        /// What was parsed.
        text: String,
        /// What stood behind the `@`.
        time: String,
    },
    /// Nothing stands before the `@`, or nothing at all was written.
    #[error(
        "snapshot '{text}' names no VM and no id: write the first digits of an id, or NAME@latest"
    )]
    NoName {
        /// What was parsed.
        text: String,
    },
}

fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() {
        return "list the snapshots to see what there is".to_owned();
    }
    let quoted: Vec<_> = near.iter().map(|name| format!("'{name}'")).collect();
    format!("VMs with similar names: {}", quoted.join(", "))
}

/// Short ids where they tell the choices apart, whole ids where not.
fn choice_lines(choices: &[Choice]) -> String {
    let short_ids: BTreeSet<String> = choices.iter().map(|choice| choice.id.short()).collect();
    let line = |choice: &Choice| {
        let id = match short_ids.len() == choices.len() {
            true => choice.id.short(),
            false => choice.id.to_string(),
        };
        format!("\n  {id}  {}  {}", choice.vm, choice.time_text())
    };
    let mut lines: String = choices.iter().take(CHOICES_SHOWN_MAX).map(line).collect();
    if choices.len() > CHOICES_SHOWN_MAX {
        lines += &format!("\n  and {} more", choices.len() - CHOICES_SHOWN_MAX);
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn snapshot(id: &str, vm: &str, time: &str) -> SnapshotSummary {
        SnapshotSummary {
            id: format!("{id:0<32}").parse().unwrap(),
            vm: vm.to_owned(),
            time: time.parse().unwrap(),
            tags: Vec::new(),
            protected: false,
            locked_until: None,
        }
    }

    fn repository() -> Vec<SnapshotSummary> {
        vec![
            snapshot("aaaa01", "web01", "2026-11-20T03:00:00+01:00"),
            snapshot("aaaa02", "web01", "2026-11-22T03:00:00+01:00"),
            snapshot("bbbb01", "web01", "2026-11-21T03:00:00+01:00"),
            snapshot("cccc01", "db@prod", "2026-11-22T03:00:00.5+01:00"),
            snapshot("dddd01", "cafe", "2026-11-22T04:00:00+01:00"),
            snapshot("eeee01", "beef", "2026-11-22T05:00:00+01:00"),
            snapshot("beef01", "twin", "2026-11-22T05:00:00+01:00"),
            snapshot("ffff02", "twin", "2026-11-22T05:00:00+01:00"),
            snapshot("ffff01", "twin", "2026-11-22T05:00:00+01:00"),
        ]
    }

    fn select(text: &str) -> Result<String, SelectError> {
        let spec: SnapshotSpec = text.parse()?;
        let id = spec.resolve(&repository(), &berlin())?;
        Ok(id.to_string()[..6].to_owned())
    }

    #[test]
    fn texts_mean_snapshots() {
        for (text, id) in [
            ("bbbb", "bbbb01"),
            ("BBBB01", "bbbb01"),
            ("aaaa02", "aaaa02"),
            ("bbbb0100000000000000000000000000", "bbbb01"),
            ("web01@latest", "aaaa02"),
            ("web01@latest-0", "aaaa02"),
            ("web01@latest-1", "bbbb01"),
            ("web01@latest-2", "aaaa01"),
            ("web01@2026-11-21", "bbbb01"),
            ("web01@2026-11-21T03:00", "bbbb01"),
            ("web01@2026-11-21 03:00", "bbbb01"),
            ("web01@2026-11-21 02:59:59.999", "aaaa01"),
            ("web01@2026-11-21T02:00:00Z", "bbbb01"),
            ("web01@2026-11-21t01:59:59z", "aaaa01"),
            ("web01@2026-11-20T21:00-05:00", "bbbb01"),
            ("web01@9999-12-31", "aaaa02"),
            ("web01@9999-12-31T23:59:59", "aaaa02"),
            ("web01@2026-11", "aaaa02"),
            ("web01@2026", "aaaa02"),
            ("db@prod@latest", "cccc01"),
            // What is left out is at its last.
            ("db@prod@2026-11-22T03:00", "cccc01"),
            ("db@prod@2026-11-22T03:00:00", "cccc01"),
            ("db@prod@2026-11-22T03:00:00+01:00", "cccc01"),
            ("db@prod@2026-11-22T02:00Z", "cccc01"),
            ("db@prod@2026-11-22T03:00:00.5+01:00", "cccc01"),
            ("cafe@latest", "dddd01"),
            // Digits are an id first, even if a VM is called so.
            ("beef", "beef01"),
            ("beef@latest", "eeee01"),
            // Equal times: the greater id is the newer.
            ("twin@latest", "ffff02"),
            ("twin@latest-1", "ffff01"),
            ("twin@latest-2", "beef01"),
            ("twin@2026-11-22", "ffff02"),
        ] {
            assert_eq!(select(text), Ok(id.to_owned()), "{text}");
        }
    }

    #[test]
    fn errors_say_what_was_asked_and_what_to_write() {
        for (text, message) in [
            (
                "",
                "snapshot '' names no VM and no id: write the first digits of an id, or NAME@latest",
            ),
            (
                "@latest",
                "snapshot '@latest' names no VM and no id: write the first digits of an id, or NAME@latest",
            ),
            (
                "0123",
                "snapshot '0123' not found: no id begins like that and no VM of that name has snapshots; list the snapshots to see what there is",
            ),
            (
                "wbe01@latest",
                "snapshot 'wbe01@latest' not found: no id begins like that and no VM of that name has snapshots; VMs with similar names: 'web01'",
            ),
            (
                "bBb",
                "snapshot 'bBb' not found: it is too short for an id, write at least 4 digits",
            ),
            (
                "WEB01@latest",
                "snapshot 'WEB01@latest' not found: no id begins like that and no VM of that name has snapshots; VMs with similar names: 'web01'",
            ),
            (
                "web",
                "snapshot 'web' not found: no id begins like that and no VM of that name has snapshots; VMs with similar names: 'web01'",
            ),
            (
                "web01",
                "snapshot 'web01' not found: it is the name of a VM, write 'web01@latest' for its newest snapshot or 'web01@TIME'",
            ),
            (
                "cafe",
                "snapshot 'cafe' not found: it is the name of a VM, write 'cafe@latest' for its newest snapshot or 'cafe@TIME'",
            ),
            (
                "aaaa",
                "snapshot 'aaaa' is ambiguous, write more digits of one of the 2 ids that begin like that:\n  aaaa0200  web01  2026-11-22T03:00:00+01:00\n  aaaa0100  web01  2026-11-20T03:00:00+01:00",
            ),
            (
                "web01@latest-3",
                "VM 'web01' has no snapshot 'latest-3': it has 3, the oldest of them aaaa0100 of 2026-11-20T03:00:00+01:00",
            ),
            (
                "web01@2026-11-19",
                "VM 'web01' has no snapshot '2026-11-19': it has 3, the oldest of them aaaa0100 of 2026-11-20T03:00:00+01:00",
            ),
            // A fraction is the moment, and this one is a tenth of a second late.
            (
                "db@prod@2026-11-22T03:00:00.4",
                "VM 'db@prod' has no snapshot '2026-11-22T03:00:00.4': it has 1, the oldest of them cccc0100 of 2026-11-22T03:00:00.5+01:00",
            ),
            (
                "db@prod",
                "snapshot 'db@prod': 'prod' is not a time; write latest, latest-N, 2026-11-22, 2026-11-22T03:00 or 2026-11-22T03:00:00+01:00 behind the last '@', also when the VM's name contains an '@'",
            ),
        ] {
            assert_eq!(select(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for time in [
            "",
            "Latest",
            "latest-",
            "latest--1",
            "latest-+1",
            "latest-x",
            "latest-4294967296",
            "latest1",
            "03:00",
            "2026-1",
            "2026-13",
            "202",
            "20261",
            "2026-11T03:00",
            "2026-13-01",
            "2026-02-30",
            "20261122",
            "2026-11-22T",
            "2026-11-22T03",
            "2026-11-22X03:00",
            "2026-11-22T25:00",
            "2026-11-22T03:00+99:00",
            "2026-11-22T03:00+01:00[Europe/Berlin]",
            "2026-11-22T03:00 CET",
            "2026-11-22+01:00",
            "-002026-11-22",
            "2026-11-2é",
        ] {
            let text = format!("web01@{time}");
            let expected = SelectError::BadTime {
                text: text.clone(),
                time: time.to_owned(),
            };
            assert_eq!(select(&text), Err(expected));
        }
    }

    #[test]
    fn vm_whose_name_looks_like_a_time_of_another_is_pointed_out() {
        let list = [snapshot("aaaa", "web@latest", "2026-11-20T03:00Z")];
        let spec: SnapshotSpec = "web@latest".parse().unwrap();
        let expected = SelectError::VmWithoutTime {
            vm: "web@latest".to_owned(),
        };
        assert_eq!(spec.resolve(&list, &TimeZone::UTC), Err(expected));
    }

    #[test]
    fn mistyped_names_bring_up_the_vms_meant() {
        let list = [
            snapshot("aaaa", "database-1", "2026-11-20T03:00Z"),
            snapshot("bbbb", "database-2", "2026-11-20T03:00Z"),
            snapshot("cccc", "mail", "2026-11-20T03:00Z"),
        ];
        let spec: SnapshotSpec = "datbase-2@latest".parse().unwrap();
        let Err(SelectError::NotFound { near, .. }) = spec.resolve(&list, &TimeZone::UTC) else {
            panic!("found a VM that is not there");
        };
        assert_eq!(near, ["database-2", "database-1"]);
    }

    #[test]
    fn many_choices_are_cut_short_and_alike_ids_are_shown_whole() {
        let alike =
            |n: usize| snapshot(&format!("abcdabcdabcd{n:02}"), "web01", "2026-11-20T03:00Z");
        let list: Vec<_> = (0..12).map(alike).collect();
        let spec: SnapshotSpec = "abcdabcd".parse().unwrap();
        let message = spec.resolve(&list, &TimeZone::UTC).unwrap_err().to_string();
        assert_eq!(message.lines().count(), 1 + CHOICES_SHOWN_MAX + 1);
        assert!(
            message.contains("\n  abcdabcdabcd11000000000000000000  web01"),
            "{message}"
        );
        assert!(message.ends_with("and 2 more"), "{message}");
    }

    #[test]
    fn snapshot_listed_twice_is_not_ambiguous() {
        let list = [repository(), repository()].concat();
        for (text, id) in [("bbbb", "bbbb01"), ("web01@latest-1", "bbbb01")] {
            let spec: SnapshotSpec = text.parse().unwrap();
            let found = spec.resolve(&list, &berlin()).unwrap();
            assert_eq!(found.to_string()[..6], *id);
        }
    }

    #[test]
    fn local_time_that_comes_twice_is_its_second_coming() {
        let list = [
            snapshot("aaaa", "web01", "2026-10-25T02:20:00+02:00"),
            snapshot("bbbb", "web01", "2026-10-25T02:20:00+01:00"),
            snapshot("cccc", "web01", "2026-10-25T02:40:00+01:00"),
        ];
        for (time, back) in [
            ("2026-10-25T02:30", 1),
            ("2026-10-25T02:30+02:00", 2),
            ("2026-10-25T03:00", 0),
        ] {
            let spec: SnapshotSpec = format!("web01@{time}").parse().unwrap();
            let expected: SnapshotSpec = format!("web01@latest-{back}").parse().unwrap();
            assert_eq!(
                spec.resolve(&list, &berlin()),
                expected.resolve(&list, &berlin()),
                "{time}"
            );
        }
    }

    #[test]
    fn local_time_that_never_comes_is_the_moment_it_was_skipped() {
        let list = [
            snapshot("aaaa", "web01", "2026-03-29T01:15:00+01:00"),
            snapshot("bbbb", "web01", "2026-03-29T01:45:00+01:00"),
            snapshot("cccc", "web01", "2026-03-29T03:00:00+02:00"),
            snapshot("dddd", "web01", "2026-03-29T03:15:00+02:00"),
        ];
        for time in [
            "2026-03-29T02:00",
            "2026-03-29T02:30",
            "2026-03-29T02:59:59",
        ] {
            let spec: SnapshotSpec = format!("web01@{time}").parse().unwrap();
            assert_eq!(spec.resolve(&list, &berlin()), Ok(list[1].id), "{time}");
        }
        let spec: SnapshotSpec = "web01@2026-03-29T03:00".parse().unwrap();
        assert_eq!(spec.resolve(&list, &berlin()), Ok(list[2].id));
    }

    #[test]
    fn date_means_the_end_of_the_day_in_the_zone() {
        let list = [
            snapshot("aaaa", "web01", "2026-11-21T22:59:59.999Z"),
            snapshot("bbbb", "web01", "2026-11-21T23:00:00Z"),
        ];
        let spec: SnapshotSpec = "web01@2026-11-21".parse().unwrap();
        assert_eq!(spec.resolve(&list, &berlin()), Ok(list[0].id));
        assert_eq!(spec.resolve(&list, &TimeZone::UTC), Ok(list[1].id));
    }

    #[test]
    fn a_snapshot_known_by_its_id_alone_may_be_any_of_a_vm() {
        let id = snapshot("abcd01", "", "2026-11-21T22:59Z").id;
        for (text, may) in [
            ("ABCD", true),
            ("abcd02", false),
            ("web01@latest", true),
            ("web01@2026-11-22", true),
            ("web01", false),
        ] {
            let spec: SnapshotSpec = text.parse().unwrap();
            assert_eq!(spec.may_mean(id), may, "{text}");
        }
    }

    #[test]
    fn spec_prints_as_written() {
        for text in ["BBBB", "db@prod@latest-1", "web01@2026-11-21 03:00"] {
            assert_eq!(text.parse::<SnapshotSpec>().unwrap().to_string(), text);
        }
    }

    fn any_snapshots() -> impl Strategy<Value = Vec<SnapshotSummary>> {
        let name = prop::sample::select(vec!["web01", "web@1", "cafe", "", "latest"]);
        prop::collection::btree_map(any::<[u8; 16]>(), (name, 0..40i64), 1..30).prop_map(|list| {
            let make = |(id, (vm, half_hours)): ([u8; 16], (&str, i64))| SnapshotSummary {
                id: SnapshotId::from_bytes(id),
                vm: vm.to_owned(),
                // Around the night in which Berlin's clocks go back.
                time: Timestamp::from_second(1_792_870_000 + half_hours * 1800).unwrap(),
                tags: Vec::new(),
                protected: false,
                locked_until: None,
            };
            list.into_iter().map(make).collect()
        })
    }

    proptest! {
        #[test]
        fn any_text_resolves_or_gives_an_error(
            text in prop_oneof![".*", "[a-f0-9]{0,34}", "[a-f@]{0,5}@(latest)?[-0-9T:. +Zz]{0,25}"],
            list in any_snapshots(),
        ) {
            let resolved = text.parse::<SnapshotSpec>().and_then(|spec| spec.resolve(&list, &berlin()));
            if let Err(error) = resolved {
                prop_assert!(!error.to_string().is_empty());
            }
        }

        #[test]
        fn whole_ids_select_their_snapshot(list in any_snapshots()) {
            for snapshot in &list {
                let spec: SnapshotSpec = snapshot.id.to_string().parse().unwrap();
                prop_assert_eq!(spec.resolve(&list, &berlin()), Ok(snapshot.id));
            }
        }

        #[test]
        fn counting_back_meets_every_snapshot_once(list in any_snapshots()) {
            let mut met = BTreeSet::new();
            for vm in ["web01", "web@1", "cafe", "latest"] {
                for back in 0.. {
                    let spec: SnapshotSpec = format!("{vm}@latest-{back}").parse().unwrap();
                    let Ok(id) = spec.resolve(&list, &berlin()) else { break };
                    prop_assert!(met.insert(id));
                }
            }
            let named = list.iter().filter(|snapshot| !snapshot.vm.is_empty());
            prop_assert_eq!(met, named.map(|snapshot| snapshot.id).collect());
        }

        #[test]
        fn time_of_a_snapshot_selects_it_or_its_twin(list in any_snapshots()) {
            for snapshot in list.iter().filter(|snapshot| !snapshot.vm.is_empty()) {
                let time = Choice::new(snapshot, &berlin()).time_text().to_string();
                let spec: SnapshotSpec = format!("{}@{time}", snapshot.vm).parse().unwrap();
                let found = spec.resolve(&list, &berlin()).unwrap();
                let found = list.iter().find(|other| other.id == found).unwrap();
                prop_assert_eq!(&found.vm, &snapshot.vm);
                prop_assert_eq!(found.time, snapshot.time);
                prop_assert!(found.id >= snapshot.id);
            }
        }

        #[test]
        fn local_time_selects_the_newest_up_to_its_last_coming(
            list in any_snapshots(), minutes in 0..2880i64,
        ) {
            let local = jiff::civil::date(2026, 10, 24).at(0, 0, 0, 0);
            let local = local.checked_add(jiff::SignedDuration::from_mins(minutes)).unwrap();
            let spec: SnapshotSpec = format!("web01@{local}").parse().unwrap();
            let moment = berlin().to_ambiguous_timestamp(local).later().unwrap();
            let no_later = list.iter().filter(|s| s.vm == "web01" && s.time <= moment);
            let expected = no_later.max_by_key(|s| s.age_key()).map(|s| s.id);
            prop_assert_eq!(spec.resolve(&list, &berlin()).ok(), expected);
        }
    }
}
