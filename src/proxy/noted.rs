//! A repository whose sessions are noted when they begin, and left as they are when the proxy ends.

use std::sync::Arc;

use undercroft_dataplane::io::Engine;
use undercroft_dataplane::repository::error::Result;
use undercroft_dataplane::repository::keys::{Keys, Sealer};
use undercroft_dataplane::repository::objects::Objects;
use undercroft_dataplane::repository::packer::PackerFigures;
use undercroft_dataplane::repository::record::{EncodedRecord, RecordBatch};
use undercroft_dataplane::repository::session::{
    Begun, Committed, DoneSegment, DoneSegments, Held, SegmentPlace, Session, SessionRequest,
};
use undercroft_dataplane::repository::snapshots::{Snapshots, StoredSnapshot};
use undercroft_dataplane::repository::{Repository, Traffic};
use undercroft_format::config::Config;
use undercroft_format::id::{ObjectId, SegmentMapId, SessionId};
use undercroft_format::pack::ObjectKind;
use undercroft_format::snapshot::Snapshot;

/// Hears of sessions.
pub trait Notes: Send + Sync {
    /// A session was begun, or gone on with.
    fn opened(&self, session: SessionId);

    /// Whether a session that ends without a snapshot will be gone on with.
    fn is_postponed(&self) -> bool;
}

/// A repository that tells of its sessions.
pub struct NotedRepository {
    inner: Arc<dyn Repository>,
    notes: Arc<dyn Notes>,
}

impl NotedRepository {
    /// `inner`, whose sessions `notes` hears of.
    pub fn new(inner: Arc<dyn Repository>, notes: Arc<dyn Notes>) -> Self {
        Self { inner, notes }
    }
}

impl Repository for NotedRepository {
    fn config(&self) -> &Config {
        self.inner.config()
    }

    fn keys(&self) -> Result<&Arc<Keys>> {
        self.inner.keys()
    }

    fn engine(&self) -> &Arc<dyn Engine> {
        self.inner.engine()
    }

    fn objects(&self) -> &Objects {
        self.inner.objects()
    }

    fn snapshots(&self) -> &Snapshots {
        self.inner.snapshots()
    }

    fn traffic(&self) -> Option<Traffic> {
        self.inner.traffic()
    }

    fn begin(self: Arc<Self>, request: &SessionRequest) -> Result<Begun> {
        let inner = match self.inner.clone().begin(request)? {
            Begun::Open(inner) => inner,
            published => return Ok(published),
        };
        self.notes.opened(inner.id());
        Ok(Begun::Open(Box::new(NotedSession {
            inner,
            notes: self.notes.clone(),
        })))
    }
}

struct NotedSession {
    inner: Box<dyn Session>,
    notes: Arc<dyn Notes>,
}

impl Session for NotedSession {
    fn id(&self) -> SessionId {
        self.inner.id()
    }

    fn config(&self) -> &Config {
        self.inner.config()
    }

    fn keys(&self) -> &Keys {
        self.inner.keys()
    }

    fn objects(&self) -> &Objects {
        self.inner.objects()
    }

    fn reads_chunks(&self) -> bool {
        self.inner.reads_chunks()
    }

    fn sealer(&self) -> Option<&Sealer> {
        self.inner.sealer()
    }

    fn finished(&self, disk: u16) -> DoneSegments {
        self.inner.finished(disk)
    }

    fn pin_parent(&self, parent: &StoredSnapshot) -> Result<bool> {
        self.inner.pin_parent(parent)
    }

    fn holds_segment(&self, place: SegmentPlace, map: SegmentMapId) -> Result<Held> {
        self.inner.holds_segment(place, map)
    }

    fn probe(&self, ids: &[ObjectId]) -> Result<Vec<bool>> {
        self.inner.probe(ids)
    }

    fn distrust(&self, kind: ObjectKind, ids: &[ObjectId]) -> Result<()> {
        self.inner.distrust(kind, ids)
    }

    fn claim(&self, id: ObjectId) -> bool {
        self.inner.claim(id)
    }

    fn store(&self, record: &EncodedRecord<'_>) -> Result<u64> {
        self.inner.store(record)
    }

    fn store_chunks(&self, batch: &RecordBatch) -> Result<u64> {
        self.inner.store_chunks(batch)
    }

    fn segment_done(&self, place: SegmentPlace, done: DoneSegment) -> Result<()> {
        self.inner.segment_done(place, done)
    }

    fn sealed(&self) -> PackerFigures {
        self.inner.sealed()
    }

    fn going_on(&self) -> Result<()> {
        self.inner.going_on()
    }

    fn commit(self: Box<Self>, snapshot: &Snapshot) -> Result<Committed> {
        self.inner.commit(snapshot)
    }

    fn abandon(self: Box<Self>) -> Result<PackerFigures> {
        match self.notes.is_postponed() {
            // The server keeps what was finished for the session's lease.
            true => Ok(self.inner.sealed()),
            false => self.inner.abandon(),
        }
    }
}
