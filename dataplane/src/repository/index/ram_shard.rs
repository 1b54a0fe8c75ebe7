//! One shard of the RAM table: buckets of eight slots, one cache line each.
//!
//! A slot is a 32-bit fingerprint and a pack number. The fingerprint's high bits choose the home bucket,
//! so that a shard of any size can be laid out anew from its slots alone, in one sequential pass. A slot
//! whose home is full stands in the first bucket after it that is not, around the end.
//!
//! Invariants: occupied slots come first in their bucket; from a slot's home up to its bucket, all buckets
//! before the last are full; at most 80 % of the slots are occupied. So a search ends at the first bucket
//! that is not full. Equal slots may stand there several times: two ids of one pack can share a fingerprint.

use super::PackNumber;

const SLOTS: usize = 8;

/// Bytes of a bucket.
pub(super) const BUCKET_LEN: usize = 64;

/// Sizes in buckets grow by this.
const GROWTH: f64 = 1.25;

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Bucket([u64; SLOTS]);

const _: () = assert!(size_of::<Bucket>() == BUCKET_LEN);

impl Bucket {
    const EMPTY: Self = Self([0; SLOTS]);

    fn is_full(&self) -> bool {
        self.0[SLOTS - 1] != 0
    }

    fn push(&mut self, slot: u64) {
        let free = self.0.iter().position(|slot| *slot == 0);
        self.0[free.expect("the caller saw that the bucket is not full")] = slot;
    }

    fn take(&mut self, at: usize) -> u64 {
        let last = self.0.iter().rposition(|slot| *slot != 0);
        let last = last.expect("the caller found a slot in the bucket");
        let taken = self.0[at];
        self.0[at] = self.0[last];
        self.0[last] = 0;
        taken
    }
}

/// Zero is an empty slot, so the pack number is stored plus one.
pub(super) const fn slot(fingerprint: u32, pack: PackNumber) -> u64 {
    (fingerprint as u64) << 32 | (pack.0 as u64 + 1)
}

const fn fingerprint_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

const fn pack_of(slot: u64) -> PackNumber {
    PackNumber((slot as u32).wrapping_sub(1))
}

#[derive(Debug)]
pub(super) struct Shard {
    buckets: Vec<Bucket>,
    len: usize,
    /// Sets this shard's sizes apart from the others', so that they do not all grow at once.
    phase: u8,
}

impl Shard {
    pub(super) fn new(phase: u8) -> Self {
        Self {
            buckets: vec![Bucket::EMPTY],
            len: 0,
            phase,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.buckets.len() * BUCKET_LEN) as u64
    }

    /// Smallest size in buckets of this shard's series that holds `len` slots.
    pub(super) fn buckets_for(&self, len: usize) -> usize {
        let needed = (len * 10).div_ceil(SLOTS * 8);
        let mut size = GROWTH.powf(f64::from(self.phase) / 256.0);
        while (size as usize) < needed {
            size *= GROWTH;
        }
        (size as usize).max(1)
    }

    /// The size to grow to before one more slot fits, in buckets.
    pub(super) fn growth(&self) -> Option<usize> {
        let fits = (self.len + 1) * 10 <= self.buckets.len() * SLOTS * 8;
        (!fits).then(|| self.buckets_for(self.len + 1))
    }

    /// Lays the slots out anew in that many buckets.
    pub(super) fn resize(&mut self, buckets: usize) {
        let old = std::mem::replace(&mut self.buckets, vec![Bucket::EMPTY; buckets]);
        for slot in old.iter().flat_map(|bucket| bucket.0) {
            if slot != 0 {
                self.place(slot);
            }
        }
    }

    /// A word of the fingerprint's home bucket: reading it brings the cache line in.
    pub(super) fn touch(&self, fingerprint: u32) -> u64 {
        self.buckets[self.home(fingerprint)].0[0]
    }

    pub(super) fn get(&self, fingerprint: u32) -> Option<PackNumber> {
        let mut at = self.home(fingerprint);
        loop {
            let bucket = &self.buckets[at];
            let mut found = 0;
            for slot in bucket.0 {
                let here = fingerprint_of(slot) == fingerprint && slot != 0;
                found = if here { slot } else { found };
            }
            if found != 0 {
                return Some(pack_of(found));
            }
            if !bucket.is_full() {
                return None;
            }
            at = self.next(at);
        }
    }

    /// Adds a slot. The caller made room: see [`growth`](Self::growth).
    pub(super) fn insert(&mut self, slot: u64) {
        self.place(slot);
        self.len += 1;
    }

    /// Replaces one slot that equals `old` by `new` of the same fingerprint.
    pub(super) fn replace(&mut self, old: u64, new: u64) -> bool {
        let Some((bucket, at)) = self.position(old) else {
            return false;
        };
        self.buckets[bucket].0[at] = new;
        true
    }

    /// Removes one slot that equals `slot`.
    pub(super) fn remove(&mut self, slot: u64) -> bool {
        let Some((bucket, at)) = self.position(slot) else {
            return false;
        };
        let was_full = self.buckets[bucket].is_full();
        self.buckets[bucket].take(at);
        self.len -= 1;
        if was_full {
            self.refill(bucket);
        }
        true
    }

    pub(super) fn fingerprints(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots().map(fingerprint_of)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = u64> + '_ {
        let slots = self.buckets.iter().flat_map(|bucket| bucket.0);
        slots.filter(|slot| *slot != 0)
    }

    fn home(&self, fingerprint: u32) -> usize {
        ((u64::from(fingerprint) * self.buckets.len() as u64) >> 32) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() {
            0
        } else {
            at + 1
        }
    }

    fn place(&mut self, slot: u64) {
        let mut at = self.home(fingerprint_of(slot));
        while self.buckets[at].is_full() {
            at = self.next(at);
        }
        self.buckets[at].push(slot);
    }

    fn position(&self, slot: u64) -> Option<(usize, usize)> {
        let mut at = self.home(fingerprint_of(slot));
        loop {
            let bucket = &self.buckets[at];
            if let Some(here) = bucket.0.iter().position(|other| *other == slot) {
                return Some((at, here));
            }
            if !bucket.is_full() {
                return None;
            }
            at = self.next(at);
        }
    }

    /// Moves slots back towards their homes after `hole`, full until now, lost a slot.
    fn refill(&mut self, mut hole: usize) {
        let mut at = self.next(hole);
        while at != hole {
            let was_full = self.buckets[at].is_full();
            let back = self.distance(hole, at);
            let belongs = |slot: &u64| {
                *slot != 0 && self.distance(self.home(fingerprint_of(*slot)), at) >= back
            };
            if let Some(from) = self.buckets[at].0.iter().position(belongs) {
                let slot = self.buckets[at].take(from);
                self.buckets[hole].push(slot);
                hole = at;
            }
            if !was_full {
                return;
            }
            at = self.next(at);
        }
    }

    /// Buckets from `from` forward to `to`, around the end.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.buckets.len() - from
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_shard_is_a_multiset_of_slots(
            steps in proptest::collection::vec((0..40_u32, 0..4_u32, 0..3_u8), 0..600),
            spread in prop_oneof![Just(1_u32), Just(1 << 20), Just(107_000_000)],
            phase: u8,
        ) {
            let mut shard = Shard::new(phase);
            let mut model = BTreeMap::<u64, usize>::new();
            for (fingerprint, pack, action) in steps {
                let slot = slot(fingerprint.wrapping_mul(spread), PackNumber(pack));
                let known = model.get(&slot).copied().unwrap_or(0);
                if action > 0 {
                    if let Some(buckets) = shard.growth() {
                        shard.resize(buckets);
                    }
                    shard.insert(slot);
                    *model.entry(slot).or_default() += 1;
                } else {
                    prop_assert_eq!(shard.remove(slot), known > 0);
                    if known > 0 {
                        model.insert(slot, known - 1);
                    }
                }
                for fingerprint in (0..40).map(|f: u32| f.wrapping_mul(spread)) {
                    let packs: Vec<_> = (0..4)
                        .map(PackNumber)
                        .filter(|pack| model.get(&super::slot(fingerprint, *pack)).is_some_and(|n| *n > 0))
                        .collect();
                    match shard.get(fingerprint) {
                        Some(pack) => prop_assert!(packs.contains(&pack)),
                        None => prop_assert!(packs.is_empty()),
                    }
                }
            }
            let mut slots: Vec<_> = shard.slots().collect();
            slots.sort_unstable();
            let expected: Vec<_> = model
                .into_iter()
                .flat_map(|(slot, count)| std::iter::repeat_n(slot, count))
                .collect();
            prop_assert_eq!(shard.len(), slots.len());
            prop_assert_eq!(slots, expected);
        }
    }
}
