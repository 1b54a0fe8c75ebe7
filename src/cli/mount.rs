//! `undercroft mount`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::progress::Progress;
use undercroft_dataplane::view::{CACHE_LEN_MIN, View, ViewOptions};

use crate::access;
use crate::catalog::Catalog;
use crate::failure::{Outcome, Problem};
use crate::logging;
use crate::mount::files::Files;
use crate::mount::readers::Mounted;
use crate::mount::session::{self, Mount};
use crate::mount::shown::Choice;
use crate::mount::state::State;
use crate::mount::{PATIENCE, background};
use crate::report::{self, line};
use crate::settings::Settings;
use crate::signals;
use crate::units::{Size, parse_size};

/// Threads that fetch from a server: most of them wait.
const REMOTE_THREADS: usize = 8;

/// Show snapshots as files
///
/// MOUNTPOINT is an empty directory. In it appear VM/TIME/DISK.raw, VM/TIME/snapshot.json, the VM's metadata under its
/// own name, and VM/latest, a link to the newest snapshot. Nothing can be written. Snapshots that are made meanwhile
/// appear within seconds. What is being read stays in the repository, whoever forgets it.
///
/// The command returns when all is there, and a process serves it in the background, which logs to a file. Unmount with
/// `umount MOUNTPOINT`, `fusermount3 -u MOUNTPOINT`, or by a signal to the process. Who is not root needs the
/// program fusermount3.
///
/// Reads of what is damaged fail with an I/O error, and so do all if the repository is lost; the rest reads on.
///
/// JSON: mountpoint, process, log (the file, or null in the foreground).
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where
    mountpoint: PathBuf,
    /// Only the snapshots of this VM; may be repeated
    #[arg(long, value_name = "NAME")]
    vm: Vec<String>,
    /// Only this snapshot; may be repeated
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Vec<SnapshotSpec>,
    /// Memory for decoded data, at least 8 MiB
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = cache_len)]
    cache_size: u64,
    /// Serve in this process, and return when it is unmounted
    #[arg(long)]
    foreground: bool,
    /// Where the background process logs to (default: undercroft/ in $XDG_STATE_HOME or ~/.local/state)
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    log_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report<'a> {
    mountpoint: &'a Path,
    process: u32,
    log: Option<&'a Path>,
}

fn cache_len(text: &str) -> Result<u64, String> {
    let len = parse_size(text)?;
    if len < CACHE_LEN_MIN {
        return Err(format!("it takes at least {}", Size(CACHE_LEN_MIN)));
    }
    Ok(len)
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    session::check(&args.mountpoint)?;
    if !args.foreground && !background::is_second() {
        background::start()?;
        return Ok(Outcome::Done);
    }
    // The process leaves its directory.
    let mountpoint = args.mountpoint.canonicalize();
    let mountpoint =
        mountpoint.with_context(|| format!("looking at {}", args.mountpoint.display()))?;
    let log = match args.foreground {
        true => None,
        false => {
            let path = args.log_file.clone();
            let path = path.unwrap_or_else(|| background::default_log(&mountpoint));
            let path = std::path::absolute(path).context("finding the log")?;
            Some((background::open_log(&path)?, path))
        }
    };
    let progress = Arc::<Progress>::default();
    signals::stop_cleanly(progress.clone()).context("watching for signals")?;
    let mounted = access::mount(settings)?;
    let choice = choice(settings, &args, &mounted)?;
    let mut options = ViewOptions {
        cache_len: args.cache_size,
        patience: PATIENCE,
        ..ViewOptions::default()
    };
    if matches!(mounted, Mounted::Remote(_)) {
        options.threads = options.threads.max(REMOTE_THREADS);
    }
    let view = View::new(options).context("starting the threads that read")?;
    let state = State::new(Files::new(mounted, choice, view));
    let mount = Mount::begin(&mountpoint, state)?;
    let report = Report {
        mountpoint: &mountpoint,
        process: std::process::id(),
        log: log.as_ref().map(|(_, path)| path.as_path()),
    };
    report::emit(settings, &report, |text| write(text, &report))?;
    logging::limit_floods();
    if let Some((log, _)) = &log {
        background::leave(log)?;
    }
    mount.serve(&progress)?;
    Ok(Outcome::Done)
}

/// The snapshots that are asked for, which have to be there.
fn choice(settings: &Settings, args: &Args, mounted: &Mounted) -> anyhow::Result<Choice> {
    let mut choice = Choice {
        vms: args.vm.clone(),
        ids: None,
    };
    if args.vm.is_empty() && args.snapshot.is_empty() {
        return Ok(choice);
    }
    let catalog = Catalog::read(settings, &*mounted.repository())?;
    catalog.warn_unreadable();
    for vm in &args.vm {
        if !catalog
            .snapshots
            .iter()
            .any(|known| known.snapshot.vm == *vm)
        {
            return Err(Problem::new(format!("no snapshot of VM {vm} was found"))
                .hint("see what there is: `undercroft snapshots`")
                .into());
        }
    }
    if !args.snapshot.is_empty() {
        let ids = args.snapshot.iter();
        let ids = ids.map(|spec| Ok(catalog.resolve(spec)?.id));
        choice.ids = Some(ids.collect::<anyhow::Result<_>>()?);
    }
    Ok(choice)
}

fn write(text: &mut String, report: &Report<'_>) {
    let mountpoint = report.mountpoint.display();
    line!(text, "Mounted at {mountpoint}");
    match report.log {
        Some(log) => {
            line!(
                text,
                "Served by process {}, which logs to {}",
                report.process,
                log.display()
            );
            line!(text, "Unmount with: umount {mountpoint}");
        }
        None => line!(text, "Unmount with Ctrl-C, or: umount {mountpoint}"),
    }
}
