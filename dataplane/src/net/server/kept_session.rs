//! A session that the server keeps: its books, what it wrote, and who listens to its acknowledgements.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use undercroft_format::id::{ObjectId, SegmentMapId, SessionId};
use undercroft_format::pack::{ObjectKind, RecordHeader};
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::ledger::Ledger;
use undercroft_format::wire::session::{Begin, DoneSegment, Epoch, SegmentPlace};

use super::repository_figures::{Asked, RepositoryFigures};
use crate::clock::Stopwatch;
use crate::net::convert::{failure_of, failure_of_ledger};
use crate::net::status::SessionStatus;
use crate::repository::local_session::SessionStore;
use crate::repository::packer::PackerFigures;
use crate::repository::snapshots::StoredSnapshot;

/// When what was pushed is made durable, though no pack is full: each time costs a short pack.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointPolicy {
    /// After so many milliseconds.
    pub interval_ms: u64,
    /// After so many bytes.
    pub bytes: u64,
}

impl Default for CheckpointPolicy {
    /// One short pack in sixteen at most, on a fast link; on a slow one, what a crash costs is seconds.
    fn default() -> Self {
        Self {
            interval_ms: 5_000,
            bytes: 512 << 20,
        }
    }
}

/// A session.
pub struct KeptSession {
    id: SessionId,
    ledger: Mutex<Ledger>,
    store: RwLock<Option<SessionStore>>,
    policy: CheckpointPolicy,
    figures: Arc<RepositoryFigures>,
    /// Held while what was pushed is made durable.
    checkpoint: Mutex<LastCheckpoint>,
    listener: Mutex<Option<(Epoch, Sender<Vec<SegmentPlace>>)>>,
    /// Snapshots that stay until the session ends.
    pinned: Mutex<Vec<StoredSnapshot>>,
    /// One of them, likely to be much alike.
    reference: Mutex<Option<Arc<StoredSnapshot>>>,
    peer: Mutex<Option<String>>,
    pushed_bytes: AtomicU64,
}

/// When the session's file is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    IfSettled,
    Always,
}

struct LastCheckpoint {
    since: Stopwatch,
    pushed_bytes: u64,
}

impl KeptSession {
    /// The session of `ledger`, which writes to `store`.
    pub fn new(
        ledger: Ledger,
        store: SessionStore,
        policy: CheckpointPolicy,
        figures: Arc<RepositoryFigures>,
    ) -> Self {
        // Whatever ends the process, the session can be gone on with.
        store.keep_file(true);
        Self {
            id: ledger.session(),
            ledger: Mutex::new(ledger),
            store: RwLock::new(Some(store)),
            policy,
            figures,
            checkpoint: Mutex::new(LastCheckpoint {
                since: Stopwatch::start(),
                pushed_bytes: 0,
            }),
            listener: Mutex::new(None),
            pinned: Mutex::default(),
            reference: Mutex::default(),
            peer: Mutex::default(),
            pushed_bytes: AtomicU64::new(0),
        }
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The VM that is backed up.
    pub fn vm(&self) -> String {
        self.ledger.lock().vm().to_owned()
    }

    /// A new client goes on with it.
    pub fn resume(&self, request: &Begin) -> Result<Epoch, Failure> {
        let epoch = self.ledger.lock().resume(request);
        epoch.map_err(|error| failure_of_ledger(&error))
    }

    /// Writes down that a new client goes on, before it hears of its epoch: a server that crashed must not
    /// give it out again. What the last client called done counts if it can be made durable.
    pub fn settle_in(&self) -> Result<(), Failure> {
        self.make_durable(Write::Always)
    }

    /// Names the client.
    pub fn set_peer(&self, peer: &str) {
        *self.peer.lock() = Some(peer.to_owned());
    }

    /// Whether `peer` was the last to have it. Nobody's are those that an earlier server left, until somebody goes
    /// on with them.
    pub fn is_of(&self, peer: &str) -> bool {
        self.peer.lock().as_deref() == Some(peer)
    }

    /// Names the client, and tells it of what becomes durable.
    pub fn attach(&self, epoch: Epoch, peer: &str, listener: Sender<Vec<SegmentPlace>>) {
        self.set_peer(peer);
        *self.listener.lock() = Some((epoch, listener));
    }

    /// The client is gone: the lease begins to run, and what it sent is made durable.
    pub fn detach(&self, epoch: Epoch, now_ms: u64) {
        let mut listener = self.listener.lock();
        if listener.as_ref().is_some_and(|(of, _)| *of == epoch) {
            *listener = None;
        }
        drop(listener);
        self.ledger.lock().detach(epoch, now_ms);
        if let Err(failure) = self.make_durable(Write::IfSettled) {
            tracing::warn!(session = %self.id, "what was pushed is not durable: {}", failure.text);
        }
    }

    /// True if the lease has lapsed, or the session ended otherwise.
    pub fn lapse(&self, now_ms: u64, lease_ms: u64) -> bool {
        self.ledger.lock().lapse(now_ms, lease_ms)
    }

    /// Whether the client of `epoch` may still do something.
    pub fn check(&self, epoch: Epoch) -> Result<(), Failure> {
        let ledger = self.ledger.lock();
        ledger
            .check(epoch)
            .map_err(|error| failure_of_ledger(&error))
    }

    /// What it writes to; the client of `epoch` must still hold the session.
    fn store(&self, epoch: Epoch) -> Result<RwLockReadGuard<'_, Option<SessionStore>>, Failure> {
        let store = self.store.read();
        self.check(epoch)?;
        Ok(store)
    }

    /// Takes records in that were checked.
    pub fn push(&self, epoch: Epoch, records: &[(RecordHeader, &[u8])]) -> Result<(), Failure> {
        let store = self.store(epoch)?;
        let taken = open(&store)?.append_all(records);
        let stored = taken.map_err(|error| failure_of(&error))?;
        self.pushed_bytes.fetch_add(stored, Ordering::Relaxed);
        self.figures.pushed(records, stored);
        Ok(())
    }

    /// See [`SessionStore::probe`].
    pub fn probe(&self, epoch: Epoch, ids: &[ObjectId]) -> Result<Vec<bool>, Failure> {
        let store = self.store(epoch)?;
        let known = open(&store)?.probe(ids);
        let known = known.map_err(|error| failure_of(&error))?;
        self.figures.answered(Asked::Objects, &known);
        Ok(known)
    }

    /// See [`SessionStore::holds_segments`].
    pub fn holds_segments(
        &self,
        epoch: Epoch,
        maps: &[SegmentMapId],
    ) -> Result<Vec<bool>, Failure> {
        let store = self.store(epoch)?;
        let known = open(&store)?.holds_segments(maps);
        let known = known.map_err(|error| failure_of(&error))?;
        self.figures.answered(Asked::Segments, &known);
        Ok(known)
    }

    /// See [`SessionStore::distrust`].
    pub fn distrust(
        &self,
        epoch: Epoch,
        kind: ObjectKind,
        ids: &[ObjectId],
    ) -> Result<(), Failure> {
        let store = self.store(epoch)?;
        open(&store)?
            .distrust(kind, ids)
            .map_err(|error| failure_of(&error))
    }

    /// Keeps a snapshot's data until the session ends; false if it is gone already.
    pub fn pin(&self, epoch: Epoch, snapshot: &StoredSnapshot) -> Result<bool, Failure> {
        let store = self.store(epoch)?;
        let pinned = open(&store)?.pin_parent(snapshot);
        let is_there = pinned.map_err(|error| failure_of(&error))?;
        if is_there {
            self.pinned.lock().push(snapshot.clone());
        }
        Ok(is_there)
    }

    /// Names the snapshot that the client of the present epoch was told of, and that stays.
    pub fn set_reference(&self, reference: Option<StoredSnapshot>) {
        *self.reference.lock() = reference.map(Arc::new);
    }

    /// The snapshot that the client was told of.
    pub fn reference(&self) -> Option<Arc<StoredSnapshot>> {
        self.reference.lock().clone()
    }

    /// Snapshots that stay until the session ends.
    pub fn pinned(&self) -> Vec<StoredSnapshot> {
        self.pinned.lock().clone()
    }

    /// Notes a finished segment, and makes what was pushed durable when it is time.
    pub fn segment_done(
        &self,
        epoch: Epoch,
        place: SegmentPlace,
        done: DoneSegment,
    ) -> Result<(), Failure> {
        let noted = self.ledger.lock().done(epoch, place, done);
        noted.map_err(|error| failure_of_ledger(&error))?;
        self.figures.finished_segment();
        let is_due = match self.checkpoint.try_lock() {
            Some(last) => self.is_due(&last),
            // Somebody is at it.
            None => false,
        };
        if is_due {
            self.make_durable(Write::IfSettled)
        } else {
            Ok(())
        }
    }

    /// Makes durable what has waited long enough.
    pub fn tick(&self) -> Result<(), Failure> {
        let is_due = self
            .checkpoint
            .try_lock()
            .is_some_and(|last| self.is_due(&last));
        if is_due {
            self.make_durable(Write::IfSettled)
        } else {
            Ok(())
        }
    }

    fn is_due(&self, last: &LastCheckpoint) -> bool {
        let pushed = self.pushed_bytes.load(Ordering::Relaxed) - last.pushed_bytes;
        pushed >= self.policy.bytes
            || last.since.elapsed().as_millis() as u64 >= self.policy.interval_ms
    }

    /// Makes durable what was pushed, finishes the segments that are then complete, writes that down, and
    /// acknowledges it: in this order.
    fn make_durable(&self, write: Write) -> Result<(), Failure> {
        let mut last = self.checkpoint.lock();
        last.since = Stopwatch::start();
        last.pushed_bytes = self.pushed_bytes.load(Ordering::Relaxed);
        let pending = self.ledger.lock().pending();
        if pending.is_empty() && write == Write::IfSettled {
            return Ok(());
        }
        let store = self.store.read();
        let store = open(&store)?;
        let took = Stopwatch::start();
        let settled = self.settle(store, &pending, write);
        self.figures.checkpoint(&took, &settled);
        settled
    }

    fn settle(
        &self,
        store: &SessionStore,
        pending: &[(SegmentPlace, DoneSegment)],
        write: Write,
    ) -> Result<(), Failure> {
        let span = tracing::debug_span!("packer", session = %self.id, segments = pending.len());
        let _entered = span.entered();
        if !pending.is_empty() {
            store.checkpoint().map_err(|error| failure_of(&error))?;
        }
        let durable = durable_of(store, pending)?;
        let (settled, file) = {
            let mut ledger = self.ledger.lock();
            (ledger.settle(&durable), ledger.encode())
        };
        if settled.is_empty() && write == Write::IfSettled {
            return Ok(());
        }
        store
            .write_file(&file)
            .map_err(|error| failure_of(&error))?;
        if let Some((_, listener)) = &*self.listener.lock() {
            // The client is gone: it will be told when it comes back.
            let _ = listener.send(settled);
        }
        Ok(())
    }

    /// Drops finished segments that lost something since: they have to be read again.
    pub fn recheck(&self) -> Result<(), Failure> {
        let store = self.store.read();
        let store = open(&store)?;
        let finished = self.ledger.lock().finished().to_vec();
        for (disk, segments) in (0..).zip(finished) {
            let segments: Vec<_> = segments
                .into_iter()
                .map(|(number, done)| (SegmentPlace { disk, number }, done))
                .collect();
            let whole = durable_of(store, &segments)?;
            let mut ledger = self.ledger.lock();
            for lost in segments.iter().filter(|segment| !whole.contains(segment)) {
                ledger.unfinish(lost.0);
            }
        }
        Ok(())
    }

    /// The finished segments, by disk.
    pub fn finished(&self) -> Vec<undercroft_format::wire::ledger::DoneSegments> {
        self.ledger.lock().finished().to_vec()
    }

    /// Labels of the disks, in order.
    pub fn labels(&self) -> Vec<String> {
        let ledger = self.ledger.lock();
        ledger
            .disks()
            .iter()
            .map(|disk| disk.label.clone())
            .collect()
    }

    /// Seals what was pushed, lets `publish` do what is left while the client of `epoch` still holds the
    /// session, and ends it. If `publish` fails, the session has ended all the same.
    pub fn end<R>(
        &self,
        epoch: Epoch,
        publish: impl FnOnce(&SessionStore) -> Result<R, Failure>,
    ) -> Result<(PackerFigures, R), Failure> {
        let mut slot = self.store.write();
        // From here on no other client can take over, and no lease can lapse.
        let ended = self.ledger.lock().end(epoch);
        ended.map_err(|error| failure_of_ledger(&error))?;
        let mut store = slot.take().ok_or_else(gone)?;
        store.keep_file(false);
        let figures = store.seal().map_err(|error| failure_of(&error))?;
        let published = publish(&store)?;
        Ok((figures, published))
    }

    /// Waits until whoever is ending the session is done.
    pub fn wait_for_end(&self) {
        drop(self.store.read());
    }

    /// Whether a client holds it.
    pub fn is_attached(&self) -> bool {
        self.ledger.lock().is_attached()
    }

    /// Whether it has published or was abandoned, though its client may not have heard of it.
    pub fn is_over(&self) -> bool {
        self.store.read().is_none()
    }

    /// Whether it can write no more: a disk was full, or failed. Nobody could go on with it.
    pub fn has_failed(&self) -> bool {
        self.store
            .read()
            .as_ref()
            .is_some_and(SessionStore::has_failed)
    }

    /// Lets go of everything that an ended session holds.
    pub fn discard(&self) {
        if let Some(store) = self.store.write().take() {
            store.keep_file(false);
        }
    }

    /// For an administrator.
    pub fn status(&self, repository: &str) -> SessionStatus {
        let ledger = self.ledger.lock();
        SessionStatus {
            session: self.id.to_string(),
            repository: repository.to_owned(),
            vm: ledger.vm().to_owned(),
            peer: self.peer.lock().clone(),
            is_attached: ledger.is_attached(),
            epoch: ledger.epoch().0,
            finished_segments: ledger.finished().iter().map(|of| of.len() as u64).sum(),
            pending_segments: ledger.pending().len() as u64,
            pushed_bytes: self.pushed_bytes.load(Ordering::Relaxed),
        }
    }
}

fn durable_of(
    store: &SessionStore,
    segments: &[(SegmentPlace, DoneSegment)],
) -> Result<Vec<(SegmentPlace, DoneSegment)>, Failure> {
    let maps: Vec<SegmentMapId> = segments.iter().filter_map(|(_, done)| done.map).collect();
    let durable = store
        .has_durably(&maps)
        .map_err(|error| failure_of(&error))?;
    let durable: std::collections::HashSet<SegmentMapId> = maps
        .into_iter()
        .zip(durable)
        .filter_map(|(map, is_durable)| is_durable.then_some(map))
        .collect();
    Ok(segments
        .iter()
        .filter(|(_, done)| done.map.is_none_or(|map| durable.contains(&map)))
        .copied()
        .collect())
}

fn open(store: &Option<SessionStore>) -> Result<&SessionStore, Failure> {
    store.as_ref().ok_or_else(gone)
}

fn gone() -> Failure {
    Failure::new(FailureCode::NoSuchSession, "the session is over")
}
