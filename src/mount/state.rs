//! What is open.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::{FileHandle, FileType};
use parking_lot::RwLock;
use undercroft_dataplane::disk::ReadDisk;
use undercroft_format::units::DiskRange;

use super::files::{Files, Open};
use super::nodes::Nodes;

/// What is open, and what there is. Outlives the session.
pub struct State {
    /// What there is.
    pub files: Files,
    /// Its numbers.
    pub nodes: Nodes,
    open: RwLock<HashMap<u64, Handle>>,
    next: AtomicU64,
}

/// Something open.
#[derive(Clone)]
pub enum Handle {
    /// A file.
    File(Arc<Open>),
    /// A directory, as it was when it was opened: numbers, kinds and names.
    Directory(Arc<Vec<(u64, FileType, String)>>),
}

impl State {
    /// Nothing is open yet of `files`.
    pub fn new(files: Files) -> Arc<Self> {
        Arc::new(Self {
            files,
            nodes: Nodes::default(),
            open: RwLock::default(),
            next: AtomicU64::new(1),
        })
    }

    /// Lets go of what is not read any more; of everything if `all`.
    pub fn tidy(&self, all: bool) {
        if all {
            let closed = std::mem::take(&mut *self.open.write());
            drop(closed);
        }
        self.files.readers().tidy(all);
    }

    /// Opens something, and gives its handle.
    pub fn begin(&self, handle: Handle) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(number, handle);
        FileHandle(number)
    }

    /// What has a handle.
    pub fn handle(&self, handle: FileHandle) -> Option<Handle> {
        self.open.read().get(&handle.0).cloned()
    }

    /// Closes it. A disk's data is kept a while.
    pub fn end(&self, handle: FileHandle) {
        let closed = self.open.write().remove(&handle.0);
        if let Some(Handle::File(file)) = closed
            && let Open::Disk(_, lease) = &*file
        {
            self.files.readers().linger(lease.clone());
        }
    }
}

/// The first byte from `place` on that is data, or is none; a hole is at the end at the latest.
pub fn seek(disk: &dyn ReadDisk, place: u64, wants_data: bool) -> io::Result<Option<u64>> {
    let size = disk.size().get();
    let parts = disk.allocation(DiskRange::new(place, size), 2)?;
    let found = parts.iter().find(|part| part.is_data == wants_data);
    Ok(match found {
        Some(part) => Some(part.range.start),
        None if wants_data => None,
        None => Some(size),
    })
}
