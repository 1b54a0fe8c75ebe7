//! Where a disk's file system puts its 4 KiB blocks: the phase of the grid that chunks follow.
//!
//! Almost every partition starts at a multiple of 4 KiB, but those of old installers start at sector 63,
//! and then a grid laid from the disk's start would split each file system block in two: two VMs with
//! the same files at different sectors would share nothing.
//!
//! Sources: UEFI Specification 2.10, section 5.2.1 "Legacy Master Boot Record", section 5.2.3 "Protective
//! MBR", section 5.3.2 "GPT Header" and section 5.3.3 "GPT Partition Entry Array". Sectors are taken to
//! have 512 bytes. A disk with sectors of 4 KiB has its GPT header where none is looked for and gets
//! phase 0, which is right: all its partitions start at multiples of 4 KiB.
//!
//! The bytes come from inside a VM and may say anything. Nothing here verifies checksums: a wrong phase
//! costs deduplication, never correctness.

use super::mbr::{
    MBR_ENTRIES, MBR_ENTRIES_AT, MBR_ENTRY_LEN, MBR_SIGNATURE, MBR_SIGNATURE_AT, MBR_STATUSES,
    MBR_TYPE_PROTECTIVE, MBR_TYPE_UNUSED, MBR_TYPES_EXTENDED,
};
use crate::chunker::GRID_BLOCK_LEN;
use crate::units::DiskLength;

/// How much of a disk's start [`grid_phase`] looks at, in bytes; less is allowed and sees less.
///
/// Holds the MBR, the GPT header and, where installers put it, the array of 128 entries (16.5 KiB).
pub const PARTITION_HEAD_LEN: usize = 64 * 1024;

const SECTOR_LEN: u64 = 512;

const GPT_HEADER_AT: usize = 512;
const GPT_SIGNATURE: &[u8] = b"EFI PART";
/// The specification demands 128 × 2^n; more than a page is nobody's.
const GPT_ENTRY_LENS: std::ops::RangeInclusive<u32> = 128..=4096;

/// The grid's phase: where, modulo 4096, the largest partition of a disk starts.
///
/// `head` is the start of the disk, [`PARTITION_HEAD_LEN`] bytes of it if it has as many; `disk_len` is
/// its whole length. The result is a multiple of 512 below 4096; it is 0 without a partition table, with
/// one that makes no sense, and without any partition that lies within the disk. Of equally large
/// partitions the first in the table counts.
pub fn grid_phase(head: &[u8], disk_len: DiskLength) -> u16 {
    let disk_sectors = disk_len.get() / SECTOR_LEN;
    let partitions = mbr_partitions(head).unwrap_or_default();
    let largest = partitions
        .into_iter()
        .filter(|partition| partition.lies_within(disk_sectors))
        .reduce(|best, other| {
            if other.sectors() > best.sectors() {
                other
            } else {
                best
            }
        });
    let first_sector = largest.map_or(0, |partition| partition.first);
    let sectors_per_block = u64::from(GRID_BLOCK_LEN) / SECTOR_LEN;
    (first_sector % sectors_per_block * SECTOR_LEN) as u16
}

/// Sectors `first..=last`, as the table says: to be checked with [`Partition::lies_within`].
#[derive(Clone, Copy, Debug)]
struct Partition {
    first: u64,
    last: u64,
}

impl Partition {
    /// Partitions at sector 0 would contain their own table.
    fn lies_within(&self, disk_sectors: u64) -> bool {
        0 < self.first && self.first <= self.last && self.last < disk_sectors
    }

    fn sectors(&self) -> u64 {
        self.last - self.first
    }
}

/// The partitions of the MBR, or those of the GPT that it protects; `None` if it is not an MBR.
///
/// Boot sectors of file systems end in the same signature, but have code where the entries would be: a
/// status that no MBR has tells them apart.
fn mbr_partitions(head: &[u8]) -> Option<Vec<Partition>> {
    if bytes_at::<2>(head, MBR_SIGNATURE_AT)? != MBR_SIGNATURE {
        return None;
    }
    let mut partitions = Vec::new();
    for at in (MBR_ENTRIES_AT..).step_by(MBR_ENTRY_LEN).take(MBR_ENTRIES) {
        let entry: [u8; MBR_ENTRY_LEN] = bytes_at(head, at)?;
        if !MBR_STATUSES.contains(&entry[0]) {
            return None;
        }
        match entry[4] {
            MBR_TYPE_PROTECTIVE => return gpt_partitions(head),
            MBR_TYPE_UNUSED => continue,
            extended if MBR_TYPES_EXTENDED.contains(&extended) => continue,
            _ => {}
        }
        let first = u64::from(u32_at(&entry, 8)?);
        let sectors = u64::from(u32_at(&entry, 12)?);
        if let Some(last) = (first + sectors).checked_sub(1) {
            partitions.push(Partition { first, last });
        }
    }
    Some(partitions)
}

/// The used entries of the GPT's array as far as it lies in `head`.
fn gpt_partitions(head: &[u8]) -> Option<Vec<Partition>> {
    let header = head.get(GPT_HEADER_AT..)?;
    if !header.starts_with(GPT_SIGNATURE) {
        return None;
    }
    let entries_at = usize::try_from(u64_at(header, 72)?.checked_mul(SECTOR_LEN)?).ok()?;
    let entries = usize::try_from(u32_at(header, 80)?).ok()?;
    let entry_len = u32_at(header, 84)?;
    if !GPT_ENTRY_LENS.contains(&entry_len) || !entry_len.is_power_of_two() {
        return None;
    }
    let partitions = head
        .get(entries_at..)?
        .chunks_exact(entry_len as usize)
        .take(entries)
        .filter(|entry| entry[..16] != [0; 16])
        .filter_map(|entry| {
            Some(Partition {
                first: u64_at(entry, 32)?,
                last: u64_at(entry, 40)?,
            })
        });
    Some(partitions.collect())
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK_LEN: DiskLength = DiskLength::new(10 << 30);

    fn mbr(entries: &[(u8, u32, u32)]) -> Vec<u8> {
        let mut head = vec![0; PARTITION_HEAD_LEN];
        head[MBR_SIGNATURE_AT..][..2].copy_from_slice(&MBR_SIGNATURE);
        for (entry, (kind, first, sectors)) in entries.iter().enumerate() {
            let at = MBR_ENTRIES_AT + entry * MBR_ENTRY_LEN;
            head[at + 4] = *kind;
            head[at + 8..][..4].copy_from_slice(&first.to_le_bytes());
            head[at + 12..][..4].copy_from_slice(&sectors.to_le_bytes());
        }
        head
    }

    fn gpt(entry_len: u32, entries: &[(u64, u64)]) -> Vec<u8> {
        let mut head = mbr(&[(MBR_TYPE_PROTECTIVE, 1, u32::MAX)]);
        head[512..520].copy_from_slice(GPT_SIGNATURE);
        head[512 + 72..][..8].copy_from_slice(&2u64.to_le_bytes());
        head[512 + 80..][..4].copy_from_slice(&128u32.to_le_bytes());
        head[512 + 84..][..4].copy_from_slice(&entry_len.to_le_bytes());
        for (entry, (first, last)) in entries.iter().enumerate() {
            let at = 1024 + entry * entry_len as usize;
            head[at..at + 16].fill(0xa5);
            head[at + 32..][..8].copy_from_slice(&first.to_le_bytes());
            head[at + 40..][..8].copy_from_slice(&last.to_le_bytes());
        }
        head
    }

    #[test]
    fn mbr_partition_at_sector_63_has_phase_3584() {
        assert_eq!(grid_phase(&mbr(&[(0x83, 63, 1000)]), DISK_LEN), 3584);
    }

    #[test]
    fn gpt_partition_at_1_mib_has_phase_0() {
        assert_eq!(grid_phase(&gpt(128, &[(2048, 1 << 20)]), DISK_LEN), 0);
    }

    #[test]
    fn largest_partition_decides() {
        let entries = [(0x83, 2048, 1000), (0x07, 4099, 5000), (0x83, 10001, 5000)];
        assert_eq!(grid_phase(&mbr(&entries), DISK_LEN), 3 * 512);
        let head = gpt(256, &[(2048, 4095), (4101, 100_000), (200_001, 200_002)]);
        assert_eq!(grid_phase(&head, DISK_LEN), 5 * 512);
    }

    #[test]
    fn extended_containers_and_partitions_beyond_the_disk_do_not_count() {
        let entries = [(0x05, 63, 100_000), (0x83, 65, 1000)];
        assert_eq!(grid_phase(&mbr(&entries), DISK_LEN), 512);
        assert_eq!(grid_phase(&mbr(&[(0x83, 63, u32::MAX)]), DISK_LEN), 0);
        assert_eq!(grid_phase(&gpt(128, &[(63, u64::MAX)]), DISK_LEN), 0);
        assert_eq!(grid_phase(&gpt(128, &[(99, 63)]), DISK_LEN), 0);
    }

    #[test]
    fn boot_sector_of_a_file_system_is_no_partition_table() {
        let mut head = mbr(&[(0x83, 63, 1000)]);
        head[MBR_ENTRIES_AT + 3 * MBR_ENTRY_LEN] = 0x6f;
        assert_eq!(grid_phase(&head, DISK_LEN), 0);
    }

    #[test]
    fn gpt_entries_outside_the_head_are_not_read() {
        let mut head = gpt(128, &[(63, 1 << 20)]);
        head[512 + 72..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(grid_phase(&head, DISK_LEN), 0);
        let head = gpt(128, &[(63, 1 << 20)]);
        assert_eq!(grid_phase(&head[..1024 + 127], DISK_LEN), 0);
        assert_eq!(grid_phase(&head[..1024 + 128], DISK_LEN), 3584);
    }

    proptest! {
        #[test]
        fn garbage_has_phase_0(head in prop::collection::vec(any::<u8>(), 0..4096)) {
            prop_assume!(head.get(510..512) != Some(&MBR_SIGNATURE[..]));
            prop_assert_eq!(grid_phase(&head, DISK_LEN), 0);
        }

        #[test]
        fn damaged_tables_give_some_phase(
            damage in prop::collection::vec((0..2048usize, any::<u8>()), 0..40),
            len in 0..4096usize,
            disk_len: u64,
            entry_len in 0..4096u32,
            is_gpt: bool,
        ) {
            let mut head = mbr(&[(0x83, 63, 1000), (0x83, 2048, 7777)]);
            if is_gpt {
                head = gpt(128, &[(63, 1000), (2049, 99999)]);
                head[512 + 84..][..4].copy_from_slice(&entry_len.to_le_bytes());
            }
            for (at, byte) in damage {
                head[at] = byte;
            }
            let phase = grid_phase(&head[..len], DiskLength::new(disk_len));
            prop_assert!(phase < 4096 && phase.is_multiple_of(512));
        }
    }
}
