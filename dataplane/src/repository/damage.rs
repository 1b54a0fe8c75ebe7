//! What a scrub, a restore or a repair found wrong.

use serde::{Deserialize, Serialize};
use undercroft_format::id::SnapshotId;
use undercroft_format::units::DiskRange;

/// Something stored that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Damage {
    /// The file, from the repository's root.
    pub path: String,
    /// Position in it, in bytes, where that says something.
    pub position: Option<u64>,
    /// What is wrong, in words.
    pub problem: String,
}

/// A range of a disk that cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AffectedRange {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Its VM.
    pub vm: String,
    /// The disk's label.
    pub disk: String,
    /// The range.
    pub range: DiskRange,
    /// What is wrong, in words.
    pub problem: String,
}
