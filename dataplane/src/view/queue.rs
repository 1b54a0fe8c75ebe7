//! What the fetching threads have to do: what a reader waits for first, then what is read ahead.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};
use undercroft_format::id::ChunkId;
use undercroft_format::units::DiskRange;

use super::Cause;
use super::disk::Core;

/// Pieces of read-ahead that may wait. The oldest goes first: its reader has likely passed it, or gone.
const AHEAD_MAX: usize = 128;

/// A chunk that is wanted, and the bytes that it has at least.
pub type WantedChunk = (ChunkId, u32);

/// Something to fetch.
pub struct Job {
    /// Of which disk.
    pub core: Arc<Core>,
    /// What of it.
    pub task: Task,
}

/// What to fetch.
pub enum Task {
    /// What a reader waits for.
    Chunks {
        /// The chunks.
        wanted: Vec<WantedChunk>,
        /// The reader's number of the first.
        first: usize,
        /// Who waits. Has an answer for each, unless the thread dies.
        answer: Sender<(usize, Answer)>,
    },
    /// What a reader will likely ask for.
    Ahead(DiskRange),
    /// Something else that a reader waits for.
    Ask(Box<dyn FnOnce(&Core) + Send>),
}

/// What became of a chunk.
pub enum Answer {
    /// It is here.
    Plain(Bytes),
    /// Another thread is fetching it: the cache has it soon.
    Elsewhere,
    /// It is not to be had.
    Failed(Cause),
}

/// Jobs of all readers.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    urgent: VecDeque<Job>,
    ahead: VecDeque<Job>,
    is_closed: bool,
}

impl Queue {
    /// Adds a job.
    pub fn push(&self, job: Job) {
        let mut state = self.state.lock();
        match job.task {
            Task::Chunks { .. } | Task::Ask(_) => state.urgent.push_back(job),
            Task::Ahead(_) => {
                if state.ahead.len() >= AHEAD_MAX {
                    state.ahead.pop_front();
                }
                state.ahead.push_back(job);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Waits for a job; `None` once the queue is closed.
    pub fn take(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return None;
            }
            let job = state.urgent.pop_front();
            if let Some(job) = job.or_else(|| state.ahead.pop_front()) {
                return Some(job);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Ends all threads that take jobs; those that wait for answers see that none come.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.urgent.clear();
        state.ahead.clear();
        drop(state);
        self.changed.notify_all();
    }
}
