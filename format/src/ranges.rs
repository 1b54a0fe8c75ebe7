//! Sets of ranges of a disk: what an increment has to read.

use crate::units::DiskRange;

/// Ranges in address order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<DiskRange>);

impl RangeSet {
    /// The set that covers `0..size`.
    pub fn whole(size: u64) -> Self {
        Self::from_iter([DiskRange::new(0, size)])
    }

    /// The ranges, in address order.
    pub fn ranges(&self) -> &[DiskRange] {
        &self.0
    }

    /// Bytes covered.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.len()).sum()
    }

    /// True if nothing is covered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What of `0..size` the set does not cover.
    pub fn complement(&self, size: u64) -> Self {
        let starts = std::iter::once(0).chain(self.0.iter().map(|range| range.end));
        let ends = self.0.iter().map(|range| range.start);
        let ends = ends.chain(std::iter::once(size));
        let gaps = starts.zip(ends);
        gaps.map(|(start, end)| DiskRange::new(start, end.min(size)))
            .collect()
    }

    /// The parts of the set that lie in `window`, in address order.
    pub fn within(&self, window: DiskRange) -> impl Iterator<Item = DiskRange> + '_ {
        let first = self.0.partition_point(|range| range.end <= window.start);
        self.0[first..]
            .iter()
            .take_while(move |range| range.start < window.end)
            .map(move |range| range.intersect(window))
    }
}

impl FromIterator<DiskRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = DiskRange>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges
            .into_iter()
            .filter(|range| !range.is_empty())
            .collect();
        ranges.sort_unstable();
        ranges.dedup_by(|range, last| {
            let is_apart = range.start > last.end;
            if !is_apart {
                last.end = last.end.max(range.end);
            }
            !is_apart
        });
        Self(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_and_overlapping_ranges_become_one() {
        let set: RangeSet = [(5, 9), (0, 2), (2, 4), (8, 12), (3, 3)]
            .into_iter()
            .map(|(start, end)| DiskRange::new(start, end))
            .collect();
        assert_eq!(set.ranges(), [DiskRange::new(0, 4), DiskRange::new(5, 12)]);
        assert_eq!(set.bytes(), 11);
        let gaps = |size| set.complement(size).0;
        assert_eq!(gaps(11), [DiskRange::new(4, 5)]);
        assert_eq!(gaps(20), [DiskRange::new(4, 5), DiskRange::new(12, 20)]);
        assert_eq!(RangeSet::default().complement(7), RangeSet::whole(7));
        assert_eq!(RangeSet::whole(7).complement(7), RangeSet::default());
        let within: Vec<_> = set.within(DiskRange::new(3, 6)).collect();
        assert_eq!(within, [DiskRange::new(3, 4), DiskRange::new(5, 6)]);
    }
}
