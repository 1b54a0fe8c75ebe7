//! A VHD to be written: every byte's place follows from the disk's size and from which blocks are there, so that it can
//! be written in order, or anywhere at once.
//!
//! It is laid out as XAPI's exports are, blocks in the disk's order without gaps, so that XAPI's import, which reads in
//! order and needs to know the length before, takes it:
//!
//! ```text
//! 0     copy of the footer
//! 512   dynamic header
//! 1536  name of the parent, else zeros
//! 2048  block allocation table, then zeros up to a whole sector
//!       blocks: 512 bytes of bitmap, 2 MiB of data
//!       footer
//! ```

use super::blocks::{PlacedBlock, UNUSED};
use super::footer::{DiskType, FOOTER_LEN, Footer, Geometry};
use super::header::{BlockSize, DynamicHeader, HEADER_LEN};
use super::locator::{LOCATORS, Locator};
use super::uuid::VhdUuid;
use super::{DISK_LEN_MAX, SECTOR_LEN, bitmap};
use crate::ranges::RangeSet;
use crate::units::{DiskLength, DiskRange};

const HEADER_AT: u64 = SECTOR_LEN;
const LOCATOR_AT: u64 = HEADER_AT + HEADER_LEN as u64;
const TABLE_AT: u64 = LOCATOR_AT + SECTOR_LEN;
/// Hyper-V's. The size of what it made is the current size for every reader; of what QEMU does not know, it believes
/// the geometry, which is less (block/vpc.c), and of what tapdisk made, libvhd expects a table more.
const CREATOR: &[u8; 4] = b"win ";
const CREATOR_VERSION: u32 = 0x000a_0000;
const CREATOR_SYSTEM: &[u8; 4] = b"Wi2k";

/// One state of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who it is.
    pub uuid: VhdUuid,
    /// When it was, in seconds since 2000-01-01 UTC.
    pub timestamp: u32,
}

/// A disk that a VHD cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk has {size} bytes: a VHD holds a multiple of {SECTOR_LEN} from {SECTOR_LEN} to {DISK_LEN_MAX} (2040 GiB)"
)]
pub struct UnfitSize {
    /// Size of the disk.
    pub size: DiskLength,
}

/// The layout of a VHD.
#[derive(Clone, Debug)]
pub struct Layout {
    size: DiskLength,
    identity: Identity,
    parent: Option<Parent>,
    /// Numbers of the blocks that are there, in order.
    present: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Parent {
    identity: Identity,
    /// What differs from it.
    differing: RangeSet,
}

impl Layout {
    /// A dynamic disk, in which the blocks are that `data` touches.
    ///
    /// # Errors
    /// A size that no VHD has.
    pub fn dynamic(
        size: DiskLength,
        identity: Identity,
        data: impl IntoIterator<Item = DiskRange>,
    ) -> Result<Self, UnfitSize> {
        Self::new(size, identity, None, data)
    }

    /// A differencing disk, in which the sectors are that `differing` touches.
    ///
    /// # Errors
    /// A size that no VHD has.
    pub fn differencing(
        size: DiskLength,
        identity: Identity,
        parent: Identity,
        differing: RangeSet,
    ) -> Result<Self, UnfitSize> {
        // A parent may have been longer.
        let differing: RangeSet = differing.within(DiskRange::new(0, size.get())).collect();
        let data = differing.ranges().to_vec();
        let parent = Parent {
            identity: parent,
            differing,
        };
        Self::new(size, identity, Some(parent), data)
    }

    fn new(
        size: DiskLength,
        identity: Identity,
        parent: Option<Parent>,
        data: impl IntoIterator<Item = DiskRange>,
    ) -> Result<Self, UnfitSize> {
        check_size(size)?;
        let disk = DiskRange::new(0, size.get());
        let mut present: Vec<u32> = Vec::new();
        for range in data {
            let range = range.intersect(disk);
            if range.is_empty() {
                continue;
            }
            let first = BlockSize::DEFAULT.block_at(range.start) as u32;
            let last = BlockSize::DEFAULT.block_at(range.end - 1) as u32;
            let next = present.last().map_or(first, |last| first.max(last + 1));
            present.extend(next..=last);
        }
        Ok(Self {
            size,
            identity,
            parent,
            present,
        })
    }

    /// Size of the disk.
    pub fn size(&self) -> DiskLength {
        self.size
    }

    /// What differs from the parent; `None` of a whole disk.
    pub fn differing(&self) -> Option<&RangeSet> {
        self.parent.as_ref().map(|parent| &parent.differing)
    }

    /// Bytes of the file.
    #[expect(clippy::len_without_is_empty, reason = "no VHD is empty")]
    pub fn len(&self) -> u64 {
        self.place(self.present.len()) + SECTOR_LEN
    }

    /// Numbers of the blocks that are there, in order.
    pub fn present(&self) -> &[u32] {
        &self.present
    }

    /// Block `number`, if it is there.
    pub fn block(&self, number: u32) -> Option<PlacedBlock> {
        let place = self.present.binary_search(&number).ok()?;
        let bitmap_offset = self.place(place);
        Some(PlacedBlock {
            number,
            bitmap_offset,
            data_offset: bitmap_offset + BlockSize::DEFAULT.bitmap_len(),
        })
    }

    /// The bitmap of a block that is there.
    pub fn bitmap(&self, number: u32) -> [u8; SECTOR_LEN as usize] {
        let Some(parent) = &self.parent else {
            // As XAPI's exports: the bytes of all sectors are there.
            return [0xff; SECTOR_LEN as usize];
        };
        let mut bits = [0; SECTOR_LEN as usize];
        let block = BlockSize::DEFAULT.range_of(number.into());
        for range in parent.differing.within(block) {
            let start = (range.start - block.start) / SECTOR_LEN;
            let end = (range.end - block.start).div_ceil(SECTOR_LEN);
            bitmap::set(&mut bits, start as u32..end as u32);
        }
        bits
    }

    /// All that stands before the first block.
    pub fn head(&self) -> Vec<u8> {
        let entries = self.entries();
        let mut head = Vec::with_capacity(self.place(0) as usize);
        head.extend_from_slice(&self.footer());
        let (header, name) = self.header(entries);
        head.extend_from_slice(&header.encode());
        head.extend_from_slice(&name);
        head.resize(TABLE_AT as usize, 0);
        let mut present = self.present.iter().zip(0..).peekable();
        for number in 0..entries {
            let place = present.next_if(|(known, _)| **known == number);
            let sector = place.map_or(UNUSED, |(_, at)| (self.place(at) / SECTOR_LEN) as u32);
            head.extend_from_slice(&sector.to_be_bytes());
        }
        head.resize(self.place(0) as usize, 0);
        head
    }

    /// The footer, which stands after the last block.
    pub fn footer(&self) -> [u8; FOOTER_LEN] {
        let Identity { uuid, timestamp } = self.identity;
        Footer {
            header_offset: HEADER_AT,
            timestamp,
            creator: *CREATOR,
            creator_version: CREATOR_VERSION,
            creator_system: *CREATOR_SYSTEM,
            original_size: self.size.get(),
            current_size: self.size.get(),
            geometry: Geometry::of(self.size),
            disk_type: match self.parent {
                None => DiskType::Dynamic,
                Some(_) => DiskType::Differencing,
            },
            uuid,
        }
        .encode()
    }

    fn header(&self, entries: u32) -> (DynamicHeader, Vec<u8>) {
        let mut locators = [Locator::NONE; LOCATORS];
        let mut name = Vec::new();
        let mut parent = Identity {
            uuid: VhdUuid::from_bytes([0; 16]),
            timestamp: 0,
        };
        let mut parent_name = String::new();
        if let Some(Parent { identity, .. }) = &self.parent {
            parent = *identity;
            parent_name = format!("{}.vhd", identity.uuid);
            (locators[0], name) = Locator::relative(&parent_name, LOCATOR_AT);
        }
        let header = DynamicHeader {
            table_offset: TABLE_AT,
            entries,
            block_size: BlockSize::DEFAULT,
            parent_uuid: parent.uuid,
            parent_timestamp: parent.timestamp,
            parent_name,
            locators,
        };
        (header, name)
    }

    fn entries(&self) -> u32 {
        BlockSize::DEFAULT.blocks_of(self.size) as u32
    }

    /// Where the block is that has so many before it.
    fn place(&self, before: usize) -> u64 {
        let size = BlockSize::DEFAULT;
        let table_len = (u64::from(self.entries()) * 4).next_multiple_of(SECTOR_LEN);
        TABLE_AT + table_len + before as u64 * (size.bitmap_len() + size.bytes())
    }
}

/// Whether a VHD can hold a disk of `size`.
///
/// # Errors
/// It cannot.
pub fn check_size(size: DiskLength) -> Result<(), UnfitSize> {
    let bytes = size.get();
    match bytes == 0 || bytes > DISK_LEN_MAX || !bytes.is_multiple_of(SECTOR_LEN) {
        true => Err(UnfitSize { size }),
        false => Ok(()),
    }
}
