//! `undercroft diff`.

use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::repository::diff::diff_disks;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
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
/// JSON: an array of objects with disk, start, length, in bytes.
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

#[derive(Serialize)]
struct ChangedRange<'a> {
    disk: &'a str,
    start: u64,
    length: u64,
}

struct DiskDifference<'a> {
    disk: &'a str,
    ranges: RangeSet,
    note: Option<String>,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let read = access::read_pinned(settings, Key::IfGiven, &[args.a, args.b])?;
    let [a, b] = &read.snapshots[..] else {
        unreachable!("two were asked for");
    };
    let mut differences = Vec::new();
    for label in labels(a, b, args.disk.as_deref())? {
        differences.push(difference(&*read.repository, label, a, b)?);
    }
    let json: Vec<_> = differences.iter().flat_map(ranges).collect();
    report::emit(settings, &json, |text| {
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
    let (ranges, note) = match (a.snapshot.disk(disk), b.snapshot.disk(disk)) {
        (Some(in_a), Some(in_b)) => {
            let note = (in_a.size != in_b.size).then(|| {
                format!(
                    "size {} -> {}",
                    Size(in_a.size.get()),
                    Size(in_b.size.get())
                )
            });
            (diff_disks(repository.objects(), in_a, in_b)?, note)
        }
        (one, other) => {
            let only = if one.is_some() { a } else { b };
            let size = one.or(other).map_or(0, |disk| disk.size.get());
            let note = format!("only in {}", only.id.short());
            (RangeSet::whole(size), Some(note))
        }
    };
    Ok(DiskDifference { disk, ranges, note })
}

fn ranges<'a>(difference: &'a DiskDifference<'_>) -> impl Iterator<Item = ChangedRange<'a>> {
    let ranges = difference.ranges.ranges().iter();
    ranges.map(|range| ChangedRange {
        disk: difference.disk,
        start: range.start,
        length: range.len(),
    })
}

fn write(text: &mut String, difference: &DiskDifference<'_>) {
    let note = match &difference.note {
        Some(note) => format!(" ({note})"),
        None => String::new(),
    };
    line!(
        text,
        "{}: {} in {}{note}",
        difference.disk,
        Size(difference.ranges.bytes()),
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
