//! RocksDB with our four families in our types. Knows nothing of the RAM table.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rocksdb::{
    Cache, ColumnFamily, DB, ErrorKind, FlushOptions, IteratorMode, ReadOptions, WriteBatch,
    WriteOptions,
};
use undercroft_format::id::{ObjectId, RepositoryId};

use super::error::{AtDir, Damage, IndexError, says_disk_full};
use super::record::{
    self, CHUNKS, LOST, META, PACKS, REPOSITORY_KEY, SCHEMA, SCHEMA_KEY, STATE_KEY,
};
use super::record::{State, decode_pack, decode_place, decode_state, encode_place, encode_state};
use super::rocks_options::{self, Budget};
use super::scratch::ScratchDir;
use super::{IndexedPack, PackNumber, Place};

/// Keys of one call into RocksDB.
const FIND_BATCH: usize = 1024;
/// A scan reads so many bytes at a time.
const SCAN_READ_LEN: usize = 2 << 20;
/// Every RocksDB has it: without it, there is none.
const CURRENT: &str = "CURRENT";

/// How an index is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Owns an index that exists.
    Own,
    /// Owns a new index.
    Create,
    /// Follows an index that another process may own.
    Follow,
}

pub(super) struct Store {
    db: DB,
    dir: PathBuf,
    cache: Cache,
    /// Where a secondary instance keeps its own files. Goes after `db`.
    _scratch: Option<ScratchDir>,
}

impl Store {
    pub(super) fn open(dir: &Path, access: Access, budget: &Budget) -> Result<Self, IndexError> {
        if access != Access::Create && !dir.join(CURRENT).exists() {
            return Err(dir.damaged(Damage::Missing(CURRENT)));
        }
        let cache = Cache::new_lru_cache(match access {
            Access::Own | Access::Create => budget.cache as usize,
            Access::Follow => budget.cache_alone as usize,
        });
        let (db, scratch) = match access {
            Access::Own | Access::Create => (own(dir, access, budget, &cache)?, None),
            Access::Follow => follow(dir, budget, &cache)?,
        };
        Ok(Self {
            db,
            dir: dir.to_owned(),
            cache,
            _scratch: scratch,
        })
    }

    /// Checks that this is a finished index of ours, and of that repository.
    pub(super) fn check(&self, repository: RepositoryId) -> Result<State, IndexError> {
        let damaged = |damage| self.dir.damaged(damage);
        let missing = |key| move || damaged(Damage::Unfinished(key));
        let invalid = |key| damaged(Damage::Record(key));
        let schema = self.meta(SCHEMA_KEY)?.ok_or_else(missing(SCHEMA_KEY))?;
        let schema = schema.try_into().map(u32::from_le_bytes);
        let found = schema.map_err(|_| invalid(SCHEMA_KEY))?;
        if found != SCHEMA {
            let known = SCHEMA;
            return Err(damaged(Damage::Schema { found, known }));
        }
        let found = self
            .meta(REPOSITORY_KEY)?
            .ok_or_else(missing(REPOSITORY_KEY))?;
        let found = found.try_into().map(RepositoryId::from_bytes);
        let found = found.map_err(|_| invalid(REPOSITORY_KEY))?;
        if found != repository {
            let expected = repository;
            return Err(damaged(Damage::Repository { found, expected }));
        }
        let state = self.meta(STATE_KEY)?.ok_or_else(missing(STATE_KEY))?;
        decode_state(&state).map_err(|_| invalid(STATE_KEY))
    }

    /// Whether nothing was ever written: the process that made it died before it wrote the schema.
    pub(super) fn is_blank(&self) -> bool {
        let mut rows = self.db.raw_iterator_cf(self.family(CHUNKS));
        rows.seek_to_first();
        // Tables that a build ingested do not count as writes.
        self.db.latest_sequence_number() == 0 && !rows.valid() && rows.status().is_ok()
    }

    /// Declares the index finished: until then no open accepts it.
    pub(super) fn finish(&self, repository: RepositoryId, state: &State) -> Result<(), IndexError> {
        let meta = self.family(META);
        let mut batch = WriteBatch::default();
        batch.put_cf(meta, SCHEMA_KEY, SCHEMA.to_le_bytes());
        batch.put_cf(meta, REPOSITORY_KEY, repository.as_bytes());
        batch.put_cf(meta, STATE_KEY, encode_state(state));
        let mut options = WriteOptions::default();
        options.set_sync(true);
        let written = self.db.write_opt(batch, &options);
        written.map_err(self.dir.rocks("writing the schema record"))
    }

    /// All packs, by number.
    pub(super) fn packs(&self) -> Result<Vec<IndexedPack>, IndexError> {
        let rows = self.db.iterator_cf(self.family(PACKS), IteratorMode::Start);
        rows.map(|row| {
            let (key, value) = row.map_err(|error| self.dir.damaged(Damage::Rocks(error)))?;
            decode_pack(&key, &value).map_err(|_| self.dir.damaged(Damage::Record("packs")))
        })
        .collect()
    }

    /// The ids that a pack lost, in order.
    pub(super) fn lost(&self, number: PackNumber) -> Result<Vec<ObjectId>, IndexError> {
        let prefix = record::pack_key(number);
        let mut rows = self.db.raw_iterator_cf(self.family(LOST));
        rows.seek(prefix);
        let mut lost = Vec::new();
        while let Some(id) = rows.key().and_then(|key| key.strip_prefix(&prefix)) {
            let bytes = id
                .try_into()
                .map_err(|_| self.dir.damaged(Damage::Key(id.len())))?;
            lost.push(ObjectId::from_bytes(bytes));
            rows.next();
        }
        let read = rows.status();
        read.map_err(|error| self.dir.damaged(Damage::Rocks(error)))?;
        Ok(lost)
    }

    /// The exact places of `ids`, in their order.
    pub(super) fn find(&self, ids: &[ObjectId]) -> Result<Vec<Option<Place>>, IndexError> {
        let chunks = self.family(CHUNKS);
        let mut places = Vec::with_capacity(ids.len());
        for ids in ids.chunks(FIND_BATCH) {
            let keys = ids.iter().map(ObjectId::as_bytes);
            let values = self.db.batched_multi_get_cf(chunks, keys, false);
            for (id, value) in ids.iter().zip(values) {
                let value = value.map_err(self.dir.rocks("finding objects"))?;
                let place = value.map(|value| self.place(*id, &value)).transpose()?;
                places.push(place);
            }
        }
        Ok(places)
    }

    /// Visits all places, by id, past the block cache, until `visit` has enough.
    pub(super) fn each_place(
        &self,
        mut visit: impl FnMut(Place) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_readahead_size(SCAN_READ_LEN);
        let mut rows = self.db.raw_iterator_cf_opt(self.family(CHUNKS), options);
        rows.seek_to_first();
        while let Some((key, value)) = rows.item() {
            let id = key.try_into().map(ObjectId::from_bytes);
            let id = id.map_err(|_| self.dir.damaged(Damage::Key(key.len())))?;
            if visit(self.place(id, value)?).is_break() {
                return Ok(());
            }
            rows.next();
        }
        rows.status()
            .map_err(|error| self.dir.damaged(Damage::Rocks(error)))
    }

    /// Writes a batch: atomic, and safe from a dying process, but not from a power cut until the next
    /// flush.
    pub(super) fn write(&self, batch: Batch<'_>) -> Result<(), IndexError> {
        let written = self.db.write(batch.rows);
        written.map_err(self.dir.rocks("writing a batch of changes"))
    }

    pub(super) fn batch(&self) -> Batch<'_> {
        Batch {
            store: self,
            rows: WriteBatch::default(),
        }
    }

    /// Makes everything written durable.
    pub(super) fn flush(&self) -> Result<(), IndexError> {
        let families = [CHUNKS, PACKS, LOST, META].map(|name| self.family(name));
        let flushed = self.db.flush_cfs_opt(&families, &FlushOptions::default());
        let flushed = flushed.and_then(|()| self.db.flush_wal(true));
        flushed.map_err(self.dir.rocks("flushing"))
    }

    /// Adds finished table files, which move into the index.
    pub(super) fn ingest(&self, tables: Vec<PathBuf>) -> Result<(), IndexError> {
        if tables.is_empty() {
            return Ok(());
        }
        let mut options = rocksdb::IngestExternalFileOptions::default();
        options.set_move_files(true);
        let chunks = self.family(CHUNKS);
        let ingested = self
            .db
            .ingest_external_file_cf_opts(chunks, &options, tables);
        ingested.map_err(self.dir.rocks("ingesting sorted tables"))
    }

    /// Merges everything into the fewest files.
    pub(super) fn compact(&self) {
        let all = (None::<&[u8]>, None::<&[u8]>);
        self.db.compact_range_cf(self.family(CHUNKS), all.0, all.1);
    }

    pub(super) fn set_cache_capacity(&self, bytes: u64) {
        self.cache.clone().set_capacity(bytes as usize);
    }

    /// Cache, memtables and open tables, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let property = |family: &ColumnFamily, name: &str| {
            let value = self.db.property_int_value_cf(family, name);
            value.ok().flatten().unwrap_or(0)
        };
        let families = [CHUNKS, PACKS, LOST, META].map(|name| self.family(name));
        let per_family = families.map(|family| {
            property(family, "rocksdb.cur-size-all-mem-tables")
                + property(family, "rocksdb.estimate-table-readers-mem")
        });
        self.cache.get_usage() as u64 + per_family.iter().sum::<u64>()
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        let value = self.db.get_cf(self.family(META), key);
        value.map_err(|error| self.dir.damaged(Damage::Rocks(error)))
    }

    fn place(&self, id: ObjectId, value: &[u8]) -> Result<Place, IndexError> {
        decode_place(id, value).map_err(|_| self.dir.damaged(Damage::Entry(id)))
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        let family = self.db.cf_handle(name);
        family.expect("opening fails unless all families are there")
    }
}

/// Changes that are written together or not at all.
pub(super) struct Batch<'a> {
    store: &'a Store,
    rows: WriteBatch,
}

impl Batch<'_> {
    pub(super) fn put_place(&mut self, place: &Place) {
        let family = self.store.family(CHUNKS);
        self.rows
            .put_cf(family, place.info.id.as_bytes(), encode_place(place));
    }

    pub(super) fn delete_place(&mut self, id: &ObjectId) {
        self.rows
            .delete_cf(self.store.family(CHUNKS), id.as_bytes());
    }

    pub(super) fn put_pack(&mut self, pack: &IndexedPack) {
        let family = self.store.family(PACKS);
        let key = record::pack_key(pack.number);
        self.rows.put_cf(family, key, record::encode_pack(pack));
    }

    pub(super) fn delete_pack(&mut self, number: PackNumber) {
        let family = self.store.family(PACKS);
        self.rows.delete_cf(family, record::pack_key(number));
    }

    pub(super) fn put_lost(&mut self, number: PackNumber, id: &ObjectId) {
        let family = self.store.family(LOST);
        self.rows.put_cf(family, record::lost_key(number, id), []);
    }

    pub(super) fn delete_lost(&mut self, number: PackNumber, id: &ObjectId) {
        let family = self.store.family(LOST);
        self.rows.delete_cf(family, record::lost_key(number, id));
    }

    pub(super) fn put_state(&mut self, state: &State) {
        let family = self.store.family(META);
        self.rows.put_cf(family, STATE_KEY, encode_state(state));
    }
}

fn own(dir: &Path, access: Access, budget: &Budget, cache: &Cache) -> Result<DB, IndexError> {
    let options = rocks_options::database(access == Access::Create);
    let families = rocks_options::families(budget, cache);
    DB::open_cf_descriptors(&options, dir, families).map_err(|source| {
        let locked = source.kind() == ErrorKind::IOError && source.as_ref().contains("/LOCK: ");
        if locked {
            let dir = dir.to_owned();
            IndexError::Locked { dir, source }
        } else if says_disk_full(&source) {
            dir.rocks("opening")(source)
        } else {
            dir.damaged(Damage::Rocks(source))
        }
    })
}

fn follow(
    dir: &Path,
    budget: &Budget,
    cache: &Cache,
) -> Result<(DB, Option<ScratchDir>), IndexError> {
    let mut options = rocks_options::database(false);
    options.create_missing_column_families(false);
    // The owner may delete any file; one that is open stays readable.
    options.set_max_open_files(-1);
    let scratch = ScratchDir::new().map_err(dir.io("making a temporary directory to read"))?;
    let families = || rocks_options::families(budget, cache);
    match DB::open_cf_descriptors_as_secondary(&options, dir, scratch.path(), families()) {
        Ok(db) => Ok((db, Some(scratch))),
        Err(error) => {
            tracing::warn!(
                index = %dir.display(), %error,
                "cannot follow the index: reading the state it is in now"
            );
            let opened = DB::open_cf_descriptors_read_only(&options, dir, families(), false);
            let db = opened.map_err(|error| dir.damaged(Damage::Rocks(error)))?;
            Ok((db, None))
        }
    }
}
