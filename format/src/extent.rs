//! What a range of a disk holds: zeros, or a slice of a chunk.

use crate::id::ChunkId;

/// A piece of a segment. Its place follows from the lengths of the extents before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// `len` zero bytes.
    Zero {
        /// Bytes covered, at least 1.
        len: u32,
    },
    /// `len` bytes of a chunk's plaintext, from `offset` on.
    Data {
        /// The chunk.
        chunk: ChunkId,
        /// First byte within the chunk.
        offset: u32,
        /// Bytes covered, at least 1.
        len: u32,
    },
}

impl Extent {
    /// Bytes covered.
    pub const fn len(&self) -> u32 {
        match self {
            Self::Zero { len } | Self::Data { len, .. } => *len,
        }
    }

    /// True for an extent of no bytes, which no map contains.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part from `skip` on, `len` bytes long. Both must lie within the extent.
    pub fn slice(&self, skip: u32, len: u32) -> Self {
        assert!(skip <= self.len() && len <= self.len() - skip);
        match *self {
            Self::Zero { .. } => Self::Zero { len },
            Self::Data { chunk, offset, .. } => Self::Data {
                chunk,
                offset: offset + skip,
                len,
            },
        }
    }

    /// `self` and `next` as one extent, if together they are one.
    pub fn join(&self, next: &Self) -> Option<Self> {
        match (*self, *next) {
            (Self::Zero { len }, Self::Zero { len: more }) => Some(Self::Zero {
                len: len.checked_add(more)?,
            }),
            (
                Self::Data { chunk, offset, len },
                Self::Data {
                    chunk: next_chunk,
                    offset: next_offset,
                    len: more,
                },
            ) if chunk == next_chunk && offset.checked_add(len)? == next_offset => {
                Some(Self::Data {
                    chunk,
                    offset,
                    len: len.checked_add(more)?,
                })
            }
            _ => None,
        }
    }
}

/// Appends `extent` to `extents` in canonical form: joined with the last one where they are one, left
/// out when empty.
pub fn push_extent(extents: &mut Vec<Extent>, extent: Extent) {
    if extent.is_empty() {
        return;
    }
    if let Some(last) = extents.last_mut()
        && let Some(joined) = last.join(&extent)
    {
        *last = joined;
        return;
    }
    extents.push(extent);
}
