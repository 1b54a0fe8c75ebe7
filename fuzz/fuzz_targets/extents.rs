//! A list of changed extents in JSON: whatever it is, it gives ranges of the disk, in order and apart from each
//! other, or an error; a list of ours gives the blocks that its extents touch.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use undercroft_format::source::changed::BLOCK_LEN;
use undercroft_format::source::extents::changed_extents;
use undercroft_format::units::{DiskLength, DiskRange};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Text {
        size: u64,
        parent_size: u64,
        text: &'a [u8],
    },
    Extents {
        size: u32,
        extents: Vec<(u32, u16)>,
    },
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Text {
        size,
        parent_size,
        text,
    } => {
        let found = changed_extents(text, DiskLength::new(size), DiskLength::new(parent_size));
        if let Ok(changed) = found {
            let ranges = changed.ranges();
            assert!(ranges.iter().all(|range| range.end <= size && !range.is_empty()));
            assert!(ranges.is_sorted_by(|a, b| a.end < b.start));
        }
    }
    Input::Extents { size, extents } => {
        let entries: Vec<String> = extents
            .iter()
            .map(|(offset, length)| format!("{{\"offset\":{offset},\"length\":{length}}}"))
            .collect();
        let text = format!("[{}]", entries.join(","));
        let size = u64::from(size);
        let found = changed_extents(text.as_bytes(), DiskLength::new(size), DiskLength::new(size));
        let ranges = extents.iter().map(|(offset, length)| {
            let offset = u64::from(*offset);
            DiskRange::new(offset, offset + u64::from(*length))
        });
        let ranges: Vec<DiskRange> = ranges.collect();
        let blocks = size.div_ceil(BLOCK_LEN);
        assert_eq!(
            found.is_ok(),
            ranges.iter().all(|range| range.end.div_ceil(BLOCK_LEN) <= blocks)
        );
        let Ok(changed) = found else { return };
        for range in ranges {
            let range = range.intersect(DiskRange::new(0, size));
            let covered: u64 = changed.within(range).map(DiskRange::len).sum();
            assert_eq!(covered, range.len());
        }
        for range in changed.ranges() {
            assert_eq!(range.start % BLOCK_LEN, 0);
            assert!(range.end % BLOCK_LEN == 0 || range.end == size);
        }
    }
});
