//! Memory for what is read for restores, shared by all clients: none of them gets all of it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::io::{Buffer, BufferPool};
use crate::repository::local_records::FETCH_LEN_MAX;

/// Batches that are read at once, whatever the number of clients.
const FETCHES: usize = 4;
/// Batches of one identity at once.
const OF_IDENTITY_MAX: usize = 3;

/// Where fetched records lie until they are sent.
pub struct FetchRoom {
    pool: Arc<BufferPool>,
    shares: Arc<Shares>,
}

#[derive(Default)]
struct Shares {
    taken: Mutex<HashMap<String, usize>>,
    returned: Condvar,
}

/// An identity's turn to have a buffer, until it is dropped.
pub struct Share {
    shares: Arc<Shares>,
    identity: String,
}

impl Default for FetchRoom {
    fn default() -> Self {
        Self {
            pool: BufferPool::new(FETCHES * FETCH_LEN_MAX),
            shares: Arc::default(),
        }
    }
}

impl FetchRoom {
    /// The memory.
    pub fn pool(&self) -> &Arc<BufferPool> {
        &self.pool
    }

    /// Waits for a buffer of `len` bytes, at most one batch.
    pub fn acquire(&self, identity: &str, len: usize) -> (Share, Buffer) {
        let share = self.share(identity);
        (share, self.pool.acquire(len))
    }

    fn share(&self, identity: &str) -> Share {
        let mut taken = self.shares.taken.lock();
        loop {
            let of_identity = taken.get(identity).copied().unwrap_or(0);
            if of_identity < OF_IDENTITY_MAX {
                taken.insert(identity.to_owned(), of_identity + 1);
                return Share {
                    shares: self.shares.clone(),
                    identity: identity.to_owned(),
                };
            }
            self.shares.returned.wait(&mut taken);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock();
        match taken.get_mut(&self.identity) {
            Some(1) | None => drop(taken.remove(&self.identity)),
            Some(count) => *count -= 1,
        }
        self.shares.returned.notify_all();
    }
}
