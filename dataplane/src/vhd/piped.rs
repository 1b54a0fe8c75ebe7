//! A VHD that comes as a stream, as XAPI's exports do: its head first, then its blocks in the disk's order.
//!
//! An export that fails midway ends like one that does not, so that nothing is believed before the footer at the end was
//! seen to be that of the start.

use std::fmt;
use std::io::{self, Read};

use undercroft_format::units::{DiskLength, DiskRange};
use undercroft_format::vhd::SECTOR_LEN;
use undercroft_format::vhd::bitmap;
use undercroft_format::vhd::blocks::{BlockTable, PlacedBlock};
use undercroft_format::vhd::error::VhdError;
use undercroft_format::vhd::footer::FOOTER_LEN;
use undercroft_format::vhd::image::{Content, Head, Image, OpenError};

use super::error::VhdFileError;
use crate::ingest::in_order::{OrderedDisk, Room};
use crate::ingest::xva::segments::ArchivedSegment;
use crate::repository::error::{RepositoryError, Result};

/// Bytes between the last block and the footer, at most. Writers leave none.
const TAIL_LEN_MAX: u64 = 1 << 20;
/// Bytes passed over at once.
const SKIP_LEN: usize = 64 << 10;

/// A VHD whose head was read.
pub struct PipedVhd {
    name: String,
    stream: Box<dyn Read + Send>,
    image: Image,
    table: BlockTable,
    /// Bytes of the stream that were read.
    at: u64,
    open: Option<OpenBlock>,
    /// Blocks before have been read.
    next: u64,
    is_complete: bool,
}

/// A block that is being read.
struct OpenBlock {
    /// Where it lies on the disk, its end not cut to the disk's.
    whole: DiskRange,
    bits: Vec<u8>,
    /// The next byte of the disk.
    at: u64,
}

impl PipedVhd {
    /// Reads the head of a dynamic VHD that comes as a stream called `name`.
    ///
    /// # Errors
    /// It cannot be read, is none that a stream can bring, or needs a parent.
    pub fn open(name: &str, mut stream: Box<dyn Read + Send>) -> Result<Self, VhdFileError> {
        let failed = |source| VhdFileError::Image {
            path: name.to_owned(),
            source,
        };
        let mut head = Vec::new();
        let image = loop {
            match Image::of_head(&head).map_err(|error| failed(error.into()))? {
                Head::Open(image) => break image,
                Head::Needs(len) => {
                    let from = head.len();
                    head.resize(len as usize, 0);
                    stream.read_exact(&mut head[from..]).map_err(|source| {
                        failed(OpenError::Read {
                            offset: from as u64,
                            len: head.len() - from,
                            source,
                        })
                    })?;
                }
            }
        };
        let Content::Blocks { table, .. } = &image.content else {
            unreachable!("only disks in blocks have a head");
        };
        if image.is_differencing() {
            return Err(VhdFileError::ChildInStream {
                path: name.to_owned(),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            stream,
            table: table.clone(),
            image,
            at: head.len() as u64,
            open: None,
            next: 0,
            is_complete: false,
        })
    }

    /// What it says of itself.
    pub fn image(&self) -> &Image {
        &self.image
    }

    fn failed(&self, error: impl Into<io::Error>) -> RepositoryError {
        let place = format!("the VHD {} at byte {}", self.name, self.at);
        RepositoryError::io("reading", &place)(error.into())
    }

    fn wrong(&self, error: VhdError) -> RepositoryError {
        let what = format!("the VHD {}", self.name);
        RepositoryError::io("reading", &what)(io::Error::other(error))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<()> {
        self.stream
            .read_exact(out)
            .map_err(|error| self.failed(error))?;
        self.at += out.len() as u64;
        Ok(())
    }

    fn skip(&mut self, mut len: u64) -> Result<()> {
        let mut scratch = vec![0; SKIP_LEN.min(len as usize)];
        while len > 0 {
            let now = len.min(SKIP_LEN as u64);
            self.read(&mut scratch[..now as usize])?;
            len -= now;
        }
        Ok(())
    }

    /// Begins the next block; false after the last.
    fn begin_block(&mut self) -> Result<bool> {
        let Some(block) = self.table.next(self.next) else {
            return Ok(false);
        };
        let PlacedBlock { number, .. } = block;
        // That they come in order was seen when the head was read.
        self.skip(block.bitmap_offset - self.at)?;
        let size = self.table.block_size();
        let mut bits = vec![0; size.bitmap_len() as usize];
        self.read(&mut bits)?;
        let whole = size.range_of(number.into());
        self.next = u64::from(number) + 1;
        self.open = Some(OpenBlock {
            whole,
            bits,
            at: whole.start,
        });
        Ok(true)
    }

    /// Reads on to the end, which has to be the footer.
    fn finish(&mut self) -> Result<()> {
        let mut tail = Vec::new();
        let limit = TAIL_LEN_MAX + FOOTER_LEN as u64;
        let read = (&mut self.stream).take(limit + 1).read_to_end(&mut tail);
        read.map_err(|error| self.failed(error))?;
        if tail.len() as u64 > limit || tail.len() < FOOTER_LEN {
            return Err(self.failed(io::Error::other(format!(
                "{} bytes follow the last block, expected a footer of {FOOTER_LEN} at the end of at most {limit}",
                tail.len()
            ))));
        }
        let place = tail.len() - FOOTER_LEN;
        let mut last = [0; FOOTER_LEN];
        last.copy_from_slice(&tail[place..]);
        let checked = self.image.check_end(&last, self.at + place as u64);
        checked.map_err(|error| self.wrong(error))
    }
}

impl OrderedDisk for PipedVhd {
    fn size(&self) -> DiskLength {
        self.image.size
    }

    fn next_segment(&mut self, room: &Room<'_>) -> Result<Option<ArchivedSegment>> {
        let size = self.image.size;
        let mut segment: Option<ArchivedSegment> = None;
        loop {
            if room.progress.is_stopping() {
                return Err(RepositoryError::Cancelled);
            }
            if self.open.is_none() && !self.begin_block()? {
                if !self.is_complete {
                    self.finish()?;
                    self.is_complete = true;
                }
                return Ok(segment);
            }
            let Some(open) = self.open.take() else {
                continue;
            };
            let number = room.segment_size.segment_at(open.at);
            if segment
                .as_ref()
                .is_some_and(|segment| segment.number != number)
            {
                self.open = Some(open);
                return Ok(segment);
            }
            let current = segment.get_or_insert_with(|| {
                ArchivedSegment::begin(number, room.segment_size, size, room.pool, room.progress)
            });
            let block_end = open.whole.end.min(size.get());
            let end = block_end.min(current.range().end);
            let part = DiskRange::new(open.at, end);
            self.read(current.space(part))?;
            add_runs(&open, part, current);
            if end < block_end {
                self.open = Some(OpenBlock { at: end, ..open });
            } else {
                self.skip(open.whole.end - block_end)?;
            }
        }
    }
}

/// Takes those sectors for data that the bitmap says are there.
fn add_runs(open: &OpenBlock, part: DiskRange, segment: &mut ArchivedSegment) {
    let sector = |at: u64| ((at - open.whole.start) / SECTOR_LEN) as u32;
    let last = (part.end - open.whole.start).div_ceil(SECTOR_LEN) as u32;
    let mut at = part.start;
    while at < part.end {
        let run_end = bitmap::run_end(&open.bits, sector(at), last);
        let end = (open.whole.start + u64::from(run_end) * SECTOR_LEN).min(part.end);
        if bitmap::is_set(&open.bits, sector(at)) {
            segment.push(DiskRange::new(at, end));
        }
        at = end;
    }
}

impl fmt::Debug for PipedVhd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PipedVhd({:?}, {} bytes)", self.name, self.image.size)
    }
}
