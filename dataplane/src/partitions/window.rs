//! A part of a disk as a disk.

use std::io;
use std::sync::Arc;

use undercroft_format::units::{DiskLength, DiskRange};

use crate::disk::{Allocation, ReadDisk};

/// Some range of a disk, such as a partition.
#[derive(Clone)]
pub struct DiskWindow {
    disk: Arc<dyn ReadDisk>,
    range: DiskRange,
}

impl DiskWindow {
    /// `range` of `disk`, as far as it lies on it.
    pub fn new(disk: Arc<dyn ReadDisk>, range: DiskRange) -> Self {
        let whole = DiskRange::new(0, disk.size().get());
        Self {
            range: range.intersect(whole),
            disk,
        }
    }

    /// Where it lies on the disk.
    pub fn range(&self) -> DiskRange {
        self.range
    }
}

impl ReadDisk for DiskWindow {
    fn size(&self) -> DiskLength {
        DiskLength::new(self.range.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.range.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read_at(self.range.start + offset, out)
    }

    fn allocation(&self, range: DiskRange, parts_max: usize) -> io::Result<Vec<Allocation>> {
        let start = self.range.start;
        let on_disk = DiskRange::new(start + range.start, start + range.end);
        let mut parts = self
            .disk
            .allocation(on_disk.intersect(self.range), parts_max)?;
        for part in &mut parts {
            part.range = DiskRange::new(part.range.start - start, part.range.end - start);
        }
        Ok(parts)
    }
}
