//! Disks whose bytes come in order, but with their places: what lies between them is known to be zero.

use std::fmt;
use std::sync::Arc;

use undercroft_format::units::{DiskLength, SegmentSize};

use super::xva::segments::ArchivedSegment;
use crate::io::BufferPool;
use crate::progress::Progress;
use crate::repository::error::Result;

/// What segments are put into.
pub struct Room<'a> {
    /// Size of the segments.
    pub segment_size: SegmentSize,
    /// Where their buffers come from.
    pub pool: &'a Arc<BufferPool>,
    /// Counts, and says when to stop.
    pub progress: &'a Progress,
}

/// A disk that can be read once, from its start on.
pub trait OrderedDisk: fmt::Debug + Send {
    /// Size of the disk.
    fn size(&self) -> DiskLength;

    /// The next segment that has data; `None` after the last, when the source was seen to be complete.
    ///
    /// # Errors
    /// What is wrong with the source; [`Cancelled`](crate::repository::error::RepositoryError::Cancelled).
    fn next_segment(&mut self, room: &Room<'_>) -> Result<Option<ArchivedSegment>>;
}
