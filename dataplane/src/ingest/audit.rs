//! An audit: blocks that are said not to have changed are read all the same and compared with the parent.
//!
//! The parent's maps are enough for that: the source's bytes where the parent has a whole chunk must have the
//! chunk's id, and where it has zeros they must be zero. Only of a chunk that an increment cut, or that reaches
//! into what changed, the bytes themselves are needed; where they are not to be had (a repository behind a
//! server gives an ingest no data), another block of the stratum is looked at.

use std::collections::HashMap;
use std::sync::Arc;

use undercroft_format::audit::{AuditShare, Unchanged, missed, pick};
use undercroft_format::extent::Extent;
use undercroft_format::id::{ChunkId, SegmentMapId};
use undercroft_format::ranges::RangeSet;
use undercroft_format::segment::SegmentMap;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::source::changed::BLOCK_LEN;
use undercroft_format::units::{DiskRange, SegmentNumber};

use super::source::DiskSource;
use crate::io::{Buffer, BufferPool, Direction, Done, Engine, Queue, Transfer};
use crate::progress::Progress;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::session::Session;

/// Requests at the source's device at once, as in a backup.
const QUEUE_DEPTH: u32 = 16;
/// Blocks whose bytes are read at once.
const CHECKS_IN_FLIGHT: usize = 16;
/// Strata whose maps are asked for together.
const STRATA_AT_ONCE: u64 = 64;
/// Blocks of a stratum that are tried until one can be compared.
const TRIES: usize = 5;

/// What an audit of one disk came to. Blocks have 64 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskAudit {
    /// The disk's label.
    pub disk: String,
    /// Blocks that were said not to have changed.
    pub unchanged_blocks: u64,
    /// Those that were compared.
    pub blocks: u64,
    /// Those that were looked at but could not be compared or read.
    pub unknown_blocks: u64,
    /// Bytes read from the source for it: whole chunks around the blocks.
    pub read_bytes: u64,
    /// Where the source first turned out to be another than the parent; then the audit ended.
    pub mismatch: Option<DiskRange>,
    /// The first error of reading.
    pub unreadable: Option<String>,
}

impl DiskAudit {
    /// What people should know of it.
    pub fn warnings(&self) -> Vec<String> {
        let disk = &self.disk;
        let mismatch = self.mismatch.map(|range| {
            format!(
                "disk {disk}: bytes {range} differ from the parent, though they were said not to have changed; the \
                 disk is read in full. Whatever told the changes cannot be trusted: increments since the disk's last \
                 full read may lack changes, too"
            )
        });
        let unreadable = self
            .unreadable
            .as_ref()
            .map(|error| format!("disk {disk}: a block could not be read for the audit: {error}"));
        mismatch.into_iter().chain(unreadable).collect()
    }

    /// The most that the probability can be that a fault of `bytes` was missed.
    pub fn missed(&self, bytes: u64) -> f64 {
        let faulty = bytes.div_ceil(BLOCK_LEN);
        missed(self.unchanged_blocks, self.blocks, faulty)
    }
}

/// An audit of one disk.
pub struct Auditor<'a> {
    /// Reads the parent's maps.
    pub session: &'a dyn Session,
    /// Ordinal of the disk.
    pub ordinal: u16,
    /// The disk.
    pub source: &'a DiskSource,
    /// The parent's.
    pub parent: &'a DiskManifest,
    /// What is said to have changed since.
    pub changed: &'a RangeSet,
    /// How many of the others are looked at.
    pub share: AuditShare,
    /// Serves the reads.
    pub engine: &'a dyn Engine,
    /// Memory for them.
    pub pool: &'a Arc<BufferPool>,
    /// Counts, and says when to stop.
    pub progress: &'a Progress,
}

/// Numbers for what a session draws of a disk: the same whenever it is gone on with.
pub(super) fn session_random(
    session: &dyn Session,
    purpose: &[u8],
    disk: u16,
) -> impl FnMut() -> u64 + use<> {
    let mut numbers = blake3::Hasher::new()
        .update(purpose)
        .update(session.id().as_bytes())
        .update(&disk.to_le_bytes())
        .finalize_xof();
    move || {
        let mut bytes = [0; 8];
        numbers.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// How a block is compared.
struct Check {
    /// The bytes of the source that it takes: those of the parts.
    read: DiskRange,
    parts: Vec<Part>,
}

struct Part {
    range: DiskRange,
    expected: Expected,
}

enum Expected {
    Zeros,
    /// The whole chunk, as far as the map tells.
    Chunk(ChunkId),
    /// Bytes of the chunk from here on.
    Slice(ChunkId, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Same,
    Differs(DiskRange),
    Unknown,
}

impl Check {
    fn needs_data(&self) -> bool {
        let is_slice = |part: &Part| matches!(part.expected, Expected::Slice(..));
        self.parts.iter().any(is_slice)
    }
}

impl Auditor<'_> {
    /// Reads a sample of what did not change and compares it, up to the first difference. The same session
    /// draws the same sample: whoever goes on with it finds what was found before.
    ///
    /// # Errors
    /// [`RepositoryError::is_damage`] if the parent's maps or data cannot be read; whatever ends a session. A
    /// source that cannot be read is none.
    pub fn run(&self, disk: &str) -> Result<DiskAudit> {
        let _entered = tracing::debug_span!("audit", disk).entered();
        let unchanged = Unchanged::new(self.changed, self.source.size(), self.parent.size);
        let strata = self.share.of(unchanged.blocks());
        let queue = self
            .source
            .queue(self.engine, self.pool, QUEUE_DEPTH)
            .map_err(RepositoryError::io("starting I/O for", "the source"))?;
        let mut run = Running {
            auditor: self,
            unchanged: &unchanged,
            queue,
            reading: HashMap::new(),
            next_token: 0,
            audit: DiskAudit {
                disk: disk.to_owned(),
                unchanged_blocks: unchanged.blocks(),
                blocks: 0,
                unknown_blocks: 0,
                read_bytes: 0,
                mismatch: None,
                unreadable: None,
            },
        };
        let mut random = session_random(self.session, b"audit", self.ordinal);
        for first in (0..strata).step_by(STRATA_AT_ONCE as usize) {
            run.strata(
                first..strata.min(first + STRATA_AT_ONCE),
                strata,
                &mut random,
            )?;
        }
        while run.reap()? {}
        Ok(run.audit)
    }

    fn map_id(&self, block: DiskRange) -> Result<Option<SegmentMapId>> {
        let SegmentNumber(number) = self.parent.segment_size.segment_at(block.start);
        let mut id = None;
        let objects = self.session.objects();
        objects.visit_tree(self.parent.tree(), number..number + 1, &mut |_, map| {
            id = Some(map);
            Ok(())
        })?;
        Ok(id)
    }

    /// How to compare `block`, which lies in one segment.
    fn check(&self, block: DiskRange) -> Result<Check> {
        let Some(id) = self.map_id(block)? else {
            return Ok(Check {
                read: block,
                parts: vec![Part {
                    range: block,
                    expected: Expected::Zeros,
                }],
            });
        };
        let segment_size = self.parent.segment_size;
        let number = segment_size.segment_at(block.start);
        let range = segment_size.range_of(number, self.parent.size);
        let map = self.session.objects().segment_map(id)?;
        if u64::from(map.len()) != range.len() {
            return Err(RepositoryError::ForeignMap { id, range });
        }
        let parts = self.parts(&map, range.start, block);
        let starts = parts.iter().map(|part| part.range.start);
        let ends = parts.iter().map(|part| part.range.end);
        Ok(Check {
            read: DiskRange::new(
                starts.min().unwrap_or(block.start),
                ends.max().unwrap_or(block.end),
            ),
            parts,
        })
    }

    fn parts(&self, map: &SegmentMap, segment: u64, block: DiskRange) -> Vec<Part> {
        let size = self.source.size().get();
        let mut parts = Vec::new();
        for (at, extent) in map.placed() {
            let start = segment + u64::from(at);
            let whole = DiskRange::new(start, start + u64::from(extent.len()));
            let common = whole.intersect(block);
            if common.is_empty() {
                continue;
            }
            let is_unchanged = whole.end <= size && self.changed.within(whole).next().is_none();
            let (range, expected) = match *extent {
                Extent::Zero { .. } => (common, Expected::Zeros),
                Extent::Data {
                    chunk, offset: 0, ..
                } if is_unchanged => (whole, Expected::Chunk(chunk)),
                Extent::Data { chunk, offset, .. } => {
                    let skipped = (common.start - start) as u32;
                    (common, Expected::Slice(chunk, offset + skipped))
                }
            };
            parts.push(Part { range, expected });
        }
        parts
    }

    /// Compares the source's `bytes` with what the parent has.
    fn compare(&self, check: &Check, bytes: &[u8]) -> Result<Compared> {
        let mut compared = Compared::Same;
        for part in &check.parts {
            let start = (part.range.start - check.read.start) as usize;
            let bytes = &bytes[start..start + part.range.len() as usize];
            match self.compare_part(part, bytes)? {
                Compared::Same => {}
                Compared::Unknown => compared = Compared::Unknown,
                differs => return Ok(differs),
            }
        }
        Ok(compared)
    }

    fn compare_part(&self, part: &Part, bytes: &[u8]) -> Result<Compared> {
        let differs = Compared::Differs(part.range);
        let of = |is_same| if is_same { Compared::Same } else { differs };
        let has_data = self.session.reads_chunks();
        match part.expected {
            Expected::Zeros => Ok(of(bytes.iter().all(|byte| *byte == 0))),
            Expected::Chunk(chunk) if self.session.keys().chunk_id(bytes) == chunk => {
                Ok(Compared::Same)
            }
            Expected::Chunk(_) if !has_data && self.may_be_cut(part.range) => Ok(Compared::Unknown),
            Expected::Chunk(_) if !has_data => Ok(differs),
            Expected::Slice(..) if !has_data => Ok(Compared::Unknown),
            Expected::Chunk(chunk) => Ok(of(self.data(chunk, 0, bytes.len())? == bytes)),
            Expected::Slice(chunk, at) => Ok(of(self.data(chunk, at, bytes.len())? == bytes)),
        }
    }

    /// An increment cuts chunks where its blocks begin, but no segment has more of a chunk than its edge: the
    /// map does not tell such a piece from a whole chunk that ends there.
    fn may_be_cut(&self, range: DiskRange) -> bool {
        let segment = self.parent.segment_size.bytes();
        range.end.is_multiple_of(BLOCK_LEN) && !range.end.is_multiple_of(segment)
    }

    /// `len` bytes of a chunk; fewer if it has not so many, which no source can be equal to.
    fn data(&self, chunk: ChunkId, at: u32, len: usize) -> Result<Vec<u8>> {
        let mut data = self.session.objects().chunk(chunk, self.session.keys())?;
        data.drain(..data.len().min(at as usize));
        data.truncate(len);
        Ok(data)
    }
}

struct Running<'a> {
    auditor: &'a Auditor<'a>,
    unchanged: &'a Unchanged,
    queue: Box<dyn Queue>,
    /// Checks whose bytes are being read, by token.
    reading: HashMap<u64, Check>,
    next_token: u64,
    audit: DiskAudit,
}

impl Running<'_> {
    fn strata(
        &mut self,
        places: std::ops::Range<u64>,
        strata: u64,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<()> {
        let auditor = self.auditor;
        auditor.session.going_on()?;
        let stratum = |place| self.unchanged.stratum(place, strata);
        let drawn = places.map(|place| (place, pick(stratum(place), random())));
        let drawn: Vec<(u64, u64)> = drawn.collect();
        let mut maps = Vec::with_capacity(drawn.len());
        for (_, number) in &drawn {
            maps.extend(auditor.map_id(self.unchanged.range(*number))?);
        }
        auditor.session.objects().records().expect_maps(&maps);
        for (place, first) in drawn {
            if self.audit.mismatch.is_some() {
                return Ok(());
            }
            if auditor.progress.is_stopping() {
                return Err(RepositoryError::Cancelled);
            }
            let mut check = auditor.check(self.unchanged.range(first))?;
            for _ in 1..TRIES {
                if auditor.session.reads_chunks() || !check.needs_data() {
                    break;
                }
                let number = pick(self.unchanged.stratum(place, strata), random());
                check = auditor.check(self.unchanged.range(number))?;
            }
            self.start(check)?;
        }
        Ok(())
    }

    fn start(&mut self, check: Check) -> Result<()> {
        if check.needs_data() && !self.auditor.session.reads_chunks() {
            self.audit.unknown_blocks += 1;
            return Ok(());
        }
        while self.queue.in_flight() >= CHECKS_IN_FLIGHT {
            self.reap()?;
        }
        let mut buffer = self.acquire(check.read.len() as usize)?;
        let mut pieces = Vec::new();
        self.auditor
            .source
            .add_pieces(check.read, 0, &mut buffer, &mut pieces)
            .map_err(RepositoryError::io("looking for data in", "the source"))?;
        let token = self.next_token;
        self.next_token += 1;
        self.reading.insert(token, check);
        self.queue.submit(Transfer {
            token,
            direction: Direction::Read,
            buffer,
            pieces,
        });
        Ok(())
    }

    fn acquire(&mut self, len: usize) -> Result<Buffer> {
        loop {
            if let Some(buffer) = self.auditor.pool.try_acquire(len) {
                return Ok(buffer);
            }
            if !self.reap()? {
                // Nobody else has buffers before the disk's own reads begin.
                return Ok(self.auditor.pool.acquire(len));
            }
        }
    }

    /// Waits for one read and compares what came; false if none was in flight.
    fn reap(&mut self) -> Result<bool> {
        let Some(Done { transfer, result }) = self.queue.wait() else {
            return Ok(false);
        };
        let check = self.reading.remove(&transfer.token);
        let check = check.expect("every read has its check");
        if let Err(error) = result {
            self.audit.unknown_blocks += 1;
            let text = format!("byte {}: {}", error.file_offset, error.source);
            self.audit.unreadable.get_or_insert(text);
            return Ok(true);
        }
        let read: usize = transfer.pieces.iter().map(|piece| piece.len).sum();
        self.audit.read_bytes += read as u64;
        self.auditor.progress.read_bytes.add(read as u64);
        match self.auditor.compare(&check, &transfer.buffer)? {
            Compared::Same => self.audit.blocks += 1,
            Compared::Unknown => self.audit.unknown_blocks += 1,
            Compared::Differs(range) => {
                self.audit.blocks += 1;
                let found = self.audit.mismatch.get_or_insert(range);
                *found = range.min(*found);
            }
        }
        Ok(true)
    }
}
