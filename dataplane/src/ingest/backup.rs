//! A backup: all disks of one VM, one snapshot, published atomically.
//!
//! When the changed blocks of a disk cannot be trusted, by its `plan`, an [`audit`](super::audit) or
//! damage of the parent, it is read in full, which costs time and never data: a full read sends only what the
//! repository lacks.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::audit::AuditShare;
use undercroft_format::id::{NodeId, ObjectId, SegmentMapId, SessionId, SnapshotId};
use undercroft_format::lock::LockEnd;
use undercroft_format::maptree::{Tree, update};
use undercroft_format::pack::ObjectKind;
use undercroft_format::ranges::RangeSet;
use undercroft_format::reason::Reason;
use undercroft_format::segment::SegmentMap;
use undercroft_format::snapshot::{DiskFigures, DiskManifest, Metadata, Snapshot};
use undercroft_format::units::{DiskLength, SegmentNumber, SegmentSize};

use super::audit::{Auditor, DiskAudit, session_random};
use super::changes::ChangedBlocks;
use super::chunker::Chunker;
use super::hole_audit::untrue_hole;
use super::in_order::Room;
use super::plan::{Increment, Plan};
use super::reader::{DiskReader, Extent, FilledSegment, read_stream};
use super::source::{DiskSource, Source};
use super::store_nodes::StoreNodes;
use super::worker::{DiskCounters, SegmentWork, WorkerStates};
use super::xva::archive::{XvaArchive, XvaStream};
use super::xva::segments::{ArchivedSegment, DiskSegments};
use crate::clock::Stopwatch;
use crate::io::{BlockFile, BufferPool, Engine, EngineKind};
use crate::progress::{Progress, Waits};
use crate::repository::error::{RepositoryError, Result};
use crate::repository::record::RecordEncoder;
use crate::repository::retention::UnixMs;
use crate::repository::session::{
    Begun, Committed, DiskState, DoneSegments, Session, SessionRequest,
};
use crate::repository::snapshot_disk::SnapshotDisk;
use crate::repository::snapshots::StoredSnapshot;
use crate::repository::walk::{Place, Visitor, walk_disk};
use crate::repository::{Repository, Traffic};
use crate::simulate;

/// Memory for segments being read or worked on, in segments: one per worker being worked on, two being
/// read ahead ...
const READ_AHEAD_SEGMENTS: usize = 2;
/// ... but no more bytes than this, so that a backup stays below 256 MiB with everything else it needs:
/// with large segments or many workers, some workers wait for a segment.
const SEGMENTS_LEN_MAX: usize = 176 << 20;
/// One segment is read while one is worked on, whatever their size.
const SEGMENTS_MIN: usize = 2;
/// Metadata is cut into chunks of at most this many bytes.
pub(crate) const METADATA_CHUNK_LEN: usize = 1 << 20;
/// A wait is worth a reason code when it takes more than this share of a run.
const SLOW_PERCENT: f64 = 50.0;
/// Shorter runs say nothing about what is slow.
const SLOW_AFTER_MS: u64 = 1_000;

/// One disk to back up.
#[derive(Debug)]
pub struct DiskJob {
    /// Its name within the VM.
    pub label: String,
    /// Where its bytes come from.
    pub source: Source,
    /// The source in the user's words.
    pub source_name: String,
    /// What changed since the parent.
    pub changed_blocks: Option<ChangedBlocks>,
    /// Where the disk's state came from: sorted pairs.
    pub lineage: Vec<(String, String)>,
    /// Digest of what tells this state of the disk from another: an interrupted session goes on only
    /// where it is the same.
    pub state: [u8; 32],
}

/// One VM to back up.
#[derive(Debug)]
pub struct BackupJob {
    /// Name of the VM.
    pub vm: String,
    /// Its disks.
    pub disks: Vec<DiskJob>,
    /// The snapshot that changed blocks refer to.
    pub parent: Option<StoredSnapshot>,
    /// The VM's metadata: its name and bytes.
    pub metadata: Option<(String, Vec<u8>)>,
    /// Free words.
    pub tags: Vec<String>,
    /// An interrupted session to go on with: its finished segments are not read again.
    pub resume: Option<SessionId>,
    /// How the snapshot is locked, from the moment when it can be seen.
    pub lock: Option<LockEnd>,
    /// How much of what is said not to have changed is read all the same.
    pub audit: AuditShare,
    /// Asked before the snapshot is published.
    pub confirm: Option<Confirm>,
    /// Now, in milliseconds since 1970-01-01 UTC.
    pub now_ms: u64,
}

/// Asks whether all that was read is of one point in time still: a disk that goes on being written keeps one
/// only as long as something takes care of it.
pub struct Confirm(Box<Ask>);

type Ask = dyn FnOnce() -> std::result::Result<(), Box<dyn Error + Send + Sync>> + Send;

impl Confirm {
    /// Asks `ask`.
    pub fn new<E: Into<Box<dyn Error + Send + Sync>>>(
        ask: impl FnOnce() -> std::result::Result<(), E> + Send + 'static,
    ) -> Self {
        Self(Box::new(|| ask().map_err(Into::into)))
    }
}

impl fmt::Debug for Confirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirm")
    }
}

/// What a backup did.
#[derive(Debug)]
pub struct BackupReport {
    /// The snapshot.
    pub id: SnapshotId,
    /// What it says.
    pub snapshot: Snapshot,
    /// Where the time went.
    pub waits: Waits,
    /// Who served the source's reads.
    pub engine: String,
    /// Packs written.
    pub packs: u64,
    /// Bytes of packs written.
    pub pack_bytes: u64,
    /// What the repository's connections carried, if it is behind a server.
    pub traffic: Option<Traffic>,
    /// Problems with changed blocks, per disk, in words.
    pub warnings: Vec<String>,
    /// What was compared of what did not change, per increment of a disk.
    pub audits: Vec<DiskAudit>,
    /// The end of the snapshot's retention lock.
    pub locked_until: Option<UnixMs>,
}

/// Backs up a VM.
///
/// # Errors
/// Whatever failed first; then no snapshot was published, and what was sealed stays for the next try
/// to find: `progress` says how much that is. [`Interrupted`](RepositoryError::Interrupted) leaves open
/// whether it was published: going on with the session, or [`settle`], tells.
pub fn backup(
    repository: Arc<dyn Repository>,
    mut job: BackupJob,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<BackupReport> {
    let wall = Stopwatch::start();
    let _backup = tracing::info_span!("backup", vm = job.vm).entered();
    let session = match repository.clone().begin(&request(&job))? {
        Begun::Open(session) => session,
        Begun::Published(committed) => return published(&*repository, committed),
    };
    let confirm = job.confirm.take();
    let stored = store_all(&*repository, &*session, job, threads, progress, &wall);
    let stored = stored.and_then(|stored| match confirm {
        Some(Confirm(ask)) => ask().map(|()| stored).map_err(RepositoryError::PointLost),
        None => Ok(stored),
    });
    let sealed = session.sealed();
    // Whoever asks to stop while the last segments are on their way does not want the snapshot.
    let stored = stored.and_then(|stored| match progress.is_stopping() {
        true => Err(RepositoryError::Cancelled),
        false => Ok(stored),
    });
    match stored {
        Ok((snapshot, waits, told)) => {
            let committed = tracing::info_span!("commit", session = %session.id())
                .in_scope(|| session.commit(&snapshot));
            let committed = committed.inspect_err(|_| progress.kept_bytes.add(sealed.bytes))?;
            Ok(BackupReport {
                id: committed.id,
                snapshot,
                waits,
                engine: repository.engine().choice().kind.to_string(),
                packs: committed.figures.packs,
                pack_bytes: committed.figures.bytes,
                traffic: repository.traffic(),
                warnings: told.warnings,
                audits: told.audits,
                locked_until: committed.locked_until,
            })
        }
        Err(error) => {
            let error = error.interrupting(session.id());
            // What is complete stays for the next try; a failure here adds nothing to the first one. A session
            // that can be gone on with is left open.
            let kept = match error {
                RepositoryError::Interrupted { .. } => sealed,
                _ => session.abandon().unwrap_or(sealed),
            };
            progress.kept_bytes.add(kept.bytes);
            Err(error)
        }
    }
}

/// Finds out what became of the session that `job` would go on with: what it published, or `None` once it
/// is certain that it never will. For a source that cannot be read again.
pub fn settle(repository: &Arc<dyn Repository>, job: &BackupJob) -> Result<Option<BackupReport>> {
    match repository.clone().begin(&request(job))? {
        Begun::Published(committed) => published(&**repository, committed).map(Some),
        Begun::Open(session) => {
            session.abandon()?;
            Ok(None)
        }
    }
}

/// The report of a session whose end was not heard.
fn published(repository: &dyn Repository, committed: Committed) -> Result<BackupReport> {
    let snapshot = repository.snapshots().read(committed.id)?.snapshot;
    Ok(BackupReport {
        id: committed.id,
        snapshot,
        waits: Waits::default(),
        engine: repository.engine().choice().kind.to_string(),
        packs: committed.figures.packs,
        pack_bytes: committed.figures.bytes,
        traffic: repository.traffic(),
        audits: Vec::new(),
        warnings: vec!["the snapshot was published before the connection broke".to_owned()],
        locked_until: committed.locked_until,
    })
}

fn request(job: &BackupJob) -> SessionRequest {
    let disks = job.disks.iter().map(|disk| DiskState {
        label: disk.label.clone(),
        size: disk.source.size().unwrap_or_default(),
        state: disk.state,
    });
    SessionRequest {
        vm: job.vm.clone(),
        disks: disks.collect(),
        resume: job.resume,
        lock: job.lock,
    }
}

fn store_all(
    repository: &dyn Repository,
    session: &dyn Session,
    mut job: BackupJob,
    threads: &rayon::ThreadPool,
    progress: &Progress,
    wall: &Stopwatch,
) -> Result<(Snapshot, Waits, Told)> {
    if let Some(parent) = &job.parent
        && !session.pin_parent(parent)?
    {
        job.parent = None;
    }
    let config = session.config();
    let workers = threads.current_num_threads();
    let segment_len = config.segment_size.bytes() as usize;
    let machine = Machine {
        repository,
        session,
        engine: &**repository.engine(),
        threads,
        progress,
        chunker: Chunker::new(&config.chunker),
        audit: job.audit,
        pool: BufferPool::new(segment_len * segments_in_flight(workers, segment_len)),
        states: WorkerStates::new(workers, config.zstd_level.into()),
    };
    for disk in &job.disks {
        let size = disk.source.size().unwrap_or_default();
        progress.total_bytes.add(size.get());
    }
    // Before the disks: its memory goes before theirs is touched.
    let metadata = match job.metadata {
        Some((name, bytes)) => Some(machine.metadata(name, &bytes)?),
        None => None,
    };
    let mut told = Told::default();
    let parent = job.parent.as_ref();
    let mut disks = Vec::with_capacity(job.disks.len());
    match archive_of(&job.disks) {
        Some(archive) => {
            disks = machine.archive(archive, job.disks, parent, &job.vm, &mut told)?;
        }
        None => {
            for (ordinal, disk) in (0..).zip(job.disks) {
                disks.push(machine.disk(ordinal, disk, parent, &job.vm, &mut told)?);
            }
        }
    }
    let elapsed = wall.elapsed();
    let waits = Waits::of(progress, workers, elapsed);
    let duration_ms = elapsed.as_millis() as u64;
    if let Some(reason) = slowness(&waits, duration_ms) {
        disks.iter_mut().for_each(|disk| disk.reasons.push(reason));
    }
    let mut tags = job.tags;
    tags.sort();
    tags.dedup();
    let snapshot = Snapshot {
        repository: config.repository,
        session: session.id(),
        created_ms: job.now_ms,
        duration_ms,
        vm: job.vm,
        tags,
        parent: job.parent.map(|parent| parent.id),
        disks,
        metadata,
    };
    Ok((snapshot, waits, told))
}

/// Bytes of the segments that a backup with `workers` workers reads and works on at once, of the usual size.
pub fn memory_of_segments(workers: usize) -> u64 {
    let segment_len = SegmentSize::DEFAULT.bytes() as usize;
    (segments_in_flight(workers, segment_len) * segment_len) as u64
}

fn segments_in_flight(workers: usize, segment_len: usize) -> usize {
    (workers + READ_AHEAD_SEGMENTS).min((SEGMENTS_LEN_MAX / segment_len).max(SEGMENTS_MIN))
}

fn slowness(waits: &Waits, duration_ms: u64) -> Option<Reason> {
    if duration_ms < SLOW_AFTER_MS {
        return None;
    }
    [
        (waits.source_percent, Reason::WaitedForSource),
        (waits.cpu_percent, Reason::WaitedForCpu),
        (waits.repository_percent, Reason::WaitedForRepository),
    ]
    .into_iter()
    .find(|(percent, _)| *percent > SLOW_PERCENT)
    .map(|(_, reason)| reason)
}

/// What the disks of one run share.
struct Machine<'a> {
    repository: &'a dyn Repository,
    session: &'a dyn Session,
    engine: &'a dyn Engine,
    threads: &'a rayon::ThreadPool,
    progress: &'a Progress,
    audit: AuditShare,
    chunker: Chunker,
    pool: Arc<BufferPool>,
    states: WorkerStates,
}

/// A disk that is read.
struct DiskRead<'a> {
    ordinal: u16,
    label: &'a str,
    source: &'a DiskSource,
    grid_phase: u16,
    /// What the parent has of it, whether it is spliced or not.
    parent: Option<&'a DiskManifest>,
}

/// What there is to tell of a run beside its snapshot.
#[derive(Default)]
struct Told {
    warnings: Vec<String>,
    audits: Vec<DiskAudit>,
}

/// A disk whose chunks, maps and nodes are stored.
struct StoredDisk {
    root: Option<NodeId>,
    figures: DiskFigures,
}

impl Machine<'_> {
    fn disk(
        &self,
        ordinal: u16,
        job: DiskJob,
        parent: Option<&StoredSnapshot>,
        vm: &str,
        told: &mut Told,
    ) -> Result<DiskManifest> {
        if let Source::InOrder(_) = job.source {
            return self.piped_disk(ordinal, job, parent, vm, told);
        }
        let parent_disk = parent.and_then(|parent| parent.snapshot.disk(&job.label));
        let segment_size = self.session.config().segment_size;
        let (size, plan, phase, stored) = match job.source {
            Source::Disk(source) => {
                let size = source.size();
                let increment = Increment {
                    label: &job.label,
                    size,
                    segment_size,
                    lineage: &job.lineage,
                    vm,
                };
                let mut plan = increment.plan(job.changed_blocks, parent, &mut told.warnings);
                self.note_io(&source, &mut plan.reasons);
                let phase = match parent_disk {
                    Some(disk) => disk.grid_phase,
                    None => source.grid_phase().map_err(RepositoryError::io(
                        "reading the partition table of",
                        &job.source_name,
                    ))?,
                };
                let read = DiskRead {
                    ordinal,
                    label: &job.label,
                    source: &source,
                    grid_phase: phase,
                    parent: parent_disk,
                };
                let mut stored = self.audit_and_store(&read, &mut plan, told);
                if let Err(error) = &stored
                    && error.is_damage()
                    && let (Some(parent), Some(_)) = (parent, plan.parent)
                {
                    told.warnings.push(format!(
                        "disk {}: the parent cannot be built upon: {error}; the disk is read in full; \
                         see what else that affects: undercroft verify --deep",
                        job.label
                    ));
                    self.distrust(parent, &job.label)?;
                    plan.read_in_full(Reason::ParentDamaged);
                    self.progress.total_bytes.add(size.get());
                    self.check_holes(&read, &mut plan, told)?;
                    stored = self.store_disk(&read, &plan);
                }
                (size, plan, phase, stored?)
            }
            Source::Delta(delta) => {
                let size = delta.size();
                let increment = Increment {
                    label: &job.label,
                    size,
                    segment_size,
                    lineage: &job.lineage,
                    vm,
                };
                let reading = "reading what changed in";
                let changed = delta
                    .changed()
                    .map_err(RepositoryError::io(reading, &job.source_name))?;
                let changed = Some(ChangedBlocks::known(changed));
                let mut plan = increment.plan(changed, parent, &mut Vec::new());
                // A full read would take what did not change for zeros.
                let Some(below) = parent_disk.filter(|_| plan.parent.is_some()) else {
                    return Err(RepositoryError::NoBase {
                        disk: job.label,
                        reason: plan.reasons.first().copied().unwrap_or(Reason::NoParent),
                    });
                };
                let source = delta.over(self.disk_of_snapshot(below)?);
                self.note_io(&source, &mut plan.reasons);
                let read = DiskRead {
                    ordinal,
                    label: &job.label,
                    source: &source,
                    grid_phase: below.grid_phase,
                    parent: Some(below),
                };
                let stored = self.store_disk(&read, &plan)?;
                (size, plan, below.grid_phase, stored)
            }
            Source::Stream(mut stream) => {
                let plan = Plan::full(Reason::Stream);
                let counters = DiskCounters::default();
                let (size, changes) = self.read_stream(ordinal, &mut *stream, &counters)?;
                let segments = segment_size.segments_of(size);
                let stored = self.store_tree(&plan, None, segments, &changes, &counters)?;
                (size, plan, 0, stored)
            }
            Source::InOrder(_) | Source::Archived(_) => {
                unreachable!("what comes in order is read elsewhere")
            }
        };
        Ok(DiskManifest {
            label: job.label,
            size,
            segment_size,
            grid_phase: phase,
            root: stored.root,
            read_mode: plan.read_mode,
            reasons: plan.reasons,
            source: job.source_name,
            lineage: job.lineage,
            figures: stored.figures,
        })
    }

    /// Stores a disk that comes in order.
    fn piped_disk(
        &self,
        ordinal: u16,
        mut job: DiskJob,
        parent: Option<&StoredSnapshot>,
        vm: &str,
        told: &mut Told,
    ) -> Result<DiskManifest> {
        let nothing = Source::Stream(Box::new(std::io::empty()));
        let Source::InOrder(mut disk) = std::mem::replace(&mut job.source, nothing) else {
            unreachable!("only what comes in order comes here");
        };
        let size = disk.size();
        self.progress.total_bytes.add(size.get());
        let of = InOrderJob {
            ordinal,
            size,
            finished: DoneSegments::new(),
        };
        let room = Room {
            segment_size: self.session.config().segment_size,
            pool: &self.pool,
            progress: self.progress,
        };
        let mut next = || disk.next_segment(&room);
        self.disk_in_order(of, job, &mut next, parent, vm, told)
    }

    /// Reads the disks of an archive in the archive's order, and gives them in that of the jobs.
    fn archive(
        &self,
        archive: XvaArchive,
        jobs: Vec<DiskJob>,
        parent: Option<&StoredSnapshot>,
        vm: &str,
        told: &mut Told,
    ) -> Result<Vec<DiskManifest>> {
        let mut stream = archive.into_stream(self.engine)?;
        let mut done: Vec<Option<DiskManifest>> = jobs.iter().map(|_| None).collect();
        let mut jobs: Vec<Option<DiskJob>> = jobs.into_iter().map(Some).collect();
        while let Some(number) = stream.next_disk()? {
            let is_wanted = |job: &Option<DiskJob>| {
                let source = job.as_ref().map(|job| &job.source);
                matches!(source, Some(Source::Archived(disk)) if disk.number == number)
            };
            let Some(place) = jobs.iter().position(is_wanted) else {
                stream.skip_disk(self.progress)?;
                continue;
            };
            let job = jobs[place].take().expect("just seen");
            let stream = Some(&mut stream);
            let disk = self.archived_disk(place as u16, job, stream, parent, vm, told)?;
            done[place] = Some(disk);
        }
        // The reader has seen to it that those which are left have no bytes.
        for (place, job) in jobs.into_iter().enumerate() {
            if let Some(job) = job {
                let disk = self.archived_disk(place as u16, job, None, parent, vm, told)?;
                done[place] = Some(disk);
            }
        }
        Ok(done.into_iter().flatten().collect())
    }

    /// Stores the disk that `stream` has just begun; without one, a disk of no bytes.
    fn archived_disk(
        &self,
        ordinal: u16,
        job: DiskJob,
        stream: Option<&mut XvaStream>,
        parent: Option<&StoredSnapshot>,
        vm: &str,
        told: &mut Told,
    ) -> Result<DiskManifest> {
        let size = job.source.size().unwrap_or_default();
        // What a pipe brings now need not be what an earlier run was given.
        let finished = match &stream {
            Some(stream) if stream.is_repeatable() => self.session.finished(ordinal),
            _ => DoneSegments::new(),
        };
        let label = InOrderJob {
            ordinal,
            size,
            finished,
        };
        match stream {
            None => self.disk_in_order(label, job, &mut || Ok(None), parent, vm, told),
            Some(stream) => {
                let segment_size = self.session.config().segment_size;
                let mut segments =
                    DiskSegments::new(stream, size, segment_size, &self.pool, self.progress);
                let mut next = || segments.next_segment();
                self.disk_in_order(label, job, &mut next, parent, vm, told)
            }
        }
    }

    /// Stores a disk whose segments `next` gives in order.
    fn disk_in_order(
        &self,
        of: InOrderJob,
        job: DiskJob,
        next: &mut NextSegment<'_>,
        parent: Option<&StoredSnapshot>,
        vm: &str,
        told: &mut Told,
    ) -> Result<DiskManifest> {
        let InOrderJob {
            ordinal,
            size,
            finished,
        } = of;
        let segment_size = self.session.config().segment_size;
        let increment = Increment {
            label: &job.label,
            size,
            segment_size,
            lineage: &job.lineage,
            vm,
        };
        let plan = increment.plan(None, parent, &mut told.warnings);
        let parent_disk = parent.and_then(|parent| parent.snapshot.disk(&job.label));
        let counters = DiskCounters::default();
        let mut phase = parent_disk.map_or(0, |disk| disk.grid_phase);
        let first = next()?;
        if parent_disk.is_none() {
            phase = ArchivedSegment::grid_phase(first.as_ref(), size);
        }
        let work = SegmentWork {
            session: self.session,
            disk: ordinal,
            chunker: &self.chunker,
            is_stream: false,
            grid_phase: phase,
            parent: None,
            counters: &counters,
            progress: self.progress,
        };
        let ((), mut changes) = self.fan_out(&work, |emit| {
            self.emit_archived(next, first, size, phase, &finished, emit)
        })?;
        for (number, done) in &finished {
            counters.count(done);
            changes.insert(*number, done.map);
        }
        let stored = self.store_tree(
            &plan,
            None,
            segment_size.segments_of(size),
            &changes,
            &counters,
        )?;
        Ok(DiskManifest {
            label: job.label,
            size,
            segment_size,
            grid_phase: phase,
            root: stored.root,
            read_mode: plan.read_mode,
            reasons: plan.reasons,
            source: job.source_name,
            lineage: job.lineage,
            figures: stored.figures,
        })
    }

    /// Gives the segments of an archived disk to the workers, but for those that are done.
    fn emit_archived(
        &self,
        segments: &mut NextSegment<'_>,
        mut next: Option<ArchivedSegment>,
        size: DiskLength,
        phase: u16,
        finished: &DoneSegments,
        emit: &mut dyn FnMut(FilledSegment) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while let Some(segment) = next {
            let range = segment.range();
            let left_out = range.start.saturating_sub(at);
            self.progress.done_bytes.add(left_out);
            self.progress.read_bytes.add(segment.data_bytes());
            at = range.end;
            match finished.contains_key(&segment.number) {
                true => self.progress.done_bytes.add(range.len()),
                false => {
                    self.session.going_on()?;
                    emit(segment.filled(phase))?;
                }
            }
            next = segments()?;
        }
        self.progress.done_bytes.add(size.get().saturating_sub(at));
        Ok(())
    }

    /// Before a disk is read: looks whether there are zeros where a source elsewhere says so, within what is going
    /// to be read. If not, what it says of them is passed over. (An audit of an increment asks nobody for zeros.)
    fn check_holes(&self, read: &DiskRead<'_>, plan: &mut Plan, told: &mut Told) -> Result<()> {
        let source = read.source;
        if !source.retries_itself() || plan.reasons.contains(&Reason::HolesUntrue) {
            return Ok(());
        }
        let left_out = match &plan.extent {
            Extent::All => RangeSet::default(),
            Extent::Changed { ranges, .. } => ranges.complement(source.size().get()),
        };
        let mut random = session_random(self.session, b"holes", read.ordinal);
        let found = untrue_hole(source, &left_out, self.audit, &mut random, self.progress)?;
        if let Some(block) = found {
            source.distrust_holes();
            plan.reasons.push(Reason::HolesUntrue);
            told.warnings.push(format!(
                "disk {}: there is data in bytes {block}, which its server says are zero; what it says of \
                 zeros is passed over. Backups of this server's disks by other tools, and earlier ones of this disk, \
                 may lack data",
                read.label
            ));
        }
        Ok(())
    }

    /// Reads a disk as planned and stores it, unless an audit says that the plan is no good: then all of it is
    /// read.
    fn audit_and_store(
        &self,
        read: &DiskRead<'_>,
        plan: &mut Plan,
        told: &mut Told,
    ) -> Result<StoredDisk> {
        if let (Extent::Changed { ranges, .. }, Some(parent)) = (&plan.extent, read.parent)
            && self.audit != AuditShare::NONE
        {
            let auditor = Auditor {
                session: self.session,
                ordinal: read.ordinal,
                source: read.source,
                parent,
                changed: ranges,
                share: self.audit,
                engine: self.engine,
                pool: &self.pool,
                progress: self.progress,
            };
            let audit = auditor.run(read.label)?;
            told.warnings.extend(audit.warnings());
            if audit.mismatch.is_some() {
                plan.read_in_full(Reason::AuditMismatch);
                self.progress.total_bytes.add(read.source.size().get());
            }
            told.audits.push(audit);
        }
        self.check_holes(read, plan, told)?;
        self.store_disk(read, plan)
    }

    /// Reads a disk as planned and stores it.
    fn store_disk(&self, read: &DiskRead<'_>, plan: &Plan) -> Result<StoredDisk> {
        let counters = DiskCounters::default();
        let changes = self.read_disk(read, plan, &counters)?;
        let segment_size = self.session.config().segment_size;
        let segments = segment_size.segments_of(read.source.size());
        self.store_tree(plan, read.parent, segments, &changes, &counters)
    }

    fn store_tree(
        &self,
        plan: &Plan,
        parent: Option<&DiskManifest>,
        segments: u64,
        changes: &Changes,
        counters: &DiskCounters,
    ) -> Result<StoredDisk> {
        let old = plan.parent.unwrap_or(Tree {
            root: None,
            segments: 0,
        });
        let mut nodes = StoreNodes::new(self.session, counters);
        let tree = update(&mut nodes, old, segments, changes)?;
        nodes.finish()?;
        let data_bytes = self.data_bytes(parent, plan, segments, counters)?;
        Ok(StoredDisk {
            root: tree.root,
            figures: DiskFigures {
                data_bytes,
                read_bytes: counters.read_bytes.get(),
                new_bytes: counters.new_bytes.get(),
                stored_bytes: counters.stored_bytes.get(),
                metadata_bytes: counters.metadata_bytes.get(),
            },
        })
    }

    /// Looks for all damage in the maps of a disk, so that none of them is taken for stored.
    fn distrust(&self, parent: &StoredSnapshot, label: &str) -> Result<()> {
        struct Distrust<'a>(&'a dyn Session);
        impl Visitor for Distrust<'_> {
            fn enter(&mut self, _: ObjectId) -> bool {
                true
            }

            fn map(&mut self, _: &Place<'_>, _: &SegmentMap) -> Result<()> {
                Ok(())
            }

            fn unreadable(&mut self, _: &Place<'_>, error: RepositoryError) -> Result<()> {
                match error {
                    RepositoryError::CorruptObject { kind, id, .. } => self.0.distrust(kind, &[id]),
                    error if error.is_damage() => Ok(()),
                    error => Err(error),
                }
            }
        }
        let snapshot = &parent.snapshot;
        let Some(disk) = snapshot.disks.iter().position(|disk| disk.label == label) else {
            return Ok(());
        };
        let objects = self.session.objects();
        walk_disk(
            objects,
            parent.id,
            snapshot,
            disk,
            &mut Distrust(self.session),
        )
    }

    fn disk_of_snapshot(&self, disk: &DiskManifest) -> Result<Arc<dyn BlockFile>> {
        let keys = self.repository.keys()?.clone();
        let objects = self.session.objects();
        Ok(Arc::new(SnapshotDisk::new(objects, keys, disk.clone())))
    }

    fn note_io(&self, source: &DiskSource, reasons: &mut Vec<Reason>) {
        if self.engine.choice().kind == EngineKind::Posix {
            reasons.push(Reason::PlainIo);
        }
        if !source.is_direct() {
            reasons.push(Reason::NoDirectIo);
        }
    }

    fn read_disk(
        &self,
        read: &DiskRead<'_>,
        plan: &Plan,
        counters: &DiskCounters,
    ) -> Result<Changes> {
        let (disk, grid_phase) = (read.ordinal, read.grid_phase);
        let work = SegmentWork {
            session: self.session,
            disk,
            chunker: &self.chunker,
            is_stream: false,
            grid_phase,
            parent: plan.parent,
            counters,
            progress: self.progress,
        };
        let finished = self.session.finished(disk);
        let reader = DiskReader {
            going_on: &|| self.session.going_on(),
            source: read.source,
            segment_size: self.session.config().segment_size,
            grid_phase,
            engine: self.engine,
            finished: &finished,
            pool: &self.pool,
            progress: self.progress,
        };
        let ((), mut changes) = self.fan_out(&work, |emit| reader.run(&plan.extent, emit))?;
        for (number, done) in &finished {
            counters.count(done);
            changes.insert(*number, done.map);
        }
        Ok(changes)
    }

    fn read_stream(
        &self,
        disk: u16,
        stream: &mut (dyn std::io::Read + Send),
        counters: &DiskCounters,
    ) -> Result<(DiskLength, Changes)> {
        let work = SegmentWork {
            session: self.session,
            disk,
            chunker: &self.chunker,
            is_stream: true,
            grid_phase: 0,
            parent: None,
            counters,
            progress: self.progress,
        };
        let segment_size = self.session.config().segment_size;
        self.fan_out(&work, |emit| {
            read_stream(stream, segment_size, &self.pool, self.progress, emit)
        })
    }

    /// Runs `read` on this thread and the workers on the pool's; the buffer pool bounds what lies
    /// between them. The first failure of either side ends both.
    fn fan_out<R>(
        &self,
        work: &SegmentWork<'_>,
        read: impl FnOnce(&mut dyn FnMut(FilledSegment) -> Result<()>) -> Result<R> + Send,
    ) -> Result<(R, Changes)>
    where
        R: Send,
    {
        if self.engine.choice().kind == EngineKind::Sim {
            return self.in_turn(work, read);
        }
        let backup = tracing::Span::current();
        let changes = Mutex::new(Changes::new());
        let failure: Mutex<Option<RepositoryError>> = Mutex::new(None);
        let read = self.threads.in_place_scope(|scope| {
            let (changes, failure, backup) = (&changes, &failure, &backup);
            read(&mut |segment| {
                if failure.lock().is_some() {
                    // The first failure is what the user wants to know; it is reported below.
                    return Err(RepositoryError::SessionFailed("a worker failed".into()));
                }
                scope.spawn(move |_| {
                    let number = segment.number;
                    let span = tracing::debug_span!(parent: backup, "segment", number = number.0);
                    let _entered = span.entered();
                    match self.states.with(|state| work.process(segment, state)) {
                        Ok(map) => {
                            changes.lock().insert(number, map);
                        }
                        Err(error) => {
                            keep_cause(&mut failure.lock(), error);
                        }
                    }
                });
                Ok(())
            })
        });
        if let Some(error) = failure.into_inner() {
            return Err(error);
        }
        Ok((read?, changes.into_inner()))
    }

    /// [`fan_out`](Self::fan_out) on this thread alone, the workers taking turns: under a simulated engine,
    /// so that a run is a function of its inputs.
    fn in_turn<R>(
        &self,
        work: &SegmentWork<'_>,
        read: impl FnOnce(&mut dyn FnMut(FilledSegment) -> Result<()>) -> Result<R>,
    ) -> Result<(R, Changes)> {
        let mut changes = Changes::new();
        let mut turns = (0..self.threads.current_num_threads()).cycle();
        let read = read(&mut |segment| {
            let number = segment.number;
            simulate::set_worker(turns.next());
            let map = self.states.with(|state| work.process(segment, state));
            simulate::set_worker(None);
            changes.insert(number, map?);
            Ok(())
        })?;
        Ok((read, changes))
    }

    /// Bytes of the disk that are data, without walking what did not change.
    fn data_bytes(
        &self,
        parent: Option<&DiskManifest>,
        plan: &Plan,
        segments: u64,
        counters: &DiskCounters,
    ) -> Result<u64> {
        let (Some(parent), Some(tree)) = (parent, plan.parent) else {
            return Ok(counters.data_added.get());
        };
        let mut gone = counters.data_removed.get();
        let objects = self.session.objects();
        objects.visit_tree(tree, segments..tree.segments, &mut |_, map| {
            gone += objects.segment_map(map)?.data_bytes();
            Ok(())
        })?;
        Ok((parent.figures.data_bytes + counters.data_added.get()).saturating_sub(gone))
    }

    fn metadata(&self, name: String, bytes: &[u8]) -> Result<Metadata> {
        let mut encoder = RecordEncoder::new(3);
        let mut chunks = Vec::new();
        for piece in bytes.chunks(METADATA_CHUNK_LEN) {
            let id = self.session.keys().chunk_id(piece);
            let object = ObjectId::from(id);
            if !self.session.probe(&[object])?[0] && self.session.claim(object) {
                let sealer = self.session.sealer();
                let record = encoder.encode(object, ObjectKind::Chunk, piece, sealer);
                self.session.store(&record)?;
            }
            chunks.push((id, piece.len() as u32));
        }
        Ok(Metadata {
            name,
            len: bytes.len() as u64,
            chunks,
        })
    }
}

/// Gives the next segment that has data; `None` after the last.
type NextSegment<'a> = dyn FnMut() -> Result<Option<ArchivedSegment>> + Send + 'a;

/// Which disk comes in order, and what of it an earlier run finished.
struct InOrderJob {
    ordinal: u16,
    size: DiskLength,
    finished: DoneSegments,
}

/// The archive that the disks are of, if they are.
fn archive_of(disks: &[DiskJob]) -> Option<XvaArchive> {
    disks.iter().find_map(|disk| match &disk.source {
        Source::Archived(archived) => archived.archive.lock().take(),
        Source::Disk(_) | Source::Delta(_) | Source::Stream(_) | Source::InOrder(_) => None,
    })
}

/// Keeps the failure that says most: not that of a worker who met the session's end, but what ended it.
fn keep_cause(kept: &mut Option<RepositoryError>, error: RepositoryError) {
    if matches!(kept, None | Some(RepositoryError::SessionFailed(_))) {
        *kept = Some(error);
    }
}

/// The maps of the segments that were read: `None` for zeros.
type Changes = BTreeMap<SegmentNumber, Option<SegmentMapId>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_in_flight_stay_within_their_memory() {
        for (workers, log2, expected) in [
            (2, 24, 4),
            (16, 24, 11),
            (64, 24, 11),
            (2, 26, 2),
            (1, 20, 3),
        ] {
            let found = segments_in_flight(workers, 1 << log2);
            assert_eq!(found, expected, "{workers} workers, segments of 2^{log2}");
        }
    }
}
