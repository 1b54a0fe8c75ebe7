//! One VHD, and which of a disk's bytes it holds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::units::DiskRange;
use undercroft_format::vhd::SECTOR_LEN;
use undercroft_format::vhd::bitmap;
use undercroft_format::vhd::blocks::{BlockTable, PlacedBlock};
use undercroft_format::vhd::header::BlockSize;
use undercroft_format::vhd::image::{Content, Image};

use super::error::VhdFileError;
use crate::io::{BlockFile, OsFile};

/// Bitmaps kept, by the number of their block. A segment has eight blocks of the usual size; they are looked at when
/// its runs are planned, and again when they are read.
const BITMAPS_MAX: usize = 16;

/// A VHD that is open.
#[derive(Debug)]
pub struct Layer {
    path: PathBuf,
    file: Arc<dyn BlockFile>,
    is_direct: bool,
    image: Image,
    bitmaps: Mutex<[Option<(u32, Arc<[u8]>)>; BITMAPS_MAX]>,
}

/// Bytes of a disk that a layer tells about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// They are the layer's, from this place in its file on.
    Here(u64),
    /// They are not: the parent's, or zeros.
    Below,
}

impl Layer {
    /// Opens a VHD, past the page cache where that is possible, and checks it.
    ///
    /// # Errors
    /// It cannot be read, or is not whole.
    pub fn open(path: &Path) -> Result<Self, VhdFileError> {
        let error = |source| VhdFileError::Open {
            path: path.display().to_string(),
            source,
        };
        let file = OsFile::open_read(path, true).map_err(error)?;
        let is_direct = file.is_direct();
        Self::new(path, Arc::new(file), is_direct)
    }

    /// A VHD in any file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(
        path: &Path,
        file: Arc<dyn BlockFile>,
        is_direct: bool,
    ) -> Result<Self, VhdFileError> {
        let shown = || path.display().to_string();
        let len = file.len().map_err(|source| VhdFileError::Open {
            path: shown(),
            source,
        })?;
        let mut read = |out: &mut [u8], offset| read_exact(&*file, out, offset);
        let image = Image::open(len, &mut read).map_err(|source| VhdFileError::Image {
            path: shown(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            is_direct,
            image,
            bitmaps: Mutex::default(),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub fn file(&self) -> &Arc<dyn BlockFile> {
        &self.file
    }

    /// True if reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// What it says of itself.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The paths that name its parent.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn parent_paths(&self) -> Result<Vec<String>, VhdFileError> {
        let mut read = |out: &mut [u8], offset| read_exact(&*self.file, out, offset);
        let paths = self.file.len().map_err(|source| VhdFileError::Open {
            path: self.path.display().to_string(),
            source,
        });
        let paths = self.image.parent_paths(paths?, &mut read);
        paths.map_err(|source| VhdFileError::Image {
            path: self.path.display().to_string(),
            source,
        })
    }

    /// Tells `found` of the parts of `range`, in order; bytes past the layer's end are below.
    ///
    /// # Errors
    /// A bitmap cannot be read, or what `found` says.
    pub fn parts(
        &self,
        range: DiskRange,
        found: &mut dyn FnMut(DiskRange, Part) -> io::Result<()>,
    ) -> io::Result<()> {
        let inside = range.intersect(DiskRange::new(0, self.image.size.get()));
        match &self.image.content {
            Content::Fixed if inside.is_empty() => {}
            Content::Fixed => found(inside, Part::Here(inside.start))?,
            Content::Blocks { table, .. } => self.parts_of_blocks(table, inside, found)?,
        }
        let past = DiskRange::new(inside.end.max(range.start), range.end);
        match past.is_empty() {
            true => Ok(()),
            false => found(past, Part::Below),
        }
    }

    fn parts_of_blocks(
        &self,
        table: &BlockTable,
        range: DiskRange,
        found: &mut dyn FnMut(DiskRange, Part) -> io::Result<()>,
    ) -> io::Result<()> {
        let size = table.block_size();
        let mut at = range.start;
        while at < range.end {
            let block = table.next(size.block_at(at));
            let block = block.map(|block| (block, size.range_of(block.number.into())));
            let Some((block, whole)) = block.filter(|(_, whole)| whole.start < range.end) else {
                return found(DiskRange::new(at, range.end), Part::Below);
            };
            if at < whole.start {
                found(DiskRange::new(at, whole.start), Part::Below)?;
                at = whole.start;
            }
            let end = whole.end.min(range.end);
            let bits = self.bitmap(block, size)?;
            while at < end {
                let run = run_at(&bits, at, whole, end);
                let part = match bitmap::is_set(&bits, sector_of(at, whole)) {
                    true => Part::Here(block.data_offset + (at - whole.start)),
                    false => Part::Below,
                };
                found(run, part)?;
                at = run.end;
            }
        }
        Ok(())
    }

    /// The first range at or after `offset` and before `end` that is the layer's.
    ///
    /// # Errors
    /// A bitmap cannot be read.
    pub fn next_here(&self, offset: u64, end: u64) -> io::Result<Option<DiskRange>> {
        let end = end.min(self.image.size.get());
        let table = match &self.image.content {
            Content::Fixed => {
                let data = self.file.next_data(offset, end)?;
                return Ok(data.map(|data| DiskRange::new(data.start, data.end)));
            }
            Content::Blocks { table, .. } => table,
        };
        let size = table.block_size();
        let mut at = offset;
        while at < end {
            let Some(block) = table.next(size.block_at(at)) else {
                break;
            };
            let whole = size.range_of(block.number.into());
            at = at.max(whole.start);
            let bits = self.bitmap(block, size)?;
            while at < whole.end.min(end) {
                let run = run_at(&bits, at, whole, end.min(whole.end));
                if bitmap::is_set(&bits, sector_of(at, whole)) {
                    return Ok(Some(run));
                }
                at = run.end;
            }
        }
        Ok(None)
    }

    fn bitmap(&self, block: PlacedBlock, size: BlockSize) -> io::Result<Arc<[u8]>> {
        let place = block.number as usize % BITMAPS_MAX;
        if let Some((number, bits)) = &self.bitmaps.lock()[place]
            && *number == block.number
        {
            return Ok(bits.clone());
        }
        let mut bits = vec![0; size.bitmap_len() as usize];
        read_exact(&*self.file, &mut bits, block.bitmap_offset)?;
        let bits: Arc<[u8]> = bits.into();
        self.bitmaps.lock()[place] = Some((block.number, bits.clone()));
        Ok(bits)
    }
}

/// The sector of the block at `whole` that byte `at` of the disk lies in.
fn sector_of(at: u64, whole: DiskRange) -> u32 {
    ((at - whole.start) / SECTOR_LEN) as u32
}

/// The range from `at` to `end` at most whose sectors are all as the first.
fn run_at(bits: &[u8], at: u64, whole: DiskRange, end: u64) -> DiskRange {
    let sectors = (end - whole.start).div_ceil(SECTOR_LEN) as u32;
    let run_end = bitmap::run_end(bits, sector_of(at, whole), sectors);
    DiskRange::new(at, (whole.start + u64::from(run_end) * SECTOR_LEN).min(end))
}

fn read_exact(file: &dyn BlockFile, out: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_at(out, offset)? == out.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
