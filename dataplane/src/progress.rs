//! What long work tells while it runs: counters that anyone may read, and the wish to stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Counters of one run. Shared by its threads and by whoever shows them.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that the run will go through, as far as known; 0 if unknown.
    pub total_bytes: Counter,
    /// Bytes gone through, holes included.
    pub done_bytes: Counter,
    /// Bytes read from the source.
    pub read_bytes: Counter,
    /// Bytes of new chunks before compression.
    pub new_bytes: Counter,
    /// Bytes written to the repository or the target.
    pub stored_bytes: Counter,
    /// Bytes of packs that a backup which failed leaves for the next one to find.
    pub kept_bytes: Counter,
    /// Nanoseconds that workers spent on CPU work.
    pub busy_ns: Counter,
    /// Nanoseconds that workers waited for the repository's disk.
    pub store_wait_ns: Counter,
    /// Nanoseconds that the reader waited for workers to free buffers.
    pub buffer_wait_ns: Counter,
    stop: AtomicBool,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the number.
    pub fn add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    /// Adds a time in nanoseconds.
    pub fn add_time(&self, time: Duration) {
        self.add(time.as_nanos() as u64);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Progress {
    /// Asks the run to stop as soon as it can do so cleanly.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// True once the run was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Where the time of a run went, as shares of what its workers had: they add up to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Waits {
    /// Per cent waiting for the source.
    pub source_percent: f64,
    /// Per cent of CPU work.
    pub cpu_percent: f64,
    /// Per cent waiting for the repository.
    pub repository_percent: f64,
}

impl Waits {
    /// From the counters of a run of `workers` workers that took `wall`.
    pub fn of(progress: &Progress, workers: usize, wall: Duration) -> Self {
        let all = wall.as_nanos() as f64 * workers as f64;
        if all <= 0.0 {
            return Self::default();
        }
        let store = progress.store_wait_ns.get() as f64;
        let busy = (progress.busy_ns.get() as f64 - store).max(0.0);
        let percent = |part: f64| (part / all * 100.0).clamp(0.0, 100.0);
        let (cpu_percent, repository_percent) = (percent(busy), percent(store));
        Self {
            source_percent: (100.0 - cpu_percent - repository_percent).max(0.0),
            cpu_percent,
            repository_percent,
        }
    }
}
