//! A set of object ids in eight bytes each, for walks over all chunks of a repository.
//!
//! Only the first 63 bits of an id are kept. Ids are hashes, so that two of n ids agree there with a
//! probability of n^2 / 2^64. Who uses the set must be safe against that: a collection that takes a
//! dead object for a live one keeps a few kilobytes of garbage; a scrub that takes a missing one for a
//! present one is mistaken about one object in 10^19 / n.

use undercroft_format::id::ObjectId;

/// A set of ids by their first 63 bits. The last bit of a slot says whether the id was met again.
#[derive(Debug)]
pub struct Fingerprints {
    slots: Vec<u64>,
    used: usize,
}

/// What a set says of an id that it is asked about once per place where the id stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Not in the set.
    Absent,
    /// In the set, and asked about for the first time.
    First,
    /// In the set, and asked about before.
    Again,
}

/// Set in a slot whose id was asked about.
const SEEN: u64 = 1;

/// Slots filled before the table grows: beyond this, probing gets long.
const LOAD_MAX_PERCENT: usize = 85;

impl Fingerprints {
    /// A set that takes `expected` ids without growing.
    pub fn with_capacity(expected: usize) -> Self {
        Self {
            slots: vec![0; (expected * 100 / LOAD_MAX_PERCENT + 16).max(64)],
            used: 0,
        }
    }

    /// Bytes of memory that a set for `expected` ids takes.
    pub fn memory_for(expected: u64) -> u64 {
        expected * 8 * 100 / LOAD_MAX_PERCENT as u64
    }

    /// Ids in the set.
    pub fn len(&self) -> usize {
        self.used
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an id; false if it was there.
    pub fn insert(&mut self, id: &ObjectId) -> bool {
        if (self.used + 1) * 100 > self.slots.len() * LOAD_MAX_PERCENT {
            self.grow();
        }
        let fingerprint = fingerprint(id);
        let place = self.place(fingerprint);
        if self.slots[place] != 0 {
            return false;
        }
        self.slots[place] = fingerprint;
        self.used += 1;
        true
    }

    /// True if the id is in the set, or one that agrees with it in the first 63 bits.
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.slots[self.place(fingerprint(id))] != 0
    }

    /// Tells whether the id is in the set, and whether this was asked before.
    pub fn sight(&mut self, id: &ObjectId) -> Sight {
        let place = self.place(fingerprint(id));
        let slot = &mut self.slots[place];
        match *slot {
            0 => Sight::Absent,
            seen if seen & SEEN != 0 => Sight::Again,
            _ => {
                *slot |= SEEN;
                Sight::First
            }
        }
    }

    /// The slot where `fingerprint` is or would go. Ids are uniform, so their bits choose the slot; the
    /// first byte has the least say, because a mark of several passes holds few values of it at a time.
    fn place(&self, fingerprint: u64) -> usize {
        let len = self.slots.len();
        let spread = fingerprint.rotate_left(8);
        let mut place = ((u128::from(spread) * len as u128) >> 64) as usize;
        while self.slots[place] != 0 && self.slots[place] & !SEEN != fingerprint {
            place += 1;
            if place == len {
                place = 0;
            }
        }
        place
    }

    fn grow(&mut self) {
        let larger = self.slots.len() + self.slots.len() / 2;
        let old = std::mem::replace(&mut self.slots, vec![0; larger]);
        for slot in old.into_iter().filter(|slot| *slot != 0) {
            let place = self.place(slot & !SEEN);
            self.slots[place] = slot;
        }
    }
}

/// The first 63 bits, above [`SEEN`]; never zero, which stands for an empty slot.
fn fingerprint(id: &ObjectId) -> u64 {
    let bytes = id.as_bytes();
    let first = u64::from_be_bytes([
        bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
    ]);
    (first & !SEEN).max(SEEN << 1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_a_plain_set(seeds in proptest::collection::vec(0..300_u16, 0..600)) {
            let id = |seed: u16| {
                let mut bytes = *blake3::hash(&seed.to_le_bytes()).as_bytes();
                if seed == 7 {
                    bytes = [0; 32];
                }
                ObjectId::from_bytes(bytes)
            };
            let mut set = Fingerprints::with_capacity(3);
            let mut model = HashSet::new();
            for seed in seeds {
                prop_assert_eq!(set.insert(&id(seed)), model.insert(seed));
                prop_assert_eq!(set.len(), model.len());
            }
            for seed in 0..300 {
                let present = model.contains(&seed);
                prop_assert_eq!(set.contains(&id(seed)), present);
                let sights = [set.sight(&id(seed)), set.sight(&id(seed))];
                let expected = [Sight::First, Sight::Again];
                prop_assert_eq!(sights, if present { expected } else { [Sight::Absent; 2] });
                prop_assert_eq!(set.contains(&id(seed)), present);
            }
        }
    }
}
