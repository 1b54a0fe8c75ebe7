//! The writing thread of a restore: decoded segments to a disk in any order, or to a stream in order.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use crossbeam_channel::{Receiver, TryRecvError};
use undercroft_format::ranges::RangeSet;
use undercroft_format::units::{DiskRange, SegmentNumber, SegmentSize};

use super::Target;
use crate::io::{BlockFile, Buffer, BufferPool, Direction, Done, Engine, Piece, Queue, Transfer};
use crate::progress::Progress;
use crate::repository::error::{RepositoryError, Result};

/// Requests at the target's device at once.
const QUEUE_DEPTH: u32 = 16;
/// Segments being written at once: while one is decoded, the one before is on its way.
const SEGMENTS_IN_FLIGHT: usize = 2;

/// A decoded segment.
pub struct DecodedSegment {
    /// Which segment.
    pub number: SegmentNumber,
    /// Where it lies on the disk.
    pub range: DiskRange,
    /// Its bytes where `write` says so; `None` for a segment of zeros.
    pub buffer: Option<Buffer>,
    /// Ranges from the segment's start that the buffer holds.
    pub write: Vec<DiskRange>,
    /// Ranges from the segment's start that must read as zero.
    pub zero: Vec<DiskRange>,
}

/// How to write a disk.
pub struct DiskWriter<'a> {
    /// The target.
    pub file: Arc<dyn BlockFile>,
    /// True if ranges of zeros must be punched; false if the target is all zero already.
    pub punch: bool,
    /// True if nothing is to be written, only counted.
    pub dry_run: bool,
    /// Serves the writes.
    pub engine: &'a dyn Engine,
    /// The decoded segments' buffers come from here.
    pub pool: &'a Arc<BufferPool>,
    /// Counts.
    pub progress: &'a Progress,
}

impl DiskWriter<'_> {
    /// Writes segments until there are no more. After an error it goes on taking them, so that nobody
    /// waits for it, and returns the error at the end.
    pub fn run(&self, segments: &Receiver<DecodedSegment>) -> Result<()> {
        let mut queue = match self.engine.queue(self.pool, QUEUE_DEPTH) {
            Ok(queue) => queue,
            Err(error) => {
                segments.iter().for_each(drop);
                return Err(RepositoryError::io("starting I/O for", "the target")(error));
            }
        };
        let mut result = Ok(());
        loop {
            // With writes under way, waiting for them comes first: the queue sends what is left of them.
            let next = match queue.in_flight() {
                0 => segments.recv().map_err(TryRecvError::from),
                SEGMENTS_IN_FLIGHT.. => Err(TryRecvError::Empty),
                _ => segments.try_recv(),
            };
            let done = match next {
                Ok(_) if result.is_err() => Ok(()),
                Ok(segment) => self.write(segment, &mut *queue),
                Err(TryRecvError::Empty) => reap(&mut *queue),
                Err(TryRecvError::Disconnected) if queue.in_flight() > 0 => reap(&mut *queue),
                Err(TryRecvError::Disconnected) => return result,
            };
            result = result.and(done);
        }
    }

    fn write(&self, segment: DecodedSegment, queue: &mut dyn Queue) -> Result<()> {
        let _write = tracing::trace_span!("write", segment = segment.number.0).entered();
        if self.punch && !self.dry_run {
            for range in &segment.zero {
                self.file
                    .punch(segment.range.start + range.start, range.len())
                    .map_err(RepositoryError::io("zeroing a range of", "the target"))?;
            }
        }
        self.progress.done_bytes.add(segment.range.len());
        let Some(buffer) = segment.buffer.filter(|_| !segment.write.is_empty()) else {
            return Ok(());
        };
        let written: u64 = segment.write.iter().map(|range| range.len()).sum();
        self.progress.stored_bytes.add(written);
        if self.dry_run {
            return Ok(());
        }
        let pieces = segment
            .write
            .iter()
            .map(|range| Piece {
                file: self.file.clone(),
                file_offset: segment.range.start + range.start,
                buffer_offset: range.start as usize,
                len: range.len() as usize,
            })
            .collect();
        queue.submit(Transfer {
            token: segment.number.0,
            direction: Direction::Write,
            buffer,
            pieces,
        });
        Ok(())
    }
}

/// Waits for one transfer.
fn reap(queue: &mut dyn Queue) -> Result<()> {
    match queue.wait() {
        Some(Done {
            result: Err(error), ..
        }) => {
            let place = format!("the target at byte {}", error.file_offset);
            Err(RepositoryError::io("writing", &place)(error.source))
        }
        _ => Ok(()),
    }
}

/// Takes the bytes of a disk in order.
pub trait InOrder: Send {
    /// The only ranges of the disk that matter, if not all do: of the others zeros will do.
    fn wanted(&self) -> Option<RangeSet> {
        None
    }

    /// Bytes.
    ///
    /// # Errors
    /// Whatever they go to says.
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// So many zeros.
    ///
    /// # Errors
    /// As for [`data`](Self::data).
    fn zeros(&mut self, len: u64) -> io::Result<()>;

    /// The disk is complete.
    ///
    /// # Errors
    /// As for [`data`](Self::data).
    fn finish(&mut self) -> io::Result<()>;
}

/// A stream that gets every byte, zeros as well.
pub struct Plain<W>(pub W);

impl<W: Write + Send> InOrder for Plain<W> {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn zeros(&mut self, len: u64) -> io::Result<()> {
        write_zeros(&mut self.0, len)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes `len` zeros.
pub(super) fn write_zeros(out: &mut impl Write, mut len: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..now as usize])?;
        len -= now;
    }
    Ok(())
}

/// Writes segments in order to a stream; gaps are zeros. Like [`DiskWriter::run`] otherwise.
pub fn write_stream(
    mut stream: Box<dyn InOrder>,
    size: u64,
    segment_size: SegmentSize,
    segments: &Receiver<DecodedSegment>,
    progress: &Progress,
) -> Result<()> {
    let mut early: BTreeMap<SegmentNumber, DecodedSegment> = BTreeMap::new();
    let mut next = 0;
    let mut result = Ok(());
    for segment in segments {
        early.insert(segment.number, segment);
        while let Some(segment) = early.remove(&SegmentNumber(next)) {
            next += 1;
            if result.is_ok() {
                result = write_segment(&mut *stream, segment, progress);
            }
        }
    }
    let complete =
        next >= segment_size.segments_of(undercroft_format::units::DiskLength::new(size));
    if result.is_ok() && complete {
        result = stream.finish();
    }
    result.map_err(RepositoryError::io("writing", "the target stream"))
}

fn write_segment(
    stream: &mut dyn InOrder,
    segment: DecodedSegment,
    progress: &Progress,
) -> io::Result<()> {
    progress.done_bytes.add(segment.range.len());
    let mut at = 0;
    if let Some(buffer) = &segment.buffer {
        for range in &segment.write {
            stream.zeros(range.start - at)?;
            stream.data(&buffer[range.start as usize..range.end as usize])?;
            progress.stored_bytes.add(range.len());
            at = range.end;
        }
    }
    stream.zeros(segment.range.len() - at)
}

impl Target {
    /// True if decoded segments must come in order.
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }
}
