//! What all readers of file systems can do.

use super::error::{FileError, Result};
use super::name::{FileName, FilePath};

/// Links that are followed on the way to a file, as Linux does.
const LINKS_MAX: usize = 40;

/// What something in a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and what it says.
    Link(Vec<u8>),
    /// A device, a pipe or a socket, by the letter that `ls -l` has for it.
    Special(char),
}

/// To whom something belongs, by the guest's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

/// When something was written last, since 1970, UTC. FAT knows no time zone: its times are taken as UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modified {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds, below 10^9.
    pub nanoseconds: u32,
}

/// What is known of something in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// What it is.
    pub kind: FileKind,
    /// Bytes, of files.
    pub len: u64,
    /// Permissions, 12 bits, where the file system has them.
    pub mode: Option<u16>,
    /// To whom it belongs, where the file system knows.
    pub owner: Option<Owner>,
    /// When it was written last, where that is known.
    pub modified: Option<Modified>,
}

impl FileInfo {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

/// Something in a directory.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: FileName,
    /// What is known of it, or why nothing is.
    pub info: Result<FileInfo>,
}

/// What is in a directory.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// What could be read, in the order of the directory.
    pub entries: Vec<DirectoryEntry>,
    /// Why there may be more.
    pub faults: Vec<FileError>,
}

/// How much can be in a file system, by its size: what a walk comes to is not there more often than that.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Directories.
    pub directories: u64,
    /// Names in all of them.
    pub entries: u64,
}

/// A file's bytes, from its start to its end.
pub trait ReadFile {
    /// Fills the start of `out`, whose length is a multiple of 64 KiB; 0 bytes is the end.
    ///
    /// # Errors
    /// Why the next bytes cannot be had: the file cannot be read on.
    fn read(&mut self, out: &mut [u8]) -> Result<usize>;
}

/// The files of a file system. Paths that are given have no link in them but at their end: see [`FileTree::find`].
pub trait FileTree {
    /// What is at `path`; a link is what it is.
    ///
    /// # Errors
    /// [`FileError`].
    fn info(&self, path: &FilePath) -> Result<FileInfo>;

    /// What is in the directory `path`, without its dots.
    ///
    /// # Errors
    /// [`FileError`]; what could be read in spite of some is not lost: see [`Listing::faults`].
    fn list(&self, path: &FilePath) -> Result<Listing>;

    /// The bytes of the file at `path`.
    ///
    /// # Errors
    /// [`FileError`].
    fn open<'a>(&'a self, path: &FilePath) -> Result<Box<dyn ReadFile + 'a>>;

    /// More than can be there.
    fn bounds(&self) -> Bounds;

    /// Where `path` leads, with the links on the way followed, within the file system, but not one at its end.
    ///
    /// # Errors
    /// [`FileError`].
    fn find(&self, path: &FilePath) -> Result<(FilePath, FileInfo)> {
        let mut wanted: Vec<FileName> = path.names().rev().collect();
        let mut found = FilePath::root();
        let mut info = self.info(&found)?;
        let mut links = 0;
        while let Some(name) = wanted.pop() {
            if !info.is_directory() {
                return Err(FileError::NotADirectory);
            }
            let next = found.join(&name);
            let next_info = self.info(&next)?;
            match &next_info.kind {
                FileKind::Link(to) if !wanted.is_empty() => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(FileError::TooManyLinks);
                    }
                    let rest = next.beside(to)?;
                    wanted.extend(rest.names().rev());
                    found = FilePath::root();
                    info = self.info(&found)?;
                }
                _ => {
                    found = next;
                    info = next_info;
                }
            }
        }
        Ok((found, info))
    }

    /// Where `path` leads, with a link at its end followed, too.
    ///
    /// # Errors
    /// [`FileError`].
    fn follow(&self, path: &FilePath) -> Result<(FilePath, FileInfo)> {
        let (mut found, mut info) = self.find(path)?;
        for _ in 0..LINKS_MAX {
            let FileKind::Link(to) = &info.kind else {
                return Ok((found, info));
            };
            (found, info) = self.find(&found.beside(to)?)?;
        }
        Err(FileError::TooManyLinks)
    }
}
