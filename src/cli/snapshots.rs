//! `undercroft snapshots`.

use crate::access;
use crate::catalog::Catalog;
use crate::failure::{Outcome, Problem};
use crate::report::{self, Align, Table, line};
use crate::settings::Settings;
use crate::snapshot_view::{SnapshotView, Totals, lock_that_holds, reasons};
use crate::units::{Size, count, local_time, ratio, timestamp};

/// List snapshots, oldest first
///
/// STORED is what a snapshot added to the repository, RATIO its data over that. Works without the key of
/// an encrypted repository, and beside a process that owns it.
///
/// JSON: an array of objects with id, time, vm, tags, protected, locked_until (or null), incomplete, parent,
/// duration_ms, size, data_bytes, read_bytes, new_bytes, stored_bytes, metadata_bytes, dedup_ratio, disks (label, size,
/// data_bytes, read_bytes, new_bytes, stored_bytes, metadata_bytes, read_mode, reasons, source,
/// segment_size, grid_phase, lineage), metadata (name, len; or null).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Only those of this VM
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// Only those with this tag
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let repository = access::list(settings, &[])?;
    let mut catalog = Catalog::read(settings, &*repository)?;
    catalog.warn_unreadable();
    let outcome = catalog.outcome();
    let is_asked = |vm: &str, tags: &[String]| {
        args.vm.as_ref().is_none_or(|asked| asked == vm)
            && args.tag.as_ref().is_none_or(|asked| tags.contains(asked))
    };
    let had_any = !catalog.snapshots.is_empty();
    let asked =
        |snapshot: &undercroft_format::snapshot::Snapshot| is_asked(&snapshot.vm, &snapshot.tags);
    catalog.snapshots.retain(|stored| asked(&stored.snapshot));
    if let Some(vm) = args
        .vm
        .as_ref()
        .filter(|_| catalog.snapshots.is_empty() && had_any)
    {
        return Err(Problem::new(format!("no snapshot of VM {vm} was found"))
            .hint("see what there is: `undercroft snapshots`")
            .into());
    }
    let views: Vec<_> = catalog.snapshots.iter().map(SnapshotView::of).collect();
    report::emit(settings, &views, |text| write(text, settings, &catalog))?;
    Ok(outcome)
}

fn write(text: &mut String, settings: &Settings, catalog: &Catalog) {
    if catalog.snapshots.is_empty() {
        line!(text, "No snapshots");
        return;
    }
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("TIME", Align::Left),
        ("VM", Align::Left),
        ("DISKS", Align::Right),
        ("SIZE", Align::Right),
        ("DATA", Align::Right),
        ("NEW", Align::Right),
        ("STORED", Align::Right),
        ("RATIO", Align::Right),
        ("NOTES", Align::Left),
    ]);
    for stored in &catalog.snapshots {
        let snapshot = &stored.snapshot;
        let totals = Totals::of(snapshot);
        let mut notes: Vec<String> = Vec::new();
        notes.extend(stored.protected.then(|| "protected".to_owned()));
        notes.extend(
            lock_that_holds(stored)
                .map(|until| format!("locked until {}", local_time(until, &settings.time_zone))),
        );
        notes.extend(stored.incomplete.then(|| "INCOMPLETE".to_owned()));
        notes.extend(snapshot.tags.iter().map(|tag| format!("#{tag}")));
        let mut why: Vec<String> = snapshot.disks.iter().map(reasons).collect();
        why.sort();
        why.dedup();
        notes.extend(why.into_iter().filter(|why| !why.is_empty()));
        table.row(vec![
            stored.id.short(),
            local_time(timestamp(snapshot.created_ms), &settings.time_zone),
            snapshot.vm.clone(),
            snapshot.disks.len().to_string(),
            Size(totals.size).to_string(),
            Size(totals.data_bytes).to_string(),
            Size(totals.new_bytes).to_string(),
            Size(totals.added()).to_string(),
            ratio(totals.data_bytes, totals.added()),
            notes.join(" "),
        ]);
    }
    table.write(text);
    line!(
        text,
        "{}",
        count(catalog.snapshots.len() as u64, "snapshot")
    );
}
