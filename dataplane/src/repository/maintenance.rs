//! Looking after a repository, wherever it is.

use std::sync::Arc;

use undercroft_format::id::SnapshotId;
use undercroft_format::lock::LockEnd;

use super::error::Result;
use super::gc::{CollectOptions, CollectReport, collect};
use super::pack_reader::list_packs;
use super::repair::{RepairReport, repair};
use super::retention::UnixMs;
use super::stats::{Stats, stats};
use super::verify::{VerifyOptions, VerifyReport, verify};
use super::{LocalRepository, Repository};
use crate::progress::Progress;

/// What keeps a repository in order. Where the work is done is the implementation's business; options
/// and reports are the same.
pub trait Maintenance: Send + Sync {
    /// The repository, to be read.
    fn repository(&self) -> &dyn Repository;

    /// Bytes of packs: how much a scrub is going to read.
    fn pack_bytes(&self) -> Result<u64>;

    /// Removes snapshots; their chunks stay until a collection. If one of them cannot be removed, none is
    /// (of a thousand, over a wire).
    fn forget(&self, ids: &[SnapshotId]) -> Result<()>;

    /// Sets or lifts the protection of a snapshot.
    fn protect(&self, id: SnapshotId, protected: bool) -> Result<()>;

    /// Locks a snapshot, or extends its lock; returns the end of it.
    fn lock(&self, id: SnapshotId, end: LockEnd) -> Result<UnixMs>;

    /// Gives back the space of what no snapshot refers to.
    fn collect(&self, options: &CollectOptions, progress: &Progress) -> Result<CollectReport>;

    /// Checks what is stored.
    fn verify(
        &self,
        options: &VerifyOptions,
        threads: &rayon::ThreadPool,
        progress: &Progress,
    ) -> Result<VerifyReport>;

    /// Sets damage aside.
    fn repair(
        &self,
        deep: bool,
        threads: &rayon::ThreadPool,
        progress: &Progress,
    ) -> Result<RepairReport>;

    /// Figures.
    fn stats(&self) -> Result<Stats>;
}

impl Maintenance for Arc<LocalRepository> {
    fn repository(&self) -> &dyn Repository {
        &**self
    }

    fn pack_bytes(&self) -> Result<u64> {
        let packs = list_packs(&**self.storage())?.sealed;
        Ok(packs.iter().map(|(_, len)| len).sum())
    }

    fn forget(&self, ids: &[SnapshotId]) -> Result<()> {
        self.snapshots().forget(ids)
    }

    fn protect(&self, id: SnapshotId, protected: bool) -> Result<()> {
        self.snapshots().protect(id, protected)
    }

    fn lock(&self, id: SnapshotId, end: LockEnd) -> Result<UnixMs> {
        self.snapshots().lock(id, end)
    }

    fn collect(&self, options: &CollectOptions, progress: &Progress) -> Result<CollectReport> {
        collect(self, options, progress)
    }

    fn verify(
        &self,
        options: &VerifyOptions,
        threads: &rayon::ThreadPool,
        progress: &Progress,
    ) -> Result<VerifyReport> {
        verify(self, options, threads, progress)
    }

    fn repair(
        &self,
        deep: bool,
        threads: &rayon::ThreadPool,
        progress: &Progress,
    ) -> Result<RepairReport> {
        repair(self, deep, threads, progress)
    }

    fn stats(&self) -> Result<Stats> {
        stats(self)
    }
}
