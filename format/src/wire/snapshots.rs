//! The roots: listing, reading, holding, forgetting and protecting snapshots.

use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};
use crate::id::SnapshotId;
use crate::lock::{LOCK_LEN, LockEnd};
use crate::snapshot::SNAPSHOT_LEN_MAX;
use crate::trust::time::UnixMs;

use super::frame::{Body, FrameType};
use super::hello::{put_bytes, read_bytes};

/// Longest name of a file in the directory of snapshots, in bytes.
const FILE_NAME_LEN_MAX: u64 = 255;
/// Most snapshots held by one stream.
pub const HOLDS_MAX: usize = 1024;

/// A file of the directory of snapshots. A listing is a number of these, then
/// [`Done`](super::message::Done).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its name there.
    pub name: String,
    /// What it holds; empty for markers.
    pub content: Vec<u8>,
}

/// What is known of a snapshot without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotState {
    /// It is there.
    pub is_there: bool,
    /// It is protected.
    pub is_protected: bool,
    /// `repair` found that it lost something.
    pub is_incomplete: bool,
    /// The file of its retention lock, as it is.
    pub lock: Option<Vec<u8>>,
}

/// Removes snapshots, all or, if one of them cannot be removed, none; answered by
/// [`Done`](super::message::Done).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    /// At most [`HOLDS_MAX`].
    pub snapshots: Vec<SnapshotId>,
}

/// Locks a snapshot, or extends its lock; answered by [`LockedUntil`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// When the lock is to end.
    pub end: LockEnd,
}

/// Until when a snapshot is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockedUntil {
    /// The end.
    pub until: UnixMs,
}

/// Sets or lifts a protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protect {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Whether it is protected from now on.
    pub is_protected: bool,
}

/// Keeps all that snapshots refer to until the stream ends. The client must look afterwards whether they
/// are still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// At most [`HOLDS_MAX`].
    pub snapshots: Vec<SnapshotId>,
}

macro_rules! about_a_snapshot {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            /// The snapshot.
            pub snapshot: SnapshotId,
        }

        impl Body for $name {
            const KIND: FrameType = FrameType::$name;

            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.snapshot.as_bytes());
            }

            fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self { snapshot: SnapshotId::from_bytes(reader.array()?) })
            }
        }
    )*};
}

about_a_snapshot! {
    /// Asks for a snapshot's file; answered by a [`SnapshotFile`].
    ReadSnapshot;
    /// Asks what is known of a snapshot; answered by a [`SnapshotState`].
    StatSnapshot;
}

impl Body for SnapshotFile {
    const KIND: FrameType = FrameType::SnapshotFile;

    fn put(&self, out: &mut Vec<u8>) {
        put_string(out, &self.name);
        put_bytes(out, &self.content);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: reader.string("file name", FILE_NAME_LEN_MAX)?,
            content: read_bytes(reader, "snapshot length", SNAPSHOT_LEN_MAX)?,
        })
    }
}

impl Body for SnapshotState {
    const KIND: FrameType = FrameType::SnapshotState;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(
            u8::from(self.is_there)
                | u8::from(self.is_protected) << 1
                | u8::from(self.is_incomplete) << 2
                | u8::from(self.lock.is_some()) << 3,
        );
        if let Some(lock) = &self.lock {
            put_bytes(out, lock);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        let flags = reader.u8()?;
        if flags > 15 {
            return Err(at.error(Problem::Invalid("snapshot state")));
        }
        Ok(Self {
            is_there: flags & 1 != 0,
            is_protected: flags & 2 != 0,
            is_incomplete: flags & 4 != 0,
            lock: match flags & 8 {
                0 => None,
                _ => Some(read_bytes(reader, "length of a lock", LOCK_LEN as u64)?),
            },
        })
    }
}

impl Body for Protect {
    const KIND: FrameType = FrameType::Protect;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.snapshot.as_bytes());
        out.push(self.is_protected.into());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            snapshot: SnapshotId::from_bytes(reader.array()?),
            is_protected: reader.bool()?,
        })
    }
}

impl Body for Hold {
    const KIND: FrameType = FrameType::Hold;

    fn put(&self, out: &mut Vec<u8>) {
        put_ids(out, &self.snapshots);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            snapshots: read_ids(reader)?,
        })
    }
}

impl Body for Forget {
    const KIND: FrameType = FrameType::Forget;

    fn put(&self, out: &mut Vec<u8>) {
        put_ids(out, &self.snapshots);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            snapshots: read_ids(reader)?,
        })
    }
}

impl Body for Lock {
    const KIND: FrameType = FrameType::Lock;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.snapshot.as_bytes());
        LockEnd::put(Some(self.end), out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let snapshot = SnapshotId::from_bytes(reader.array()?);
        let at = reader.clone();
        let end = LockEnd::read(reader)?;
        let end = end.ok_or_else(|| at.error(Problem::Invalid("end of a lock")))?;
        Ok(Self { snapshot, end })
    }
}

impl Body for LockedUntil {
    const KIND: FrameType = FrameType::LockedUntil;

    fn put(&self, out: &mut Vec<u8>) {
        self.until.put(out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            until: UnixMs::read(reader)?,
        })
    }
}

fn put_ids(out: &mut Vec<u8>, ids: &[SnapshotId]) {
    put_varint(out, ids.len() as u64);
    for id in ids {
        out.extend_from_slice(id.as_bytes());
    }
}

fn read_ids(reader: &mut Reader<'_>) -> Result<Vec<SnapshotId>, DecodeError> {
    let count = reader.count("snapshots", HOLDS_MAX as u64, SnapshotId::LEN)?;
    let ids = (0..count).map(|_| Ok(SnapshotId::from_bytes(reader.array()?)));
    ids.collect()
}
