//! The RAM table at rest, so that an index opens without a scan.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic: `UCTABL` 00 01 of slots, `UCFILT` 00 01 of a filter, the last byte is the version |
//! | 8 | 8 | generation of the index that it belongs to |
//! | 16 | 8 | entries; of a filter, ids ever added |
//! | 24 | | slots: 256 shards: number of slots (4), slots (8 each) |
//! | 24 | | filter: 256 shards: blocks (64 each), of all shards equally many |
//! | | 8 | XXH3-64 of all before |
//!
//! A slot is the pack number plus one (4) and the fingerprint (4); a block is eight words of bits (8 each). The file is a cache of a cache: when
//! anything about it is off, the table is made from RocksDB.

use std::io::{self, Read, Write};

use undercroft_format::codec::{DecodeError, Problem, Reader};
use xxhash_rust::xxh3::Xxh3;

use super::ram_filter::{BLOCK_LEN, Block, Filter};
use super::ram_table::{Content, RamTable, SHARDS, Shards, slots_cap};

const MAGIC: &[u8; 8] = b"UCTABL\0\x01";
const FILTER_MAGIC: &[u8; 8] = b"UCFILT\0\x01";
const HEADER_LEN: usize = 24;
const SLOT_LEN: usize = 8;
const SUM_LEN: usize = 8;
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
    /// It is a filter that another would better serve than: most of what was added is gone, or all of it
    /// fits a table again, or it is of another size.
    #[error("the stored filter of {added} ids is outdated for {entries} entries")]
    Outdated {
        /// Ids that were added.
        added: u64,
        /// Entries of the index.
        entries: u64,
    },
}

struct Hashed<T> {
    inner: T,
    hash: Xxh3,
}

impl<W: Write> Hashed<W> {
    fn writing(inner: W) -> Self {
        let hash = Xxh3::new();
        Self { inner, hash }
    }

    fn write_header(&mut self, magic: &[u8; 8], generation: u64, entries: u64) -> io::Result<()> {
        self.write(magic)?;
        self.write(&generation.to_le_bytes())?;
        self.write(&entries.to_le_bytes())
    }

    fn finish(mut self) -> io::Result<()> {
        let sum = self.hash.digest();
        self.write(&sum.to_le_bytes())?;
        self.inner.flush()
    }

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

    fn check_sum(mut self) -> Result<(), LoadTableError> {
        let expected = self.hash.digest();
        let mut sum = [0; SUM_LEN];
        self.read(&mut sum)?;
        if u64::from_le_bytes(sum) != expected {
            let error = Reader::new("stored table", &[]).error(Problem::Checksum);
            return Err(error.into());
        }
        Ok(())
    }
}

impl RamTable {
    /// Writes the table. False, and nothing written, when it knows nothing.
    pub fn save(&self, generation: u64, out: impl Write) -> io::Result<bool> {
        self.with_content(|content| match content {
            Content::Slots(table) => table.save(generation, out).map(|()| true),
            Content::Filter(filter) => filter.save(generation, out).map(|()| true),
            Content::Nothing => Ok(false),
        })
    }

    /// Reads a table of `file_len` bytes that [`save`](Self::save) wrote at that generation, for an index
    /// of so many entries.
    pub fn load(
        input: impl Read,
        file_len: u64,
        generation: u64,
        entries: u64,
        cap_bytes: u64,
    ) -> Result<Self, LoadTableError> {
        let mut input = Hashed {
            inner: input,
            hash: Xxh3::new(),
        };
        let header = Header::read(&mut input, file_len, generation)?;
        let content = if header.is_filter {
            let filter = Filter::load(&mut input, &header, entries, cap_bytes)?;
            Content::Filter(filter)
        } else if header.entries == entries {
            Content::Slots(Shards::load(&mut input, entries, slots_cap(cap_bytes))?)
        } else {
            return Err(invalid("number of entries").into());
        };
        input.check_sum()?;
        Ok(Self::of(content, cap_bytes))
    }
}

impl Filter {
    fn save(&self, generation: u64, out: impl Write) -> io::Result<()> {
        let mut out = Hashed::writing(out);
        out.write_header(FILTER_MAGIC, generation, self.added)?;
        let mut piece = Vec::with_capacity(PIECE * SLOT_LEN);
        for blocks in self
            .shards()
            .iter()
            .flat_map(|shard| shard.chunks(PIECE / 8))
        {
            piece.clear();
            let words = blocks.iter().flat_map(|block| block.0);
            words.for_each(|word| piece.extend_from_slice(&word.to_le_bytes()));
            out.write(&piece)?;
        }
        out.finish()
    }

    fn load(
        input: &mut Hashed<impl Read>,
        header: &Header,
        entries: u64,
        cap_bytes: u64,
    ) -> Result<Self, LoadTableError> {
        let added = header.entries;
        let shard_bytes = Self::shard_bytes(cap_bytes);
        let useless = added / 2 > entries || RamTable::fits(entries.saturating_mul(2), cap_bytes);
        if useless || shard_bytes == 0 || header.body_len != shard_bytes * SHARDS as u64 {
            return Err(LoadTableError::Outdated { added, entries });
        }
        let mut shards = vec![Vec::new(); SHARDS];
        let mut piece = [0; PIECE * SLOT_LEN];
        for shard in &mut shards {
            shard.reserve_exact(shard_bytes as usize / BLOCK_LEN);
            let mut left = shard_bytes as usize;
            while left > 0 {
                let piece = &mut piece[..left.min(PIECE * SLOT_LEN)];
                input.read(piece)?;
                let words = piece.as_chunks::<SLOT_LEN>().0;
                let blocks = words.as_chunks().0.iter();
                shard.extend(blocks.map(|words| Block(words.map(u64::from_le_bytes))));
                left -= piece.len();
            }
        }
        Ok(Self::of_blocks(shards, added))
    }
}

impl Shards {
    fn save(&self, generation: u64, out: impl Write) -> io::Result<()> {
        let mut out = Hashed::writing(out);
        out.write_header(MAGIC, generation, self.len)?;
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
        out.finish()
    }

    fn load(
        input: &mut Hashed<impl Read>,
        entries: u64,
        cap_bytes: u64,
    ) -> Result<Self, LoadTableError> {
        let mut table = Self::new();
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
            table.load_slots(input, shard, count as usize)?;
        }
        if table.len == entries {
            Ok(table)
        } else {
            Err(invalid("number of slots").into())
        }
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

struct Header {
    is_filter: bool,
    entries: u64,
    /// Bytes between the header and the checksum.
    body_len: u64,
}

impl Header {
    fn read(
        input: &mut Hashed<impl Read>,
        file_len: u64,
        expected: u64,
    ) -> Result<Self, LoadTableError> {
        let mut header = [0; HEADER_LEN];
        input.read(&mut header)?;
        let is_filter = header.starts_with(FILTER_MAGIC);
        let mut reader = Reader::new("stored table", &header);
        reader.magic(if is_filter { FILTER_MAGIC } else { MAGIC })?;
        let found = reader.u64()?;
        if found != expected {
            return Err(LoadTableError::Generation { found, expected });
        }
        let entries = reader.u64()?;
        let body_len = file_len.saturating_sub((HEADER_LEN + SUM_LEN) as u64);
        let slots_len = entries.checked_mul(SLOT_LEN as u64);
        let slots_len = slots_len.and_then(|len| len.checked_add(4 * SHARDS as u64));
        if !is_filter && slots_len != Some(body_len) {
            return Err(invalid("number of entries").into());
        }
        Ok(Self {
            is_filter,
            entries,
            body_len,
        })
    }
}

fn invalid(field: &'static str) -> DecodeError {
    Reader::new("stored table", &[]).error(Problem::Invalid(field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use undercroft_format::id::ObjectId;

    use super::*;
    use crate::repository::index::{Change, Knowledge, PackNumber};

    const AMPLE: u64 = 1 << 30;
    /// Room for a filter of two blocks per shard, and for no table of 300 entries or more.
    const SCANT: u64 = 34 << 10;

    fn table(count: u64, cap_bytes: u64) -> (RamTable, Vec<ObjectId>) {
        let ids: Vec<_> = (0..count)
            .map(|i| ObjectId::from_bytes(*blake3::hash(&i.to_le_bytes()).as_bytes()))
            .collect();
        let table = RamTable::with_capacity(count, cap_bytes);
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

    fn load(
        bytes: &[u8],
        generation: u64,
        entries: u64,
        cap: u64,
    ) -> Result<RamTable, LoadTableError> {
        RamTable::load(bytes, bytes.len() as u64, generation, entries, cap)
    }

    #[test]
    fn a_stored_table_or_filter_answers_as_before() {
        for (cap, knowledge) in [(AMPLE, Knowledge::Packs), (SCANT, Knowledge::Absence)] {
            let (table, ids) = table(20_000, cap);
            assert_eq!(table.knowledge(), knowledge);
            let loaded = load(&saved(&table), 7, 20_000, cap).expect("loads");
            let (mut before, mut after) = (Vec::new(), Vec::new());
            table.candidates(&ids, &mut before);
            loaded.candidates(&ids, &mut after);
            assert_eq!(before, after);
            assert_eq!(loaded.knowledge(), knowledge);
            assert_eq!(loaded.len(), table.len());
            assert!(loaded.memory_bytes() <= table.memory_bytes());
        }
    }

    #[test]
    fn a_table_of_another_generation_size_or_over_the_cap_is_refused() {
        let bytes = saved(&table(10_000, AMPLE).0);
        assert!(matches!(
            load(&bytes, 8, 10_000, AMPLE),
            Err(LoadTableError::Generation { .. })
        ));
        assert!(matches!(
            load(&bytes, 7, 10_000, 50_000),
            Err(LoadTableError::OverCap { .. })
        ));
        assert!(load(&bytes, 7, 10_001, AMPLE).is_err());
    }

    #[test]
    fn a_filter_is_refused_when_another_would_do_better() {
        let bytes = saved(&table(10_000, SCANT).0);
        assert!(load(&bytes, 7, 5_000, SCANT).is_ok());
        for (entries, cap) in [(4_999, SCANT), (10_000, SCANT * 2), (10_000, AMPLE)] {
            let loaded = load(&bytes, 7, entries, cap);
            assert!(
                matches!(loaded, Err(LoadTableError::Outdated { .. })),
                "{loaded:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_a_stored_table_is_found(
            cap in prop_oneof![Just(AMPLE), Just(SCANT)], place: prop::sample::Index, bit in 0..8_u8,
        ) {
            let mut bytes = saved(&table(1000, cap).0);
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            prop_assert!(load(&bytes, 7, 1000, cap).is_err());
        }
    }
}
