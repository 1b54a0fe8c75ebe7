//! An index that lives in RAM alone: for tests and simulations.

use std::collections::{BTreeSet, HashMap};

use parking_lot::RwLock;
use undercroft_format::id::{ObjectId, PackId};
use undercroft_format::pack::{PackKind, TocEntry};

use super::pack_list::PackList;
use super::{Candidate, ChunkIndex, IndexError, IndexedPack, PackNumber, Place};

/// A [`ChunkIndex`] of maps. `candidates` is exact here.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    packs: PackList,
    places: HashMap<ObjectId, Place>,
    lost: HashMap<PackNumber, BTreeSet<ObjectId>>,
}

impl MemoryIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }
}

impl State {
    fn lose(&mut self, number: PackNumber, id: ObjectId) {
        self.lost.entry(number).or_default().insert(id);
        self.packs.lose(number);
    }
}

impl ChunkIndex for MemoryIndex {
    fn packs(&self) -> Result<Vec<IndexedPack>, IndexError> {
        Ok(self.state.read().packs.all())
    }

    fn pack(&self, number: PackNumber) -> Option<IndexedPack> {
        self.state.read().packs.get(number)
    }

    fn pack_number(&self, id: PackId) -> Option<PackNumber> {
        self.state.read().packs.number(id)
    }

    fn insert_pack(
        &self,
        id: PackId,
        kind: PackKind,
        len: u64,
        entries: &[TocEntry],
    ) -> Result<PackNumber, IndexError> {
        let mut state = self.state.write();
        if let Some(number) = state.packs.number(id) {
            return Ok(number);
        }
        let pack = state.packs.numbered(id, kind, len, entries.len())?;
        state.packs.insert(pack);
        for entry in entries {
            let (id, place) = (entry.info.id, Place::new(pack.number, entry));
            let before = state.places.insert(id, place);
            if let Some(before) = before.filter(|before| before.pack != pack.number) {
                state.lose(before.pack, id);
            }
        }
        Ok(pack.number)
    }

    fn remove_pack(&self, number: PackNumber, entries: &[TocEntry]) -> Result<(), IndexError> {
        let ids: Vec<_> = entries.iter().map(|entry| entry.info.id).collect();
        self.forget(number, &ids)?;
        let mut state = self.state.write();
        state.packs.remove(number);
        state.lost.remove(&number);
        Ok(())
    }

    fn forget(&self, number: PackNumber, ids: &[ObjectId]) -> Result<(), IndexError> {
        let mut state = self.state.write();
        for id in ids {
            if state
                .places
                .get(id)
                .is_some_and(|place| place.pack == number)
            {
                state.places.remove(id);
                state.lose(number, *id);
            }
        }
        Ok(())
    }

    fn entries_of(&self, number: PackNumber) -> Result<Vec<TocEntry>, IndexError> {
        let state = self.state.read();
        let places = state.places.values().filter(|place| place.pack == number);
        let mut entries: Vec<_> = places.map(|place| place.toc_entry()).collect();
        entries.sort_unstable_by_key(|entry| entry.position);
        Ok(entries)
    }

    fn lost(&self, number: PackNumber) -> Result<Vec<ObjectId>, IndexError> {
        let state = self.state.read();
        Ok(state
            .lost
            .get(&number)
            .into_iter()
            .flatten()
            .copied()
            .collect())
    }

    fn losses(&self, number: PackNumber) -> u64 {
        self.state.read().packs.losses(number)
    }

    fn candidates(&self, ids: &[ObjectId], out: &mut Vec<Candidate>) -> Result<(), IndexError> {
        let state = self.state.read();
        let pack = |id| state.places.get(id).map(|place| place.pack);
        out.clear();
        out.extend(
            ids.iter()
                .map(|id| pack(id).map_or(Candidate::Absent, Candidate::In)),
        );
        Ok(())
    }

    fn find(&self, ids: &[ObjectId], out: &mut Vec<Option<Place>>) -> Result<(), IndexError> {
        let state = self.state.read();
        out.clear();
        out.extend(ids.iter().map(|id| state.places.get(id).copied()));
        Ok(())
    }

    fn len(&self) -> u64 {
        self.state.read().places.len() as u64
    }

    fn memory_bytes(&self) -> u64 {
        let state = self.state.read();
        let entry_len = size_of::<(ObjectId, Place)>() as u64;
        state.places.capacity() as u64 * entry_len + state.packs.memory_bytes()
    }

    fn disk_bytes(&self) -> Result<u64, IndexError> {
        Ok(0)
    }

    fn flush(&self) -> Result<(), IndexError> {
        Ok(())
    }

    fn shutdown(&self) -> Result<(), IndexError> {
        Ok(())
    }
}
