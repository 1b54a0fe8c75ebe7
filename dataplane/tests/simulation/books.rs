//! What an onlooker writes down of a run, and the promises that he sees kept or broken.

use std::collections::{BTreeMap, BTreeSet};

use undercroft_dataplane::net::conversation::{Frame, expect};
use undercroft_format::id::{SessionId, SnapshotId};
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::frame::FrameType;
use undercroft_format::wire::session::{
    self as wire, Acknowledged, Begun, Epoch, Finished, SegmentPlace,
};

use super::support::Content;
use super::world::StreamNumber;

/// A VM's disks: labels and bytes.
pub type Disks = Vec<(String, Content)>;

/// What one try at a backup was given.
pub struct Given {
    pub vm: String,
    pub disks: Disks,
}

#[derive(Default)]
struct SessionBook {
    /// Who was let hold it, in order: epoch and attempt.
    holders: Vec<(Epoch, u64)>,
    acknowledged: BTreeSet<SegmentPlace>,
    has_ended: bool,
    /// It published a snapshot.
    has_published: bool,
}

/// What is known of an attempt's session.
#[derive(Clone, Default)]
pub struct Begin {
    pub session: Option<SessionId>,
    /// What it need not read.
    pub finished: BTreeSet<SegmentPlace>,
}

#[derive(Default)]
pub struct Books {
    pub given: BTreeMap<u64, Given>,
    /// Snapshots that a client was told of, and by which attempt.
    pub promised: BTreeMap<SnapshotId, u64>,
    /// Snapshots that somebody began to forget.
    pub forgetting: BTreeSet<SnapshotId>,
    /// An operation of the server's disk failed, or was going to.
    pub has_disk_faults: bool,
    /// Power failed, or the server was killed.
    pub crashes: u64,
    /// Attempts that know their session.
    pub heard_begun: BTreeSet<u64>,
    sessions: BTreeMap<SessionId, SessionBook>,
    streams: BTreeMap<StreamNumber, (SessionId, Epoch)>,
    /// Streams on which a client wants to go on with a session.
    resuming: BTreeMap<StreamNumber, SessionId>,
    /// Streams whose client wants the session's snapshot published.
    committing: BTreeSet<StreamNumber>,
    begins: BTreeMap<u64, Begin>,
}

impl Books {
    /// What an attempt was told when it began.
    pub fn begin_of(&self, attempt: u64) -> Begin {
        self.begins.get(&attempt).cloned().unwrap_or_default()
    }

    /// The attempt that held a session last.
    pub fn last_holder(&self, session: SessionId) -> Option<u64> {
        let book = self.sessions.get(&session)?;
        book.holders.last().map(|(_, attempt)| *attempt)
    }

    /// Sees what a client sends.
    pub fn client_says(&mut self, stream: StreamNumber, frame: &Frame) {
        match frame.0 {
            FrameType::Begin => {
                let begin: wire::Begin = expect(frame).expect("the client's own frame");
                if let Some(session) = begin.resume {
                    self.resuming.insert(stream, session);
                }
            }
            FrameType::Commit => {
                self.committing.insert(stream);
            }
            _ => {}
        }
    }

    /// Sees what the server sends to `attempt`.
    pub fn server_says(&mut self, stream: StreamNumber, attempt: u64, frame: &Frame) {
        match frame.0 {
            FrameType::Finished => {
                let Finished { disk, segments } = expect(frame).expect("the server's own frame");
                let places = segments
                    .into_iter()
                    .map(|(number, _)| SegmentPlace { disk, number });
                self.begins
                    .entry(attempt)
                    .or_default()
                    .finished
                    .extend(places);
            }
            FrameType::Begun => {
                let begun: Begun = expect(frame).expect("the server's own frame");
                self.begun(stream, attempt, &begun);
            }
            FrameType::Acknowledged => {
                let Acknowledged { places } = expect(frame).expect("the server's own frame");
                let (session, _) = self.streams[&stream];
                let book = self.sessions.get_mut(&session).expect("it was begun");
                book.acknowledged.extend(places);
            }
            FrameType::Ended => {
                let (session, epoch) = self.streams[&stream];
                let book = self.sessions.get_mut(&session).expect("it was begun");
                assert!(!book.has_ended, "session {session} ended twice");
                book.has_ended = true;
                let last = book.holders.last().expect("it was begun");
                assert_eq!(last.0, epoch, "a fenced client ended session {session}");
                book.has_published = self.committing.contains(&stream);
            }
            FrameType::Failed => {
                let failure: Failure = expect(frame).expect("the server's own frame");
                let session = self.resuming.get(&stream);
                let book = session.and_then(|session| self.sessions.get(session));
                let is_hidden = failure.code == FailureCode::NoSuchSession
                    && book.is_some_and(|book| book.has_published)
                    && !self.streams.contains_key(&stream)
                    && self.forgetting.is_empty()
                    && !self.has_disk_faults;
                assert!(!is_hidden, "{session:?} is not told that it was published");
            }
            FrameType::Published => {
                let published: wire::Published = expect(frame).expect("the server's own frame");
                self.promised.insert(published.snapshot, attempt);
            }
            _ => {}
        }
    }

    fn begun(&mut self, stream: StreamNumber, attempt: u64, begun: &Begun) {
        let begin = self.begins.entry(attempt).or_default();
        begin.session = Some(begun.session);
        let book = self.sessions.entry(begun.session).or_default();
        assert!(
            !book.has_ended,
            "session {} goes on after its end",
            begun.session
        );
        if let Some((epoch, _)) = book.holders.last() {
            let session = begun.session;
            assert!(
                *epoch < begun.epoch,
                "session {session} gives out {:?} after {epoch:?}",
                begun.epoch
            );
        }
        let lost = book.acknowledged.difference(&begin.finished);
        let lost: Vec<_> = lost.collect();
        assert!(
            self.has_disk_faults || lost.is_empty(),
            "session {} lost acknowledged segments {lost:?}",
            begun.session
        );
        book.holders.push((begun.epoch, attempt));
        self.streams.insert(stream, (begun.session, begun.epoch));
    }
}
