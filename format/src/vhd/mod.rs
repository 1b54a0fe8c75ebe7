//! VHD: disks in files, as Virtual PC, Hyper-V, XenServer and XCP-ng write them.
//!
//! Numbers are big-endian. A file of a *fixed* disk is its bytes and then a [`footer`]. That of a *dynamic* disk, or
//! of a *differencing* one, which holds what changed since its parent, is:
//!
//! ```text
//! copy of the footer | dynamic header | block allocation table | blocks, each after its bitmap | footer
//! ```
//!
//! - [`footer`], [`header`], [`locator`]: what the disk is, and where its parent lies
//! - [`blocks`], [`bitmap`]: where a disk's bytes are; which sectors of a block count
//! - [`image`]: a file that is opened, everything checked before anything is read by it
//! - [`layout`]: a file that is to be written, whose every place is known before
//! - [`uuid`], [`error`]: who is who; what is wrong, and at which byte
//!
//! Sources: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, 2006); what readers and writers make of it:
//! libvhd of blktap, vhd-tool of XAPI, block/vpc.c of QEMU.

pub mod bitmap;
pub mod blocks;
pub mod error;
pub mod footer;
pub mod header;
pub mod image;
pub mod layout;
pub mod locator;
pub mod uuid;

#[cfg(test)]
mod tests;

/// Bytes of a sector, the unit of all places in a VHD.
pub const SECTOR_LEN: u64 = 512;
/// Largest disk, in bytes: 2040 GiB, as libvhd, XAPI and Hyper-V have it.
pub const DISK_LEN_MAX: u64 = 2040 << 30;

/// The sum that footers and dynamic headers hold: the complement of the sum of all bytes but its own, which begin at
/// `field`.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let sum = |bytes: &[u8]| -> u32 { bytes.iter().map(|byte| u32::from(*byte)).sum() };
    !(sum(&bytes[..field]) + sum(&bytes[field + 4..]))
}

/// `N` bytes at `at`. The caller's slice is that long.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}
