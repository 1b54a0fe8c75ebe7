//! `undercroft repair`.

use undercroft_dataplane::repository::repair::RepairReport;
use undercroft_format::id::SnapshotId;
use undercroft_format::wire::frame::FrameType;

use crate::access;
use crate::failure::Outcome;
use crate::progress::Activity;
use crate::report::{self, line};
use crate::settings::{Key, Settings};
use crate::units::count;
use crate::work::Work;

/// Set damaged data aside, so that the next backup sends it again
///
/// What is good in damaged packs is copied to new ones; the damaged files move to `damaged/` in the
/// repository. Snapshots that lost something are marked as incomplete, and as whole again when a later
/// backup has brought back what they lost: all chunks that a full read cuts as well. Lost maps, and chunks
/// at the edges of changed blocks, come back only as long as the disk is backed up the same way again; a
/// snapshot that stays incomplete is best forgotten once a newer one is whole. Exit code 3 if something cannot be restored now.
///
/// JSON: damage (path, position, problem), packs_replaced, records_lost, snapshots_removed,
/// markers_rewritten, snapshots_incomplete, snapshots_whole_again, affected (snapshot, vm, disk, range,
/// problem).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Find damage by decoding and hashing every record
    #[arg(long)]
    deep: bool,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let key = if args.deep { Key::Needed } else { Key::IfGiven };
    let report = access::maintain(
        settings,
        "repair",
        &[FrameType::Repair],
        key,
        |maintenance| {
            let work = Work::start(
                settings,
                Activity {
                    name: "repair",
                    // It is only for progress: what stands in the way, the work itself tells.
                    total_bytes: maintenance.pack_bytes().unwrap_or_default(),
                },
            )?;
            Ok(maintenance.repair(args.deep, &work.threads, &work.progress)?)
        },
    )?;
    report::emit(settings, &report, |text| write(text, &report))?;
    Ok(Outcome::of(
        !report.affected.is_empty() || !report.snapshots_removed.is_empty(),
    ))
}

fn write(text: &mut String, report: &RepairReport) {
    if report.damage.is_empty() {
        let what = match report.affected.is_empty() {
            true => "No damage",
            false => "No damaged files, but data is missing",
        };
        line!(text, "{what}");
    } else {
        line!(text, "Damage set aside:");
        report::write_damage(text, &report.damage);
        line!(
            text,
            "{} replaced, {} lost until a backup sends the data again",
            count(report.packs_replaced, "pack"),
            count(report.records_lost, "record")
        );
    }
    list(
        text,
        "Unreadable, in damaged/ now",
        &report.snapshots_removed,
    );
    list(text, "Protected as before", &report.markers_rewritten);
    list(text, "Incomplete", &report.snapshots_incomplete);
    list(text, "Whole again", &report.snapshots_whole_again);
    if !report.affected.is_empty() {
        line!(text, "Cannot be restored now:");
        report::write_affected(text, &report.affected);
    }
}

fn list(text: &mut String, what: &str, snapshots: &[SnapshotId]) {
    if !snapshots.is_empty() {
        let ids: Vec<_> = snapshots.iter().map(SnapshotId::short).collect();
        line!(text, "{what}: {}", ids.join(", "));
    }
}
