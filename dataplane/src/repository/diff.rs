//! Differences between two disks: which ranges hold other data.

use undercroft_format::extent::Extent;
use undercroft_format::ranges::RangeSet;
use undercroft_format::segment::SegmentMap;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::units::DiskRange;

use super::error::Result;
use super::objects::{Objects, ReadNodes};

/// The ranges in which `b` differs from `a`, by chunk ids: shared subtrees and segments are not read,
/// chunks neither. Ranges past the end of the shorter disk differ.
///
/// Equal ids mean equal bytes; other ids mean other bytes unless the two were cut differently, so the
/// answer may cover too much but never too little.
pub fn diff_disks(objects: &Objects, a: &DiskManifest, b: &DiskManifest) -> Result<RangeSet> {
    let (short, long) = (
        a.size.get().min(b.size.get()),
        a.size.get().max(b.size.get()),
    );
    if a.segment_size != b.segment_size {
        return Ok(RangeSet::whole(long));
    }
    let mut ranges = vec![DiskRange::new(short, long)];
    let differing = undercroft_format::maptree::diff(&mut ReadNodes(objects), a.tree(), b.tree())?;
    for (number, in_a, in_b) in differing {
        let start = number.0 * a.segment_size.bytes();
        let read = |id: Option<_>| id.map(|id| objects.segment_map(id)).transpose();
        let (map_a, map_b) = (read(in_a)?, read(in_b)?);
        let len = [&map_a, &map_b]
            .into_iter()
            .flatten()
            .map(SegmentMap::len)
            .max();
        let zero = SegmentMap::zero(len.unwrap_or(0));
        let (map_a, map_b) = (
            map_a.as_ref().unwrap_or(&zero),
            map_b.as_ref().unwrap_or(&zero),
        );
        diff_maps(map_a, map_b, start, &mut ranges);
    }
    let whole = DiskRange::new(0, long);
    Ok(ranges
        .into_iter()
        .map(|range| range.intersect(whole))
        .collect())
}

fn diff_maps(a: &SegmentMap, b: &SegmentMap, start: u64, ranges: &mut Vec<DiskRange>) {
    let (mut left, mut right) = (pieces(a), pieces(b));
    let (mut x, mut y) = (left.next(), right.next());
    let mut at = start;
    while let (Some(p), Some(q)) = (x, y) {
        let len = p.len().min(q.len());
        if p.slice(0, len) != q.slice(0, len) {
            ranges.push(DiskRange::new(at, at + u64::from(len)));
        }
        at += u64::from(len);
        x = rest(p, len).or_else(|| left.next());
        y = rest(q, len).or_else(|| right.next());
    }
    let end = start + u64::from(a.len().max(b.len()));
    ranges.push(DiskRange::new(at, end));
}

fn pieces(map: &SegmentMap) -> impl Iterator<Item = Extent> + '_ {
    map.extents().iter().copied()
}

fn rest(extent: Extent, taken: u32) -> Option<Extent> {
    (taken < extent.len()).then(|| extent.slice(taken, extent.len() - taken))
}
