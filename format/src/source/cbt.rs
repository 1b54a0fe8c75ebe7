//! Changed-block bitmaps as XAPI's `VDI.list_changed_blocks` gives them.
//!
//! Base64 of one bit per 64 KiB block, block 0 in the most significant bit of the first byte (XenServer
//! Changed Block Tracking Guide, "Get the list of blocks changed"; xapi-project/sm `VDI.py`, which
//! reverses the bits of the log before encoding). The length is exact, tapdisk's `cbt-util.h`: a byte per
//! eight blocks, the last one padded. Bits of padding may be set and mean nothing. A bitmap of any other
//! length belongs to another disk, or to another size of this one, and says nothing about it.

use std::io::{self, BufReader, Read};

use base64::engine::general_purpose::STANDARD;
use base64::read::DecoderReader;

use super::changed::{BLOCK_LEN, ChangedRanges};
use crate::ranges::RangeSet;
use crate::units::{DiskLength, DiskRange};

/// Bytes of disk that one bit stands for.
pub const CBT_BLOCK_LEN: u64 = BLOCK_LEN;
/// Bytes of text read at once.
const TEXT_LEN: usize = 64 << 10;
/// Bytes of bitmap decoded at once.
const BITMAP_LEN: usize = 16 << 10;

/// Why a bitmap does not say what changed on a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The text cannot be read, or is not base64.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// The bitmap covers less than the disk.
    #[error(
        "has {found} bytes, but a disk of {size} bytes needs {needed}: it belongs to another disk or size"
    )]
    TooShort {
        /// Bytes of bitmap found.
        found: u64,
        /// Bytes of bitmap that the disk needs.
        needed: u64,
        /// Size of the disk in bytes.
        size: DiskLength,
    },
    /// The bitmap covers more than the disk.
    #[error(
        "has more than the {needed} bytes that a disk of {size} bytes needs: it belongs to another disk or size"
    )]
    TooLong {
        /// Bytes of bitmap that the disk needs.
        needed: u64,
        /// Size of the disk in bytes.
        size: DiskLength,
    },
}

/// The ranges that differ, on a disk of `size`, from its parent of `parent_size`: what the base64 `text`
/// says changed, and whatever lies past the parent's end.
///
/// The bitmap may be that of either size: a hypervisor that does not extend its log when a disk grows
/// gives the old length. Takes memory for the ranges, at most 32 MiB, and none for the bitmap.
///
/// # Errors
/// The bitmap says nothing about this disk.
pub fn changed_ranges(
    text: impl Read,
    size: DiskLength,
    parent_size: DiskLength,
) -> Result<RangeSet, BitmapError> {
    changed_ranges_in(text, size, parent_size, ChangedRanges::default())
}

fn changed_ranges_in(
    text: impl Read,
    size: DiskLength,
    parent_size: DiskLength,
    mut changed: ChangedRanges,
) -> Result<RangeSet, BitmapError> {
    let (needed, parent_needed) = (bitmap_len(size), bitmap_len(parent_size));
    let longest = needed.max(parent_needed);
    let text = BufReader::with_capacity(TEXT_LEN, Unspaced(text));
    let mut bitmap = DecoderReader::new(text, &STANDARD);
    let mut bytes = vec![0; BITMAP_LEN];
    let mut found = 0;
    loop {
        let got = match bitmap.read(&mut bytes) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(BitmapError::Unreadable(error)),
        };
        for (at, byte) in (found..).zip(&bytes[..got]) {
            add_byte(&mut changed, at * 8, *byte);
        }
        found += got as u64;
        if found > longest {
            return Err(BitmapError::TooLong { needed, size });
        }
    }
    if found != needed && found != parent_needed {
        return Err(match found < needed {
            true => BitmapError::TooShort {
                found,
                needed,
                size,
            },
            false => BitmapError::TooLong { needed, size },
        });
    }
    Ok(changed.finish(size, parent_size))
}

/// Bytes of bitmap of a disk of `size`.
fn bitmap_len(size: DiskLength) -> u64 {
    size.get().div_ceil(CBT_BLOCK_LEN).div_ceil(8)
}

/// Adds the next eight blocks, of which `first` is the first.
fn add_byte(changed: &mut ChangedRanges, first: u64, bits: u8) {
    let mut add = |first: u64, end: u64| {
        changed.add(DiskRange::new(first * CBT_BLOCK_LEN, end * CBT_BLOCK_LEN));
    };
    match bits {
        0 => {}
        0xff => add(first, first + 8),
        bits => (0..8)
            .filter(|bit| bits & (0x80 >> bit) != 0)
            .for_each(|bit| add(first + bit, first + bit + 1)),
    }
}

/// Text without its ASCII white space.
struct Unspaced<R>(R);

impl<R: Read> Read for Unspaced<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let got = self.0.read(out)?;
            let mut kept = 0;
            for at in 0..got {
                if !out[at].is_ascii_whitespace() {
                    out[kept] = out[at];
                    kept += 1;
                }
            }
            if kept > 0 || got == 0 {
                return Ok(kept);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use proptest::prelude::*;

    use super::*;

    fn changed(text: &str, size: u64, parent_size: u64) -> Result<Vec<DiskRange>, BitmapError> {
        changed_ranges(
            text.as_bytes(),
            DiskLength::new(size),
            DiskLength::new(parent_size),
        )
        .map(|set| set.ranges().to_vec())
    }

    fn ranges(text: &str, size: u64) -> Result<Vec<DiskRange>, BitmapError> {
        changed(text, size, size)
    }

    fn block(number: u64) -> DiskRange {
        DiskRange::new(number << 16, (number + 1) << 16)
    }

    #[test]
    fn the_documented_vector_marks_blocks_0_2_and_15() {
        let found = ranges(" oA\r\nE=\n\n", 16 << 16).expect("the right length");
        assert_eq!(found, [block(0), block(2), block(15)]);
    }

    #[test]
    fn the_last_block_is_clipped_and_padding_ignored() {
        let found = ranges("/w==", 100).expect("the right length");
        assert_eq!(found, [DiskRange::new(0, 100)]);
    }

    #[test]
    fn a_bitmap_of_another_size_is_refused() {
        let is_too_short = |size| matches!(ranges("oAE=", size), Err(BitmapError::TooShort { .. }));
        let is_too_long = |size| matches!(ranges("oAE=", size), Err(BitmapError::TooLong { .. }));
        assert!(is_too_short(17 << 16) && is_too_short(1 << 40));
        assert!(ranges("oAE=", (15 << 16) + 1).is_ok() && ranges("oAE=", 9 << 16).is_ok());
        assert!(is_too_long(8 << 16) && is_too_long(1) && is_too_long(0));
        for text in ["a*", "oAE", "oA==oA==", "oAE=oAE="] {
            let found = ranges(text, 16 << 16);
            assert!(
                matches!(found, Err(BitmapError::Unreadable(_))),
                "{text}: {found:?}"
            );
        }
    }

    #[test]
    fn of_a_disk_that_was_resized_either_size_is_believed() {
        let grown = |text| changed(text, 24 << 16, 16 << 16);
        let past = DiskRange::new(16 << 16, 24 << 16);
        assert_eq!(
            grown("oAA=").expect("the parent's"),
            [block(0), block(2), past]
        );
        assert_eq!(
            grown("oAAA").expect("the disk's"),
            [block(0), block(2), past]
        );
        assert!(grown("oA==").is_err() && grown("oAAAAA==").is_err());
        let shrunk = |text| changed(text, 8 << 16, 24 << 16);
        assert_eq!(shrunk("oAAB").expect("the parent's"), [block(0), block(2)]);
        assert_eq!(shrunk("oA==").expect("the disk's"), [block(0), block(2)]);
        assert!(shrunk("oAA=").is_err());
    }

    #[test]
    fn a_disk_of_64_tib_needs_no_more_memory_than_its_ranges() {
        // 128 MiB of bitmap, of which every other byte marks a block.
        let text = io::repeat(b'A').take((128 << 20) / 3 * 4);
        let size = DiskLength::new(((128 << 20) / 3 * 3 * 8) << 16);
        assert!(
            changed_ranges(text, size, size)
                .expect("the right length")
                .is_empty()
        );
        let mut changed = ChangedRanges::with_ranges_max(1000);
        for byte in 0..100_000 {
            add_byte(&mut changed, byte * 8, 0x88);
        }
        let all = DiskLength::new((100_000 * 8) << 16);
        assert!(changed.finish(all, all).ranges().len() <= 1000);
    }

    proptest! {
        #[test]
        fn whatever_is_set_is_covered(bits in proptest::collection::vec(any::<u8>(), 1..200), ranges_max in 2..50_usize) {
            let size = DiskLength::new((bits.len() as u64 * 8) << 16);
            let text = STANDARD.encode(&bits);
            let find = |ranges_max| {
                let changed = ChangedRanges::with_ranges_max(ranges_max);
                changed_ranges_in(text.as_bytes(), size, size, changed).expect("the right length")
            };
            let (exact, coarse) = (find(usize::MAX), find(ranges_max));
            prop_assert!(coarse.ranges().len() <= ranges_max);
            for number in 0..bits.len() as u64 * 8 {
                let set = bits[number as usize / 8] & (0x80 >> (number % 8)) != 0;
                prop_assert_eq!(exact.within(block(number)).count() == 1, set);
                prop_assert!(!set || coarse.within(block(number)).map(|range| range.len()).sum::<u64>() == 1 << 16);
            }
        }
    }
}
