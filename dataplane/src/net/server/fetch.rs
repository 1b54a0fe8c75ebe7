//! Gives records out, many in one read, in the order in which they lie.

use std::time::Duration;

use bytes::Bytes;
use undercroft_format::id::ObjectId;
use undercroft_format::pack::{ObjectKind, RECORD_HEADER_LEN, RecordHeader};
use undercroft_format::wire::fetch::{Fetch, RECORD_PREFIX_LEN, RecordPrefix, Unfetched};
use undercroft_format::wire::frame::{Body, FRAME_HEADER_LEN, FrameHeader, FrameType};

use super::connection::{Broken, Conversing, Ending};
use super::fetch_room::Share;
use crate::clock::Stopwatch;
use crate::io::Buffer;
use crate::net::conversation::{Conversation, StreamError, expect};
use crate::net::convert::failure_of;
use crate::net::trust::Verb;
use crate::repository::Repository;
use crate::repository::error::RepositoryError;
use crate::repository::lookup::Located;
use crate::repository::pack_reader::check_record;
use crate::repository::records::{Batch, Fetched, Records, Wanted};

/// Bytes that are collected before they go to the stream: fewer, larger pieces cost less.
const PIECE_LEN: usize = 256 << 10;

/// Serves a stream of requests, the first of which was `request`.
pub fn converse(on: &mut Conversing, request: Fetch) -> Ending {
    let repository = on.served.repository().clone();
    let records = repository.objects().records().clone();
    let mut batches = None;
    let mut request = Some(request);
    while let Some(Fetch { kind, ids }) = request.take() {
        on.caller.check_role(match kind {
            ObjectKind::Chunk => Verb::ReadData,
            ObjectKind::SegmentMap | ObjectKind::Node => Verb::ReadMaps,
        })?;
        let span = tracing::trace_span!("fetch", ?kind, records = ids.len());
        let _entered = span.entered();
        let mut out = Out::default();
        if kind == ObjectKind::Chunk && ids.len() > 1 {
            if batches.is_none() {
                let fetch = records.fetch(&**repository.engine(), on.served.fetch_room().pool());
                batches = Some(fetch.map_err(|error| failure_of(&error))?);
            }
            let batches = batches.as_mut().expect("just made");
            fetch_batch(on, &mut **batches, &*records, ids, &mut out)?;
        } else {
            for (tag, id) in (0..).zip(ids) {
                out.alone(&*records, tag, id, kind);
                out.send_if_full(&mut on.stream)?;
            }
        }
        out.send(&mut on.stream)?;
        on.served
            .figures()
            .fetched(out.records, out.stored, out.plain);
        if let Some(frame) = on.stream.read()? {
            request = Some(expect(&frame)?);
        }
    }
    Ok(())
}

fn fetch_batch(
    on: &mut Conversing,
    batches: &mut dyn crate::repository::records::Fetch,
    records: &dyn Records,
    ids: Vec<ObjectId>,
    out: &mut Out,
) -> Result<(), Broken> {
    let wanted = ids.into_iter().enumerate().map(|(tag, id)| Wanted {
        id,
        tag,
        plain_len_min: 0,
        located: None,
        fetched: None,
    });
    let mut batch = Batch {
        token: 0,
        wanted: wanted.collect(),
        fetch_len: 0,
    };
    batches
        .prepare(&mut batch)
        .map_err(|error| failure_of(&error))?;
    let mut buffer = None;
    if batch.fetch_len > 0 {
        let room = on.served.fetch_room();
        let (share, empty) = room.acquire(on.caller.peer.name.as_str(), batch.fetch_len);
        batches.submit(batch, empty);
        let (done, filled) = batches.wait().expect("one is under way");
        batch = done;
        buffer = Some(Lent {
            since: Stopwatch::start(),
            buffer: filled,
            _share: share,
        });
    }
    for wanted in &batch.wanted {
        let tag = wanted.tag as u32;
        match (&buffer, wanted.located, wanted.fetched) {
            (Some(lent), Some(located), Some(Fetched::Record(at))) => {
                let record = &lent.buffer[at..at + located.info.record_len() as usize];
                match check_record(record, located.pack, located.position, &located.info) {
                    Ok(_) => out.record(tag, &located, &record[RECORD_HEADER_LEN..]),
                    // It may have been moved by a collection since it was looked up.
                    Err(_) => out.alone(records, tag, wanted.id, ObjectKind::Chunk),
                }
            }
            _ => out.alone(records, tag, wanted.id, ObjectKind::Chunk),
        }
        out.send_while_lent(&mut on.stream, &mut buffer)?;
    }
    Ok(())
}

/// A buffer that others wait for.
struct Lent {
    since: Stopwatch,
    buffer: Buffer,
    _share: Share,
}

impl Lent {
    fn time_left(&self) -> Duration {
        LENT_FOR.saturating_sub(self.since.elapsed())
    }
}

/// How long a buffer is lent to a client that reads slowly. What it did not read by then is read again from the
/// disk, record by record: it can wait, and those who want the buffer cannot.
const LENT_FOR: Duration = Duration::from_secs(3);

/// Frames on their way to the stream.
#[derive(Default)]
struct Out {
    frames: Vec<u8>,
    records: u64,
    stored: u64,
    plain: u64,
}

impl Out {
    fn record(&mut self, tag: u32, located: &Located, payload: &[u8]) {
        let prefix = RecordPrefix {
            tag,
            pack: located.pack,
            position: located.position,
            header: RecordHeader::new(located.info, payload),
        };
        let header = FrameHeader {
            kind: FrameType::Record,
            len: (RECORD_PREFIX_LEN + payload.len()) as u32,
        };
        self.frames.reserve(FRAME_HEADER_LEN + header.len as usize);
        self.frames.extend_from_slice(&header.encode());
        self.frames.extend_from_slice(&prefix.encode());
        self.frames.extend_from_slice(payload);
        self.records += 1;
        self.stored += u64::from(located.info.stored_len);
        self.plain += u64::from(located.info.plain_len);
    }

    /// Reads one record by itself, or says why it cannot be had.
    fn alone(&mut self, records: &dyn Records, tag: u32, id: ObjectId, kind: ObjectKind) {
        match records.payload(id, kind) {
            Ok((located, payload)) => self.record(tag, &located, &payload),
            Err(error) => self.unfetched(tag, &error),
        }
    }

    fn unfetched(&mut self, tag: u32, error: &RepositoryError) {
        let failure = failure_of(error);
        self.frames
            .extend_from_slice(&Unfetched { tag, failure }.frame());
    }

    fn send_if_full(&mut self, stream: &mut Conversation) -> Result<(), StreamError> {
        if self.frames.len() < PIECE_LEN {
            return Ok(());
        }
        self.send(stream)
    }

    /// The same, and gives the buffer back if that takes too long.
    fn send_while_lent(
        &mut self,
        stream: &mut Conversation,
        lent: &mut Option<Lent>,
    ) -> Result<(), StreamError> {
        let Some(left) = lent.as_ref().map(Lent::time_left) else {
            return self.send_if_full(stream);
        };
        if self.frames.len() < PIECE_LEN {
            return Ok(());
        }
        let mut piece = Bytes::from(std::mem::take(&mut self.frames));
        if stream.write_within(&mut piece, left)? {
            return Ok(());
        }
        *lent = None;
        stream.write(piece.into())
    }

    fn send(&mut self, stream: &mut Conversation) -> Result<(), StreamError> {
        match self.frames.is_empty() {
            true => Ok(()),
            false => stream.write(std::mem::take(&mut self.frames)),
        }
    }
}
