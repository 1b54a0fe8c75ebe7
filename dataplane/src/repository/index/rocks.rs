//! The index of a repository: [`RamTable`] above RocksDB.
//!
//! The table and RocksDB hold the same entries, between any two calls of a writer: RocksDB is written
//! first, and what the table needs to know of the old places is asked before. So what the table does not
//! know is not there, and RocksDB is asked only about the rest.
//!
//! One mutex orders the writers. The locks inside are taken in the order: writer, store, packs, table.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use undercroft_format::id::{ObjectId, PackId};
use undercroft_format::pack::{PackKind, TocEntry};

use super::error::{AtDir, Damage};
use super::pack_list::PackList;
use super::ram_table::{Change, RamTable};
use super::record::{STATE_KEY, State};
use super::rocks_options::{Budget, IndexOptions};
use super::rocks_store::{Access, Store};
use super::seal::{Seal, replace_file};
use super::{ChunkIndex, IndexError, IndexedPack, PackNumber, Place};

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
    table: RamTable,
    entries: AtomicU64,
    writer: Mutex<()>,
    generation: u64,
    /// The seal that was broken by opening.
    broken_seal: Seal,
}

impl RocksIndex {
    /// Opens the index in `dir`; makes an empty one if the directory is empty or not there.
    ///
    /// Opening for writing breaks the seal. It is quick after [`shutdown`](ChunkIndex::shutdown); else the
    /// whole index is read once to make the RAM table.
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
        let table = load_table(dir, &store, &state, budget.table)?;
        Self::own(dir, options, store, state, packs, table, broken_seal)
    }

    /// Takes ownership: from here on, a RAM table stored earlier no longer fits.
    pub(super) fn own(
        dir: &Path,
        options: IndexOptions,
        store: Store,
        state: State,
        packs: PackList,
        table: RamTable,
        broken_seal: Seal,
    ) -> Result<Self, IndexError> {
        let generation = state.generation + 1;
        let mut batch = store.batch();
        batch.put_state(&State {
            generation,
            ..state
        });
        store.write(batch)?;
        let stored = dir.join(TABLE_FILE);
        if let Err(error) = fs::remove_file(&stored)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(stored.io("removing the stored table")(error));
        }
        let index = Self {
            generation,
            broken_seal,
            ..Self::new(dir, options, store, state.entries, packs, table)
        };
        index.share_memory(&*index.store()?);
        Ok(index)
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

    /// Whether the RAM table answers; else RocksDB's filters do.
    pub fn has_table(&self) -> bool {
        !self.table.is_overflowed()
    }

    /// The RAM table.
    pub fn table(&self) -> &RamTable {
        &self.table
    }

    fn follow(dir: &Path, options: IndexOptions) -> Result<Self, IndexError> {
        let (store, state, packs) = Self::look(dir, &options)?;
        let table = RamTable::overflowed(0);
        Ok(Self::new(dir, options, store, state.entries, packs, table))
    }

    /// The state that the index is in now, for reading.
    fn look(dir: &Path, options: &IndexOptions) -> Result<(Store, State, PackList), IndexError> {
        let store = Store::open(dir, Access::Follow, &options.budget())?;
        let state = store.check(options.repository)?;
        let packs = PackList::new(store.packs()?, state.next_pack);
        Ok((store, state, packs))
    }

    fn new(
        dir: &Path,
        options: IndexOptions,
        store: Store,
        entries: u64,
        packs: PackList,
        table: RamTable,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            budget: options.budget(),
            options,
            store: RwLock::new(Some(store)),
            packs: RwLock::new(packs),
            table,
            entries: AtomicU64::new(entries),
            writer: Mutex::new(()),
            generation: 0,
            broken_seal: Seal::default(),
        }
    }

    fn break_seal(dir: &Path) -> Result<Seal, IndexError> {
        fs::create_dir_all(dir).map_err(dir.io("making directory"))?;
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

    /// Exact places: RocksDB is asked about what the table may know.
    fn places(&self, store: &Store, ids: &[ObjectId]) -> Result<Vec<Option<Place>>, IndexError> {
        let mut candidates = Vec::new();
        if !self.table.candidates(ids, &mut candidates) {
            return store.find(ids);
        }
        let maybe = ids.iter().zip(&candidates);
        let maybe: Vec<_> = maybe
            .filter_map(|(id, candidate)| candidate.map(|_| *id))
            .collect();
        let mut found = store.find(&maybe)?.into_iter();
        let place = |candidate: &Option<_>| candidate.and_then(|_| found.next().flatten());
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
            batch.delete_pack(number);
        }
        batch.put_state(&self.state(entries, self.packs.read().next));
        store.write(batch)?;
        self.entries.store(entries, Ordering::Release);
        self.table.apply(
            gone.into_iter()
                .map(|id| Change::Remove { id, pack: number }),
        );
        if whole {
            self.packs.write().remove(number);
        }
        Ok(())
    }

    fn state(&self, entries: u64, next_pack: u32) -> State {
        State {
            generation: self.generation,
            next_pack,
            entries,
        }
    }

    /// The block cache takes over the budget of a table that gave up.
    fn share_memory(&self, store: &Store) {
        if self.table.is_overflowed() {
            store.set_cache_capacity(self.budget.cache_alone);
        }
    }

    fn seal(&self) -> Result<(), IndexError> {
        let table = self.dir.join(TABLE_FILE);
        if self.has_table() {
            replace_file(&self.dir, TABLE_FILE, |file| {
                let out = BufWriter::with_capacity(1 << 20, file);
                self.table.save(self.generation, out).map(|_| ())
            })
            .map_err(table.io("writing the RAM table to"))?;
        }
        let sealed = self.broken_seal.renew(&self.dir);
        sealed.map_err(self.dir.io("sealing"))
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
        let pack = self.packs.read().numbered(id, kind, len, entries.len())?;
        let places = newest_by_id(pack.number, entries);
        let ids: Vec<_> = places.iter().map(|place| place.info.id).collect();
        let before = self.places(&store, &ids)?;
        let new = before.iter().filter(|place| place.is_none()).count() as u64;
        let entries = self.len() + new;

        let mut batch = store.batch();
        places.iter().for_each(|place| batch.put_place(place));
        batch.put_pack(&pack);
        batch.put_state(&self.state(entries, pack.number.0 + 1));
        store.write(batch)?;

        self.entries.store(entries, Ordering::Release);
        // Known before any lookup can name it.
        self.packs.write().insert(pack);
        let to = pack.number;
        self.table.apply(
            ids.into_iter()
                .zip(before)
                .map(|(id, before)| match before {
                    Some(place) => Change::Move {
                        id,
                        from: place.pack,
                        to,
                    },
                    None => Change::Insert { id, pack: to },
                }),
        );
        self.share_memory(&store);
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

    fn candidates(
        &self,
        ids: &[ObjectId],
        out: &mut Vec<Option<PackNumber>>,
    ) -> Result<(), IndexError> {
        let store = self.store()?;
        if !self.table.candidates(ids, out) {
            let places = store.find(ids)?;
            out.extend(places.iter().map(|place| place.map(|place| place.pack)));
        }
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
        store + self.table.memory_bytes() + self.packs.read().memory_bytes()
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

fn load_table(
    dir: &Path,
    store: &Store,
    state: &State,
    cap_bytes: u64,
) -> Result<RamTable, IndexError> {
    if let Some(table) = stored_table(&dir.join(TABLE_FILE), state, cap_bytes) {
        return Ok(table);
    }
    let table = RamTable::with_capacity(state.entries, cap_bytes);
    if table.is_overflowed() {
        return Ok(table);
    }
    let mut batch = Vec::with_capacity(SCAN_BATCH);
    store.each_place(|place| {
        batch.push(Change::Insert {
            id: place.info.id,
            pack: place.pack,
        });
        if batch.len() < SCAN_BATCH || table.apply(batch.drain(..)) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    table.apply(batch);
    if !table.is_overflowed() && table.len() != state.entries {
        return Err(dir.damaged(Damage::Record(STATE_KEY)));
    }
    Ok(table)
}

/// The stored table, if it is there and fits. If not, no harm is done.
fn stored_table(path: &Path, state: &State, cap_bytes: u64) -> Option<RamTable> {
    let file = File::open(path).ok()?;
    let file_len = file.metadata().ok()?.len();
    let input = BufReader::with_capacity(1 << 20, file);
    match RamTable::load(input, file_len, state.generation, cap_bytes) {
        Ok(table) if table.len() == state.entries => Some(table),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(table = %path.display(), %error, "making the RAM table by a scan instead");
            None
        }
    }
}
