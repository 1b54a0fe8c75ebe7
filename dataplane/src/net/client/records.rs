//! Records from a server: many at a time, several requests under way, in any order.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use undercroft_format::config::Config;
use undercroft_format::id::{ObjectId, SegmentMapId};
use undercroft_format::pack::{ObjectKind, RECORD_HEADER_LEN};
use undercroft_format::wire::fetch::{
    Fetch as FetchRequest, RECORD_PREFIX_LEN, RecordPrefix, Unfetched,
};
use undercroft_format::wire::frame::{Body, FRAME_HEADER_LEN, FrameHeader, FrameType};

use super::expected::ExpectedMaps;
use super::link::Link;
use crate::io::{Buffer, BufferPool, Engine};
use crate::net::bandwidth::Pace;
use crate::net::conversation::{Conversation, QuicStream, StreamError, expect, of_exact};
use crate::net::convert::error_of;
use crate::repository::error::{RecordProblem, RepositoryError, Result};
use crate::repository::local_records::FETCH_LEN_MAX;
use crate::repository::lookup::Located;
use crate::repository::objects::corrupt;
use crate::repository::records::{Batch, Fetch, Fetched, Records};

/// Records that a server gives.
pub struct RemoteRecords {
    link: Arc<Link>,
    /// Bytes of the longest chunk.
    chunk_len_max: usize,
    expected: ExpectedMaps,
}

/// Batches beyond the one that is waited for: the server reads one while another is on its way.
const BATCHES_AHEAD: usize = 2;

impl RemoteRecords {
    /// Records of the repository that `link` has opened.
    pub fn new(link: Arc<Link>, config: &Config) -> Self {
        Self {
            link,
            chunk_len_max: config.chunker.max_len() as usize,
            expected: ExpectedMaps::default(),
        }
    }

    /// Asks for objects of one kind and gives each to `take`.
    fn fetch_each(
        &self,
        kind: ObjectKind,
        ids: &[ObjectId],
        take: impl FnMut(usize, Result<(Located, Vec<u8>)>),
    ) -> Result<()> {
        let paced = self
            .link
            .runtime()
            .map(|runtime| (runtime, self.link.download()));
        Ok(fetch_each(self.link.converse()?, paced, kind, ids, take)?)
    }
}

/// Asks for objects of one kind on a new stream and gives each to `take`.
fn fetch_each(
    mut stream: Conversation,
    paced: Option<(&Handle, Pace)>,
    kind: ObjectKind,
    ids: &[ObjectId],
    mut take: impl FnMut(usize, Result<(Located, Vec<u8>)>),
) -> Result<(), StreamError> {
    let ids = ids.to_vec();
    let count = ids.len();
    stream.say(&FetchRequest { kind, ids })?;
    stream.finish();
    for _ in 0..count {
        let (frame, mut body) = stream.read()?.ok_or(StreamError::NoAnswer)?;
        if let Some((runtime, pace)) = &paced {
            runtime.block_on(pace.take(body.len()));
        }
        match frame {
            FrameType::Record => {
                let prefix = &body[..body.len().min(RECORD_PREFIX_LEN)];
                let prefix = RecordPrefix::decode(prefix, body.len())?;
                let payload = body.split_off(RECORD_PREFIX_LEN);
                take(prefix.tag as usize, checked(&prefix, kind, payload));
            }
            frame => {
                let Unfetched { tag, failure } = expect(&(frame, body))?;
                take(tag as usize, Err(error_of(failure)));
            }
        }
    }
    Ok(())
}

fn located(prefix: &RecordPrefix) -> Located {
    Located {
        pack: prefix.pack,
        position: prefix.position,
        info: prefix.header.info,
    }
}

fn checked(
    prefix: &RecordPrefix,
    kind: ObjectKind,
    payload: Vec<u8>,
) -> Result<(Located, Vec<u8>)> {
    let located = located(prefix);
    if located.info.kind != kind {
        return Err(corrupt(located, RecordProblem::OtherObject));
    }
    match prefix.header.check_payload(&payload) {
        Ok(()) => Ok((located, payload)),
        Err(error) => Err(corrupt(located, error.into())),
    }
}

impl Records for RemoteRecords {
    fn payload(&self, id: ObjectId, kind: ObjectKind) -> Result<(Located, Vec<u8>)> {
        if kind == ObjectKind::SegmentMap
            && let Some(found) = self.expected.get(id)
        {
            return Ok(found);
        }
        let mut found = Err(RepositoryError::MissingObject { kind, id });
        self.fetch_each(kind, &[id], |_, record| found = record)?;
        let (located, payload) = found?;
        if located.info.id != id {
            return Err(corrupt(located, RecordProblem::OtherObject));
        }
        Ok((located, payload))
    }

    fn expect_maps(&self, ids: &[SegmentMapId]) {
        let mut ids: Vec<ObjectId> = ids.iter().map(|id| (*id).into()).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return;
        }
        // Without a runtime, each is asked for alone.
        let Some(handle) = self.link.runtime() else {
            return;
        };
        let link = self.link.clone();
        self.expected.fetch(handle, ids.clone(), move || {
            let mut found = Vec::new();
            fetch_each(
                link.converse()?,
                link.runtime().map(|runtime| (runtime, link.download())),
                ObjectKind::SegmentMap,
                &ids,
                |_, record| {
                    // Asking for what is missing alone tells why.
                    found.extend(record);
                },
            )?;
            Ok(found)
        });
    }

    fn fetch_ahead_len(&self) -> usize {
        // What no record comes to is never touched.
        BATCHES_AHEAD * FETCH_LEN_MAX
    }

    fn fetch(&self, _: &dyn Engine, _: &Arc<BufferPool>) -> Result<Box<dyn Fetch + '_>> {
        let (done, batches) = channel();
        Ok(Box::new(RemoteFetch {
            records: self,
            idle: Arc::default(),
            under_way: 0,
            done,
            batches,
        }))
    }
}

/// Each batch is one request on a stream of its own; streams are used again.
struct RemoteFetch<'a> {
    records: &'a RemoteRecords,
    idle: Arc<Mutex<Vec<QuicStream>>>,
    under_way: usize,
    done: Sender<(Batch, Buffer)>,
    batches: Receiver<(Batch, Buffer)>,
}

impl Fetch for RemoteFetch<'_> {
    fn prepare(&mut self, batch: &mut Batch) -> Result<()> {
        // How long the records are, only the server knows; they are hardly longer than what they hold. A
        // chunk that is longer than what is used of it finds room where another was compressed.
        let plain = batch.wanted.iter().map(|wanted| {
            (wanted.plain_len_min as usize).min(self.records.chunk_len_max) + RECORD_HEADER_LEN
        });
        let len = plain.sum::<usize>() + self.records.chunk_len_max;
        batch.fetch_len = match batch.wanted.is_empty() {
            true => 0,
            false => len.min(FETCH_LEN_MAX),
        };
        Ok(())
    }

    fn submit(&mut self, mut batch: Batch, mut buffer: Buffer) {
        self.under_way += 1;
        let reused = self.idle.lock().pop();
        let fresh = || self.records.link.converse().ok()?.into_quic().ok();
        let (idle, done) = (self.idle.clone(), self.done.clone());
        let pace = self.records.link.download();
        // What could not be fetched is asked for alone, which tells why.
        let Some(mut stream) = reused.or_else(fresh) else {
            let _ = done.send((batch, buffer));
            return;
        };
        stream.handle.clone().spawn(async move {
            match fetch_into(&mut stream, &pace, &mut batch, &mut buffer).await {
                Ok(()) => idle.lock().push(stream),
                Err(error) => tracing::debug!(%error, "a batch could not be fetched"),
            }
            // Nobody waits any more if the restore failed.
            let _ = done.send((batch, buffer));
        });
    }

    fn wait(&mut self) -> Option<(Batch, Buffer)> {
        if self.under_way == 0 {
            return None;
        }
        self.under_way -= 1;
        let done = self.batches.recv();
        Some(done.expect("every request ends, well or not"))
    }
}

/// Asks for a batch and lets the payloads flow into `buffer`.
async fn fetch_into(
    stream: &mut QuicStream,
    pace: &Pace,
    batch: &mut Batch,
    buffer: &mut Buffer,
) -> Result<(), StreamError> {
    let request = FetchRequest {
        kind: ObjectKind::Chunk,
        ids: batch.wanted.iter().map(|wanted| wanted.id).collect(),
    };
    stream.send.write_all(&request.frame()).await?;
    let mut at = 0;
    for _ in 0..batch.wanted.len() {
        let mut header = [0; FRAME_HEADER_LEN];
        stream
            .recv
            .read_exact(&mut header)
            .await
            .map_err(of_exact)?;
        let header = FrameHeader::decode(&header)?;
        let body_len = header.len as usize;
        if header.kind != FrameType::Record {
            let mut body = vec![0; body_len];
            stream.recv.read_exact(&mut body).await.map_err(of_exact)?;
            expect::<Unfetched>(&(header.kind, body))?;
            continue;
        }
        let mut prefix = [0; RECORD_PREFIX_LEN];
        let prefix_len = body_len.min(RECORD_PREFIX_LEN);
        stream
            .recv
            .read_exact(&mut prefix[..prefix_len])
            .await
            .map_err(of_exact)?;
        let prefix = RecordPrefix::decode(&prefix[..prefix_len], body_len)?;
        let len = prefix.header.info.stored_len as usize;
        if at + len > buffer.len() {
            // The rest is read record by record: it is an exception.
            let mut payload = vec![0; len];
            stream
                .recv
                .read_exact(&mut payload)
                .await
                .map_err(of_exact)?;
            continue;
        }
        let payload = &mut buffer[at..at + len];
        stream.recv.read_exact(payload).await.map_err(of_exact)?;
        pace.take(len).await;
        let wanted = batch.wanted.get_mut(prefix.tag as usize);
        if let Some(wanted) = wanted
            && wanted.id == prefix.header.info.id
            && prefix.header.info.kind == ObjectKind::Chunk
            && prefix.header.check_payload(payload).is_ok()
        {
            wanted.located = Some(located(&prefix));
            wanted.fetched = Some(Fetched::Payload(at));
            at += len;
        }
    }
    batch.fetch_len = at;
    Ok(())
}
