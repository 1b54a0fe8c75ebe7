//! Differencing VHDs as what changed on a disk since a snapshot of it.

use std::io;
use std::sync::Arc;

use undercroft_format::ranges::RangeSet;
use undercroft_format::units::{DiskLength, DiskRange};
use undercroft_format::vhd::uuid::VhdUuid;

use super::disk::VhdDisk;
use super::layer::Layer;
use crate::ingest::source::{Changes, DiskSource};
use crate::io::BlockFile;

/// Bytes to whose multiples changes are rounded outwards, as those of bitmaps are. What a block of these has that did
/// not change is the snapshot's.
const BLOCK_LEN: u64 = 64 << 10;

/// What changed on a disk.
#[derive(Debug)]
pub struct VhdDelta {
    layers: Vec<Layer>,
    parent: VhdUuid,
}

impl VhdDelta {
    /// What `layers`, the newest first, change on the disk that `parent` was.
    pub fn new(layers: Vec<Layer>, parent: VhdUuid) -> Self {
        Self { layers, parent }
    }

    /// Who the disk is after the changes.
    pub fn uuid(&self) -> VhdUuid {
        self.newest().image().footer.uuid
    }

    /// Who the disk was before.
    pub fn parent(&self) -> VhdUuid {
        self.parent
    }

    /// False if an identity was drawn for one export only, and says nothing about the disk.
    pub fn has_identity(&self) -> bool {
        let is_export = |layer: &Layer| layer.image().footer.is_export();
        !self.layers.iter().any(is_export)
    }

    fn newest(&self) -> &Layer {
        self.layers.first().expect("a delta has a layer")
    }
}

impl Changes for VhdDelta {
    fn size(&self) -> DiskLength {
        self.newest().image().size
    }

    fn changed(&self, parent_size: DiskLength) -> io::Result<RangeSet> {
        let size = self.size().get();
        let mut ranges = vec![DiskRange::new(parent_size.get().min(size), size)];
        for layer in &self.layers {
            let mut at = 0;
            while let Some(here) = layer.next_here(at, size)? {
                let start = here.start - here.start % BLOCK_LEN;
                let end = here.end.next_multiple_of(BLOCK_LEN).min(size);
                match ranges.last_mut() {
                    Some(last) if (last.start..=last.end).contains(&start) => {
                        last.end = last.end.max(end);
                    }
                    _ => ranges.push(DiskRange::new(start, end)),
                }
                at = end;
            }
        }
        Ok(ranges.into_iter().collect())
    }

    fn over(self: Box<Self>, parent: Arc<dyn BlockFile>) -> DiskSource {
        VhdDisk::new(self.layers, Some(parent)).into_source()
    }
}
