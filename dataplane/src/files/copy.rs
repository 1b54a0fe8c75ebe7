//! Copies of files and directories out of a disk.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use thiserror::Error;

use super::error::FileError;
use super::name::FilePath;
use super::target::{TargetDirectory, os_name};
use super::tree::{DirectoryEntry, FileInfo, FileKind, FileTree};
use super::walk::{Descend, Step, walk};
use crate::progress::Progress;

pub use super::target::Keep;

/// Bytes read at once; a multiple of all blocks of file systems.
const BUFFER_LEN: usize = 1 << 20;

/// How to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// Directories, too, with all that is in them.
    pub recursive: bool,
    /// What is there gives way: files are replaced, directories are added to.
    pub replace: bool,
    /// What of permissions is kept.
    pub keep: Keep,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyCounts {
    /// Files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices, pipes and sockets that were left out.
    pub skipped: u64,
    /// Files whose set-user-ID or set-group-ID bit was left off.
    pub set_id_dropped: u64,
    /// What could not be had.
    pub damaged: u64,
}

/// Something that the user should know of one file; the copy goes on.
pub enum Notice<'a> {
    /// A device, a pipe or a socket is left out.
    Skipped(&'a FilePath),
    /// It cannot be had.
    Damaged(&'a FilePath, &'a FileError),
}

/// Why a copy ended before its end.
#[derive(Debug, Error)]
pub enum CopyError {
    /// What is to be copied cannot be had.
    #[error("{path} cannot be copied: {source}")]
    Source {
        /// What.
        path: FilePath,
        /// Why.
        source: FileError,
    },
    /// A directory without the wish to copy directories.
    #[error("{path} is a directory")]
    IsDirectory {
        /// Which.
        path: FilePath,
    },
    /// There is something already.
    #[error("{} is there already", .path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// The copy cannot be written.
    #[error("cannot write {}", .path.display())]
    Target {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user ended it.
    #[error("stopped")]
    Stopped,
}

/// A copy in progress.
pub struct Copier<'a> {
    tree: &'a dyn FileTree,
    options: CopyOptions,
    progress: Arc<Progress>,
    notice: &'a mut dyn FnMut(Notice<'_>),
    buffer: Vec<u8>,
    counts: CopyCounts,
}

impl<'a> Copier<'a> {
    /// Copies of what is in `tree`; `notice` hears of what is left out.
    pub fn new(
        tree: &'a dyn FileTree,
        options: CopyOptions,
        progress: Arc<Progress>,
        notice: &'a mut dyn FnMut(Notice<'_>),
    ) -> Self {
        Self {
            tree,
            options,
            progress,
            notice,
            buffer: vec![0; BUFFER_LEN],
            counts: CopyCounts::default(),
        }
    }

    /// What was copied so far.
    pub fn counts(&self) -> CopyCounts {
        self.counts
    }

    /// Writes the bytes of the file `path`, its links followed, to `out`.
    ///
    /// # Errors
    /// [`CopyError::Source`] also in the midst of the file: what was written then is its start.
    pub fn copy_to_writer(
        &mut self,
        path: &FilePath,
        out: &mut dyn Write,
    ) -> Result<(), CopyError> {
        let (found, info) = self.find(path, true)?;
        let source = |source| CopyError::Source {
            path: found.clone(),
            source,
        };
        if info.kind != FileKind::File {
            return Err(source(FileError::NotAFile));
        }
        let target = |source| CopyError::Target {
            path: "-".into(),
            source,
        };
        let mut file = self.tree.open(&found).map_err(source)?;
        loop {
            self.check_stopped()?;
            let read = file.read(&mut self.buffer).map_err(source)?;
            if read == 0 {
                break;
            }
            out.write_all(&self.buffer[..read]).map_err(target)?;
            self.counts.bytes += read as u64;
        }
        self.counts.files += 1;
        out.flush().map_err(target)
    }

    /// Copies `path` to `to`: into it, if that is a directory, otherwise under that name.
    ///
    /// # Errors
    /// [`CopyError`]. Damage within a directory is none: it is told and counted.
    pub fn copy(&mut self, path: &FilePath, to: &Path) -> Result<(), CopyError> {
        let (found, info) = self.find(path, !self.options.recursive)?;
        let target = |source| CopyError::Target {
            path: to.to_owned(),
            source,
        };
        let into = to.is_dir();
        let (directory, name, shown) = match (into, path.name()) {
            (true, Some(name)) => (
                TargetDirectory::open(to),
                Some(os_name(&name).to_owned()),
                to.join(os_name(&name)),
            ),
            (true, None) => {
                // What is there already would pass for damage of the disk.
                let is_empty = to.read_dir().map_err(target)?.next().is_none();
                if !is_empty && !self.options.replace {
                    return Err(CopyError::Exists {
                        path: to.to_owned(),
                    });
                }
                (TargetDirectory::open(to), None, to.to_owned())
            }
            (false, _) => {
                let name = to.file_name().map(OsStr::to_owned);
                let above = match to.parent() {
                    Some(above) if above != Path::new("") => above,
                    _ => Path::new("."),
                };
                (TargetDirectory::open(above), name, to.to_owned())
            }
        };
        let directory = directory.map_err(target)?;
        if !info.is_directory() {
            let name = name.ok_or_else(|| target(io::ErrorKind::InvalidInput.into()))?;
            return self.copy_one(&directory, &name, &shown, &found, &info);
        }
        if !self.options.recursive {
            return Err(CopyError::IsDirectory { path: found });
        }
        let top = match name {
            Some(name) => directory
                .directory(&name, self.options.replace)
                .map_err(|error| wrote(&shown, error))?,
            None => directory,
        };
        self.copy_tree(top, &shown, &found, &info)
    }

    /// A link is followed where no directories are copied: what it leads to is meant then.
    fn find(&self, path: &FilePath, follow: bool) -> Result<(FilePath, FileInfo), CopyError> {
        let found = if follow {
            self.tree.follow(path)
        } else {
            self.tree.find(path)
        };
        found.map_err(|source| CopyError::Source {
            path: path.clone(),
            source,
        })
    }

    /// What was asked for itself: that it cannot be had ends the copy.
    fn copy_one(
        &mut self,
        directory: &TargetDirectory,
        name: &OsStr,
        shown: &Path,
        path: &FilePath,
        info: &FileInfo,
    ) -> Result<(), CopyError> {
        match self.write_one(directory, name, path, info) {
            Ok(()) => Ok(()),
            Err(Failed::Source(source)) => Err(CopyError::Source {
                path: path.clone(),
                source,
            }),
            Err(Failed::Target(error)) => Err(wrote(shown, error)),
            Err(Failed::Stopped) => Err(CopyError::Stopped),
        }
    }

    fn copy_tree(
        &mut self,
        top: TargetDirectory,
        shown: &Path,
        path: &FilePath,
        info: &FileInfo,
    ) -> Result<(), CopyError> {
        let tree = self.tree;
        let mut open = vec![(top, info.clone())];
        let below = |inner: &FilePath| shown.join(OsStr::from_bytes(inner.below(path)));
        // Of the directory that the walk is about to enter.
        let mut next: Option<(TargetDirectory, FileInfo)> = None;
        walk(tree, path, &mut |step| {
            self.check_stopped()?;
            match step {
                Step::Enter(_) => open.extend(next.take()),
                Step::Fault(path, error) => self.damaged(path, error),
                Step::Leave(path) => {
                    if let Some((directory, info)) = open.pop() {
                        directory
                            .finish(&info, self.options.keep)
                            .map_err(|error| wrote(&below(path), error))?;
                        self.counts.directories += 1;
                    }
                }
                Step::Entry(path, entry) => {
                    let (directory, _) = open.last().expect("an entry lies in a directory");
                    let whole = path.join(&entry.name);
                    match self.write_entry(directory, &whole, entry) {
                        Ok(Some(made)) => {
                            next = Some(made);
                            return Ok(Descend::Yes);
                        }
                        Ok(None) => {}
                        Err(Failed::Source(error)) => self.damaged(&whole, &error),
                        Err(Failed::Stopped) => return Err(CopyError::Stopped),
                        Err(Failed::Target(error)) => {
                            match error.raw_os_error().map(Errno::from_raw_os_error) {
                                // Names that come twice, or that are none where they are written: the disk's fault.
                                Some(
                                    Errno::EXIST | Errno::NAMETOOLONG | Errno::ILSEQ | Errno::INVAL,
                                ) => {
                                    self.damaged(&whole, &FileError::Unnameable(error.to_string()));
                                }
                                _ => return Err(wrote(&below(&whole), error)),
                            }
                        }
                    }
                }
            }
            Ok(Descend::No)
        })
    }

    /// The directory, if that is what it is.
    fn write_entry(
        &mut self,
        directory: &TargetDirectory,
        path: &FilePath,
        entry: &DirectoryEntry,
    ) -> Result<Option<(TargetDirectory, FileInfo)>, Failed> {
        let info = entry.info.clone().map_err(Failed::Source)?;
        let name = os_name(&entry.name);
        if info.is_directory() {
            let made = directory
                .directory(name, self.options.replace)
                .map_err(Failed::Target)?;
            return Ok(Some((made, info)));
        }
        self.write_one(directory, name, path, &info)?;
        Ok(None)
    }

    fn write_one(
        &mut self,
        directory: &TargetDirectory,
        name: &OsStr,
        path: &FilePath,
        info: &FileInfo,
    ) -> Result<(), Failed> {
        let CopyOptions { keep, replace, .. } = self.options;
        match &info.kind {
            FileKind::Directory => return Err(Failed::Source(FileError::NotAFile)),
            FileKind::Special(_) => {
                self.counts.skipped += 1;
                (self.notice)(Notice::Skipped(path));
            }
            FileKind::Link(to) => {
                directory
                    .link(name, to, info, keep, replace)
                    .map_err(Failed::Target)?;
                self.counts.links += 1;
            }
            FileKind::File => {
                let mut source = self.tree.open(path).map_err(Failed::Source)?;
                let mut target = directory.file(name).map_err(Failed::Target)?;
                loop {
                    self.check_stopped().map_err(|_| Failed::Stopped)?;
                    let read = source.read(&mut self.buffer).map_err(Failed::Source)?;
                    if read == 0 {
                        break;
                    }
                    target.write(&self.buffer[..read]).map_err(Failed::Target)?;
                    self.counts.bytes += read as u64;
                }
                target.finish(info, keep, replace).map_err(Failed::Target)?;
                self.counts.files += 1;
                let has_set_id = info.mode.is_some_and(|mode| mode & 0o6000 != 0);
                self.counts.set_id_dropped += u64::from(has_set_id && !(keep.set_id && keep.owner));
            }
        }
        Ok(())
    }

    fn check_stopped(&self) -> Result<(), CopyError> {
        if self.progress.is_stopping() {
            Err(CopyError::Stopped)
        } else {
            Ok(())
        }
    }

    fn damaged(&mut self, path: &FilePath, error: &FileError) {
        self.counts.damaged += 1;
        (self.notice)(Notice::Damaged(path, error));
    }
}

/// Why one file was not copied.
enum Failed {
    Source(FileError),
    Target(io::Error),
    Stopped,
}

fn wrote(path: &Path, error: io::Error) -> CopyError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::AlreadyExists => CopyError::Exists { path },
        _ => CopyError::Target {
            path,
            source: error,
        },
    }
}
