//! The partitions of a disk, each a disk of its own, and what they hold.

mod cursor;
mod extract;
#[cfg(test)]
mod tests;
mod window;

use std::io;

use undercroft_format::file_system::{self, FileSystemKind};
use undercroft_format::partition::{PartitionTable, TableError, read_table};

pub use cursor::DiskCursor;
pub use extract::extract;
pub use window::DiskWindow;

use crate::disk::ReadDisk;

/// The partition table of `disk`; `partitions` is empty if it has none, and the disk is one file system or nothing.
///
/// # Errors
/// Those of reading the disk's start where no copy of the table helps; [`InvalidData`](io::ErrorKind::InvalidData) if
/// there was a table and nothing is left of it.
pub fn list(disk: &dyn ReadDisk) -> io::Result<PartitionTable> {
    let read = |offset: u64, out: &mut [u8]| disk.read_at(offset, out);
    read_table(disk.size(), read).map_err(|error| match error {
        TableError::Unreadable(cause) => cause,
        lost @ TableError::GptLost { .. } => io::Error::new(io::ErrorKind::InvalidData, lost),
    })
}

/// What a disk, or a partition, holds; `None` if it is nothing that is known.
///
/// # Errors
/// Those of reading the disk.
pub fn detect(disk: &dyn ReadDisk) -> io::Result<Option<FileSystemKind>> {
    file_system::detect(disk.size(), |offset, out: &mut [u8]| {
        disk.read_at(offset, out)
    })
}
