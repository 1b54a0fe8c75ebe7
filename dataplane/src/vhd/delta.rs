//! Differencing VHDs as what changed on a disk since a snapshot of it.

use std::io;
use std::sync::Arc;

use undercroft_format::ranges::RangeSet;
use undercroft_format::source::changed::{BLOCK_LEN, ChangedRanges};
use undercroft_format::units::DiskLength;
use undercroft_format::vhd::uuid::VhdUuid;

use super::disk::VhdDisk;
use super::layer::Layer;
use crate::ingest::source::{Changes, DiskSource};
use crate::io::BlockFile;

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

    fn changed(&self) -> io::Result<RangeSet> {
        let size = self.size();
        let mut changed = ChangedRanges::default();
        for layer in &self.layers {
            let mut at = 0;
            while let Some(here) = layer.next_here(at, size.get())? {
                changed.add(here);
                at = here.end.next_multiple_of(BLOCK_LEN);
            }
        }
        Ok(changed.finish(size, size))
    }

    fn over(self: Box<Self>, parent: Arc<dyn BlockFile>) -> DiskSource {
        VhdDisk::new(self.layers, Some(parent)).into_source()
    }
}
