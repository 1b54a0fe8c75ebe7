//! Frames: every message on a stream is one.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | length of the body |
//! | 4 | 1 | type |
//! | 5 | 3 | zero |
//! | 8 | n | body |
//!
//! Each type has a longest body, so that a header alone says whether its frame is to be refused, before
//! anything is allocated. There is no checksum: TLS authenticates every byte.

use crate::codec::{DecodeError, Problem, Reader};

/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 8;
/// Most ids in one question or request.
pub const IDS_MAX: u64 = 1 << 16;

const RECORD_BODY_MAX: u32 = (9 << 20) + (64 << 10);
const SUBMIT_BODY_MAX: u32 = (256 << 10) + 16;
const OUTCOME_BODY_MAX: u32 = (8 << 20) + 16;
const IDS_BODY_MAX: u32 = (IDS_MAX as u32) * 32 + 16;

macro_rules! frames {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $limit:expr;)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FrameType {
            $($(#[$doc])* $name,)*
        }

        impl FrameType {
            /// Every type.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The byte that stands for it.
            pub const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            /// The type that a byte stands for.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }

            /// Bytes of its longest body.
            pub const fn body_len_max(self) -> u32 {
                match self { $(Self::$name => $limit,)* }
            }
        }
    };
}

frames! {
    /// First frame of a connection: what the client speaks.
    Hello = 1, 256;
    /// What the server speaks.
    Welcome = 2, 256;
    /// Which repository the connection is for.
    Open = 3, 80;
    /// Its config.
    Opened = 4, (64 << 10) + 16;
    /// Make a repository.
    Create = 5, (64 << 10) + 128;
    /// Asks for a new certificate.
    Renew = 6, (20 << 10) + 8;
    /// The answer to that.
    Renewed = 7, (20 << 10) + 8;
    /// Yes.
    Done = 8, 0;
    /// No, and why.
    Failed = 9, 8 << 10;
    /// Begin a session, or go on with one.
    Begin = 16, 2 << 20;
    /// Segments that an earlier run of the session finished.
    Finished = 17, 1 << 20;
    /// The session is open.
    Begun = 18, 64;
    /// Keep a snapshot's data until the session ends.
    Pin = 19, 16;
    /// Whether it was there.
    Pinned = 20, 1;
    /// Segments that are durable.
    Acknowledged = 21, 1 << 20;
    /// Publish the session's snapshot.
    Commit = 22, (4 << 20) + 32;
    /// End the session without one.
    Abandon = 23, 0;
    /// The session is over.
    Ended = 24, 64;
    /// The session that was to be gone on with has published its snapshot.
    Published = 25, 64;
    /// The server is going to shut down.
    Draining = 26, 0;
    /// First frame of a lane: which session it belongs to.
    Attach = 32, 24;
    /// Which of these segments are there whole?
    AskSegments = 33, IDS_BODY_MAX;
    /// Which of these objects are there?
    AskObjects = 34, IDS_BODY_MAX;
    /// A bit per id.
    Answers = 35, (IDS_MAX as u32) / 8 + 16;
    /// Encoded records.
    Push = 36, RECORD_BODY_MAX;
    /// Everything of a segment was sent on this lane before.
    SegmentDone = 37, 64;
    /// Has everything before been taken in?
    Flush = 38, 0;
    /// Objects whose records the client found damaged.
    Distrust = 39, IDS_BODY_MAX;
    /// Which maps does the reference have?
    AskReference = 40, 16;
    /// The beginnings of their ids.
    ReferenceMaps = 41, (32 << 10) + 16;
    /// Segments that are as they are in the reference.
    SegmentsUnchanged = 42, (64 << 10) + 16;
    /// Records by id.
    Fetch = 48, IDS_BODY_MAX;
    /// A record.
    Record = 49, RECORD_BODY_MAX;
    /// An object that is not to be had.
    Unfetched = 50, 8 << 10;
    /// All snapshots.
    ListSnapshots = 64, 0;
    /// A file of the directory of snapshots.
    SnapshotFile = 65, (4 << 20) + 512;
    /// One snapshot.
    ReadSnapshot = 66, 16;
    /// What is known of a snapshot without reading it.
    StatSnapshot = 67, 16;
    /// That.
    SnapshotState = 68, 64;
    /// Remove snapshots.
    Forget = 69, 1024 * 16 + 8;
    /// Protect a snapshot or lift its protection.
    Protect = 70, 17;
    /// Keep what snapshots refer to until the stream ends.
    Hold = 71, 1024 * 16 + 8;
    /// Lock a snapshot, or extend its lock.
    Lock = 72, 32;
    /// Until when it is locked.
    LockedUntil = 73, 16;
    /// Give back space.
    Collect = 80, 1 << 10;
    /// Check what is stored.
    Verify = 81, 1 << 20;
    /// Set damage aside.
    Repair = 82, 1;
    /// Figures of a repository.
    Stats = 83, 0;
    /// Bytes of its packs.
    PackBytes = 84, 0;
    /// How far long work is.
    Progress = 85, 64;
    /// End long work as soon as that leaves everything clean.
    Stop = 86, 0;
    /// What was found, as JSON.
    Report = 87, 64 << 20;
    /// Sealed chunks that only the client can open: are they what they should be?
    Judge = 88, RECORD_BODY_MAX;
    /// Which of them are not.
    Judged = 89, 1 << 20;
    /// Would a frame of this type be refused?
    May = 90, 1;
    /// What the server does.
    Status = 96, 0;
    /// The sessions of all repositories.
    Sessions = 97, 0;
    /// Run a task.
    Submit = 112, SUBMIT_BODY_MAX;
    /// The proxy has the task on its books.
    Accepted = 113, 1;
    /// Tell how a task goes, to its end.
    Follow = 114, 32;
    /// A warning of a task.
    TaskNote = 115, 8 << 10;
    /// How far a task is.
    TaskProgress = 116, 1 << 10;
    /// How a task ended.
    TaskOver = 117, OUTCOME_BODY_MAX;
    /// End a task.
    CancelTask = 118, 16;
    /// All tasks.
    ListTasks = 119, 0;
    /// One task.
    ShowTask = 120, 16;
    /// Take no tasks, or take them again.
    Suspend = 121, 1;
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What follows.
    pub kind: FrameType,
    /// Bytes of the body.
    pub len: u32,
}

impl FrameHeader {
    /// The bytes.
    pub fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        out[..4].copy_from_slice(&self.len.to_le_bytes());
        out[4] = self.kind.code();
        out
    }

    /// Reads a header and checks the length against the type's limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("frame header", bytes);
        let len = reader.u32()?;
        let at = reader.clone();
        let kind = FrameType::from_code(reader.u8()?)
            .ok_or_else(|| at.error(Problem::Invalid("frame type")))?;
        reader.zeros(3)?;
        if len > kind.body_len_max() {
            return Err(at.error(Problem::Limit {
                field: "frame length",
                value: len.into(),
                limit: kind.body_len_max().into(),
            }));
        }
        reader.finish()?;
        Ok(Self { kind, len })
    }
}

/// The body of a frame of one type. Every body has one encoding.
pub trait Body: Sized {
    /// The type.
    const KIND: FrameType;

    /// Appends the encoding.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads what [`put`](Self::put) wrote; the caller checks that nothing follows.
    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The whole frame.
    ///
    /// # Panics
    /// If the body is longer than its type allows: whoever made it passed a limit that the sender has to
    /// keep.
    fn frame(&self) -> Vec<u8> {
        let mut out = vec![0; FRAME_HEADER_LEN];
        self.put(&mut out);
        close_frame(Self::KIND, &mut out);
        out
    }

    /// Reads a whole body.
    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(Self::object(), body);
        let value = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(value)
    }

    /// Names the bytes in errors.
    fn object() -> &'static str {
        "message"
    }
}

/// Writes the header of a frame whose body stands behind the space left for it.
pub fn close_frame(kind: FrameType, frame: &mut [u8]) {
    let len = frame.len() - FRAME_HEADER_LEN;
    assert!(
        len as u64 <= u64::from(kind.body_len_max()),
        "{kind:?} of {len} bytes"
    );
    let header = FrameHeader {
        kind,
        len: len as u32,
    };
    frame[..FRAME_HEADER_LEN].copy_from_slice(&header.encode());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_a_flipped_bit_is_refused_or_another_header() {
        for kind in FrameType::ALL {
            let header = FrameHeader {
                kind: *kind,
                len: kind.body_len_max(),
            };
            let bytes = header.encode();
            assert_eq!(FrameHeader::decode(&bytes), Ok(header));
            for bit in 0..64 {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                if let Ok(other) = FrameHeader::decode(&flipped) {
                    assert_eq!(other.encode(), flipped);
                }
            }
            let longer = FrameHeader {
                len: kind.body_len_max() + 1,
                ..header
            };
            assert!(FrameHeader::decode(&longer.encode()).is_err());
        }
    }

    #[test]
    fn codes_are_unique() {
        for kind in FrameType::ALL {
            assert_eq!(FrameType::from_code(kind.code()), Some(*kind));
        }
    }
}
