//! What can go wrong with the chunk index.

use std::io;
use std::path::{Path, PathBuf};

use undercroft_format::id::{ObjectId, RepositoryId};

use super::PackNumber;

/// A failure of the chunk index. The packs are not concerned: at worst the index is made anew from them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The index cannot be used. It is a cache: making it anew loses nothing.
    #[error(
        "chunk index {dir}: damaged; no backup data is lost: run `undercroft rebuild-index` to make it \
         anew from the packs"
    )]
    Damaged {
        /// The index's directory.
        dir: PathBuf,
        /// What is wrong.
        #[source]
        damage: Damage,
    },
    /// Another process owns it.
    #[error("chunk index {dir}: in use by another process: stop that server, or open read-only")]
    Locked {
        /// The index's directory.
        dir: PathBuf,
        /// RocksDB's words.
        #[source]
        source: rocksdb::Error,
    },
    /// RocksDB failed in the course of work.
    #[error("chunk index {dir}: {attempt}: check the disk's space and health, then run again")]
    Rocks {
        /// The index's directory.
        dir: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// RocksDB's words.
        #[source]
        source: rocksdb::Error,
    },
    /// A file beside RocksDB's own could not be used.
    #[error("chunk index: {attempt} {path}: check the disk's space, health and permissions")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A new index was to be built where something stands already.
    #[error("chunk index {dir}: is not empty: build the new index in a fresh directory")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// Opened read-only, asked to write.
    #[error(
        "chunk index {dir}: opened read-only: only the server that owns the repository writes it"
    )]
    ReadOnly {
        /// The index's directory.
        dir: PathBuf,
    },
    /// Already shut down.
    #[error("chunk index {dir}: already shut down: open it again")]
    Closed {
        /// The index's directory.
        dir: PathBuf,
    },
    /// All pack numbers were given.
    #[error(
        "chunk index: out of pack numbers: run `undercroft rebuild-index`, which counts afresh"
    )]
    PackNumbersSpent,
}

/// What makes an index unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// RocksDB refuses it.
    #[error("RocksDB: {0}")]
    Rocks(rocksdb::Error),
    /// A file that must be there is not.
    #[error("file {0} is missing")]
    Missing(&'static str),
    /// A file changed or vanished since the index was sealed.
    #[error("file {} is not as it was when the index was closed", .0.display())]
    Changed(PathBuf),
    /// Made by another version.
    #[error("schema version {found}, this program knows {known}")]
    Schema {
        /// Version found.
        found: u32,
        /// The only version known here.
        known: u32,
    },
    /// It was never finished, or is none of ours.
    #[error("it has entries but no {0} record: a build was interrupted")]
    Unfinished(&'static str),
    /// Made for another repository.
    #[error("it belongs to repository {found}, not to {expected}")]
    Repository {
        /// Repository found.
        found: RepositoryId,
        /// Repository asked for.
        expected: RepositoryId,
    },
    /// An object's entry cannot be understood.
    #[error("the entry of object {0} is invalid")]
    Entry(ObjectId),
    /// A key of the table of objects is no object id.
    #[error("an object's key has {0} bytes")]
    Key(usize),
    /// A pack's record cannot be understood.
    #[error("the record of pack number {}", .0.0)]
    Pack(PackNumber),
    /// One of the index's own records cannot be understood.
    #[error("the {0} record is invalid")]
    Record(&'static str),
}

impl IndexError {
    /// Whether making the index anew from the packs is the way out.
    pub fn needs_rebuild(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::PackNumbersSpent => true,
            Self::Rocks { source, .. } => source.kind() == rocksdb::ErrorKind::Corruption,
            _ => false,
        }
    }

    /// Whether it failed for want of room: the index itself may be as good as ever.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Rocks { source, .. } => says_disk_full(source),
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            _ => false,
        }
    }
}

/// RocksDB passes on `strerror`'s words alone, those of ENOSPC and EDQUOT here.
pub(super) fn says_disk_full(error: &rocksdb::Error) -> bool {
    let text = error.as_ref();
    text.contains("No space left on device") || text.contains("Disk quota exceeded")
}

/// Makes errors about one index.
pub(super) trait AtDir {
    fn damaged(&self, damage: Damage) -> IndexError;
    fn rocks(&self, attempt: &'static str) -> impl Fn(rocksdb::Error) -> IndexError;
    fn io(&self, attempt: &'static str) -> impl Fn(io::Error) -> IndexError;
}

impl AtDir for Path {
    fn damaged(&self, damage: Damage) -> IndexError {
        IndexError::Damaged {
            dir: self.to_owned(),
            damage,
        }
    }

    fn rocks(&self, attempt: &'static str) -> impl Fn(rocksdb::Error) -> IndexError {
        move |source| IndexError::Rocks {
            dir: self.to_owned(),
            attempt,
            source,
        }
    }

    fn io(&self, attempt: &'static str) -> impl Fn(io::Error) -> IndexError {
        move |source| IndexError::Io {
            attempt,
            path: self.to_owned(),
            source,
        }
    }
}
