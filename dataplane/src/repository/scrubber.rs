//! The scrub of many packs: slices of them are read ahead, workers check them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::id::PackId;
use undercroft_format::pack::{ObjectKind, RECORD_HEADER_LEN, RecordHeader, TocEntry};

use super::error::{RepositoryError, Result};
use super::fingerprints::Fingerprints;
use super::gc::read_record;
use super::judge::{Depth, Judge, check_in_clear};
use super::keys::Keys;
use super::record::RecordDecoder;
use super::scrub::{Deep, PackFindings, PackSkeleton, Slice, scrub_pack};
use super::verify::Presence;
use super::{LocalRepository, Repository, layout};
use crate::io::{BlockFile, Buffer, BufferPool, Direction, Done, Piece, Queue, Transfer};
use crate::progress::Progress;

/// Requests at the repository's device at once.
const QUEUE_DEPTH: u32 = 16;
/// Bytes of a pack that are read together: long enough for the device, and short, because memory that
/// is used for the first time costs more than reading into it.
const SLICE_LEN_MAX: u64 = 2 << 20;
/// Slices in memory beyond those that workers check.
const SLICES_AHEAD: usize = 6;
/// A file in the packs' directory that is longer than this is no pack of ours.
const PACK_LEN_MAX: u64 = 128 << 20;
/// O_DIRECT reads begin and end at multiples of this.
const ALIGNMENT: u64 = 4096;

/// Reads and checks packs, a bounded number of slices at a time; says what is wrong, and which objects
/// are good.
pub fn scrub_packs(
    repository: &Arc<LocalRepository>,
    packs: &[(PackId, u64)],
    depth: Depth<'_>,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<(Vec<PackFindings>, Presence)> {
    let (keys, judge) = match depth {
        Depth::Checksums => (None, None),
        Depth::Decoded => (Some(repository.keys()?.clone()), None),
        Depth::Judged(judge) => (None, Some(judge)),
    };
    progress
        .total_bytes
        .add(packs.iter().map(|(_, len)| len).sum());
    let workers = threads.current_num_threads();
    let slice_len = (SLICE_LEN_MAX + 2 * ALIGNMENT) as usize;
    let pool = BufferPool::new(slice_len.next_multiple_of(64 << 10) * (workers + SLICES_AHEAD));
    let scrub = Scrub {
        repository,
        keys: keys.as_deref(),
        judge,
        progress,
        decoders: (0..workers).map(|_| Mutex::default()).collect(),
        results: Mutex::new(Results::new(packs.len())),
        failure: Mutex::default(),
    };
    threads.in_place_scope(|scope| -> Result<()> {
        let mut reader = Reader {
            scrub: &scrub,
            scope,
            queue: repository
                .engine()
                .queue(&pool, QUEUE_DEPTH)
                .map_err(RepositoryError::io("starting I/O for", layout::PACKS))?,
            pool: &pool,
            reading: HashMap::new(),
            next_token: 0,
        };
        let read = packs
            .iter()
            .try_for_each(|(id, len)| reader.pack(*id, *len));
        while reader.reap() {}
        read
    })?;
    if let Some(error) = scrub.failure.into_inner() {
        return Err(error);
    }
    Ok(scrub.results.into_inner().finish())
}

/// Whether a failed read says that the bytes are lost: the device cannot give them, or the file ends early.
pub fn is_damage(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let lost = [
        Errno::IO,
        Errno::UCLEAN,
        Errno::BADMSG,
        Errno::ILSEQ,
        Errno::NODATA,
    ];
    error.kind() == std::io::ErrorKind::UnexpectedEof
        || Errno::from_io_error(error).is_some_and(|errno| lost.contains(&errno))
}

/// What threads share.
struct Scrub<'a> {
    repository: &'a Arc<LocalRepository>,
    keys: Option<&'a Keys>,
    judge: Option<&'a dyn Judge>,
    progress: &'a Progress,
    decoders: Vec<Mutex<(RecordDecoder, Vec<u8>)>>,
    results: Mutex<Results>,
    /// The first that was no damage.
    failure: Mutex<Option<RepositoryError>>,
}

impl Scrub<'_> {
    /// Runs `work` with what it takes to decode, if the scrub is deep.
    fn with_deep<R>(&self, work: impl FnOnce(Option<Deep<'_>>) -> R) -> R {
        let thread = rayon::current_thread_index().unwrap_or(0) % self.decoders.len();
        let mut state = self.decoders[thread].lock();
        let (decoder, plain) = &mut *state;
        work(self.keys.map(|keys| Deep {
            keys,
            decoder,
            plain,
        }))
    }

    fn slice(&self, reading: &Reading, done: &Done) -> Result<PackFindings> {
        let (pack, slice) = (&*reading.pack, &reading.slice);
        match &done.result {
            Ok(()) => {
                let from = (slice.start % ALIGNMENT) as usize;
                let bytes = &done.transfer.buffer[from..from + (slice.end - slice.start) as usize];
                let mut found = self.with_deep(|deep| pack.scrub(slice, bytes, deep));
                self.ask_judge(&mut found, |entry| {
                    let at = (u64::from(entry.position) - slice.start) as usize;
                    Ok(bytes[at..at + entry.info.record_len() as usize].to_vec())
                })?;
                Ok(found)
            }
            // One bad place must not take its neighbours along.
            Err(_) => {
                let file = &*reading.file;
                let mut found = self.with_deep(|deep| pack.scrub_singly(file, slice, deep))?;
                self.ask_judge(&mut found, |entry| read_record(file, pack.id, entry))?;
                Ok(found)
            }
        }
    }

    /// Has the records that seemed good looked at by who has the key; `record` gives their bytes.
    fn ask_judge(
        &self,
        found: &mut PackFindings,
        record: impl Fn(&TocEntry) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let Some(judge) = self.judge else {
            return Ok(());
        };
        let mut batch: Vec<(TocEntry, Vec<u8>)> = Vec::new();
        let mut len = 0;
        for entry in std::mem::take(&mut found.good) {
            let bytes = record(&entry)?;
            let payload = &bytes[RECORD_HEADER_LEN..];
            match check_in_clear(entry.info.kind, entry.info.id, payload) {
                Ok(()) if entry.info.kind != ObjectKind::Chunk => found.good.push(entry),
                Ok(()) => {
                    len += bytes.len();
                    batch.push((entry, bytes));
                }
                Err(problem) => found.bad_record(&entry, problem),
            }
            if len >= SLICE_LEN_MAX as usize {
                judge_batch(judge, found, &std::mem::take(&mut batch))?;
                len = 0;
            }
        }
        judge_batch(judge, found, &batch)?;
        found.good.sort_by_key(|entry| entry.position);
        found.damage.sort_by_key(|damage| damage.position);
        Ok(())
    }

    /// Only what the disk gives, or cannot give, is damage. That a file may not be opened, or that there
    /// are too many open ones, says nothing about what is in it.
    fn judge(&self, error: std::io::Error, found: &mut PackFindings) -> Result<()> {
        if !is_damage(&error) {
            return Err(RepositoryError::io("reading", &layout::pack(found.id))(
                error,
            ));
        }
        found.damage(None, error);
        Ok(())
    }
}

fn judge_batch(
    judge: &dyn Judge,
    found: &mut PackFindings,
    batch: &[(TocEntry, Vec<u8>)],
) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let records: Vec<(RecordHeader, &[u8])> = batch
        .iter()
        .map(|(entry, bytes)| {
            let payload = &bytes[RECORD_HEADER_LEN..];
            (RecordHeader::new(entry.info, payload), payload)
        })
        .collect();
    let mut problems = judge.judge(&records)?.into_iter().peekable();
    for (place, (entry, _)) in batch.iter().enumerate() {
        match problems.next_if(|(bad, _)| *bad == place) {
            Some((_, problem)) => found.bad_record(entry, problem),
            None => found.good.push(*entry),
        }
    }
    Ok(())
}

/// A slice on its way into memory.
struct Reading {
    file: Arc<dyn BlockFile>,
    pack: Arc<PackSkeleton>,
    slice: Slice,
}

/// Reads slices, in order, and hands them to the workers.
struct Reader<'r, 'scope, 'b> {
    scrub: &'scope Scrub<'r>,
    scope: &'b rayon::Scope<'scope>,
    queue: Box<dyn Queue>,
    pool: &'b Arc<BufferPool>,
    reading: HashMap<u64, Reading>,
    next_token: u64,
}

impl Reader<'_, '_, '_> {
    fn pack(&mut self, id: PackId, len: u64) -> Result<()> {
        let (scrub, repository) = (self.scrub, self.scrub.repository);
        if scrub.progress.is_stopping() {
            return Err(RepositoryError::Cancelled);
        }
        let file = match repository.files().get(id) {
            Ok(file) if len <= PACK_LEN_MAX => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Listed a moment ago: a collection that runs beside this scrub removed it.
                tracing::debug!(pack = %id, "a pack went while packs were read");
                return Ok(());
            }
            other => {
                let mut found = PackFindings::new(id, 0);
                match other {
                    Ok(_) => found.damage(None, "the file is longer than any pack"),
                    Err(error) => scrub.judge(error, &mut found)?,
                }
                scrub.results.lock().settle(found);
                return Ok(());
            }
        };
        scrub.progress.read_bytes.add(len);
        // What the page cache holds says nothing about the disk.
        file.advise_dont_need();
        let skeleton = PackSkeleton::read(&*file, repository.config().repository, id);
        if let Ok(pack) = skeleton {
            let slices = pack.slices(SLICE_LEN_MAX);
            let fits = |slice: &Slice| slice.end - slice.start <= SLICE_LEN_MAX;
            if slices.iter().all(fits) {
                return self.slices(&file, Arc::new(pack), slices);
            }
        }
        let found = self.whole(&*file, id, len)?;
        scrub.progress.done_bytes.add(len);
        scrub.results.lock().settle(found);
        Ok(())
    }

    fn slices(
        &mut self,
        file: &Arc<dyn BlockFile>,
        pack: Arc<PackSkeleton>,
        slices: Vec<Slice>,
    ) -> Result<()> {
        let scrub = self.scrub;
        let in_slices: u64 = slices.iter().map(|slice| slice.end - slice.start).sum();
        scrub.progress.done_bytes.add(pack.len - in_slices);
        scrub.results.lock().expect(&pack, slices.len());
        for slice in slices {
            if scrub.progress.is_stopping() {
                return Err(RepositoryError::Cancelled);
            }
            let start = slice.start / ALIGNMENT * ALIGNMENT;
            // A pack's length is a multiple of the alignment.
            let end = slice.end.next_multiple_of(ALIGNMENT).min(pack.len);
            let len = (end - start) as usize;
            let buffer = self.acquire(len);
            let token = self.next_token;
            self.next_token += 1;
            let reading = Reading {
                file: file.clone(),
                pack: pack.clone(),
                slice,
            };
            self.reading.insert(token, reading);
            self.queue.submit(Transfer {
                token,
                direction: Direction::Read,
                buffer,
                pieces: vec![Piece {
                    file: file.clone(),
                    file_offset: start,
                    buffer_offset: 0,
                    len,
                }],
            });
        }
        Ok(())
    }

    /// The way for packs that are damaged where it matters, and for records longer than a slice.
    fn whole(&self, file: &dyn BlockFile, id: PackId, len: u64) -> Result<PackFindings> {
        let mut bytes = vec![0; len as usize];
        match file.read_at(&mut bytes, 0) {
            Ok(got) => {
                bytes.truncate(got);
                let repository = self.scrub.repository.config().repository;
                let mut found = self
                    .scrub
                    .with_deep(|deep| scrub_pack(&bytes, repository, id, deep));
                self.scrub.ask_judge(&mut found, |entry| {
                    let at = entry.position as usize;
                    Ok(bytes[at..at + entry.info.record_len() as usize].to_vec())
                })?;
                Ok(found)
            }
            Err(error) => {
                let mut found = PackFindings::new(id, len);
                self.scrub.judge(error, &mut found)?;
                Ok(found)
            }
        }
    }

    /// A buffer; meanwhile slices that have been read go to the workers.
    fn acquire(&mut self, len: usize) -> Buffer {
        loop {
            if let Some(buffer) = self.pool.try_acquire(len) {
                return buffer;
            }
            if !self.reap() {
                return self.pool.acquire(len);
            }
        }
    }

    /// Waits for one slice and hands it to a worker; false if none was under way.
    fn reap(&mut self) -> bool {
        let Some(done) = self.queue.wait() else {
            return false;
        };
        let reading = self
            .reading
            .remove(&done.transfer.token)
            .expect("every read was registered when it began");
        let scrub = self.scrub;
        self.scope.spawn(move |_| {
            let found = scrub.slice(&reading, &done);
            drop(done);
            let slice = &reading.slice;
            scrub.progress.done_bytes.add(slice.end - slice.start);
            match found {
                Ok(found) => scrub.results.lock().add(found),
                Err(error) => {
                    scrub.failure.lock().get_or_insert(error);
                }
            }
        });
        true
    }
}

/// What was found so far.
struct Results {
    /// Packs of which slices are missing, and how many.
    open: HashMap<PackId, (PackFindings, usize)>,
    settled: Vec<PackFindings>,
    good: Fingerprints,
}

impl Results {
    fn new(packs: usize) -> Self {
        Self {
            open: HashMap::new(),
            settled: Vec::with_capacity(packs),
            good: Fingerprints::with_capacity(1024),
        }
    }

    /// Says that `slices` slices of `pack` will come.
    fn expect(&mut self, pack: &PackSkeleton, slices: usize) {
        let found = PackFindings::new(pack.id, pack.len);
        match slices {
            0 => self.settle(found),
            _ => {
                self.open.insert(pack.id, (found, slices));
            }
        }
    }

    fn add(&mut self, found: PackFindings) {
        let id = found.id;
        let (all, missing) = self.open.get_mut(&id).expect("slices are announced");
        all.merge(found);
        *missing -= 1;
        if *missing == 0
            && let Some((mut all, _)) = self.open.remove(&id)
        {
            // Slices come in any order.
            all.good.sort_by_key(|entry| entry.position);
            all.damage.sort_by_key(|damage| damage.position);
            self.settle(all);
        }
    }

    fn settle(&mut self, mut found: PackFindings) {
        found.note_good(&mut self.good);
        self.settled.push(found);
    }

    fn finish(mut self) -> (Vec<PackFindings>, Presence) {
        self.settled.sort_by_key(|found| found.id);
        (self.settled, Presence::new(self.good))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn only_lost_bytes_are_damage() {
        for errno in [Errno::IO, Errno::BADMSG] {
            assert!(is_damage(&Error::from(errno)), "{errno}");
        }
        for errno in [Errno::MFILE, Errno::ACCESS, Errno::NOMEM, Errno::STALE] {
            assert!(!is_damage(&Error::from(errno)), "{errno}");
        }
    }
}
