//! The grid of 4 KiB blocks that zero runs and aligned chunks follow.

use std::iter;

use undercroft_format::chunker::GRID_BLOCK_LEN;

/// Bytes of a whole block.
pub(super) const BLOCK_LEN: usize = GRID_BLOCK_LEN as usize;

/// Bytes from `disk_offset` to the next line of the grid, whose lines lie at `phase` modulo 4096.
pub(super) fn head_len(disk_offset: u64, phase: u16) -> usize {
    // Wrapping does no harm: 4096 divides 2^64.
    (u64::from(phase).wrapping_sub(disk_offset) % u64::from(GRID_BLOCK_LEN)) as usize
}

/// The blocks of `data`, whose first grid line comes after `head_len` bytes; those at its two ends may
/// be short.
pub(super) fn blocks(data: &[u8], head_len: usize) -> impl Iterator<Item = &[u8]> {
    let (head, rest) = data.split_at(head_len.min(data.len()));
    let head = Some(head).filter(|head| !head.is_empty());
    iter::chain(head, rest.chunks(BLOCK_LEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lie_at_the_phase() {
        assert_eq!(head_len(0, 0), 0);
        assert_eq!(head_len(0, 3584), 3584);
        assert_eq!(head_len(3584, 3584), 0);
        assert_eq!(head_len(4096, 3584), 3584);
        assert_eq!(head_len(u64::MAX - 511, 0), 512);
    }

    #[test]
    fn blocks_at_the_ends_are_short() {
        let lens = |len, head_len| -> Vec<usize> {
            blocks(&vec![0; len], head_len).map(<[u8]>::len).collect()
        };
        assert_eq!(lens(8192, 3584), [3584, 4096, 512]);
        assert_eq!(lens(8192, 0), [4096, 4096]);
        assert_eq!(lens(100, 3584), [100]);
        assert!(lens(0, 3584).is_empty());
    }
}
