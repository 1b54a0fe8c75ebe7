//! The roots: listing, reading, holding, forgetting and protecting snapshots.

use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};
use crate::id::SnapshotId;
use crate::snapshot::SNAPSHOT_LEN_MAX;

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
    /// What it holds; empty for markers and foreign files.
    pub content: Vec<u8>,
}

/// What is known of a snapshot without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotState {
    /// It is there.
    pub is_there: bool,
    /// It is protected.
    pub is_protected: bool,
    /// `repair` found that it lost something.
    pub is_incomplete: bool,
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
    /// Removes a snapshot; answered by [`Done`](super::message::Done).
    Forget;
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
                | u8::from(self.is_incomplete) << 2,
        );
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        let flags = reader.u8()?;
        if flags > 7 {
            return Err(at.error(Problem::Invalid("snapshot state")));
        }
        Ok(Self {
            is_there: flags & 1 != 0,
            is_protected: flags & 2 != 0,
            is_incomplete: flags & 4 != 0,
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
        put_varint(out, self.snapshots.len() as u64);
        for id in &self.snapshots {
            out.extend_from_slice(id.as_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.count("snapshots", HOLDS_MAX as u64, SnapshotId::LEN)?;
        let ids = (0..count).map(|_| Ok(SnapshotId::from_bytes(reader.array()?)));
        Ok(Self {
            snapshots: ids.collect::<Result<_, DecodeError>>()?,
        })
    }
}
