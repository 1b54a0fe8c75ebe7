//! Private files that change as a whole: written beside, synced, renamed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use zeroize::Zeroizing;

use super::error::{Result, TrustError};

/// Which version of a file was read: two that follow each other never have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

/// Makes the directory at `path`, for its owner alone, if it is not there.
pub(super) fn create_directory(path: &Path) -> Result<()> {
    let create = || -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        give_away(path, &File::open(path)?)
    };
    create().map_err(TrustError::io("creating", path))
}

/// What root makes at `path` belongs to the owner of the directory around it: a server that runs as
/// another user must be able to read what its administrator changed.
pub(super) fn give_away(path: &Path, file: &File) -> io::Result<()> {
    let around = std::fs::metadata(directory_of(path))?;
    if rustix::process::geteuid().is_root() && around.uid() != 0 {
        fchown(file, Some(around.uid()), Some(around.gid()))?;
    }
    Ok(())
}

/// Replaces the file at `path`: after a crash it has the old content or the new one. Durable on return.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        // What an interrupted write left may have other permissions than a new file.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        give_away(path, &file)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_directory_of(path)
    };
    write().map_err(TrustError::io("writing", path))
}

/// Removes the file at `path`, if it is there. Durable on return.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other,
    }
    .and_then(|()| sync_directory_of(path))
    .map_err(TrustError::io("removing", path))
}

/// The content of the file at `path`, at most one byte more than `len_max`; `None` if there is none.
///
/// # Errors
/// [`TrustError::TooOpen`] if others than its owner can read it.
pub(super) fn read(path: &Path, len_max: usize) -> Result<Option<(Zeroizing<Vec<u8>>, Stamp)>> {
    let io = |action| TrustError::io(action, path);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("opening")(error)),
    };
    let metadata = file.metadata().map_err(io("reading"))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TrustError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    let mut content = Zeroizing::new(Vec::new());
    file.take(len_max as u64 + 1)
        .read_to_end(&mut content)
        .map_err(io("reading"))?;
    Ok(Some((content, stamp_of(&metadata))))
}

/// Which version of the file stands at `path`; `None` if there is none.
pub(super) fn stamp(path: &Path) -> Result<Option<Stamp>> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(stamp_of(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrustError::io("looking at", path)(error)),
    }
}

fn stamp_of(metadata: &std::fs::Metadata) -> Stamp {
    Stamp {
        // A version and the next one exist at the same time, so their inodes differ.
        inode: metadata.ino(),
        len: metadata.len(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(directory_of(path))?.sync_all()
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_private_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert!(read(&path, 10).unwrap().is_none());
        replace(&path, b"one").unwrap();
        let (content, first) = read(&path, 10).unwrap().unwrap();
        assert_eq!(*content, b"one");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // A temporary file that a crash left, with permissions that somebody chose.
        std::fs::write(path.with_extension("new"), "torn").unwrap();
        replace(&path, b"two").unwrap();
        assert_ne!(stamp(&path).unwrap(), Some(first));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = read(&path, 10).unwrap_err();
        assert!(matches!(error, TrustError::TooOpen { mode: 0o640, .. }));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(stamp(&path).unwrap(), None);
    }
}
