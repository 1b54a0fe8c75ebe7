//! A disk as those see it who read it anywhere: a mount, an export, a file system.

use std::io;

use undercroft_format::units::{DiskLength, DiskRange};

/// Part of a disk, and whether anything is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The part.
    pub range: DiskRange,
    /// True if it may hold data; false if it is known to read as zeros.
    pub is_data: bool,
}

/// A disk that can be read anywhere, by many threads at once.
pub trait ReadDisk: Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> DiskLength;

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) for what does not end within the disk; otherwise the
    /// cause, which names the disk and what of it cannot be read. `out` holds nothing of use then.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// What is there in `range`, in order and without gaps; `range` lies within the disk. No more than the first
    /// `parts_max` parts, of which no two neighbours are alike.
    ///
    /// # Errors
    /// As of [`read_at`](Self::read_at).
    fn allocation(&self, range: DiskRange, parts_max: usize) -> io::Result<Vec<Allocation>>;
}
