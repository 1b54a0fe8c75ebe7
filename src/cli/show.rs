//! `undercroft show`.

use std::time::Duration;

use undercroft_control::SnapshotSpec;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;

use crate::access;
use crate::catalog::Catalog;
use crate::failure::Outcome;
use crate::report::{self, line};
use crate::settings::Settings;
use crate::snapshot_view::{SnapshotView, Totals, disk_table, lock_that_holds};
use crate::units::{Size, Took, local_time, ratio, timestamp};

/// Show a snapshot: its disks, what they cost, and why
///
/// JSON: an object like those of `undercroft snapshots`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which one
    snapshot: SnapshotSpec,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let repository = access::list(settings, &[])?;
    let catalog = Catalog::read(settings, &*repository)?;
    let stored = catalog.resolve(&args.snapshot)?;
    catalog.warn_unreadable();
    report::emit(settings, &SnapshotView::of(stored), |text| {
        write(text, settings, stored);
    })?;
    Ok(Outcome::Done)
}

fn write(text: &mut String, settings: &Settings, stored: &StoredSnapshot) {
    let snapshot = &stored.snapshot;
    let totals = Totals::of(snapshot);
    let time = timestamp(snapshot.created_ms);
    line!(text, "Snapshot   {}", stored.id);
    line!(text, "VM         {}", snapshot.vm);
    line!(text, "Time       {}", local_time(time, &settings.time_zone));
    line!(
        text,
        "Took       {}",
        Took(Duration::from_millis(snapshot.duration_ms))
    );
    if let Some(parent) = snapshot.parent {
        line!(text, "Parent     {parent}");
    }
    if !snapshot.tags.is_empty() {
        line!(text, "Tags       {}", snapshot.tags.join(", "));
    }
    if stored.protected {
        line!(text, "Protected  yes");
    }
    if let Some(until) = stored.locked_until {
        let until = timestamp(until.as_millis());
        let until = local_time(until, &settings.time_zone);
        let over = match lock_that_holds(stored) {
            None => ", which has passed",
            Some(_) => "",
        };
        line!(text, "Locked     until {until}{over}");
    }
    if stored.incomplete {
        line!(
            text,
            "Incomplete yes: a repair found that it lost something"
        );
    }
    if let Some(metadata) = &snapshot.metadata {
        line!(text, "Metadata   {}, {}", metadata.name, Size(metadata.len));
    }
    line!(
        text,
        "Data       {} of {}, {} read, {} new, {} stored and {} of maps: dedup ratio {}",
        Size(totals.data_bytes),
        Size(totals.size),
        Size(totals.read_bytes),
        Size(totals.new_bytes),
        Size(totals.stored_bytes),
        Size(totals.metadata_bytes),
        ratio(totals.data_bytes, totals.added()),
    );
    line!(text);
    disk_table(snapshot).write(text);
    for disk in &snapshot.disks {
        line!(text);
        line!(text, "{}: from {}", disk.label, disk.source);
        for (name, value) in &disk.lineage {
            line!(text, "  {name} = {value}");
        }
    }
}
