//! One process changes an authority's files at a time.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::error::{Result, TrustError};
use super::file;
use super::layout;

/// The right to change the files, until dropped. The lock is the kernel's: it goes with its holder,
/// however that ends.
#[derive(Debug)]
pub(super) struct Change {
    _lock: File,
}

impl Change {
    /// Waits for the right to change the files in `dir`: others have it for milliseconds.
    pub fn begin(dir: &Path) -> Result<Self> {
        let path = dir.join(layout::LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(TrustError::io("opening", &path))?;
        file::give_away(&path, &file).map_err(TrustError::io("opening", &path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { _lock: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(TrustError::io("locking", &path)(errno.into())),
            }
        }
    }
}
