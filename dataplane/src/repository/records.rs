//! Reading records by the ids of their objects, wherever the repository is.

use std::sync::Arc;

use undercroft_format::id::{ObjectId, SegmentMapId};
use undercroft_format::pack::ObjectKind;

use super::error::Result;
use super::lookup::Located;
use crate::io::{Buffer, BufferPool, Engine};

/// Gives the records of objects. Records are asked for by id: where they stand is the repository's own
/// business.
pub trait Records: Send + Sync {
    /// The payload of one object, its checksum checked, and where it stands.
    ///
    /// # Errors
    /// [`MissingObject`](super::error::RepositoryError::MissingObject) or
    /// [`CorruptObject`](super::error::RepositoryError::CorruptObject) if it is not to be had.
    fn payload(&self, id: ObjectId, kind: ObjectKind) -> Result<(Located, Vec<u8>)>;

    /// Bytes of buffers beside the largest batch that fetching makes good use of: what comes from far away
    /// is asked for earlier.
    fn fetch_ahead_len(&self) -> usize;

    /// Says that the maps `ids` will be asked for soon, in this order, and before those of the next call.
    /// Does not wait for them.
    fn expect_maps(&self, ids: &[SegmentMapId]) {
        let _ = ids;
    }

    /// A way to fetch many chunks at a time into buffers of `pool`.
    fn fetch(&self, engine: &dyn Engine, pool: &Arc<BufferPool>) -> Result<Box<dyn Fetch + '_>>;
}

/// A chunk to be fetched.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The chunk.
    pub id: ObjectId,
    /// The asker's number for it: fetching may change the order.
    pub tag: usize,
    /// Bytes that the chunk has at least.
    pub plain_len_min: u32,
    /// Where its record stands, once that is known; `None` if the repository does not have it.
    pub located: Option<Located>,
    /// Where it lies in the buffer; `None` if it was not fetched and has to be asked for alone.
    pub fetched: Option<Fetched>,
}

/// What lies in the buffer, and from which byte on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The whole record as it stands in its pack, nothing checked yet.
    Record(usize),
    /// The payload, its checksum checked.
    Payload(usize),
}

/// Chunks that are fetched together.
#[derive(Debug, Default)]
pub struct Batch {
    /// The asker's number for the batch.
    pub token: u64,
    /// The chunks.
    pub wanted: Vec<Wanted>,
    /// Bytes of buffer that fetching them takes; 0 if nothing can be fetched together.
    pub fetch_len: usize,
}

/// Batches under way.
pub trait Fetch {
    /// Finds out what fetching takes; `fetch_len` says it afterwards.
    fn prepare(&mut self, batch: &mut Batch) -> Result<()>;

    /// Begins to fetch a prepared batch into `buffer`, which has its `fetch_len`.
    fn submit(&mut self, batch: Batch, buffer: Buffer);

    /// Waits for a batch, in any order; `None` if none is under way. `fetch_len` is then what was really
    /// fetched. What could not be fetched is not
    /// marked as fetched: asking for it alone will tell why.
    fn wait(&mut self) -> Option<(Batch, Buffer)>;
}
