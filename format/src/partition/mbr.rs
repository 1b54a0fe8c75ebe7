//! The master boot record, and the chain of records like it that lists logical partitions.
//!
//! Sources: UEFI Specification 2.10, section 5.2.1 "Legacy Master Boot Record"; Linux,
//! block/partitions/msdos.c, for what extended partitions mean and how partitions are numbered.

use super::kind::PartitionKind;
use super::table::{Found, PartitionNumber, Read, TableNote};

pub(super) const MBR_LEN: usize = 512;
pub(super) const MBR_SIGNATURE_AT: usize = 510;
pub(super) const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];
pub(super) const MBR_ENTRIES_AT: usize = 446;
pub(super) const MBR_ENTRY_LEN: usize = 16;
pub(super) const MBR_ENTRIES: usize = 4;
pub(super) const MBR_STATUSES: [u8; 2] = [0x00, 0x80];
pub(super) const MBR_TYPE_UNUSED: u8 = 0x00;
pub(super) const MBR_TYPE_PROTECTIVE: u8 = 0xee;
/// Containers of logical partitions, whose starts lie somewhere inside the disk.
pub(super) const MBR_TYPES_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Links of one disk's chains that are followed. Linux ends after 100 that list no partition.
const LINKS_MAX: usize = 256;
/// Logical partitions come after the four that an MBR has room for.
const LOGICAL_FIRST: u32 = 5;

/// One of the four entries of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct MbrEntry {
    pub(super) kind: u8,
    /// Sectors from whatever the record counts from.
    pub(super) first: u64,
    pub(super) sectors: u64,
}

impl MbrEntry {
    pub(super) fn is_extended(&self) -> bool {
        MBR_TYPES_EXTENDED.contains(&self.kind)
    }

    fn is_used(&self) -> bool {
        self.kind != MBR_TYPE_UNUSED && self.sectors > 0
    }
}

/// The entries of a record, or `None` if it is none.
///
/// Boot sectors of file systems end in the same signature, but have code where the entries would be: a
/// status that no MBR has tells them apart.
pub(super) fn entries(record: &[u8; MBR_LEN]) -> Option<[MbrEntry; MBR_ENTRIES]> {
    if record[MBR_SIGNATURE_AT..] != MBR_SIGNATURE {
        return None;
    }
    let mut entries = [MbrEntry {
        kind: 0,
        first: 0,
        sectors: 0,
    }; MBR_ENTRIES];
    let (bytes, _) = record[MBR_ENTRIES_AT..].as_chunks::<MBR_ENTRY_LEN>();
    for (entry, bytes) in entries.iter_mut().zip(bytes) {
        if !MBR_STATUSES.contains(&bytes[0]) {
            return None;
        }
        let u32_at = |at: usize| {
            u64::from(u32::from_le_bytes([
                bytes[at],
                bytes[at + 1],
                bytes[at + 2],
                bytes[at + 3],
            ]))
        };
        *entry = MbrEntry {
            kind: bytes[4],
            first: u32_at(8),
            sectors: u32_at(12),
        };
    }
    Some(entries)
}

/// The partitions that a master boot record lists, itself and through its chains, unchecked; reads whole records
/// at multiples of `sector_len`.
pub(super) fn partitions(
    entries: &[MbrEntry; MBR_ENTRIES],
    sector_len: u64,
    read: &mut Read<'_>,
    notes: &mut Vec<TableNote>,
) -> Vec<Found> {
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        let is_listed = entry.is_used() && !entry.is_extended();
        if is_listed && entry.kind != MBR_TYPE_PROTECTIVE {
            found.push(as_found(PartitionNumber::new(number), entry, 0));
        }
    }
    let mut chain = Chain {
        next: LOGICAL_FIRST,
        seen: Vec::new(),
    };
    for entry in entries
        .iter()
        .filter(|entry| entry.is_used() && entry.is_extended())
    {
        chain.follow(entry, sector_len, read, &mut found, notes);
    }
    found
}

fn as_found(number: PartitionNumber, entry: &MbrEntry, base: u64) -> Found {
    let first = base + entry.first;
    Found {
        number,
        first,
        last: (first + entry.sectors).saturating_sub(1),
        kind: PartitionKind::Mbr(entry.kind),
        name: String::new(),
    }
}

/// What is known while chains are followed.
struct Chain {
    next: u32,
    seen: Vec<u64>,
}

impl Chain {
    /// A record's own partitions count from the record, the link to the next from the first.
    fn follow(
        &mut self,
        extended: &MbrEntry,
        sector_len: u64,
        read: &mut Read<'_>,
        found: &mut Vec<Found>,
        notes: &mut Vec<TableNote>,
    ) {
        let mut at = extended.first;
        loop {
            if self.seen.contains(&at) || self.seen.len() == LINKS_MAX {
                notes.push(TableNote::EndlessChain { sector: at });
                return;
            }
            self.seen.push(at);
            let mut record = [0; MBR_LEN];
            if let Err(error) = read(at * sector_len, &mut record) {
                notes.push(TableNote::BrokenChain {
                    sector: at,
                    cause: error,
                });
                return;
            }
            let Some(entries) = entries(&record) else {
                let cause = "it has no signature, or entries that make no sense".to_owned();
                notes.push(TableNote::BrokenChain { sector: at, cause });
                return;
            };
            for (place, entry) in entries.iter().enumerate() {
                if !entry.is_used() || entry.is_extended() {
                    continue;
                }
                // The last two entries hold nothing, but there are disks with garbage in them.
                let base = at - extended.first;
                let fits = base + entry.first + entry.sectors <= extended.sectors;
                if place < 2 || fits {
                    found.push(as_found(PartitionNumber::new(self.next), entry, at));
                    self.next += 1;
                }
            }
            match entries
                .iter()
                .find(|entry| entry.is_used() && entry.is_extended())
            {
                Some(link) => at = extended.first + link.first,
                None => return,
            }
        }
    }
}
