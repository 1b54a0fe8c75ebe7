//! A point in time while it is read: watched over, and taken out of QEMU in the end, whatever the end is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use serde_json::Value;

use super::error::QemuError;
use super::guest::{Chain, Link, state_of};
use super::names::{Owner, PointId};
use super::point::{ExportedDisk, Point};
use super::scratch::ScratchDir;
use super::sweep::Server;
use crate::ingest::backup::Confirm;

/// How often is looked: a guest fills the reserve of a scratch directory in a few of these.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A point that can be read until it is released, or given up because it would harm the guest.
pub struct LivePoint {
    disks: Vec<ExportedDisk>,
    id: PointId,
    shared: Arc<Mutex<Shared>>,
    lost: Arc<AtomicBool>,
    watch: Option<(Sender<()>, JoinHandle<()>)>,
}

struct Shared {
    link: Link,
    id: PointId,
    owner: Owner,
    point: Point,
    scratch: ScratchDir,
    could_write: bool,
    lost: Arc<AtomicBool>,
    end: Option<End>,
}

enum End {
    Released,
    GivenUp(Arc<QemuError>),
}

/// What became of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there: the next backup begins where this one's bitmaps began.
    Published,
    /// It is not, or nobody knows: the next backup begins where the last one's bitmaps began.
    Failed,
}

impl LivePoint {
    pub(super) fn watch(
        link: Link,
        id: PointId,
        owner: Owner,
        point: Point,
        scratch: ScratchDir,
        could_write: bool,
    ) -> Self {
        let disks = point.disks.clone();
        let lost = Arc::<AtomicBool>::default();
        let shared = Arc::new(Mutex::new(Shared {
            link,
            id,
            owner,
            point,
            scratch,
            could_write,
            lost: lost.clone(),
            end: None,
        }));
        let (quit, asked) = bounded(0);
        let watched = shared.clone();
        let watch = thread::Builder::new()
            .name("undercroft-qemu-watch".into())
            .spawn(move || {
                while asked.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                    if watched.lock().check().is_err() {
                        return;
                    }
                }
            });
        let watch = match watch {
            Ok(handle) => Some((quit, handle)),
            Err(error) => {
                tracing::warn!(%error, "nobody looks after the scratch directory");
                None
            }
        };
        Self {
            disks,
            id,
            shared,
            lost,
            watch,
        }
    }

    /// The disks, in the order in which they were asked for.
    pub fn disks(&self) -> &[ExportedDisk] {
        &self.disks
    }

    /// Its name.
    pub fn id(&self) -> PointId {
        self.id
    }

    /// The NBD URI of a disk, with the bitmap that tells its changes, if there is one. It is of use only in this process, and as long as this lives.
    pub fn uri(&self, disk: &ExportedDisk) -> String {
        let socket = self.shared.lock().point.socket.path();
        let changes = disk.changes.as_ref();
        let changes = changes.map(|bitmap| format!("&x-dirty-bitmap={bitmap}"));
        let changes = changes.unwrap_or_default();
        format!("nbd+unix:///{}?socket={socket}{changes}", disk.export)
    }

    /// Whether it still is the moment that it was: asked before a snapshot of it is published.
    ///
    /// # Errors
    /// Why not. Then it was given up, and QEMU is as it was.
    pub fn check(&self) -> Result<(), Arc<QemuError>> {
        self.shared.lock().check()
    }

    /// Asks the same later, wherever this is then.
    pub fn confirm(&self) -> Confirm {
        let shared = self.shared.clone();
        Confirm::new(move || shared.lock().check())
    }

    /// Set once it is given up: nothing more can be read then.
    pub fn lost(&self) -> Arc<AtomicBool> {
        self.lost.clone()
    }

    /// Why it was given up.
    pub fn failure(&self) -> Option<Arc<QemuError>> {
        match &self.shared.lock().end {
            Some(End::GivenUp(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// Takes everything out of QEMU, but the bitmaps that the next backup needs. What could not be is
    /// returned; the next backup tries again.
    pub fn release(mut self, outcome: Outcome) -> Vec<QemuError> {
        self.end(outcome)
    }

    fn end(&mut self, outcome: Outcome) -> Vec<QemuError> {
        if let Some((quit, watch)) = self.watch.take() {
            drop(quit);
            let _ = watch.join();
        }
        self.shared.lock().release(outcome)
    }
}

impl Drop for LivePoint {
    fn drop(&mut self) {
        for problem in self.end(Outcome::Failed) {
            tell(&problem);
        }
    }
}

impl Shared {
    fn check(&mut self) -> Result<(), Arc<QemuError>> {
        match &self.end {
            Some(End::GivenUp(error)) => return Err(error.clone()),
            Some(End::Released) => return Ok(()),
            None => {}
        }
        let Err(error) = self.look() else {
            return Ok(());
        };
        self.lost.store(true, Ordering::Relaxed);
        for problem in self.sweep(Outcome::Failed) {
            tell(&problem);
        }
        let error = Arc::new(error);
        self.end = Some(End::GivenUp(error.clone()));
        Err(error)
    }

    fn look(&mut self) -> Result<(), QemuError> {
        self.scratch.check_space()?;
        let jobs = self.link.monitor().run("query-jobs", Value::Null)?;
        for disk in &self.point.disks {
            let state = state_of(&jobs, &disk.export);
            let goes_on = ["is running", "is paused", "is standby", "is created"];
            if !goes_on.contains(&&*state) {
                return Err(QemuError::PointLost {
                    label: disk.label.clone(),
                    job: disk.export.clone(),
                    state,
                });
            }
        }
        Ok(())
    }

    fn release(&mut self, outcome: Outcome) -> Vec<QemuError> {
        if self.end.is_some() {
            return Vec::new();
        }
        self.end = Some(End::Released);
        self.sweep(outcome)
    }

    fn sweep(&mut self, outcome: Outcome) -> Vec<QemuError> {
        let (begun, ours) = (self.owner.bitmap(self.id), self.owner.prefix());
        let is_over = |name: &str| match outcome {
            // Those of earlier backups, and of runs that were killed.
            Outcome::Published => name.starts_with(&ours) && name != begun,
            Outcome::Failed => name == begun,
        };
        let problems = self.link.sweep(&self.id.prefix(), Server::Ours, &is_over);
        self.scratch.empty();
        self.link.resume(self.could_write);
        problems
    }
}

fn tell(problem: &QemuError) {
    tracing::warn!(error = %Chain(problem), "something of a backup stays in QEMU until the next one");
}
