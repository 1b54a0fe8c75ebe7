//! A restore from its request to its report, whoever asked for it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::repository::damage::AffectedRange;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::restore::{RestoreOptions, RestoreReport, Target, restore_disk};
use undercroft_format::id::SnapshotId;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::wire::frame::FrameType;
use undercroft_format::xva::ChecksumKind;

use crate::access::{self, PinnedRead};
use crate::failure::{Outcome, Problem, warn};
use crate::progress::Activity;
use crate::report::{self, Align, Table, line};
use crate::restore_image::ImageLayout;
use crate::restore_target::{
    Destination, Format, Manner, OpenTarget, Overwrite, Plan, not_in_place,
};
use crate::restore_xva::XvaRestore;
use crate::runner::Runner;
use crate::settings::{Key, Settings};
use crate::units::{Size, Took};
use crate::work::Work;

/// What was restored.
#[derive(Serialize)]
pub struct Report {
    snapshot: SnapshotId,
    duration_ms: u64,
    #[serde(rename = "dry_run")]
    is_dry_run: bool,
    disks: Vec<DiskReport>,
    metadata: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xva: Option<String>,
    #[serde(skip)]
    is_metadata_lost: bool,
}

/// A disk of it.
#[derive(Serialize)]
pub struct DiskReport {
    pub disk: String,
    pub target: String,
    /// The target was read back, and is the disk.
    #[serde(rename = "verified")]
    pub is_verified: bool,
    #[serde(flatten)]
    pub report: RestoreReport,
}

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    pub snapshot: SnapshotSpec,
    pub disk: Option<String>,
    pub to: String,
    pub form: Form,
    pub overwrite: Overwrite,
    pub allow_damage: bool,
    /// Read the target back, and compare.
    pub verify: bool,
    /// Only say what would be written.
    pub dry_run: bool,
    /// The snapshot whose child a differencing VHD becomes.
    pub vhd_since: Option<SnapshotSpec>,
}

/// What a restore makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A file or device of each disk.
    Disks(Format),
    /// One XVA of all of them, with such checksums.
    Xva(ChecksumKind),
}

/// Restores.
pub fn run_through(
    settings: &Settings,
    request: &Request,
    runner: &dyn Runner,
) -> anyhow::Result<Report> {
    let destination = Destination::of(&request.to);
    let is_in_place = matches!(request.overwrite, Overwrite::InPlace { .. });
    if is_in_place && destination == Destination::Stdout {
        return Err(not_in_place("standard output"));
    }
    let format = match request.form {
        Form::Disks(format) => format,
        Form::Xva(_) => Format::Raw,
    };
    if request.verify
        && (request.form != Form::Disks(Format::Raw) || destination == Destination::Stdout)
    {
        return Err(Problem::usage(
            "only raw disks are read back: --verify is for files, devices and NBD exports",
        )
        .hint("leave out --verify; an image can be compared with: qemu-img compare")
        .into());
    }
    if is_in_place && format != Format::Raw {
        let problem = format!("{} cannot be written in place", format.article());
        return Err(Problem::usage(problem)
            .hint("leave out --in-place; to overwrite the file: --force")
            .into());
    }
    let specs: Vec<_> = std::iter::once(&request.snapshot)
        .chain(&request.vhd_since)
        .cloned()
        .collect();
    let read = access::read_pinned(settings, &[FrameType::Fetch], Key::Needed, &specs)?;
    let stored = &read.snapshots[0];
    runner.may_use(&stored.snapshot.vm)?;
    let disks = match request.form {
        Form::Disks(_) => choose(&read, request.disk.as_deref(), &destination)?,
        Form::Xva(_) => stored.snapshot.disks.iter().collect(),
    };
    let root = settings.local_root()?;
    let plan = Plan::new(
        root,
        &destination,
        Manner {
            overwrite: request.overwrite,
            format,
            is_dry_run: request.dry_run,
            is_read_back: request.verify,
        },
        runner,
    )?;
    if matches!(request.form, Form::Xva(_)) {
        plan.check_archive()?;
    }
    let work = runner.start(
        settings,
        Activity {
            name: "restore",
            total_bytes: disks
                .iter()
                .map(|disk| disk.size.get())
                .sum::<u64>()
                .saturating_mul(1 + u64::from(request.verify)),
        },
    )?;
    let clock = Stopwatch::start();
    if let Form::Xva(checksums) = request.form {
        let restore = XvaRestore {
            read: &read,
            checksums,
            allow_damage: request.allow_damage,
        };
        let (disks, target) = restore.run(&plan, &work)?;
        runner.wrote(Path::new(&target));
        return Ok(Report {
            snapshot: stored.id,
            duration_ms: clock.elapsed().as_millis() as u64,
            is_dry_run: false,
            disks,
            metadata: None,
            xva: Some(target),
            is_metadata_lost: false,
        });
    }
    // All targets are looked at before the first is written.
    for disk in &disks {
        plan.check(disk)?;
    }
    let metadata = stored.snapshot.metadata.as_ref();
    let metadata =
        metadata.filter(|_| plan.takes_metadata() && request.disk.is_none() && !request.dry_run);
    if let Some(metadata) = metadata {
        plan.check_metadata(&metadata.name, &disks)?;
    }
    let mut report = Report {
        snapshot: stored.id,
        duration_ms: 0,
        is_dry_run: request.dry_run,
        disks: Vec::new(),
        metadata: None,
        xva: None,
        is_metadata_lost: false,
    };
    let options = RestoreOptions {
        allow_damage: request.allow_damage,
        dry_run: request.dry_run,
    };
    for disk in disks {
        let layout = ImageLayout::of(&read, disk, format, options)?;
        let OpenTarget { target, finish } = plan.open(disk, layout)?;
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
        let is_verified = request.verify.then(|| -> anyhow::Result<()> {
            let written = finish.written()?;
            verify(&read, disk, written, &target, options, &work)
        });
        let is_verified = is_verified.transpose()?.is_some();
        if !request.dry_run {
            finish.publish()?;
            runner.wrote(Path::new(&target));
        }
        report.disks.push(DiskReport {
            disk: disk.label.clone(),
            target,
            is_verified,
            report: done,
        });
    }
    if let Some(metadata) = metadata {
        match read_metadata(&read, &metadata.chunks) {
            Ok(bytes) => {
                let written = plan.write_metadata(&metadata.name, &bytes)?;
                runner.wrote(Path::new(&written));
                report.metadata = Some(written);
            }
            Err(error) if request.allow_damage && is_damage(&error) => {
                warn(format_args!(
                    "the metadata {} is lost: {error}",
                    metadata.name
                ));
                report.is_metadata_lost = true;
            }
            Err(error) => {
                return Err(error.context(format!("restoring the metadata {}", metadata.name)));
            }
        }
    }
    report.duration_ms = clock.elapsed().as_millis() as u64;
    Ok(report)
}

impl Report {
    /// Whether something could not be restored.
    pub fn outcome(&self) -> Outcome {
        let damaged = |disk: &DiskReport| !disk.report.damage.is_empty();
        Outcome::of(self.is_metadata_lost || self.disks.iter().any(damaged))
    }
}

/// Reads back what was written, and compares.
fn verify(
    read: &PinnedRead,
    disk: &DiskManifest,
    written: Target,
    target: &str,
    options: RestoreOptions,
    work: &Work,
) -> anyhow::Result<()> {
    let options = RestoreOptions {
        dry_run: true,
        ..options
    };
    let found = restore_disk(
        &*read.repository,
        &read.snapshots[0],
        disk,
        written,
        options,
        &work.threads,
        &work.progress,
    )
    .map_err(|error| match error {
        RepositoryError::Cancelled => explain(error, disk, target),
        error => anyhow::Error::new(error)
            .context(format!("reading back disk {} from {target}", disk.label)),
    })?;
    let Some(first) = found.differing.first() else {
        return Ok(());
    };
    let (data, zeros) = (found.written_bytes, found.zeroed_bytes);
    Err(Problem::new(format!(
        "{target} is not disk {}: {} differ after the restore, first at byte {}",
        disk.label,
        Size(data + zeros),
        first.start
    ))
    .hint("something else writes to it, or what it lies on does not keep what it is given: check it, and restore again")
    .into())
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

pub fn read_metadata(
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

pub fn is_damage(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<RepositoryError>()
        .is_some_and(RepositoryError::is_damage)
}

pub fn explain(error: RepositoryError, disk: &DiskManifest, target: &str) -> anyhow::Error {
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

/// Adds the report as text.
pub fn write(text: &mut String, report: &Report) {
    let took = Duration::from_millis(report.duration_ms);
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("SIZE", Align::Right),
        ("DATA", Align::Right),
        ("WRITTEN", Align::Right),
        ("ZEROED", Align::Right),
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
            Size(disk.report.zeroed_bytes).to_string(),
            Size(disk.report.equal_bytes).to_string(),
            Size(disk.report.fetched_bytes).to_string(),
            disk.target.clone(),
        ]);
    }
    match report.is_dry_run {
        true => line!(text, "Would restore {}, and wrote nothing", report.snapshot),
        false => line!(text, "Restored {}", report.snapshot),
    }
    table.write(text);
    if report.disks.iter().any(|disk| disk.is_verified) {
        line!(text, "Read back and compared");
    }
    if let Some(metadata) = &report.metadata {
        line!(text, "Metadata in {metadata}");
    }
    if let Some(xva) = &report.xva {
        line!(text, "XVA in {xva}");
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
