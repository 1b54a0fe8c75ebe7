//! Ranges that changed, gathered one by one in bounded memory, whoever tells of them.
//!
//! All are rounded outwards to blocks of 64 KiB: what tells of changes does so in blocks of at least that size
//! (XAPI 64 KiB, VHD 2 MiB), or may (QEMU).

use crate::ranges::RangeSet;
use crate::units::{DiskLength, DiskRange};

/// Bytes to whose multiples ranges are rounded.
pub const BLOCK_LEN: u64 = 64 << 10;
/// Ranges kept, in 16 bytes each. Where there are more, the smallest gaps are filled: some blocks are then
/// read in vain, none is missed.
const RANGES_MAX: usize = 2 << 20;

/// The ranges so far. Those that are told in order, as most are, take a place only where they do not touch.
#[derive(Clone, Debug)]
pub struct ChangedRanges {
    ranges: Vec<DiskRange>,
    ranges_max: usize,
    /// Gaps up to this many bytes are filled.
    gap: u64,
}

impl Default for ChangedRanges {
    fn default() -> Self {
        Self::with_ranges_max(RANGES_MAX)
    }
}

impl ChangedRanges {
    /// Gathers at most `ranges_max` ranges.
    pub(super) fn with_ranges_max(ranges_max: usize) -> Self {
        Self {
            ranges: Vec::new(),
            ranges_max,
            gap: 0,
        }
    }

    /// Adds a range, rounded outwards. The order does not matter.
    pub fn add(&mut self, range: DiskRange) {
        if range.is_empty() {
            return;
        }
        let start = range.start - range.start % BLOCK_LEN;
        let end = range.end.checked_next_multiple_of(BLOCK_LEN);
        let range = DiskRange::new(start, end.unwrap_or(u64::MAX));
        match self.ranges.last_mut() {
            Some(last) if is_near(last, range, self.gap) => last.end = last.end.max(range.end),
            _ => self.ranges.push(range),
        }
        if self.ranges.len() > self.ranges_max {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.ranges.sort_unstable();
        loop {
            let gap = self.gap;
            self.ranges.dedup_by(|range, last| {
                let is_near = is_near(last, *range, gap);
                if is_near {
                    last.end = last.end.max(range.end);
                }
                is_near
            });
            if self.ranges.len() <= self.ranges_max / 2 {
                return;
            }
            self.gap = self.gap.saturating_mul(2).max(BLOCK_LEN);
        }
    }

    /// What differs, on a disk of `size`, from its parent of `parent_size`: the ranges so far, as far as the
    /// disk reaches, and whatever lies past the parent's end.
    pub fn finish(self, size: DiskLength, parent_size: DiskLength) -> RangeSet {
        let end = size.get();
        let past = DiskRange::new(parent_size.get().min(end), end);
        let clip = |range: DiskRange| DiskRange::new(range.start.min(end), range.end.min(end));
        let ranges = self.ranges.into_iter().map(clip);
        ranges.chain([past]).collect()
    }
}

/// True if `range` begins in `last`, or at most `gap` bytes behind it.
fn is_near(last: &DiskRange, range: DiskRange, gap: u64) -> bool {
    (last.start..=last.end.saturating_add(gap)).contains(&range.start)
}

impl Extend<DiskRange> for ChangedRanges {
    fn extend<I: IntoIterator<Item = DiskRange>>(&mut self, ranges: I) {
        ranges.into_iter().for_each(|range| self.add(range));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn finish(ranges: &[(u64, u64)], size: u64, parent_size: u64) -> Vec<(u64, u64)> {
        let mut changed = ChangedRanges::default();
        changed.extend(
            ranges
                .iter()
                .map(|(start, end)| DiskRange::new(*start, *end)),
        );
        let set = changed.finish(DiskLength::new(size), DiskLength::new(parent_size));
        let ranges = set.ranges().iter();
        ranges.map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn ranges_are_rounded_outwards_and_end_with_the_disk() {
        let size = (3 << 16) + 5;
        assert_eq!(finish(&[(1, 2)], size, size), [(0, 1 << 16)]);
        assert_eq!(finish(&[(3 << 16, size)], size, size), [(3 << 16, size)]);
        assert_eq!(finish(&[(5, 5), (u64::MAX, u64::MAX)], size, size), []);
        assert_eq!(finish(&[(1 << 63, u64::MAX)], size, size), []);
        assert_eq!(finish(&[(0, u64::MAX)], size, size), [(0, size)]);
    }

    #[test]
    fn what_lies_past_the_parents_end_changed() {
        assert_eq!(finish(&[], 9 << 16, 100), [(100, 9 << 16)]);
        assert_eq!(
            finish(&[(0, 1)], 9 << 16, 7 << 16),
            [(0, 1 << 16), (7 << 16, 9 << 16)]
        );
        assert_eq!(finish(&[(8 << 16, 9 << 16)], 7 << 16, 9 << 16), []);
    }

    proptest! {
        #[test]
        fn whatever_was_added_is_covered_in_bounded_memory(
            added in proptest::collection::vec((0..4000_u64, 1..9_u64), 0..200),
            ranges_max in 2..50_usize,
        ) {
            let size = DiskLength::new(4096 * 4096);
            let mut changed = ChangedRanges::with_ranges_max(ranges_max);
            for (start, len) in &added {
                changed.add(DiskRange::new(start * 4096, (start + len) * 4096));
                prop_assert!(changed.ranges.len() <= ranges_max);
            }
            let set = changed.finish(size, size);
            for (start, len) in added {
                let range = DiskRange::new(start * 4096, (start + len) * 4096).intersect(DiskRange::new(0, size.get()));
                prop_assert_eq!(set.within(range).map(DiskRange::len).sum::<u64>(), range.len());
            }
        }

        #[test]
        fn with_room_for_all_only_their_blocks_are_covered(
            added in proptest::collection::vec((0..300_u64, 0..9_u64), 0..40),
        ) {
            let size = 300 * BLOCK_LEN;
            let mut changed = ChangedRanges::default();
            changed.extend(added.iter().map(|(start, len)| DiskRange::new(start * 65_000, (start + len) * 65_000)));
            let set = changed.finish(DiskLength::new(size), DiskLength::new(size));
            for block in 0..300 {
                let block = DiskRange::new(block * BLOCK_LEN, (block + 1) * BLOCK_LEN);
                let is_touched = added.iter().any(|(start, len)| {
                    !DiskRange::new(start * 65_000, (start + len) * 65_000).intersect(block).is_empty()
                });
                let expected = if is_touched { BLOCK_LEN } else { 0 };
                prop_assert_eq!(set.within(block).map(DiskRange::len).sum::<u64>(), expected);
            }
        }
    }
}
