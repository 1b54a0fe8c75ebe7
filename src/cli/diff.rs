//! `undercroft diff`.

use serde::{Serialize, Serializer};
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::repository::diff::diff_disks;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::id::SnapshotId;
use undercroft_format::ranges::RangeSet;
use undercroft_format::units::DiskRange;

use crate::access;
use crate::failure::{Outcome, Problem};
use crate::report::{self, line};
use crate::settings::{Key, Settings};
use crate::units::{Size, count};

/// List the ranges in which the disks of two snapshots differ
///
/// Compared by what the snapshots refer to, without reading disk data; needs no key. A disk that only
/// one of the two has differs as a whole.
///
/// With --extents the ranges come as a list of extents, as `backup --changed-blocks`, `qemu-img map` and
/// `rbd diff` know it: where B must be read to turn a copy of A's disk into B's.
///
/// JSON: an array with an object per disk: disk, only_in (the id of the one snapshot that has it, or
/// null), size_a, size_b (null where it is not), bytes, ranges (start, end).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The one snapshot
    a: SnapshotSpec,
    /// The other
    b: SnapshotSpec,
    /// Only this disk
    #[arg(long, value_name = "LABEL")]
    disk: Option<String>,
    /// Print the ranges of one disk as a JSON list of extents: offset, length
    #[arg(long)]
    extents: bool,
}

/// A range as lists of extents have it.
#[derive(Serialize)]
struct Extent {
    offset: u64,
    length: u64,
}

/// What differs in a disk, in bytes.
#[derive(Serialize)]
struct DiskDifference<'a> {
    disk: &'a str,
    only_in: Option<SnapshotId>,
    size_a: Option<u64>,
    size_b: Option<u64>,
    bytes: u64,
    #[serde(serialize_with = "serialize_ranges")]
    ranges: RangeSet,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let read = access::read_pinned(settings, &[], Key::IfGiven, &[args.a, args.b])?;
    let [a, b] = &read.snapshots[..] else {
        unreachable!("two were asked for");
    };
    let mut differences = Vec::new();
    for label in labels(a, b, args.disk.as_deref())? {
        differences.push(difference(&*read.repository, label, a, b)?);
    }
    if args.extents {
        return write_extents(&differences, a, b);
    }
    report::emit(settings, &differences, |text| {
        for difference in &differences {
            write(text, difference);
        }
    })?;
    Ok(Outcome::Done)
}

fn write_extents(
    differences: &[DiskDifference<'_>],
    a: &StoredSnapshot,
    b: &StoredSnapshot,
) -> anyhow::Result<Outcome> {
    let [difference] = differences else {
        let labels: Vec<_> = differences.iter().map(|found| found.disk).collect();
        return Err(Problem::usage(format!(
            "a list of extents is of one disk, and these snapshots have {}",
            labels.len()
        ))
        .hint(format!("choose one by --disk LABEL: {}", labels.join(", ")))
        .into());
    };
    if difference.only_in == Some(a.id) {
        return Err(Problem::new(format!(
            "snapshot {} has no disk {:?} to be copied from",
            b.id.short(),
            difference.disk
        ))
        .hint("name the older snapshot first")
        .into());
    }
    // What a longer disk had behind the end of the other is not there to be read.
    let end = difference.size_b.unwrap_or(0);
    let within = difference.ranges.within(DiskRange::new(0, end));
    let extents: Vec<_> = within
        .map(|range| Extent {
            offset: range.start,
            length: range.len(),
        })
        .collect();
    report::print_json(&extents)?;
    Ok(Outcome::Done)
}

fn labels<'a>(
    a: &'a StoredSnapshot,
    b: &'a StoredSnapshot,
    asked: Option<&str>,
) -> anyhow::Result<Vec<&'a str>> {
    let mut labels: Vec<&str> = Vec::new();
    for disk in a.snapshot.disks.iter().chain(&b.snapshot.disks) {
        if !labels.contains(&disk.label.as_str()) {
            labels.push(&disk.label);
        }
    }
    match asked {
        None => Ok(labels),
        Some(asked) => match labels.iter().find(|label| **label == asked) {
            Some(label) => Ok(vec![label]),
            None => Err(
                Problem::new(format!("neither snapshot has a disk {asked:?}"))
                    .hint(format!("the disks are: {}", labels.join(", ")))
                    .into(),
            ),
        },
    }
}

fn difference<'a>(
    repository: &dyn undercroft_dataplane::repository::Repository,
    disk: &'a str,
    a: &StoredSnapshot,
    b: &StoredSnapshot,
) -> anyhow::Result<DiskDifference<'a>> {
    let (in_a, in_b) = (a.snapshot.disk(disk), b.snapshot.disk(disk));
    let (ranges, only_in) = match (in_a, in_b) {
        (Some(in_a), Some(in_b)) => (diff_disks(repository.objects(), in_a, in_b)?, None),
        (one, other) => {
            let only = if one.is_some() { a } else { b };
            let size = one.or(other).map_or(0, |disk| disk.size.get());
            (RangeSet::whole(size), Some(only.id))
        }
    };
    Ok(DiskDifference {
        disk,
        only_in,
        size_a: in_a.map(|disk| disk.size.get()),
        size_b: in_b.map(|disk| disk.size.get()),
        bytes: ranges.bytes(),
        ranges,
    })
}

fn serialize_ranges<S: Serializer>(ranges: &RangeSet, serializer: S) -> Result<S::Ok, S::Error> {
    ranges.ranges().serialize(serializer)
}

fn write(text: &mut String, difference: &DiskDifference<'_>) {
    let note = match (difference.only_in, difference.size_a, difference.size_b) {
        (Some(id), ..) => format!(" (only in {})", id.short()),
        (None, Some(a), Some(b)) if a != b => format!(" (size {} -> {})", Size(a), Size(b)),
        _ => String::new(),
    };
    line!(
        text,
        "{}: {} in {}{note}",
        difference.disk,
        Size(difference.bytes),
        count(difference.ranges.ranges().len() as u64, "range"),
    );
    for range in difference.ranges.ranges() {
        line!(
            text,
            "  {:>14} +{:<12} {}",
            range.start,
            range.len(),
            Size(range.len())
        );
    }
}
