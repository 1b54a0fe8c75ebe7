//! Where things lie in a repository, as paths from its root.

use undercroft_format::id::{PackId, SessionId, SnapshotId};

/// The config file.
pub const CONFIG: &str = "config";
/// The owner's lock file.
pub const LOCK: &str = "lock";
/// Marker: the index may have forgotten packs that snapshots need.
pub const UNCHECKED: &str = "unchecked";
/// Directory of packs, in 256 directories by the first byte of their id.
pub const PACKS: &str = "packs";
/// Directory of snapshot files.
pub const SNAPSHOTS: &str = "snapshots";
/// Directory of the chunk index.
pub const INDEX: &str = "index";
/// Directory of open ingest sessions.
pub const SESSIONS: &str = "sessions";
/// Directory of packs and snapshots that `repair` took out of service.
pub const DAMAGED: &str = "damaged";
/// Directory where readers in other processes pin what they read.
pub const PINS: &str = "pins";

/// All directories that `init` makes.
pub const DIRECTORIES: [&str; 6] = [PACKS, SNAPSHOTS, INDEX, SESSIONS, DAMAGED, PINS];

/// Ends the name of a pack that is not sealed yet.
pub const OPEN_SUFFIX: &str = ".open";
/// Ends the name of a file that is being written, before its rename.
pub const TEMPORARY_SUFFIX: &str = ".tmp";
/// Ends the name of the file whose presence protects a snapshot.
pub const PROTECTED_SUFFIX: &str = ".protected";
/// Ends the name of the file that says until when a snapshot is locked.
pub const LOCKED_SUFFIX: &str = ".locked";
/// Ends the name of the file that records what a snapshot lost.
pub const INCOMPLETE_SUFFIX: &str = ".incomplete";

/// The directory of a pack.
pub fn pack_dir(id: PackId) -> String {
    format!("{PACKS}/{:02x}", id.as_bytes()[0])
}

/// A sealed pack.
pub fn pack(id: PackId) -> String {
    format!("{}/{id}", pack_dir(id))
}

/// A pack that is still being written.
pub fn open_pack(id: PackId) -> String {
    format!("{}{OPEN_SUFFIX}", pack(id))
}

/// A snapshot file.
pub fn snapshot(id: SnapshotId) -> String {
    format!("{SNAPSHOTS}/{id}")
}

/// The marker that protects a snapshot.
pub fn protected(id: SnapshotId) -> String {
    format!("{}{PROTECTED_SUFFIX}", snapshot(id))
}

/// The retention lock of a snapshot.
pub fn locked(id: SnapshotId) -> String {
    format!("{}{LOCKED_SUFFIX}", snapshot(id))
}

/// The marker of a snapshot that lost something.
pub fn incomplete(id: SnapshotId) -> String {
    format!("{}{INCOMPLETE_SUFFIX}", snapshot(id))
}

/// The record of an open session.
pub fn session(id: SessionId) -> String {
    format!("{SESSIONS}/{id}")
}
