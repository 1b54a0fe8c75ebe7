//! What is wrong with a VHD: in which part, at which byte, and what was expected there.

use std::fmt;

use super::{DISK_LEN_MAX, SECTOR_LEN};
use crate::units::DiskRange;

/// A file is no VHD, or none that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part} at byte {offset}: {problem}")]
pub struct VhdError {
    /// Which part.
    pub part: Part,
    /// Where in the file it is, or should be.
    pub offset: u64,
    /// What is wrong with it.
    pub problem: Problem,
}

/// A part of a VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The file's last sector.
    Footer,
    /// The first sector of a dynamic or differencing disk.
    FooterCopy,
    /// What follows from a footer's data offset.
    DynamicHeader,
    /// All of it.
    BlockTable,
    /// Its entry for the block of this number.
    BlockEntry(u32),
    /// One of the eight places where a parent may be named.
    ParentLocator(u8),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Footer => f.write_str("the footer"),
            Self::FooterCopy => f.write_str("the footer's copy"),
            Self::DynamicHeader => f.write_str("the dynamic header"),
            Self::BlockTable => f.write_str("the block allocation table"),
            Self::BlockEntry(block) => write!(f, "block {block} of the block allocation table"),
            Self::ParentLocator(number) => write!(f, "parent locator {number}"),
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Another magic number.
    #[error("expected it to begin with \"{expected}\"")]
    Cookie {
        /// What begins such a part.
        expected: &'static str,
    },
    /// The sum of its bytes.
    #[error("its checksum is {found:#010x}, its bytes give {computed:#010x}")]
    Checksum {
        /// What it says.
        found: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A version that does not exist.
    #[error("it has version {found:#010x}, expected 0x00010000")]
    Version {
        /// What it says.
        found: u32,
    },
    /// A type that is not read.
    #[error("the disk has type {found}, expected 2 (fixed), 3 (dynamic) or 4 (differencing)")]
    DiskType {
        /// What it says.
        found: u32,
    },
    /// The length of a disk.
    #[error(
        "the disk has {found} bytes, expected a multiple of {SECTOR_LEN} from {SECTOR_LEN} to {DISK_LEN_MAX}"
    )]
    DiskLength {
        /// What it says.
        found: u64,
    },
    /// The length of a block.
    #[error("blocks have {found} bytes, expected a power of two from 4096 to 67108864")]
    BlockLength {
        /// What it says.
        found: u32,
    },
    /// The number of blocks.
    #[error(
        "it has {found} entries, expected {needed} for the disk's size, and at most {}",
        super::header::ENTRIES_MAX
    )]
    Entries {
        /// What it says.
        found: u32,
        /// As many as the disk has blocks.
        needed: u64,
    },
    /// The two footers tell of different disks.
    #[error(
        "its {field} is not that of its copy at byte 0: the file was cut, or put together from two"
    )]
    Differs {
        /// Which field.
        field: &'static str,
    },
    /// It does not lie in the file.
    #[error(
        "it ends at byte {end}, expected {limit} at most: the file was cut, or the place is wrong"
    )]
    PastEnd {
        /// One past its last byte.
        end: u64,
        /// Up to where such a part may reach.
        limit: u64,
    },
    /// A length that no VHD has.
    #[error(
        "the file has {len} bytes, expected a multiple of {SECTOR_LEN}, and {SECTOR_LEN} at least"
    )]
    FileLength {
        /// Bytes of the file.
        len: u64,
    },
    /// It shares bytes with something else.
    #[error("it shares bytes with {other} at bytes {range}")]
    Overlaps {
        /// With what.
        other: &'static str,
        /// Where that lies in the file.
        range: DiskRange,
    },
    /// tapdisk 0.1 wrote bitmaps in another order.
    #[error(
        "it was written by tapdisk 0.1, whose bitmaps are in another order: expected version 1.1 or later"
    )]
    OldTapdisk,
    /// A head without a table.
    #[error(
        "it says that the disk is fixed, expected a dynamic or differencing one: only those begin with a footer"
    )]
    FixedHead,
    /// Blocks that a stream cannot bring.
    #[error(
        "it does not follow the one before: of a stream, blocks have to come in the disk's order"
    )]
    OutOfOrder,
    /// A place that is no multiple of sectors.
    #[error("it should begin at a multiple of {SECTOR_LEN}")]
    Unaligned,
}
