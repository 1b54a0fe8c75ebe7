//! The GUID partition table: a header and an array of entries at the start of a disk, and both again at its end.
//!
//! Source: UEFI Specification 2.10, sections 5.3.2 "GPT Header" and 5.3.3 "GPT Partition Entry Array". The fields
//! are those of the crate `gpt_disk_types`; those that read whole tables (`gpt`, `gptman`, `mbrman`) allocate what a
//! header asks for or panic on what it should not say.

use gpt_disk_types::{GptHeader, GptPartitionEntry};

use super::kind::PartitionKind;
use super::table::{Found, PartitionNumber, Read};

const HEADER_LEN: usize = 92;
const CRC_AT: std::ops::Range<usize> = 16..20;
const ENTRY_LEN: usize = 128;
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
    let header: GptHeader = bytemuck::pod_read_unaligned(&bytes[..HEADER_LEN]);
    if !header.is_signature_valid() {
        return Err(Absent::NoSignature);
    }
    let header_len = header.header_size.to_u32() as usize;
    if !(HEADER_LEN..=bytes.len()).contains(&header_len) {
        return damaged(format!("its length is {header_len}"));
    }
    bytes[CRC_AT].fill(0);
    if crc32(&bytes[..header_len]) != header.header_crc32.0.to_u32() {
        return damaged("its checksum does not fit".to_owned());
    }
    if header.my_lba.to_u64() != sector {
        return damaged(format!(
            "it says that it is at sector {}",
            header.my_lba.to_u64()
        ));
    }
    let entry_len = header.size_of_partition_entry.to_u32() as usize;
    if !(ENTRY_LEN..=ENTRY_LEN_MAX).contains(&entry_len) || !entry_len.is_power_of_two() {
        return damaged(format!("its entries have {entry_len} bytes"));
    }
    let array_len = u64::from(header.number_of_partition_entries.to_u32()) * entry_len as u64;
    let first = header.partition_entry_lba.to_u64();
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
    if crc32(&array) != header.partition_entry_array_crc32.0.to_u32() {
        return damaged("the checksum of its entries does not fit".to_owned());
    }
    let entries = (1..).zip(array.chunks_exact(entry_len));
    Ok(entries
        .map(|(number, bytes)| (number, bytemuck::pod_read_unaligned(&bytes[..ENTRY_LEN])))
        .filter(|(_, entry): &(u32, GptPartitionEntry)| entry.is_used())
        .map(|(number, entry)| Found {
            number: PartitionNumber::new(number),
            first: entry.starting_lba.to_u64(),
            last: entry.ending_lba.to_u64(),
            kind: PartitionKind::Gpt({ entry.partition_type_guid }.0),
            name: { entry.name }.chars().collect(),
        })
        .collect())
}

fn crc32(bytes: &[u8]) -> u32 {
    crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(bytes)
}
