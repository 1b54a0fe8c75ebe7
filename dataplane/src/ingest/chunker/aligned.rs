//! Chunks that end at lines of the grid, by the content of the block before the line: `aligned-v1`.
//!
//! # Definition
//!
//! Each run of blocks between two all-zero blocks, or the ends of the input, is cut from its start:
//!
//! - a chunk ends before a block that would make it longer than `max`;
//! - a chunk ends after a block with which it has at least `min` bytes, if the low `mask_bits` bits of the
//!   block's hash are zero;
//! - the last chunk ends with its run.
//!
//! So a chunk's end depends on nothing before the chunk, nor on anything after the next block.

use undercroft_format::chunker::AlignedParams;

use super::block_hash::block_hash;
use super::cut::{Cut, CutList};
use super::grid;
use super::kernel::Kernel;
use super::zero::is_zero;

pub(super) fn cut(
    params: &AlignedParams,
    kernel: Kernel,
    data: &[u8],
    head_len: usize,
    cuts: &mut Vec<Cut>,
) {
    let mask = (1 << params.mask_bits()) - 1;
    let mut list = CutList::new(cuts);
    let mut chunk_len = 0;
    for block in grid::blocks(data, head_len) {
        let block_len = block.len() as u32;
        if is_zero(kernel, block) {
            list.data(chunk_len);
            list.zero(block_len);
            chunk_len = 0;
            continue;
        }
        if chunk_len + block_len > params.max() {
            list.data(chunk_len);
            chunk_len = 0;
        }
        chunk_len += block_len;
        if chunk_len >= params.min() && block_hash(kernel, block) & mask == 0 {
            list.data(chunk_len);
            chunk_len = 0;
        }
    }
    list.data(chunk_len);
    list.finish();
}
