//! The repository's name space: small directories of files, by relative `/`-separated paths.
//!
//! What is durable when: a file's bytes after its [`BlockFile::sync`], a name (created, renamed, removed)
//! after [`Storage::sync_dir`] of its directory. Nothing else orders anything. `""` is the root.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use super::file::BlockFile;

/// One thing in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the directory, no path.
    pub name: String,
    /// Size in bytes; of no meaning for directories.
    pub len: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Names and the files behind them.
pub trait Storage: Send + Sync + Debug {
    /// Creates a file; its directory must exist. `direct` asks for I/O around the page cache.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if there is something of that name.
    fn create(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>>;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], above all.
    fn open(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], above all.
    fn open_write(&self, path: &str, direct: bool) -> io::Result<Arc<dyn BlockFile>>;

    /// Renames a file or directory, replacing what `to` names; all or nothing.
    ///
    /// # Errors
    /// What the system says; nothing was renamed.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`], above all.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Creates a directory; its own directory must exist. One that exists already is fine.
    ///
    /// # Errors
    /// What the system says.
    fn create_dir(&self, path: &str) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`io::ErrorKind::DirectoryNotEmpty`], above all.
    fn remove_dir(&self, path: &str) -> io::Result<()>;

    /// Everything in a directory, by name.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is no such directory. A listing that cannot be read to its
    /// end is an error, never a short list: what a caller does not see, it may delete.
    fn list(&self, dir: &str) -> io::Result<Vec<Entry>>;

    /// The names in a directory, sorted: a listing without looking at what is behind them, which costs
    /// less.
    ///
    /// # Errors
    /// As [`Storage::list`].
    fn names(&self, dir: &str) -> io::Result<Vec<String>> {
        Ok(self
            .list(dir)?
            .into_iter()
            .map(|entry| entry.name)
            .collect())
    }

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// What the system says; final, as with [`BlockFile::sync`].
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// Whether something has that name.
    ///
    /// # Errors
    /// It cannot be told.
    fn exists(&self, path: &str) -> io::Result<bool>;

    /// Bytes that can still be written, if that is known.
    fn free_space(&self) -> Option<u64>;

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if it is larger, before anything is read.
    fn read(&self, path: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path, false)?;
        let len = file.len()?;
        check_len(len, limit)?;
        let mut bytes = vec![0; len as usize];
        let actual = file.read_at(&mut bytes, 0)?;
        if actual < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    /// Creates a file with these bytes, durable; its name is not (see [`Storage::sync_dir`]), and after a
    /// crash it may be there with fewer bytes, so this is for files that prove their own completeness.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or what the system says; then a part of the file may be there.
    fn write_new(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.create(path, false)?;
        file.write_all_at(bytes, 0)?;
        file.sync()
    }

    /// Makes a file have these bytes, atomically and durably: after a crash it has the old ones or the
    /// new ones, and after a success the new ones.
    ///
    /// Goes through `<path>.tmp`, replacing one that a crash left.
    ///
    /// # Errors
    /// What the system says; the file has the old bytes or, if only making the name durable failed, may
    /// have the new ones.
    fn publish(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{path}.tmp");
        match self.write_new(&temporary, bytes) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.remove(&temporary)?;
                self.write_new(&temporary, bytes)?;
            }
            other => other?,
        }
        self.rename(&temporary, path)?;
        self.sync_dir(parent_of(path))
    }
}

/// Refuses a file that is longer than `limit` bytes.
pub(super) fn check_len(len: u64, limit: u64) -> io::Result<()> {
    if len <= limit {
        return Ok(());
    }
    let message = format!("the file has {len} bytes, more than the {limit} it may have");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// The directory part of a path; `""` for names in the root.
pub(super) fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Refuses paths that could leave the root or that have two spellings.
pub(super) fn check_path(path: &str) -> io::Result<()> {
    let is_plain = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
    if path.is_empty() || path.split('/').all(is_plain) {
        return Ok(());
    }
    let message = format!("{path:?} is not a plain relative path");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}
