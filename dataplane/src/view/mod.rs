//! Disks of stored snapshots, read anywhere: what a mount, an export and the readers of file systems stand on.
//!
//! ```text
//! read > maps > cache ─ miss ─▶ fetch > decode > cache
//!          └ sequential? ─▶ read ahead ─┘
//! ```
//!
//! A process has one [`View`]: the cache of decoded chunks, that of maps, and the threads that fetch. Each reader
//! has a [`DiskView`] of a disk. Opening one reads nothing: a segment's map is looked up when the segment is read,
//! along one path of the tree. Whoever misses a chunk announces it in the [`cache`], and fetches it; others that
//! want it wait for that one decoding. A chunk that cannot be had costs the reads that touch it, and no other.

pub mod cache;
mod disk;
mod extents;
mod fetcher;
mod maps;
mod queue;
mod read_ahead;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use undercroft_format::id::SnapshotId;
use undercroft_format::units::DiskRange;

pub use self::disk::DiskView;

use self::cache::Cache;
use self::fetcher::Fetcher;
use self::queue::Queue;
use self::read_ahead::Sequential;
use crate::clock::Stopwatch;
use crate::io::BufferPool;
use crate::repository::error::RepositoryError;
use crate::repository::local_records::FETCH_LEN_MAX;

/// Least bytes of cache: below this, what is read ahead would push itself out.
pub const CACHE_LEN_MIN: u64 = 8 << 20;
/// Bytes of cache, if nobody says otherwise.
pub const CACHE_LEN_DEFAULT: u64 = 128 << 20;
/// Bytes of fetched records that have not been decoded yet, of all threads together: one batch of the worst case, and
/// as much again for usual ones. What no record comes to is never touched.
const FETCHED_LEN_MAX: usize = 2 * FETCH_LEN_MAX;

/// How long the last reads may take: a repository that is gone does not answer them.
const LAST_READ_MAX: Duration = Duration::from_secs(5);

/// How long a read waits for a repository that let another wait in vain.
const PATIENCE_IN_SILENCE: Duration = Duration::from_millis(500);

/// How disks are read.
#[derive(Clone, Copy, Debug)]
pub struct ViewOptions {
    /// Bytes of decoded chunks and of maps kept, at least [`CACHE_LEN_MIN`].
    pub cache_len: u64,
    /// Threads that fetch and decode.
    pub threads: usize,
    /// How long a read waits for a repository that does not answer.
    pub patience: Duration,
}

impl Default for ViewOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            cache_len: CACHE_LEN_DEFAULT,
            // One more, since some wait for the repository; far away, most do.
            threads: (cores + 1).max(4),
            patience: Duration::from_secs(30),
        }
    }
}

/// What all readers of a process share. Dropping it ends the threads, each after what it is at, and waits for them, but
/// not for ever: a repository must not be closed by one of them while the process ends.
pub struct View {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// The parts of a [`View`] that threads and disks hold.
struct Shared {
    cache: Cache,
    queue: Queue,
    sequential: Sequential,
    fetched: Arc<BufferPool>,
    patience: Duration,
    /// The repository has not answered in time, and nothing came from it since.
    is_silent: AtomicBool,
}

impl Shared {
    /// How long to wait. Whoever was let wait in vain once is not let wait as long again: the kernel asks for each page
    /// of a read that failed.
    fn patience(&self) -> Duration {
        match self.is_silent.load(Ordering::Relaxed) {
            true => self.patience.min(PATIENCE_IN_SILENCE),
            false => self.patience,
        }
    }

    fn silent(&self) -> Cause {
        self.is_silent.store(true, Ordering::Relaxed);
        Cause::Silent(self.patience)
    }

    fn heard(&self) {
        self.is_silent.store(false, Ordering::Relaxed);
    }
}

impl View {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system starts no more of them.
    pub fn new(options: ViewOptions) -> std::io::Result<Self> {
        let cache_len = options.cache_len.max(CACHE_LEN_MIN);
        let mut view = Self {
            threads: Vec::new(),
            shared: Arc::new(Shared {
                cache: Cache::new(cache_len),
                queue: Queue::default(),
                sequential: Sequential::new(cache_len),
                fetched: BufferPool::new(FETCHED_LEN_MAX),
                patience: options.patience,
                is_silent: AtomicBool::new(false),
            }),
        };
        for _ in 0..options.threads.max(1) {
            let fetcher = Fetcher::new(view.shared.clone());
            let thread = std::thread::Builder::new()
                .name("view-fetch".into())
                .spawn(move || fetcher.run())?;
            view.threads.push(thread);
        }
        Ok(view)
    }

    /// Bytes of decoded chunks that are kept now.
    pub fn cached_len(&self) -> u64 {
        self.shared.cache.chunks_len()
    }

    /// Chunks that were decoded so far.
    pub fn decoded(&self) -> u64 {
        self.shared.cache.decoded()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.shared.queue.close();
        let waited = Stopwatch::start();
        while waited.elapsed() < LAST_READ_MAX && !self.threads.iter().all(JoinHandle::is_finished)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Part of a disk cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("disk {disk} of snapshot {snapshot}: bytes {range} cannot be read")]
pub struct Unreadable {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The disk's label.
    pub disk: String,
    /// The part of what was asked for.
    pub range: DiskRange,
    /// Why.
    #[source]
    pub cause: Cause,
}

/// Why part of a disk cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// It is damaged, or the repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The repository is gone or hangs.
    #[error("the repository did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// A thread that fetched died.
    #[error("what fetched it has failed")]
    Fetcher,
}
