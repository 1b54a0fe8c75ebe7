//! A session at a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use parking_lot::Mutex;
use quinn::{RecvStream, SendStream};
use tokio::runtime::Handle;
use undercroft_format::config::Config;
use undercroft_format::id::{ObjectId, SegmentMapId, SessionId};
use undercroft_format::lock::LockEnd;
use undercroft_format::pack::{ObjectKind, RecordHeader};
use undercroft_format::snapshot::Snapshot;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::frame::{Body, FrameType, IDS_MAX};
use undercroft_format::wire::lane::{
    Answers, AskObjects, AskSegments, Attach, Distrust, Flush, PushBuilder, SegmentDone,
};
use undercroft_format::wire::reference::SegmentsUnchanged;
use undercroft_format::wire::session::{
    Abandon, Acknowledged, Begin, Begun, Commit, Ended, Finished, Pin, Pinned, Published,
};
use undercroft_format::wire::upkeep::Done;

use super::lane::{Claims, Lane};
use super::reference::{Reference, Unchanged};
use super::repository::RemoteRepository;
use crate::net::conversation::{Conversation, Frame, QuicStream, StreamError, expect, read_frame};
use crate::repository::Repository;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::keys::{Keys, Sealer};
use crate::repository::objects::Objects;
use crate::repository::packer::PackerFigures;
use crate::repository::record::{EncodedRecord, RecordBatch};
use crate::repository::session::{
    self, Committed, DoneSegment, DoneSegments, Held, SegmentPlace, Session, SessionRequest,
};
use crate::repository::snapshots::StoredSnapshot;
use crate::simulate::worker_number;

/// Lanes at most: workers share one beyond that.
const LANES_MAX: usize = 32;

/// An open session of a [`RemoteRepository`].
pub struct RemoteSession {
    repository: Arc<RemoteRepository>,
    keys: Arc<Keys>,
    sealer: Option<Sealer>,
    attach: Attach,
    finished: Vec<DoneSegments>,
    /// A snapshot that the server keeps for the session, and that is likely to be much alike.
    reference: Option<Reference>,
    unchanged: Unchanged,
    lock: Option<LockEnd>,
    claims: Claims,
    lanes: Vec<Mutex<Option<Lane>>>,
    control: Mutex<Control>,
    news: Arc<News>,
}

/// What the server told that was not asked for.
#[derive(Default)]
struct News {
    /// Segments that are durable.
    acknowledged: AtomicU64,
    /// It is going to shut down.
    is_draining: AtomicBool,
}

/// The session's own stream, on which acknowledgements come at any time.
enum Control {
    /// A task of the runtime reads it.
    Listening {
        handle: Handle,
        send: SendStream,
        answers: Receiver<Result<Frame, StreamError>>,
    },
    /// It is read when an answer is due.
    Asking {
        stream: Conversation,
        news: Arc<News>,
    },
}

impl RemoteSession {
    /// Begins a session, or goes on with one.
    pub fn begin(
        repository: Arc<RemoteRepository>,
        request: &SessionRequest,
    ) -> Result<session::Begun> {
        let keys = repository.keys()?.clone();
        let mut stream = repository.link().converse_on(0)?;
        stream.say(&Begin {
            vm: request.vm.clone(),
            disks: request.disks.clone(),
            resume: request.resume,
            lock: request.lock,
        })?;
        let mut finished = vec![DoneSegments::new(); request.disks.len()];
        let begun = loop {
            let frame = stream.read()?.ok_or(StreamError::NoAnswer)?;
            match frame.0 {
                FrameType::Finished => {}
                FrameType::Published => return Ok(published(&expect(&frame)?)),
                _ => break expect::<Begun>(&frame)?,
            }
            let Finished { disk, segments } = expect(&frame)?;
            let of_disk = finished.get_mut(usize::from(disk));
            of_disk
                .ok_or(StreamError::Unexpected(FrameType::Finished))?
                .extend(segments);
        };
        // Not the session's id, which a server could give out twice and which a resume uses again: a key
        // must never meet the same nonce.
        let sealing = SessionId::from_bytes(repository.entropy().array()?);
        let news = Arc::<News>::default();
        let control = Control::new(stream, news.clone());
        Ok(session::Begun::Open(Box::new(Self {
            sealer: keys.sealer(sealing),
            keys,
            attach: Attach {
                session: begun.session,
                epoch: begun.epoch,
            },
            finished,
            reference: begun.reference.map(|_| Reference::new(request.disks.len())),
            unchanged: Unchanged::default(),
            lock: request.lock,
            claims: Claims::default(),
            lanes: (0..LANES_MAX).map(|_| Mutex::default()).collect(),
            control: Mutex::new(control),
            news,
            repository,
        })))
    }

    /// Does something on the lane of this thread.
    fn on_lane<T>(&self, work: impl FnOnce(&mut Lane) -> Result<T, StreamError>) -> Result<T> {
        let number = worker_number() % LANES_MAX;
        let mut lane = self.lanes[number].lock();
        let opened = match &mut *lane {
            Some(lane) => Ok(lane),
            None => {
                let stream = self.repository.link().converse_on(number);
                let opened = stream.and_then(|stream| Lane::open(stream, &self.attach));
                opened.map(|opened| lane.insert(opened))
            }
        };
        opened
            .and_then(work)
            .map_err(|error| self.interrupted(error))
    }

    /// Tells an interruption, after which the session can be gone on with, from a failure.
    fn interrupted(&self, error: StreamError) -> RepositoryError {
        self.interrupted_at(error, false)
    }

    fn interrupted_at(&self, error: StreamError, is_committing: bool) -> RepositoryError {
        let is_interruption = error.is_lost()
            || matches!(&error, StreamError::Failed(failure) if failure.code == FailureCode::Draining);
        let error = RepositoryError::from(error);
        if !is_interruption {
            return error;
        }
        tracing::info!(
            session = %self.attach.session,
            segments = self.news.acknowledged.load(Ordering::Relaxed),
            "interrupted; so many segments are known to be kept"
        );
        RepositoryError::Interrupted {
            session: self.attach.session,
            is_committing,
            source: Box::new(error),
        }
    }

    fn push(&self, builder: PushBuilder, ids: &[ObjectId]) -> Result<()> {
        self.on_lane(|lane| lane.send(builder.finish(), ids.iter().copied()))
    }

    fn push_all<'r>(
        &self,
        records: impl Iterator<Item = (&'r RecordHeader, &'r [u8])>,
    ) -> Result<u64> {
        let mut builder = PushBuilder::default();
        let mut ids = Vec::new();
        let mut stored = 0;
        for (header, payload) in records {
            if !builder.has_room(payload.len()) {
                self.push(std::mem::take(&mut builder), &ids)?;
                ids.clear();
            }
            builder.push(header, payload);
            ids.push(header.info.id);
            stored += u64::from(header.info.record_len());
        }
        if !builder.is_empty() {
            self.push(builder, &ids)?;
        }
        Ok(stored)
    }

    /// Tells of segments that are as they are in the reference.
    fn tell_unchanged(&self, unchanged: Vec<SegmentsUnchanged>) -> Result<()> {
        unchanged.into_iter().try_for_each(|segments| {
            let frame = segments.frame();
            self.on_lane(|lane| lane.send(frame, std::iter::empty()))
        })
    }

    /// Waits until everything that was sent on any lane was taken in.
    fn flush(&self) -> Result<()> {
        self.tell_unchanged(self.unchanged.take())?;
        let mut lanes: Vec<_> = self.lanes.iter().map(|lane| lane.lock()).collect();
        let flush = |lanes: &mut Vec<parking_lot::MutexGuard<'_, Option<Lane>>>| {
            let lanes = lanes.iter_mut().filter_map(|lane| lane.as_mut());
            let mut open: Vec<&mut Lane> = lanes.filter(|lane| !lane.is_answered()).collect();
            open.iter_mut()
                .try_for_each(|lane| lane.begin_ask(&Flush))?;
            open.iter_mut().try_for_each(|lane| {
                let Done = lane.end_ask(&self.claims)?;
                Ok(())
            })
        };
        flush(&mut lanes).map_err(|error: StreamError| self.interrupted(error))
    }

    fn conclude<Q: Body>(&self, last: &Q) -> Result<Ended> {
        self.control
            .lock()
            .ask(last)
            .map_err(|error| self.interrupted_at(error, Q::KIND == FrameType::Commit))
    }
}

fn figures(ended: &Ended) -> PackerFigures {
    PackerFigures {
        packs: ended.packs,
        bytes: ended.pack_bytes,
    }
}

fn published(published: &Published) -> session::Begun {
    session::Begun::Published(Committed {
        id: published.snapshot,
        figures: figures(&published.ended),
        locked_until: published.ended.locked_until,
    })
}

impl Session for RemoteSession {
    fn id(&self) -> SessionId {
        self.attach.session
    }

    fn config(&self) -> &Config {
        self.repository.config()
    }

    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn objects(&self) -> &Objects {
        self.repository.objects()
    }

    fn reads_chunks(&self) -> bool {
        false
    }

    fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_ref()
    }

    fn finished(&self, disk: u16) -> DoneSegments {
        self.finished
            .get(usize::from(disk))
            .cloned()
            .unwrap_or_default()
    }

    fn pin_parent(&self, parent: &StoredSnapshot) -> Result<bool> {
        let pin = Pin {
            snapshot: parent.id,
        };
        let answer = self.control.lock().ask(&pin);
        let Pinned { is_there } = answer.map_err(|error| self.interrupted(error))?;
        Ok(is_there)
    }

    fn holds_segment(&self, place: SegmentPlace, map: SegmentMapId) -> Result<Held> {
        if let Some(reference) = &self.reference {
            let ask = |question| self.on_lane(|lane| lane.ask(&question, &self.claims));
            if reference.has(place, map, ask)? {
                return Ok(Held::Whole);
            }
        }
        let question = AskSegments { ids: vec![map] };
        let Answers { known } = self.on_lane(|lane| lane.ask(&question, &self.claims))?;
        Ok(match known[..] {
            [true] => Held::Whole,
            _ => Held::NotWhole,
        })
    }

    fn probe(&self, ids: &[ObjectId]) -> Result<Vec<bool>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let question = AskObjects { ids: ids.to_vec() };
        let Answers { mut known } = self.on_lane(|lane| {
            let answers: Answers = lane.ask(&question, &self.claims)?;
            match answers.known.len() == ids.len() {
                true => Ok(answers),
                false => Err(StreamError::Unexpected(FrameType::Answers)),
            }
        })?;
        for (known, id) in known.iter_mut().zip(ids) {
            *known = *known || self.claims.contains(*id);
        }
        Ok(known)
    }

    fn distrust(&self, kind: ObjectKind, ids: &[ObjectId]) -> Result<()> {
        // It may have what is damaged in common with the parent, and answers without asking.
        if let Some(reference) = &self.reference {
            reference.distrust();
        }
        for ids in ids.chunks(IDS_MAX as usize) {
            let ids = ids.to_vec();
            let Done = self.on_lane(|lane| lane.ask(&Distrust { kind, ids }, &self.claims))?;
        }
        Ok(())
    }

    fn claim(&self, id: ObjectId) -> bool {
        self.claims.claim(id)
    }

    fn store(&self, record: &EncodedRecord<'_>) -> Result<u64> {
        let header = RecordHeader::new(record.info, record.payload);
        self.push_all([(&header, record.payload)].into_iter())
    }

    fn store_chunks(&self, batch: &RecordBatch) -> Result<u64> {
        self.push_all(batch.records())
    }

    fn segment_done(&self, place: SegmentPlace, done: DoneSegment) -> Result<()> {
        if let Some(reference) = &self.reference
            && reference.is_known_to_have(place, &done)
        {
            return self.tell_unchanged(self.unchanged.add(place, done.data_bytes));
        }
        let frame = SegmentDone { place, done }.frame();
        self.on_lane(|lane| lane.send(frame, std::iter::empty()))
    }

    fn commit(self: Box<Self>, snapshot: &Snapshot) -> Result<Committed> {
        self.flush()?;
        let (id, snapshot) = snapshot.encode(|body| self.keys.authenticate(body));
        let ended = self.conclude(&Commit {
            lock: self.lock,
            snapshot,
        })?;
        Ok(Committed {
            id,
            figures: figures(&ended),
            locked_until: ended.locked_until,
        })
    }

    fn going_on(&self) -> Result<()> {
        if !self.news.is_draining.load(Ordering::Relaxed) {
            return Ok(());
        }
        let text = "the server is shutting down";
        Err(self.interrupted(StreamError::Failed(Failure::new(
            FailureCode::Draining,
            text,
        ))))
    }

    fn abandon(self: Box<Self>) -> Result<PackerFigures> {
        self.flush()?;
        if self.news.is_draining.load(Ordering::Relaxed) {
            // It is gone on with when the server is back.
            return Ok(self.sealed());
        }
        Ok(figures(&self.conclude(&Abandon)?))
    }
}

impl Control {
    fn new(stream: Conversation, news: Arc<News>) -> Self {
        match stream.into_quic() {
            Ok(QuicStream {
                handle, send, recv, ..
            }) => {
                let (frames, answers) = channel();
                handle.spawn(read_control(recv, news, frames));
                Self::Listening {
                    handle,
                    send,
                    answers,
                }
            }
            Err(stream) => Self::Asking { stream, news },
        }
    }

    fn ask<Q: Body, A: Body>(&mut self, question: &Q) -> Result<A, StreamError> {
        match self {
            Self::Listening {
                handle,
                send,
                answers,
            } => {
                handle.block_on(send.write_all(&question.frame()))?;
                let answer = answers.recv().unwrap_or(Err(StreamError::NoAnswer))?;
                expect(&answer)
            }
            Self::Asking { stream, news } => {
                stream.say(question)?;
                loop {
                    let frame = stream.read()?.ok_or(StreamError::NoAnswer)?;
                    if !is_news(&frame, news) {
                        return expect(&frame);
                    }
                }
            }
        }
    }
}

/// Notes what was not asked for; false if the frame is an answer.
fn is_news((kind, body): &Frame, news: &News) -> bool {
    match kind {
        FrameType::Acknowledged => match Acknowledged::decode(body) {
            Ok(Acknowledged { places }) => {
                let count = places.len() as u64;
                news.acknowledged.fetch_add(count, Ordering::Relaxed);
                true
            }
            Err(_) => false,
        },
        FrameType::Draining => {
            news.is_draining.store(true, Ordering::Relaxed);
            true
        }
        _ => false,
    }
}

async fn read_control(
    mut recv: RecvStream,
    news: Arc<News>,
    frames: std::sync::mpsc::Sender<Result<Frame, StreamError>>,
) {
    loop {
        let frame = match read_frame(&mut recv).await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let is_last = frame.is_err();
        if let Ok(frame) = &frame
            && is_news(frame, &news)
        {
            continue;
        }
        // Nobody listens once the session is dropped.
        if frames.send(frame).is_err() || is_last {
            return;
        }
    }
}
