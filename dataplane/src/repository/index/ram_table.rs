//! The existence table: which ids are in the index, and in which pack, in about 11 bytes of RAM each.
//!
//! The table is a multiset of (shard, fingerprint, pack), one per entry of the index: the id's first byte
//! is the shard, its next four bytes are the fingerprint. So of two ids the table tells 40 bits apart. It
//! never misses an id that it holds; it can find one that it does not hold, or another pack.
//!
//! The table never takes more than its cap, growth included. When it would, it lets go of all it has and
//! stays `overflowed`: it then answers nothing any more.

use std::hint::black_box;

use parking_lot::RwLock;
use undercroft_format::id::ObjectId;

use super::PackNumber;
use super::ram_shard::{Shard, slot};

pub(super) const SHARDS: usize = 256;

/// Ids whose cache lines are fetched together, before the first is searched: as many misses as a core
/// keeps in flight.
const PREFETCH: usize = 16;

/// One step of [`RamTable::apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The id, so far in no pack, now stands in this one.
    Insert {
        /// The id.
        id: ObjectId,
        /// Its pack.
        pack: PackNumber,
    },
    /// The id went from one pack to another.
    Move {
        /// The id.
        id: ObjectId,
        /// The pack where it stood.
        from: PackNumber,
        /// The pack where it stands now.
        to: PackNumber,
    },
    /// The id no longer stands in this pack, nor in any other.
    Remove {
        /// The id.
        id: ObjectId,
        /// The pack where it stood.
        pack: PackNumber,
    },
}

/// The existence table. One lock serves a whole batch of lookups or changes.
#[derive(Debug)]
pub struct RamTable {
    shards: RwLock<Option<Shards>>,
    cap_bytes: u64,
}

/// What a table holds while it fits.
#[derive(Debug)]
pub(super) struct Shards {
    pub(super) shards: Vec<Shard>,
    pub(super) len: u64,
    bytes: u64,
}

impl RamTable {
    /// An empty table that will never take more than `cap_bytes`.
    pub fn new(cap_bytes: u64) -> Self {
        let shards = Shards::new();
        let fits = shards.bytes <= cap_bytes;
        Self {
            shards: RwLock::new(fits.then_some(shards)),
            cap_bytes,
        }
    }

    /// An empty table with room for so many entries; overflowed at once if they would not fit.
    ///
    /// Filling a table in the order of the ids needs this: in shards that grow meanwhile, the first ids
    /// would crowd into the first buckets.
    pub fn with_capacity(entries: u64, cap_bytes: u64) -> Self {
        let per_shard = entries as f64 / SHARDS as f64;
        // Ids fall into shards at random: hardly a shard gets more than four deviations above its share.
        let per_shard = (per_shard + 4.0 * per_shard.sqrt()) as usize;
        let mut shards = Shards::new();
        let fits = (0..SHARDS).all(|shard| {
            let buckets = shards.shards[shard].buckets_for(per_shard);
            shards.make_room(shard, Some(buckets), cap_bytes)
        });
        if fits {
            Self::of_shards(shards, cap_bytes)
        } else {
            Self::overflowed(cap_bytes)
        }
    }

    /// A table that answers nothing.
    pub fn overflowed(cap_bytes: u64) -> Self {
        Self {
            shards: RwLock::new(None),
            cap_bytes,
        }
    }

    pub(super) fn of_shards(shards: Shards, cap_bytes: u64) -> Self {
        Self {
            shards: RwLock::new(Some(shards)),
            cap_bytes,
        }
    }

    /// Fills `out` with one answer per id. False, and nothing in `out`, when the table overflowed.
    ///
    /// The answers mean what [`ChunkIndex::candidates`](super::ChunkIndex::candidates) says.
    pub fn candidates(&self, ids: &[ObjectId], out: &mut Vec<Option<PackNumber>>) -> bool {
        out.clear();
        let guard = self.shards.read();
        let Some(table) = guard.as_ref() else {
            return false;
        };
        out.reserve(ids.len());
        for ids in ids.chunks(PREFETCH) {
            let mut words = 0;
            for id in ids {
                words ^= table.shards[shard_of(id)].touch(fingerprint_of(id));
            }
            black_box(words);
            out.extend(
                ids.iter()
                    .map(|id| table.shards[shard_of(id)].get(fingerprint_of(id))),
            );
        }
        true
    }

    /// Makes the changes, in order, unseen by lookups until all are made. False when the table overflowed.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> bool {
        let mut guard = self.shards.write();
        for change in changes {
            let Some(table) = guard.as_mut() else {
                return false;
            };
            let fits = match change {
                Change::Insert { id, pack } => table.insert(&id, pack, self.cap_bytes),
                Change::Move { id, from, to } => table.replace(&id, from, to, self.cap_bytes),
                Change::Remove { id, pack } => {
                    table.remove(&id, pack);
                    true
                }
            };
            if !fits {
                *guard = None;
            }
        }
        guard.is_some()
    }

    /// Whether the table gave up.
    pub fn is_overflowed(&self) -> bool {
        self.shards.read().is_none()
    }

    /// Entries.
    pub fn len(&self) -> u64 {
        self.shards.read().as_ref().map_or(0, |table| table.len)
    }

    /// Whether there are no entries: so too when the table overflowed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of RAM that the slots take.
    pub fn memory_bytes(&self) -> u64 {
        self.shards.read().as_ref().map_or(0, |table| table.bytes)
    }

    pub(super) fn with_shards<R>(&self, read: impl FnOnce(Option<&Shards>) -> R) -> R {
        read(self.shards.read().as_ref())
    }
}

impl Shards {
    pub(super) fn new() -> Self {
        let shards: Vec<_> = (0..=u8::MAX).map(Shard::new).collect();
        Self {
            len: 0,
            bytes: shards.iter().map(Shard::bytes).sum(),
            shards,
        }
    }

    fn insert(&mut self, id: &ObjectId, pack: PackNumber, cap_bytes: u64) -> bool {
        let shard = shard_of(id);
        let fits = self.make_room(shard, self.shards[shard].growth(), cap_bytes);
        if fits {
            self.shards[shard].insert(slot(fingerprint_of(id), pack));
            self.len += 1;
        }
        fits
    }

    fn replace(&mut self, id: &ObjectId, from: PackNumber, to: PackNumber, cap_bytes: u64) -> bool {
        let fingerprint = fingerprint_of(id);
        let known =
            self.shards[shard_of(id)].replace(slot(fingerprint, from), slot(fingerprint, to));
        known || self.insert(id, to, cap_bytes)
    }

    fn remove(&mut self, id: &ObjectId, pack: PackNumber) {
        let known = self.shards[shard_of(id)].remove(slot(fingerprint_of(id), pack));
        self.len -= u64::from(known);
    }

    /// Resizes a shard to `buckets`, if given. False if old and new together would not fit.
    pub(super) fn make_room(
        &mut self,
        shard: usize,
        buckets: Option<usize>,
        cap_bytes: u64,
    ) -> bool {
        let Some(buckets) = buckets else {
            return true;
        };
        let more = (buckets * super::ram_shard::BUCKET_LEN) as u64;
        if self.bytes + more > cap_bytes {
            return false;
        }
        self.bytes -= self.shards[shard].bytes();
        self.shards[shard].resize(buckets);
        self.bytes += more;
        true
    }
}

fn shard_of(id: &ObjectId) -> usize {
    id.as_bytes()[0].into()
}

fn fingerprint_of(id: &ObjectId) -> u32 {
    let [_, a, b, c, d, ..] = *id.as_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(first: [u8; 6]) -> ObjectId {
        let mut bytes = [0; 32];
        bytes[..6].copy_from_slice(&first);
        ObjectId::from_bytes(bytes)
    }

    fn candidates(table: &RamTable, ids: &[ObjectId]) -> Vec<Option<PackNumber>> {
        let mut out = Vec::new();
        assert!(table.candidates(ids, &mut out));
        out
    }

    #[test]
    fn ids_with_one_fingerprint_both_stay_findable() {
        let (one, other) = (id([9, 1, 2, 3, 4, 5]), id([9, 1, 2, 3, 4, 6]));
        let table = RamTable::new(1 << 20);
        let (first, second) = (PackNumber(3), PackNumber(4));
        table.apply([
            Change::Insert {
                id: one,
                pack: first,
            },
            Change::Insert {
                id: other,
                pack: second,
            },
        ]);
        assert!(
            candidates(&table, &[one, other])
                .iter()
                .all(Option::is_some)
        );
        table.apply([Change::Remove {
            id: one,
            pack: first,
        }]);
        assert_eq!(candidates(&table, &[other]), [Some(second)]);
        table.apply([Change::Remove {
            id: other,
            pack: second,
        }]);
        assert_eq!(candidates(&table, &[one, other]), [None, None]);
    }

    #[test]
    fn ids_of_one_pack_with_one_fingerprint_are_removed_one_by_one() {
        let (one, other) = (id([9, 1, 2, 3, 4, 5]), id([9, 1, 2, 3, 4, 6]));
        let table = RamTable::new(1 << 20);
        let pack = PackNumber(0);
        table.apply([one, other].map(|id| Change::Insert { id, pack }));
        table.apply([Change::Remove { id: one, pack }]);
        assert_eq!(candidates(&table, &[other]), [Some(pack)]);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn the_cap_is_never_exceeded_and_overflow_is_for_good() {
        let cap = 300 << 10;
        let table = RamTable::new(cap);
        let mut inserted = 0_u64;
        let mut peak = 0;
        loop {
            let pack = PackNumber(0);
            let id = ObjectId::from_bytes(*blake3::hash(&inserted.to_le_bytes()).as_bytes());
            if !table.apply([Change::Insert { id, pack }]) {
                break;
            }
            inserted += 1;
            peak = peak.max(table.memory_bytes());
        }
        assert!(peak <= cap);
        assert!(cap / inserted < 14, "{} bytes per entry", cap / inserted);
        assert!(table.is_overflowed());
        assert_eq!(table.memory_bytes(), 0);
        let id = id([0; 6]);
        assert!(!table.apply([Change::Insert {
            id,
            pack: PackNumber(0)
        }]));
        assert!(!table.candidates(&[id], &mut Vec::new()));
    }
}
