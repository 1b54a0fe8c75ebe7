//! An overlay over a disk, as one disk that can be written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use undercroft_format::overlay::{BLOCK_LEN, DataPlace, PART_LEN, PartState};
use undercroft_format::units::{DiskLength, DiskRange};

use super::Overlay;
use crate::disk::{Allocation, ReadDisk};
use crate::nbd::export::{WriteDisk, ZeroFlags};

/// Ends a walk that has found what it wanted.
const ENOUGH: io::ErrorKind = io::ErrorKind::Interrupted;
const ZEROS: [u8; PART_LEN as usize] = [0; PART_LEN as usize];

/// What is written goes to the overlay; what it does not have comes from below.
pub struct OverlayDisk {
    pub(super) overlay: Arc<Overlay>,
    pub(super) below: Arc<dyn ReadDisk>,
    /// Requests of clients that are being served.
    pub(super) busy: AtomicUsize,
}

impl OverlayDisk {
    /// `overlay` over `below`.
    ///
    /// # Panics
    /// If their sizes differ: whoever opened the overlay compared them.
    pub fn new(overlay: Arc<Overlay>, below: Arc<dyn ReadDisk>) -> Self {
        assert_eq!(overlay.header.size, below.size(), "it is another disk's");
        Self {
            overlay,
            below,
            busy: AtomicUsize::new(0),
        }
    }

    /// The overlay.
    pub fn overlay(&self) -> &Arc<Overlay> {
        &self.overlay
    }

    fn end(&self) -> u64 {
        self.overlay.header.size.get()
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<DiskRange> {
        match offset.checked_add(len) {
            Some(end) if end <= self.end() => Ok(DiskRange::new(offset, end)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Tells `found` of the runs of parts in `range` that are at one place.
    pub(super) fn runs(
        &self,
        range: DiskRange,
        found: &mut dyn FnMut(DiskRange, PartState) -> io::Result<()>,
    ) -> io::Result<()> {
        let states = self.overlay.states(range);
        let first = range.start / BLOCK_LEN;
        let state_at = |at: u64| {
            let state = states[(at / BLOCK_LEN - first) as usize];
            state.part((at % BLOCK_LEN / PART_LEN) as u32)
        };
        let mut at = range.start;
        while at < range.end {
            let state = state_at(at);
            let start = at;
            while at < range.end && state_at(at) == state {
                at = ((at / PART_LEN + 1) * PART_LEN).min(range.end);
            }
            found(DiskRange::new(start, at), state)?;
        }
        Ok(())
    }

    fn read_here(&self, range: DiskRange, out: &mut [u8]) -> io::Result<()> {
        let at = self.overlay.header.data_at(range.start);
        let got = self.overlay.data.read_at(out, at)?;
        // What was never written up to the file's end is not there.
        out[got..].fill(0);
        Ok(())
    }

    fn read_run(&self, range: DiskRange, state: PartState, out: &mut [u8]) -> io::Result<()> {
        match state {
            PartState::Below => self.below.read_at(range.start, out),
            PartState::Data => self.read_here(range, out),
            PartState::Zeros => {
                out.fill(0);
                Ok(())
            }
            PartState::Lost => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("bytes {range} of the overlay are lost: its map is damaged there"),
            )),
        }
    }

    /// Writes `bytes`, which lie within one block. To be called in the block's turn.
    fn write_in_block(&self, range: DiskRange, bytes: &[u8]) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let part_start = at / PART_LEN * PART_LEN;
            let part_end = (part_start + PART_LEN).min(self.end());
            let is_whole = at == part_start && range.end >= part_end;
            // As many whole parts as there are, or one that is not.
            let to = match is_whole && range.end == self.end() {
                true => range.end,
                false if is_whole => range.end / PART_LEN * PART_LEN,
                false => range.end.min(part_end),
            };
            let (here, from) = (DiskRange::new(at, to), (at - range.start) as usize);
            let piece = &bytes[from..from + here.len() as usize];
            match is_whole {
                true => self.write_whole(here, piece)?,
                false => self.write_part(here, DiskRange::new(part_start, part_end), piece)?,
            }
            at = to;
        }
        Ok(())
    }

    /// Writes whole parts of one block.
    pub(super) fn write_whole(&self, range: DiskRange, bytes: &[u8]) -> io::Result<()> {
        let overlay = &self.overlay;
        let at = overlay.header.data_at(range.start);
        overlay.data.write_all_at(bytes, at)?;
        let parts = parts_of(range);
        overlay.change(range.start / BLOCK_LEN, |state| state.with_data(parts));
        Ok(())
    }

    /// Writes some bytes of `part`.
    fn write_part(&self, range: DiskRange, part: DiskRange, bytes: &[u8]) -> io::Result<()> {
        let overlay = &self.overlay;
        let state = overlay.states(part)[0];
        let state = state.part((part.start % BLOCK_LEN / PART_LEN) as u32);
        if state == PartState::Data {
            let at = overlay.header.data_at(range.start);
            overlay.data.write_all_at(bytes, at)?;
            overlay.change(part.start / BLOCK_LEN, |state| state);
            return Ok(());
        }
        let mut whole = vec![0; part.len() as usize];
        self.read_run(part, state, &mut whole)?;
        let from = (range.start - part.start) as usize;
        whole[from..from + bytes.len()].copy_from_slice(bytes);
        self.write_whole(part, &whole)
    }

    /// Calls `work` with the part of `range` in each block, in the block's turn.
    pub(super) fn by_block(
        &self,
        range: DiskRange,
        mut work: impl FnMut(DiskRange) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let block = at / BLOCK_LEN;
            let to = ((block + 1) * BLOCK_LEN).min(range.end);
            self.overlay.reserve(block)?;
            let turns = &self.overlay.turns;
            let _turn = turns[(block % turns.len() as u64) as usize].lock();
            work(DiskRange::new(at, to))?;
            at = to;
        }
        Ok(())
    }

    /// Makes zeros of what lies within one block. To be called in the block's turn.
    pub(super) fn zero_in_block(&self, range: DiskRange, edges: bool) -> io::Result<()> {
        let whole_end = match range.end == self.end() {
            true => range.end,
            false => range.end / PART_LEN * PART_LEN,
        };
        let whole = DiskRange::new(range.start.next_multiple_of(PART_LEN), whole_end);
        let whole = whole.intersect(range);
        if whole.is_empty() {
            return self.zero_edge(range, edges);
        }
        self.zero_edge(DiskRange::new(range.start, whole.start), edges)?;
        self.zero_edge(DiskRange::new(whole.end, range.end), edges)?;
        let overlay = &self.overlay;
        let block = whole.start / BLOCK_LEN;
        let parts = parts_of(whole);
        let before = overlay.states(whole)[0];
        // Without it the map would say zeros all the same; but what lies elsewhere is read without the map later.
        let is_elsewhere = overlay.header.data == DataPlace::Elsewhere;
        if is_elsewhere || before.here & !before.zeros & parts != 0 {
            let at = overlay.header.data_at(whole.start);
            overlay.data.punch(at, whole.len())?;
        }
        overlay.change(block, |state| state.with_zeros(parts));
        Ok(())
    }

    /// Makes zeros of less than a part.
    fn zero_edge(&self, range: DiskRange, edges: bool) -> io::Result<()> {
        if range.is_empty() || !edges {
            return Ok(());
        }
        let mut is_zero = true;
        self.runs(range, &mut |_, state| {
            is_zero &= state == PartState::Zeros;
            Ok(())
        })?;
        match is_zero {
            true => Ok(()),
            false => self.write_in_block(range, &vec![0; range.len() as usize]),
        }
    }
}

/// A request that is being served.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Adds a part behind others, or to the last of them.
fn add(parts: &mut Vec<Allocation>, range: DiskRange, is_data: bool) {
    match parts.last_mut() {
        Some(last) if last.is_data == is_data => last.range.end = range.end,
        _ => parts.push(Allocation { range, is_data }),
    }
}

/// The bits of the parts of one block that `range` touches.
fn parts_of(range: DiskRange) -> u16 {
    let first = range.start % BLOCK_LEN / PART_LEN;
    let last = (range.end - 1) % BLOCK_LEN / PART_LEN;
    (first..=last).fold(0, |bits, part| bits | 1 << part)
}

impl ReadDisk for OverlayDisk {
    fn size(&self) -> DiskLength {
        self.overlay.header.size
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = self.check(offset, out.len() as u64)?;
        let _busy = Busy::new(&self.busy);
        self.runs(range, &mut |run, state| {
            let from = (run.start - offset) as usize;
            self.read_run(run, state, &mut out[from..from + run.len() as usize])
        })
    }

    fn allocation(&self, range: DiskRange, parts_max: usize) -> io::Result<Vec<Allocation>> {
        let mut parts: Vec<Allocation> = Vec::new();
        let done = self.runs(range, &mut |run, state| {
            if state != PartState::Below {
                add(&mut parts, run, state != PartState::Zeros);
            } else {
                let below = self.below.allocation(run, parts_max.saturating_add(1))?;
                for part in &below {
                    add(&mut parts, part.range, part.is_data);
                }
                if below.last().is_none_or(|part| part.range.end != run.end) {
                    return Err(ENOUGH.into());
                }
            }
            // One more says where the last one ends.
            match parts.len() > parts_max {
                true => Err(ENOUGH.into()),
                false => Ok(()),
            }
        });
        if let Err(error) = done
            && error.kind() != ENOUGH
        {
            return Err(error);
        }
        parts.truncate(parts_max);
        Ok(parts)
    }
}

impl WriteDisk for OverlayDisk {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.check(offset, bytes.len() as u64)?;
        let _busy = Busy::new(&self.busy);
        self.by_block(range, |part| {
            let from = (part.start - offset) as usize;
            self.write_in_block(part, &bytes[from..from + part.len() as usize])
        })
    }

    fn write_zeros(&self, range: DiskRange, flags: ZeroFlags) -> io::Result<()> {
        self.check(range.start, range.len())?;
        self.by_block(range, |part| match flags.may_punch {
            true => self.zero_in_block(part, true),
            false => {
                let mut at = part.start;
                while at < part.end {
                    let to = ((at / PART_LEN + 1) * PART_LEN).min(part.end);
                    let piece = DiskRange::new(at, to);
                    self.write_in_block(piece, &ZEROS[..piece.len() as usize])?;
                    at = to;
                }
                Ok(())
            }
        })
    }

    fn trim(&self, range: DiskRange) -> io::Result<()> {
        self.check(range.start, range.len())?;
        self.by_block(range, |part| self.zero_in_block(part, false))
    }

    fn flush(&self) -> io::Result<()> {
        self.overlay.flush()
    }
}
