//! The footer: what kind of disk it is, how large, and who.
//!
//! | offset | size | field | |
//! | --- | --- | --- | --- |
//! | 0 | 8 | cookie | `conectix` |
//! | 8 | 4 | features | 2 is always set |
//! | 12 | 4 | version | 0x00010000 |
//! | 16 | 8 | where the dynamic header is | all ones for a fixed disk |
//! | 24 | 4 | when it was made | seconds since 2000-01-01 UTC |
//! | 28 | 4, 4, 4 | program, its version, its system | |
//! | 40 | 8, 8 | original size, current size | bytes |
//! | 56 | 2, 1, 1 | cylinders, heads, sectors | |
//! | 60 | 4 | type | 2 fixed, 3 dynamic, 4 differencing |
//! | 64 | 4 | checksum | |
//! | 68 | 16 | UUID | |
//! | 84 | 1 | saved state | |
//! | 85 | 427 | reserved | tapdisk keeps a flag at 85 |

use super::error::{Part, Problem, VhdError};
use super::uuid::VhdUuid;
use super::{DISK_LEN_MAX, SECTOR_LEN, array, be32, be64, checksum};
use crate::units::DiskLength;

/// Bytes of a footer.
pub const FOOTER_LEN: usize = 512;
/// Where a footer's checksum is.
const CHECKSUM_AT: usize = 64;
const COOKIE: &[u8; 8] = b"conectix";
const VERSION: u32 = 0x0001_0000;
/// The flag that is always set.
const FEATURES: u32 = 2;
/// 2000-01-01 UTC, in seconds since 1970-01-01 UTC.
const EPOCH: u64 = 946_684_800;

/// What kind of disk a VHD holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// All its bytes.
    Fixed,
    /// What is not there is zero.
    Dynamic,
    /// What is not there is the parent's.
    Differencing,
}

impl DiskType {
    const fn number(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// Cylinders, heads and sectors, as BIOSes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Geometry {
    /// That of all disks that are too large for theirs.
    pub const MAX: Self = Self {
        cylinders: 65_535,
        heads: 16,
        sectors: 255,
    };

    /// The geometry of a disk of `size`: the appendix "CHS Calculation" of the specification. It covers `size` rounded
    /// down.
    pub fn of(size: DiskLength) -> Self {
        let total = (size.get() / SECTOR_LEN).min(65_535 * 16 * 255);
        let (heads, sectors, tracks) = if total >= 65_535 * 16 * 63 {
            (16, 255, total / 255)
        } else {
            let tracks = total / 17;
            let heads = tracks.div_ceil(1024).max(4);
            if tracks < heads * 1024 && heads <= 16 {
                (heads, 17, tracks)
            } else if total / 31 < 16 * 1024 {
                (16, 31, total / 31)
            } else {
                (16, 63, total / 63)
            }
        };
        Self {
            cylinders: (tracks / heads) as u16,
            heads: heads as u8,
            sectors,
        }
    }

    /// Bytes of a disk of this geometry.
    pub fn bytes(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * SECTOR_LEN
    }
}

/// The footer of a VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Where the dynamic header is.
    pub header_offset: u64,
    /// When it was made, in seconds since 2000-01-01 UTC.
    pub timestamp: u32,
    /// The program that made it.
    pub creator: [u8; 4],
    /// Its version.
    pub creator_version: u32,
    /// The system that it ran on.
    pub creator_system: [u8; 4],
    /// Size in bytes when it was made.
    pub original_size: u64,
    /// Size in bytes now.
    pub current_size: u64,
    /// Its geometry.
    pub geometry: Geometry,
    /// What kind of disk it is.
    pub disk_type: DiskType,
    /// Who it is.
    pub uuid: VhdUuid,
}

/// Data offset of a disk that has no dynamic header.
pub const NO_HEADER: u64 = u64::MAX;

impl Footer {
    /// True if `bytes` begin as a footer does.
    pub fn is_like(bytes: &[u8]) -> bool {
        bytes.starts_with(COOKIE)
    }

    /// Reads the footer that stands at `offset` of the file, as `part` of it.
    ///
    /// # Errors
    /// Wrong cookie, checksum, version, type or size.
    pub fn parse(bytes: &[u8; FOOTER_LEN], part: Part, offset: u64) -> Result<Self, VhdError> {
        let error = |at: u64, problem| VhdError {
            part,
            offset: offset + at,
            problem,
        };
        if !Self::is_like(bytes) {
            let expected = "conectix";
            return Err(error(0, Problem::Cookie { expected }));
        }
        let (found, computed) = (be32(bytes, CHECKSUM_AT), checksum(bytes, CHECKSUM_AT));
        if found != computed {
            return Err(error(
                CHECKSUM_AT as u64,
                Problem::Checksum { found, computed },
            ));
        }
        let found = be32(bytes, 12);
        if found != VERSION {
            return Err(error(12, Problem::Version { found }));
        }
        let disk_type = match be32(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            found => return Err(error(60, Problem::DiskType { found })),
        };
        let footer = Self {
            header_offset: be64(bytes, 16),
            timestamp: be32(bytes, 24),
            creator: array(bytes, 28),
            creator_version: be32(bytes, 32),
            creator_system: array(bytes, 36),
            original_size: be64(bytes, 40),
            current_size: be64(bytes, 48),
            geometry: Geometry {
                cylinders: u16::from_be_bytes(array(bytes, 56)),
                heads: bytes[58],
                sectors: bytes[59],
            },
            disk_type,
            uuid: VhdUuid::from_bytes(array(bytes, 68)),
        };
        // Version 0.1 of tapdisk; libvhd refuses it, too.
        if footer.creator.starts_with(b"tap") && footer.creator_version == 1 {
            return Err(error(32, Problem::OldTapdisk));
        }
        let found = footer.current_size;
        if found == 0 || found > DISK_LEN_MAX || !found.is_multiple_of(SECTOR_LEN) {
            return Err(error(48, Problem::DiskLength { found }));
        }
        Ok(footer)
    }

    /// The footer's bytes.
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, COOKIE);
        put(8, &FEATURES.to_be_bytes());
        put(12, &VERSION.to_be_bytes());
        put(16, &self.header_offset.to_be_bytes());
        put(24, &self.timestamp.to_be_bytes());
        put(28, &self.creator);
        put(32, &self.creator_version.to_be_bytes());
        put(36, &self.creator_system);
        put(40, &self.original_size.to_be_bytes());
        put(48, &self.current_size.to_be_bytes());
        put(56, &self.geometry.cylinders.to_be_bytes());
        put(58, &[self.geometry.heads, self.geometry.sectors]);
        put(60, &self.disk_type.number().to_be_bytes());
        put(68, self.uuid.as_bytes());
        let sum = checksum(&out, CHECKSUM_AT).to_be_bytes();
        out[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum);
        out
    }

    /// The disk's size: the current size. Of what Virtual PC and older QEMUs made, the guest sees the geometry's; where
    /// that is more, it counts (block/vpc.c). Nothing is ever cut off.
    pub fn disk_size(&self) -> DiskLength {
        let by_geometry = matches!(&self.creator, b"vpc " | b"qemu")
            && self.geometry != Geometry::MAX
            && self.geometry.bytes() <= DISK_LEN_MAX;
        DiskLength::new(match by_geometry {
            true => self.current_size.max(self.geometry.bytes()),
            false => self.current_size,
        })
    }

    /// True if the UUID was drawn for this file alone, so that it says nothing about the disk: XAPI's exports
    /// (vhd-tool) are made anew each time.
    pub fn is_export(&self) -> bool {
        &self.creator == b"caml"
    }
}

/// A time as footers have it, from milliseconds since 1970-01-01 UTC.
pub fn timestamp(unix_ms: u64) -> u32 {
    u32::try_from((unix_ms / 1000).saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}
