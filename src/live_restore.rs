//! A disk that is used while it is restored: exported from its final place, which is filled meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::io::{BlockFile, OsFile};
use undercroft_dataplane::overlay::disk::OverlayDisk;
use undercroft_dataplane::overlay::file::OverlayFile;
use undercroft_format::snapshot::DiskManifest;

use crate::access::PinnedRead;
use crate::backup_job::is_inside;
use crate::failure::{Problem, one_line, warn};
use crate::overlay_source::open_overlay;

/// How long to wait before what could not be had is tried again: a server may come back.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(100);

/// Where a disk goes, and what is known of that.
#[derive(Clone, Debug)]
pub struct Live {
    /// A file or a device.
    pub target: PathBuf,
    /// What is there already. Kept until all is.
    pub state: PathBuf,
    /// Overwrites what is at the target.
    pub force: bool,
}

impl Live {
    /// Opens target and state: those of an earlier run, or new ones.
    pub fn open(
        &self,
        read: &PinnedRead,
        disk: &DiskManifest,
        repository: Option<&Path>,
    ) -> anyhow::Result<OverlayFile> {
        for path in [&self.target, &self.state] {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let dir = dir.unwrap_or(Path::new("."));
            if repository.is_some_and(|root| is_inside(dir, root)) {
                let text = format!("{} lies inside the repository", path.display());
                return Err(Problem::usage(text)
                    .hint("restore to somewhere else")
                    .into());
            }
        }
        let goes_on = self.state.exists();
        let target = self.open_target(goes_on, disk.size.get())?;
        open_overlay(&self.state, Some(target), read, disk)
    }

    fn open_target(&self, goes_on: bool, size: u64) -> anyhow::Result<Arc<dyn BlockFile>> {
        let shown = self.target.display();
        let opening = || format!("opening the target {shown}");
        let is_device = fs::metadata(&self.target).is_ok_and(|found| !found.is_file());
        let file = match (self.target.exists(), goes_on) {
            (false, true) => {
                return Err(Problem::new(format!("the target {shown} is gone"))
                    .hint(format!(
                        "to restore anew, remove the state of the earlier run: {}",
                        self.state.display()
                    ))
                    .into());
            }
            (true, false) if !self.force => {
                return Err(Problem::usage(format!("the target {shown} exists"))
                    .hint("to overwrite it: --force")
                    .into());
            }
            (true, _) => OsFile::open_write(&self.target, false).with_context(opening)?,
            (false, false) => OsFile::create_new(&self.target, false)
                .with_context(|| format!("making the target {shown}"))?,
        };
        let len = file.len().with_context(opening)?;
        if is_device && len < size {
            let text = format!("the device {shown} has {len} bytes, the disk {size}");
            return Err(Problem::new(text).hint("restore to a larger one").into());
        }
        if !is_device && len != size {
            if goes_on {
                let text = format!("the target {shown} has {len} bytes now, the disk {size}");
                return Err(Problem::new(text).into());
            }
            file.set_len(size).with_context(opening)?;
        }
        Ok(Arc::new(file))
    }
}

/// What fills the target, in a thread of its own.
pub struct Filler {
    thread: JoinHandle<anyhow::Result<bool>>,
    stopping: Arc<AtomicBool>,
}

impl Filler {
    /// Starts filling; `done` is called when all is in its place.
    pub fn start(
        disk: Arc<OverlayDisk>,
        done: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let asked = stopping.clone();
        let thread = thread::Builder::new()
            .name("undercroft-fill".into())
            .spawn(move || fill(&disk, &asked, done))
            .context("starting a thread")?;
        Ok(Self { thread, stopping })
    }

    /// Ends it; true if all is in its place.
    pub fn stop(self) -> anyhow::Result<bool> {
        self.stopping.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(filled) => filled,
            Err(_) => Err(Problem::new("what filled the target met a bug of ours").into()),
        }
    }
}

fn fill(disk: &OverlayDisk, stopping: &AtomicBool, done: impl FnOnce()) -> anyhow::Result<bool> {
    let is_stopping = || stopping.load(Ordering::Relaxed);
    let mut told = false;
    loop {
        let filled = disk.fill(|_| !is_stopping());
        let filled = filled.context("making durable what was restored")?;
        if let Some(problem) = filled.problem.filter(|_| !told) {
            told = true;
            let bytes: u64 = filled.missing.iter().map(|range| range.len()).sum();
            let text =
                format!("{bytes} bytes could not be restored yet, and are tried again: {problem}");
            warn(text);
        } else if filled.missing.is_empty() && !is_stopping() {
            // From now on the target alone is the disk.
            disk.settle_zeros().context("making zeros in the target")?;
            done();
            return Ok(true);
        }
        let clock = Stopwatch::start();
        while clock.elapsed() < AGAIN_AFTER {
            if is_stopping() {
                return Ok(false);
            }
            thread::sleep(STEP);
        }
    }
}

/// Removes the state of a restore that is done.
pub fn remove_state(file: OverlayFile) {
    if let Err(error) = file.discard() {
        warn(format_args!(
            "the state was not removed: {}",
            one_line(&error)
        ));
    }
}
