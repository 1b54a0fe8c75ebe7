//! Which snapshots a policy keeps, and why.
//!
//! The rules are those of restic and, but for one point, of Borg and Proxmox Backup Server: every VM is
//! a group of its own, a group is looked at newest first, and a snapshot stays if *any* rule keeps it.
//! A calendar rule keeps the newest snapshot of each of the N most recent periods that hold one at all;
//! empty periods cost nothing, so that a VM that was off for a month loses nothing for it.
//!
//! Where the three differ: Borg and PBS let a rule pass over what an earlier rule kept, here as in restic
//! the rules do not see each other. restic also keeps the oldest snapshot of a group while a rule has
//! periods left; here that is no reason to stay.
//!
//! Always true of a plan, whatever the policy:
//! - a protected or locked snapshot is kept;
//! - the newest snapshot of every VM is kept, for it is the parent of the next increment, and pruning
//!   must never be what loses a VM;
//! - planning again over what was kept keeps all of it;
//! - a rule with a larger number never keeps less.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};
use undercroft_format::id::SnapshotId;

use crate::selection::SnapshotSummary;
use crate::within::Within;

/// Which snapshots of each VM stay. `None` and zero both mean that the rule is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// The newest so many snapshots.
    pub last: Option<u32>,
    /// The newest of each of so many hours of the wall clock. The hour that is repeated when clocks go
    /// back counts as two.
    pub hourly: Option<u32>,
    /// The newest of each of so many days.
    pub daily: Option<u32>,
    /// The newest of each of so many ISO 8601 weeks: Monday to Sunday, named after the year that holds
    /// the Thursday.
    pub weekly: Option<u32>,
    /// The newest of each of so many months.
    pub monthly: Option<u32>,
    /// The newest of each of so many years.
    pub yearly: Option<u32>,
    /// All that are newer than this long before the VM's newest snapshot, as in restic: a VM that is no
    /// longer backed up does not fade away. One exactly that old is not newer.
    pub within: Option<Within>,
    /// All that carry at least one of these tags.
    pub keep_tags: Vec<String>,
}

impl Policy {
    /// Whether no rule is there.
    pub fn is_empty(&self) -> bool {
        self.keep_tags.is_empty()
            && self.within.is_none()
            && self.last.unwrap_or(0) == 0
            && self.periods().is_empty()
    }

    fn periods(&self) -> Vec<PeriodRule> {
        [
            ("hourly", self.hourly, "%Y-%m-%dT%H%:z"),
            ("daily", self.daily, "%Y-%m-%d"),
            ("weekly", self.weekly, "%G-W%V"),
            ("monthly", self.monthly, "%Y-%m"),
            ("yearly", self.yearly, "%Y"),
        ]
        .into_iter()
        .filter_map(|(name, count, format)| match count {
            None | Some(0) => None,
            Some(count) => Some(PeriodRule {
                name,
                count,
                format,
                seen: BTreeSet::new(),
            }),
        })
        .collect()
    }
}

/// What becomes of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The snapshot.
    pub id: SnapshotId,
    /// The VM it belongs to.
    pub vm: String,
    /// When it was taken.
    pub time: Timestamp,
    /// Whether it stays; if not, it may be pruned.
    pub keep: bool,
    /// Why it stays, as in `last 7` or `daily 2026-11-22`; empty exactly if it does not.
    pub reasons: Vec<String>,
}

/// A policy cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No rule at all: it would keep nothing but the newest and the protected snapshots.
    #[error(
        "retention policy has no rule and would prune nearly everything: give at least one of last, hourly, daily, weekly, monthly, yearly (a number above 0), within or a tag to keep"
    )]
    Empty,
}

/// Decides for every snapshot whether `policy` keeps it; calendars are those of `tz`.
///
/// The decisions are ordered by VM, then newest first (the larger id first among equal times), and do
/// not depend on the order of `snapshots`. A snapshot listed twice is decided once.
///
/// There is no clock here: a snapshot whose time lies in the future, because a host's clock was wrong,
/// counts as the newest of its VM, uses up periods, and `within` is counted back from it.
///
/// # Errors
/// [`PolicyError::Empty`] if the policy has no rule.
pub fn plan(
    snapshots: &[SnapshotSummary],
    policy: &Policy,
    tz: &TimeZone,
) -> Result<Vec<Decision>, PolicyError> {
    if policy.is_empty() {
        return Err(PolicyError::Empty);
    }
    let mut vms: BTreeMap<&str, Vec<&SnapshotSummary>> = BTreeMap::new();
    for snapshot in snapshots {
        vms.entry(&snapshot.vm).or_default().push(snapshot);
    }
    let plans = vms.into_values().map(|group| plan_vm(group, policy, tz));
    Ok(plans.flatten().collect())
}

fn plan_vm(mut group: Vec<&SnapshotSummary>, policy: &Policy, tz: &TimeZone) -> Vec<Decision> {
    group.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.age_key()));
    group.dedup_by_key(|snapshot| snapshot.id);
    let mut rules = Rules::new(policy, group[0].time, tz);
    let decide = |(rank, snapshot): (usize, &&SnapshotSummary)| {
        let reasons = rules.reasons(rank, snapshot);
        Decision {
            id: snapshot.id,
            vm: snapshot.vm.clone(),
            time: snapshot.time,
            keep: !reasons.is_empty(),
            reasons,
        }
    };
    group.iter().enumerate().map(decide).collect()
}

/// The rules of a policy on their way through one VM's snapshots, newest first.
struct Rules<'a> {
    policy: &'a Policy,
    tz: &'a TimeZone,
    /// Snapshots after this moment are within the policy's `within`.
    cutoff: Option<(Within, Timestamp)>,
    periods: Vec<PeriodRule>,
}

impl<'a> Rules<'a> {
    fn new(policy: &'a Policy, newest: Timestamp, tz: &'a TimeZone) -> Self {
        Self {
            policy,
            tz,
            cutoff: policy
                .within
                .map(|within| (within, within.before(newest, tz))),
            periods: policy.periods(),
        }
    }

    /// Why `snapshot` stays, the `rank`-th newest of its VM, counted from zero.
    fn reasons(&mut self, rank: usize, snapshot: &SnapshotSummary) -> Vec<String> {
        let mut reasons = Vec::new();
        if snapshot.protected {
            reasons.push("protected".to_owned());
        }
        if let Some(until) = snapshot.locked_until {
            let until = until.to_zoned(self.tz.clone());
            reasons.push(format!(
                "locked until {}",
                until.strftime("%Y-%m-%dT%H:%M:%S%:z")
            ));
        }
        let keep_tags = &self.policy.keep_tags;
        let tags = snapshot.tags.iter().filter(|tag| keep_tags.contains(tag));
        reasons.extend(tags.map(|tag| format!("tag '{tag}'")));
        if let Some(last) = self.policy.last.filter(|last| rank < *last as usize) {
            reasons.push(format!("last {last}"));
        }
        let local = snapshot.time.to_zoned(self.tz.clone());
        reasons.extend(
            self.periods
                .iter_mut()
                .filter_map(|rule| rule.reason(&local)),
        );
        if let Some((within, _)) = self.cutoff.filter(|(_, cutoff)| snapshot.time > *cutoff) {
            reasons.push(format!("within {within}"));
        }
        if reasons.is_empty() && rank == 0 {
            reasons.push("newest of its VM".to_owned());
        }
        reasons
    }
}

/// Keeps the first snapshot it meets in each of its first `count` periods.
struct PeriodRule {
    name: &'static str,
    count: u32,
    /// Gives each period a name of its own (strftime).
    format: &'static str,
    /// A set, not the last period met: where clocks go back over midnight, a day comes twice.
    seen: BTreeSet<String>,
}

impl PeriodRule {
    fn reason(&mut self, time: &Zoned) -> Option<String> {
        if self.seen.len() >= self.count as usize {
            return None;
        }
        let period = time.strftime(self.format).to_string();
        let reason = format!("{} {period}", self.name);
        self.seen.insert(period).then_some(reason)
    }
}

impl fmt::Display for Decision {
    /// One line, time in UTC: `keep 0a1b2c3d web01 2026-11-22T02:00:00Z (last 7, daily 2026-11-22)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.keep { "keep" } else { "prune" };
        write!(f, "{verb} {} {} {}", self.id.short(), self.vm, self.time)?;
        if self.keep {
            write!(f, " ({})", self.reasons.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, civil};
    use proptest::prelude::*;

    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn snapshot(number: usize, time: Timestamp) -> SnapshotSummary {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64).to_be_bytes());
        SnapshotSummary {
            id: SnapshotId::from_bytes(id),
            vm: "web01".to_owned(),
            time,
            tags: Vec::new(),
            protected: false,
            locked_until: None,
        }
    }

    fn snapshots(times: &[&str]) -> Vec<SnapshotSummary> {
        let times = times.iter().map(|time| time.parse().unwrap());
        times
            .enumerate()
            .map(|(n, time)| snapshot(n, time))
            .collect()
    }

    /// Noon of every `step`-th day from `first`, `count` times.
    fn noons(first: civil::Date, step: i64, count: i64) -> Vec<SnapshotSummary> {
        let noon = |n| {
            let day = first.checked_add(SignedDuration::from_hours(24 * step * n));
            let noon = day.unwrap().at(12, 0, 0, 0);
            noon.to_zoned(TimeZone::UTC).unwrap().timestamp()
        };
        (0..count).map(|n| snapshot(n as usize, noon(n))).collect()
    }

    /// What is kept, newest first: the time in `tz` and the reasons.
    fn kept(snapshots: &[SnapshotSummary], policy: &Policy, tz: &TimeZone) -> Vec<String> {
        let line = |decision: Decision| {
            let offset = tz.to_offset(decision.time);
            let time = decision.time.display_with_offset(offset).to_string();
            format!("{time} {}", decision.reasons.join(", "))
        };
        let decisions = plan(snapshots, policy, tz).unwrap();
        decisions.into_iter().filter(|d| d.keep).map(line).collect()
    }

    fn days(kept: &[String]) -> Vec<&str> {
        kept.iter().map(|line| &line[..10]).collect()
    }

    #[test]
    fn policy_without_a_rule_is_refused() {
        let zeros = Policy {
            last: Some(0),
            daily: Some(0),
            ..Policy::default()
        };
        for policy in [Policy::default(), zeros] {
            let planned = plan(&snapshots(&["2026-11-22T03:00Z"]), &policy, &TimeZone::UTC);
            assert_eq!(planned, Err(PolicyError::Empty));
        }
    }

    #[test]
    fn no_snapshots_need_no_decisions() {
        let policy = Policy {
            last: Some(1),
            ..Policy::default()
        };
        assert_eq!(plan(&[], &policy, &TimeZone::UTC), Ok(Vec::new()));
    }

    /// The first example of restic's documentation of `forget`: a backup every Sunday, `--keep-daily 4`
    /// keeps the last four Sundays, for days without a backup do not count.
    #[test]
    fn daily_rule_skips_days_without_a_snapshot() {
        let sundays = noons(civil::date(2026, 1, 4), 7, 12);
        let policy = Policy {
            daily: Some(4),
            ..Policy::default()
        };
        let kept = kept(&sundays, &policy, &TimeZone::UTC);
        let expected = ["2026-03-22", "2026-03-15", "2026-03-08", "2026-03-01"];
        assert_eq!(days(&kept), expected);
    }

    /// The second example there, over ten years: a backup a day, 7 daily, 5 weekly, 12 monthly and
    /// 75 yearly. The last day serves all four rules.
    #[test]
    fn daily_snapshots_thin_out_towards_the_past() {
        let every_day = noons(civil::date(2017, 1, 1), 1, 3612);
        let policy = Policy {
            daily: Some(7),
            weekly: Some(5),
            monthly: Some(12),
            yearly: Some(75),
            ..Policy::default()
        };
        let expected = [
            "2026-11-21 daily 2026-11-21, weekly 2026-W47, monthly 2026-11, yearly 2026",
            "2026-11-20 daily 2026-11-20",
            "2026-11-19 daily 2026-11-19",
            "2026-11-18 daily 2026-11-18",
            "2026-11-17 daily 2026-11-17",
            "2026-11-16 daily 2026-11-16",
            "2026-11-15 daily 2026-11-15, weekly 2026-W46",
            "2026-11-08 weekly 2026-W45",
            "2026-11-01 weekly 2026-W44",
            "2026-10-31 monthly 2026-10",
            "2026-10-25 weekly 2026-W43",
            "2026-09-30 monthly 2026-09",
            "2026-08-31 monthly 2026-08",
            "2026-07-31 monthly 2026-07",
            "2026-06-30 monthly 2026-06",
            "2026-05-31 monthly 2026-05",
            "2026-04-30 monthly 2026-04",
            "2026-03-31 monthly 2026-03",
            "2026-02-28 monthly 2026-02",
            "2026-01-31 monthly 2026-01",
            "2025-12-31 monthly 2025-12, yearly 2025",
            "2024-12-31 yearly 2024",
            "2023-12-31 yearly 2023",
            "2022-12-31 yearly 2022",
            "2021-12-31 yearly 2021",
            "2020-12-31 yearly 2020",
            "2019-12-31 yearly 2019",
            "2018-12-31 yearly 2018",
            "2017-12-31 yearly 2017",
        ];
        let kept: Vec<String> = kept(&every_day, &policy, &TimeZone::UTC)
            .iter()
            .map(|line| line.replace("T12:00:00+00:00", ""))
            .collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn newest_of_a_period_is_kept() {
        let times = [
            "2026-11-21T01:00Z",
            "2026-11-21T23:00Z",
            "2026-11-22T09:00Z",
            "2026-11-22T08:00Z",
        ];
        let policy = Policy {
            daily: Some(9),
            ..Policy::default()
        };
        let expected = [
            "2026-11-22T09:00:00+00:00 daily 2026-11-22",
            "2026-11-21T23:00:00+00:00 daily 2026-11-21",
        ];
        assert_eq!(kept(&snapshots(&times), &policy, &TimeZone::UTC), expected);
    }

    #[test]
    fn days_are_those_of_the_time_zone() {
        let times = ["2026-11-21T22:30Z", "2026-11-21T23:30Z"];
        let policy = Policy {
            daily: Some(9),
            ..Policy::default()
        };
        assert_eq!(kept(&snapshots(&times), &policy, &TimeZone::UTC).len(), 1);
        assert_eq!(kept(&snapshots(&times), &policy, &berlin()).len(), 2);
    }

    /// 2020 has a week 53; the first days of 2021 and 2023 belong to a week of the year before, and
    /// 2024-12-30 to the first week of 2025.
    #[test]
    fn weeks_are_iso_weeks_across_the_turn_of_the_year() {
        let times = [
            "2020-12-27T12:00Z",
            "2020-12-28T12:00Z",
            "2021-01-03T12:00Z",
            "2021-01-04T12:00Z",
            "2022-12-31T12:00Z",
            "2023-01-01T12:00Z",
            "2023-01-02T12:00Z",
            "2024-12-29T12:00Z",
            "2024-12-30T12:00Z",
            "2025-01-05T12:00Z",
        ];
        let policy = Policy {
            weekly: Some(99),
            yearly: Some(99),
            ..Policy::default()
        };
        let expected = [
            "2025-01-05T12:00:00+00:00 weekly 2025-W01, yearly 2025",
            "2024-12-30T12:00:00+00:00 yearly 2024",
            "2024-12-29T12:00:00+00:00 weekly 2024-W52",
            "2023-01-02T12:00:00+00:00 weekly 2023-W01, yearly 2023",
            "2023-01-01T12:00:00+00:00 weekly 2022-W52",
            "2022-12-31T12:00:00+00:00 yearly 2022",
            "2021-01-04T12:00:00+00:00 weekly 2021-W01, yearly 2021",
            "2021-01-03T12:00:00+00:00 weekly 2020-W53",
            "2020-12-28T12:00:00+00:00 yearly 2020",
            "2020-12-27T12:00:00+00:00 weekly 2020-W52",
        ];
        assert_eq!(kept(&snapshots(&times), &policy, &TimeZone::UTC), expected);
    }

    #[test]
    fn hour_repeated_when_clocks_go_back_counts_twice() {
        let times = [
            "2026-10-25T01:50+02:00",
            "2026-10-25T02:10+02:00",
            "2026-10-25T02:50+02:00",
            "2026-10-25T02:10+01:00",
            "2026-10-25T02:50+01:00",
            "2026-10-25T03:10+01:00",
        ];
        let policy = Policy {
            hourly: Some(3),
            ..Policy::default()
        };
        let expected = [
            "2026-10-25T03:10:00+01:00 hourly 2026-10-25T03+01:00",
            "2026-10-25T02:50:00+01:00 hourly 2026-10-25T02+01:00",
            "2026-10-25T02:50:00+02:00 hourly 2026-10-25T02+02:00",
        ];
        assert_eq!(kept(&snapshots(&times), &policy, &berlin()), expected);
    }

    #[test]
    fn hour_skipped_when_clocks_go_forward_costs_nothing() {
        let times = [
            "2026-03-29T00:30+01:00",
            "2026-03-29T01:30+01:00",
            "2026-03-29T03:30+02:00",
        ];
        let policy = Policy {
            hourly: Some(2),
            ..Policy::default()
        };
        let expected = [
            "2026-03-29T03:30:00+02:00 hourly 2026-03-29T03+02:00",
            "2026-03-29T01:30:00+01:00 hourly 2026-03-29T01+01:00",
        ];
        assert_eq!(kept(&snapshots(&times), &policy, &berlin()), expected);
    }

    #[test]
    fn days_of_23_and_25_hours_are_one_day_each() {
        let times = [
            "2026-03-29T00:00+01:00",
            "2026-03-29T23:59+02:00",
            "2026-10-25T00:00+02:00",
            "2026-10-25T23:59+01:00",
        ];
        let policy = Policy {
            daily: Some(9),
            ..Policy::default()
        };
        assert_eq!(
            days(&kept(&snapshots(&times), &policy, &berlin())),
            ["2026-10-25", "2026-03-29"]
        );
    }

    /// Newfoundland's clocks went back at 00:01, so that the evening before came a second time.
    #[test]
    fn day_that_comes_twice_is_one_period() {
        let newfoundland = TimeZone::posix("NST3:30NDT,M3.2.0/0:01,M11.1.0/0:01").unwrap();
        let times = [
            "2009-10-31T23:30-02:30",
            "2009-11-01T00:00:30-02:30",
            "2009-10-31T23:30-03:30",
            "2009-11-01T00:30-03:30",
        ];
        let policy = Policy {
            daily: Some(9),
            ..Policy::default()
        };
        let expected = [
            "2009-11-01T00:30:00-03:30 daily 2009-11-01",
            "2009-10-31T23:30:00-03:30 daily 2009-10-31",
        ];
        assert_eq!(kept(&snapshots(&times), &policy, &newfoundland), expected);
    }

    #[test]
    fn within_counts_from_the_newest_and_excludes_its_end() {
        let times = [
            "2026-10-23T03:00+02:00",
            "2026-10-23T03:00:01+02:00",
            "2026-11-01T03:00+01:00",
            "2026-11-22T03:00+01:00",
        ];
        let policy = Policy {
            within: Some("30d".parse().unwrap()),
            ..Policy::default()
        };
        let expected = [
            "2026-11-22T03:00:00+01:00 within 30d",
            "2026-11-01T03:00:00+01:00 within 30d",
            "2026-10-23T03:00:01+02:00 within 30d",
        ];
        assert_eq!(kept(&snapshots(&times), &policy, &berlin()), expected);
    }

    #[test]
    fn tags_and_protection_keep_without_using_up_a_rule() {
        let mut snapshots = snapshots(&[
            "2026-11-19T03:00Z",
            "2026-11-20T03:00Z",
            "2026-11-21T03:00Z",
        ]);
        snapshots[0].protected = true;
        snapshots[1].tags = vec!["before-upgrade".to_owned(), "gold".to_owned()];
        let keep_tags = vec!["gold".to_owned(), "silver".to_owned()];
        let policy = Policy {
            keep_tags,
            ..Policy::default()
        };
        let expected = [
            "2026-11-21T03:00:00+00:00 newest of its VM",
            "2026-11-20T03:00:00+00:00 tag 'gold'",
            "2026-11-19T03:00:00+00:00 protected",
        ];
        assert_eq!(kept(&snapshots, &policy, &TimeZone::UTC), expected);
    }

    #[test]
    fn snapshot_listed_twice_is_decided_once() {
        let mut twice = snapshots(&["2026-11-21T03:00Z", "2026-11-22T03:00Z"]);
        twice.extend(twice.clone());
        let policy = Policy {
            last: Some(2),
            ..Policy::default()
        };
        assert_eq!(kept(&twice, &policy, &TimeZone::UTC).len(), 2);
        assert_eq!(plan(&twice, &policy, &TimeZone::UTC).unwrap().len(), 2);
    }

    #[test]
    fn decisions_come_by_vm_then_newest_first_and_print_as_a_line() {
        let mut snapshots = snapshots(&[
            "2026-11-22T03:00Z",
            "2026-11-22T03:00Z",
            "2026-11-21T03:00Z",
        ]);
        snapshots.push(snapshot(3, "2020-01-01T00:00Z".parse().unwrap()));
        snapshots[3].vm = "mail".to_owned();
        let policy = Policy {
            last: Some(1),
            ..Policy::default()
        };
        let decisions = plan(&snapshots, &policy, &TimeZone::UTC).unwrap();
        let order: Vec<_> = decisions.iter().map(|d| d.id).collect();
        assert_eq!(order, [3, 1, 0, 2].map(|n: usize| snapshots[n].id));
        assert_eq!(
            decisions[0].to_string(),
            "keep 00000000 mail 2020-01-01T00:00:00Z (last 1)"
        );
        assert_eq!(
            decisions[3].to_string(),
            "prune 00000000 web01 2026-11-21T03:00:00Z"
        );
    }

    fn any_snapshots() -> impl Strategy<Value = Vec<SnapshotSummary>> {
        // Steps of ten minutes through three years, so that hours hold several and times coincide.
        let one = (0..3u8, 0..158_000i64, any::<u8>(), 0..8u8, 0..20u8);
        prop::collection::vec(one, 0..120).prop_map(|list| {
            let make = |(n, (vm, step, noise, tag, protected)): (usize, (u8, i64, u8, u8, u8))| {
                let mut id = [noise; 16];
                id[8..].copy_from_slice(&(n as u64).to_be_bytes());
                SnapshotSummary {
                    id: SnapshotId::from_bytes(id),
                    vm: format!("vm{vm}"),
                    time: Timestamp::from_second(1_700_000_000 + step * 600).unwrap(),
                    tags: (tag < 2).then(|| format!("tag{tag}")).into_iter().collect(),
                    protected: protected == 0,
                    locked_until: None,
                }
            };
            list.into_iter().enumerate().map(make).collect()
        })
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let count = || prop::option::weighted(0.4, 0..20u32);
        let within = prop::option::weighted(0.3, "[1-9][0-9]?[ymwdh]");
        let keep_tags = prop::collection::vec("tag[01]", 0..2);
        let counts = (count(), count(), count(), count(), count(), count());
        (counts, within, keep_tags)
            .prop_map(
                |((last, hourly, daily, weekly, monthly, yearly), within, keep_tags)| {
                    let within = within.map(|text| text.parse().unwrap());
                    Policy {
                        last,
                        hourly,
                        daily,
                        weekly,
                        monthly,
                        yearly,
                        within,
                        keep_tags,
                    }
                },
            )
            .prop_filter("has a rule", |policy| !policy.is_empty())
    }

    fn any_zone() -> impl Strategy<Value = TimeZone> {
        let zones = [
            "UTC0",
            "CET-1CEST,M3.5.0,M10.5.0/3",
            "NST3:30NDT,M3.2.0/0:01,M11.1.0/0:01",
            "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
        ];
        prop::sample::select(zones.map(|zone| TimeZone::posix(zone).unwrap()).to_vec())
    }

    fn kept_ids(
        snapshots: &[SnapshotSummary],
        policy: &Policy,
        tz: &TimeZone,
    ) -> BTreeSet<SnapshotId> {
        let decisions = plan(snapshots, policy, tz).unwrap();
        decisions
            .into_iter()
            .filter(|d| d.keep)
            .map(|d| d.id)
            .collect()
    }

    proptest! {
        #[test]
        fn every_snapshot_is_decided_once(all in any_snapshots(), policy in any_policy(), tz in any_zone()) {
            let decisions = plan(&all, &policy, &tz).unwrap();
            let decided: BTreeSet<_> = decisions.iter().map(|d| d.id).collect();
            prop_assert_eq!(decisions.len(), all.len());
            prop_assert_eq!(decided, all.iter().map(|s| s.id).collect());
            prop_assert!(decisions.iter().all(|d| d.keep != d.reasons.is_empty()));
            let ordered = |pair: &[Decision]| {
                let [one, next] = pair else { return true };
                one.vm < next.vm || one.vm == next.vm && (one.time, one.id) > (next.time, next.id)
            };
            prop_assert!(decisions.windows(2).all(ordered));
        }

        #[test]
        fn newest_of_every_vm_is_kept(all in any_snapshots(), policy in any_policy(), tz in any_zone()) {
            let kept = kept_ids(&all, &policy, &tz);
            let mut newest = BTreeMap::new();
            for snapshot in &all {
                let entry = newest.entry(&snapshot.vm).or_insert(snapshot.age_key());
                *entry = snapshot.age_key().max(*entry);
            }
            prop_assert!(newest.values().all(|(_, id)| kept.contains(id)));
        }

        #[test]
        fn protected_snapshots_are_kept(all in any_snapshots(), policy in any_policy(), tz in any_zone()) {
            let kept = kept_ids(&all, &policy, &tz);
            prop_assert!(all.iter().filter(|s| s.protected).all(|s| kept.contains(&s.id)));
        }

        #[test]
        fn planning_over_what_was_kept_keeps_all_for_the_same_reasons(
            all in any_snapshots(), policy in any_policy(), tz in any_zone(),
        ) {
            let first: Vec<_> = plan(&all, &policy, &tz).unwrap().into_iter().filter(|d| d.keep).collect();
            let ids: BTreeSet<_> = first.iter().map(|d| d.id).collect();
            let rest: Vec<_> = all.into_iter().filter(|s| ids.contains(&s.id)).collect();
            prop_assert_eq!(plan(&rest, &policy, &tz).unwrap(), first);
        }

        #[test]
        fn order_of_the_list_does_not_matter(
            (all, shuffled) in any_snapshots().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            policy in any_policy(), tz in any_zone(),
        ) {
            prop_assert_eq!(plan(&all, &policy, &tz), plan(&shuffled, &policy, &tz));
        }

        #[test]
        fn larger_numbers_never_keep_less(
            all in any_snapshots(), policy in any_policy(), tz in any_zone(), more in prop::array::uniform6(0..5u32),
        ) {
            let grow = |count: Option<u32>, by: u32| Some(count.unwrap_or(0) + by);
            let larger = Policy {
                last: grow(policy.last, more[0]),
                hourly: grow(policy.hourly, more[1]),
                daily: grow(policy.daily, more[2]),
                weekly: grow(policy.weekly, more[3]),
                monthly: grow(policy.monthly, more[4]),
                yearly: grow(policy.yearly, more[5]),
                keep_tags: vec!["tag0".to_owned(), "tag1".to_owned()],
                ..policy.clone()
            };
            prop_assert!(kept_ids(&all, &policy, &tz).is_subset(&kept_ids(&all, &larger, &tz)));
        }

        /// What goes from one VM's plan does not depend on the other VMs.
        #[test]
        fn vms_are_planned_apart(all in any_snapshots(), policy in any_policy(), tz in any_zone()) {
            let alone = |vm: &str| {
                let own: Vec<_> = all.iter().filter(|s| s.vm == vm).cloned().collect();
                plan(&own, &policy, &tz).unwrap()
            };
            let apart = ["vm0", "vm1", "vm2"].map(alone).concat();
            prop_assert_eq!(plan(&all, &policy, &tz).unwrap(), apart);
        }

        /// Against the definition, written out for one rule: group by month, newest of each, last N.
        #[test]
        fn monthly_rule_is_its_definition(all in any_snapshots(), count in 1..40u32, tz in any_zone()) {
            let mut months: BTreeMap<(&str, i16, i8), (Timestamp, SnapshotId)> = BTreeMap::new();
            for snapshot in &all {
                let date = snapshot.time.to_zoned(tz.clone()).date();
                let month = months.entry((&snapshot.vm, date.year(), date.month())).or_insert(snapshot.age_key());
                *month = snapshot.age_key().max(*month);
            }
            let mut expected: BTreeSet<_> = all.iter().filter(|s| s.protected).map(|s| s.id).collect();
            for vm in ["vm0", "vm1", "vm2"] {
                let of_vm = months.iter().rev().filter(|((name, ..), _)| *name == vm);
                expected.extend(of_vm.take(count as usize).map(|(_, (_, id))| *id));
            }
            let policy = Policy { monthly: Some(count), ..Policy::default() };
            prop_assert_eq!(kept_ids(&all, &policy, &tz), expected);
        }
    }
}
