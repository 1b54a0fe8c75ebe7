//! All messages as one type.

use crate::codec::DecodeError;

use super::fetch::{RECORD_PREFIX_LEN, RecordPrefix};
use super::frame::{Body, FRAME_HEADER_LEN, FrameHeader, FrameType};
use super::judge::judged_records;
use super::lane::pushed_records;

pub use super::failure::Failure;
pub use super::fetch::{Fetch, Unfetched};
pub use super::hello::{Create, Hello, Open, Opened, Renew, Renewed, Welcome};
pub use super::judge::Judged;
pub use super::lane::{Answers, AskObjects, AskSegments, Attach, Distrust, Flush, SegmentDone};
pub use super::proxy::{
    Accepted, CancelTask, Follow, ListTasks, ShowTask, Submit, Suspend, TaskNote, TaskOver,
    TaskProgress,
};
pub use super::reference::{AskReference, ReferenceMaps, SegmentsUnchanged};
pub use super::session::{
    Abandon, Acknowledged, Begin, Begun, Commit, Draining, Ended, Finished, Pin, Pinned, Published,
};
pub use super::snapshots::{
    Forget, Hold, Lock, LockedUntil, Protect, ReadSnapshot, SnapshotFile, SnapshotState,
    StatSnapshot,
};
pub use super::upkeep::{
    Collect, Done, ListSnapshots, May, PackBytes, Progress, Repair, Report, Sessions, Stats,
    Status, Stop, Verify,
};

macro_rules! messages {
    ($($kind:ident($body:ident),)*) => {
        /// A message. Records are left as the bytes of their frames' bodies, which hold together.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each is documented where its body is")]
        pub enum Message {
            $($kind($body),)*
            Push(Vec<u8>),
            Record(Vec<u8>),
            Judge(Vec<u8>),
        }

        impl Message {
            /// Reads the body of a frame of type `kind`.
            pub fn decode(kind: FrameType, body: &[u8]) -> Result<Self, DecodeError> {
                match kind {
                    $(FrameType::$kind => $body::decode(body).map(Self::$kind),)*
                    FrameType::Push => {
                        pushed_records(body)?;
                        Ok(Self::Push(body.to_vec()))
                    }
                    FrameType::Record => {
                        let prefix = &body[..body.len().min(RECORD_PREFIX_LEN)];
                        RecordPrefix::decode(prefix, body.len())?;
                        Ok(Self::Record(body.to_vec()))
                    }
                    FrameType::Judge => {
                        judged_records(body)?;
                        Ok(Self::Judge(body.to_vec()))
                    }
                }
            }

            /// The whole frame.
            pub fn frame(&self) -> Vec<u8> {
                let raw = |kind, body: &[u8]| {
                    let header = FrameHeader { kind, len: body.len() as u32 };
                    [&header.encode()[..], body].concat()
                };
                match self {
                    $(Self::$kind(body) => body.frame(),)*
                    Self::Push(body) => raw(FrameType::Push, body),
                    Self::Record(body) => raw(FrameType::Record, body),
                    Self::Judge(body) => raw(FrameType::Judge, body),
                }
            }
        }
    };
}

messages! {
    Hello(Hello),
    Welcome(Welcome),
    Open(Open),
    Opened(Opened),
    Create(Create),
    Renew(Renew),
    Renewed(Renewed),
    Done(Done),
    Failed(Failure),
    Begin(Begin),
    Finished(Finished),
    Begun(Begun),
    Pin(Pin),
    Pinned(Pinned),
    Acknowledged(Acknowledged),
    Commit(Commit),
    Abandon(Abandon),
    Ended(Ended),
    Published(Published),
    Draining(Draining),
    Attach(Attach),
    AskSegments(AskSegments),
    AskObjects(AskObjects),
    Answers(Answers),
    SegmentDone(SegmentDone),
    Flush(Flush),
    Distrust(Distrust),
    AskReference(AskReference),
    ReferenceMaps(ReferenceMaps),
    SegmentsUnchanged(SegmentsUnchanged),
    Fetch(Fetch),
    Unfetched(Unfetched),
    ListSnapshots(ListSnapshots),
    SnapshotFile(SnapshotFile),
    ReadSnapshot(ReadSnapshot),
    StatSnapshot(StatSnapshot),
    SnapshotState(SnapshotState),
    Forget(Forget),
    Protect(Protect),
    Hold(Hold),
    Lock(Lock),
    LockedUntil(LockedUntil),
    Collect(Collect),
    Verify(Verify),
    Repair(Repair),
    Stats(Stats),
    PackBytes(PackBytes),
    Progress(Progress),
    Stop(Stop),
    Report(Report),
    Judged(Judged),
    May(May),
    Status(Status),
    Sessions(Sessions),
    Submit(Submit),
    Accepted(Accepted),
    Follow(Follow),
    TaskNote(TaskNote),
    TaskProgress(TaskProgress),
    TaskOver(TaskOver),
    CancelTask(CancelTask),
    ListTasks(ListTasks),
    ShowTask(ShowTask),
    Suspend(Suspend),
}

impl Message {
    /// Reads a whole frame.
    pub fn decode_frame(frame: &[u8]) -> Result<Self, DecodeError> {
        let (header, body) = frame.split_at(frame.len().min(FRAME_HEADER_LEN));
        let header = FrameHeader::decode(header)?;
        if body.len() != header.len as usize {
            return Err(crate::codec::Reader::new("frame", body)
                .error(crate::codec::Problem::Invalid("frame length")));
        }
        Self::decode(header.kind, body)
    }
}

#[cfg(test)]
mod tests;
