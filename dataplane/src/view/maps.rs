//! A segment's map with the place of each extent, so that a read finds its extents without looking at all of them.

use undercroft_format::extent::Extent;
use undercroft_format::segment::SegmentMap;

/// A map whose extents can be found by position.
#[derive(Debug)]
pub struct PlacedMap {
    /// Where each extent begins, from the segment's start; ascending, the first 0.
    starts: Vec<u32>,
    map: SegmentMap,
}

impl PlacedMap {
    /// Places the extents of `map`.
    pub fn new(map: SegmentMap) -> Self {
        Self {
            starts: map.placed().map(|(at, _)| at).collect(),
            map,
        }
    }

    /// The extents that lie in `start..end`, from the segment's start, cut to it, with their positions.
    pub fn within(&self, start: u32, end: u32) -> impl Iterator<Item = (u32, Extent)> + '_ {
        let first = self.starts.partition_point(|at| *at <= start);
        let first = first.saturating_sub(1);
        let extents = self.map.extents()[first..].iter();
        let placed = self.starts[first..].iter().zip(extents);
        placed
            .take_while(move |(at, _)| **at < end)
            .map(move |(at, extent)| {
                let from = (*at).max(start);
                let to = at.saturating_add(extent.len()).min(end);
                (from, extent.slice(from - at, to.saturating_sub(from)))
            })
            .filter(|(_, extent)| !extent.is_empty())
    }

    /// Bytes of memory.
    pub fn memory_len(&self) -> usize {
        self.starts.len() * (size_of::<u32>() + size_of::<Extent>())
    }
}

#[cfg(test)]
mod tests {
    use undercroft_format::id::ChunkId;

    use super::*;

    #[test]
    fn a_range_finds_its_extents_and_no_others() {
        let chunk = |byte| ChunkId::from_bytes([byte; 32]);
        let data = |byte, offset, len| Extent::Data {
            chunk: chunk(byte),
            offset,
            len,
        };
        let map = PlacedMap::new(SegmentMap::from_extents([
            Extent::Zero { len: 10 },
            data(1, 0, 20),
            data(2, 5, 1),
            Extent::Zero { len: 9 },
        ]));
        let within = |start, end| map.within(start, end).collect::<Vec<_>>();
        assert_eq!(within(0, 10), [(0, Extent::Zero { len: 10 })]);
        assert_eq!(
            within(9, 31),
            [
                (9, Extent::Zero { len: 1 }),
                (10, data(1, 0, 20)),
                (30, data(2, 5, 1))
            ]
        );
        assert_eq!(within(15, 17), [(15, data(1, 5, 2))]);
        assert_eq!(within(39, 40), [(39, Extent::Zero { len: 1 })]);
        assert!(within(12, 12).is_empty() && within(40, 41).is_empty());
    }
}
