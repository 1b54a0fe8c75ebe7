//! Records in pack files of this machine.

use std::sync::Arc;

use undercroft_format::id::{ObjectId, PackId};
use undercroft_format::pack::{ObjectKind, RECORD_HEADER_LEN};

use super::error::{RecordProblem, RepositoryError, Result};
use super::lookup::{Located, Lookup};
use super::objects::corrupt;
use super::pack_reader::{PackFiles, check_record};
use super::records::{Batch, Fetch, Fetched, Records};
use crate::io::{Buffer, BufferPool, Direction, Engine, Piece, Queue, Transfer};

/// Requests at the repository's device at once.
const QUEUE_DEPTH: u32 = 16;
/// Records that lie this close together are read as one: skipping would cost the disk more.
const GAP_MAX: u64 = 32 << 10;
/// Bytes fetched together for one segment. What a badly scattered segment needs beyond this is read
/// record by record while it is decoded.
pub const FETCH_LEN_MAX: usize = 20 << 20;
/// Room for records beyond that of the worst segment: those of one or two usual segments, which compress
/// to 5 MiB. Memory that is used for the first time costs more than reading into it.
const FETCH_AHEAD_LEN: usize = 8 << 20;
const ALIGNMENT: u64 = 4096;

/// Records that a [`Lookup`] finds in pack files.
pub struct LocalRecords {
    lookup: Arc<Lookup>,
    files: Arc<PackFiles>,
}

impl LocalRecords {
    /// Records that `lookup` finds in `files`.
    pub fn new(lookup: Arc<Lookup>, files: Arc<PackFiles>) -> Self {
        Self { lookup, files }
    }

    fn payload_at(
        &self,
        located: Option<Located>,
        id: ObjectId,
        kind: ObjectKind,
    ) -> Result<(Located, Vec<u8>)> {
        let located = located
            .filter(|located| located.info.kind == kind)
            .ok_or(RepositoryError::MissingObject { kind, id })?;
        let mut record = vec![0; located.info.record_len() as usize];
        self.read(&located, &mut record)
            .and_then(|()| {
                check_record(&record, located.pack, located.position, &located.info).map(|_| ())
            })
            .map_err(|problem| corrupt(located, problem))?;
        let payload = record.split_off(RECORD_HEADER_LEN);
        Ok((located, payload))
    }

    fn read(&self, located: &Located, record: &mut [u8]) -> Result<(), RecordProblem> {
        let unreadable = |error: std::io::Error| RecordProblem::Unreadable(error.to_string());
        let file = self.files.get(located.pack).map_err(unreadable)?;
        let got = file.read_at(record, located.position).map_err(unreadable)?;
        if got < record.len() {
            return Err(RecordProblem::Unreadable("the pack ends early".into()));
        }
        Ok(())
    }
}

impl Records for LocalRecords {
    fn payload(&self, id: ObjectId, kind: ObjectKind) -> Result<(Located, Vec<u8>)> {
        let mut place = self.lookup.locate(&[id])?[0];
        loop {
            let read = self.payload_at(place, id, kind);
            if read.is_ok() {
                return read;
            }
            // A collection may have moved it since it was looked up. It moves each object once.
            let now = self.lookup.locate(&[id])?[0];
            if now == place {
                return read;
            }
            place = now;
        }
    }

    fn fetch_ahead_len(&self) -> usize {
        FETCH_AHEAD_LEN
    }

    fn fetch(&self, engine: &dyn Engine, pool: &Arc<BufferPool>) -> Result<Box<dyn Fetch + '_>> {
        let queue = engine
            .queue(pool, QUEUE_DEPTH)
            .map_err(RepositoryError::io("starting I/O for", "the repository"))?;
        Ok(Box::new(LocalFetch {
            records: self,
            queue,
            prepared: Vec::new(),
            reading: Vec::new(),
        }))
    }
}

/// Reads that lie close together become one.
struct LocalFetch<'a> {
    records: &'a LocalRecords,
    queue: Box<dyn Queue>,
    /// What prepared batches are going to read.
    prepared: Vec<(u64, Vec<Piece>)>,
    reading: Vec<Batch>,
}

impl Fetch for LocalFetch<'_> {
    fn prepare(&mut self, batch: &mut Batch) -> Result<()> {
        let ids: Vec<ObjectId> = batch.wanted.iter().map(|wanted| wanted.id).collect();
        let places = self.records.lookup.locate(&ids)?;
        for (wanted, located) in batch.wanted.iter_mut().zip(places) {
            wanted.located = located.filter(|located| located.info.kind == ObjectKind::Chunk);
        }
        batch.wanted.sort_by_key(|wanted| {
            wanted
                .located
                .map(|located| (located.pack, located.position))
        });
        let pieces = pieces(&self.records.files, batch);
        if !pieces.is_empty() {
            self.prepared.push((batch.token, pieces));
        }
        Ok(())
    }

    fn submit(&mut self, batch: Batch, buffer: Buffer) {
        let place = self
            .prepared
            .iter()
            .position(|(token, _)| *token == batch.token)
            .expect("a batch is prepared before it is submitted");
        let (token, pieces) = self.prepared.swap_remove(place);
        self.reading.push(batch);
        self.queue.submit(Transfer {
            token,
            direction: Direction::Read,
            buffer,
            pieces,
        });
    }

    fn wait(&mut self) -> Option<(Batch, Buffer)> {
        let done = self.queue.wait()?;
        let place = self
            .reading
            .iter()
            .position(|batch| batch.token == done.transfer.token)
            .expect("every transfer was registered when it was submitted");
        let mut batch = self.reading.swap_remove(place);
        if done.result.is_err() {
            // One bad place must not take its neighbours along: each record is read alone.
            let wanted = batch.wanted.iter_mut();
            wanted.for_each(|wanted| wanted.fetched = None);
        }
        Some((batch, done.transfer.buffer))
    }
}

/// The reads that fetch the records of a batch, in few large pieces.
///
/// A pack that cannot be opened is left out: asking for its records alone meets the same error.
fn pieces(files: &PackFiles, batch: &mut Batch) -> Vec<Piece> {
    let mut pieces: Vec<(Piece, PackId)> = Vec::new();
    let mut len = 0_usize;
    for wanted in &mut batch.wanted {
        let Some(located) = wanted.located else {
            continue;
        };
        let start = located.position / ALIGNMENT * ALIGNMENT;
        let end =
            (located.position + u64::from(located.info.record_len())).next_multiple_of(ALIGNMENT);
        if let Some((piece, pack)) = pieces.last_mut()
            && *pack == located.pack
            && start <= piece.file_offset + piece.len as u64 + GAP_MAX
        {
            let piece_end = piece.file_offset + piece.len as u64;
            let more = end.saturating_sub(piece_end) as usize;
            if len + more > FETCH_LEN_MAX {
                break;
            }
            piece.len += more;
            len += more;
            let at = piece.buffer_offset + (located.position - piece.file_offset) as usize;
            wanted.fetched = Some(Fetched::Record(at));
            continue;
        }
        if len + (end - start) as usize > FETCH_LEN_MAX {
            break;
        }
        let Ok(file) = files.get(located.pack) else {
            continue;
        };
        let piece = Piece {
            file,
            file_offset: start,
            buffer_offset: len,
            len: (end - start) as usize,
        };
        wanted.fetched = Some(Fetched::Record(len + (located.position - start) as usize));
        len += piece.len;
        pieces.push((piece, located.pack));
    }
    batch.fetch_len = len;
    pieces.into_iter().map(|(piece, _)| piece).collect()
}
