//! Chunks that end at any byte, by the `fastcdc` crate: `fastcdc-v2020`.
//!
//! # Definition
//!
//! All-zero blocks of the grid are cut out first. Each run between them is cut by FastCDC v2020 with
//! normalization level 1 and seed 0, as the crate's version 5.0.0 does it; another version may come in
//! only if it leaves the golden cuts as they are.

use fastcdc::v2020::FastCDC;
use undercroft_format::chunker::FastCdcParams;

use super::cut::{Cut, CutList};
use super::grid;
use super::kernel::Kernel;
use super::zero::is_zero;

pub(super) fn cut(
    params: &FastCdcParams,
    kernel: Kernel,
    data: &[u8],
    head_len: usize,
    cuts: &mut Vec<Cut>,
) {
    let [min, avg, max] = [params.min(), params.avg(), params.max()].map(|len| len as usize);
    let mut fast_cdc = FastCDC::new(&[], min, avg, max);
    let mut list = CutList::new(cuts);
    let mut cut_run = |run, list: &mut CutList<'_>| {
        for chunk in fast_cdc.rechunk(run) {
            list.data(chunk.length as u32);
        }
    };
    let (mut run_start, mut at) = (0, 0);
    for block in grid::blocks(data, head_len) {
        let block_end = at + block.len();
        if is_zero(kernel, block) {
            cut_run(&data[run_start..at], &mut list);
            list.zero(block.len() as u32);
            run_start = block_end;
        }
        at = block_end;
    }
    cut_run(&data[run_start..], &mut list);
    list.finish();
}
