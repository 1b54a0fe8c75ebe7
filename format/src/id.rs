//! Names of things: content ids, pack and snapshot ids, and the keys that make content ids.
//!
//! A content id is BLAKE3 of the content, under a context of its own per kind of object, so that the
//! bytes of one kind can never be passed off as another. Chunk ids are keyed with the repository's id
//! key: who steals a store cannot test whether a known file is in it. Maps and tree nodes hold only ids
//! and lengths; they are hashed without a secret, so that a repository can splice without any key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A hexadecimal id could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {expected} hexadecimal digits")]
pub struct ParseIdError {
    text: String,
    expected: usize,
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let error = || ParseIdError {
        text: text.chars().take(80).collect(),
        expected: 2 * N,
    };
    if text.len() != 2 * N || !text.is_ascii() {
        return Err(error());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
        *byte = digit(pair[0]).ok_or_else(error)? << 4 | digit(pair[1]).ok_or_else(error)?;
    }
    Ok(bytes)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Bytes of the id.
            pub const LEN: usize = $len;

            /// Wraps the bytes of an id.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "("))?;
                hex(&self.0[..4], f)?;
                write!(f, ")")
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// Keyed BLAKE3 of a chunk's plaintext; equal ids mean equal bytes.
    ChunkId, 32
}
id! {
    /// BLAKE3 of a segment map's canonical encoding.
    SegmentMapId, 32
}
id! {
    /// BLAKE3 of a map tree node's canonical encoding.
    NodeId, 32
}
id! {
    /// Id of any content-addressed object, whatever its kind: what packs and the index deal in.
    ObjectId, 32
}
id! {
    /// Random name of a pack file.
    PackId, 16
}
id! {
    /// First half of the BLAKE3 of a snapshot file's body.
    SnapshotId, 16
}
id! {
    /// Random name of a repository.
    RepositoryId, 16
}
id! {
    /// Random name of an ingest session.
    SessionId, 16
}
id! {
    /// Names a task of a proxy, chosen by whoever submits it: the same id is the same task.
    TaskId, 16
}

macro_rules! object {
    ($($name:ident),*) => {$(
        impl From<$name> for ObjectId {
            fn from(id: $name) -> Self {
                Self(id.0)
            }
        }

        impl From<ObjectId> for $name {
            /// Only for an object whose kind says that it is one.
            fn from(id: ObjectId) -> Self {
                Self(id.0)
            }
        }
    )*};
}
object!(ChunkId, SegmentMapId, NodeId);

impl SnapshotId {
    /// The eight digits that listings show.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

/// Makes chunk ids: the repository's secret id key.
#[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub struct IdKey([u8; 32]);

impl IdKey {
    /// Wraps the 32 bytes of the key.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id of the chunk whose plaintext is `bytes`.
    pub fn chunk_id(&self, bytes: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.0, bytes).as_bytes())
    }
}

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey(..)")
    }
}

/// The id of the segment map whose canonical encoding is `bytes`.
pub fn segment_map_id(bytes: &[u8]) -> SegmentMapId {
    SegmentMapId(contextual("undercroft 2026-11 segment map", bytes))
}

/// The id of the map tree node whose canonical encoding is `bytes`.
pub fn node_id(bytes: &[u8]) -> NodeId {
    NodeId(contextual("undercroft 2026-11 map tree node", bytes))
}

/// The id of the snapshot whose file body is `bytes`.
pub fn snapshot_id(bytes: &[u8]) -> SnapshotId {
    let full = contextual("undercroft 2026-11 snapshot", bytes);
    let mut half = [0; 16];
    half.copy_from_slice(&full[..16]);
    SnapshotId(half)
}

fn contextual(context: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse() {
        let id = ChunkId::from_bytes([0xa5; 32]);
        assert_eq!(id.to_string().parse::<ChunkId>(), Ok(id));
        assert!("a5".parse::<ChunkId>().is_err());
        assert!("zz".repeat(32).parse::<ChunkId>().is_err());
        assert!("é".repeat(32).parse::<ChunkId>().is_err());
    }

    #[test]
    fn kinds_have_separate_id_spaces() {
        let bytes = b"the same bytes";
        assert_ne!(segment_map_id(bytes).as_bytes(), node_id(bytes).as_bytes());
        let one = IdKey::from_bytes([1; 32]).chunk_id(bytes);
        assert_ne!(one, IdKey::from_bytes([2; 32]).chunk_id(bytes));
    }
}
