//! Overlays: what was written to an export of a snapshot's disk, in a file of its own. docs/overlay.md.
//!
//! ```text
//! header (4 KiB) | map: an entry of 64 bytes per block | data, block by block
//! ```
//!
//! A block is 64 KiB of the disk, a part 4 KiB of a block. Everything has its place: the file has holes where nothing was
//! written. An entry is two slots that are written in turn, so that the one that was written last before a crash
//! stands until its successor is whole. A slot is [`BlockState`] with a number that grows, and a checksum over it, the
//! overlay's id and the block's number: a torn slot is found, as is one of another place.
//!
//! The data can be in a file of their own, which becomes the disk: see [`DataPlace`].

use crate::codec::{DecodeError, Problem, Reader, put_string};
use crate::id::{RepositoryId, SnapshotId};
use crate::units::DiskLength;

const MAGIC: &[u8; 8] = b"UCOVLY\0\x01";
/// The newest version that this program reads and the one that it writes.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 4096;
/// Bytes of a block of the disk.
pub const BLOCK_LEN: u64 = 64 << 10;
/// Bytes of a part of a block.
pub const PART_LEN: u64 = 4 << 10;
/// Parts of a block: a bit each.
pub const PARTS: u32 = (BLOCK_LEN / PART_LEN) as u32;
/// Bytes of an entry of the map.
pub const ENTRY_LEN: usize = 2 * SLOT_LEN;
/// Bytes of a slot.
pub const SLOT_LEN: usize = 32;
/// Largest disk, in bytes.
pub const DISK_LEN_MAX: u64 = 1 << 50;

const LABEL_LEN_MAX: u64 = 255;
const CHECKSUM_LEN: usize = 32;

/// Where the data of what is written are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// In the overlay, behind the map.
    Here,
    /// In a file or on a device of their own, each byte at its place: the final place of a disk that is being restored.
    Elsewhere,
}

/// What an overlay lies over, and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where its data are.
    pub data: DataPlace,
    /// Drawn when it was made.
    pub id: [u8; 16],
    /// Size of the disk.
    pub size: DiskLength,
    /// The repository that has the snapshot.
    pub repository: RepositoryId,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The disk's label.
    pub label: String,
}

/// What an overlay has of a block: a bit per part, the first part the lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockState {
    /// Parts that the overlay has, as data or as zeros.
    pub here: u16,
    /// Those of them that are zeros, whatever lies in their place.
    pub zeros: u16,
    /// Those of `here` whose bytes are not known any more.
    pub lost: u16,
}

/// What both slots of an entry come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What counts.
    pub state: BlockState,
    /// The number of the slot that it stands in; 0 for neither.
    pub sequence: u64,
    /// How many slots are neither empty nor whole.
    pub torn: u8,
}

impl Header {
    /// The whole header.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        let place: u32 = match self.data {
            DataPlace::Here => 0,
            DataPlace::Elsewhere => 1,
        };
        bytes.extend_from_slice(&place.to_le_bytes());
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.size.get().to_le_bytes());
        bytes.extend_from_slice(self.repository.as_bytes());
        bytes.extend_from_slice(self.snapshot.as_bytes());
        put_string(&mut bytes, &self.label);
        bytes.resize(HEADER_LEN - CHECKSUM_LEN, 0);
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("overlay header", bytes);
        reader.magic(MAGIC)?;
        let at = reader.clone();
        let version = reader.u32()?;
        if version != FORMAT_VERSION {
            return Err(at.error(Problem::Version {
                found: version,
                newest: FORMAT_VERSION,
            }));
        }
        let whole = bytes.split_at_checked(HEADER_LEN - CHECKSUM_LEN);
        let Some((body, checksum)) = whole.filter(|(_, rest)| rest.len() == CHECKSUM_LEN) else {
            return Err(reader.error(match HEADER_LEN.checked_sub(bytes.len()) {
                Some(needed) => Problem::Truncated { needed },
                None => Problem::Trailing(bytes.len() - HEADER_LEN),
            }));
        };
        if blake3::hash(body).as_bytes() != checksum {
            return Err(reader.error(Problem::Checksum));
        }
        let at = reader.clone();
        let data = match reader.u32()? {
            0 => DataPlace::Here,
            1 => DataPlace::Elsewhere,
            _ => return Err(at.error(Problem::Invalid("place of the data"))),
        };
        let id = reader.array()?;
        let at = reader.clone();
        let size = reader.u64()?;
        if size > DISK_LEN_MAX {
            return Err(at.error(Problem::Limit {
                field: "disk size",
                value: size,
                limit: DISK_LEN_MAX,
            }));
        }
        let repository = RepositoryId::from_bytes(reader.array()?);
        let snapshot = SnapshotId::from_bytes(reader.array()?);
        let label = reader.string("disk label", LABEL_LEN_MAX)?;
        reader.zeros(reader.remaining() - CHECKSUM_LEN)?;
        Ok(Self {
            data,
            id,
            size: DiskLength::new(size),
            repository,
            snapshot,
            label,
        })
    }

    /// Blocks of the disk; the last one may be short.
    pub fn blocks(&self) -> u64 {
        self.size.get().div_ceil(BLOCK_LEN)
    }

    /// Where the data begin in their file.
    pub fn data_start(&self) -> u64 {
        match self.data {
            DataPlace::Here => self.entry_at(self.blocks()).next_multiple_of(BLOCK_LEN),
            DataPlace::Elsewhere => 0,
        }
    }

    /// Where the disk's byte `offset` lies in the file of the data.
    pub fn data_at(&self, offset: u64) -> u64 {
        self.data_start() + offset
    }

    /// Where the entry of block `block` lies.
    pub fn entry_at(&self, block: u64) -> u64 {
        HEADER_LEN as u64 + block * ENTRY_LEN as u64
    }

    /// Bytes of the overlay's file.
    pub fn file_len(&self) -> u64 {
        match self.data {
            DataPlace::Here => self.data_at(self.size.get()),
            DataPlace::Elsewhere => self.entry_at(self.blocks()),
        }
    }

    /// A slot of block `block`'s entry.
    pub fn encode_slot(&self, block: u64, state: BlockState, sequence: u64) -> [u8; SLOT_LEN] {
        let mut slot = [0; SLOT_LEN];
        slot[0..2].copy_from_slice(&state.here.to_le_bytes());
        slot[2..4].copy_from_slice(&state.zeros.to_le_bytes());
        slot[4..6].copy_from_slice(&state.lost.to_le_bytes());
        slot[8..16].copy_from_slice(&sequence.to_le_bytes());
        let checksum = self.checksum(block, &slot[..16]);
        slot[16..].copy_from_slice(&checksum);
        slot
    }

    fn checksum(&self, block: u64, body: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.id);
        hasher.update(&block.to_le_bytes());
        hasher.update(body);
        let mut checksum = [0; 16];
        checksum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        checksum
    }

    /// What the two slots of block `block`'s entry come to. A slot that is neither empty nor whole counts for
    /// nothing; if no other one does either, all of the block is lost.
    pub fn decode_entry(&self, block: u64, bytes: &[u8; ENTRY_LEN]) -> Entry {
        let mut entry = Entry::default();
        let mut empty = 0;
        let (slots, _) = bytes.as_chunks::<SLOT_LEN>();
        for slot in slots {
            match self.decode_slot(block, slot) {
                Slot::Empty => empty += 1,
                Slot::Torn => entry.torn += 1,
                Slot::Whole(state, sequence) if sequence > entry.sequence => {
                    (entry.state, entry.sequence) = (state, sequence);
                }
                Slot::Whole(..) => {}
            }
        }
        // The first slot of an entry may be torn by the crash that came before it was ever flushed.
        if entry.sequence == 0 && entry.torn > 0 && empty == 0 {
            let all = u16::MAX;
            entry.state = BlockState {
                here: all,
                zeros: 0,
                lost: all,
            };
        }
        entry
    }

    fn decode_slot(&self, block: u64, slot: &[u8; SLOT_LEN]) -> Slot {
        if slot.iter().all(|byte| *byte == 0) {
            return Slot::Empty;
        }
        let half = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
        let state = BlockState {
            here: half(0),
            zeros: half(2),
            lost: half(4),
        };
        let mut sequence = [0; 8];
        sequence.copy_from_slice(&slot[8..16]);
        let sequence = u64::from_le_bytes(sequence);
        let is_whole = self.checksum(block, &slot[..16]) == slot[16..]
            && half(6) == 0
            && sequence > 0
            && state.is_sound();
        match is_whole {
            true => Slot::Whole(state, sequence),
            false => Slot::Torn,
        }
    }
}

enum Slot {
    Empty,
    Torn,
    Whole(BlockState, u64),
}

impl BlockState {
    /// Zeros and what is lost are here, and not both.
    pub fn is_sound(self) -> bool {
        (self.zeros | self.lost) & !self.here == 0 && self.zeros & self.lost == 0
    }

    /// With data in `parts`.
    pub fn with_data(self, parts: u16) -> Self {
        Self {
            here: self.here | parts,
            zeros: self.zeros & !parts,
            lost: self.lost & !parts,
        }
    }

    /// The parts that are not here.
    pub fn below(self) -> u16 {
        !self.here
    }

    /// With zeros in `parts`.
    pub fn with_zeros(self, parts: u16) -> Self {
        Self {
            here: self.here | parts,
            zeros: self.zeros | parts,
            lost: self.lost & !parts,
        }
    }

    /// What is in `part`, of [`PARTS`].
    pub fn part(self, part: u32) -> PartState {
        let is_set = |bits: u16| bits >> part & 1 != 0;
        match () {
            () if !is_set(self.here) => PartState::Below,
            () if is_set(self.lost) => PartState::Lost,
            () if is_set(self.zeros) => PartState::Zeros,
            () => PartState::Data,
        }
    }
}

/// Where a part of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartState {
    /// In what lies below.
    Below,
    /// Here.
    Data,
    /// Here, as zeros.
    Zeros,
    /// Here, but not known any more.
    Lost,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            data: DataPlace::Here,
            id: [7; 16],
            size: DiskLength::new((5 << 20) + 512),
            repository: RepositoryId::from_bytes([1; 16]),
            snapshot: SnapshotId::from_bytes([2; 16]),
            label: "root".to_owned(),
        }
    }

    #[test]
    fn everything_has_its_place() {
        let header = header();
        assert_eq!(header.blocks(), 81);
        assert_eq!(header.entry_at(80), 4096 + 80 * 64);
        assert_eq!(header.data_start(), 64 << 10);
        assert_eq!(header.data_at(4096), (64 << 10) + 4096);
        assert_eq!(header.file_len(), (64 << 10) + (5 << 20) + 512);
        // No slot lies in two sectors.
        assert_eq!(512 % SLOT_LEN, 0);
    }

    #[test]
    fn the_last_whole_slot_counts() {
        let header = header();
        let old = BlockState::default().with_data(1);
        let new = old.with_zeros(3);
        let entry = |first: [u8; SLOT_LEN], second: [u8; SLOT_LEN]| {
            let bytes = [first, second].concat();
            header.decode_entry(9, &bytes.try_into().expect("two slots"))
        };
        let (a, b) = (header.encode_slot(9, old, 4), header.encode_slot(9, new, 5));
        let empty = [0; SLOT_LEN];
        let torn = {
            let mut torn = b;
            torn[3] ^= 1;
            torn
        };
        let elsewhere = header.encode_slot(8, new, 6);
        for (first, second, state, sequence, torn) in [
            (empty, empty, BlockState::default(), 0, 0),
            (a, empty, old, 4, 0),
            (a, b, new, 5, 0),
            (b, a, new, 5, 0),
            (a, torn, old, 4, 1),
            (a, elsewhere, old, 4, 1),
            (torn, empty, BlockState::default(), 0, 1),
        ] {
            let expected = Entry {
                state,
                sequence,
                torn,
            };
            assert_eq!(entry(first, second), expected);
        }
        let lost = entry(torn, elsewhere);
        assert_eq!((lost.torn, lost.state.part(3)), (2, PartState::Lost));
        assert_eq!(new.part(0), PartState::Zeros);
        assert_eq!(old.part(0), PartState::Data);
        assert_eq!(old.part(1), PartState::Below);
    }

    #[test]
    fn data_elsewhere_are_at_their_own_places() {
        let header = Header {
            data: DataPlace::Elsewhere,
            ..header()
        };
        assert_eq!(header.data_at(77), 77);
        assert_eq!(header.file_len(), 4096 + 81 * 64);
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_of_a_header_is_found(at in 0_usize..HEADER_LEN, bit in 0_u8..8) {
            let mut bytes = header().encode();
            prop_assert_eq!(bytes.len(), HEADER_LEN);
            prop_assert_eq!(&Header::decode(&bytes).expect("it is whole"), &header());
            bytes[at] ^= 1 << bit;
            prop_assert!(Header::decode(&bytes).is_err());
            prop_assert!(Header::decode(&bytes[..at]).is_err());
        }

        #[test]
        fn a_flipped_bit_of_a_slot_is_found(at in 0_usize..SLOT_LEN, bit in 0_u8..8, here: u16, zeros: u16) {
            let state = BlockState { here, zeros: here & zeros, lost: 0 };
            let mut bytes = [0; ENTRY_LEN];
            bytes[..SLOT_LEN].copy_from_slice(&header().encode_slot(3, state, 1));
            prop_assert_eq!(header().decode_entry(3, &bytes).state, state);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(header().decode_entry(3, &bytes).torn, 1);
        }
    }
}
