//! `undercroft cp`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use undercroft_dataplane::files::FilePath;
use undercroft_dataplane::files::copy::{Copier, CopyError, CopyOptions, Keep, Notice};
use undercroft_format::id::SnapshotId;

use crate::failure::{Outcome, Problem, warn};
use crate::file_spec::FileSpec;
use crate::progress::Activity;
use crate::report::{self, line};
use crate::settings::Settings;
use crate::units::Size;
use crate::volume::{self, OpenedDisk};
use crate::work::Work;

/// Copy files out of a disk
///
/// A file, or with -r a directory, comes into DEST if that is a directory, otherwise under that name; `-` is standard
/// output. Modes, times and links are kept, owners for root; zeros become holes, hard links copies; devices, pipes and
/// sockets are left out with a warning. A file has its name only when it is complete, links are never followed where
/// something is written, and nothing is written outside of DEST. What is damaged is told; the rest is copied (exit
/// code 3).
///
/// JSON: snapshot, disk, partition, files, directories, links, bytes, skipped, set_id_dropped, damaged.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// What to copy: see `undercroft ls`
    #[arg(value_name = "SNAPSHOT:DISK[:PART]/PATH")]
    spec: OsString,
    /// Where to: a directory, a name, or - for standard output
    #[arg(value_name = "DEST")]
    to: PathBuf,
    /// Copy directories, with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Replace files that are there, add to directories that are there
    #[arg(short, long)]
    force: bool,
    /// As root, keep the bits by which a program runs as its owner or group
    #[arg(long)]
    keep_set_id: bool,
}

/// What was copied, in JSON.
#[derive(Serialize)]
struct CopyView {
    snapshot: SnapshotId,
    disk: String,
    partition: Option<u32>,
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    skipped: u64,
    set_id_dropped: u64,
    damaged: u64,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let spec = FileSpec::parse(args.spec)?;
    let Some(path) = spec.path.clone() else {
        return Err(Problem::usage(format!("{}: which file?", spec.text))
            .hint(format!(
                "write {}/PATH, or {}/ for all files",
                spec.text, spec.text
            ))
            .into());
    };
    let to_stdout = args.to == Path::new("-");
    if to_stdout && args.recursive {
        return Err(Problem::usage("a directory cannot be written to standard output").into());
    }
    let options = CopyOptions {
        recursive: args.recursive,
        replace: args.force,
        keep: Keep {
            owner: rustix::process::geteuid().is_root(),
            set_id: args.keep_set_id,
        },
    };
    let read = volume::open_snapshot(settings, &spec)?;
    let disk = OpenedDisk::open(&read, &spec)?;
    let volume = disk.choose()?;
    let work = Work::watched(
        settings,
        Activity {
            name: "cp",
            total_bytes: 0,
        },
    )?;
    let counts = volume::contained(&spec.text, || {
        let tree = volume.open()?;
        let mut notice = |notice: Notice<'_>| match notice {
            Notice::Skipped(path) => warn(format_args!(
                "{path} is no file, directory or link: left out"
            )),
            Notice::Damaged(path, error) => warn(format_args!(
                "{path} was not copied, or not completely: {error}"
            )),
        };
        let mut copier = Copier::new(&*tree, options, work.progress.clone(), &mut notice);
        let copied = match to_stdout {
            true => copier.copy_to_writer(&path, &mut io::stdout().lock()),
            false => copier.copy(&path, &args.to),
        };
        match copied {
            Ok(()) => Ok(copier.counts()),
            Err(error) => Err(explain(error, &path)),
        }
    })?;
    drop(work);
    let view = CopyView {
        snapshot: disk.snapshot,
        disk: disk.label.clone(),
        partition: volume
            .partition
            .as_ref()
            .map(|partition| partition.number.get()),
        files: counts.files,
        directories: counts.directories,
        links: counts.links,
        bytes: counts.bytes,
        skipped: counts.skipped,
        set_id_dropped: counts.set_id_dropped,
        damaged: counts.damaged,
    };
    let write = |text: &mut String| {
        line!(
            text,
            "Copied {} files ({}), {} directories, {} links",
            view.files,
            Size(view.bytes),
            view.directories,
            view.links
        );
        if view.set_id_dropped > 0 {
            line!(
                text,
                "Set-user-ID or set-group-ID bits of {} files were left off",
                view.set_id_dropped
            );
        }
        if view.damaged > 0 {
            line!(
                text,
                "{} files or directories are damaged and were not copied",
                view.damaged
            );
        }
    };
    if to_stdout {
        if settings.json {
            report::emit_to_stderr(settings, &view, write);
        }
    } else {
        report::emit(settings, &view, write)?;
    }
    Ok(Outcome::of(view.damaged > 0))
}

fn explain(error: CopyError, path: &FilePath) -> anyhow::Error {
    match &error {
        CopyError::IsDirectory { .. } => Problem::usage(error.to_string())
            .hint("copy it with all that is in it: -r")
            .into(),
        CopyError::Exists { .. } => Problem::new(error.to_string())
            .at_target()
            .hint("replace what is there: --force")
            .into(),
        CopyError::Target { .. } => anyhow::Error::new(error)
            .context(Problem::new(format!("{path} was not copied completely")).at_target()),
        CopyError::Source { .. } => Problem::new(error.to_string()).into(),
        CopyError::Stopped => Problem::new("stopped on request: not all was copied").into(),
    }
}
