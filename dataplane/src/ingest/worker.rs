//! A worker takes one segment from bytes to a stored map: chunker, hasher, prober, compressor, pusher.
//!
//! All stages run on one thread over one segment, so that the bytes are still in the cache when the
//! next stage wants them; what waits is counted where it waits.

use std::collections::HashSet;
use std::sync::Arc;

use undercroft_format::extent::Extent;
use undercroft_format::id::{ChunkId, ObjectId, SegmentMapId};
use undercroft_format::maptree::Tree;
use undercroft_format::pack::ObjectKind;
use undercroft_format::segment::{Patch, SegmentMap};

use super::chunker::{Chunker, Cut};
use super::reader::FilledSegment;
use crate::clock::Stopwatch;
use crate::progress::{Counter, Progress};
use crate::repository::error::{RepositoryError, Result};
use crate::repository::record::{RecordBatch, RecordEncoder};
use crate::repository::session::{DoneSegment, Held, SegmentPlace, Session};
use crate::simulate::worker_number;

/// What one disk's backup costs: see [`undercroft_format::snapshot::DiskFigures`].
#[derive(Debug, Default)]
pub struct DiskCounters {
    /// Plaintext bytes of new chunks.
    pub new_bytes: Counter,
    /// Bytes of packs that new chunks take.
    pub stored_bytes: Counter,
    /// Bytes of packs that new maps take.
    pub metadata_bytes: Counter,
    /// Bytes that were read.
    pub read_bytes: Counter,
    /// Bytes of data in the maps that were made.
    pub data_added: Counter,
    /// Bytes of data in the maps that they replace.
    pub data_removed: Counter,
}

impl DiskCounters {
    /// Counts the data of a segment that is done.
    pub fn count(&self, done: &DoneSegment) {
        self.data_added.add(done.data_bytes.into());
        self.data_removed.add(done.replaced_bytes.into());
    }
}

/// What the workers of one disk share.
pub struct SegmentWork<'a> {
    /// Where chunks go.
    pub session: &'a dyn Session,
    /// Ordinal of the disk.
    pub disk: u16,
    /// Cuts.
    pub chunker: &'a Chunker,
    /// True for an opaque stream: it is cut by content alone.
    pub is_stream: bool,
    /// Phase of the chunker's grid.
    pub grid_phase: u16,
    /// The tree whose maps are spliced; `None` in a full read.
    pub parent: Option<Tree>,
    /// What the disk costs.
    pub counters: &'a DiskCounters,
    /// What the run tells.
    pub progress: &'a Progress,
}

/// What one thread keeps from segment to segment.
pub struct WorkerState {
    encoder: RecordEncoder,
    cuts: Vec<Cut>,
    batch: RecordBatch,
}

/// Encoded chunks go to the packer in runs of at least this many bytes: what two workers store at the
/// same time is then interleaved in long runs, which a restore reads in one piece each.
const BATCH_LEN: usize = 1 << 20;

impl WorkerState {
    /// For a thread that compresses at `zstd_level`.
    pub fn new(zstd_level: i32) -> Self {
        Self {
            encoder: RecordEncoder::new(zstd_level),
            cuts: Vec::new(),
            batch: RecordBatch::default(),
        }
    }
}

/// A chunk of the segment at hand.
struct RawChunk<'a> {
    bytes: &'a [u8],
}

/// A chunk with its id.
struct HashedChunk<'a> {
    id: ChunkId,
    bytes: &'a [u8],
}

impl SegmentWork<'_> {
    /// Takes a segment through all stages and returns the id of its map; `None` if it is all zero.
    pub fn process(
        &self,
        segment: FilledSegment,
        state: &mut WorkerState,
    ) -> Result<Option<SegmentMapId>> {
        let busy = Stopwatch::start();
        let result = self.stages(&segment, state);
        self.progress.busy_ns.add_time(busy.elapsed());
        self.progress.done_bytes.add(segment.range.len());
        result
    }

    fn stages(
        &self,
        segment: &FilledSegment,
        state: &mut WorkerState,
    ) -> Result<Option<SegmentMapId>> {
        let mut patches = Vec::with_capacity(segment.runs.len());
        let mut hashed = Vec::new();
        for run in &segment.runs {
            let mut extents = Vec::new();
            match (run.buffer_offset, &segment.buffer) {
                (Some(offset), Some(buffer)) => {
                    let bytes = &buffer[offset..offset + run.len as usize];
                    self.counters.read_bytes.add(u64::from(run.len));
                    let position = segment.range.start + u64::from(run.start);
                    self.cut_and_hash(bytes, position, state, &mut extents, &mut hashed);
                }
                _ => extents.push(Extent::Zero { len: run.len }),
            }
            patches.push(Patch {
                start: run.start,
                extents,
            });
        }
        let len = segment.range.len() as u32;
        let old = self.parent_map(segment, len)?;
        let map = old.splice(len, &patches);
        let done = DoneSegment {
            map: self.store(&map, &hashed, segment, state)?,
            data_bytes: map.data_bytes() as u32,
            replaced_bytes: old.data_bytes() as u32,
        };
        self.counters.count(&done);
        self.session.segment_done(self.place(segment), done)?;
        Ok(done.map)
    }

    fn place(&self, segment: &FilledSegment) -> SegmentPlace {
        SegmentPlace {
            disk: self.disk,
            number: segment.number,
        }
    }

    /// Stores what the repository does not have of a segment: chunks, then the map.
    fn store(
        &self,
        map: &SegmentMap,
        hashed: &[HashedChunk<'_>],
        segment: &FilledSegment,
        state: &mut WorkerState,
    ) -> Result<Option<SegmentMapId>> {
        if map.is_zero() {
            return Ok(None);
        }
        let (id, bytes) = map.encode_with_id();
        // What changed blocks were spliced into is hardly ever known as a whole.
        let held = match self.parent {
            Some(_) => Held::Unasked,
            None => self.session.holds_segment(self.place(segment), id)?,
        };
        if held == Held::Whole {
            return Ok(Some(id));
        }
        let kept = match self.parent {
            Some(_) => kept_chunks(map, hashed),
            None => Vec::new(),
        };
        // One question for all: it may have far to go. Asked for as a part of the whole segment, the map
        // need not be asked for again: at worst it is sent in vain.
        let chunks = hashed.iter().map(|chunk| chunk.id.into());
        let mut ids: Vec<ObjectId> = chunks.chain(kept.iter().copied()).collect();
        ids.extend((held == Held::Unasked).then_some(ObjectId::from(id)));
        let known = tracing::trace_span!("prober", ids = ids.len())
            .in_scope(|| self.session.probe(&ids))?;
        let (chunks_known, others_known) = known.split_at(hashed.len());
        // What did not change was not read, so nothing here could store it again.
        if let Some((id, _)) = kept.iter().zip(others_known).find(|(_, known)| !**known) {
            return Err(RepositoryError::MissingObject {
                kind: ObjectKind::Chunk,
                id: *id,
            });
        }
        self.store_new(hashed, chunks_known, state)?;
        let map_known = others_known.get(kept.len()).copied().unwrap_or(false);
        if !map_known {
            self.store_map(id, &bytes, state)?;
        }
        Ok(Some(id))
    }

    /// Chunker and hasher: each chunk is hashed right after it was cut.
    fn cut_and_hash<'a>(
        &self,
        bytes: &'a [u8],
        position: u64,
        state: &mut WorkerState,
        extents: &mut Vec<Extent>,
        hashed: &mut Vec<HashedChunk<'a>>,
    ) {
        state.cuts.clear();
        tracing::trace_span!("chunker", bytes = bytes.len()).in_scope(|| {
            if self.is_stream {
                self.chunker.cut_stream(bytes, &mut state.cuts);
            } else {
                self.chunker
                    .cut(bytes, position, self.grid_phase, &mut state.cuts);
            }
        });
        let _hasher = tracing::trace_span!("hasher", chunks = state.cuts.len()).entered();
        let mut at = 0;
        for cut in &state.cuts {
            match *cut {
                Cut::Zero(len) => {
                    extents.push(Extent::Zero { len });
                    at += len as usize;
                }
                Cut::Data(len) => {
                    let raw = RawChunk {
                        bytes: &bytes[at..at + len as usize],
                    };
                    let chunk = self.hash(raw);
                    extents.push(Extent::Data {
                        chunk: chunk.id,
                        offset: 0,
                        len,
                    });
                    hashed.push(chunk);
                    at += len as usize;
                }
            }
        }
    }

    fn hash<'a>(&self, chunk: RawChunk<'a>) -> HashedChunk<'a> {
        HashedChunk {
            id: self.session.keys().chunk_id(chunk.bytes),
            bytes: chunk.bytes,
        }
    }

    /// Compressor, pusher: what the repository does not have is encoded and stored.
    fn store_new(
        &self,
        chunks: &[HashedChunk<'_>],
        known: &[bool],
        state: &mut WorkerState,
    ) -> Result<()> {
        let _compressor = tracing::trace_span!("compressor", chunks = chunks.len()).entered();
        for (chunk, known) in chunks.iter().zip(known) {
            if *known || !self.session.claim(chunk.id.into()) {
                continue;
            }
            let id = chunk.id.into();
            let sealer = self.session.sealer();
            let record = state
                .encoder
                .encode(id, ObjectKind::Chunk, chunk.bytes, sealer);
            state.batch.push(&record);
            let plain = chunk.bytes.len() as u64;
            self.counters.new_bytes.add(plain);
            self.progress.new_bytes.add(plain);
            if state.batch.len() >= BATCH_LEN {
                self.push(state)?;
            }
        }
        self.push(state)
    }

    /// Pusher: hands the encoded chunks to the packer.
    fn push(&self, state: &mut WorkerState) -> Result<()> {
        if state.batch.is_empty() {
            return Ok(());
        }
        // A slow path may take minutes for what was read ahead.
        if self.progress.is_stopping() {
            state.batch.clear();
            return Err(RepositoryError::Cancelled);
        }
        let _pusher = tracing::trace_span!("pusher", bytes = state.batch.len()).entered();
        let waited = Stopwatch::start();
        let stored = self.session.store_chunks(&state.batch)?;
        self.progress.store_wait_ns.add_time(waited.elapsed());
        self.progress.stored_bytes.add(stored);
        self.counters.stored_bytes.add(stored);
        state.batch.clear();
        Ok(())
    }

    /// What the segment held before: zeros in a full read.
    fn parent_map(&self, segment: &FilledSegment, len: u32) -> Result<SegmentMap> {
        let objects = self.session.objects();
        let mut id = None;
        if let Some(tree) = self.parent {
            let number = segment.number.0;
            objects.visit_tree(tree, number..number + 1, &mut |_, map| {
                id = Some(map);
                Ok(())
            })?;
        }
        match id {
            Some(id) => objects.segment_map(id),
            None => Ok(SegmentMap::zero(len)),
        }
    }

    fn store_map(&self, id: SegmentMapId, bytes: &[u8], state: &mut WorkerState) -> Result<()> {
        let object = ObjectId::from(id);
        if self.session.claim(object) {
            let record = state
                .encoder
                .encode(object, ObjectKind::SegmentMap, bytes, None);
            let stored = self.session.store(&record)?;
            self.progress.stored_bytes.add(stored);
            self.counters.metadata_bytes.add(stored);
        }
        Ok(())
    }
}

/// The chunks that a map keeps from the parent, each once.
fn kept_chunks(map: &SegmentMap, hashed: &[HashedChunk<'_>]) -> Vec<ObjectId> {
    let read: HashSet<ChunkId> = hashed.iter().map(|chunk| chunk.id).collect();
    let kept = map.chunks().filter(|chunk| !read.contains(chunk));
    let mut kept: Vec<ObjectId> = kept.map(ObjectId::from).collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// Workers' states, one per thread of the pool.
pub struct WorkerStates(Arc<Vec<parking_lot::Mutex<WorkerState>>>);

impl WorkerStates {
    /// States for `threads` threads.
    pub fn new(threads: usize, zstd_level: i32) -> Self {
        Self(Arc::new(
            (0..threads)
                .map(|_| parking_lot::Mutex::new(WorkerState::new(zstd_level)))
                .collect(),
        ))
    }

    /// Runs `work` with the state of the current thread of the pool.
    pub fn with<R>(&self, work: impl FnOnce(&mut WorkerState) -> R) -> R {
        let thread = worker_number() % self.0.len();
        work(&mut self.0[thread].lock())
    }
}
