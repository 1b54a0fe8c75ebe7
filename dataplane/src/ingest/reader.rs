//! The reader: fills buffers with the bytes of segments, in order, many at once, holes left out.
//!
//! Memory is bounded by the buffer pool: a segment takes a buffer as long as the bytes to be read of
//! it, and when the pool is empty the reader waits for workers to return one.

use std::io::{self, Read};
use std::sync::Arc;

use undercroft_format::ranges::RangeSet;
use undercroft_format::units::{DiskLength, DiskRange, SegmentNumber, SegmentSize};

use super::source::DiskSource;
use crate::clock::Stopwatch;
use crate::io::{Buffer, BufferPool, Direction, Engine, Piece, Queue, Transfer};
use crate::progress::Progress;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::session::DoneSegments;

/// Requests at the source's device at once. Measured: 256 KiB requests reach the device's rate at 8 to
/// 16; more only adds latency.
const QUEUE_DEPTH: u32 = 16;
/// Segments whose reads are queued at once.
const SEGMENTS_IN_FLIGHT: usize = 4;
/// Times that a failed read is tried again before the disk is given up.
const RETRIES_MAX: u64 = 2;

/// What is known of a part of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte, from the segment's start.
    pub start: u32,
    /// Bytes.
    pub len: u32,
    /// Where the bytes are in the buffer; `None` if the source says that they are zero.
    pub buffer_offset: Option<usize>,
}

/// A segment whose bytes were read.
pub struct FilledSegment {
    /// Which one.
    pub number: SegmentNumber,
    /// Where it lies on the disk.
    pub range: DiskRange,
    /// Its bytes; `None` if nothing had to be read.
    pub buffer: Option<Buffer>,
    /// What was read of it, in order. In a full read the rest is zero, else it is as before.
    pub runs: Vec<Run>,
}

/// What to read of a disk.
#[derive(Clone, Debug)]
pub enum Extent {
    /// Everything that is no hole.
    All,
    /// These ranges, and segment `touch` even if it has none of them.
    Changed {
        /// The ranges.
        ranges: RangeSet,
        /// A segment whose length changes.
        touch: Option<SegmentNumber>,
    },
}

/// Reads a disk's segments and gives each to `emit` when it is complete, not always in order.
pub struct DiskReader<'a> {
    /// The disk.
    pub source: &'a DiskSource,
    /// Size of its segments.
    pub segment_size: SegmentSize,
    /// Phase of the chunker's grid.
    pub grid_phase: u16,
    /// Serves the reads.
    pub engine: &'a dyn Engine,
    /// An error ends the run before another segment is begun.
    pub going_on: &'a (dyn Fn() -> Result<()> + Sync),
    /// Bounds the memory.
    pub pool: &'a Arc<BufferPool>,
    /// Segments that need not be read.
    pub finished: &'a DoneSegments,
    /// Counts, and says when to stop.
    pub progress: &'a Progress,
}

impl DiskReader<'_> {
    /// Reads `extent` of the disk.
    ///
    /// # Errors
    /// A read that failed three times, with its offset; [`RepositoryError::Cancelled`].
    pub fn run(
        &self,
        extent: &Extent,
        emit: &mut dyn FnMut(FilledSegment) -> Result<()>,
    ) -> Result<()> {
        let _entered = tracing::debug_span!("reader").entered();
        let queue = self
            .source
            .queue(self.engine, self.pool, QUEUE_DEPTH)
            .map_err(RepositoryError::io("starting I/O for", "the source"))?;
        let mut run = Running {
            reader: self,
            queue,
            waiting: Vec::new(),
            emit,
        };
        match extent {
            Extent::All => run.all()?,
            Extent::Changed { ranges, touch } => run.changed(ranges, *touch)?,
        }
        while run.reap()? {}
        Ok(())
    }

    /// `data` with the rest of the grid cells at its ends, so that chunks end at the same places whether
    /// the source knows its holes or not. On the usual grid holes end where cells do.
    fn whole_cells(&self, data: DiskRange, from: u64, to: u64) -> DiskRange {
        const CELL: u64 = 4096;
        if self.grid_phase == 0 || data.is_empty() {
            return data;
        }
        let start = data.start.saturating_sub(CELL).max(from);
        DiskRange::new(start, data.end.saturating_add(CELL).min(to))
    }

    fn plan_runs(&self, wanted: DiskRange, segment: DiskRange, runs: &mut Vec<Run>) -> Result<()> {
        let mut at = wanted.start;
        while at < wanted.end {
            let data = self
                .source
                .next_data(at)
                .map_err(RepositoryError::io("looking for holes in", "the source"))?;
            let data = match data {
                Some(range) => DiskRange::new(range.start, range.end).intersect(wanted),
                None => DiskRange::new(wanted.end, wanted.end),
            };
            let data = self.whole_cells(data, at, wanted.end);
            let data_start = if data.is_empty() {
                wanted.end
            } else {
                data.start
            };
            push_run(runs, segment, DiskRange::new(at, data_start), false);
            push_run(runs, segment, data, true);
            at = data_start.max(data.end);
        }
        Ok(())
    }
}

fn push_run(runs: &mut Vec<Run>, segment: DiskRange, range: DiskRange, is_data: bool) {
    if range.is_empty() {
        return;
    }
    let start = (range.start - segment.start) as u32;
    if let Some(last) = runs.last_mut()
        && last.start + last.len == start
        && last.buffer_offset.is_some() == is_data
    {
        last.len += range.len() as u32;
        return;
    }
    runs.push(Run {
        start,
        len: range.len() as u32,
        // Places in the buffer are given out when all runs are known.
        buffer_offset: is_data.then_some(0),
    });
}

struct Running<'a> {
    reader: &'a DiskReader<'a>,
    queue: Box<dyn Queue>,
    /// Segments whose reads are in flight, by token.
    waiting: Vec<(u64, SegmentNumber, DiskRange, Vec<Run>, u64)>,
    emit: &'a mut dyn FnMut(FilledSegment) -> Result<()>,
}

impl Running<'_> {
    fn all(&mut self) -> Result<()> {
        let (source, size) = (self.reader.source, self.reader.source.size());
        let mut at = 0;
        while let Some(data) = source
            .next_data(at)
            .map_err(RepositoryError::io("looking for holes in", "the source"))?
        {
            let number = self.reader.segment_size.segment_at(data.start);
            let segment = self.reader.segment_size.range_of(number, size);
            self.reader
                .progress
                .done_bytes
                .add(segment.start.saturating_sub(at));
            let mut runs = Vec::new();
            self.reader.plan_runs(segment, segment, &mut runs)?;
            self.start(number, segment, runs)?;
            at = segment.end;
        }
        self.reader
            .progress
            .done_bytes
            .add(size.get().saturating_sub(at));
        Ok(())
    }

    fn changed(&mut self, ranges: &RangeSet, touch: Option<SegmentNumber>) -> Result<()> {
        let (segment_size, size) = (self.reader.segment_size, self.reader.source.size());
        let mut touch = touch;
        let mut at = 0;
        loop {
            let first = ranges.within(DiskRange::new(at, size.get())).next();
            let changed = first.map(|range| segment_size.segment_at(range.start));
            let number = match (changed, touch) {
                (Some(changed), Some(touched)) => changed.min(touched),
                (Some(number), None) | (None, Some(number)) => number,
                (None, None) => return Ok(()),
            };
            touch = touch.filter(|touched| *touched != number);
            let segment = segment_size.range_of(number, size);
            let mut runs = Vec::new();
            for range in ranges.within(segment) {
                self.reader.plan_runs(range, segment, &mut runs)?;
            }
            self.start(number, segment, runs)?;
            at = segment.end;
        }
    }

    /// Starts reading a segment.
    fn start(&mut self, number: SegmentNumber, range: DiskRange, mut runs: Vec<Run>) -> Result<()> {
        if self.reader.progress.is_stopping() {
            return Err(RepositoryError::Cancelled);
        }
        if self.reader.finished.contains_key(&number) {
            self.reader.progress.done_bytes.add(range.len());
            return Ok(());
        }
        if let Err(error) = (self.reader.going_on)() {
            // What is read already need not be read again.
            while self.reap()? {}
            return Err(error);
        }
        let mut len = 0;
        for run in runs.iter_mut().filter(|run| run.buffer_offset.is_some()) {
            run.buffer_offset = Some(len);
            len += (run.len as usize).next_multiple_of(4096);
        }
        if len == 0 {
            return (self.emit)(FilledSegment {
                number,
                range,
                buffer: None,
                runs,
            });
        }
        while self.queue.in_flight() >= SEGMENTS_IN_FLIGHT {
            self.reap()?;
        }
        let mut buffer = self.acquire(len)?;
        let pieces = self.pieces(range, &runs, &mut buffer)?;
        let token = number.0;
        self.waiting.push((token, number, range, runs, 0));
        self.queue.submit(Transfer {
            token,
            direction: Direction::Read,
            buffer,
            pieces,
        });
        Ok(())
    }

    /// What to read so that `buffer` holds the bytes of `runs`.
    fn pieces(&self, segment: DiskRange, runs: &[Run], buffer: &mut Buffer) -> Result<Vec<Piece>> {
        let mut pieces = Vec::with_capacity(runs.len());
        for run in runs {
            let Some(at) = run.buffer_offset else {
                continue;
            };
            let start = segment.start + u64::from(run.start);
            let range = DiskRange::new(start, start + u64::from(run.len));
            let out = &mut buffer[at..at + run.len as usize];
            self.reader
                .source
                .add_pieces(range, at, out, &mut pieces)
                .map_err(RepositoryError::io("looking for data in", "the source"))?;
        }
        Ok(pieces)
    }

    /// A buffer, as soon as there is one; meanwhile finished reads go to the workers.
    fn acquire(&mut self, len: usize) -> Result<Buffer> {
        loop {
            if let Some(buffer) = self.reader.pool.try_acquire(len) {
                return Ok(buffer);
            }
            if self.queue.in_flight() > 0 {
                self.reap()?;
                continue;
            }
            let waited = Stopwatch::start();
            let buffer = self.reader.pool.acquire(len);
            self.reader
                .progress
                .buffer_wait_ns
                .add_time(waited.elapsed());
            return Ok(buffer);
        }
    }

    /// Waits for one read and hands its segment on; false if none was in flight.
    fn reap(&mut self) -> Result<bool> {
        let Some(done) = self.queue.wait() else {
            return Ok(false);
        };
        let place = self
            .waiting
            .iter()
            .position(|waiting| waiting.0 == done.transfer.token)
            .expect("every transfer was registered when it was submitted");
        if let Err(error) = done.result {
            let tries = &mut self.waiting[place].4;
            *tries += 1;
            let is_final = *tries > RETRIES_MAX || self.reader.source.retries_itself();
            if is_final || error.source.kind() == io::ErrorKind::UnexpectedEof {
                let what = format!("the source at byte {}", error.file_offset);
                return Err(RepositoryError::io("reading", &what)(error.source));
            }
            self.queue.submit(done.transfer);
            return Ok(true);
        }
        let (_, number, range, runs, _) = self.waiting.swap_remove(place);
        let read: usize = done.transfer.pieces.iter().map(|piece| piece.len).sum();
        self.reader.progress.read_bytes.add(read as u64);
        (self.emit)(FilledSegment {
            number,
            range,
            buffer: Some(done.transfer.buffer),
            runs,
        })?;
        Ok(true)
    }
}

/// Reads a stream to its end, segment by segment, and returns its length.
pub fn read_stream(
    stream: &mut dyn Read,
    segment_size: SegmentSize,
    pool: &Arc<BufferPool>,
    progress: &Progress,
    emit: &mut dyn FnMut(FilledSegment) -> Result<()>,
) -> Result<DiskLength> {
    let mut at = 0_u64;
    loop {
        if progress.is_stopping() {
            return Err(RepositoryError::Cancelled);
        }
        let _entered = tracing::trace_span!("source", at).entered();
        let mut buffer = pool.acquire(segment_size.bytes() as usize);
        let mut filled = 0;
        while filled < buffer.len() {
            match stream.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let what = format!("the stream at byte {}", at + filled as u64);
                    return Err(RepositoryError::io("reading", &what)(error));
                }
            }
        }
        let complete = filled == buffer.len();
        if filled > 0 {
            progress.read_bytes.add(filled as u64);
            emit(FilledSegment {
                number: segment_size.segment_at(at),
                range: DiskRange::new(at, at + filled as u64),
                buffer: Some(buffer),
                runs: vec![Run {
                    start: 0,
                    len: filled as u32,
                    buffer_offset: Some(0),
                }],
            })?;
            at += filled as u64;
        }
        if !complete {
            return Ok(DiskLength::new(at));
        }
    }
}
