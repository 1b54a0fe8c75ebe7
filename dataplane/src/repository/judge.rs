//! Who says whether a record is what it should be, in a scrub that goes deeper than checksums.

use undercroft_format::id::ObjectId;
use undercroft_format::id::{node_id, segment_map_id};
use undercroft_format::pack::{ObjectKind, RecordHeader};

use super::error::{RecordProblem, Result};

/// Somebody who has the key.
pub trait Judge: Sync {
    /// Of chunks whose checksums fit: the places of those that are not what they should be, ascending, and
    /// what is wrong with them.
    ///
    /// # Errors
    /// If nobody can be asked any more: then nothing was found out.
    fn judge(&self, records: &[(RecordHeader, &[u8])]) -> Result<Vec<(usize, String)>>;
}

/// How deep a scrub goes.
#[derive(Clone, Copy)]
pub enum Depth<'a> {
    /// Every checksum.
    Checksums,
    /// Every record is decoded and hashed to its id, which takes the key of an encrypted repository.
    Decoded,
    /// The same without the key: maps and nodes are looked at here, chunks by somebody else.
    Judged(&'a dyn Judge),
}

impl Depth<'_> {
    /// Of a repository that is at hand.
    pub const fn of(deep: bool) -> Self {
        match deep {
            false => Self::Checksums,
            true => Self::Decoded,
        }
    }
}

/// Checks a map or node, which takes no key: the id is the hash of the payload.
pub fn check_in_clear(
    kind: ObjectKind,
    id: ObjectId,
    payload: &[u8],
) -> std::result::Result<(), RecordProblem> {
    let found: ObjectId = match kind {
        ObjectKind::SegmentMap => segment_map_id(payload).into(),
        ObjectKind::Node => node_id(payload).into(),
        ObjectKind::Chunk => return Ok(()),
    };
    (found == id).then_some(()).ok_or(RecordProblem::WrongId)
}
