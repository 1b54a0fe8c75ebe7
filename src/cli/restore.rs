//! `undercroft restore`.

use std::sync::Arc;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::repository::damage::AffectedRange;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::restore::{RestoreOptions, RestoreReport, restore_disk};
use undercroft_format::id::SnapshotId;
use undercroft_format::snapshot::DiskManifest;

use crate::access::{self, PinnedRead};
use crate::failure::{Outcome, Problem, warn};
use crate::progress::Activity;
use crate::report::{self, Align, Table, line};
use crate::restore_target::{Destination, OpenTarget, Overwrite, Plan, not_in_place};
use crate::settings::{Key, Settings};
use crate::units::{Size, Took};
use crate::work::Work;

/// Restore disks of a snapshot
///
/// TARGET is a file, a block device, a directory (one that exists, or a name ending in `/`) or `-` for
/// standard output. Into a directory go all disks as LABEL.raw and the VM's metadata. A file appears
/// under its name only when it is complete.
///
/// Damaged data never passes for good: the restore fails, or with --allow-damage it leaves the damaged
/// ranges as zeros (with --in-place as they are), says which they are and ends with exit code 3.
///
/// JSON: snapshot, duration_ms, disks (disk, target, size, data_bytes, written_bytes, equal_bytes,
/// fetched_bytes, damage, engine), metadata (the file written, or null). It goes to standard error when
/// the disk goes to standard output.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Which snapshot
    snapshot: SnapshotSpec,
    /// Which disk; all of them if left out, where TARGET is a directory
    #[arg(long, value_name = "LABEL")]
    disk: Option<String>,
    /// Where to
    #[arg(long, value_name = "TARGET", value_parser = NonEmptyStringValueParser::new())]
    to: String,
    /// Read the target and write only what differs; a longer file is cut only with --force
    #[arg(long)]
    in_place: bool,
    /// Overwrite a file or device that is there
    #[arg(long)]
    force: bool,
    /// Go on past damage
    #[arg(long)]
    allow_damage: bool,
}

#[derive(Serialize)]
struct Report {
    snapshot: SnapshotId,
    duration_ms: u64,
    disks: Vec<DiskReport>,
    metadata: Option<String>,
}

#[derive(Serialize)]
struct DiskReport {
    disk: String,
    target: String,
    #[serde(flatten)]
    report: RestoreReport,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let overwrite = match (args.in_place, args.force) {
        (true, cut) => Overwrite::InPlace { cut },
        (false, true) => Overwrite::Force,
        (false, false) => Overwrite::Never,
    };
    let destination = Destination::of(&args.to);
    if args.in_place && destination == Destination::Stdout {
        return Err(not_in_place("standard output"));
    }
    let read = access::read_pinned(settings, Key::Needed, std::slice::from_ref(&args.snapshot))?;
    let stored = &read.snapshots[0];
    let disks = choose(&read, args.disk.as_deref(), &destination)?;
    let plan = Plan::new(settings.root()?, &destination, overwrite)?;
    let work = Work::start(
        settings,
        Activity {
            name: "restore",
            total_bytes: disks.iter().map(|disk| disk.size.get()).sum(),
        },
    )?;
    let clock = Stopwatch::start();
    // All targets are looked at before the first is written.
    for disk in &disks {
        plan.check(disk)?;
    }
    let metadata = stored.snapshot.metadata.as_ref();
    let metadata = metadata.filter(|_| plan.takes_metadata() && args.disk.is_none());
    if let Some(metadata) = metadata {
        plan.check_metadata(&metadata.name, &disks)?;
    }
    let mut report = Report {
        snapshot: stored.id,
        duration_ms: 0,
        disks: Vec::new(),
        metadata: None,
    };
    for disk in disks {
        let OpenTarget { target, finish } = plan.open(disk)?;
        let options = RestoreOptions {
            allow_damage: args.allow_damage,
        };
        let done = restore_disk(
            &*read.repository,
            stored,
            disk,
            target,
            options,
            &work.threads,
            &work.progress,
        )
        .map_err(|error| explain(error, disk, &finish.name()))?;
        let target = finish.name();
        finish.publish()?;
        report.disks.push(DiskReport {
            disk: disk.label.clone(),
            target,
            report: done,
        });
    }
    if let Some(metadata) = metadata {
        match read_metadata(&read, &metadata.chunks) {
            Ok(bytes) => {
                report.metadata = Some(plan.write_metadata(&metadata.name, &bytes)?);
            }
            Err(error) if args.allow_damage && is_damage(&error) => {
                warn(format_args!(
                    "the metadata {} is lost: {error}",
                    metadata.name
                ));
                return finish(settings, &args.to, report, &clock, work, true);
            }
            Err(error) => {
                return Err(error.context(format!("restoring the metadata {}", metadata.name)));
            }
        }
    }
    finish(settings, &args.to, report, &clock, work, false)
}

fn finish(
    settings: &Settings,
    target: &str,
    mut report: Report,
    clock: &Stopwatch,
    work: Work,
    metadata_lost: bool,
) -> anyhow::Result<Outcome> {
    drop(work);
    let took = clock.elapsed();
    report.duration_ms = took.as_millis() as u64;
    if target == "-" {
        report::emit_to_stderr(settings, &report, |text| write(text, &report, took));
    } else {
        report::emit(settings, &report, |text| write(text, &report, took))?;
    }
    let damaged = report
        .disks
        .iter()
        .any(|disk| !disk.report.damage.is_empty());
    Ok(Outcome::of(damaged || metadata_lost))
}

/// The disks that are asked for.
fn choose<'a>(
    read: &'a PinnedRead,
    label: Option<&str>,
    destination: &Destination,
) -> anyhow::Result<Vec<&'a DiskManifest>> {
    let stored = &read.snapshots[0];
    let disks = &stored.snapshot.disks;
    let labels: Vec<_> = disks.iter().map(|disk| disk.label.as_str()).collect();
    let labels = labels.join(", ");
    match label {
        Some(label) => match stored.snapshot.disk(label) {
            Some(disk) => Ok(vec![disk]),
            None => Err(Problem::new(format!(
                "snapshot {} has no disk {label:?}",
                stored.id.short()
            ))
            .hint(format!("its disks are: {labels}"))
            .into()),
        },
        None if disks.len() != 1 && !destination.is_directory() => Err(Problem::usage(format!(
            "snapshot {} has {} disks ({labels}), and the target takes one",
            stored.id.short(),
            disks.len()
        ))
        .hint("choose one: --disk LABEL; or restore all into a directory: --to DIR/")
        .into()),
        None => Ok(disks.iter().collect()),
    }
}

fn read_metadata(
    read: &PinnedRead,
    chunks: &[(undercroft_format::id::ChunkId, u32)],
) -> anyhow::Result<Vec<u8>> {
    let keys = Arc::clone(read.repository.keys()?);
    let mut bytes = Vec::new();
    for (chunk, _) in chunks {
        bytes.extend_from_slice(&read.repository.objects().chunk(*chunk, &keys)?);
    }
    Ok(bytes)
}

fn is_damage(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<RepositoryError>()
        .is_some_and(RepositoryError::is_damage)
}

fn explain(error: RepositoryError, disk: &DiskManifest, target: &str) -> anyhow::Error {
    if matches!(error, RepositoryError::Cancelled) {
        return Problem::new(format!(
            "stopped on request: disk {} was not restored completely to {target}",
            disk.label
        ))
        .hint("run the same command again; for a device or a large file add --in-place to keep what is right already")
        .into();
    }
    let restoring = Problem::new(format!("restoring disk {} to {target}", disk.label));
    // A restore writes to the target alone.
    let restoring = match error.is_disk_full() {
        true => restoring.at_target(),
        false => restoring,
    };
    anyhow::Error::new(error).context(restoring)
}

fn write(text: &mut String, report: &Report, took: Duration) {
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("SIZE", Align::Right),
        ("DATA", Align::Right),
        ("WRITTEN", Align::Right),
        ("EQUAL", Align::Right),
        ("FETCHED", Align::Right),
        ("TARGET", Align::Left),
    ]);
    for disk in &report.disks {
        table.row(vec![
            disk.disk.clone(),
            Size(disk.report.size).to_string(),
            Size(disk.report.data_bytes).to_string(),
            Size(disk.report.written_bytes).to_string(),
            Size(disk.report.equal_bytes).to_string(),
            Size(disk.report.fetched_bytes).to_string(),
            disk.target.clone(),
        ]);
    }
    line!(text, "Restored {}", report.snapshot);
    table.write(text);
    if let Some(metadata) = &report.metadata {
        line!(text, "Metadata in {metadata}");
    }
    let engine = report.disks.first().map(|disk| disk.report.engine.as_str());
    line!(
        text,
        "Took {} with {}",
        Took(took),
        engine.unwrap_or("no engine")
    );
    let damage: Vec<&AffectedRange> = report
        .disks
        .iter()
        .flat_map(|disk| &disk.report.damage)
        .collect();
    if !damage.is_empty() {
        line!(text);
        line!(text, "DAMAGED, not restored:");
        report::write_affected(text, damage);
    }
}
