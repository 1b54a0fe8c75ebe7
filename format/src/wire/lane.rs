//! Lanes: the streams that carry a session's data, one per worker thread of the client.
//!
//! A lane keeps order: what a worker asks on it is answered after everything that it sent before has been
//! taken in. Records and finished segments have no answer of their own; the stream's flow control is what
//! holds a fast client back. Everything may be sent again: a record that is there already is dropped, a
//! segment that is done already is done.

use crate::codec::{DecodeError, Problem, Reader, put_varint};
use crate::id::{ObjectId, SegmentMapId, SessionId};
use crate::pack::{ObjectKind, RECORD_WIRE_LEN, RecordHeader};

use super::failure::read_kind;
use super::frame::{Body, FRAME_HEADER_LEN, FrameType, IDS_MAX, close_frame};
use super::session::{DoneSegment, Epoch, SegmentPlace};

/// First frame of a lane. It is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The session.
    pub session: SessionId,
    /// The epoch that the client was given.
    pub epoch: Epoch,
}

/// Which of these segments are there whole: map and every chunk? What is answered with yes stays until the
/// session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskSegments {
    /// Ids of their maps.
    pub ids: Vec<SegmentMapId>,
}

/// Which of these objects are there? What is answered with yes stays until the session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskObjects {
    /// The ids.
    pub ids: Vec<ObjectId>,
}

/// The answers to a question, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// One per id.
    pub known: Vec<bool>,
}

/// Everything of a segment was sent before on this lane, or by other lanes of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentDone {
    /// Which.
    pub place: SegmentPlace,
    /// What it came to.
    pub done: DoneSegment,
}

/// Has everything before been taken in? Answered by [`Done`](super::message::Done).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush;

/// Objects whose records the client found damaged. The server looks for itself, and takes those for missing
/// that it cannot give; answered by [`Done`](super::message::Done).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distrust {
    /// Kind of all the objects.
    pub kind: ObjectKind,
    /// Their ids.
    pub ids: Vec<ObjectId>,
}

impl Body for Distrust {
    const KIND: FrameType = FrameType::Distrust;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.kind.code());
        put_ids(out, &self.ids);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: read_kind(reader)?,
            ids: read_ids(reader)?,
        })
    }
}

impl Body for Attach {
    const KIND: FrameType = FrameType::Attach;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.session.as_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            session: SessionId::from_bytes(reader.array()?),
            epoch: Epoch(reader.u64()?),
        })
    }
}

impl Body for AskSegments {
    const KIND: FrameType = FrameType::AskSegments;

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.ids.len() as u64);
        for id in &self.ids {
            out.extend_from_slice(id.as_bytes());
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let ids = read_ids(reader)?;
        Ok(Self {
            ids: ids.into_iter().map(SegmentMapId::from).collect(),
        })
    }
}

impl Body for AskObjects {
    const KIND: FrameType = FrameType::AskObjects;

    fn put(&self, out: &mut Vec<u8>) {
        put_ids(out, &self.ids);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            ids: read_ids(reader)?,
        })
    }
}

impl Body for Answers {
    const KIND: FrameType = FrameType::Answers;

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.known.len() as u64);
        for bits in self.known.chunks(8) {
            let byte = bits
                .iter()
                .rev()
                .fold(0, |byte, bit| byte << 1 | u8::from(*bit));
            out.push(byte);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.varint("answers", IDS_MAX)? as usize;
        let at = reader.clone();
        let bytes = reader.take(count.div_ceil(8))?;
        let known = (0..count)
            .map(|bit| bytes[bit / 8] >> (bit % 8) & 1 == 1)
            .collect();
        if let (Some(last), spare @ 1..) = (bytes.last(), count % 8)
            && last >> spare != 0
        {
            return Err(at.error(Problem::NotCanonical("bits past the last answer")));
        }
        Ok(Self { known })
    }
}

impl Body for SegmentDone {
    const KIND: FrameType = FrameType::SegmentDone;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.place.disk.to_le_bytes());
        put_varint(out, self.place.number.0);
        self.done.put(out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let disk = reader.u16()?;
        Ok(Self {
            place: SegmentPlace {
                disk,
                number: super::session::read_number(reader)?,
            },
            done: DoneSegment::read(reader)?,
        })
    }
}

impl Body for Flush {
    const KIND: FrameType = FrameType::Flush;

    fn put(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}

/// Builds a frame of records.
#[derive(Debug)]
pub struct PushBuilder(Vec<u8>);

impl Default for PushBuilder {
    fn default() -> Self {
        Self(vec![0; FRAME_HEADER_LEN])
    }
}

impl PushBuilder {
    /// Whether a record of `payload_len` bytes fits beside what is there.
    pub fn has_room(&self, payload_len: usize) -> bool {
        let len = self.0.len() - FRAME_HEADER_LEN + RECORD_WIRE_LEN + payload_len;
        len as u64 <= u64::from(FrameType::Push.body_len_max())
    }

    /// Adds a record; see [`has_room`](Self::has_room).
    pub fn push(&mut self, header: &RecordHeader, payload: &[u8]) {
        self.0.extend_from_slice(&header.encode_on_wire());
        self.0.extend_from_slice(payload);
    }

    /// True if there are no records.
    pub fn is_empty(&self) -> bool {
        self.0.len() == FRAME_HEADER_LEN
    }

    /// The frame.
    pub fn finish(mut self) -> Vec<u8> {
        close_frame(FrameType::Push, &mut self.0);
        self.0
    }
}

/// The records in the body of a [`Push`](FrameType::Push) frame, payloads unchecked.
pub fn pushed_records(body: &[u8]) -> Result<Vec<(RecordHeader, &[u8])>, DecodeError> {
    records_of(&mut Reader::new("push", body))
}

/// Reads records to the end.
pub(super) fn records_of<'a>(
    reader: &mut Reader<'a>,
) -> Result<Vec<(RecordHeader, &'a [u8])>, DecodeError> {
    let mut records = Vec::new();
    while reader.remaining() > 0 {
        let header = RecordHeader::decode_on_wire(reader)?;
        records.push((header, reader.take(header.info.stored_len as usize)?));
    }
    Ok(records)
}

/// Appends ids.
pub(super) fn put_ids(out: &mut Vec<u8>, ids: &[ObjectId]) {
    put_varint(out, ids.len() as u64);
    for id in ids {
        out.extend_from_slice(id.as_bytes());
    }
}

/// Reads ids.
pub(super) fn read_ids(reader: &mut Reader<'_>) -> Result<Vec<ObjectId>, DecodeError> {
    let count = reader.count("ids", IDS_MAX, ObjectId::LEN)?;
    (0..count)
        .map(|_| Ok(ObjectId::from_bytes(reader.array()?)))
        .collect()
}
