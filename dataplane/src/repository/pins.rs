//! Pins: what readers in other processes are reading stays until they are done.
//!
//! A reader writes the snapshot's file into `pins/` under a name of its own and locks it; the kernel
//! lets go of the lock when the reader ends, however it ends. A collection treats the snapshots in
//! locked pins as roots, and leaves the packs in place while there are any. The reader checks that the
//! snapshot is still published after it has pinned it, and a collection lists pins after snapshots:
//! whichever order the two meet in, either the reader sees that it came too late or the collection sees
//! the pin.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use undercroft_format::id::{SessionId, SnapshotId};
use undercroft_format::snapshot::SNAPSHOT_LEN_MAX;

use super::entropy::Entropy;
use super::error::{RepositoryError, Result};
use super::layout;
use crate::io::PRIVATE_FILE;

/// A pinned snapshot, until dropped.
#[derive(Debug)]
pub struct Pin {
    path: PathBuf,
    file: File,
}

impl Pin {
    /// Pins snapshot `id` of the repository at `root`. `None` where the repository cannot be written:
    /// then nobody can collect there either.
    ///
    /// On a full disk the pin stays empty. It still keeps packs in place, and the snapshot's chunks as
    /// long as the snapshot is published; if it is forgotten, a collection fails until the reader is done.
    pub fn set(root: &Path, id: SnapshotId, entropy: &dyn Entropy) -> Result<Option<Self>> {
        let source = root.join(layout::snapshot(id));
        let name = SessionId::from_bytes(entropy.array()?);
        let path = root.join(layout::PINS).join(format!("{id}-{name}"));
        let mut options = File::options();
        options.write(true).create_new(true).mode(PRIVATE_FILE);
        let Ok(file) = options.open(&path) else {
            return Ok(None);
        };
        let pin = Self { path, file };
        flock(&pin.file, FlockOperation::LockExclusive)
            .map_err(|errno| RepositoryError::io("locking", layout::PINS)(errno.into()))?;
        let missing = |_| RepositoryError::NoSuchSnapshot { id };
        let content = std::fs::read(&source).map_err(missing)?;
        if (&pin.file).write_all(&content).is_err() {
            let _ = pin.file.set_len(0);
        }
        std::fs::metadata(&source).map_err(missing)?;
        // A collection that met the file before it was locked took it for a dead reader's.
        if !pin.path.exists() {
            return Self::set(root, id, entropy);
        }
        Ok(Some(pin))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A pin found by a collection.
#[derive(Debug)]
pub struct FoundPin {
    /// The snapshot that is being read.
    pub id: SnapshotId,
    /// Its file.
    pub bytes: Vec<u8>,
}

/// The pins of readers that live; those of readers that died are removed.
///
/// # Errors
/// Any failure of the listing.
pub fn live_pins(root: &Path) -> Result<Vec<FoundPin>> {
    let io = |action| RepositoryError::io(action, layout::PINS);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join(layout::PINS)).map_err(io("listing"))? {
        let entry = entry.map_err(io("listing"))?;
        let Ok(file) = File::open(entry.path()) else {
            continue;
        };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            std::fs::remove_file(entry.path()).map_err(io("removing a stale file of"))?;
            continue;
        }
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.split('-').next()?.parse().ok());
        let (Some(id), Ok(meta)) = (id, file.metadata()) else {
            continue;
        };
        if meta.len() <= SNAPSHOT_LEN_MAX
            && let Ok(bytes) = std::fs::read(entry.path())
        {
            found.push(FoundPin { id, bytes });
        }
    }
    Ok(found)
}
