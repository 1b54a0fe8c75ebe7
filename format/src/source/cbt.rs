//! Changed-block bitmaps as XAPI's `VDI.list_changed_blocks` gives them.
//!
//! Base64 of one bit per 64 KiB block, block 0 in the most significant bit of the first byte (XenServer
//! Changed Block Tracking Guide, "Get the list of blocks changed"; xapi-project/sm `VDI.py`, which
//! reverses the bits of the log before encoding). Bits past the last block are padding and ignored. The
//! bitmap must be long enough for the disk; one that is not belongs to another disk or another size.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::ranges::RangeSet;
use crate::units::{DiskLength, DiskRange};

/// Bytes of disk that one bit stands for.
pub const CBT_BLOCK_LEN: u64 = 64 << 10;
/// Longest encoded bitmap accepted, in bytes: a disk of about 48 TiB.
pub const CBT_TEXT_LEN_MAX: u64 = 128 << 20;

/// Why a bitmap does not say what changed on a disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The text is not base64.
    #[error("not base64: {0}")]
    Base64(String),
    /// The bitmap covers less than the disk.
    #[error(
        "covers {found} bytes of bitmap, but a disk of {size} bytes needs {needed}: it belongs to another disk or size"
    )]
    TooShort {
        /// Bytes of bitmap found.
        found: u64,
        /// Bytes of bitmap that the disk needs.
        needed: u64,
        /// Size of the disk in bytes.
        size: DiskLength,
    },
    /// Far longer than the disk needs.
    #[error(
        "covers {found} bytes of bitmap, but a disk of {size} bytes needs only {needed}: it belongs to another disk or size"
    )]
    TooLong {
        /// Bytes of bitmap found.
        found: u64,
        /// Bytes of bitmap that the disk needs.
        needed: u64,
        /// Size of the disk in bytes.
        size: DiskLength,
    },
}

/// Surplus bytes tolerated: tapdisk rounds its log up to whole disk sectors.
const SURPLUS_MAX: u64 = 4096;

/// The ranges that the base64 `text` says changed on a disk of `size`, clipped to the disk.
pub fn changed_ranges(text: &[u8], size: DiskLength) -> Result<RangeSet, BitmapError> {
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let bitmap = STANDARD
        .decode(text)
        .map_err(|error| BitmapError::Base64(error.to_string()))?;
    let blocks = size.get().div_ceil(CBT_BLOCK_LEN);
    let (found, needed) = (bitmap.len() as u64, blocks.div_ceil(8));
    if found < needed {
        return Err(BitmapError::TooShort {
            found,
            needed,
            size,
        });
    }
    if found > needed + SURPLUS_MAX {
        return Err(BitmapError::TooLong {
            found,
            needed,
            size,
        });
    }
    let is_set = |block: u64| bitmap[(block / 8) as usize] & (0x80 >> (block % 8)) != 0;
    let mut at = 0;
    // One range per run of set bits: a range per bit would take 16 bytes for each 64 KiB of disk.
    let runs = std::iter::from_fn(|| {
        let first = (at..blocks).find(|block| is_set(*block))?;
        let end = (first..blocks).find(|block| !is_set(*block));
        at = end.unwrap_or(blocks);
        let (start, end) = (first * CBT_BLOCK_LEN, at * CBT_BLOCK_LEN);
        Some(DiskRange::new(start, end.min(size.get())))
    });
    Ok(runs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str, size: u64) -> Result<Vec<DiskRange>, BitmapError> {
        changed_ranges(text.as_bytes(), DiskLength::new(size)).map(|set| set.ranges().to_vec())
    }

    #[test]
    fn the_documented_vector_marks_blocks_0_2_and_15() {
        let block = |number: u64| DiskRange::new(number << 16, (number + 1) << 16);
        assert_eq!(
            ranges("oAE=\n", 16 << 16),
            Ok(vec![block(0), block(2), block(15)])
        );
    }

    #[test]
    fn the_last_block_is_clipped_and_padding_ignored() {
        assert_eq!(ranges("//8=", 100), Ok(vec![DiskRange::new(0, 100)]));
    }

    #[test]
    fn a_bitmap_of_another_size_is_refused() {
        assert!(matches!(
            ranges("oAE=", 17 << 16),
            Err(BitmapError::TooShort { .. })
        ));
        let long = STANDARD.encode(vec![0; 5000]);
        assert!(matches!(ranges(&long, 1), Err(BitmapError::TooLong { .. })));
        assert!(matches!(ranges("a*", 1), Err(BitmapError::Base64(_))));
    }
}
