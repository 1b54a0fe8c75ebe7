//! The packs of an index, in RAM: about 100 bytes each, 2.5 MB per TiB stored in packs of 64 MiB.

use std::collections::{BTreeMap, HashMap};

use undercroft_format::id::PackId;
use undercroft_format::pack::PackKind;

use super::{IndexError, IndexedPack, PackNumber};

/// All packs by number and by id, and the next number to give.
#[derive(Debug, Default)]
pub(super) struct PackList {
    by_number: BTreeMap<PackNumber, IndexedPack>,
    by_id: HashMap<PackId, PackNumber>,
    /// Packs that lost entries since the index was opened, and how often.
    losses: HashMap<PackNumber, u64>,
    /// Numbers below it have been given; it never falls, so that no answer about a removed pack can be
    /// taken for one about a new pack.
    pub(super) next: u32,
}

impl PackList {
    /// Estimate of the RAM that one pack takes in both maps, in bytes.
    const BYTES_PER_PACK: u64 = 100;

    pub(super) fn new(packs: Vec<IndexedPack>, next: u32) -> Self {
        let mut list = Self {
            next,
            ..Self::default()
        };
        packs.into_iter().for_each(|pack| list.insert(pack));
        list
    }

    pub(super) fn get(&self, number: PackNumber) -> Option<IndexedPack> {
        self.by_number.get(&number).copied()
    }

    pub(super) fn number(&self, id: PackId) -> Option<PackNumber> {
        self.by_id.get(&id).copied()
    }

    /// A pack of this list lost entries.
    pub(super) fn lose(&mut self, number: PackNumber) {
        *self.losses.entry(number).or_default() += 1;
    }

    pub(super) fn losses(&self, number: PackNumber) -> u64 {
        self.losses.get(&number).copied().unwrap_or(0)
    }

    pub(super) fn all(&self) -> Vec<IndexedPack> {
        self.by_number.values().copied().collect()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.by_number.len() as u64 * Self::BYTES_PER_PACK
    }

    /// What a new pack would be; [`insert`](Self::insert) makes it so.
    pub(super) fn numbered(
        &self,
        id: PackId,
        kind: PackKind,
        len: u64,
        entries: usize,
    ) -> Result<IndexedPack, IndexError> {
        let number = PackNumber(self.next);
        if number > PackNumber::MAX {
            return Err(IndexError::PackNumbersSpent);
        }
        Ok(IndexedPack {
            number,
            id,
            kind,
            len,
            entries: entries as u32,
        })
    }

    pub(super) fn insert(&mut self, pack: IndexedPack) {
        self.next = self.next.max(pack.number.0 + 1);
        self.by_id.insert(pack.id, pack.number);
        self.by_number.insert(pack.number, pack);
    }

    pub(super) fn remove(&mut self, number: PackNumber) {
        if let Some(pack) = self.by_number.remove(&number) {
            self.by_id.remove(&pack.id);
            self.losses.remove(&number);
        }
    }
}
