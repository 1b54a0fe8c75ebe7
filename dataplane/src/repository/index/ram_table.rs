//! The existence table: which ids are in the index, and in which pack, in about 11 bytes of RAM each.
//!
//! The table is a multiset of (shard, fingerprint, pack), one per entry of the index: the id's first byte
//! is the shard, its next four bytes are the fingerprint. So of two ids the table tells 40 bits apart. It
//! never misses an id that it holds; it can find one that it does not hold, or another pack.
//!
//! The table never takes more than its cap, growth included. When it would, its memory becomes a
//! [`Filter`], which still knows what is certainly absent, but no packs. It does not turn back.

use std::hint::black_box;

use parking_lot::RwLock;
use undercroft_format::id::ObjectId;

use super::ram_filter::Filter;
use super::ram_shard::{BUCKET_LEN, Shard, slot};
use super::{Candidate, PackNumber};

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
    content: RwLock<Content>,
    cap_bytes: u64,
}

/// What a [`RamTable`] can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Which ids are there, and their packs.
    Packs,
    /// Which ids are certainly not there.
    Absence,
    /// Nothing: the cap has no room for even a filter.
    Nothing,
}

#[derive(Debug)]
pub(super) enum Content {
    Slots(Shards),
    Filter(Filter),
    Nothing,
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
        if shards.bytes <= slots_cap(cap_bytes) {
            Self::of(Content::Slots(shards), cap_bytes)
        } else {
            Self::of(Content::filter(cap_bytes), cap_bytes)
        }
    }

    /// An empty table with room for so many entries; a filter at once if they would not fit.
    ///
    /// Filling a table in the order of the ids needs this: in shards that grow meanwhile, the first ids
    /// would crowd into the first buckets.
    pub fn with_capacity(entries: u64, cap_bytes: u64) -> Self {
        let content = Shards::with_capacity(entries, slots_cap(cap_bytes));
        let content = content.map_or_else(|| Content::filter(cap_bytes), Content::Slots);
        Self::of(content, cap_bytes)
    }

    /// Whether a table of so many entries fits `cap_bytes`.
    pub(super) fn fits(entries: u64, cap_bytes: u64) -> bool {
        Shards::bytes_for(entries) <= slots_cap(cap_bytes)
    }

    /// A table that knows nothing.
    pub fn nothing() -> Self {
        Self::of(Content::Nothing, 0)
    }

    pub(super) fn of(content: Content, cap_bytes: u64) -> Self {
        Self {
            content: RwLock::new(content),
            cap_bytes,
        }
    }

    /// Fills `out` with one answer per id.
    pub fn candidates(&self, ids: &[ObjectId], out: &mut Vec<Candidate>) {
        out.clear();
        match &*self.content.read() {
            Content::Slots(table) => table.candidates(ids, out),
            Content::Filter(filter) => filter_candidates(filter, ids, out),
            Content::Nothing => out.resize(ids.len(), Candidate::Unsure),
        }
    }

    /// Makes the changes, in order, unseen by lookups until all are made.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        let content = &mut *self.content.write();
        for change in changes {
            if let Content::Slots(table) = content {
                if table.apply(change, slots_cap(self.cap_bytes)) {
                    continue;
                }
                let slots = std::mem::take(&mut table.shards);
                *content = Filter::of_slots(slots, self.cap_bytes)
                    .map_or(Content::Nothing, Content::Filter);
            }
            if let (Content::Filter(filter), Change::Insert { id, .. } | Change::Move { id, .. }) =
                (&mut *content, change)
            {
                filter.add(shard_of(&id), fingerprint_of(&id));
            }
        }
    }

    /// What the table can say now.
    pub fn knowledge(&self) -> Knowledge {
        match &*self.content.read() {
            Content::Slots(_) => Knowledge::Packs,
            Content::Filter(_) => Knowledge::Absence,
            Content::Nothing => Knowledge::Nothing,
        }
    }

    /// Entries; none once packs are no longer known.
    pub fn len(&self) -> u64 {
        match &*self.content.read() {
            Content::Slots(table) => table.len,
            Content::Filter(_) | Content::Nothing => 0,
        }
    }

    /// Whether there are no entries: so too when packs are no longer known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of RAM in use.
    pub fn memory_bytes(&self) -> u64 {
        match &*self.content.read() {
            Content::Slots(table) => table.bytes,
            Content::Filter(filter) => filter.bytes(),
            Content::Nothing => 0,
        }
    }

    pub(super) fn with_content<R>(&self, read: impl FnOnce(&Content) -> R) -> R {
        read(&self.content.read())
    }
}

impl Content {
    fn filter(cap_bytes: u64) -> Self {
        Filter::new(cap_bytes).map_or(Self::Nothing, Self::Filter)
    }
}

/// What slots may take, so that a filter can take their place shard by shard.
pub(super) fn slots_cap(cap_bytes: u64) -> u64 {
    cap_bytes - Filter::shard_bytes(cap_bytes)
}

/// Looks ids up in groups: all cache lines of a group are fetched before the first is searched.
fn in_groups(ids: &[ObjectId], touch: impl Fn(usize, u32) -> u64, mut get: impl FnMut(usize, u32)) {
    for ids in ids.chunks(PREFETCH) {
        let mut words = 0;
        for id in ids {
            words ^= touch(shard_of(id), fingerprint_of(id));
        }
        black_box(words);
        for id in ids {
            get(shard_of(id), fingerprint_of(id));
        }
    }
}

fn filter_candidates(filter: &Filter, ids: &[ObjectId], out: &mut Vec<Candidate>) {
    out.reserve(ids.len());
    let touch = |shard, fingerprint| filter.touch(shard, fingerprint);
    in_groups(ids, touch, |shard, fingerprint| {
        out.push(match filter.may_have(shard, fingerprint) {
            true => Candidate::Unsure,
            false => Candidate::Absent,
        });
    });
}

impl Shards {
    /// Slots for so many entries, if they fit.
    fn with_capacity(entries: u64, cap_bytes: u64) -> Option<Self> {
        let per_shard = per_shard(entries);
        let mut shards = Self::new();
        let fits = (0..SHARDS).all(|shard| {
            let buckets = shards.shards[shard].buckets_for(per_shard);
            shards.make_room(shard, Some(buckets), cap_bytes)
        });
        fits.then_some(shards)
    }

    fn bytes_for(entries: u64) -> u64 {
        let per_shard = per_shard(entries);
        let buckets = (0..=u8::MAX).map(|shard| Shard::new(shard).buckets_for(per_shard));
        buckets.map(|buckets| (buckets * BUCKET_LEN) as u64).sum()
    }

    fn candidates(&self, ids: &[ObjectId], out: &mut Vec<Candidate>) {
        out.reserve(ids.len());
        let touch = |shard: usize, fingerprint| self.shards[shard].touch(fingerprint);
        in_groups(ids, touch, |shard, fingerprint| {
            let pack = self.shards[shard].get(fingerprint);
            out.push(pack.map_or(Candidate::Absent, Candidate::In));
        });
    }

    /// False, and nothing changed, if there is no room.
    fn apply(&mut self, change: Change, cap_bytes: u64) -> bool {
        match change {
            Change::Insert { id, pack } => self.insert(&id, pack, cap_bytes),
            Change::Move { id, from, to } => self.replace(&id, from, to, cap_bytes),
            Change::Remove { id, pack } => {
                self.remove(&id, pack);
                true
            }
        }
    }

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
        let more = (buckets * BUCKET_LEN) as u64;
        if self.bytes + more > cap_bytes {
            return false;
        }
        self.bytes -= self.shards[shard].bytes();
        self.shards[shard].resize(buckets);
        self.bytes += more;
        true
    }
}

/// Slots that a shard needs room for. Ids fall into shards at random: hardly a shard gets more than four
/// deviations above its share.
fn per_shard(entries: u64) -> usize {
    let share = entries as f64 / SHARDS as f64;
    (share + 4.0 * share.sqrt()) as usize
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

    fn candidates(table: &RamTable, ids: &[ObjectId]) -> Vec<Candidate> {
        let mut out = Vec::new();
        table.candidates(ids, &mut out);
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
                .all(|candidate| *candidate != Candidate::Absent)
        );
        table.apply([Change::Remove {
            id: one,
            pack: first,
        }]);
        assert_eq!(candidates(&table, &[other]), [Candidate::In(second)]);
        table.apply([Change::Remove {
            id: other,
            pack: second,
        }]);
        assert_eq!(candidates(&table, &[one, other]), [Candidate::Absent; 2]);
    }

    #[test]
    fn ids_of_one_pack_with_one_fingerprint_are_removed_one_by_one() {
        let (one, other) = (id([9, 1, 2, 3, 4, 5]), id([9, 1, 2, 3, 4, 6]));
        let table = RamTable::new(1 << 20);
        let pack = PackNumber(0);
        table.apply([one, other].map(|id| Change::Insert { id, pack }));
        table.apply([Change::Remove { id: one, pack }]);
        assert_eq!(candidates(&table, &[other]), [Candidate::In(pack)]);
        assert_eq!(table.len(), 1);
    }

    fn numbered(n: u64) -> ObjectId {
        ObjectId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    #[test]
    fn the_cap_is_never_exceeded_and_nothing_is_missed_when_slots_become_a_filter() {
        let cap = 300 << 10;
        let table = RamTable::new(cap);
        let pack = PackNumber(0);
        let mut fitted = 0;
        for n in 0..60_000 {
            table.apply([Change::Insert {
                id: numbered(n),
                pack,
            }]);
            assert!(table.memory_bytes() <= cap);
            if table.knowledge() == Knowledge::Packs {
                fitted = n + 1;
            }
        }
        assert!(cap / fitted < 14, "{} bytes per entry", cap / fitted);
        assert_eq!(table.knowledge(), Knowledge::Absence);
        assert!(table.memory_bytes() > cap * 9 / 10);
        table.apply([Change::Remove {
            id: numbered(7),
            pack,
        }]);
        let ids: Vec<_> = (0..60_000).map(numbered).collect();
        let known = candidates(&table, &ids);
        assert!(
            known
                .iter()
                .all(|candidate| *candidate == Candidate::Unsure)
        );
        let others: Vec<_> = (1 << 40..(1 << 40) + 1000).map(numbered).collect();
        let absent = candidates(&table, &others);
        let absent = absent
            .iter()
            .filter(|candidate| **candidate == Candidate::Absent);
        assert!(absent.count() > 700);
    }

    #[test]
    fn a_cap_without_room_for_a_filter_gives_a_table_that_is_unsure() {
        let table = RamTable::new(10 << 10);
        table.apply([Change::Insert {
            id: numbered(1),
            pack: PackNumber(1),
        }]);
        assert_eq!(table.knowledge(), Knowledge::Nothing);
        assert_eq!(candidates(&table, &[numbered(2)]), [Candidate::Unsure]);
        assert_eq!(table.memory_bytes(), 0);
    }
}
