//! Long work at the server, and what an administrator asks.
//!
//! Options and reports travel as JSON: people read them, they grow with the program, and neither side
//! decides anything about data by them.

use crate::codec::{DecodeError, Problem, Reader, put_varint};

use super::frame::{Body, FrameType};

macro_rules! json {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            /// UTF-8.
            pub json: String,
        }

        impl Body for $name {
            const KIND: FrameType = FrameType::$name;

            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.json.as_bytes());
            }

            fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let at = reader.clone();
                let bytes = reader.take(reader.remaining())?;
                match std::str::from_utf8(bytes) {
                    Ok(text) => Ok(Self { json: text.to_owned() }),
                    Err(_) => Err(at.error(Problem::Invalid("UTF-8"))),
                }
            }
        }
    )*};
}

json! {
    /// Gives back the space of what no snapshot refers to: its options.
    Collect;
    /// Checks what is stored: its options.
    Verify;
    /// What was asked for.
    Report;
}

macro_rules! empty {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name;

        impl Body for $name {
            const KIND: FrameType = FrameType::$name;

            fn put(&self, _: &mut Vec<u8>) {}

            fn read(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self)
            }
        }
    )*};
}

empty! {
    /// Yes.
    Done;
    /// Asks for all snapshots.
    ListSnapshots;
    /// Asks for a repository's figures.
    Stats;
    /// Asks for the bytes of its packs; answered by a [`Report`] with a number.
    PackBytes;
    /// Ends long work as soon as that leaves everything clean.
    Stop;
    /// Asks what the server does.
    Status;
    /// Asks for the sessions of all repositories.
    Sessions;
}

/// Asks whether the caller's role and scope allow a conversation that begins with a frame of this type, as far as
/// that can be told before it; answered by [`Done`]. Who asks first is refused before anything is looked at, and
/// whatever there is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct May {
    /// The type.
    pub first: FrameType,
}

/// Sets damage aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Decode every record.
    pub is_deep: bool,
}

/// How far long work is; comes before its report, as often as the server likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that the work will go through, as far as known.
    pub total_bytes: u64,
    /// Bytes gone through.
    pub done_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub stored_bytes: u64,
}

impl Body for May {
    const KIND: FrameType = FrameType::May;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.first.code());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        let first = FrameType::from_code(reader.u8()?);
        let first = first.ok_or_else(|| at.error(Problem::Invalid("frame type")))?;
        Ok(Self { first })
    }
}

impl Body for Repair {
    const KIND: FrameType = FrameType::Repair;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.is_deep.into());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            is_deep: reader.bool()?,
        })
    }
}

impl Body for Progress {
    const KIND: FrameType = FrameType::Progress;

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.total_bytes);
        put_varint(out, self.done_bytes);
        put_varint(out, self.read_bytes);
        put_varint(out, self.stored_bytes);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            total_bytes: reader.varint("total bytes", u64::MAX)?,
            done_bytes: reader.varint("done bytes", u64::MAX)?,
            read_bytes: reader.varint("read bytes", u64::MAX)?,
            stored_bytes: reader.varint("stored bytes", u64::MAX)?,
        })
    }
}
