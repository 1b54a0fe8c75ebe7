//! A repository's disk in memory, which can fail, fill up and lose power.
//!
//! [`SimStorage`] is stricter than any real file system: nothing is durable but what was synced, bytes by
//! [`BlockFile::sync`] and names by [`Storage::sync_dir`]. A crash test runs a workload with
//! [`SimStorage::set_crash_after`] at every operation count, and looks at all [`SimStorage::crash_states`].
//! The same calls always give the same states: there is no clock and no chance but the seed.

mod crash;
mod disk;
mod engine;
mod fault;
mod file;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use self::crash::crash_disks;
use self::disk::{Disk, Inode};
pub use self::engine::SimEngine;
use self::fault::Faults;
pub use self::fault::SimOp;
pub use self::file::SimFile;
use super::file::BlockFile;
use super::storage::{Entry, Storage};

/// A simulated disk; clones are the same disk.
#[derive(Clone)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
}

struct State {
    disk: Disk,
    faults: Faults,
}

impl SimStorage {
    /// An empty disk without limit or fault.
    #[expect(
        clippy::new_without_default,
        reason = "an empty disk is a choice of the test"
    )]
    pub fn new() -> SimStorage {
        SimStorage::with_disk(Disk::new())
    }

    /// Disks that could be found if the power failed now, without limit or fault: all there can be, if
    /// these are at most `limit`, or else some chosen by `rng_seed`. At least two are allowed, for "all that
    /// was not synced is lost" and "all of it is kept" are always among them.
    ///
    /// Each state has its own copy of the files with bytes not synced, and shares the others.
    pub fn crash_states(&self, rng_seed: u64, limit: usize) -> Vec<SimStorage> {
        let state = self.state.lock();
        crash_disks(&state.disk, rng_seed, limit)
            .into_iter()
            .map(SimStorage::with_disk)
            .collect()
    }

    /// Mutating operations carried out so far: writes, changes of length, holes punched, and names
    /// created, renamed and removed. A failed operation counts only if it wrote something.
    pub fn op_count(&self) -> u64 {
        self.state.lock().faults.op_count()
    }

    /// Fails every operation, reads and syncs too, once `op_count` mutating ones have been carried out
    /// since the disk was made; `u64::MAX` for never.
    pub fn set_crash_after(&self, op_count: u64) {
        self.state.lock().faults.set_crash_after(op_count);
    }

    /// Fails the `n`-th operation of a kind from now on, counted from one; those after it work again.
    ///
    /// A failed [`SimOp::Sync`] loses what it should have made durable, at once and for good, as Linux
    /// does; all others leave the disk as it was.
    pub fn fail_nth(&self, kind: SimOp, n: u64, errno: i32) {
        self.state.lock().faults.fail_nth(kind, n, errno);
    }

    /// Takes back what [`set_crash_after`](Self::set_crash_after) and [`fail_nth`](Self::fail_nth) said.
    pub fn clear_faults(&self) {
        self.state.lock().faults.clear();
    }

    /// Lets all named files together have at most `bytes` bytes; a write beyond them stores what fits and
    /// fails with `ENOSPC`. Files already larger stay; `u64::MAX` for no limit.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().disk.set_capacity(bytes);
    }

    /// Turns over bit `bit` (0 to 7) of a file's byte at `offset`, durably. Not an operation: it counts
    /// for nothing.
    ///
    /// # Errors
    /// There is no such file or byte.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u32) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.disk.resolve_file(path)?;
        state.disk.flip_bit(inode, offset, bit)
    }

    /// All paths, with the bytes of files and `None` for directories.
    pub fn contents(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        self.state.lock().disk.contents()
    }

    fn with_disk(disk: Disk) -> SimStorage {
        SimStorage {
            state: Arc::new(Mutex::new(State {
                disk,
                faults: Faults::none(),
            })),
        }
    }

    fn file(&self, inode: Inode, writable: bool) -> Arc<dyn BlockFile> {
        Arc::new(SimFile {
            state: Arc::clone(&self.state),
            inode,
            writable,
        })
    }

    fn open_existing(&self, path: &str, writable: bool) -> io::Result<Arc<dyn BlockFile>> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::Open)?;
        let inode = state.disk.resolve_file(path)?;
        Ok(self.file(inode, writable))
    }
}

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimStorage({} operations)", self.op_count())
    }
}

impl Storage for SimStorage {
    fn create(&self, path: &str, _direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::Create)?;
        let inode = state.disk.create(path)?;
        state.faults.mutated();
        Ok(self.file(inode, true))
    }

    fn open(&self, path: &str, _direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        self.open_existing(path, false)
    }

    fn open_write(&self, path: &str, _direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        self.open_existing(path, true)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::Rename)?;
        if state.disk.rename(from, to)? {
            state.faults.mutated();
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::Remove)?;
        state.disk.remove_file(path)?;
        state.faults.mutated();
        Ok(())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::CreateDir)?;
        if state.disk.create_dir(path)? {
            state.faults.mutated();
        }
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::Remove)?;
        state.disk.remove_dir(path)?;
        state.faults.mutated();
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::List)?;
        state.disk.list(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.faults.check(SimOp::SyncDir)?;
        let inode = state.disk.resolve_dir(dir)?;
        state.disk.sync_dir(inode);
        Ok(())
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let state = self.state.lock();
        state.faults.check_power()?;
        match state.disk.resolve(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn free_space(&self) -> Option<u64> {
        self.state.lock().disk.free_space()
    }
}

#[cfg(test)]
mod tests;
