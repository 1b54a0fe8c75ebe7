//! The block allocation table: which blocks of a disk are in the file, and where.
//!
//! An entry of the table is the sector where a block's bitmap begins, all ones if the block is not there. What is kept in
//! memory is the blocks that are there, 8 bytes each.

use super::SECTOR_LEN;
use super::error::{Part, Problem, VhdError};
use super::header::{BlockSize, DynamicHeader};
use crate::units::{DiskLength, DiskRange};

/// The entry of a block that is not there.
pub const UNUSED: u32 = u32::MAX;

/// The blocks that are in a file, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockTable {
    block_size: BlockSize,
    /// Number, and sector of the bitmap.
    present: Vec<(u32, u32)>,
}

/// A block in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedBlock {
    /// Its number: it begins at so many times the block's size on the disk.
    pub number: u32,
    /// Where its bitmap is in the file, in bytes.
    pub bitmap_offset: u64,
    /// Where its bytes are in the file.
    pub data_offset: u64,
}

impl BlockTable {
    /// Bytes of a block.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Blocks that are there.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// The first block from `number` on that is there.
    pub fn next(&self, number: u64) -> Option<PlacedBlock> {
        let place = self
            .present
            .partition_point(|(known, _)| u64::from(*known) < number);
        self.present.get(place).map(|entry| self.placed(*entry))
    }

    /// Block `number`, if it is there.
    pub fn get(&self, number: u64) -> Option<PlacedBlock> {
        self.next(number)
            .filter(|block| u64::from(block.number) == number)
    }

    /// Whether the blocks lie behind byte `start` of the file, in the disk's order.
    ///
    /// # Errors
    /// The first that does not.
    pub(super) fn check_order(&self, start: u64, table_offset: u64) -> Result<(), VhdError> {
        let mut limit = start;
        for entry in &self.present {
            let block = self.placed(*entry);
            if block.bitmap_offset < limit {
                return Err(VhdError {
                    part: Part::BlockEntry(block.number),
                    offset: table_offset + 4 * u64::from(block.number),
                    problem: Problem::OutOfOrder,
                });
            }
            limit = block.data_offset + self.block_size.bytes();
        }
        Ok(())
    }

    fn placed(&self, (number, sector): (u32, u32)) -> PlacedBlock {
        let bitmap_offset = u64::from(sector) * SECTOR_LEN;
        PlacedBlock {
            number,
            bitmap_offset,
            data_offset: bitmap_offset + self.block_size.bitmap_len(),
        }
    }
}

/// A part of the file that no block may lie in.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    /// What is there.
    pub what: &'static str,
    /// Where, in bytes of the file.
    pub range: DiskRange,
}

/// Reads a table piece by piece.
#[derive(Debug)]
pub struct TableReader {
    table: BlockTable,
    table_offset: u64,
    /// Entries that count: the disk has so many blocks. What follows is room to grow.
    needed: u64,
    seen: u64,
    /// Bytes of the file that blocks may lie in.
    end: u64,
}

impl TableReader {
    /// Of a disk of `size`, in a file whose blocks end at `end`.
    pub fn new(header: &DynamicHeader, size: DiskLength, end: u64) -> Self {
        Self {
            table: BlockTable {
                block_size: header.block_size,
                present: Vec::new(),
            },
            table_offset: header.table_offset,
            needed: header.block_size.blocks_of(size),
            seen: 0,
            end,
        }
    }

    /// Bytes of the table to give, from its start.
    pub fn len(&self) -> u64 {
        self.needed * 4
    }

    /// True for the table of a disk without blocks.
    pub fn is_empty(&self) -> bool {
        self.needed == 0
    }

    /// Takes the next bytes of the table: whole entries.
    ///
    /// # Errors
    /// A block that does not lie in the file.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), VhdError> {
        let size = self.table.block_size;
        let block_len = size.bitmap_len() + size.bytes();
        for entry in bytes.chunks_exact(4) {
            if self.seen == self.needed {
                return Ok(());
            }
            // No table has 2^32 entries.
            let number = self.seen as u32;
            self.seen += 1;
            let sector = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
            if sector == UNUSED {
                continue;
            }
            let (end, limit) = (u64::from(sector) * SECTOR_LEN + block_len, self.end);
            if end > limit {
                return Err(self.error(number, Problem::PastEnd { end, limit }));
            }
            self.table.present.push((number, sector));
        }
        Ok(())
    }

    /// The table, when all of it was given.
    ///
    /// # Errors
    /// Blocks that share bytes, with each other or with what is reserved.
    pub fn finish(self, reserved: &[Reserved]) -> Result<BlockTable, VhdError> {
        let size = self.table.block_size;
        let sectors = ((size.bitmap_len() + size.bytes()) / SECTOR_LEN) as u32;
        let present = &self.table.present;
        let mut places: Vec<u32> = present.iter().map(|(_, sector)| *sector).collect();
        places.sort_unstable();
        let range = |sector: u32| {
            let start = u64::from(sector) * SECTOR_LEN;
            DiskRange::new(start, start + u64::from(sectors) * SECTOR_LEN)
        };
        let overlap = |sector: u32, other, range| {
            let at_place = present.iter().rfind(|(_, known)| *known == sector);
            let (number, _) = at_place.expect("it was one of them");
            self.error(*number, Problem::Overlaps { other, range })
        };
        for pair in places.windows(2) {
            if pair[1] - pair[0] < sectors {
                return Err(overlap(pair[1], "another block", range(pair[0])));
            }
        }
        for taken in reserved {
            let place = places.partition_point(|sector| range(*sector).end <= taken.range.start);
            if let Some(sector) = places.get(place)
                && range(*sector).start < taken.range.end
            {
                return Err(overlap(*sector, taken.what, taken.range));
            }
        }
        Ok(self.table)
    }

    fn error(&self, number: u32, problem: Problem) -> VhdError {
        VhdError {
            part: Part::BlockEntry(number),
            offset: self.table_offset + 4 * u64::from(number),
            problem,
        }
    }
}
