//! Ingest sessions: ask what is known, store what is new, publish a snapshot.
//!
//! Nothing that a session stores is visible before [`Session::commit`] publishes the snapshot, and then
//! everything is durable: packs synced, index told, snapshot renamed, in that order. A session that is
//! abandoned leaves sealed packs behind; a later backup of the same data finds their chunks, a
//! collection removes them if none does.

use undercroft_format::config::Config;
use undercroft_format::id::{ObjectId, SegmentMapId, SessionId, SnapshotId};
use undercroft_format::lock::LockEnd;
use undercroft_format::pack::ObjectKind;
use undercroft_format::snapshot::Snapshot;
pub use undercroft_format::wire::ledger::DoneSegments;
pub use undercroft_format::wire::session::{DiskState, DoneSegment, SegmentPlace};

use super::error::Result;
use super::keys::{Keys, Sealer};
use super::objects::Objects;
use super::packer::PackerFigures;
use super::record::{EncodedRecord, RecordBatch};
use super::retention::UnixMs;
use super::snapshots::StoredSnapshot;

/// What a session is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionRequest {
    /// Name of the VM.
    pub vm: String,
    /// Its disks, in order.
    pub disks: Vec<DiskState>,
    /// An interrupted session to go on with; its disks must be in the same state.
    pub resume: Option<SessionId>,
    /// How the snapshot is going to be locked.
    pub lock: Option<LockEnd>,
}

/// What [`begin`](super::Repository::begin) gives.
pub enum Begun {
    /// A session.
    Open(Box<dyn Session>),
    /// The session that was to be gone on with has published its snapshot: there is nothing left to do.
    Published(Committed),
}

/// What a session came to.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// The snapshot.
    pub id: SnapshotId,
    /// The packs that the session wrote; nothing if the server was restarted since.
    pub figures: PackerFigures,
    /// The end of the snapshot's retention lock.
    pub locked_until: Option<UnixMs>,
}

/// What a repository says of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It has the map and every chunk that the map names, and the session holds them.
    Whole,
    /// It lacks the map or some of the chunks.
    NotWhole,
    /// It was not asked.
    Unasked,
}

/// An open ingest session. Shared by the workers of a backup.
pub trait Session: Send + Sync {
    /// The session's id.
    fn id(&self) -> SessionId;

    /// The repository's config.
    fn config(&self) -> &Config;

    /// The repository's keys.
    fn keys(&self) -> &Keys;

    /// Reads objects of the repository.
    fn objects(&self) -> &Objects;

    /// Whether chunks can be read from [`objects`](Self::objects), and not maps alone: who only adds to a
    /// repository behind a server gets no data, and would fetch it from afar.
    fn reads_chunks(&self) -> bool {
        true
    }

    /// What seals this session's payloads; `None` if the repository is not encrypted.
    fn sealer(&self) -> Option<&Sealer>;

    /// Segments of a disk that need not be read again: an earlier run of this session finished them.
    fn finished(&self, disk: u16) -> DoneSegments {
        let _ = disk;
        DoneSegments::new()
    }

    /// Keeps all that `parent` refers to until the session ends, whoever forgets it meanwhile. False if
    /// it was forgotten already: then nothing may be spliced onto it.
    fn pin_parent(&self, parent: &StoredSnapshot) -> Result<bool>;

    /// Whether a whole segment is known, where asking that is cheaper than asking for its chunks.
    fn holds_segment(&self, place: SegmentPlace, map: SegmentMapId) -> Result<Held> {
        let _ = (place, map);
        Ok(Held::Unasked)
    }

    /// For each id whether the repository has it, or will have it because this session stores it. What
    /// is answered with true stays until the session ends.
    fn probe(&self, ids: &[ObjectId]) -> Result<Vec<bool>>;

    /// Tells that records of objects of one kind are damaged: [`probe`](Self::probe) does not know them any
    /// more, so that they are stored again. The repository looks for itself, and believes nobody.
    fn distrust(&self, kind: ObjectKind, ids: &[ObjectId]) -> Result<()>;

    /// Claims an id that [`probe`](Self::probe) did not know. True if the caller must store it; false
    /// if another worker of this session does.
    fn claim(&self, id: ObjectId) -> bool;

    /// Stores a claimed object and returns the bytes that it takes. Blocks while the repository is
    /// slower than the callers.
    fn store(&self, record: &EncodedRecord<'_>) -> Result<u64>;

    /// Stores claimed chunks next to each other, and returns the bytes that they take.
    fn store_chunks(&self, batch: &RecordBatch) -> Result<u64>;

    /// Tells that everything of a segment has been stored by this thread.
    fn segment_done(&self, place: SegmentPlace, done: DoneSegment) -> Result<()> {
        let _ = (place, done);
        Ok(())
    }

    /// Whether to begin with more segments.
    ///
    /// # Errors
    /// Why not: what was begun is to be finished, and then the run ends with this error.
    fn going_on(&self) -> Result<()> {
        Ok(())
    }

    /// What is sealed so far, and so stays however the session ends.
    fn sealed(&self) -> PackerFigures {
        PackerFigures::default()
    }

    /// Makes everything durable, then publishes `snapshot`.
    ///
    /// # Errors
    /// Any failure of the session: nothing was published. [`Interrupted`](super::error::RepositoryError::Interrupted)
    /// says that it cannot be told: going on with the session tells.
    fn commit(self: Box<Self>, snapshot: &Snapshot) -> Result<Committed>;

    /// Ends the session without a snapshot, but keeps what it stored for the next one to find.
    fn abandon(self: Box<Self>) -> Result<PackerFigures>;
}
