//! One disk of a snapshot.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};

use crossbeam_channel::unbounded;
use parking_lot::Mutex;
use undercroft_format::extent::Extent;
use undercroft_format::id::{ChunkId, SnapshotId};
use undercroft_format::pack::ObjectKind;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::units::{DiskLength, DiskRange};

use super::cache::Found;
use super::queue::{Answer, Job, Task, WantedChunk};
use super::read_ahead::Runs;
use super::{Cause, Shared, Unreadable, View};
use crate::clock::Stopwatch;
use crate::disk::{Allocation, ReadDisk};
use crate::repository::Repository;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::keys::Keys;
use crate::restore::decode::SegmentDecoder;

/// Bytes of chunks that one thread fetches at once for a reader that waits.
const BATCH_LEN: u64 = 512 << 10;
/// Chunks that a reader fetches itself from a repository at hand: handing them over takes longer.
const ALONE_MAX: usize = 2;
/// Bytes of disk that one thread reads ahead at once.
const AHEAD_PIECE: u64 = 2 << 20;

thread_local! {
    static DECODER: RefCell<SegmentDecoder> = RefCell::default();
}

/// A disk of a stored snapshot, for one reader or several. Readers that read in sequence are read ahead of.
pub struct DiskView {
    core: Arc<Core>,
    runs: Mutex<Runs>,
}

/// What fetching threads need of a disk.
pub struct Core {
    me: Weak<Self>,
    pub(super) shared: Arc<Shared>,
    pub(super) repository: Arc<dyn Repository>,
    pub(super) keys: Arc<Keys>,
    snapshot: SnapshotId,
    pub(super) disk: DiskManifest,
    /// What comes from a server is fetched by threads that can be given up.
    pub(super) is_remote: bool,
    /// Keeps the snapshot's data where it is.
    _kept: Option<Arc<dyn Any + Send + Sync>>,
}

/// Bytes of a chunk that a read wants.
struct Use {
    chunk: ChunkId,
    /// First byte within the chunk.
    offset: u32,
    /// Where the bytes go.
    out: std::ops::Range<usize>,
}

impl DiskView {
    /// The disk `disk` of snapshot `snapshot`. `kept` is what keeps its data in the repository, such as a pin; it is
    /// let go with the disk. Reads nothing.
    ///
    /// # Errors
    /// [`RepositoryError::KeyNeeded`] if the repository was opened without the key.
    pub fn new(
        view: &View,
        repository: Arc<dyn Repository>,
        snapshot: SnapshotId,
        disk: DiskManifest,
        kept: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Result<Self> {
        let keys = repository.keys()?.clone();
        Ok(Self {
            core: Arc::new_cyclic(|me| Core {
                me: me.clone(),
                shared: view.shared.clone(),
                keys,
                is_remote: repository.traffic().is_some(),
                repository,
                snapshot,
                disk,
                _kept: kept,
            }),
            runs: Mutex::default(),
        })
    }

    /// The same disk for another reader, with read-ahead of its own.
    pub fn another(&self) -> Self {
        Self {
            core: self.core.clone(),
            runs: Mutex::default(),
        }
    }

    /// What the snapshot says of the disk.
    pub fn manifest(&self) -> &DiskManifest {
        &self.core.disk
    }

    fn read_ahead(&self, read: DiskRange) {
        let ahead = self.runs.lock().note(read, &self.core.shared.sequential);
        let mut at = ahead.start;
        let end = ahead.end.min(self.core.disk.size.get());
        while at < end {
            let to = ((at / AHEAD_PIECE + 1) * AHEAD_PIECE).min(end);
            self.core.shared.queue.push(Job {
                core: self.core.clone(),
                task: Task::Ahead(DiskRange::new(at, to)),
            });
            at = to;
        }
    }
}

impl ReadDisk for DiskView {
    fn size(&self) -> DiskLength {
        self.core.disk.size
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = offset.checked_add(out.len() as u64);
        let range = range.map(|end| DiskRange::new(offset, end));
        let Some(range) = range.filter(|range| range.end <= self.core.disk.size.get()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if range.is_empty() {
            return Ok(());
        }
        self.read_ahead(range);
        self.core.read(range, out).map_err(io::Error::other)
    }

    fn allocation(&self, range: DiskRange, parts_max: usize) -> io::Result<Vec<Allocation>> {
        self.core
            .allocation(range, parts_max)
            .map_err(io::Error::other)
    }
}

impl Core {
    fn read(&self, range: DiskRange, out: &mut [u8]) -> std::result::Result<(), Unreadable> {
        let mut missed = Vec::new();
        self.each_extent(range, |place, extent| {
            let from = (place.start - range.start) as usize;
            let to = from..from + place.len() as usize;
            match extent {
                Extent::Zero { .. } => out[to].fill(0),
                Extent::Data { chunk, offset, .. } => {
                    let part = Use {
                        chunk,
                        offset,
                        out: to,
                    };
                    match self.shared.cache.chunk(chunk) {
                        None => missed.push(part),
                        Some(plain) => copy(&plain, &part, out)
                            .map_err(|cause| self.unreadable(place, cause))?,
                    }
                }
            }
            Ok(())
        })?;
        if missed.is_empty() {
            return Ok(());
        }
        let mut wanted: Vec<WantedChunk> = Vec::new();
        let mut uses: Vec<Vec<Use>> = Vec::new();
        let mut known: HashMap<ChunkId, usize> = HashMap::with_capacity(missed.len());
        for part in missed {
            let place = *known.entry(part.chunk).or_insert_with(|| {
                wanted.push((part.chunk, 0));
                uses.push(Vec::new());
                uses.len() - 1
            });
            let end = part.offset.saturating_add(part.out.len() as u32);
            wanted[place].1 = wanted[place].1.max(end);
            uses[place].push(part);
        }
        self.fetch(&wanted, |place, plain| {
            let uses = &uses[place];
            let plain = plain.and_then(|plain| {
                uses.iter().try_for_each(|part| copy(&plain, part, out))?;
                Ok(())
            });
            plain.map_err(|cause| {
                let part = &uses[0].out;
                let start = range.start + part.start as u64;
                self.unreadable(DiskRange::new(start, start + part.len() as u64), cause)
            })
        })
    }

    /// Gives each of `wanted`, which the cache did not have, to `take`. Ends at its first error.
    fn fetch(
        &self,
        wanted: &[WantedChunk],
        mut take: impl FnMut(
            usize,
            std::result::Result<bytes::Bytes, Cause>,
        ) -> std::result::Result<(), Unreadable>,
    ) -> std::result::Result<(), Unreadable> {
        if !self.is_remote && wanted.len() <= ALONE_MAX {
            let mut wanted = wanted.iter().enumerate();
            return wanted.try_for_each(|(place, (chunk, _))| take(place, self.alone(*chunk)));
        }
        let clock = Stopwatch::start();
        let (answer, answers) = unbounded();
        let mut first = 0;
        while first < wanted.len() {
            let mut len = 0;
            let batch = wanted[first..].iter().take_while(|(_, plain_len_min)| {
                let fits = len == 0 || len + u64::from(*plain_len_min) <= BATCH_LEN;
                len += u64::from(*plain_len_min);
                fits
            });
            let batch: Vec<WantedChunk> = batch.copied().collect();
            let next = first + batch.len();
            self.shared.queue.push(Job {
                core: self.itself(),
                task: Task::Chunks {
                    wanted: batch,
                    first,
                    answer: answer.clone(),
                },
            });
            first = next;
        }
        drop(answer);
        let mut elsewhere = Vec::new();
        for _ in 0..wanted.len() {
            let patience = self.shared.patience().saturating_sub(clock.elapsed());
            let (place, got) = match answers.recv_timeout(patience) {
                Ok(answer) => answer,
                Err(error) => return take(0, Err(self.unanswered(error))),
            };
            match got {
                Answer::Plain(plain) => take(place, Ok(plain))?,
                Answer::Failed(cause) => take(place, Err(cause))?,
                Answer::Elsewhere => elsewhere.push(place),
            }
        }
        // Nothing is announced by this thread, so that no two wait for each other.
        elsewhere
            .into_iter()
            .try_for_each(|place| take(place, self.after_others(wanted[place], &clock)))
    }

    /// A chunk that another was about to fetch.
    fn after_others(
        &self,
        wanted: WantedChunk,
        clock: &Stopwatch,
    ) -> std::result::Result<bytes::Bytes, Cause> {
        loop {
            let patience = self.shared.patience().saturating_sub(clock.elapsed());
            match self.shared.cache.find(wanted.0, patience) {
                Found::Plain(plain) => return Ok(plain),
                Found::Elsewhere => return Err(self.shared.silent()),
                // The other one failed. Asking again tells why.
                Found::Absent(announced) if !self.is_remote => {
                    return self.fetch_announced(announced, wanted.0);
                }
                Found::Absent(_) => {}
            }
            let (answer, answers) = unbounded();
            self.shared.queue.push(Job {
                core: self.itself(),
                task: Task::Chunks {
                    wanted: vec![wanted],
                    first: 0,
                    answer,
                },
            });
            match answers.recv_timeout(patience) {
                Ok((_, Answer::Plain(plain))) => return Ok(plain),
                Ok((_, Answer::Failed(cause))) => return Err(cause),
                Ok((_, Answer::Elsewhere)) => {}
                Err(error) => return Err(self.unanswered(error)),
            }
        }
    }

    /// A chunk, fetched by this thread if nobody else does.
    fn alone(&self, chunk: ChunkId) -> std::result::Result<bytes::Bytes, Cause> {
        match self.shared.cache.find(chunk, self.shared.patience()) {
            Found::Plain(plain) => Ok(plain),
            Found::Elsewhere => Err(self.shared.silent()),
            Found::Absent(announced) => self.fetch_announced(announced, chunk),
        }
    }

    fn fetch_announced(
        &self,
        announced: super::cache::Announced<'_>,
        chunk: ChunkId,
    ) -> std::result::Result<bytes::Bytes, Cause> {
        let objects = self.repository.objects();
        let plain = DECODER
            .with_borrow_mut(|decoder| decoder.decode_alone(chunk.into(), objects, &self.keys))?;
        Ok(self.shared.cache.keep(announced, plain))
    }

    pub(super) fn itself(&self) -> Arc<Self> {
        self.me.upgrade().expect("it is being used")
    }

    pub(super) fn unreadable(&self, range: DiskRange, cause: Cause) -> Unreadable {
        Unreadable {
            snapshot: self.snapshot,
            disk: self.disk.label.clone(),
            range,
            cause,
        }
    }
}

/// Copies the bytes of a chunk that `part` wants.
fn copy(plain: &[u8], part: &Use, out: &mut [u8]) -> std::result::Result<(), Cause> {
    let start = part.offset as usize;
    let bytes = plain.get(start..start.saturating_add(part.out.len()));
    // A map may name more of a chunk than there is only if a faulty or hostile program wrote it.
    let bytes = bytes.ok_or(RepositoryError::MissingObject {
        kind: ObjectKind::Chunk,
        id: part.chunk.into(),
    })?;
    out[part.out.clone()].copy_from_slice(bytes);
    Ok(())
}
