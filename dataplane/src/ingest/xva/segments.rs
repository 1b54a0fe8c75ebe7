//! The blocks of a disk, as they come out of an XVA, become the segments of that disk.
//!
//! The result is what reading the same disk from a file with the same holes gives, so that the same chunks come
//! of it. Bytes are copied once, from the stream's buffer into the segment's, right after they were hashed.

use std::sync::Arc;

use undercroft_format::partition::{PARTITION_HEAD_LEN, grid_phase};
use undercroft_format::units::{DiskLength, DiskRange, SegmentNumber, SegmentSize};

use super::archive::{Happening, XvaStream};
use crate::clock::Stopwatch;
use crate::ingest::reader::{FilledSegment, Run};
use crate::io::{Buffer, BufferPool};
use crate::progress::Progress;
use crate::repository::error::{RepositoryError, Result};

/// A line of the chunker's grid every so many bytes.
const CELL_LEN: u64 = 4096;

/// A segment with data, as far as the archive has it.
pub struct ArchivedSegment {
    /// Which one.
    pub number: SegmentNumber,
    range: DiskRange,
    /// As long as the segment.
    buffer: Buffer,
    /// Where the buffer holds data, in order; the rest is zero on the disk, and anything in the buffer.
    data: Vec<DiskRange>,
}

impl ArchivedSegment {
    /// Segment `number` of a disk of `size`, without data.
    pub fn begin(
        number: SegmentNumber,
        segment_size: SegmentSize,
        size: DiskLength,
        pool: &Arc<BufferPool>,
        progress: &Progress,
    ) -> Self {
        open(number, segment_size, size, pool, progress)
    }

    /// Where the bytes of `range` of the disk go.
    pub fn space(&mut self, range: DiskRange) -> &mut [u8] {
        let start = self.range.start;
        &mut self.buffer[(range.start - start) as usize..(range.end - start) as usize]
    }

    /// `range` of the disk has been filled with data, behind all that was.
    pub fn push(&mut self, range: DiskRange) {
        let (start, end) = (range.start - self.range.start, range.end - self.range.start);
        match self.data.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.data.push(DiskRange::new(start, end)),
        }
    }

    /// Where it lies on the disk.
    pub fn range(&self) -> DiskRange {
        self.range
    }

    /// Bytes of it that the archive has.
    pub fn data_bytes(&self) -> u64 {
        self.data.iter().map(|range| range.len()).sum()
    }

    /// The segment as the workers take it, for a grid of `phase`.
    ///
    /// Data gets the rest of the grid's cells at its ends, so that chunks end at the same places whatever the
    /// archive left out.
    pub fn filled(mut self, phase: u16) -> FilledSegment {
        let len = self.range.len();
        let is_on_grid = |at: u64| at.is_multiple_of(CELL_LEN) || at == len;
        let mut data = std::mem::take(&mut self.data);
        let fits = phase == 0
            && data
                .iter()
                .all(|range| is_on_grid(range.start) && is_on_grid(range.end));
        if !fits {
            data = self.with_cells(&data);
        }
        let runs = data.iter().map(|range| Run {
            start: range.start as u32,
            len: range.len() as u32,
            buffer_offset: Some(range.start as usize),
        });
        FilledSegment {
            number: self.number,
            range: self.range,
            runs: runs.collect(),
            buffer: Some(self.buffer),
        }
    }

    /// `data` with a cell more at either end, which is made zero.
    fn with_cells(&mut self, data: &[DiskRange]) -> Vec<DiskRange> {
        let len = self.range.len();
        let mut wide: Vec<DiskRange> = Vec::new();
        let mut at = 0;
        for range in data {
            let start = range.start.saturating_sub(CELL_LEN).max(at);
            self.buffer[start as usize..range.start as usize].fill(0);
            let next = data.iter().find(|other| other.start >= range.end);
            let limit = next.map_or(len, |next| next.start);
            let end = (range.end + CELL_LEN).min(limit);
            self.buffer[range.end as usize..end as usize].fill(0);
            at = end;
            match wide.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => wide.push(DiskRange::new(start, end)),
            }
        }
        wide
    }

    /// Where the grid lies on a disk of this size whose first segment this is, if it has one.
    pub fn grid_phase(first: Option<&Self>, size: DiskLength) -> u16 {
        let mut head = vec![0; (PARTITION_HEAD_LEN as u64).min(size.get()) as usize];
        let first = first.filter(|segment| segment.number.0 == 0);
        for range in first.iter().flat_map(|segment| &segment.data) {
            let (start, end) = (range.start as usize, (range.end as usize).min(head.len()));
            if start < end {
                let segment = first.expect("its ranges are being looked at");
                head[start..end].copy_from_slice(&segment.buffer[start..end]);
            }
        }
        grid_phase(&head, size)
    }
}

/// The segments of the disk at hand.
pub(crate) struct DiskSegments<'a> {
    stream: &'a mut XvaStream,
    sink: Sink<'a>,
    is_over: bool,
}

impl<'a> DiskSegments<'a> {
    /// Of the disk that `stream` has just begun.
    pub fn new(
        stream: &'a mut XvaStream,
        size: DiskLength,
        segment_size: SegmentSize,
        pool: &'a Arc<BufferPool>,
        progress: &'a Progress,
    ) -> Self {
        Self {
            stream,
            sink: Sink {
                size,
                segment_size,
                pool,
                progress,
                current: None,
                complete: None,
                rest: None,
            },
            is_over: false,
        }
    }

    /// The next segment that has data; `None` after the last.
    ///
    /// # Errors
    /// What is wrong with the archive; [`RepositoryError::Cancelled`].
    pub fn next_segment(&mut self) -> Result<Option<ArchivedSegment>> {
        if self.sink.progress.is_stopping() {
            return Err(RepositoryError::Cancelled);
        }
        loop {
            if let Some(complete) = self.sink.complete.take() {
                return Ok(Some(complete));
            }
            if let Some((offset, bytes)) = self.sink.rest.take() {
                self.sink.add(offset, &bytes);
                continue;
            }
            if self.is_over {
                return Ok(self.sink.current.take());
            }
            let sink = &mut self.sink;
            match self
                .stream
                .step(&mut |offset, bytes| sink.add(offset, bytes))?
            {
                Happening::DiskEnds => self.is_over = true,
                Happening::Data | Happening::Nothing => {}
                Happening::DiskBegins(_) | Happening::End => {
                    unreachable!("a disk ends before anything else")
                }
            }
        }
    }
}

struct Sink<'a> {
    size: DiskLength,
    segment_size: SegmentSize,
    pool: &'a Arc<BufferPool>,
    progress: &'a Progress,
    current: Option<ArchivedSegment>,
    complete: Option<ArchivedSegment>,
    /// Data of the segment after the complete one: the two never need a buffer at once.
    rest: Option<(u64, Vec<u8>)>,
}

impl Sink<'_> {
    fn add(&mut self, offset: u64, bytes: &[u8]) {
        let number = self.segment_size.segment_at(offset);
        if self
            .current
            .as_ref()
            .is_some_and(|current| current.number != number)
        {
            self.complete = self.current.take();
            self.rest = Some((offset, bytes.to_vec()));
            return;
        }
        let current = match &mut self.current {
            Some(current) => current,
            current => current.insert(open(
                number,
                self.segment_size,
                self.size,
                self.pool,
                self.progress,
            )),
        };
        let start = offset - current.range.start;
        let len = (bytes.len() as u64).min(current.range.len() - start);
        let (now, rest) = bytes.split_at(len as usize);
        let end = start + len;
        current.buffer[start as usize..end as usize].copy_from_slice(now);
        match current.data.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => current.data.push(DiskRange::new(start, end)),
        }
        if end == current.range.len() {
            self.complete = self.current.take();
        }
        if !rest.is_empty() {
            self.rest = Some((offset + len, rest.to_vec()));
        }
    }
}

fn open(
    number: SegmentNumber,
    segment_size: SegmentSize,
    size: DiskLength,
    pool: &Arc<BufferPool>,
    progress: &Progress,
) -> ArchivedSegment {
    let range = segment_size.range_of(number, size);
    let waited = Stopwatch::start();
    let buffer = pool.acquire(range.len() as usize);
    progress.buffer_wait_ns.add_time(waited.elapsed());
    ArchivedSegment {
        number,
        range,
        buffer,
        data: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(data: &[(u64, u64)]) -> ArchivedSegment {
        let pool = BufferPool::new(1 << 20);
        let mut buffer = pool.acquire(40_000);
        buffer.fill(0xee);
        for (start, end) in data {
            buffer[*start as usize..*end as usize].fill(0x11);
        }
        ArchivedSegment {
            number: SegmentNumber(0),
            range: DiskRange::new(0, 40_000),
            buffer,
            data: data
                .iter()
                .map(|(start, end)| DiskRange::new(*start, *end))
                .collect(),
        }
    }

    fn runs(segment: FilledSegment) -> Vec<(u32, u32)> {
        let buffer = segment.buffer.expect("it has data");
        for run in &segment.runs {
            let at = run.buffer_offset.expect("data");
            assert!(
                buffer[at..at + run.len as usize]
                    .iter()
                    .all(|byte| *byte != 0xee)
            );
        }
        segment
            .runs
            .iter()
            .map(|run| (run.start, run.start + run.len))
            .collect()
    }

    #[test]
    fn data_off_the_grid_gets_whole_cells_of_zeros() {
        let on_grid = &[(0, 4096), (8192, 40_000)][..];
        assert_eq!(
            runs(segment(on_grid).filled(0)),
            [(0, 4096), (8192, 40_000)]
        );
        assert_eq!(runs(segment(on_grid).filled(512)), [(0, 40_000)]);
        let far = &[(4096, 8192), (24_576, 28_672)][..];
        assert_eq!(
            runs(segment(far).filled(512)),
            [(0, 12_288), (20_480, 32_768)]
        );
        let odd = &[(5000, 6000)][..];
        assert_eq!(runs(segment(odd).filled(0)), [(904, 10_096)]);
        let ends = &[(100, 200), (39_000, 40_000)][..];
        assert_eq!(runs(segment(ends).filled(0)), [(0, 4296), (34_904, 40_000)]);
    }
}
