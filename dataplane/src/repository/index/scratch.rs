//! A private directory that goes away with its owner.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// For what a read-only RocksDB insists on writing, outside the index.
#[derive(Debug)]
pub(super) struct ScratchDir {
    path: PathBuf,
}

impl ScratchDir {
    /// Makes an empty directory that only this user enters, under the system's temporary directory.
    pub(super) fn new() -> io::Result<Self> {
        let base = std::env::temp_dir();
        let process = std::process::id();
        for attempt in 0.. {
            let path = base.join(format!("undercroft-index-{process}-{attempt}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // Best effort: what stays behind is small and the system's to clean.
        let _ = fs::remove_dir_all(&self.path);
    }
}
