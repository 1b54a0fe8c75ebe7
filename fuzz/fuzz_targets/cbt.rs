//! A changed-block bitmap: the ranges are the set bits, block by block, clipped to the disk, in order and
//! apart from each other; whatever else it is, it is refused.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use undercroft_format::source::cbt::{CBT_BLOCK_LEN, changed_ranges};
use undercroft_format::units::DiskLength;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Text {
        size: u64,
        parent_size: u64,
        text: &'a [u8],
    },
    Bits {
        size: u32,
        bits: &'a [u8],
    },
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Text {
        size,
        parent_size,
        text,
    } => {
        let found = changed_ranges(text, DiskLength::new(size), DiskLength::new(parent_size));
        if let Ok(ranges) = found {
            let blocks = size.min(parent_size).div_ceil(CBT_BLOCK_LEN);
            assert!(blocks.div_ceil(8) <= text.len() as u64);
            assert!(
                ranges
                    .ranges()
                    .iter()
                    .all(|range| range.end <= size && !range.is_empty())
            );
            assert!(ranges.ranges().is_sorted_by(|a, b| a.end < b.start));
        }
    }
    Input::Bits { size, bits } => {
        let size = u64::from(size);
        let needed = size.div_ceil(CBT_BLOCK_LEN).div_ceil(8);
        let length = DiskLength::new(size);
        let found = changed_ranges(base64(bits).as_bytes(), length, length);
        assert_eq!(found.is_ok(), needed == bits.len() as u64);
        let Ok(ranges) = found else { return };
        for block in 0..size.div_ceil(CBT_BLOCK_LEN) {
            let set = bits[(block / 8) as usize] & (0x80 >> (block % 8)) != 0;
            let (start, end) = (
                block * CBT_BLOCK_LEN,
                ((block + 1) * CBT_BLOCK_LEN).min(size),
            );
            let covered = ranges
                .ranges()
                .iter()
                .any(|range| range.start <= start && end <= range.end);
            let touched = ranges
                .ranges()
                .iter()
                .any(|range| range.start < end && start < range.end);
            assert_eq!((covered, touched), (set, set), "block {block}");
        }
    }
});

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for digit in 0..4 {
            if digit <= group.len() {
                text.push(DIGITS[(word >> (18 - 6 * digit)) as usize & 63] as char);
            } else {
                text.push('=');
            }
        }
    }
    text
}
