//! What went wrong at the other end: enough for the client to say the same as it would say locally.

use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};
use crate::id::{ObjectId, PackId, SnapshotId};
use crate::pack::ObjectKind;

use super::frame::{Body, FrameType};

/// Longest text of a failure, in bytes.
pub const TEXT_LEN_MAX: u64 = 4096;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        /// What a client does differently.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FailureCode {
            $($(#[$doc])* $name,)*
        }

        impl FailureCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The byte that stands for it.
            pub const fn code(self) -> u8 {
                match self { $(Self::$name => $code,)* }
            }

            /// The code that a byte stands for.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// The frame was none that belongs there.
    Protocol = 1;
    /// The peer's role or scope does not include what it asked.
    Denied = 2;
    /// The server is shutting down: try again later.
    Draining = 3;
    /// Too much at once: try again later.
    Busy = 4;
    /// No repository of that name.
    NoSuchRepository = 5;
    /// There is one of that name.
    AlreadyExists = 6;
    /// Another process owns the repository.
    Locked = 7;
    /// Something failed that the client can only report.
    Failed = 8;
    /// The server's disk is full.
    DiskFull = 9;
    /// The client asked to stop.
    Cancelled = 10;
    /// It takes a key that the server does not have.
    KeyNeeded = 11;
    /// A file is damaged.
    Damaged = 12;
    /// No such snapshot.
    NoSuchSnapshot = 16;
    /// The snapshot is protected.
    Protected = 17;
    /// A snapshot that cannot be read completely keeps a collection from going on.
    IncompleteSnapshot = 18;
    /// No pack holds the object.
    MissingObject = 19;
    /// The object's record is damaged.
    CorruptObject = 20;
    /// A retention lock forbids it.
    RetentionLocked = 21;
    /// A record that is not what it says.
    BadRecord = 32;
    /// No such session: it ended, or its lease lapsed.
    NoSuchSession = 33;
    /// Somebody else goes on with the session.
    Fenced = 34;
    /// The disks are not in the state in which the session began.
    DisksChanged = 35;
    /// The snapshot names something that is not stored, or is not the session's.
    Unpublishable = 36;
    /// The proxy has no such task on its books.
    NoSuchTask = 48;
    /// The proxy takes no tasks until it is resumed.
    Suspended = 49;
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub code: FailureCode,
    /// In words, causes included.
    pub text: String,
    /// The snapshot that it is about.
    pub snapshot: Option<SnapshotId>,
    /// The object that it is about.
    pub object: Option<(ObjectKind, ObjectId)>,
    /// Where the object's record stands.
    pub place: Option<(PackId, u64)>,
}

impl Failure {
    /// A failure that is about nothing in particular. Long texts are cut.
    pub fn new(code: FailureCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        let mut len = text.len().min(TEXT_LEN_MAX as usize);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        text.truncate(len);
        Self {
            code,
            text,
            snapshot: None,
            object: None,
            place: None,
        }
    }
}

impl Body for Failure {
    const KIND: FrameType = FrameType::Failed;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.code.code());
        put_string(out, &self.text);
        let has = u8::from(self.snapshot.is_some())
            | u8::from(self.object.is_some()) << 1
            | u8::from(self.place.is_some()) << 2;
        out.push(has);
        if let Some(id) = self.snapshot {
            out.extend_from_slice(id.as_bytes());
        }
        if let Some((kind, id)) = self.object {
            out.push(kind.code());
            out.extend_from_slice(id.as_bytes());
        }
        if let Some((pack, position)) = self.place {
            out.extend_from_slice(pack.as_bytes());
            put_varint(out, position);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        let code = FailureCode::from_code(reader.u8()?)
            .ok_or_else(|| at.error(Problem::Invalid("failure code")))?;
        let text = reader.string("failure text", TEXT_LEN_MAX)?;
        let at = reader.clone();
        let has = reader.u8()?;
        if has > 7 {
            return Err(at.error(Problem::Invalid("failure flags")));
        }
        let snapshot = match has & 1 {
            0 => None,
            _ => Some(SnapshotId::from_bytes(reader.array()?)),
        };
        let object = match has & 2 {
            0 => None,
            _ => Some((read_kind(reader)?, ObjectId::from_bytes(reader.array()?))),
        };
        let place = match has & 4 {
            0 => None,
            _ => Some((
                PackId::from_bytes(reader.array()?),
                reader.varint("position", u64::MAX)?,
            )),
        };
        Ok(Self {
            code,
            text,
            snapshot,
            object,
            place,
        })
    }
}

/// Reads the kind of an object.
pub(super) fn read_kind(reader: &mut Reader<'_>) -> Result<ObjectKind, DecodeError> {
    let at = reader.clone();
    ObjectKind::from_code(reader.u8()?).ok_or_else(|| at.error(Problem::Invalid("object kind")))
}
