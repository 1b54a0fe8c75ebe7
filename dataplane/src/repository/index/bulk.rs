//! Making an index from packs' tables of contents, in bulk.
//!
//! Entries are dealt out by the first bits of their ids into partitions, on disk once they outgrow their
//! buffers. Ids are hashes, so the partitions come out even. Then each is sorted in RAM and written, in
//! order, to RocksDB table files that do not overlap: RocksDB takes them over as they are, and the index
//! is born compacted.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use rocksdb::{Cache, Options, SstFileWriter};
use undercroft_format::id::{ObjectId, PackId};
use undercroft_format::pack::{PackKind, TocEntry};

use super::error::{AtDir, IndexError};
use super::pack_list::PackList;
use super::ram_table::{Change, RamTable};
use super::record::{PLACE_LEN, State, decode_place, encode_place};
use super::rocks::{RocksIndex, is_empty};
use super::rocks_options::{self, IndexOptions, TABLE_FILE_LEN};
use super::rocks_store::{Access, Store};
use super::{IndexedPack, Place};
use crate::io::create_private_dir;

/// Partitions go by the id's first 10 bits.
const PARTITIONS: usize = 1 << PARTITION_BITS;
const PARTITION_BITS: u32 = 10;
/// An id and its encoded place.
const RECORD_LEN: usize = ObjectId::LEN + PLACE_LEN;
/// Bytes that a partition keeps in RAM: 24 MiB in all.
const BUFFER_LEN: usize = 512 * RECORD_LEN;
/// Bytes that an entry takes in a table file, roughly.
const TABLE_BYTES_PER_ENTRY: u64 = 58;
/// Packs recorded by one write.
const PACKS_PER_BATCH: usize = 10_000;
/// Replaced records told by one write.
const LOST_PER_BATCH: usize = 10_000;
/// Where table files are made, inside the index's directory so that they can move.
const WORK_DIR: &str = "build";

type Record = [u8; RECORD_LEN];

/// A sealed pack, as its footer and its table of contents say.
#[derive(Clone, Debug)]
pub struct PackContents {
    /// Its name.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// Bytes of the pack file.
    pub len: u64,
    /// Its table of contents.
    pub entries: Vec<TocEntry>,
}

impl RocksIndex {
    /// Makes an index of these packs in `dir`, which is empty or not there, and opens it.
    ///
    /// Of several entries with one id the last stays, as if the packs had been inserted one after the
    /// other; a pack that comes twice is taken once. A build that is interrupted leaves a directory that
    /// [`open`](Self::open) refuses. What it takes of RAM besides the budget: 24 MiB, and per core the
    /// entries of one partition, 47 bytes each (100 MB at a billion entries). On disk, 47 bytes per entry
    /// for the time being.
    pub fn build(
        dir: &Path,
        packs: impl IntoIterator<Item = PackContents>,
        options: IndexOptions,
    ) -> Result<Self, IndexError> {
        create_private_dir(dir).map_err(dir.io("making directory"))?;
        if !is_empty(dir)? {
            let dir = dir.to_owned();
            return Err(IndexError::NotEmpty { dir });
        }
        let budget = options.budget();
        let store = Store::open(dir, Access::Create, &budget)?;
        let work_dir = dir.join(WORK_DIR);
        create_private_dir(&work_dir).map_err(work_dir.io("making directory"))?;

        let mut list = PackList::default();
        let partitions = deal(&work_dir, packs, &mut list)?;
        let dealt = (0..PARTITIONS)
            .map(|partition| partitions.count(partition))
            .sum();
        let table = RamTable::with_capacity(dealt, budget.table);
        let cache = Cache::new_lru_cache(1 << 20);
        let job = Job {
            partitions: &partitions,
            options: &rocks_options::chunks(&budget, &cache),
            table: &table,
            store: &store,
        };
        let (tables, entries) = job.write_tables(&work_dir)?;
        store.ingest(tables)?;
        drop(partitions);
        fs::remove_dir_all(&work_dir).map_err(work_dir.io("removing directory"))?;

        for packs in list.all().chunks(PACKS_PER_BATCH) {
            let mut batch = store.batch();
            packs.iter().for_each(|pack| batch.put_pack(pack));
            store.write(batch)?;
        }
        store.flush()?;
        let state = State {
            generation: 0,
            next_pack: list.next,
            entries,
        };
        store.finish(options.repository, &state)?;
        Ok(Self::built(dir, options, store, state, list, table))
    }
}

/// The records whose ids begin with the same bits, in the order in which they came.
#[derive(Default)]
struct Partition {
    /// Where full buffers stand in the spill file.
    spilled: Vec<u64>,
    buffer: Vec<u8>,
}

struct Partitions {
    partitions: Vec<Partition>,
    spill: File,
    spill_path: PathBuf,
    spill_len: u64,
}

fn deal(
    work_dir: &Path,
    packs: impl IntoIterator<Item = PackContents>,
    list: &mut PackList,
) -> Result<Partitions, IndexError> {
    let mut partitions = Partitions::new(work_dir)?;
    for contents in packs {
        if list.number(contents.id).is_some() {
            continue;
        }
        let PackContents {
            id,
            kind,
            len,
            entries,
        } = contents;
        let pack: IndexedPack = list.numbered(id, kind, len, entries.len())?;
        list.insert(pack);
        for entry in &entries {
            partitions.push(&Place::new(pack.number, entry))?;
        }
    }
    Ok(partitions)
}

impl Partitions {
    fn new(work_dir: &Path) -> Result<Self, IndexError> {
        let spill_path = work_dir.join("spill");
        let mut create = File::options();
        create.read(true).write(true).create_new(true);
        let spill = create.open(&spill_path).map_err(spill_path.io("making"))?;
        let mut partitions = Vec::new();
        partitions.resize_with(PARTITIONS, Partition::default);
        Ok(Self {
            partitions,
            spill,
            spill_path,
            spill_len: 0,
        })
    }

    fn push(&mut self, place: &Place) -> Result<(), IndexError> {
        let id = place.info.id.as_bytes();
        let first = u32::from_be_bytes([id[0], id[1], id[2], id[3]]);
        let partition = &mut self.partitions[(first >> (32 - PARTITION_BITS)) as usize];
        partition.buffer.extend_from_slice(id);
        partition.buffer.extend_from_slice(&encode_place(place));
        if partition.buffer.len() == BUFFER_LEN {
            let written = self.spill.write_all_at(&partition.buffer, self.spill_len);
            written.map_err(self.spill_path.io("writing entries to"))?;
            partition.spilled.push(self.spill_len);
            partition.buffer.clear();
            self.spill_len += BUFFER_LEN as u64;
        }
        Ok(())
    }

    fn count(&self, partition: usize) -> u64 {
        let partition = &self.partitions[partition];
        (partition.spilled.len() * (BUFFER_LEN / RECORD_LEN) + partition.buffer.len() / RECORD_LEN)
            as u64
    }

    /// The partition's records by id, one per id, the newest, and those that newer ones in other packs
    /// replace.
    fn sorted(&self, partition: usize) -> Result<Sorted, IndexError> {
        let count = self.count(partition) as usize;
        let partition = &self.partitions[partition];
        let mut bytes = vec![0; count * RECORD_LEN];
        for (piece, position) in bytes.chunks_mut(BUFFER_LEN).zip(&partition.spilled) {
            let read = self.spill.read_exact_at(piece, *position);
            read.map_err(self.spill_path.io("reading entries from"))?;
        }
        let spilled_len = partition.spilled.len() * BUFFER_LEN;
        bytes[spilled_len..].copy_from_slice(&partition.buffer);

        let records = bytes.as_chunks_mut::<RECORD_LEN>().0;
        records.sort_by(|a, b| a[..ObjectId::LEN].cmp(&b[..ObjectId::LEN]));
        let same_id = |a: &Record, b: &Record| a[..ObjectId::LEN] == b[..ObjectId::LEN];
        // The sort is stable: the last of a run is the newest.
        let mut sorted = Sorted::default();
        sorted.newest.reserve(count);
        for run in records.chunk_by(same_id) {
            let (newest, older) = run.split_last().expect("a run is not empty");
            sorted.newest.push(*newest);
            let replaced = older
                .iter()
                .filter(|older| pack_of(older) != pack_of(newest));
            sorted.replaced.extend(replaced);
        }
        Ok(sorted)
    }

    /// Consecutive partitions that fill a table file together.
    fn table_files(&self) -> Vec<std::ops::Range<usize>> {
        let mut files = Vec::new();
        let (mut start, mut count) = (0, 0);
        for partition in 0..PARTITIONS {
            count += self.count(partition);
            let full = count * TABLE_BYTES_PER_ENTRY >= TABLE_FILE_LEN;
            if count > 0 && (full || partition + 1 == PARTITIONS) {
                files.push(start..partition + 1);
                (start, count) = (partition + 1, 0);
            }
        }
        files
    }
}

#[derive(Default)]
struct Sorted {
    newest: Vec<Record>,
    replaced: Vec<Record>,
}

fn pack_of(record: &Record) -> [u8; 4] {
    let [a, b, c, d, ..] = record[ObjectId::LEN..] else {
        unreachable!("a place begins with its pack number")
    };
    [a, b, c, d]
}

struct Job<'a> {
    partitions: &'a Partitions,
    options: &'a Options,
    table: &'a RamTable,
    store: &'a Store,
}

impl Job<'_> {
    /// Writes all table files, on all cores. Returns them, and the number of their entries.
    fn write_tables(&self, work_dir: &Path) -> Result<(Vec<PathBuf>, u64), IndexError> {
        let files = self.partitions.table_files();
        let written = files.into_par_iter().map(|partitions| {
            let path = work_dir.join(format!("{:04}.sst", partitions.start));
            let entries = self.write_table(&path, partitions)?;
            Ok((path, entries))
        });
        let written: Vec<_> = written.collect::<Result<_, IndexError>>()?;
        let entries = written.iter().map(|(_, entries)| entries).sum();
        Ok((written.into_iter().map(|(path, _)| path).collect(), entries))
    }

    fn write_table(
        &self,
        path: &Path,
        partitions: std::ops::Range<usize>,
    ) -> Result<u64, IndexError> {
        let failed = || path.rocks("writing a sorted table");
        let mut writer = SstFileWriter::create(self.options);
        writer.open(path).map_err(failed())?;
        let mut entries = 0;
        for partition in partitions {
            let Sorted { newest, replaced } = self.partitions.sorted(partition)?;
            for record in &newest {
                let (id, place) = record.split_at(ObjectId::LEN);
                writer.put(id, place).map_err(failed())?;
            }
            self.table.apply(newest.iter().map(insertion));
            entries += newest.len() as u64;
            self.write_lost(&replaced)?;
        }
        writer.finish().map_err(failed())?;
        Ok(entries)
    }

    fn write_lost(&self, replaced: &[Record]) -> Result<(), IndexError> {
        for replaced in replaced.chunks(LOST_PER_BATCH) {
            let mut batch = self.store.batch();
            for record in replaced {
                let place = decode_record(record);
                batch.put_lost(place.pack, &place.info.id);
            }
            self.store.write(batch)?;
        }
        Ok(())
    }
}

fn insertion(record: &Record) -> Change {
    let place = decode_record(record);
    Change::Insert {
        id: place.info.id,
        pack: place.pack,
    }
}

fn decode_record(record: &Record) -> Place {
    let (id, place) = record
        .split_first_chunk()
        .expect("a record is longer than an id");
    decode_place(ObjectId::from_bytes(*id), place).expect("encoded by this build")
}
