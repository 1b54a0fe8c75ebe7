//! What there is to read: a disk with addresses, a stream without, or a disk of an archive.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use undercroft_format::partition::{PARTITION_HEAD_LEN, grid_phase};
use undercroft_format::units::DiskLength;

use super::xva::archive::ArchivedDisk;
use crate::io::{BlockFile, BufferPool, Engine, OsFile, Queue};

/// Where a disk's bytes come from.
pub enum Source {
    /// A raw file or a block device.
    Disk(DiskSource),
    /// Bytes in order, without addresses or a known end.
    Stream(Box<dyn Read + Send>),
    /// A disk of an XVA. All disks of the job are of the same one then.
    Archived(ArchivedDisk),
}

impl Source {
    /// Bytes of the disk, if they are known before it is read.
    pub fn size(&self) -> Option<DiskLength> {
        match self {
            Self::Disk(disk) => Some(disk.size()),
            Self::Stream(_) => None,
            Self::Archived(disk) => Some(disk.size),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(disk) => disk.fmt(f),
            Self::Stream(_) => f.write_str("Stream"),
            Self::Archived(disk) => disk.fmt(f),
        }
    }
}

/// A disk that can be read anywhere.
#[derive(Clone, Debug)]
pub struct DiskSource {
    file: Arc<dyn BlockFile>,
    size: DiskLength,
    direct: bool,
    reads: Option<Arc<dyn Reads>>,
}

/// Serves the reads of a disk that is no file of the system. It retries by itself: what it reports is final.
pub trait Reads: fmt::Debug + Send + Sync {
    /// Makes a queue, under the terms of [`Queue`].
    ///
    /// # Errors
    /// What the system says.
    fn queue(&self) -> io::Result<Box<dyn Queue>>;
}

/// A source could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("opening the source {path}")]
pub struct OpenSourceError {
    path: String,
    source: io::Error,
}

impl DiskSource {
    /// Opens a raw file or block device, past the page cache where that is possible.
    pub fn open(path: &Path) -> Result<Self, OpenSourceError> {
        let error = |source| OpenSourceError {
            path: path.display().to_string(),
            source,
        };
        if std::fs::metadata(path).map_err(error)?.is_dir() {
            return Err(error(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let file = OsFile::open_read(path, true).map_err(error)?;
        let direct = file.is_direct();
        Self::new(Arc::new(file), direct).map_err(error)
    }

    /// A disk behind any file.
    pub fn new(file: Arc<dyn BlockFile>, direct: bool) -> io::Result<Self> {
        Ok(Self {
            size: DiskLength::new(file.len()?),
            file,
            direct,
            reads: None,
        })
    }

    /// A disk elsewhere: `file` answers what is small, `reads` does the work.
    pub fn remote(file: Arc<dyn BlockFile>, size: u64, reads: Arc<dyn Reads>) -> Self {
        Self {
            file,
            size: DiskLength::new(size),
            direct: true,
            reads: Some(reads),
        }
    }

    /// A queue for reads of this disk: of `engine`, unless it is elsewhere.
    ///
    /// # Errors
    /// What the system says.
    pub fn queue(
        &self,
        engine: &dyn Engine,
        pool: &Arc<BufferPool>,
        depth: u32,
    ) -> io::Result<Box<dyn Queue>> {
        match &self.reads {
            Some(reads) => reads.queue(),
            None => engine.queue(pool, depth),
        }
    }

    /// True if a read that failed need not be tried again.
    pub fn retries_itself(&self) -> bool {
        self.reads.is_some()
    }

    /// Size of the disk.
    pub fn size(&self) -> DiskLength {
        self.size
    }

    /// The file behind.
    pub fn file(&self) -> &Arc<dyn BlockFile> {
        &self.file
    }

    /// True if reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The first range with data at or after `offset`; what lies between is a hole. Rounded outwards to
    /// 4 KiB, because the file system's idea of a hole may be finer than what can be read directly.
    pub fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let size = self.size.get();
        if offset >= size {
            return Ok(None);
        }
        Ok(self.file.next_data(offset, size)?.map(|range| {
            let start = (range.start & !4095).max(offset);
            start..range.end.next_multiple_of(4096).min(size)
        }))
    }

    /// The phase of the chunker's grid: see [`undercroft_format::partition`].
    pub fn grid_phase(&self) -> io::Result<u16> {
        let mut head = vec![0; PARTITION_HEAD_LEN];
        let got = self.file.read_at(&mut head, 0)?;
        Ok(grid_phase(&head[..got], self.size))
    }
}
