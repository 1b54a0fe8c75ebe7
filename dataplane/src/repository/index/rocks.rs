//! The index of a repository: [`RamTable`] above RocksDB.
//!
//! The table, once loaded, and RocksDB hold the same entries, between any two calls of a writer: RocksDB is
//! written first, and what the table needs to know of the old places is asked before. So what the table
//! does not know is not there, and RocksDB is asked only about the rest.
//!
//! A stored table belongs to one generation of the index. The first change after opening begins the next
//! one, in the same write: whatever a crash leaves, a stored table of the generation that RocksDB tells is
//! a table of what RocksDB holds.
//!
//! One mutex orders the writers. The locks inside are taken in the order: writer, store, packs, table.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use undercroft_format::id::{ObjectId, PackId};
use undercroft_format::pack::{PackKind, TocEntry};

use super::error::{AtDir, Damage};
use super::pack_list::PackList;
use super::ram_table::{Change, Knowledge, RamTable};
use super::record::{STATE_KEY, State};
use super::rocks_options::{Budget, IndexOptions};
use super::rocks_store::{Access, Store};
use super::seal::{Seal, replace_file};
use super::{Candidate, ChunkIndex, IndexError, IndexedPack, PackNumber, Place};
use crate::io::create_private_dir;

/// The stored RAM table, beside RocksDB's files while the index is closed.
const TABLE_FILE: &str = "ram-table";
/// Entries that a scan puts into the table at a time.
const SCAN_BATCH: usize = 4096;

/// A [`ChunkIndex`] on disk.
pub struct RocksIndex {
    dir: PathBuf,
    options: IndexOptions,
    budget: Budget,
    /// None once shut down.
    store: RwLock<Option<Store>>,
    packs: RwLock<PackList>,
    /// Set when it is first asked for.
    table: OnceLock<RamTable>,
    /// Whether the stored table is that of `table`, as it is now.
    table_is_stored: AtomicBool,
    entries: AtomicU64,
    writer: Mutex<()>,
    /// That of the next change.
    generation: u64,
    /// Whether that generation has begun.
    changed: AtomicBool,
    /// The seal that was broken by opening.
    broken_seal: Seal,
}

impl RocksIndex {
    /// Opens the index in `dir`; makes an empty one if the directory is empty or not there.
    ///
    /// Opening for writing breaks the seal. It is quick; the RAM table is read when the first candidates
    /// are asked for, and made by reading the whole index unless it was left by
    /// [`shutdown`](ChunkIndex::shutdown).
    ///
    /// # Errors
    /// [`IndexError::Locked`] if another process owns it; [`IndexError::Damaged`] for anything that makes
    /// it unusable: [`build`](Self::build) it anew.
    pub fn open(dir: &Path, options: IndexOptions) -> Result<Self, IndexError> {
        if options.read_only {
            return Self::follow(dir, options);
        }
        let broken_seal = Self::break_seal(dir)?;
        let access = if is_empty(dir)? {
            Access::Create
        } else {
            Access::Own
        };
        let budget = options.budget();
        let store = Store::open(dir, access, &budget)?;
        if store.is_blank() {
            store.finish(options.repository, &State::default())?;
        }
        let state = store.check(options.repository)?;
        let packs = PackList::new(store.packs()?, state.next_pack);
        Ok(Self {
            broken_seal,
            ..Self::new(dir, options, store, state, packs)
        })
    }

    /// An index that was built just now, with its table.
    pub(super) fn built(
        dir: &Path,
        options: IndexOptions,
        store: Store,
        state: State,
        packs: PackList,
        table: RamTable,
    ) -> Self {
        let index = Self::new(dir, options, store, state, packs);
        if let Some(store) = index.store.read().as_ref() {
            index.share_memory(store, &table);
        }
        index.table.get_or_init(|| table);
        index
    }

    /// Merges RocksDB's files: fewer bytes on disk, and filters that are asked once. Takes minutes when
    /// the index is large; lookups go on.
    pub fn compact(&self) -> Result<(), IndexError> {
        self.writable()?;
        self.store()?.compact();
        Ok(())
    }

    /// Read-only: sees what the owner wrote since the last time. Takes as long as opening.
    ///
    /// It opens afresh because RocksDB's own way to catch up leaves an old memtable in front of the tables
    /// into which the owner has flushed newer values: seen with RocksDB 11.8.
    pub fn refresh(&self) -> Result<(), IndexError> {
        if !self.options.read_only {
            return Ok(());
        }
        let _writer = self.writer.lock();
        drop(self.store()?);
        let (store, state, packs) = Self::look(&self.dir, &self.options)?;
        *self.store.write() = Some(store);
        *self.packs.write() = packs;
        self.entries.store(state.entries, Ordering::Release);
        Ok(())
    }

    /// The RAM table. The first call loads it, from its file or by a scan.
    pub fn table(&self) -> Result<&RamTable, IndexError> {
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        // No writer may change what is being read.
        let _writer = self.writer.lock();
        let store = self.store()?;
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        if let Some(table) = self.load_stored_table(&store) {
            return Ok(table);
        }
        let table = self.scanned_table(&store)?;
        self.share_memory(&store, &table);
        Ok(self.table.get_or_init(|| table))
    }

    /// Whether the table was asked for yet.
    pub fn has_loaded_table(&self) -> bool {
        self.table.get().is_some()
    }

    /// Whether the table came from its file and has not changed since.
    #[cfg(test)]
    pub(super) fn table_is_as_stored(&self) -> bool {
        self.table_is_stored.load(Ordering::Relaxed)
    }

    fn follow(dir: &Path, options: IndexOptions) -> Result<Self, IndexError> {
        let (store, state, packs) = Self::look(dir, &options)?;
        let index = Self::new(dir, options, store, state, packs);
        index.table.get_or_init(RamTable::nothing);
        Ok(index)
    }

    /// The state that the index is in now, for reading.
    fn look(dir: &Path, options: &IndexOptions) -> Result<(Store, State, PackList), IndexError> {
        let store = Store::open(dir, Access::Follow, &options.budget())?;
        let state = store.check(options.repository)?;
        let packs = PackList::new(store.packs()?, state.next_pack);
        Ok((store, state, packs))
    }

    fn new(dir: &Path, options: IndexOptions, store: Store, state: State, packs: PackList) -> Self {
        Self {
            dir: dir.to_owned(),
            budget: options.budget(),
            options,
            store: RwLock::new(Some(store)),
            packs: RwLock::new(packs),
            table: OnceLock::new(),
            table_is_stored: AtomicBool::new(false),
            entries: AtomicU64::new(state.entries),
            writer: Mutex::new(()),
            generation: state.generation + 1,
            changed: AtomicBool::new(false),
            broken_seal: Seal::default(),
        }
    }

    fn break_seal(dir: &Path) -> Result<Seal, IndexError> {
        create_private_dir(dir).map_err(dir.io("making directory"))?;
        let seal = Seal::read(dir).map_err(dir.io("reading the seal of"))?;
        let changed = seal.glance(dir, TABLE_FILE);
        if let Some(name) = changed.map_err(dir.io("comparing with its seal"))? {
            return Err(dir.damaged(Damage::Changed(name)));
        }
        Seal::remove(dir).map_err(dir.io("breaking the seal of"))?;
        Ok(seal)
    }

    fn store(&self) -> Result<MappedRwLockReadGuard<'_, Store>, IndexError> {
        let open = RwLockReadGuard::try_map(self.store.read(), Option::as_ref);
        open.map_err(|_| IndexError::Closed {
            dir: self.dir.clone(),
        })
    }

    fn writable(&self) -> Result<(), IndexError> {
        if self.options.read_only {
            let dir = self.dir.clone();
            return Err(IndexError::ReadOnly { dir });
        }
        Ok(())
    }

    /// Exact places: RocksDB is asked about what the table, if it is loaded, may know.
    fn places(&self, store: &Store, ids: &[ObjectId]) -> Result<Vec<Option<Place>>, IndexError> {
        let Some(table) = self.table.get() else {
            return store.find(ids);
        };
        let mut candidates = Vec::new();
        table.candidates(ids, &mut candidates);
        let maybe = ids.iter().zip(&candidates);
        let maybe = maybe.filter(|(_, candidate)| **candidate != Candidate::Absent);
        let maybe: Vec<_> = maybe.map(|(id, _)| *id).collect();
        let mut found = store.find(&maybe)?.into_iter();
        let place = |candidate: &Candidate| match candidate {
            Candidate::Absent => None,
            Candidate::In(_) | Candidate::Unsure => found.next().flatten(),
        };
        Ok(candidates.iter().map(place).collect())
    }

    /// Deletes those of `ids` that stand in pack `number`, and the pack too if `whole`.
    fn remove(&self, number: PackNumber, ids: &[ObjectId], whole: bool) -> Result<(), IndexError> {
        self.writable()?;
        let _writer = self.writer.lock();
        let store = self.store()?;
        if self.packs.read().get(number).is_none() {
            return Ok(());
        }
        self.load_stored_table(&store);
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let places = self.places(&store, &ids)?;
        let here = places.iter().flatten().filter(|place| place.pack == number);
        let gone: Vec<_> = here.map(|place| place.info.id).collect();
        let entries = self.len() - gone.len() as u64;
        let mut batch = store.batch();
        gone.iter().for_each(|id| batch.delete_place(id));
        if whole {
            let lost = store.lost(number)?;
            lost.iter().for_each(|id| batch.delete_lost(number, id));
            batch.delete_pack(number);
        } else {
            gone.iter().for_each(|id| batch.put_lost(number, id));
        }
        batch.put_state(&self.state(entries, self.packs.read().next));
        store.write(batch)?;
        self.entries.store(entries, Ordering::Release);
        let mut packs = self.packs.write();
        if whole {
            packs.remove(number);
        } else {
            packs.lose(number);
        }
        drop(packs);
        let gone = gone.into_iter();
        self.follow_changes(&store, gone.map(|id| Change::Remove { id, pack: number }));
        Ok(())
    }

    /// Brings the table up to date with what was just written.
    fn follow_changes(&self, store: &Store, changes: impl Iterator<Item = Change>) {
        self.changed.store(true, Ordering::Relaxed);
        self.table_is_stored.store(false, Ordering::Relaxed);
        if let Some(table) = self.table.get() {
            table.apply(changes);
            self.share_memory(store, table);
        }
    }

    fn state(&self, entries: u64, next_pack: u32) -> State {
        State {
            generation: self.generation,
            next_pack,
            entries,
        }
    }

    /// The block cache takes over the budget of a table that knows nothing.
    fn share_memory(&self, store: &Store, table: &RamTable) {
        if table.knowledge() == Knowledge::Nothing {
            store.set_cache_capacity(self.budget.cache_alone);
        }
    }

    /// The generation of what RocksDB holds now.
    fn generation_now(&self) -> u64 {
        let changed = self.changed.load(Ordering::Relaxed);
        self.generation - u64::from(!changed)
    }

    /// Loads the stored table, if it is there and fits, so that changes can be made to it too: else the next
    /// open would have to scan. For writers.
    fn load_stored_table(&self, store: &Store) -> Option<&RamTable> {
        if self.table.get().is_none() && !self.changed.load(Ordering::Relaxed) {
            let table = self.stored_table()?;
            self.table_is_stored.store(true, Ordering::Relaxed);
            self.share_memory(store, &table);
            self.table.get_or_init(|| table);
        }
        self.table.get()
    }

    fn stored_table(&self) -> Option<RamTable> {
        if self.is_empty() {
            return Some(RamTable::new(self.budget.table));
        }
        let path = self.dir.join(TABLE_FILE);
        let file = File::open(&path).ok()?;
        let file_len = file.metadata().ok()?.len();
        let input = BufReader::with_capacity(1 << 20, file);
        let (generation, entries) = (self.generation_now(), self.len());
        match RamTable::load(input, file_len, generation, entries, self.budget.table) {
            Ok(table) => Some(table),
            Err(error) => {
                tracing::warn!(table = %path.display(), %error, "making the RAM table by a scan instead");
                None
            }
        }
    }

    fn scanned_table(&self, store: &Store) -> Result<RamTable, IndexError> {
        let entries = self.len();
        let table = RamTable::with_capacity(entries, self.budget.table);
        if table.knowledge() == Knowledge::Nothing {
            return Ok(table);
        }
        let mut batch = Vec::with_capacity(SCAN_BATCH);
        let mut scanned = 0;
        store.each_place(|place| {
            batch.push(Change::Insert {
                id: place.info.id,
                pack: place.pack,
            });
            scanned += 1;
            if batch.len() == SCAN_BATCH {
                table.apply(batch.drain(..));
            }
            ControlFlow::Continue(())
        })?;
        table.apply(batch);
        if scanned != entries {
            return Err(self.dir.damaged(Damage::Record(STATE_KEY)));
        }
        Ok(table)
    }

    fn seal(&self) -> Result<(), IndexError> {
        self.store_table()?;
        let sealed = self.broken_seal.renew(&self.dir);
        sealed.map_err(self.dir.io("sealing"))
    }

    /// Leaves the table for the next open; a stored one that no longer fits goes.
    fn store_table(&self) -> Result<(), IndexError> {
        let path = self.dir.join(TABLE_FILE);
        let is_stored = self.table_is_stored.load(Ordering::Relaxed);
        match self.table.get() {
            Some(_) if is_stored => Ok(()),
            Some(table) if table.knowledge() != Knowledge::Nothing => {
                let written = replace_file(&self.dir, TABLE_FILE, |file| {
                    let out = BufWriter::with_capacity(1 << 20, file);
                    table.save(self.generation_now(), out).map(|_| ())
                });
                written.map_err(path.io("writing the RAM table to"))
            }
            None if !self.changed.load(Ordering::Relaxed) => Ok(()),
            _ => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(path.io("removing the stored table")(error))
                }
                _ => Ok(()),
            },
        }
    }
}

impl ChunkIndex for RocksIndex {
    fn packs(&self) -> Result<Vec<IndexedPack>, IndexError> {
        Ok(self.packs.read().all())
    }

    fn pack(&self, number: PackNumber) -> Option<IndexedPack> {
        self.packs.read().get(number)
    }

    fn pack_number(&self, id: PackId) -> Option<PackNumber> {
        self.packs.read().number(id)
    }

    fn insert_pack(
        &self,
        id: PackId,
        kind: PackKind,
        len: u64,
        entries: &[TocEntry],
    ) -> Result<PackNumber, IndexError> {
        self.writable()?;
        let _writer = self.writer.lock();
        let store = self.store()?;
        if let Some(number) = self.packs.read().number(id) {
            return Ok(number);
        }
        self.load_stored_table(&store);
        let pack = self.packs.read().numbered(id, kind, len, entries.len())?;
        let places = newest_by_id(pack.number, entries);
        let ids: Vec<_> = places.iter().map(|place| place.info.id).collect();
        let before = self.places(&store, &ids)?;
        let new = before.iter().filter(|place| place.is_none()).count() as u64;
        let entries = self.len() + new;

        let mut batch = store.batch();
        places.iter().for_each(|place| batch.put_place(place));
        for place in before.iter().flatten() {
            batch.put_lost(place.pack, &place.info.id);
        }
        batch.put_pack(&pack);
        batch.put_state(&self.state(entries, pack.number.0 + 1));
        store.write(batch)?;

        self.entries.store(entries, Ordering::Release);
        // Known before any lookup can name it.
        let mut packs = self.packs.write();
        packs.insert(pack);
        before
            .iter()
            .flatten()
            .for_each(|place| packs.lose(place.pack));
        drop(packs);
        let to = pack.number;
        let change = |(id, before): (_, Option<Place>)| match before {
            Some(place) => Change::Move {
                id,
                from: place.pack,
                to,
            },
            None => Change::Insert { id, pack: to },
        };
        self.follow_changes(&store, ids.into_iter().zip(before).map(change));
        Ok(pack.number)
    }

    fn remove_pack(&self, number: PackNumber, entries: &[TocEntry]) -> Result<(), IndexError> {
        let ids: Vec<_> = entries.iter().map(|entry| entry.info.id).collect();
        self.remove(number, &ids, true)
    }

    fn forget(&self, number: PackNumber, ids: &[ObjectId]) -> Result<(), IndexError> {
        self.remove(number, ids, false)
    }

    fn entries_of(&self, number: PackNumber) -> Result<Vec<TocEntry>, IndexError> {
        let store = self.store()?;
        let mut entries = Vec::new();
        store.each_place(|place| {
            if place.pack == number {
                entries.push(place.toc_entry());
            }
            ControlFlow::Continue(())
        })?;
        entries.sort_unstable_by_key(|entry| entry.position);
        Ok(entries)
    }

    fn lost(&self, number: PackNumber) -> Result<Vec<ObjectId>, IndexError> {
        self.store()?.lost(number)
    }

    fn losses(&self, number: PackNumber) -> u64 {
        self.packs.read().losses(number)
    }

    fn candidates(&self, ids: &[ObjectId], out: &mut Vec<Candidate>) -> Result<(), IndexError> {
        drop(self.store()?);
        self.table()?.candidates(ids, out);
        Ok(())
    }

    fn find(&self, ids: &[ObjectId], out: &mut Vec<Option<Place>>) -> Result<(), IndexError> {
        out.clear();
        let store = self.store()?;
        *out = self.places(&store, ids)?;
        Ok(())
    }

    fn len(&self) -> u64 {
        self.entries.load(Ordering::Acquire)
    }

    fn memory_bytes(&self) -> u64 {
        let store = self.store().map_or(0, |store| store.memory_bytes());
        let table = self.table.get().map_or(0, RamTable::memory_bytes);
        store + table + self.packs.read().memory_bytes()
    }

    fn disk_bytes(&self) -> Result<u64, IndexError> {
        let bytes = || {
            let mut bytes = 0;
            for entry in fs::read_dir(&self.dir)? {
                match entry?.metadata() {
                    Ok(metadata) => bytes += metadata.len(),
                    // RocksDB deletes files when it likes.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(bytes)
        };
        bytes().map_err(self.dir.io("measuring"))
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.writable()?;
        self.store()?.flush()
    }

    fn shutdown(&self) -> Result<(), IndexError> {
        let _writer = self.writer.lock();
        if !self.options.read_only
            && let Some(store) = self.store.read().as_ref()
        {
            store.flush()?;
        }
        let store = self.store.write().take();
        let was_open = store.is_some();
        drop(store);
        if was_open && !self.options.read_only {
            self.seal()?;
        }
        Ok(())
    }
}

impl fmt::Debug for RocksIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksIndex")
            .field("dir", &self.dir)
            .field("options", &self.options)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

pub(super) fn is_empty(dir: &Path) -> Result<bool, IndexError> {
    let mut entries = fs::read_dir(dir).map_err(dir.io("listing"))?;
    Ok(entries.next().is_none())
}

/// One place per id, by id; of several entries with one id, the last.
fn newest_by_id(pack: PackNumber, entries: &[TocEntry]) -> Vec<Place> {
    let mut places: Vec<_> = entries
        .iter()
        .map(|entry| Place::new(pack, entry))
        .collect();
    places.sort_by_key(|place| place.info.id);
    // Keeps the first of a run: put the last there.
    places.dedup_by(|next, kept| {
        let same = next.info.id == kept.info.id;
        if same {
            *kept = *next;
        }
        same
    });
    places
}
