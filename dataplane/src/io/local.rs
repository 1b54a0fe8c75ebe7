//! A name space in a directory of the operating system.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::BlockFile;
use super::os_file::OsFile;
use super::storage::{Entry, Storage, check_len, check_path};

/// Permissions of new directories.
const PRIVATE_DIR: u32 = 0o700;

/// Makes a directory that is its owner's alone; its own directory must exist. One that exists already is
/// fine, and stays as it is.
///
/// # Errors
/// What the system says.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(PRIVATE_DIR).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Files under one directory. What is made there is its owner's alone: a config holds the keys of a
/// repository that is not encrypted, and packs hold its disks.
#[derive(Debug)]
pub struct LocalStorage {
    root: PathBuf,
}

impl LocalStorage {
    /// Names under `root`, which is not touched yet and may be missing.
    pub fn new(root: PathBuf) -> LocalStorage {
        LocalStorage { root }
    }

    /// The directory all names are under.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> io::Result<PathBuf> {
        check_path(path)?;
        Ok(self.root.join(path))
    }
}

impl Storage for LocalStorage {
    fn create(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(OsFile::create_new(self.path(path)?, direct)?))
    }

    fn open(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(OsFile::open_read(self.path(path)?, direct)?))
    }

    fn open_write(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(OsFile::open_write(self.path(path)?, direct)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from)?, self.path(to)?)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path)?)
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        create_private_dir(&self.path(path)?)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.path(path)?)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(dir)?)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed since the directory was read, so it is rightly not in the list.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let name = text(entry.file_name())?;
            entries.push(Entry {
                name,
                len: metadata.len(),
                is_dir: metadata.is_dir(),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn names(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(self.path(dir)?)?
            .map(|entry| text(entry?.file_name()))
            .collect::<io::Result<Vec<String>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Snapshots are read by the ten thousand: this asks the system for no more than it must.
    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(self.path(path)?)?;
        let len = file.metadata()?.len();
        check_len(len, limit)?;
        let mut bytes = vec![0; len as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        // A directory's `fsync` includes its names; `fdatasync` need not.
        fs::File::open(self.path(dir)?)?.sync_all()
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match fs::symlink_metadata(self.path(path)?) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn free_space(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.root).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn text(name: OsString) -> io::Result<String> {
    name.into_string().map_err(|name| {
        let message = format!("{name:?} is not a name of ours");
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}
