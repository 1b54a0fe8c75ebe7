//! Files from inside a disk, read without mounting it.
//!
//! [`open`] makes a [`FileTree`] of a partition's bytes, [`walk`] goes through it, [`copy`] writes parts of it somewhere
//! else. What a guest wrote is believed in nothing: names are checked before anything is done with them, trees are
//! bounded by what can lie on the disk, and nothing that is read decides where something is written.
//!
//! File systems are read by crates of others, which may have bugs that a guest can reach: whoever calls does all of
//! it in one thread that may panic without harm.

pub mod copy;
mod error;
mod ext;
mod fat;
mod lenient;
mod name;
mod target;
mod tree;
pub mod walk;

use std::sync::Arc;

use undercroft_format::file_system::FileSystemKind;

pub use error::{FileError, Result};
pub use name::{Escaped, FileName, FilePath};
pub use tree::{DirectoryEntry, FileInfo, FileKind, FileTree, Listing, Modified, Owner, ReadFile};

use crate::disk::ReadDisk;

/// Whether there is a reader for file systems of this kind.
pub fn is_readable(kind: FileSystemKind) -> bool {
    kind.is_ext() || kind == FileSystemKind::Fat
}

/// The files of `disk`, which holds a file system of `kind`.
///
/// # Errors
/// [`FileError::NoReader`] for kinds that only the kernel reads; otherwise what is wrong with the file system.
pub fn open(disk: Arc<dyn ReadDisk>, kind: FileSystemKind) -> Result<Box<dyn FileTree>> {
    match kind {
        FileSystemKind::Ext2 | FileSystemKind::Ext3 | FileSystemKind::Ext4 => {
            Ok(Box::new(ext::ExtTree::open(disk)?))
        }
        FileSystemKind::Fat => Ok(Box::new(fat::FatTree::open(disk)?)),
        kind => Err(FileError::NoReader { kind }),
    }
}
