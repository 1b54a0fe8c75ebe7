//! `undercroft diff`.

use serde::{Serialize, Serializer};
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::repository::diff::diff_disks;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::id::SnapshotId;
use undercroft_format::ranges::RangeSet;

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
    report::emit(settings, &differences, |text| {
        for difference in &differences {
            write(text, difference);
        }
    })?;
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
