//! `undercroft verify`.

use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::repository::damage::Damage;
use undercroft_dataplane::repository::layout;
use undercroft_dataplane::repository::verify::{VerifyOptions, VerifyReport};
use undercroft_format::wire::frame::FrameType;

use crate::access::{self, PinnedRead};
use crate::failure::{Outcome, warn};
use crate::progress::Activity;
use crate::report::{self, line};
use crate::settings::{Key, Settings};
use crate::units::{Size, Took, count};
use crate::work::Work;

/// Check that what is stored is what was written
///
/// Reads every record and checks its checksum, and walks the maps of all snapshots to see that nothing is
/// missing; no key is needed. With --deep every record is decoded and hashed to its id. Says which ranges
/// of which disks of which snapshots are damaged, and ends with exit code 3 if any are.
///
/// JSON: snapshots, packs, records, bytes, unsealed_packs, damage (path, position, problem), affected
/// (snapshot, vm, disk, range, problem), deep, duration_ms.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Decode every record and hash it to its id
    #[arg(long)]
    deep: bool,
    /// Only what these snapshots use
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<SnapshotSpec>,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    found: &'a VerifyReport,
    deep: bool,
    duration_ms: u64,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let key = if args.deep { Key::Needed } else { Key::IfGiven };
    let read = open(settings, key, &args.snapshots)?;
    let work = Work::start(
        settings,
        Activity {
            name: "verify",
            total_bytes: match args.snapshots.is_empty() {
                // It is only for progress: what stands in the way, the work itself tells.
                true => read.maintenance.pack_bytes().unwrap_or_default(),
                false => 0,
            },
        },
    )?;
    let clock = Stopwatch::start();
    let options = VerifyOptions {
        deep: args.deep,
        snapshots: match args.snapshots.is_empty() {
            true => Vec::new(),
            false => read.snapshots.iter().map(|stored| stored.id).collect(),
        },
    };
    let found = read
        .maintenance
        .verify(&options, &work.threads, &work.progress)?;
    drop(work);
    let took = clock.elapsed();
    let report = Report {
        found: &found,
        deep: args.deep,
        duration_ms: took.as_millis() as u64,
    };
    report::emit(settings, &report, |text| {
        line!(
            text,
            "Checked {} in {} ({}) of {} in {}",
            count(found.records, "record"),
            count(found.packs, "pack"),
            Size(found.bytes),
            count(found.snapshots, "snapshot"),
            Took(took)
        );
        if found.unsealed_packs > 0 {
            line!(
                text,
                "{} of sessions that run or died; nothing published refers to them",
                count(found.unsealed_packs, "unsealed pack")
            );
        }
        write(text, &found);
    })?;
    let damaged = !found.damage.is_empty() || !found.affected.is_empty();
    if damaged {
        warn(format_args!("damage was found; {}", way_out(&found)));
    }
    Ok(Outcome::of(damaged))
}

/// The newest snapshot is pinned in place of all: that keeps a collection from moving data meanwhile.
fn open(settings: &Settings, key: Key, asked: &[SnapshotSpec]) -> anyhow::Result<PinnedRead> {
    let purposes = &[FrameType::Verify];
    if !asked.is_empty() {
        return access::read_pinned(settings, purposes, key, asked);
    }
    access::read_chosen(settings, purposes, key, |catalog| {
        let newest = catalog.snapshots.last();
        Ok(newest.map(|newest| newest.id).into_iter().collect())
    })
}

/// What mends the damage that was found.
fn way_out(found: &VerifyReport) -> &'static str {
    let in_index = |damage: &Damage| damage.path.starts_with(layout::INDEX);
    let in_lock = |damage: &Damage| damage.path == layout::LOCK;
    let none_of_data = found.affected.is_empty()
        && found
            .damage
            .iter()
            .all(|damage| in_index(damage) || in_lock(damage));
    if !none_of_data {
        return "to set it aside, so that the next backup sends the data again, run: undercroft repair";
    }
    match found.damage.iter().any(in_index) {
        true => {
            "no stored data is concerned; to make the index anew, run: undercroft rebuild-index"
        }
        false => {
            "no stored data is concerned: the next command that owns the repository writes its lock anew"
        }
    }
}

fn write(text: &mut String, found: &VerifyReport) {
    if found.damage.is_empty() && found.affected.is_empty() {
        line!(text, "No damage");
        return;
    }
    if !found.damage.is_empty() {
        line!(text, "DAMAGED:");
        report::write_damage(text, &found.damage);
    }
    if found.affected.is_empty() {
        line!(text, "No range of a disk is affected");
    } else {
        line!(text, "Affected:");
        report::write_affected(text, &found.affected);
    }
}
