//! What can go wrong with a repository.

use std::io;

use undercroft_format::codec::{DecodeError, Problem};
use undercroft_format::id::{ObjectId, PackId, SegmentMapId, SessionId, SnapshotId};
use undercroft_format::pack::ObjectKind;
use undercroft_format::reason::Reason;
use undercroft_format::units::DiskRange;
use undercroft_format::wire::failure::{Failure, FailureCode};

use super::index::IndexError;
use super::retention::LockError;

/// A repository operation failed: what was attempted, on what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// A file operation failed.
    #[error("{action} {path}")]
    Io {
        /// What was attempted, as in "reading".
        action: &'static str,
        /// The file, from the repository's root.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A file's bytes are not what was written.
    #[error("{path} is damaged")]
    Damaged {
        /// The file, from the repository's root.
        path: String,
        /// What is wrong.
        source: DecodeError,
    },
    /// A record's bytes are not what was written.
    #[error("{} {id}: the record at {pack}+{position} is damaged: {problem}", kind_name(*.kind))]
    CorruptObject {
        /// Kind of the object.
        kind: ObjectKind,
        /// Its id.
        id: ObjectId,
        /// The pack where its record stands.
        pack: PackId,
        /// The record's position there.
        position: u64,
        /// What is wrong.
        problem: RecordProblem,
    },
    /// No pack holds the object.
    #[error("{} {id} is not in the repository", kind_name(*.kind))]
    MissingObject {
        /// Kind of the object.
        kind: ObjectKind,
        /// Its id.
        id: ObjectId,
    },
    /// A segment map that does not fit where a tree names it.
    #[error("segment map {id} does not have the length of the segment at {range}")]
    ForeignMap {
        /// The map.
        id: SegmentMapId,
        /// The segment.
        range: DiskRange,
    },
    /// The chunk index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// There is no config.
    #[error("{location} is not an Undercroft repository: it has no config")]
    NotARepository {
        /// Where it was looked for.
        location: String,
    },
    /// There is no config, but what it belongs to is there.
    #[error("{location} has packs or snapshots of a repository, but its config is lost")]
    ConfigLost {
        /// Where.
        location: String,
    },
    /// There is one already.
    #[error("{location} is already an Undercroft repository")]
    AlreadyExists {
        /// Where.
        location: String,
    },
    /// Something else is there.
    #[error("{location} is not empty and is not an Undercroft repository")]
    NotEmpty {
        /// Where.
        location: String,
    },
    /// Another process owns the repository.
    #[error("the repository is in use by {owner}")]
    Locked {
        /// Who: command, process id, host, start time.
        owner: String,
    },
    /// A passphrase or recovery key is needed.
    #[error("the repository is encrypted: a passphrase or recovery key is needed")]
    KeyNeeded,
    /// The passphrase or recovery key does not fit.
    #[error("the passphrase or recovery key is wrong")]
    WrongKey,
    /// A key was given for a repository that is not encrypted: perhaps somebody swapped its config.
    #[error("a passphrase or recovery key was given, but the repository is not encrypted")]
    NotEncrypted,
    /// A snapshot that would not fit into what readers accept.
    #[error("the snapshot is too large or malformed to be read back: {0}")]
    Unpublishable(DecodeError),
    /// No such snapshot.
    #[error("snapshot {id} is not in the repository")]
    NoSuchSnapshot {
        /// The id.
        id: SnapshotId,
    },
    /// A protected snapshot would be removed.
    #[error("snapshot {id} is protected")]
    Protected {
        /// The id.
        id: SnapshotId,
    },
    /// A retention lock forbids it.
    #[error("snapshot {id}: {source}")]
    Retention {
        /// The snapshot.
        id: SnapshotId,
        /// What it forbids.
        source: LockError,
    },
    /// A snapshot that is to be made cannot be locked as asked.
    #[error(transparent)]
    Lock(LockError),
    /// A snapshot names objects that are not there, so a collection cannot tell what is live.
    #[error("a collection cannot go on: snapshot {id} cannot be read completely")]
    IncompleteSnapshot {
        /// The snapshot.
        id: SnapshotId,
        /// What is missing or damaged.
        source: Box<RepositoryError>,
    },
    /// What changed since a snapshot cannot be laid over it.
    #[error("disk {disk}: what changed cannot be laid over the parent: {reason}")]
    NoBase {
        /// The disk's label.
        disk: String,
        /// What speaks against it; of another disk, it would be why that is read in full.
        reason: Reason,
    },
    /// Another thread of the session failed first.
    #[error("the session failed: {0}")]
    SessionFailed(String),
    /// One collection at a time.
    #[error("another collection is running")]
    Collecting,
    /// The disks that were read went on being written, and what kept their state ended.
    #[error("what was read is not of one point in time")]
    PointLost(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The user asked to stop.
    #[error("stopped on request")]
    Cancelled,
    /// The repository server says so.
    #[error("{}", .0.text)]
    Remote(Failure),
    /// The repository server could not be talked to.
    #[error("talking to the server")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A session lost its server; what was acknowledged is kept there for a while.
    #[error("session {session} was interrupted")]
    Interrupted {
        /// The session, to go on with.
        session: SessionId,
        /// Whether the snapshot was to be published: then only the server knows if it was.
        is_committing: bool,
        /// How.
        source: Box<RepositoryError>,
    },
    /// The secret source of randomness failed.
    #[error("reading the system's random numbers: {0}")]
    Entropy(String),
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordProblem {
    /// Header or payload do not check out.
    #[error("{0}")]
    Format(#[from] DecodeError),
    /// The record is another object's.
    #[error("another object stands there")]
    OtherObject,
    /// The seal does not open.
    #[error("its seal does not open")]
    Seal,
    /// The payload does not decompress to the length it should.
    #[error("it does not decompress")]
    Compression,
    /// The plaintext has another id.
    #[error("its content has another id")]
    WrongId,
    /// The bytes could not be read.
    #[error("reading it failed: {0}")]
    Unreadable(String),
    /// What the repository server found.
    #[error("{0}")]
    Reported(String),
}

/// Result of a repository operation.
pub type Result<T, E = RepositoryError> = std::result::Result<T, E>;

impl RepositoryError {
    /// An I/O error while doing `action` to `path`. What a storage behind a server failed with stays what it
    /// is.
    pub fn io(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.downcast::<Self>() {
            Ok(error) => error,
            Err(source) => Self::Io {
                action,
                path,
                source,
            },
        }
    }

    /// A decode error in the file at `path`.
    pub fn damaged(path: &str) -> impl FnOnce(DecodeError) -> Self {
        let path = path.to_owned();
        move |source| Self::Damaged { path, source }
    }

    /// A lost connection, as what it is to an open session: that can be gone on with.
    pub fn interrupting(self, session: SessionId) -> Self {
        match self {
            Self::Connection(_) => Self::Interrupted {
                session,
                is_committing: false,
                source: Box::new(self),
            },
            error => error,
        }
    }

    /// True if the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            Self::Index(error) => error.is_disk_full(),
            Self::Remote(failure) => failure.code == FailureCode::DiskFull,
            // The first failure, in the words of another thread.
            Self::SessionFailed(text) => text.contains("No space left"),
            _ => false,
        }
    }

    /// True if stored data is damaged or missing, as opposed to an operation that failed.
    pub fn is_damage(&self) -> bool {
        // What a newer program wrote is whole, even if this one cannot read it.
        if let Self::Damaged { source, .. } = self
            && matches!(source.problem, Problem::Version { .. })
        {
            return false;
        }
        if let Self::Remote(failure) = self {
            return failure.code == FailureCode::Damaged;
        }
        matches!(
            self,
            Self::Damaged { .. }
                | Self::CorruptObject { .. }
                | Self::MissingObject { .. }
                | Self::ForeignMap { .. }
        )
    }
}

fn kind_name(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Chunk => "chunk",
        ObjectKind::SegmentMap => "segment map",
        ObjectKind::Node => "map tree node",
    }
}
