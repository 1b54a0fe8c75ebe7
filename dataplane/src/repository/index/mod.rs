//! The chunk index: object id → where the object's record stands.
//!
//! The index is a cache. Packs are the truth: their tables of contents are enough to make the index anew
//! ([`RocksIndex::build`]). It never runs ahead of them: a pack is inserted after its bytes were synced.
//! It may lag behind: a power cut takes the last insertions back, always as a suffix and always whole
//! packs. Who opens a repository compares [`ChunkIndex::packs`] with the packs in the store, and inserts
//! and removes the difference.
//!
//! Two levels: [`RamTable`] answers *is it here, and in which pack* from RAM in about 11 bytes per entry;
//! RocksDB holds the exact places. Both stay under one memory budget: a table that would outgrow its part
//! of it becomes a filter of the same size, which still knows what is certainly not here. The table is
//! loaded when it is asked for the first time: who never probes pays neither its time nor its memory.
//!
//! | | `find`, `candidates` | `insert_pack`, `remove_pack`, `forget` | `shutdown` |
//! | --- | --- | --- | --- |
//! | `find`, `candidates` | parallel | parallel: sees all of a pack or nothing, except that `candidates` may lag | waits |
//! | `insert_pack`, `remove_pack`, `forget` | | one at a time: the writer mutex | waits |

mod bulk;
mod error;
mod memory;
mod pack_list;
mod ram_filter;
mod ram_shard;
mod ram_table;
mod ram_table_file;
mod record;
mod rocks;
mod rocks_options;
mod rocks_store;
mod scratch;
mod seal;
#[cfg(test)]
mod tests;

use std::fmt::Debug;

use undercroft_format::id::{ObjectId, PackId};
use undercroft_format::pack::{PackKind, RecordInfo, TocEntry};

pub use bulk::PackContents;
pub use error::{Damage, IndexError};
pub use memory::MemoryIndex;
pub use ram_table::{Change, Knowledge, RamTable};
pub use ram_table_file::LoadTableError;
pub use rocks::RocksIndex;
pub use rocks_options::IndexOptions;
pub use seal::{SealState, check_seal};

/// Number that the index gives to a pack: dense, counted from 0, never given twice by one index.
///
/// Only this index knows what it means: at rest elsewhere, packs go by their [`PackId`]. A rebuild numbers
/// afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackNumber(pub u32);

impl PackNumber {
    /// Largest number: the one above stands for an empty slot in the RAM table.
    pub const MAX: Self = Self(u32::MAX - 1);
}

/// Where a record stands, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pack.
    pub pack: PackNumber,
    /// Position of the record's header in the pack, in bytes.
    pub position: u32,
    /// What the record's header and its table entry say.
    pub info: RecordInfo,
}

impl Place {
    fn new(pack: PackNumber, entry: &TocEntry) -> Self {
        Self {
            pack,
            position: entry.position,
            info: entry.info,
        }
    }

    /// The line of the pack's table of contents that says the same.
    pub fn toc_entry(&self) -> TocEntry {
        TocEntry {
            info: self.info,
            position: self.position,
        }
    }
}

/// What RAM says of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// Certainly not in the index.
    Absent,
    /// Probably in this pack, but wrong once in 2⁴⁰ divided by the number of entries (one in 20,000 at 50
    /// million entries): the id may be absent, or stand in another pack when two ids share a fingerprint.
    /// So look it up in that pack's table of contents; if it is not there, only
    /// [`find`](ChunkIndex::find) knows.
    In(PackNumber),
    /// In the index or not: only [`find`](ChunkIndex::find) knows.
    Unsure,
}

/// A pack that the index knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexedPack {
    /// The index's number for it.
    pub number: PackNumber,
    /// Its name.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// Bytes of the pack file.
    pub len: u64,
    /// Entries of its table of contents when it was inserted. Newer packs may have taken some over.
    pub entries: u32,
}

/// Maps object ids to places in packs.
pub trait ChunkIndex: Send + Sync + Debug {
    /// All packs, by ascending number.
    fn packs(&self) -> Result<Vec<IndexedPack>, IndexError>;

    /// The pack of that number. Answered from RAM.
    fn pack(&self, number: PackNumber) -> Option<IndexedPack>;

    /// The number of the pack with that id. Answered from RAM.
    fn pack_number(&self, id: PackId) -> Option<PackNumber>;

    /// Adds a durable pack and all its entries in one atomic step.
    ///
    /// An id that stood in another pack now stands in this one; of two entries with one id the last
    /// stays. A pack that is already there keeps its number and its entries: inserting twice is harmless.
    fn insert_pack(
        &self,
        id: PackId,
        kind: PackKind,
        len: u64,
        entries: &[TocEntry],
    ) -> Result<PackNumber, IndexError>;

    /// Removes a pack, and those of `entries` that still stand in it, in one atomic step.
    ///
    /// `entries` must cover the pack's whole table of contents: what is left out would point to a pack
    /// that is gone. [`entries_of`](Self::entries_of) finds them when the table cannot be read. Removing
    /// a pack that is not there changes nothing.
    fn remove_pack(&self, number: PackNumber, entries: &[TocEntry]) -> Result<(), IndexError>;

    /// Removes those of `ids` that stand in that pack, and keeps the pack: the next backup that has these
    /// chunks sends them again.
    fn forget(&self, number: PackNumber, ids: &[ObjectId]) -> Result<(), IndexError>;

    /// All entries that stand in that pack, by position. Reads the whole index: for repairs only.
    fn entries_of(&self, number: PackNumber) -> Result<Vec<TocEntry>, IndexError>;

    /// The ids, in order, that stand in that pack's table of contents but not in that pack: newer packs
    /// took them over, or they were forgotten. All other ids of the table stand there.
    fn lost(&self, number: PackNumber) -> Result<Vec<ObjectId>, IndexError>;

    /// Counts how often [`lost`](Self::lost) changed for that pack since the index was opened. Answered
    /// from RAM.
    fn losses(&self, number: PackNumber) -> u64;

    /// Fills `out` with one answer per id, from RAM alone. The first call may load what is needed, which
    /// takes seconds in a large index that was not closed cleanly.
    fn candidates(&self, ids: &[ObjectId], out: &mut Vec<Candidate>) -> Result<(), IndexError>;

    /// Fills `out` with the exact place of each id.
    ///
    /// While the pack of a place is being inserted or removed, [`pack`](Self::pack) may say `None`.
    fn find(&self, ids: &[ObjectId], out: &mut Vec<Option<Place>>) -> Result<(), IndexError>;

    /// Entries in the index.
    fn len(&self) -> u64;

    /// Whether there are no entries.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of RAM in use, caches included.
    fn memory_bytes(&self) -> u64;

    /// Bytes of disk in use.
    fn disk_bytes(&self) -> Result<u64, IndexError>;

    /// Makes all that was inserted survive a power cut.
    fn flush(&self) -> Result<(), IndexError>;

    /// Closes cleanly: what is saved and sealed now makes the next open fast. Calls still running finish
    /// first; calls made later fail with [`IndexError::Closed`]. Without it, dropping is a crash: safe, but
    /// the next open scans the index.
    fn shutdown(&self) -> Result<(), IndexError>;
}
