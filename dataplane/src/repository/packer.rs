//! The packer: appends records to packs, seals full ones, and tells the index once they are durable.
//!
//! A session has one packer with one open pack per kind, so that a disk's chunks stay together and maps
//! stay apart from them. Workers copy records into the open pack's buffer; a thread of the packer's own
//! writes full buffers and seals packs, in this order: bytes written, file synced, renamed from
//! `<id>.open`, directory synced, index told. Only then does anyone else learn of the records.
//!
//! A write or sync that failed fails the session: nothing is ever synced a second time, because the
//! kernel may have dropped the pages that the first one reported (Rebello et al., "Can Applications
//! Recover from fsync Failures?", USENIX ATC 2020).

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use undercroft_format::id::{ObjectId, PackId, RepositoryId, SessionId};
use undercroft_format::pack::{
    PACK_ALIGNMENT, PackHeader, PackKind, RECORD_HEADER_LEN, RecordHeader, RecordInfo, Toc,
    TocEntry,
};

use super::entropy::Entropy;
use super::error::{RepositoryError, Result};
use super::index::ChunkIndex;
use super::layout;
use super::registry::Registry;
use super::{LocalRepository, Repository};
use crate::io::{
    BlockFile, Buffer, BufferPool, Direction, Engine, EngineKind, Piece, Queue, Storage, Transfer,
};

/// Bytes written at once: appends below this size cost throughput on every disk measured.
pub const WRITE_LEN: usize = 4 << 20;
/// Write buffers: two being filled (data, meta), one full, two on their way to the disk.
const WRITE_BUFFERS: usize = 5;
/// Jobs that may wait for the writing thread. Bytes are bounded by the buffers; this bounds the rest.
const JOBS_MAX: usize = 8;
/// Requests to the device at once: four 256 KiB pieces per write are enough to keep it busy.
const QUEUE_DEPTH: u32 = 16;
/// Room is reserved for a pack only while the disk has this many times as much free ...
const RESERVE_TIMES: u64 = 4;
/// ... and this many bytes beside, which the index and others may need at any time.
const RESERVE_BESIDE: u64 = 256 << 20;

/// What a packer needs to know.
pub struct PackerContext {
    /// Where packs go.
    pub storage: Arc<dyn Storage>,
    /// How they are written.
    pub engine: Arc<dyn Engine>,
    /// Who is told of sealed packs.
    pub index: Arc<dyn ChunkIndex>,
    /// Where the session holds what it sealed.
    pub registry: Arc<Registry>,
    /// The session.
    pub session: SessionId,
    /// Where pack ids come from.
    pub entropy: Arc<dyn Entropy>,
    /// The repository, named in each pack.
    pub repository: RepositoryId,
    /// Packs are sealed at this length.
    pub pack_len_target: u64,
    /// Bytes written at once, and the length of each of the packer's buffers.
    pub write_len: usize,
}

impl PackerContext {
    /// What `session`'s packer needs to know of `repository`.
    pub fn new(repository: &LocalRepository, session: SessionId) -> Self {
        Self {
            storage: repository.storage().clone(),
            engine: repository.engine().clone(),
            index: repository.lookup().index().clone(),
            registry: repository.registry().clone(),
            session,
            entropy: repository.entropy().clone(),
            repository: repository.config().repository,
            pack_len_target: u64::from(repository.config().pack_len_target),
            write_len: WRITE_LEN,
        }
    }
}

/// What a packer did.
#[derive(Clone, Copy, Debug, Default)]
pub struct PackerFigures {
    /// Packs sealed.
    pub packs: u64,
    /// Bytes of sealed packs.
    pub bytes: u64,
}

/// Appends records to packs. Shared by the workers of a session.
pub struct Packer {
    context: Arc<PackerContext>,
    pool: Arc<BufferPool>,
    open: [Mutex<Option<OpenPack>>; 2],
    writing: Writing,
    shared: Arc<Shared>,
}

/// Who does the jobs.
enum Writing {
    /// A thread of the packer's own.
    Thread {
        jobs: Sender<Job>,
        thread: JoinHandle<()>,
    },
    /// Whoever has one, at once: under a simulated engine, so that a run is a function of its inputs.
    Inline(Mutex<Writer>),
    /// Nobody any more.
    Ended,
}

/// What workers and the writing thread both see.
struct Shared {
    /// Ids claimed by a worker whose record is not in the index yet.
    claimed: Vec<Mutex<HashSet<ObjectId>>>,
    /// Packs whose files are there under the name of an open one.
    unsealed: Mutex<BTreeSet<PackId>>,
    failure: Mutex<Option<Failure>>,
    packs: AtomicU64,
    bytes: AtomicU64,
}

/// Workers rarely meet on one of so many locks.
const CLAIM_SHARDS: usize = 64;

/// The first failure, kept for whoever asks next.
enum Failure {
    Fresh(RepositoryError),
    Reported(String),
}

struct OpenPack {
    id: PackId,
    kind: PackKind,
    file: Arc<dyn BlockFile>,
    buffer: Buffer,
    /// Bytes of the buffer that are filled.
    filled: usize,
    /// Where the buffer's first byte belongs in the file.
    buffer_offset: u64,
    entries: Vec<TocEntry>,
}

enum Job {
    Write {
        file: Arc<dyn BlockFile>,
        buffer: Buffer,
        len: usize,
        offset: u64,
    },
    Seal {
        id: PackId,
        kind: PackKind,
        file: Arc<dyn BlockFile>,
        len: u64,
        entries: Vec<TocEntry>,
    },
    /// Answered when all jobs before it are done.
    Barrier(Sender<()>),
}

impl Packer {
    /// A packer with its writing thread.
    pub fn start(context: PackerContext) -> Self {
        let context = Arc::new(context);
        let pool = BufferPool::new(WRITE_BUFFERS * context.write_len);
        let shared = Arc::new(Shared::new());
        let start = {
            let (context, pool, shared) = (context.clone(), pool.clone(), shared.clone());
            move || Writer::start(context, &pool, shared)
        };
        let writing = match context.engine.choice().kind {
            EngineKind::Sim => {
                start().map_or(Writing::Ended, |writer| Writing::Inline(Mutex::new(writer)))
            }
            _ => {
                let (jobs, queue) = bounded(JOBS_MAX);
                let thread = std::thread::Builder::new()
                    .name("packer".into())
                    .spawn(move || match start() {
                        Some(writer) => writer.run(&queue),
                        // Buffers must come back to the pool, or the workers would wait for ever.
                        None => queue.iter().for_each(drop),
                    })
                    .expect("the system can start a thread");
                Writing::Thread { jobs, thread }
            }
        };
        Self {
            context,
            pool,
            open: [Mutex::new(None), Mutex::new(None)],
            writing,
            shared,
        }
    }

    /// Claims `id` for the caller, who must then append its record. False if someone else has claimed
    /// it and it is on its way.
    pub fn claim(&self, id: ObjectId) -> bool {
        self.shared.shard(id).lock().insert(id)
    }

    /// True if `id` was claimed and is on its way.
    pub fn is_claimed(&self, id: ObjectId) -> bool {
        self.shared.shard(id).lock().contains(&id)
    }

    /// Appends a record and returns the bytes it takes in the pack. Blocks while the disk is slower
    /// than the callers.
    ///
    /// # Errors
    /// The first failure of the session, whichever thread met it.
    pub fn append(&self, info: &RecordInfo, payload: &[u8]) -> Result<u64> {
        let header = RecordHeader::new(*info, payload);
        self.append_checked(&header, payload)
    }

    /// Appends a record whose payload's checksum is already known.
    pub fn append_checked(&self, header: &RecordHeader, payload: &[u8]) -> Result<u64> {
        self.append_all(
            header.info.kind.pack_kind(),
            [(header, payload)].into_iter(),
        )
    }

    /// Appends records of one kind of pack, next to each other, and returns the bytes they take.
    pub fn append_all<'r>(
        &self,
        kind: PackKind,
        records: impl Iterator<Item = (&'r RecordHeader, &'r [u8])>,
    ) -> Result<u64> {
        self.check_failure()?;
        let mut open = self.slot(kind).lock();
        let mut stored = 0;
        for (header, payload) in records {
            let mut pack = match open.take() {
                Some(pack) => pack,
                None => self.create(kind)?,
            };
            let position = pack.position();
            let encoded = header.encode(pack.id, position);
            self.write(&mut pack, &encoded)?;
            self.write(&mut pack, payload)?;
            pack.entries.push(TocEntry {
                info: header.info,
                position: position as u32,
            });
            stored += (RECORD_HEADER_LEN + payload.len()) as u64;
            if pack.position() >= self.context.pack_len_target {
                self.seal(pack)?;
            } else {
                *open = Some(pack);
            }
        }
        Ok(stored)
    }

    /// Seals what is open, and waits until everything that was appended before is durable and in the
    /// index. Others may append meanwhile.
    pub fn checkpoint(&self) -> Result<()> {
        self.seal_open()?;
        let (done, answer) = bounded(1);
        self.send(Job::Barrier(done))?;
        // No answer: the thread met a failure, which is reported below.
        let _ = answer.recv();
        self.check_failure()
    }

    /// Whether something could not be written: then nothing is written any more.
    pub fn has_failed(&self) -> bool {
        self.shared.has_failed()
    }

    /// What was sealed so far.
    pub fn figures(&self) -> PackerFigures {
        PackerFigures {
            packs: self.shared.packs.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }

    /// Seals what is open: data before maps, so that a map in the index never names a chunk that is not.
    fn seal_open(&self) -> Result<()> {
        [PackKind::Data, PackKind::Meta]
            .into_iter()
            .try_for_each(|kind| {
                let pack = self.slot(kind).lock().take();
                pack.map_or(Ok(()), |pack| self.seal(pack))
            })
    }

    /// Seals what is open, waits until everything is durable and in the index, and ends the thread.
    pub fn finish(mut self) -> Result<PackerFigures> {
        let sealed = self.seal_open();
        self.stop();
        self.check_failure()?;
        sealed?;
        // Once more for all: a pack's directory may have been made by a session that was killed, or that
        // runs now, before it could make the name durable.
        self.context
            .storage
            .sync_dir(layout::PACKS)
            .map_err(RepositoryError::io("making durable", layout::PACKS))?;
        Ok(self.figures())
    }

    fn stop(&mut self) {
        if let Writing::Thread { jobs, thread } =
            std::mem::replace(&mut self.writing, Writing::Ended)
        {
            drop(jobs);
            if thread.join().is_err() {
                self.shared.fail(RepositoryError::SessionFailed(
                    "the packer thread panicked".into(),
                ));
            }
        }
        // What a failure left open is of no use to anyone, and a full disk needs the room. What cannot be
        // removed now, a collection will.
        for id in std::mem::take(&mut *self.shared.unsealed.lock()) {
            let _ = self.context.storage.remove(&layout::open_pack(id));
        }
    }

    fn slot(&self, kind: PackKind) -> &Mutex<Option<OpenPack>> {
        match kind {
            PackKind::Data => &self.open[0],
            PackKind::Meta => &self.open[1],
        }
    }

    fn create(&self, kind: PackKind) -> Result<OpenPack> {
        let id = PackId::from_bytes(self.context.entropy.array()?);
        let dir = layout::pack_dir(id);
        let storage = &self.context.storage;
        let known = storage
            .exists(&dir)
            .map_err(RepositoryError::io("looking for", &dir))?;
        if !known {
            storage
                .create_dir(&dir)
                .and_then(|()| storage.sync_dir(layout::PACKS))
                .map_err(RepositoryError::io("creating", &dir))?;
        }
        self.context.registry.writes(self.context.session, id);
        let path = layout::open_pack(id);
        let file = storage
            .create(&path, true)
            .map_err(RepositoryError::io("creating", &path))?;
        self.shared.unsealed.lock().insert(id);
        let mut pack = OpenPack {
            id,
            kind,
            file,
            buffer: self.pool.acquire(self.context.write_len),
            filled: 0,
            buffer_offset: 0,
            entries: Vec::new(),
        };
        let header = PackHeader {
            id,
            kind,
            repository: self.context.repository,
        };
        self.write(&mut pack, &header.encode())?;
        Ok(pack)
    }

    fn write(&self, pack: &mut OpenPack, mut bytes: &[u8]) -> Result<()> {
        loop {
            let taken = bytes.len().min(self.context.write_len - pack.filled);
            pack.buffer[pack.filled..pack.filled + taken].copy_from_slice(&bytes[..taken]);
            pack.filled += taken;
            bytes = &bytes[taken..];
            if pack.filled < self.context.write_len {
                return Ok(());
            }
            let full =
                std::mem::replace(&mut pack.buffer, self.pool.acquire(self.context.write_len));
            self.send_buffer(pack, full)?;
        }
    }

    fn send_buffer(&self, pack: &mut OpenPack, buffer: Buffer) -> Result<()> {
        let (len, offset) = (pack.filled, pack.buffer_offset);
        pack.buffer_offset += len as u64;
        pack.filled = 0;
        self.send(Job::Write {
            file: pack.file.clone(),
            buffer,
            len,
            offset,
        })
    }

    fn seal(&self, mut pack: OpenPack) -> Result<()> {
        let toc = Toc {
            entries: std::mem::take(&mut pack.entries),
        };
        let tail = toc.encode_tail(pack.id, pack.position());
        self.write(&mut pack, &tail)?;
        let len = pack.position();
        let (id, kind, file) = (pack.id, pack.kind, pack.file.clone());
        if pack.filled > 0 {
            let (len, offset) = (pack.filled, pack.buffer_offset);
            self.send(Job::Write {
                file: pack.file,
                buffer: pack.buffer,
                len,
                offset,
            })?;
        }
        self.send(Job::Seal {
            id,
            kind,
            file,
            len,
            entries: toc.entries,
        })
    }

    fn send(&self, job: Job) -> Result<()> {
        let is_taken = match &self.writing {
            Writing::Thread { jobs, .. } => jobs.send(job).is_ok(),
            Writing::Inline(writer) => {
                writer.lock().take(job);
                true
            }
            Writing::Ended => false,
        };
        if !is_taken {
            self.check_failure()?;
            return Err(RepositoryError::SessionFailed(
                "the packer thread is gone".into(),
            ));
        }
        Ok(())
    }

    fn check_failure(&self) -> Result<()> {
        let mut failure = self.shared.failure.lock();
        match failure.take() {
            None => Ok(()),
            Some(Failure::Fresh(error)) => {
                let mut text = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    text = format!("{text}: {source}");
                }
                *failure = Some(Failure::Reported(text));
                Err(error)
            }
            Some(Failure::Reported(text)) => {
                *failure = Some(Failure::Reported(text.clone()));
                Err(RepositoryError::SessionFailed(text))
            }
        }
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl OpenPack {
    /// Where the next byte goes in the file.
    fn position(&self) -> u64 {
        self.buffer_offset + self.filled as u64
    }
}

impl Shared {
    fn new() -> Self {
        Self {
            claimed: (0..CLAIM_SHARDS).map(|_| Mutex::default()).collect(),
            unsealed: Mutex::default(),
            failure: Mutex::default(),
            packs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn shard(&self, id: ObjectId) -> &Mutex<HashSet<ObjectId>> {
        &self.claimed[usize::from(id.as_bytes()[1]) % CLAIM_SHARDS]
    }

    fn fail(&self, error: RepositoryError) {
        self.failure.lock().get_or_insert(Failure::Fresh(error));
    }

    fn has_failed(&self) -> bool {
        self.failure.lock().is_some()
    }
}

/// Does the jobs.
struct Writer {
    context: Arc<PackerContext>,
    shared: Arc<Shared>,
    queue: Box<dyn Queue>,
    reserved: Vec<Reservation>,
}

/// A file that was given more room than it has used.
struct Reservation {
    file: Arc<dyn BlockFile>,
    /// End of what was written, or is on its way.
    end: u64,
}

impl Writer {
    /// A writer; a failure is the session's.
    fn start(
        context: Arc<PackerContext>,
        pool: &Arc<BufferPool>,
        shared: Arc<Shared>,
    ) -> Option<Self> {
        match context.engine.queue(pool, QUEUE_DEPTH) {
            Ok(queue) => Some(Self {
                context,
                shared,
                queue,
                reserved: Vec::new(),
            }),
            Err(error) => {
                let error = RepositoryError::io("starting I/O for", layout::PACKS)(error);
                shared.fail(error);
                None
            }
        }
    }

    fn run(mut self, jobs: &Receiver<Job>) {
        jobs.iter().for_each(|job| self.take(job));
        while self.queue.wait().is_some() {}
    }

    fn take(&mut self, job: Job) {
        if !self.shared.has_failed()
            && let Err(error) = self.job(job)
        {
            self.shared.fail(error);
        }
    }

    fn job(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Write {
                file,
                buffer,
                len,
                offset,
            } => {
                if offset == 0 && len == self.context.write_len {
                    self.reserve(&file);
                }
                let end = offset + len as u64;
                if let Some(reserved) = self.reservation(&file) {
                    reserved.end = reserved.end.max(end);
                }
                let piece = Piece {
                    file,
                    file_offset: offset,
                    buffer_offset: 0,
                    len,
                };
                self.queue.submit(Transfer {
                    token: 0,
                    direction: Direction::Write,
                    buffer,
                    pieces: vec![piece],
                });
                self.reap(1)
            }
            Job::Seal {
                id,
                kind,
                file,
                len,
                entries,
            } => {
                let span = tracing::debug_span!("packer", pack = %id, ?kind, len);
                let _entered = span.entered();
                self.reap(0)?;
                self.seal(id, &*file, len)?;
                self.reserved
                    .retain(|reserved| !Arc::ptr_eq(&reserved.file, &file));
                if !self.has_room(0) {
                    self.give_back();
                }
                let number = self.context.index.insert_pack(id, kind, len, &entries)?;
                let mut held = [Some(number)];
                self.context.registry.hold(self.context.session, &mut held);
                for entry in &entries {
                    self.shared
                        .shard(entry.info.id)
                        .lock()
                        .remove(&entry.info.id);
                }
                self.shared.packs.fetch_add(1, Ordering::Relaxed);
                self.shared.bytes.fetch_add(len, Ordering::Relaxed);
                Ok(())
            }
            Job::Barrier(done) => {
                self.reap(0)?;
                // Nobody waits any more if the session failed meanwhile.
                let _ = done.send(());
                Ok(())
            }
        }
    }

    /// Gives a pack that is going to be long its blocks and its length at once: writes within both need
    /// no lock on the file. Sealing cuts what was too much. Where it fails, the writes find out for
    /// themselves.
    fn reserve(&mut self, file: &Arc<dyn BlockFile>) {
        let len = (self.context.pack_len_target + (1 << 20)).next_multiple_of(PACK_ALIGNMENT);
        if self.has_room(len) && file.preallocate(0, len).is_ok() {
            let _ = file.set_len(len);
            self.reserved.push(Reservation {
                file: file.clone(),
                end: 0,
            });
        }
    }

    /// Whether the disk has so much room that `len` bytes of it can be set aside unused.
    fn has_room(&self, len: u64) -> bool {
        let free = self.context.storage.free_space().unwrap_or(u64::MAX);
        free.saturating_sub(RESERVE_BESIDE) >= len.saturating_mul(RESERVE_TIMES)
    }

    fn reservation(&mut self, file: &Arc<dyn BlockFile>) -> Option<&mut Reservation> {
        self.reserved
            .iter_mut()
            .find(|reserved| Arc::ptr_eq(&reserved.file, file))
    }

    /// Cuts the open packs to what was written: a full disk must not be full of what nobody wrote.
    fn give_back(&mut self) {
        for reserved in self.reserved.drain(..) {
            // At worst the room stays taken until the pack is sealed.
            let _ = reserved.file.set_len(reserved.end);
        }
    }

    /// Waits until at most `left` transfers are in flight.
    fn reap(&mut self, left: usize) -> Result<()> {
        while self.queue.in_flight() > left {
            let Some(done) = self.queue.wait() else { break };
            let Err(error) = done.result else { continue };
            let error = RepositoryError::io("writing", layout::PACKS)(error.source);
            if !error.is_disk_full() || self.reserved.is_empty() {
                return Err(error);
            }
            // Unlike a failed sync, a write that found no room has lost nothing that was written before.
            self.give_back();
            self.queue.submit(done.transfer);
        }
        Ok(())
    }

    fn seal(&self, id: PackId, file: &dyn BlockFile, len: u64) -> Result<()> {
        let storage = &self.context.storage;
        let (open, sealed, dir) = (
            layout::open_pack(id),
            layout::pack(id),
            layout::pack_dir(id),
        );
        file.set_len(len)
            .and_then(|()| file.sync())
            .map_err(RepositoryError::io("making durable", &open))?;
        storage
            .rename(&open, &sealed)
            .map_err(RepositoryError::io("renaming", &open))?;
        self.shared.unsealed.lock().remove(&id);
        storage
            .sync_dir(&dir)
            .map_err(RepositoryError::io("making durable", &dir))
    }
}
