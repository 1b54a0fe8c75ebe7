//! A segment map: what decodes encodes to the same bytes, covers its segment exactly, and holds no more
//! extents than it has bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::extent::Extent;
use undercroft_format::segment::SegmentMap;

fuzz_target!(|bytes: &[u8]| {
    let Ok(map) = SegmentMap::decode(bytes) else {
        return;
    };
    assert_eq!(map.encode(), bytes);
    assert!(!map.is_zero() && map.extents().len() <= bytes.len());
    let covered: u64 = map
        .extents()
        .iter()
        .map(|extent| u64::from(extent.len()))
        .sum();
    assert_eq!(covered, u64::from(map.len()));
    for extent in map.extents() {
        if let Extent::Data { offset, len, .. } = extent {
            assert!(offset.checked_add(*len).is_some());
        }
    }
    let again = SegmentMap::from_extents(map.extents().iter().copied());
    assert_eq!(again, map, "not in canonical form");
    assert_eq!(map.splice(map.len(), &[]), map);
});
