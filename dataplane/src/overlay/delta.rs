//! What was written to an overlay, as what changed on a disk since the snapshot below.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use undercroft_format::overlay::{BLOCK_LEN, PART_LEN, PARTS, PartState};
use undercroft_format::ranges::RangeSet;
use undercroft_format::source::changed::ChangedRanges;
use undercroft_format::units::{DiskLength, DiskRange};

use super::Overlay;
use super::file::OverlayFile;
use crate::ingest::source::{Changes, DiskSource, Layout, Place};
use crate::io::BlockFile;

/// What changed on a disk.
#[derive(Debug)]
pub struct OverlayDelta(OverlayFile);

impl OverlayDelta {
    /// What was written to `file`.
    pub fn new(file: OverlayFile) -> Self {
        Self(file)
    }
}

impl Changes for OverlayDelta {
    fn size(&self) -> DiskLength {
        self.0.overlay.header.size
    }

    fn changed(&self) -> io::Result<RangeSet> {
        let size = self.size();
        let mut changed = ChangedRanges::default();
        for (block, state) in self.0.overlay.map.read().blocks_here() {
            let start = block * BLOCK_LEN;
            let (first, last) = (
                state.here.trailing_zeros(),
                PARTS - state.here.leading_zeros(),
            );
            let end = start + u64::from(last) * PART_LEN;
            changed.add(DiskRange::new(
                start + u64::from(first) * PART_LEN,
                end.min(size.get()),
            ));
        }
        Ok(changed.finish(size, size))
    }

    fn over(self: Box<Self>, parent: Arc<dyn BlockFile>) -> DiskSource {
        let size = self.size().get();
        let disk = Arc::new(Laid {
            file: self.0,
            parent,
        });
        DiskSource::scattered(disk.clone(), size, false, disk)
    }
}

/// An overlay over a file.
#[derive(Debug)]
struct Laid {
    file: OverlayFile,
    parent: Arc<dyn BlockFile>,
}

impl Laid {
    fn overlay(&self) -> &Overlay {
        &self.file.overlay
    }

    fn size(&self) -> u64 {
        self.overlay().header.size.get()
    }
}

impl Layout for Laid {
    fn places(&self, range: DiskRange, found: &mut dyn FnMut(Place<'_>)) -> io::Result<()> {
        let overlay = self.overlay();
        let states = overlay.states(range);
        let first = range.start / BLOCK_LEN;
        let state_at = |at: u64| {
            let state = states[(at / BLOCK_LEN - first) as usize];
            state.part((at % BLOCK_LEN / PART_LEN) as u32)
        };
        let mut at = range.start;
        while at < range.end {
            let (start, state) = (at, state_at(at));
            while at < range.end && state_at(at) == state {
                at = ((at / PART_LEN + 1) * PART_LEN).min(range.end);
            }
            let range = DiskRange::new(start, at);
            let (file, file_offset) = match state {
                PartState::Zeros => continue,
                PartState::Below => (&self.parent, start),
                PartState::Data => (&overlay.data, overlay.header.data_at(start)),
                PartState::Lost => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("bytes {range} of the overlay are lost: its map is damaged there"),
                    ));
                }
            };
            found(Place {
                range,
                file,
                file_offset,
            });
        }
        Ok(())
    }
}

impl BlockFile for Laid {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = offset.saturating_add(buf.len() as u64).min(self.size());
        let range = DiskRange::new(offset.min(end), end);
        let buf = &mut buf[..range.len() as usize];
        buf.fill(0);
        let mut result = Ok(());
        self.places(range, &mut |place| {
            let at = (place.range.start - offset) as usize;
            let part = &mut buf[at..at + place.range.len() as usize];
            let read = place.file.read_at(part, place.file_offset);
            let read = read.and_then(|got| match got == part.len() {
                true => Ok(()),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            });
            if result.is_ok() {
                result = read;
            }
        })?;
        result.map(|()| buf.len())
    }

    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.size())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn preallocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        let end = end.min(self.size());
        Ok((offset < end).then_some(offset..end))
    }

    fn advise_dont_need(&self) {
        self.overlay().data.advise_dont_need();
    }
}
