//! The dynamic header: how a disk is cut into blocks, and whose child it is.
//!
//! | offset | size | field | |
//! | --- | --- | --- | --- |
//! | 0 | 8 | cookie | `cxsparse` |
//! | 8 | 8 | next structure | all ones |
//! | 16 | 8 | where the block allocation table is | |
//! | 24 | 4 | version | 0x00010000 |
//! | 28 | 4 | entries of the table | |
//! | 32 | 4 | bytes of a block | a power of two |
//! | 36 | 4 | checksum | |
//! | 40 | 16 | the parent's UUID | |
//! | 56 | 4 | the parent's time | seconds since 2000-01-01 UTC |
//! | 60 | 4 | 0 | |
//! | 64 | 512 | the parent's name | UTF-16, big-endian |
//! | 576 | 8 × 24 | parent locators | see [`super::locator`] |
//! | 768 | 256 | 0 | |

use super::error::{Part, Problem, VhdError};
use super::locator::{LOCATORS, Locator};
use super::uuid::VhdUuid;
use super::{SECTOR_LEN, array, be32, be64, checksum};
use crate::units::{DiskLength, DiskRange};

/// Bytes of a dynamic header.
pub const HEADER_LEN: usize = 1024;
/// Entries of the largest table that is read: 16 MiB of it. A disk of 2040 GiB has a quarter of that, or as many with
/// the smallest blocks of Hyper-V, 512 KiB.
pub const ENTRIES_MAX: u32 = 1 << 22;
/// Where a header's checksum is.
const CHECKSUM_AT: usize = 36;
const COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const BLOCK_LEN_MIN: u32 = 4096;
const BLOCK_LEN_MAX: u32 = 64 << 20;
const NAME_AT: usize = 64;
const NAME_UNITS: usize = 256;
const LOCATORS_AT: usize = 576;

/// Bytes of the blocks of a VHD: a power of two from 4 KiB to 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 2 MiB: that of nearly all.
    pub const DEFAULT: Self = Self(2 << 20);

    /// Blocks of so many bytes; `None` if a VHD has none such.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= BLOCK_LEN_MIN && bytes <= BLOCK_LEN_MAX {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// Sectors of a block.
    pub const fn sectors(self) -> u32 {
        self.0 / SECTOR_LEN as u32
    }

    /// Bytes of a block's bitmap, whole sectors.
    pub const fn bitmap_len(self) -> u64 {
        (self.sectors() as u64)
            .div_ceil(8)
            .next_multiple_of(SECTOR_LEN)
    }

    /// Blocks of a disk.
    pub fn blocks_of(self, size: DiskLength) -> u64 {
        size.get().div_ceil(self.bytes())
    }

    /// The block that byte `offset` of the disk lies in.
    pub const fn block_at(self, offset: u64) -> u64 {
        offset / self.bytes()
    }

    /// Where block `number` lies on the disk, its end not cut to the disk's.
    pub const fn range_of(self, number: u64) -> DiskRange {
        DiskRange::new(number * self.bytes(), (number + 1) * self.bytes())
    }
}

/// The dynamic header of a VHD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicHeader {
    /// Where the block allocation table is.
    pub table_offset: u64,
    /// Entries that it has.
    pub entries: u32,
    /// Bytes of a block.
    pub block_size: BlockSize,
    /// Who the parent is; nil for a dynamic disk.
    pub parent_uuid: VhdUuid,
    /// When the parent was made or changed, in seconds since 2000-01-01 UTC.
    pub parent_timestamp: u32,
    /// The parent's name.
    pub parent_name: String,
    /// Where the parent is named once more.
    pub locators: [Locator; LOCATORS],
}

impl DynamicHeader {
    /// Reads the header that stands at `offset` of the file and belongs to a disk of `size`.
    ///
    /// # Errors
    /// Wrong cookie, checksum, version, blocks, or fewer of them than the disk has.
    pub fn parse(
        bytes: &[u8; HEADER_LEN],
        offset: u64,
        size: DiskLength,
    ) -> Result<Self, VhdError> {
        let error = |at: usize, problem| VhdError {
            part: Part::DynamicHeader,
            offset: offset + at as u64,
            problem,
        };
        if !bytes.starts_with(COOKIE) {
            let expected = "cxsparse";
            return Err(error(0, Problem::Cookie { expected }));
        }
        let (found, computed) = (be32(bytes, CHECKSUM_AT), checksum(bytes, CHECKSUM_AT));
        if found != computed {
            return Err(error(CHECKSUM_AT, Problem::Checksum { found, computed }));
        }
        let found = be32(bytes, 24);
        if found != VERSION {
            return Err(error(24, Problem::Version { found }));
        }
        let found = be32(bytes, 32);
        let block_size =
            BlockSize::new(found).ok_or_else(|| error(32, Problem::BlockLength { found }))?;
        let (found, needed) = (be32(bytes, 28), block_size.blocks_of(size));
        if u64::from(found) < needed || found > ENTRIES_MAX {
            return Err(error(28, Problem::Entries { found, needed }));
        }
        let table_offset = be64(bytes, 16);
        if !table_offset.is_multiple_of(SECTOR_LEN) {
            return Err(error(16, Problem::Unaligned));
        }
        let name: Vec<u16> = bytes[NAME_AT..NAME_AT + 2 * NAME_UNITS]
            .chunks_exact(2)
            .map(|unit| u16::from_be_bytes([unit[0], unit[1]]))
            .take_while(|unit| *unit != 0)
            .collect();
        let locator = |number: usize| Locator::parse(array(bytes, LOCATORS_AT + 24 * number));
        Ok(Self {
            table_offset,
            entries: found,
            block_size,
            parent_uuid: VhdUuid::from_bytes(array(bytes, 40)),
            parent_timestamp: be32(bytes, 56),
            parent_name: String::from_utf16_lossy(&name),
            locators: std::array::from_fn(locator),
        })
    }

    /// The header's bytes. A parent's name that is too long is cut.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, COOKIE);
        put(8, &[0xff; 8]);
        put(16, &self.table_offset.to_be_bytes());
        put(24, &VERSION.to_be_bytes());
        put(28, &self.entries.to_be_bytes());
        put(32, &self.block_size.0.to_be_bytes());
        put(40, self.parent_uuid.as_bytes());
        put(56, &self.parent_timestamp.to_be_bytes());
        let units = self.parent_name.encode_utf16().take(NAME_UNITS - 1);
        for (at, unit) in units.enumerate() {
            put(NAME_AT + 2 * at, &unit.to_be_bytes());
        }
        for (number, locator) in self.locators.iter().enumerate() {
            put(LOCATORS_AT + 24 * number, &locator.encode());
        }
        let sum = checksum(&out, CHECKSUM_AT).to_be_bytes();
        out[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum);
        out
    }

    /// Bytes of the block allocation table, in whole sectors.
    pub fn table_len(&self) -> u64 {
        (u64::from(self.entries) * 4).next_multiple_of(SECTOR_LEN)
    }
}
