//! The plan of a segment: which chunks its extents need, and where their bytes go.

use std::collections::HashMap;

use undercroft_format::extent::Extent;
use undercroft_format::id::ChunkId;
use undercroft_format::segment::SegmentMap;
use undercroft_format::units::{DiskRange, SegmentNumber};

use crate::repository::records::{Batch, Wanted};

/// A use of a chunk in the segment.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Where in the segment.
    pub at: u32,
    /// First byte within the chunk.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// What it takes to restore one segment.
#[derive(Debug)]
pub struct SegmentPlan {
    /// Which segment.
    pub number: SegmentNumber,
    /// Where it lies on the disk.
    pub range: DiskRange,
    /// What it holds; a segment whose map cannot be read has none.
    pub map: SegmentMap,
    /// The chunks.
    pub batch: Batch,
    /// Where their bytes go, by the chunks' tags.
    pub uses: Vec<Vec<Use>>,
}

impl SegmentPlan {
    /// Plans the segment that `map` describes.
    pub fn new(number: SegmentNumber, range: DiskRange, map: SegmentMap) -> Self {
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut uses: Vec<Vec<Use>> = Vec::new();
        let mut known: HashMap<ChunkId, usize> = HashMap::new();
        for (at, extent) in map.placed() {
            let Extent::Data { chunk, offset, len } = *extent else {
                continue;
            };
            let tag = *known.entry(chunk).or_insert_with(|| {
                wanted.push(Wanted {
                    id: chunk.into(),
                    tag: uses.len(),
                    plain_len_min: 0,
                    located: None,
                    fetched: None,
                });
                uses.push(Vec::new());
                uses.len() - 1
            });
            uses[tag].push(Use { at, offset, len });
            let chunk = &mut wanted[tag];
            chunk.plain_len_min = chunk.plain_len_min.max(offset.saturating_add(len));
        }
        Self {
            number,
            range,
            map,
            batch: Batch {
                token: number.0,
                wanted,
                fetch_len: 0,
            },
            uses,
        }
    }
}
