//! From chunks back to disks.
//!
//! ```text
//! plan > fetch > decode > write
//! ```
//!
//! One thread makes the [`plan`] of each segment and fetches the records it needs, many reads in
//! flight; the workers [`decode`] segments, in any order, each record checked against its id; a thread
//! of its own ([`mod@write`], [`vhd`], [`qcow2`]) writes them. No chain is walked: every snapshot's maps are complete.

mod data_parts;
pub mod decode;
pub mod plan;
pub mod qcow2;
pub mod vhd;
pub mod write;

use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use serde::Serialize;
use undercroft_format::extent::Extent;
use undercroft_format::id::SegmentMapId;
use undercroft_format::maptree::Tree;
use undercroft_format::ranges::RangeSet;
use undercroft_format::segment::SegmentMap;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::units::{DiskRange, SegmentNumber};

use self::decode::{Outcome, SegmentDecoder, Undecoded, describe};
use self::plan::SegmentPlan;
use self::write::{DecodedSegment, DiskWriter, InOrder, write_stream};
use crate::ingest::source::Reads;
use crate::io::{BlockFile, Buffer, BufferPool, Direction, Piece, Queue, Transfer};
use crate::progress::{Counter, Progress};
use crate::repository::Repository;
use crate::repository::damage::AffectedRange;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::keys::Keys;
use crate::repository::local_records::FETCH_LEN_MAX;
use crate::repository::records::Fetch;
use crate::repository::snapshots::StoredSnapshot;

/// Requests at the target's device at once, when it is compared.
const QUEUE_DEPTH: u32 = 16;
/// Segments whose records are on their way at once, however small they are: each has a stream of its own at a
/// server, which allows only so many.
const FETCHES_MAX: usize = 8;
/// Decoded segments beyond those that workers decode: one being fetched, one or two being written.
const DECODED_AHEAD: usize = 2;
/// Bytes of decoded segments, if that leaves room for two: more threads then share them.
const DECODED_LEN_MAX: usize = 128 << 20;
/// Segments whose maps are looked for together: few at first, so that the disks start early, then twice
/// as many each time.
const MAPS_AHEAD: std::ops::RangeInclusive<u64> = 4..=64;
/// Decoded segments that may wait for the writing thread. Their buffers are bounded by the pool.
const DECODED_MAX: usize = 4;

/// Ranges that a report names at most.
pub const DIFFERING_MAX: usize = 16;

/// Where a disk goes.
pub enum Target {
    /// A file or device that can be written anywhere, at least as long as the disk.
    Disk {
        /// The file.
        file: Arc<dyn BlockFile>,
        /// What it holds now.
        content: TargetContent,
        /// How it is read, if not by the repository's engine.
        reads: Option<Arc<dyn Reads>>,
    },
    /// Bytes in order.
    Stream(Box<dyn InOrder>),
}

/// What a target holds before a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetContent {
    /// Zeros alone: a new file.
    Zeros,
    /// Anything: everything is written, zeros are punched.
    Unknown,
    /// Nearly the disk: it is read, and only what differs is written.
    Similar,
}

/// How to restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Go on past damage and report it, instead of failing; damaged ranges are left as zeros (or, in
    /// place, as they were).
    pub allow_damage: bool,
    /// Write nothing, and only say what would be written. For a target that is [`Similar`](TargetContent::Similar);
    /// it may be shorter than the disk.
    pub dry_run: bool,
}

/// What a restore did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RestoreReport {
    /// Size of the disk.
    pub size: u64,
    /// Bytes that are data.
    pub data_bytes: u64,
    /// Bytes written to the target.
    pub written_bytes: u64,
    /// Bytes that were made zero in the target because they were not.
    pub zeroed_bytes: u64,
    /// Bytes found right in the target and left alone.
    pub equal_bytes: u64,
    /// Bytes read from the repository.
    pub fetched_bytes: u64,
    /// What could not be restored.
    pub damage: Vec<AffectedRange>,
    /// The first ranges that differed from what the target held, in order: no more than [`DIFFERING_MAX`].
    #[serde(skip)]
    pub differing: Vec<DiskRange>,
    /// Who served the I/O.
    pub engine: String,
}

/// Restores one disk of a snapshot.
///
/// # Errors
/// The first damage met, unless it is allowed; whatever the target reports. The target is then
/// incomplete.
pub fn restore_disk(
    repository: &dyn Repository,
    stored: &StoredSnapshot,
    disk: &DiskManifest,
    target: Target,
    options: RestoreOptions,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<RestoreReport> {
    let span = tracing::info_span!("restore", snapshot = %stored.id, disk = disk.label);
    let _restore = span.entered();
    let keys = repository.keys()?.clone();
    let workers = threads.current_num_threads();
    progress.total_bytes.add(disk.size.get());
    let segments = disk.segment_size.segments_of(disk.size) as usize;
    let segment_len = disk.segment_size.bytes().min(disk.size.get().max(4096)) as usize;
    let decoded = (workers + DECODED_AHEAD)
        .min(DECODED_LEN_MAX / segment_len)
        .clamp(2, segments.max(2));
    let written_before = progress.stored_bytes.get();
    let restore = Restore {
        repository,
        disk,
        keys: &keys,
        options,
        progress,
        in_place: match &target {
            Target::Disk {
                file,
                content: TargetContent::Similar,
                reads,
            } => Some(InPlace {
                file: file.clone(),
                reads: reads.clone(),
            }),
            _ => None,
        },
        new_file: match &target {
            Target::Disk {
                file,
                content: TargetContent::Zeros,
                ..
            } => Some(file.clone()),
            _ => None,
        },
        is_stream: target.is_stream(),
        only: match &target {
            Target::Stream(stream) => stream.wanted(),
            Target::Disk { .. } => None,
        },
        all_segments: target.is_stream() || needs_zeros(&target),
        // A segment's records may be longer than its data: headers, gaps, other parts of chunks.
        fetch_pool: BufferPool::new(
            FETCH_LEN_MAX + repository.objects().records().fetch_ahead_len(),
        ),
        decoded_pool: BufferPool::new((segment_len + 4096) * decoded),
        decoders: (0..workers).map(|_| Mutex::default()).collect(),
        shared: Shared::default(),
    };
    let (sender, receiver) = bounded(DECODED_MAX);
    let run = std::thread::scope(|scope| {
        let writer = std::thread::Builder::new().name("restore-write".into());
        let (engine, pool) = (&**repository.engine(), &restore.decoded_pool);
        let writer = writer
            .spawn_scoped(scope, move || match target {
                Target::Disk { file, content, .. } => DiskWriter {
                    file,
                    punch: content != TargetContent::Zeros,
                    dry_run: options.dry_run,
                    engine,
                    pool,
                    progress,
                }
                .run(&receiver),
                Target::Stream(stream) => {
                    let (size, segment_size) = (disk.size.get(), disk.segment_size);
                    write_stream(stream, size, segment_size, &receiver, progress)
                }
            })
            .expect("the system can start a thread");
        let read = threads.in_place_scope(|scope| restore.segments(scope, sender));
        let written = writer.join().expect("the writing thread does not panic");
        read.and(written)
    });
    let failure = restore.shared.failure.into_inner();
    if let Some(error) = failure {
        return Err(error);
    }
    run?;
    Ok(RestoreReport {
        size: disk.size.get(),
        data_bytes: disk.figures.data_bytes,
        written_bytes: progress.stored_bytes.get() - written_before,
        zeroed_bytes: restore.shared.zeroed_bytes.get(),
        equal_bytes: restore.shared.equal_bytes.get(),
        differing: restore.shared.differing.into_inner(),
        fetched_bytes: restore.shared.fetched_bytes.get(),
        damage: affected(stored, disk, restore.shared.undecoded.into_inner()),
        engine: repository.engine().choice().kind.to_string(),
    })
}

/// Segments `0..segments` in windows of [`MAPS_AHEAD`].
fn windows(segments: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let (mut start, mut len) = (0, *MAPS_AHEAD.start());
    std::iter::from_fn(move || {
        let window = start..segments.min(start + len);
        start = window.end;
        len = (2 * len).min(*MAPS_AHEAD.end());
        (!window.is_empty()).then_some(window)
    })
}

/// The reads that fill `out` with `range` of the target. Its holes are zeros, and not read.
fn data_of(file: &Arc<dyn BlockFile>, range: DiskRange, out: &mut Buffer) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let data = file
            .next_data(at, range.end)
            .map_err(RepositoryError::io("looking for holes in", "the target"))?
            .unwrap_or(range.end..range.end);
        out[(at - range.start) as usize..(data.start - range.start) as usize].fill(0);
        if !data.is_empty() {
            pieces.push(Piece {
                file: file.clone(),
                file_offset: data.start,
                buffer_offset: (data.start - range.start) as usize,
                len: (data.end - data.start) as usize,
            });
        }
        at = data.end;
    }
    Ok(pieces)
}

fn needs_zeros(target: &Target) -> bool {
    matches!(target, Target::Disk { content, .. } if *content != TargetContent::Zeros)
}

fn affected(
    stored: &StoredSnapshot,
    disk: &DiskManifest,
    mut undecoded: Vec<(DiskRange, String)>,
) -> Vec<AffectedRange> {
    undecoded.sort();
    undecoded
        .into_iter()
        .map(|(range, problem)| AffectedRange {
            snapshot: stored.id,
            vm: stored.snapshot.vm.clone(),
            disk: disk.label.clone(),
            range,
            problem,
        })
        .collect()
}

struct Restore<'a> {
    repository: &'a dyn Repository,
    disk: &'a DiskManifest,
    keys: &'a Keys,
    options: RestoreOptions,
    progress: &'a Progress,
    /// The target, if what it holds is compared.
    in_place: Option<InPlace>,
    /// The target, if it has no blocks yet.
    new_file: Option<Arc<dyn BlockFile>>,
    /// The target takes segments in order.
    is_stream: bool,
    /// Nothing but these ranges is wanted.
    only: Option<RangeSet>,
    /// Segments of zeros matter too.
    all_segments: bool,
    fetch_pool: Arc<BufferPool>,
    decoded_pool: Arc<BufferPool>,
    decoders: Vec<Mutex<SegmentDecoder>>,
    shared: Shared,
}

/// A target that is compared.
struct InPlace {
    file: Arc<dyn BlockFile>,
    reads: Option<Arc<dyn Reads>>,
}

#[derive(Default)]
struct Shared {
    failure: Mutex<Option<RepositoryError>>,
    undecoded: Mutex<Vec<(DiskRange, String)>>,
    differing: Mutex<Vec<DiskRange>>,
    zeroed_bytes: Counter,
    equal_bytes: Counter,
    fetched_bytes: Counter,
}

impl Shared {
    /// Notes what of a segment at `start` differs, and forgets the last ranges if there are too many.
    fn differ(&self, start: u64, write: &[DiskRange], zero: &[DiskRange]) {
        self.zeroed_bytes
            .add(zero.iter().map(|range| range.len()).sum());
        let moved = |range: &DiskRange| DiskRange::new(start + range.start, start + range.end);
        let mut differing = self.differing.lock();
        differing.extend(write.iter().chain(zero).map(moved));
        differing.sort();
        differing.truncate(DIFFERING_MAX);
    }
}

/// A segment and its map.
type PlacedMap = (SegmentNumber, SegmentMapId);

/// A segment whose records are being fetched into another buffer, or whose present content into its own.
struct Reading {
    plan: SegmentPlan,
    /// What it will be decoded to, if that is taken already.
    out: Option<Buffer>,
}

impl Restore<'_> {
    fn segments<'scope>(
        &'scope self,
        scope: &rayon::Scope<'scope>,
        sender: Sender<DecodedSegment>,
    ) -> Result<()> {
        let engine = &**self.repository.engine();
        let target = match &self.in_place {
            Some(target) => {
                let queue = match &target.reads {
                    Some(reads) => reads.queue(),
                    None => engine.queue(&self.decoded_pool, QUEUE_DEPTH),
                };
                Some(queue.map_err(RepositoryError::io("starting I/O for", "the target"))?)
            }
            None => None,
        };
        let records = self.repository.objects().records();
        let mut fetcher = Fetcher {
            restore: self,
            scope,
            sender,
            target,
            records: records.fetch(engine, &self.fetch_pool)?,
            reading: Vec::new(),
        };
        let segments = self.disk.segment_size.segments_of(self.disk.size);
        let mut next = 0;
        let tree = self.disk.tree();
        let mut windows = windows(tree.segments);
        let mut ahead = windows.next().map(|window| self.expect(tree, window));
        let visited = std::iter::from_fn(|| {
            let found = ahead.take()?;
            // The maps of the next window are on their way while this one's chunks are fetched.
            ahead = windows.next().map(|window| self.expect(tree, window));
            Some(found)
        })
        .try_for_each(|found| {
            let maps: Vec<_> = found?
                .into_iter()
                .map(|(number, map)| (number, self.map(number, map)))
                .collect();
            self.reserve(&maps)?;
            maps.into_iter().try_for_each(|(number, map)| {
                fetcher.zeros(next..number.0)?;
                next = number.0 + 1;
                fetcher.segment(number, map)
            })
        });
        let finished = visited.and_then(|()| fetcher.zeros(next..segments));
        while fetcher.reap() {}
        finished
    }

    /// The maps of a window's segments, which will be asked for soon.
    fn expect(&self, tree: Tree, window: std::ops::Range<u64>) -> Result<Vec<PlacedMap>> {
        let mut found = Vec::new();
        self.visit(tree, window, &mut |number, map| {
            let mut wanted = self
                .only
                .iter()
                .flat_map(|only| only.within(self.range_of(number)));
            if self.only.is_none() || wanted.next().is_some() {
                found.push((number, map));
            }
            Ok(())
        })?;
        let maps: Vec<SegmentMapId> = found.iter().map(|(_, map)| *map).collect();
        self.repository.objects().records().expect_maps(&maps);
        Ok(found)
    }

    /// Segment `number`'s map, which must be of its length.
    fn map(&self, number: SegmentNumber, id: SegmentMapId) -> Result<SegmentMap> {
        let range = self.range_of(number);
        let map = self.repository.objects().segment_map(id)?;
        if u64::from(map.len()) == range.len() {
            return Ok(match &self.only {
                Some(only) => map.masked(range, only),
                None => map,
            });
        }
        Err(RepositoryError::ForeignMap { id, range })
    }

    fn range_of(&self, number: SegmentNumber) -> DiskRange {
        self.disk.segment_size.range_of(number, self.disk.size)
    }

    /// Gives a new file the blocks that these segments' data will take. Writes into blocks that are there
    /// run side by side; those that allocate take the file's lock one after the other (ext4, XFS), which
    /// halved the rate. Many segments at once, because reserving waits for the writes under way.
    fn reserve(&self, maps: &[(SegmentNumber, Result<SegmentMap>)]) -> Result<()> {
        let Some(file) = &self.new_file else {
            return Ok(());
        };
        let reserve = |range: DiskRange| {
            file.preallocate(range.start, range.len())
                .map_err(RepositoryError::io("reserving room in", "the target"))
        };
        let mut open: Option<DiskRange> = None;
        for (number, map) in maps {
            let Ok(map) = map else { continue };
            let start = self.range_of(*number).start;
            for (at, extent) in map.placed() {
                let Extent::Data { len, .. } = *extent else {
                    continue;
                };
                let (from, to) = (start + u64::from(at), start + u64::from(at + len));
                match &mut open {
                    Some(range) if range.end == from => range.end = to,
                    _ => {
                        open.take().map_or(Ok(()), reserve)?;
                        open = Some(DiskRange::new(from, to));
                    }
                }
            }
        }
        open.map_or(Ok(()), reserve)
    }

    /// Visits segments `range` of the disk; with damage allowed, past nodes that cannot be read.
    fn visit(
        &self,
        tree: Tree,
        range: std::ops::Range<u64>,
        visitor: &mut dyn FnMut(SegmentNumber, SegmentMapId) -> Result<()>,
    ) -> Result<()> {
        if !self.options.allow_damage {
            let objects = self.repository.objects();
            return objects.visit_tree(tree, range, visitor);
        }
        // Segment by segment, so that an unreadable node costs only what is below it.
        for number in range {
            let mut found = None;
            let looked = self.repository.objects().visit_tree(
                tree,
                number..number + 1,
                &mut |number, map| {
                    found = Some((number, map));
                    Ok(())
                },
            );
            match looked {
                Ok(()) => {}
                Err(error) if error.is_damage() => self.undecoded(vec![Undecoded {
                    ranges: vec![self.range_of(SegmentNumber(number))],
                    error,
                }]),
                Err(error) => return Err(error),
            }
            if let Some((number, map)) = found {
                visitor(number, map)?;
            }
        }
        Ok(())
    }

    fn undecoded(&self, parts: Vec<Undecoded>) {
        for Undecoded { ranges, error } in parts {
            if self.options.allow_damage && error.is_damage() {
                let text = describe(&error);
                let damage = ranges.into_iter().map(|range| (range, text.clone()));
                self.shared.undecoded.lock().extend(damage);
            } else {
                self.shared.failure.lock().get_or_insert(error);
            }
        }
    }

    /// Decodes on a worker and hands on to the writing thread.
    fn decode(
        &self,
        plan: &SegmentPlan,
        fetched: Option<Buffer>,
        mut out: Buffer,
        sender: &Sender<DecodedSegment>,
    ) {
        let _decode = tracing::trace_span!("decode", segment = plan.number.0).entered();
        let thread = rayon::current_thread_index().unwrap_or(0) % self.decoders.len();
        let mut decoder = self.decoders[thread].lock();
        let objects = self.repository.objects();
        let outcome = if self.in_place.is_some() {
            decoder.decode_differing(plan, objects, self.keys, &mut out)
        } else {
            decoder.decode(plan, fetched.as_deref(), objects, self.keys, &mut out)
        };
        drop((decoder, fetched));
        let Outcome {
            write,
            mut zero,
            equal_bytes,
            undecoded,
        } = outcome;
        self.shared.equal_bytes.add(equal_bytes);
        if self.in_place.is_some() {
            self.shared.differ(plan.range.start, &write, &zero);
        }
        if !undecoded.is_empty() {
            if self.in_place.is_none() {
                let start = plan.range.start;
                let local =
                    |range: DiskRange| DiskRange::new(range.start - start, range.end - start);
                let ranges = undecoded.iter().flat_map(|part| &part.ranges);
                zero.extend(ranges.map(|range| local(*range)));
            }
            self.undecoded(undecoded);
        }
        let segment = DecodedSegment {
            number: plan.number,
            range: plan.range,
            buffer: Some(out),
            write,
            zero,
        };
        // The writing thread takes everything until the last sender is gone.
        let _ = sender.send(segment);
    }
}

struct Fetcher<'r, 'scope, 'b> {
    restore: &'scope Restore<'r>,
    scope: &'b rayon::Scope<'scope>,
    sender: Sender<DecodedSegment>,
    /// Reads the target, if what it holds is compared.
    target: Option<Box<dyn Queue>>,
    records: Box<dyn Fetch + 'scope>,
    reading: Vec<Reading>,
}

impl Fetcher<'_, '_, '_> {
    /// Segments of zeros, if the target wants to know.
    fn zeros(&mut self, numbers: std::ops::Range<u64>) -> Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        if let Some(target) = &self.restore.in_place {
            return self.compare_zeros(&*target.file, numbers);
        }
        for number in numbers {
            let number = SegmentNumber(number);
            let range = self.restore.range_of(number);
            if self.restore.all_segments {
                self.send_zero(number, range);
            } else {
                self.restore.progress.done_bytes.add(range.len());
            }
        }
        Ok(())
    }

    /// Segments that must be zero in a target that is compared: where it has holes, they are.
    fn compare_zeros(&mut self, file: &dyn BlockFile, numbers: std::ops::Range<u64>) -> Result<()> {
        let restore = self.restore;
        let mut at = restore.range_of(SegmentNumber(numbers.start)).start;
        let end = restore.range_of(SegmentNumber(numbers.end - 1)).end;
        while let Some(data) = file
            .next_data(at, end)
            .map_err(RepositoryError::io("looking for holes in", "the target"))?
        {
            let number = restore.disk.segment_size.segment_at(data.start);
            let range = restore.range_of(number);
            restore
                .progress
                .done_bytes
                .add(range.start.saturating_sub(at));
            self.start(number, range, SegmentMap::zero(range.len() as u32))?;
            at = range.end;
        }
        restore.progress.done_bytes.add(end - at);
        Ok(())
    }

    fn send_zero(&self, number: SegmentNumber, range: DiskRange) {
        let _ = self.sender.send(DecodedSegment {
            number,
            range,
            buffer: None,
            write: Vec::new(),
            zero: vec![DiskRange::new(0, range.len())],
        });
    }

    fn segment(&mut self, number: SegmentNumber, map: Result<SegmentMap>) -> Result<()> {
        let restore = self.restore;
        let range = restore.range_of(number);
        match map {
            Ok(map) => self.start(number, range, map),
            Err(error) if error.is_damage() && restore.options.allow_damage => {
                restore.undecoded(vec![Undecoded {
                    ranges: vec![range],
                    error,
                }]);
                if restore.in_place.is_none() {
                    self.send_zero(number, range);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn start(&mut self, number: SegmentNumber, range: DiskRange, map: SegmentMap) -> Result<()> {
        let restore = self.restore;
        if restore.progress.is_stopping() {
            return Err(RepositoryError::Cancelled);
        }
        if restore.shared.failure.lock().is_some() {
            return Err(RepositoryError::SessionFailed(
                "a segment could not be restored".into(),
            ));
        }
        let _plan = tracing::trace_span!("plan", segment = number.0).entered();
        let mut plan = SegmentPlan::new(number, range, map);
        if let (Some(InPlace { file, .. }), true) = (&restore.in_place, self.target.is_some()) {
            let mut out = self.acquire(&restore.decoded_pool, range.len() as usize);
            let queue = self.target.as_mut().expect("just seen");
            let pieces = data_of(file, range, &mut out)?;
            let read: usize = pieces.iter().map(|piece| piece.len).sum();
            restore.progress.read_bytes.add(read as u64);
            queue.submit(Transfer {
                token: plan.number.0,
                direction: Direction::Read,
                buffer: out,
                pieces,
            });
            self.reading.push(Reading { plan, out: None });
            return Ok(());
        }
        self.records.prepare(&mut plan.batch)?;
        let fetch_len = plan.batch.fetch_len;
        // A stream takes segments in order: the first must not wait for buffers that later ones have.
        let out = (restore.is_stream || fetch_len == 0)
            .then(|| self.acquire(&restore.decoded_pool, range.len() as usize));
        if fetch_len == 0 {
            self.spawn(plan, None, out.expect("just acquired"));
            return Ok(());
        }
        while self.reading.len() >= FETCHES_MAX && self.reap() {}
        let buffer = self.acquire(&restore.fetch_pool, fetch_len);
        self.records.submit(std::mem::take(&mut plan.batch), buffer);
        self.reading.push(Reading { plan, out });
        Ok(())
    }

    /// A buffer; meanwhile reads that are done go to the workers.
    fn acquire(&mut self, pool: &Arc<BufferPool>, len: usize) -> Buffer {
        loop {
            if let Some(buffer) = pool.try_acquire(len) {
                return buffer;
            }
            if !self.reap() {
                return pool.acquire(len);
            }
        }
    }

    /// Waits for one read and hands its segment to a worker; false if none was in flight.
    fn reap(&mut self) -> bool {
        if let Some(done) = self.target.as_mut().and_then(|queue| queue.wait()) {
            let Reading { plan, .. } = self.take_reading(done.transfer.token);
            match done.result {
                Ok(()) => self.spawn(plan, None, done.transfer.buffer),
                Err(error) => {
                    let place = format!("the target at byte {}", error.file_offset);
                    let error = RepositoryError::io("reading", &place)(error.source);
                    self.restore.shared.failure.lock().get_or_insert(error);
                }
            }
            return true;
        }
        let fetched = tracing::trace_span!("fetch").in_scope(|| self.records.wait());
        let Some((batch, buffer)) = fetched else {
            return false;
        };
        let Reading { mut plan, out } = self.take_reading(batch.token);
        let shared = &self.restore.shared;
        shared.fetched_bytes.add(batch.fetch_len as u64);
        self.restore.progress.read_bytes.add(batch.fetch_len as u64);
        plan.batch = batch;
        // Workers and the writing thread let go of buffers without any help from here.
        let len = plan.range.len() as usize;
        let out = out.unwrap_or_else(|| self.restore.decoded_pool.acquire(len));
        self.spawn(plan, Some(buffer), out);
        true
    }

    fn take_reading(&mut self, token: u64) -> Reading {
        let place = self
            .reading
            .iter()
            .position(|reading| reading.plan.number.0 == token)
            .expect("every read was registered when it began");
        self.reading.swap_remove(place)
    }

    fn spawn(&self, plan: SegmentPlan, fetched: Option<Buffer>, out: Buffer) {
        let (restore, sender) = (self.restore, self.sender.clone());
        self.scope
            .spawn(move |_| restore.decode(&plan, fetched, out, &sender));
    }
}
