//! What a table says that a partition is for.
//!
//! Sources: UEFI Specification 2.10, table 5-6; the Discoverable Partitions Specification of the UAPI group;
//! util-linux, include/pt-gpt-partnames.h and include/pt-mbr-partnames.h.

use std::fmt;

/// What names a type of partition: 16 bytes, written as in `c12a7328-f81f-11d2-ba4b-00a0c93ec93b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guid([u8; 16]);

impl Guid {
    /// The type of entries that are not used.
    pub(super) const UNUSED: Self = Self([0; 16]);

    /// From the bytes of an entry.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// The first three numbers are little-endian (UEFI Specification 2.10, appendix A).
impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (place, byte) in ORDER.into_iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[byte])?;
        }
        Ok(())
    }
}

/// The type of a partition as its table has it. What is on it may be something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionKind {
    /// Of an MBR: a number that no registry assigns.
    Mbr(u8),
    /// Of a GPT.
    Gpt(Guid),
}

impl PartitionKind {
    /// What those are called that are met often, or `None`.
    pub fn label(&self) -> Option<&'static str> {
        match self {
            Self::Mbr(kind) => MBR_LABELS
                .iter()
                .find(|known| known.0 == *kind)
                .map(|known| known.1),
            Self::Gpt(kind) => {
                let text = kind.to_string();
                let known = GPT_LABELS.iter().find(|known| known.0 == text);
                known.map(|known| known.1)
            }
        }
    }
}

/// The label, or the number or GUID that has none.
impl fmt::Display for PartitionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.label(), self) {
            (Some(label), _) => f.write_str(label),
            (None, Self::Mbr(kind)) => write!(f, "type {kind:#04x}"),
            (None, Self::Gpt(kind)) => write!(f, "type {kind}"),
        }
    }
}

const MBR_LABELS: &[(u8, &str)] = &[
    (0x01, "FAT12"),
    (0x04, "FAT16"),
    (0x06, "FAT16"),
    (0x07, "NTFS or exFAT"),
    (0x0b, "FAT32"),
    (0x0c, "FAT32"),
    (0x0e, "FAT16"),
    (0x27, "Windows recovery"),
    (0x82, "Linux swap"),
    (0x83, "Linux"),
    (0x8e, "Linux LVM"),
    (0xa5, "FreeBSD"),
    (0xef, "EFI system"),
    (0xfb, "VMFS"),
    (0xfd, "Linux RAID"),
];

const GPT_LABELS: &[(&str, &str)] = &[
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"),
    ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux"),
    (
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        "Linux root (x86-64)",
    ),
    ("b921b045-1df0-41c3-af44-4c6f280d3fae", "Linux root (ARM64)"),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home"),
    (
        "bc13c2ff-59e6-4262-a352-b275fd6f7172",
        "Linux extended boot",
    ),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
    ("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved"),
    (
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7",
        "Microsoft basic data",
    ),
    ("de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery"),
    ("aa31e02a-400f-11db-9590-000c2911d1b8", "VMFS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_are_written_as_everybody_writes_them() {
        let efi = [
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9,
            0x3b,
        ];
        assert_eq!(
            Guid::new(efi).to_string(),
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
        );
        assert_eq!(PartitionKind::Gpt(Guid::new(efi)).to_string(), "EFI system");
        assert_eq!(PartitionKind::Mbr(0x42).to_string(), "type 0x42");
    }
}
