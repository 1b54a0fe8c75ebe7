//! What there is to read: a disk with addresses, a stream without, or a disk of an archive.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use undercroft_format::partition::{PARTITION_HEAD_LEN, grid_phase};
use undercroft_format::ranges::RangeSet;
use undercroft_format::units::{DiskLength, DiskRange};

use super::in_order::OrderedDisk;
use super::xva::archive::ArchivedDisk;
use crate::io::{BlockFile, BufferPool, Engine, OsFile, Piece, Queue};

/// Where a disk's bytes come from.
pub enum Source {
    /// A raw file or a block device.
    Disk(DiskSource),
    /// What changed on a disk since the job's parent: without that it is nothing.
    Delta(Box<dyn Changes>),
    /// Bytes in order, without addresses or a known end.
    Stream(Box<dyn Read + Send>),
    /// Bytes in order with their places.
    InOrder(Box<dyn OrderedDisk>),
    /// A disk of an XVA. All disks of the job are of the same one then.
    Archived(ArchivedDisk),
}

impl Source {
    /// Bytes of the disk, if they are known before it is read.
    pub fn size(&self) -> Option<DiskLength> {
        match self {
            Self::Disk(disk) => Some(disk.size()),
            Self::Delta(delta) => Some(delta.size()),
            // What a pipe brings is not known before it is read.
            Self::Stream(_) | Self::InOrder(_) => None,
            Self::Archived(disk) => Some(disk.size),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(disk) => disk.fmt(f),
            Self::Delta(delta) => delta.fmt(f),
            Self::Stream(_) => f.write_str("Stream"),
            Self::InOrder(disk) => disk.fmt(f),
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
    /// Set when something was found where the source says that there are zeros.
    holes_distrusted: Arc<AtomicBool>,
    layout: Option<Arc<dyn Layout>>,
    /// The last answer to [`next_data`](Self::next_data).
    known: Arc<Mutex<Option<KnownData>>>,
}

/// Where the first data at or after `from` are.
#[derive(Clone, Debug)]
struct KnownData {
    from: u64,
    data: Option<Range<u64>>,
}

impl KnownData {
    /// The first data at or after `offset`, if that is known.
    fn after(&self, offset: u64) -> Option<Option<Range<u64>>> {
        if offset < self.from {
            return None;
        }
        match &self.data {
            None => Some(None),
            Some(data) if offset < data.end => Some(Some(data.start.max(offset)..data.end)),
            Some(_) => None,
        }
    }
}

/// What changed on a disk, and the bytes that are there now.
pub trait Changes: fmt::Debug + Send {
    /// Size of the disk now.
    fn size(&self) -> DiskLength;

    /// The ranges that changed, rounded outwards where that saves memory.
    ///
    /// # Errors
    /// What the system says.
    fn changed(&self) -> io::Result<RangeSet>;

    /// The disk: what changed, over `parent`.
    fn over(self: Box<Self>, parent: Arc<dyn BlockFile>) -> DiskSource;
}

/// Where the bytes of a disk lie that is no file of its own.
pub trait Layout: fmt::Debug + Send + Sync {
    /// Tells `found` of the places of `range`'s bytes, in order. What lies between them is zero.
    ///
    /// # Errors
    /// What the system says.
    fn places(&self, range: DiskRange, found: &mut dyn FnMut(Place<'_>)) -> io::Result<()>;
}

/// Bytes of a disk and where they lie.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where on the disk.
    pub range: DiskRange,
    /// In which file.
    pub file: &'a Arc<dyn BlockFile>,
    /// Where in the file, in bytes.
    pub file_offset: u64,
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
            holes_distrusted: Arc::default(),
            layout: None,
            known: Arc::default(),
        })
    }

    /// A disk whose bytes lie where `layout` says: `file` answers what is small, and tells holes.
    pub fn scattered(
        file: Arc<dyn BlockFile>,
        size: u64,
        direct: bool,
        layout: Arc<dyn Layout>,
    ) -> Self {
        Self {
            file,
            size: DiskLength::new(size),
            direct,
            reads: None,
            holes_distrusted: Arc::default(),
            layout: Some(layout),
            known: Arc::default(),
        }
    }

    /// A disk elsewhere: `file` answers what is small, `reads` does the work.
    pub fn remote(file: Arc<dyn BlockFile>, size: u64, reads: Arc<dyn Reads>) -> Self {
        Self {
            file,
            size: DiskLength::new(size),
            direct: true,
            reads: Some(reads),
            holes_distrusted: Arc::default(),
            layout: None,
            known: Arc::default(),
        }
    }

    /// Adds what has to be read so that `out`, which lies in a buffer from `buffer_offset` on, holds the bytes of
    /// `range`; what lies nowhere is zeroed at once.
    ///
    /// # Errors
    /// What the system says.
    pub fn add_pieces(
        &self,
        range: DiskRange,
        buffer_offset: usize,
        out: &mut [u8],
        pieces: &mut Vec<Piece>,
    ) -> io::Result<()> {
        let piece = |file: &Arc<dyn BlockFile>, file_offset, at: usize, len: u64| Piece {
            file: file.clone(),
            file_offset,
            buffer_offset: buffer_offset + at,
            len: len as usize,
        };
        let Some(layout) = &self.layout else {
            pieces.push(piece(&self.file, range.start, 0, range.len()));
            return Ok(());
        };
        let mut done = 0;
        layout.places(range, &mut |place| {
            let at = (place.range.start - range.start) as usize;
            out[done..at].fill(0);
            pieces.push(piece(place.file, place.file_offset, at, place.range.len()));
            done = at + place.range.len() as usize;
        })?;
        out[done..range.len() as usize].fill(0);
        Ok(())
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
        if self.holes_distrusted.load(Ordering::Relaxed) {
            return Ok(Some(offset..size));
        }
        Ok(self.next_in_file(offset)?.map(|range| {
            let start = (range.start & !4095).max(offset);
            start..range.end.next_multiple_of(4096).min(size)
        }))
    }

    /// From now on everything is read, whatever the source says of holes.
    pub fn distrust_holes(&self) {
        self.holes_distrusted.store(true, Ordering::Relaxed);
    }

    /// The same, as the file has it. A file system looks for the end of data page by page or extent by extent:
    /// for one range that changed after the other, it would look at the rest of the file each time.
    fn next_in_file(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut known = self.known.lock();
        if let Some(found) = known.as_ref().and_then(|known| known.after(offset)) {
            return Ok(found);
        }
        let data = self.file.next_data(offset, self.size.get())?;
        *known = Some(KnownData {
            from: offset,
            data: data.clone(),
        });
        Ok(data)
    }

    /// The phase of the chunker's grid: see [`undercroft_format::partition`].
    pub fn grid_phase(&self) -> io::Result<u16> {
        let mut head = vec![0; PARTITION_HEAD_LEN];
        let got = self.file.read_at(&mut head, 0)?;
        Ok(grid_phase(&head[..got], self.size))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A file with some data, which counts how often it is asked for them.
    #[derive(Debug, Default)]
    struct Asked {
        data: Vec<Range<u64>>,
        times: AtomicUsize,
    }

    impl BlockFile for Asked {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }

        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn len(&self) -> io::Result<u64> {
            Ok(100_000)
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn punch(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn next_data(&self, offset: u64, _: u64) -> io::Result<Option<Range<u64>>> {
            self.times.fetch_add(1, Ordering::Relaxed);
            let next = self.data.iter().find(|data| offset < data.end);
            Ok(next.map(|data| data.start.max(offset)..data.end))
        }

        fn advise_dont_need(&self) {}
    }

    #[test]
    fn what_is_known_of_holes_is_not_asked_again() {
        let file = Arc::new(Asked {
            data: vec![8_192..40_960, 81_920..90_000],
            times: AtomicUsize::new(0),
        });
        let source = DiskSource::new(file.clone(), true).expect("it has a length");
        let asked = |offset| {
            let found = source.next_data(offset).expect("it cannot fail");
            (found, file.times.load(Ordering::Relaxed))
        };
        assert_eq!(asked(0), (Some(8_192..40_960), 1));
        assert_eq!(asked(5_000), (Some(8_192..40_960), 1));
        assert_eq!(asked(9_000), (Some(9_000..40_960), 1));
        assert_eq!(asked(40_959), (Some(40_959..40_960), 1));
        assert_eq!(asked(40_960), (Some(81_920..90_112), 2));
        assert_eq!(asked(89_000), (Some(89_000..90_112), 2));
        assert_eq!(asked(90_000), (None, 3));
        assert_eq!(asked(95_000), (None, 3));
        assert_eq!(asked(0), (Some(8_192..40_960), 4), "back again");
    }
}
