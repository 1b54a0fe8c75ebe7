//! The RAM table at rest, so that an index opens without a scan.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `UCTABL` 00 01, the last byte is the version |
//! | 8 | 8 | generation of the index that it belongs to |
//! | 16 | 8 | entries |
//! | 24 | | 256 shards: number of slots (4), slots (8 each) |
//! | | 8 | XXH3-64 of all before |
//!
//! A slot is the pack number plus one (4) and the fingerprint (4). The file is a cache of a cache: when
//! anything about it is off, the table is made from RocksDB.

use std::io::{self, Read, Write};

use undercroft_format::codec::{DecodeError, Problem, Reader};
use xxhash_rust::xxh3::Xxh3;

use super::ram_table::{RamTable, SHARDS, Shards};

const MAGIC: &[u8; 8] = b"UCTABL\0\x01";
const HEADER_LEN: usize = 24;
const SLOT_LEN: usize = 8;
/// Slots converted at a time.
const PIECE: usize = 8192;

/// A stored table cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadTableError {
    /// It could not be read.
    #[error("reading the stored table")]
    Io(#[from] io::Error),
    /// It is damaged.
    #[error("decoding the stored table")]
    Invalid(#[from] DecodeError),
    /// It belongs to another state of the index.
    #[error("the stored table is of generation {found}, the index of {expected}")]
    Generation {
        /// Generation found.
        found: u64,
        /// Generation of the index.
        expected: u64,
    },
    /// It would take more RAM than it may.
    #[error("the stored table's {entries} entries do not fit {cap_bytes} bytes of memory")]
    OverCap {
        /// Entries of the table.
        entries: u64,
        /// The cap.
        cap_bytes: u64,
    },
}

struct Hashed<T> {
    inner: T,
    hash: Xxh3,
}

impl<W: Write> Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<R: Read> Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.hash.update(bytes);
        Ok(())
    }
}

impl RamTable {
    /// Writes the table. False, and nothing written, when it overflowed.
    pub fn save(&self, generation: u64, out: impl Write) -> io::Result<bool> {
        self.with_shards(|table| match table {
            Some(table) => table.save(generation, out).map(|()| true),
            None => Ok(false),
        })
    }

    /// Reads a table of `file_len` bytes that [`save`](Self::save) wrote at that generation.
    pub fn load(
        input: impl Read,
        file_len: u64,
        generation: u64,
        cap_bytes: u64,
    ) -> Result<Self, LoadTableError> {
        let mut input = Hashed {
            inner: input,
            hash: Xxh3::new(),
        };
        let entries = read_header(&mut input, file_len, generation)?;
        let mut table = Shards::new();
        for shard in 0..SHARDS {
            let mut count = [0; 4];
            input.read(&mut count)?;
            let count = u64::from(u32::from_le_bytes(count));
            if count > entries - table.len {
                return Err(invalid("number of slots").into());
            }
            let buckets = table.shards[shard].buckets_for(count as usize);
            if !table.make_room(shard, Some(buckets), cap_bytes) {
                return Err(LoadTableError::OverCap { entries, cap_bytes });
            }
            table.load_slots(&mut input, shard, count as usize)?;
        }
        let expected = input.hash.digest();
        let mut sum = [0; 8];
        input.read(&mut sum)?;
        if u64::from_le_bytes(sum) != expected || table.len != entries {
            return Err(Reader::new("stored table", &[])
                .error(Problem::Checksum)
                .into());
        }
        Ok(Self::of_shards(table, cap_bytes))
    }
}

impl Shards {
    fn save(&self, generation: u64, out: impl Write) -> io::Result<()> {
        let mut out = Hashed {
            inner: out,
            hash: Xxh3::new(),
        };
        out.write(MAGIC)?;
        out.write(&generation.to_le_bytes())?;
        out.write(&self.len.to_le_bytes())?;
        let mut piece = Vec::with_capacity(PIECE * SLOT_LEN);
        for shard in &self.shards {
            out.write(&(shard.len() as u32).to_le_bytes())?;
            for slot in shard.slots() {
                piece.extend_from_slice(&slot.to_le_bytes());
                if piece.len() == PIECE * SLOT_LEN {
                    out.write(&piece)?;
                    piece.clear();
                }
            }
            out.write(&piece)?;
            piece.clear();
        }
        let sum = out.hash.digest();
        out.write(&sum.to_le_bytes())?;
        out.inner.flush()
    }

    fn load_slots(
        &mut self,
        input: &mut Hashed<impl Read>,
        shard: usize,
        count: usize,
    ) -> Result<(), LoadTableError> {
        let mut piece = [0; PIECE * SLOT_LEN];
        let mut left = count;
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE) * SLOT_LEN];
            input.read(piece)?;
            for slot in piece.as_chunks::<SLOT_LEN>().0 {
                let slot = u64::from_le_bytes(*slot);
                if slot as u32 == 0 {
                    return Err(invalid("pack number in a slot").into());
                }
                self.shards[shard].insert(slot);
            }
            left -= piece.len() / SLOT_LEN;
        }
        self.len += count as u64;
        Ok(())
    }
}

fn read_header(
    input: &mut Hashed<impl Read>,
    file_len: u64,
    expected: u64,
) -> Result<u64, LoadTableError> {
    let mut header = [0; HEADER_LEN];
    input.read(&mut header)?;
    let mut reader = Reader::new("stored table", &header);
    reader.magic(MAGIC)?;
    let found = reader.u64()?;
    if found != expected {
        return Err(LoadTableError::Generation { found, expected });
    }
    let entries = reader.u64()?;
    let slots_len = entries.checked_mul(SLOT_LEN as u64);
    let fixed_len = (HEADER_LEN + 4 * SHARDS + 8) as u64;
    if slots_len.and_then(|len| len.checked_add(fixed_len)) != Some(file_len) {
        return Err(invalid("number of entries").into());
    }
    Ok(entries)
}

fn invalid(field: &'static str) -> DecodeError {
    Reader::new("stored table", &[]).error(Problem::Invalid(field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use undercroft_format::id::ObjectId;

    use super::*;
    use crate::repository::index::{Change, PackNumber};

    fn table(count: u64) -> (RamTable, Vec<ObjectId>) {
        let ids: Vec<_> = (0..count)
            .map(|i| ObjectId::from_bytes(*blake3::hash(&i.to_le_bytes()).as_bytes()))
            .collect();
        let table = RamTable::new(1 << 30);
        table.apply(ids.iter().map(|id| Change::Insert {
            id: *id,
            pack: PackNumber(id.as_bytes()[31].into()),
        }));
        (table, ids)
    }

    fn saved(table: &RamTable) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(table.save(7, &mut bytes).expect("writing to memory"));
        bytes
    }

    #[test]
    fn a_stored_table_answers_as_before() {
        let (table, ids) = table(20_000);
        let bytes = saved(&table);
        let loaded = RamTable::load(&bytes[..], bytes.len() as u64, 7, 1 << 30).expect("loads");
        let (mut before, mut after) = (Vec::new(), Vec::new());
        assert!(table.candidates(&ids, &mut before) && loaded.candidates(&ids, &mut after));
        assert_eq!(before, after);
        assert_eq!(loaded.len(), 20_000);
        assert!(loaded.memory_bytes() <= table.memory_bytes());
    }

    #[test]
    fn a_table_of_another_generation_or_over_the_cap_is_refused() {
        let bytes = saved(&table(10_000).0);
        let load =
            |generation, cap| RamTable::load(&bytes[..], bytes.len() as u64, generation, cap);
        assert!(matches!(
            load(8, 1 << 30),
            Err(LoadTableError::Generation { .. })
        ));
        assert!(matches!(
            load(7, 50_000),
            Err(LoadTableError::OverCap { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_a_stored_table_is_found(place: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = saved(&table(300).0);
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            prop_assert!(RamTable::load(&bytes[..], bytes.len() as u64, 7, 1 << 30).is_err());
        }
    }
}
