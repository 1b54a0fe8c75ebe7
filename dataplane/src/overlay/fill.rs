//! The final place of a disk filled from below, while clients read and write it.
//!
//! What a client writes goes to its final place at once, and is not filled any more; what it reads comes from there, or
//! from below where nothing is yet. Clients go first: the next piece waits while one of them is served.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use undercroft_format::overlay::{BLOCK_LEN, BlockState, DataPlace, PART_LEN, PARTS, PartState};
use undercroft_format::units::DiskRange;

use super::disk::OverlayDisk;
use crate::disk::ReadDisk;

/// Bytes filled at once.
const PIECE_LEN: u64 = 1 << 20;
/// After so many bytes what was filled is made durable: what a crash costs.
const FLUSH_EVERY: u64 = 256 << 20;
/// How long a piece waits for clients, in steps.
const YIELD_STEP: Duration = Duration::from_millis(1);
const YIELD_STEPS: u32 = 20;

/// What a pass over the disk came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Bytes that are in their place now.
    pub bytes: u64,
    /// Ranges that could not be read or written, and the first reason.
    pub missing: Vec<DiskRange>,
    /// The first reason.
    pub problem: Option<String>,
}

impl Filled {
    fn misses(&mut self, range: DiskRange, error: &io::Error) {
        self.problem.get_or_insert_with(|| error.to_string());
        match self.missing.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.missing.push(range),
        }
    }
}

impl OverlayDisk {
    /// Bytes of blocks of which nothing is left below.
    pub fn filled_bytes(&self) -> u64 {
        let map = self.overlay.map.read();
        let size = self.size().get();
        let whole = map.blocks_here().filter(|(block, state)| {
            let range = block_range(*block, size);
            missing(*state, range) == 0 && state.lost == 0
        });
        whole.map(|(block, _)| block_range(block, size).len()).sum()
    }

    /// Fills what is not in its place yet, and makes it durable. `going_on` is asked between pieces, and is told the bytes
    /// done since the pass began.
    ///
    /// # Errors
    /// What the system says when bytes are to be made durable. What cannot be read or written is in the result.
    pub fn fill(&self, mut going_on: impl FnMut(u64) -> bool) -> io::Result<Filled> {
        let mut filled = Filled::default();
        let mut flushed = 0;
        let size = self.size().get();
        let mut at = 0;
        while at < size && going_on(filled.bytes) {
            let piece = DiskRange::new(at, (at + PIECE_LEN).min(size));
            at = piece.end;
            if self.is_filled(piece) {
                filled.bytes += piece.len();
                continue;
            }
            self.let_clients_go_first();
            match self.fill_piece(piece) {
                Ok(()) => filled.bytes += piece.len(),
                // One block that cannot be had is no reason to leave out its neighbours.
                Err(_) => self.fill_blocks(piece, &mut filled, &mut going_on),
            }
            if filled.bytes - flushed >= FLUSH_EVERY {
                self.overlay.flush()?;
                flushed = filled.bytes;
            }
        }
        self.overlay.flush()?;
        Ok(filled)
    }

    /// Makes zeros in the final place of what the map calls zeros whatever lies there: what was there before the restore,
    /// or what was written and lost its entry in a crash. Until then the final place is the disk only together with the map.
    ///
    /// # Errors
    /// What the system says.
    pub fn settle_zeros(&self) -> io::Result<()> {
        let (overlay, size) = (&self.overlay, self.size().get());
        if overlay.header.data == DataPlace::Here {
            return Ok(());
        }
        let first = overlay.header.data_at(0);
        let mut at = 0;
        while at < size
            && let Some(data) = overlay.data.next_data(first + at, first + size)?
        {
            let (start, end) = (data.start - first, (data.end - first).min(size));
            self.by_block(DiskRange::new(start, end), |range| {
                self.runs(range, &mut |run, state| match state {
                    PartState::Zeros => overlay.data.punch(first + run.start, run.len()),
                    _ => Ok(()),
                })
            })?;
            at = end;
        }
        overlay.data.sync()
    }

    fn fill_blocks(
        &self,
        piece: DiskRange,
        filled: &mut Filled,
        going_on: &mut impl FnMut(u64) -> bool,
    ) {
        let mut at = piece.start;
        while at < piece.end && going_on(filled.bytes) {
            let block = DiskRange::new(at, (at + BLOCK_LEN).min(piece.end));
            at = block.end;
            match self.fill_piece(block) {
                Ok(()) => filled.bytes += block.len(),
                Err(error) => filled.misses(block, &error),
            }
        }
    }

    fn is_filled(&self, range: DiskRange) -> bool {
        let size = self.size().get();
        let states = self.overlay.states(range);
        (range.start / BLOCK_LEN..)
            .zip(states)
            .all(|(block, state)| missing(state, block_range(block, size)) == 0 && state.lost == 0)
    }

    fn let_clients_go_first(&self) {
        for _ in 0..YIELD_STEPS {
            if self.busy.load(Ordering::Relaxed) == 0 {
                return;
            }
            std::thread::sleep(YIELD_STEP);
        }
    }

    fn fill_piece(&self, piece: DiskRange) -> io::Result<()> {
        // What is below never changes: it can be read before it is settled what of it is still wanted.
        let mut bytes = vec![0; piece.len() as usize];
        let holes = self.below.allocation(piece, usize::MAX)?;
        for part in holes.iter().filter(|part| part.is_data) {
            let from = (part.range.start - piece.start) as usize;
            let out = &mut bytes[from..from + part.range.len() as usize];
            self.below.read_at(part.range.start, out)?;
        }
        self.by_block(piece, |range| {
            let from = (range.start - piece.start) as usize;
            self.fill_block(range, &bytes[from..from + range.len() as usize])
        })?;
        // What a client wrote there is not to be had below.
        match self
            .overlay
            .states(piece)
            .iter()
            .any(|state| state.lost != 0)
        {
            true => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "what was written there is lost: the state's map is damaged",
            )),
            false => Ok(()),
        }
    }

    /// Puts what is missing of a block in its place. To be called in the block's turn.
    fn fill_block(&self, range: DiskRange, bytes: &[u8]) -> io::Result<()> {
        let missing = missing(self.overlay.states(range)[0], range);
        let mut part = 0;
        while part < PARTS {
            let is_missing = |part: u32| part < PARTS && missing >> part & 1 != 0;
            let is_zero = |part: u32| {
                let from = (u64::from(part) * PART_LEN) as usize;
                let to = (from + PART_LEN as usize).min(bytes.len());
                bytes[from.min(to)..to].iter().all(|byte| *byte == 0)
            };
            if !is_missing(part) {
                part += 1;
                continue;
            }
            let (first, zero) = (part, is_zero(part));
            while is_missing(part) && is_zero(part) == zero {
                part += 1;
            }
            let start = range.start + u64::from(first) * PART_LEN;
            let end = (range.start + u64::from(part) * PART_LEN).min(range.end);
            let run = DiskRange::new(start, end);
            let from = (start - range.start) as usize;
            match zero {
                true => self.zero_in_block(run, false)?,
                false => self.write_whole(run, &bytes[from..from + run.len() as usize])?,
            }
        }
        Ok(())
    }
}

fn block_range(block: u64, size: u64) -> DiskRange {
    DiskRange::new(block * BLOCK_LEN, ((block + 1) * BLOCK_LEN).min(size))
}

/// The parts of a block that are not here, of those that the disk has.
fn missing(state: BlockState, range: DiskRange) -> u16 {
    let parts = range.len().div_ceil(PART_LEN) as u32;
    let all = u16::MAX >> (PARTS - parts);
    state.below() & all
}
