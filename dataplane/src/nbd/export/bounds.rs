//! How much may be in flight, and how long things may take.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::reply::Buffers;

/// Connections at once.
pub const CONNECTIONS_MAX: usize = 256;
/// From a connection's start to an open export.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(15);
/// A client that takes nothing of its replies for this long is let go.
pub const STALLED_AFTER: Duration = Duration::from_secs(60);
/// Threads that serve requests: as many wait for disks at once.
pub const THREADS: usize = 32;

/// Bytes of requests and replies in flight on one connection: one request of any size fits.
const CONNECTION_BYTES: u64 = 64 << 20;
/// The same, of all connections.
const ALL_BYTES: u64 = 256 << 20;
/// What a request costs at least: bounds how many there are.
const REQUEST_COST: u64 = 64 << 10;
/// What a permit stands for, in bytes.
const GRANULE: u64 = 4 << 10;

/// The bytes in flight of all connections.
#[derive(Clone, Debug)]
pub struct AllBytes(Arc<Semaphore>);

impl Default for AllBytes {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new((ALL_BYTES / GRANULE) as usize)))
    }
}

/// What all connections share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub bytes: AllBytes,
    pub buffers: Arc<Buffers>,
}

/// The bytes in flight of one connection.
#[derive(Debug)]
pub struct Bytes {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Room for a request and its reply, until this is dropped.
#[derive(Debug)]
pub struct Room {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Bytes {
    /// Of a new connection.
    pub fn new(all: &AllBytes) -> Self {
        Self {
            own: Arc::new(Semaphore::new((CONNECTION_BYTES / GRANULE) as usize)),
            all: all.0.clone(),
        }
    }

    /// Waits until there is room for `len` bytes.
    pub async fn room(&self, len: u32) -> Room {
        let granules = u64::from(len).max(REQUEST_COST).div_ceil(GRANULE) as u32;
        let acquire = |semaphore: &Arc<Semaphore>| semaphore.clone().acquire_many_owned(granules);
        let own = acquire(&self.own).await.expect("it is never closed");
        let all = acquire(&self.all).await.expect("it is never closed");
        Room {
            _own: own,
            _all: all,
        }
    }
}
