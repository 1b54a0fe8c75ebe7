//! The GUID partition table: a header and an array of entries at the start of a disk, and both again at its end.
//!
//! Source: UEFI Specification 2.10, sections 5.3.2 "GPT Header" and 5.3.3 "GPT Partition Entry Array". No crate does:
//! `gpt`, `gptman` and `mbrman` allocate what a header asks for or panic on what it should not say, and
//! `gpt_disk_types`, which has the fields alone, depends on one under the MPL.

use super::kind::{Guid, PartitionKind};
use super::table::{Found, PartitionNumber, Read};

const SIGNATURE: &[u8] = b"EFI PART";
const HEADER_LEN: usize = 92;
const CRC_AT: std::ops::Range<usize> = 16..20;
const ENTRY_LEN: usize = 128;
const NAME_AT: std::ops::Range<usize> = 56..128;
/// The specification demands 128 × 2^n; more than a page is nobody's.
const ENTRY_LEN_MAX: usize = 4096;
/// Bytes of an array: 8192 entries of the usual length. The specification's least is 16 KiB, which all use.
const ARRAY_LEN_MAX: u64 = 1 << 20;

/// Why there is no table at some place.
#[derive(Debug)]
pub(super) enum Absent {
    /// Nothing there says that it is one.
    NoSignature,
    /// It is one, but damaged; or it cannot be read.
    Damaged(String),
}

/// Which header is read, and of what disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderPlace {
    pub(super) sector: u64,
    pub(super) sector_len: u64,
    /// Sectors of the disk.
    pub(super) sectors: u64,
}

/// The partitions of the table whose header is at `place`, unchecked against the disk's end.
pub(super) fn partitions(place: HeaderPlace, read: &mut Read<'_>) -> Result<Vec<Found>, Absent> {
    let damaged = |what: String| Err(Absent::Damaged(what));
    let HeaderPlace {
        sector,
        sector_len,
        sectors,
    } = place;
    if sector >= sectors {
        return Err(Absent::NoSignature);
    }
    let mut bytes = vec![0; sector_len as usize];
    if let Err(error) = read(sector * sector_len, &mut bytes) {
        return damaged(error);
    }
    if !bytes.starts_with(SIGNATURE) {
        return Err(Absent::NoSignature);
    }
    let header_len = u32_at(&bytes, 12) as usize;
    if !(HEADER_LEN..=bytes.len()).contains(&header_len) {
        return damaged(format!("its length is {header_len}"));
    }
    let header_crc = u32_at(&bytes, CRC_AT.start);
    bytes[CRC_AT].fill(0);
    if crc32(&bytes[..header_len]) != header_crc {
        return damaged("its checksum does not fit".to_owned());
    }
    let own_sector = u64_at(&bytes, 24);
    if own_sector != sector {
        return damaged(format!("it says that it is at sector {own_sector}"));
    }
    let entry_len = u32_at(&bytes, 84) as usize;
    if !(ENTRY_LEN..=ENTRY_LEN_MAX).contains(&entry_len) || !entry_len.is_power_of_two() {
        return damaged(format!("its entries have {entry_len} bytes"));
    }
    let array_len = u64::from(u32_at(&bytes, 80)) * entry_len as u64;
    let first = u64_at(&bytes, 72);
    let ends_within = first < sectors && array_len <= (sectors - first) * sector_len;
    if array_len > ARRAY_LEN_MAX || !ends_within {
        return damaged(format!(
            "its entries are {array_len} bytes at sector {first}"
        ));
    }
    let mut array = vec![0; array_len as usize];
    if let Err(error) = read(first * sector_len, &mut array) {
        return damaged(format!("its entries: {error}"));
    }
    if crc32(&array) != u32_at(&bytes, 88) {
        return damaged("the checksum of its entries does not fit".to_owned());
    }
    let entries = (1..).zip(array.chunks_exact(entry_len));
    Ok(entries
        .map(|(number, entry)| {
            (
                number,
                entry,
                Guid::new(*entry.first_chunk().unwrap_or(&[0; 16])),
            )
        })
        .filter(|(_, _, kind)| *kind != Guid::UNUSED)
        .map(|(number, entry, kind)| Found {
            number: PartitionNumber::new(number),
            first: u64_at(entry, 32),
            last: u64_at(entry, 40),
            kind: PartitionKind::Gpt(kind),
            name: name(&entry[NAME_AT]),
        })
        .collect())
}

/// UTF-16, up to the first NUL.
fn name(bytes: &[u8]) -> String {
    let (units, _) = bytes.as_chunks();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// Callers have checked the length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Callers have checked the length.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn crc32(bytes: &[u8]) -> u32 {
    crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(bytes)
}
