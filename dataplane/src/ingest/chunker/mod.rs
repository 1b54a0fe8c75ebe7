//! Cuts runs of disk bytes into zeros and chunks.
//!
//! Cuts depend on the bytes, the grid and the repository's [`ChunkerSpec`] alone: not on the machine, the
//! kernel, or what came before the run. Segments can therefore be cut in any order and by anyone, and the
//! same content is always the same chunks. Golden vectors hold the cuts of every released version.
//!
//! All-zero blocks of 4 KiB are cut out first (`zero`). What lies between them is cut by content:
//! `aligned` at lines of the grid, from each block's `block_hash`, or `stream` at any byte.

mod aligned;
mod block_hash;
mod cut;
mod grid;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod load;
mod stream;
#[cfg(test)]
mod tests;
mod zero;

use undercroft_format::chunker::{ChunkerSpec, FastCdcParams};

pub use self::cut::Cut;
pub use self::kernel::Kernel;

/// Cuts as a repository's config demands, with the instructions this machine has.
#[derive(Clone, Copy, Debug)]
pub struct Chunker {
    spec: ChunkerSpec,
    kernel: Kernel,
}

impl Chunker {
    /// A chunker with the fastest kernel of this machine.
    pub fn new(spec: &ChunkerSpec) -> Self {
        Self::with_kernel(spec, Kernel::best())
    }

    /// A chunker with a given kernel; the cuts are the same with each.
    pub fn with_kernel(spec: &ChunkerSpec, kernel: Kernel) -> Self {
        Self {
            spec: *spec,
            kernel,
        }
    }

    /// The instructions in use.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Cuts a run of a block disk and appends the pieces to `cuts`.
    ///
    /// `data` lies at `disk_offset` on its disk, whose grid has its lines at the addresses that are `phase`
    /// modulo 4096 ([`undercroft_format::partition::grid_phase`]). Blocks that `data` has only in part, at
    /// its two ends, are treated as blocks that are short.
    ///
    /// # Panics
    /// If `data` has 4 GiB or more.
    pub fn cut(&self, data: &[u8], disk_offset: u64, phase: u16, cuts: &mut Vec<Cut>) {
        assert_countable(data);
        let head_len = grid::head_len(disk_offset, phase);
        match &self.spec {
            ChunkerSpec::Aligned(params) => aligned::cut(params, self.kernel, data, head_len, cuts),
            ChunkerSpec::FastCdc(params) => stream::cut(params, self.kernel, data, head_len, cuts),
        }
    }

    /// Cuts a run of an opaque stream, whose grid starts with `data`, and appends the pieces to `cuts`.
    ///
    /// Content of a stream lies at no particular alignment, so this is FastCDC always: with the
    /// repository's lengths if its chunker is FastCDC, else with the default ones.
    ///
    /// # Panics
    /// If `data` has 4 GiB or more.
    pub fn cut_stream(&self, data: &[u8], cuts: &mut Vec<Cut>) {
        assert_countable(data);
        let params = match self.spec {
            ChunkerSpec::Aligned(_) => FastCdcParams::default(),
            ChunkerSpec::FastCdc(params) => params,
        };
        stream::cut(&params, self.kernel, data, 0, cuts);
    }
}

fn assert_countable(data: &[u8]) {
    assert!(
        u32::try_from(data.len()).is_ok(),
        "a run to cut has less than 4 GiB, not {} bytes",
        data.len()
    );
}

/// True if all bytes are zero, by the fastest kernel that this processor has.
pub fn is_zero(bytes: &[u8]) -> bool {
    zero::is_zero(Kernel::best(), bytes)
}
