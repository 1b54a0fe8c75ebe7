//! What a disk or a partition holds, by the magic numbers of its superblocks.
//!
//! Source of the places and values: util-linux, libblkid/src/superblocks; those of ext, of its features too: Linux,
//! fs/ext4/ext4.h. A magic number says what somebody once wrote there; whoever reads it must check the rest.

use std::fmt;

use crate::units::DiskLength;

/// What may be found where a file system is looked for. Not all are file systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystemKind {
    /// ext2: no journal.
    Ext2,
    /// ext3: a journal, and nothing that only ext4 has.
    Ext3,
    /// ext4.
    Ext4,
    /// A journal of an ext file system elsewhere.
    ExtJournal,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT of 12, 16 or 32 bits.
    Fat,
    /// exFAT.
    ExFat,
    /// NTFS.
    Ntfs,
    /// A volume that BitLocker encrypts.
    BitLocker,
    /// A physical volume of LVM2.
    Lvm2,
    /// A volume that LUKS encrypts.
    Luks,
    /// A member of a Linux RAID, with its superblock at its start.
    LinuxRaid,
    /// Swap space.
    Swap,
    /// A member of a ZFS pool.
    Zfs,
    /// ReiserFS.
    Reiserfs,
    /// F2FS.
    F2fs,
    /// ISO 9660.
    Iso9660,
    /// Squashfs.
    Squashfs,
    /// VMFS.
    Vmfs,
    /// HFS+.
    HfsPlus,
    /// A container of APFS.
    Apfs,
    /// UFS2.
    Ufs2,
}

impl FileSystemKind {
    /// Whether this is ext2, ext3 or ext4.
    pub fn is_ext(self) -> bool {
        matches!(self, Self::Ext2 | Self::Ext3 | Self::Ext4)
    }

    /// Whether files may be in it; otherwise it is part of something else, locked, or swap.
    pub fn holds_files(self) -> bool {
        !matches!(
            self,
            Self::ExtJournal
                | Self::BitLocker
                | Self::Lvm2
                | Self::Luks
                | Self::LinuxRaid
                | Self::Swap
                | Self::Zfs
        )
    }
}

impl fmt::Display for FileSystemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::ExtJournal => "ext journal",
            Self::Xfs => "XFS",
            Self::Btrfs => "Btrfs",
            Self::Fat => "FAT",
            Self::ExFat => "exFAT",
            Self::Ntfs => "NTFS",
            Self::BitLocker => "BitLocker",
            Self::Lvm2 => "LVM2",
            Self::Luks => "LUKS",
            Self::LinuxRaid => "Linux RAID",
            Self::Swap => "swap",
            Self::Zfs => "ZFS",
            Self::Reiserfs => "ReiserFS",
            Self::F2fs => "F2FS",
            Self::Iso9660 => "ISO 9660",
            Self::Squashfs => "squashfs",
            Self::Vmfs => "VMFS",
            Self::HfsPlus => "HFS+",
            Self::Apfs => "APFS",
            Self::Ufs2 => "UFS2",
        })
    }
}

/// Holds nearly everything that is looked at.
const HEAD_LEN: u64 = 70 * 1024;
const EXT_AT: usize = 1024;
/// ZFS keeps a ring of uberblocks in the second half of each label.
const ZFS_UBERBLOCKS_AT: u64 = 128 * 1024;
const ZFS_UBERBLOCKS_LEN: u64 = 128 * 1024;
const ZFS_MAGIC: u64 = 0x00ba_b10c;
const VMFS_AT: u64 = 1 << 20;
const VMFS_MAGIC: [u8; 4] = [0x0d, 0xd0, 0x01, 0xc0];

type Magic = (FileSystemKind, usize, &'static [u8]);

/// Containers come first: what they hold may show through.
const MAGICS: &[Magic] = &[
    (FileSystemKind::Luks, 0, b"LUKS\xba\xbe"),
    (FileSystemKind::BitLocker, 3, b"-FVE-FS-"),
    (FileSystemKind::LinuxRaid, 0, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    (
        FileSystemKind::LinuxRaid,
        4096,
        b"\xfc\x4e\x2b\xa9\x01\0\0\0",
    ),
    (FileSystemKind::Xfs, 0, b"XFSB"),
    (FileSystemKind::Squashfs, 0, b"hsqs"),
    (FileSystemKind::Ntfs, 3, b"NTFS    "),
    (FileSystemKind::ExFat, 3, b"EXFAT   "),
    (FileSystemKind::Apfs, 32, b"NXSB"),
    (FileSystemKind::HfsPlus, 1024, b"H+\0\x04"),
    (FileSystemKind::HfsPlus, 1024, b"HX\0\x05"),
    (FileSystemKind::F2fs, 1024, b"\x10\x20\xf5\xf2"),
    (FileSystemKind::Btrfs, 0x1_0040, b"_BHRfS_M"),
    (FileSystemKind::Reiserfs, 0x1_0034, b"ReIsErFs"),
    (FileSystemKind::Reiserfs, 0x1_0034, b"ReIsEr2Fs"),
    (FileSystemKind::Reiserfs, 0x1_0034, b"ReIsEr3Fs"),
    (FileSystemKind::Ufs2, 0x1_055c, b"\x19\x01\x54\x19"),
    (FileSystemKind::Swap, 4086, b"SWAPSPACE2"),
    (FileSystemKind::Swap, 4086, b"SWAP-SPACE"),
    (FileSystemKind::Swap, 16374, b"SWAPSPACE2"),
    (FileSystemKind::Swap, 65526, b"SWAPSPACE2"),
    (FileSystemKind::Iso9660, 0x8001, b"CD001"),
];

/// What `size` bytes hold, of which `read` fills a buffer from an offset on; it is asked for nothing past the end, and
/// three times at most, for 128 KiB at most. `None` if it is nothing that is known.
///
/// # Errors
/// Those of `read`.
pub fn detect<E>(
    size: DiskLength,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<FileSystemKind>, E> {
    let mut bytes_at = |offset: u64, len: u64| {
        let mut bytes = vec![0; size.get().saturating_sub(offset).min(len) as usize];
        if !bytes.is_empty() {
            read(offset, &mut bytes)?;
        }
        Ok(bytes)
    };
    let head: Vec<u8> = bytes_at(0, HEAD_LEN)?;
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let is_lvm2 =
        (0..4).any(|sector| has(sector * 512, b"LABELONE") && has(sector * 512 + 24, b"LVM2 001"));
    if is_lvm2 {
        return Ok(Some(FileSystemKind::Lvm2));
    }
    let known = MAGICS.iter().find(|(_, at, magic)| has(*at, magic));
    if let Some((kind, ..)) = known {
        return Ok(Some(*kind));
    }
    if let Some(kind) = ext_kind(&head) {
        return Ok(Some(kind));
    }
    if is_fat(&head) {
        return Ok(Some(FileSystemKind::Fat));
    }
    if has_uberblock(&bytes_at(ZFS_UBERBLOCKS_AT, ZFS_UBERBLOCKS_LEN)?) {
        return Ok(Some(FileSystemKind::Zfs));
    }
    let is_vmfs = bytes_at(VMFS_AT, VMFS_MAGIC.len() as u64)? == VMFS_MAGIC;
    Ok(is_vmfs.then_some(FileSystemKind::Vmfs))
}

fn has_uberblock(ring: &[u8]) -> bool {
    ring.chunks_exact(1024).any(|block| {
        let magic = block
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        magic == ZFS_MAGIC || magic.swap_bytes() == ZFS_MAGIC
    })
}

fn ext_kind(head: &[u8]) -> Option<FileSystemKind> {
    const HAS_JOURNAL: u32 = 0x4;
    const JOURNAL_DEV: u32 = 0x8;
    /// Incompatible features that ext3 has: file types in directories, recovery, a journal elsewhere, meta groups.
    const EXT3_INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x8 | 0x10;
    /// Features of ext3 that only writing depends upon: sparse superblocks, large files, B-trees.
    const EXT3_READ_ONLY: u32 = 0x1 | 0x2 | 0x4;
    let superblock = head.get(EXT_AT..EXT_AT + 1024)?;
    if superblock[56..58] != [0x53, 0xef] {
        return None;
    }
    let u32_at = |at: usize| {
        superblock[at..]
            .first_chunk()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let [compatible, incompatible, read_only] = [92, 96, 100].map(u32_at);
    Some(if incompatible & JOURNAL_DEV != 0 {
        FileSystemKind::ExtJournal
    } else if incompatible & !EXT3_INCOMPATIBLE != 0 || read_only & !EXT3_READ_ONLY != 0 {
        FileSystemKind::Ext4
    } else if compatible & HAS_JOURNAL != 0 {
        FileSystemKind::Ext3
    } else {
        FileSystemKind::Ext2
    })
}

/// A boot sector with a parameter block that makes sense; its label of the type is not to be relied upon (Microsoft,
/// "FAT: General Overview of On-Disk Format", 1.03).
fn is_fat(head: &[u8]) -> bool {
    let Some(boot) = head.first_chunk::<512>() else {
        return false;
    };
    let u16_at = |at: usize| u16::from_le_bytes([boot[at], boot[at + 1]]);
    let jumps = boot[0] == 0xe9 || (boot[0] == 0xeb && boot[2] == 0x90);
    let media = boot[21];
    jumps
        && boot[510..] == [0x55, 0xaa]
        && [512, 1024, 2048, 4096].contains(&u16_at(11))
        && boot[13].is_power_of_two()
        && u16_at(14) > 0
        && (1..=2).contains(&boot[16])
        && (media == 0xf0 || media >= 0xf8)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn detect_in(bytes: &[u8]) -> Option<FileSystemKind> {
        let read = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&bytes[offset as usize..][..out.len()]);
            Ok::<_, Infallible>(())
        };
        detect(DiskLength::new(bytes.len() as u64), read).unwrap()
    }

    fn with(len: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (at, part) in parts {
            bytes[*at..at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    fn ext(compatible: u8, incompatible: u8, read_only: u8) -> Vec<u8> {
        let at = |offset: usize| EXT_AT + offset;
        let features = [
            (at(92), compatible),
            (at(96), incompatible),
            (at(100), read_only),
        ];
        let mut bytes = with(1 << 16, &[(at(56), &[0x53, 0xef])]);
        for (at, value) in features {
            bytes[at] = value;
        }
        bytes
    }

    #[test]
    fn features_tell_ext2_ext3_and_ext4_apart() {
        assert_eq!(
            detect_in(&ext(0x38, 0x02, 0x03)),
            Some(FileSystemKind::Ext2)
        );
        assert_eq!(
            detect_in(&ext(0x3c, 0x02, 0x03)),
            Some(FileSystemKind::Ext3)
        );
        assert_eq!(
            detect_in(&ext(0x3c, 0x42, 0x03)),
            Some(FileSystemKind::Ext4)
        );
        assert_eq!(
            detect_in(&ext(0x38, 0x02, 0x43)),
            Some(FileSystemKind::Ext4)
        );
        assert_eq!(
            detect_in(&ext(0, 0x08, 0)),
            Some(FileSystemKind::ExtJournal)
        );
    }

    #[test]
    fn a_container_counts_more_than_what_shows_through() {
        let both: [(usize, &[u8]); 3] = [
            (512, b"LABELONE"),
            (536, b"LVM2 001"),
            (1024 + 56, &[0x53, 0xef]),
        ];
        assert_eq!(detect_in(&with(1 << 20, &both)), Some(FileSystemKind::Lvm2));
    }

    #[test]
    fn magics_past_the_head_are_found() {
        let ring = with(1 << 19, &[(200 << 10, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0])]);
        assert_eq!(detect_in(&ring), Some(FileSystemKind::Zfs));
        let vmfs = with(2 << 20, &[(1 << 20, &VMFS_MAGIC)]);
        assert_eq!(detect_in(&vmfs), Some(FileSystemKind::Vmfs));
    }

    #[test]
    fn nothing_is_found_in_zeros_and_scraps() {
        assert_eq!(detect_in(&[0; 1 << 18]), None);
        for len in [0, 1, 511, 512, 1080, 4096] {
            assert_eq!(detect_in(&vec![0xeb; len]), None, "{len}");
        }
    }
}
