//! A test of a restore: each partition of a snapshot becomes a file, and is looked at.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::files::walk::{Descend, Step, walk};
use undercroft_dataplane::files::{self, FileKind, FilePath};
use undercroft_dataplane::partitions::extract;
use undercroft_dataplane::progress::Progress;
use undercroft_format::file_system::FileSystemKind;
use undercroft_format::id::SnapshotId;
use undercroft_format::wire::frame::FrameType;

use crate::access;
use crate::failure::{Outcome, Problem, one_line};
use crate::progress::Activity;
use crate::report::{self, line};
use crate::settings::{Key, Settings};
use crate::units::{Size, local_time, timestamp};
use crate::volume::{OpenedDisk, Volume, contained};
use crate::work::Work;

/// Of what a check says, as many lines are told.
const LINES_MAX: usize = 6;
/// Of what is wrong with files, as much is told.
const PROBLEMS_MAX: usize = 20;

/// What to test, and where.
pub struct Request {
    pub what: String,
    pub scratch: PathBuf,
}

/// What came out.
#[derive(Serialize)]
struct TestView {
    snapshot: SnapshotId,
    vm: String,
    time: String,
    passed: bool,
    disks: Vec<DiskReport>,
}

#[derive(Serialize)]
struct DiskReport {
    label: String,
    size: u64,
    table: Option<String>,
    problems: Vec<String>,
    volumes: Vec<VolumeReport>,
}

#[derive(Default, Serialize)]
struct VolumeReport {
    number: Option<u32>,
    size: u64,
    file_system: Option<String>,
    read_bytes: u64,
    files: u64,
    directories: u64,
    links: u64,
    journal_replayed: bool,
    checked_by: Option<&'static str>,
    notes: Vec<String>,
    problems: Vec<String>,
}

pub fn run(settings: &Settings, request: Request) -> anyhow::Result<Outcome> {
    // A name alone is a VM's, unless an id begins so.
    let as_snapshot: SnapshotSpec = request.what.parse()?;
    let newest: SnapshotSpec = format!("{}@latest", request.what).parse()?;
    let read = access::read_chosen(settings, &[FrameType::Fetch], Key::Needed, |catalog| {
        catalog.warn_unreadable();
        let found = match catalog.resolve(&newest) {
            Ok(found) if !request.what.contains('@') => found,
            _ => catalog.resolve(&as_snapshot)?,
        };
        Ok(vec![found.id])
    })?;
    let work = Work::watched(
        settings,
        Activity {
            name: "test-restore",
            total_bytes: 0,
        },
    )?;
    let stored = &read.snapshots[0];
    let mut disks = Vec::new();
    for (place, manifest) in stored.snapshot.disks.iter().enumerate() {
        let mut report = DiskReport {
            label: manifest.label.clone(),
            size: manifest.size.get(),
            table: None,
            problems: Vec::new(),
            volumes: Vec::new(),
        };
        match OpenedDisk::of(&read, place) {
            Ok(disk) => {
                report.table = Some(disk.table.scheme.to_string());
                report
                    .problems
                    .extend(disk.table.notes.iter().map(ToString::to_string));
                for volume in disk.volumes() {
                    report
                        .volumes
                        .push(test(&volume, &request.scratch, &work.progress)?);
                }
            }
            Err(error) => report.problems.push(format!("{error:#}")),
        }
        disks.push(report);
    }
    drop(work);
    let is_sound = |disk: &DiskReport| {
        disk.problems.is_empty() && disk.volumes.iter().all(|volume| volume.problems.is_empty())
    };
    let view = TestView {
        snapshot: stored.id,
        vm: stored.snapshot.vm.clone(),
        time: local_time(timestamp(stored.snapshot.created_ms), &settings.time_zone),
        passed: disks.iter().all(is_sound),
        disks,
    };
    report::emit(settings, &view, |text| write(text, &view))?;
    Ok(Outcome::of(!view.passed))
}

fn write(text: &mut String, view: &TestView) {
    line!(
        text,
        "Snapshot {} of {}, {}",
        view.snapshot.short(),
        view.vm,
        view.time
    );
    for disk in &view.disks {
        let table = disk.table.as_deref().unwrap_or("not read");
        line!(
            text,
            "Disk {}, {}, partition table: {table}",
            disk.label,
            Size(disk.size)
        );
        disk.problems
            .iter()
            .for_each(|problem| line!(text, "  PROBLEM {problem}"));
        for volume in &disk.volumes {
            let name = volume.number.map_or("  whole disk".to_owned(), |number| {
                format!("  partition {number}")
            });
            let kind = volume
                .file_system
                .as_deref()
                .unwrap_or("nothing that is known");
            let checked = volume
                .checked_by
                .map_or(String::new(), |tool| format!(", checked by {tool}"));
            line!(
                text,
                "{name}: {kind}, {} read{checked}",
                Size(volume.read_bytes)
            );
            if volume.files + volume.directories > 0 {
                let VolumeReport {
                    files,
                    directories,
                    links,
                    ..
                } = volume;
                line!(
                    text,
                    "    {files} files, {directories} directories, {links} links"
                );
            }
            volume
                .notes
                .iter()
                .for_each(|note| line!(text, "    {note}"));
            volume
                .problems
                .iter()
                .for_each(|problem| line!(text, "    PROBLEM {problem}"));
        }
    }
    line!(text, "{}", if view.passed { "Passed" } else { "FAILED" });
}

/// # Errors
/// What keeps the test from being made; what it finds is in the report.
fn test(volume: &Volume, scratch: &Path, progress: &Progress) -> anyhow::Result<VolumeReport> {
    let mut report = VolumeReport {
        number: volume
            .partition
            .as_ref()
            .map(|partition| partition.number.get()),
        size: volume.disk.size().get(),
        file_system: volume
            .kind
            .as_ref()
            .ok()
            .copied()
            .flatten()
            .map(|kind| kind.to_string()),
        ..VolumeReport::default()
    };
    let directory = tempfile::Builder::new()
        .prefix("undercroft-test-")
        .tempdir_in(scratch);
    let directory =
        directory.with_context(|| format!("making a directory in {}", scratch.display()))?;
    let path = directory.path().join("volume.raw");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    match extract(&*volume.disk, &file, progress) {
        Ok(read) => report.read_bytes = read,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            return Err(Problem::new("stopped on request").into());
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            let full = Problem::new(format!(
                "{} has not enough room for {}",
                scratch.display(),
                volume.name()
            ));
            return Err(full
                .at_target()
                .hint("name a directory that has: --scratch DIR")
                .into());
        }
        Err(error) => {
            report
                .problems
                .push(format!("not all can be read: {}", one_line(&error)));
            return Ok(report);
        }
    }
    match volume.kind {
        Ok(Some(kind)) if kind.is_ext() => check_ext(&file, &path, &mut report)?,
        Ok(Some(FileSystemKind::Fat)) => check_fat(&file, &path, &mut report)?,
        Ok(Some(kind)) if kind.holds_files() => {
            report
                .notes
                .push(format!("{kind} is read completely, but not checked"));
        }
        Ok(_) => {}
        Err(ref error) => report.problems.push(error.clone()),
    }
    if let Ok(Some(kind)) = volume.kind
        && files::is_readable(kind)
    {
        let walked = contained("the walk", || count(volume));
        match walked {
            Ok(counted) => {
                (report.files, report.directories, report.links) =
                    (counted.files, counted.directories, counted.links);
                report.problems.extend(counted.problems);
            }
            Err(error) => report.problems.push(format!("{error:#}")),
        }
    }
    Ok(report)
}

fn count(volume: &Volume) -> anyhow::Result<VolumeReport> {
    let tree = volume.open()?;
    let mut counted = VolumeReport::default();
    walk(&*tree, &FilePath::root(), &mut |step| {
        let problem = match step {
            Step::Enter(_) => {
                counted.directories += 1;
                None
            }
            Step::Entry(directory, entry) => match &entry.info {
                Ok(info) => {
                    counted.files += u64::from(info.kind == FileKind::File);
                    counted.links += u64::from(matches!(info.kind, FileKind::Link(_)));
                    None
                }
                Err(error) => Some(format!("{}: {error}", directory.join(&entry.name))),
            },
            Step::Fault(path, error) => Some(format!("{path}: {error}")),
            Step::Leave(_) => None,
        };
        if counted.problems.len() < PROBLEMS_MAX {
            counted.problems.extend(problem);
        }
        Ok::<_, anyhow::Error>(Descend::Yes)
    })?;
    Ok(counted)
}

/// A disk that was in use has a journal to be replayed: no error, but what is checked is what comes after.
fn check_ext(file: &File, path: &Path, report: &mut VolumeReport) -> anyhow::Result<()> {
    const INCOMPATIBLE_AT: u64 = 1024 + 96;
    const RECOVERY: u8 = 0x4;
    let mut features = [0];
    file.read_exact_at(&mut features, INCOMPATIBLE_AT)?;
    if features[0] & RECOVERY != 0 {
        let Some(replayed) = tool("e2fsck", &["-y", "-E", "journal_only"], path)? else {
            report
                .notes
                .push("a journal is to be replayed; not checked: e2fsck is not installed".into());
            return Ok(());
        };
        if replayed.code >= 4 {
            report
                .problems
                .push(format!("the journal cannot be replayed: {}", replayed.text));
            return Ok(());
        }
        report.journal_replayed = true;
        report
            .notes
            .push("a journal was replayed: the disk was in use".into());
    }
    match tool("e2fsck", &["-f", "-n"], path)? {
        None => report
            .notes
            .push("not checked: e2fsck is not installed".into()),
        Some(checked) => {
            report.checked_by = Some("e2fsck");
            if checked.code != 0 {
                report.problems.push(format!("e2fsck: {}", checked.text));
            }
        }
    }
    Ok(())
}

/// A file system that is mounted is marked; that is no error.
fn check_fat(file: &File, path: &Path, report: &mut VolumeReport) -> anyhow::Result<()> {
    let mut boot = [0; 90];
    file.read_exact_at(&mut boot, 0)?;
    let is_fat32 = boot[22..24] == [0, 0];
    let mark_at = if is_fat32 { 0x41 } else { 0x25 };
    let mark = boot[mark_at];
    if mark & 1 != 0 {
        report
            .notes
            .push("it is marked as mounted: the disk was in use".into());
        file.write_all_at(&[mark & !1], mark_at as u64)?;
    }
    match tool("fsck.vfat", &["-n"], path)? {
        None => report
            .notes
            .push("not checked: fsck.vfat is not installed".into()),
        Some(checked) => {
            report.checked_by = Some("fsck.vfat");
            if checked.code != 0 {
                report.problems.push(format!("fsck.vfat: {}", checked.text));
            }
        }
    }
    Ok(())
}

struct Checked {
    code: i32,
    /// Its last lines.
    text: String,
}

/// Runs a tool on a file; `None` if it is not installed.
fn tool(name: &'static str, options: &[&str], path: &Path) -> anyhow::Result<Option<Checked>> {
    let search = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    // Administrators' tools are not on everybody's path.
    command
        .env("PATH", format!("{search}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C");
    command.args(options).arg(path).stdin(Stdio::null());
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        output => output.with_context(|| format!("running {name}"))?,
    };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).replace(&*path.to_string_lossy(), "the volume");
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines[lines.len().saturating_sub(LINES_MAX)..].join("; ");
    Ok(Some(Checked {
        code: output.status.code().unwrap_or(8),
        text: last.escape_debug().to_string(),
    }))
}
