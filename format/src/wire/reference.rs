//! What a session's reference holds: a client that reads a disk again need not say, and the server need not
//! send, whole ids of segments that did not change.
//!
//! Of each map the client is told the beginning of the id. A map that only begins alike is taken for the
//! reference's in vain: the tree above it names a map that is not stored, and the commit is refused. Nobody
//! can bring that about: a map's id follows from the ids of its chunks, which are keyed.

use crate::codec::{DecodeError, Problem, Reader, put_varint};
use crate::id::SegmentMapId;
use crate::units::SegmentNumber;

use super::frame::{Body, FrameType};
use super::session::{SEGMENTS_MAX, read_len, read_number};

/// Bytes of a short id.
const SHORT_LEN: usize = 8;

/// The first bytes of a map's id; zeros for a segment that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShortId([u8; SHORT_LEN]);

impl ShortId {
    /// That of a map.
    pub fn of(map: SegmentMapId) -> Self {
        let mut short = [0; SHORT_LEN];
        short.copy_from_slice(&map.as_bytes()[..SHORT_LEN]);
        Self(short)
    }

    /// True for a segment without a map.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Which maps does the reference have at these segments?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskReference {
    /// Ordinal of the disk in the session's request.
    pub disk: u16,
    /// The first segment.
    pub first: SegmentNumber,
    /// How many, at most [`SEGMENTS_MAX`].
    pub count: u16,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceMaps {
    /// One per segment; fewer where the reference's disk ends, none if it has no such disk.
    pub maps: Vec<ShortId>,
}

/// A segment that is as it is in the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnchangedSegment {
    /// Which.
    pub number: SegmentNumber,
    /// Bytes of data in it.
    pub data_bytes: u32,
}

/// Segments of one disk that have the maps of the reference, all read by the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentsUnchanged {
    /// Ordinal of the disk.
    pub disk: u16,
    /// The segments, ascending, at most [`SEGMENTS_MAX`].
    pub segments: Vec<UnchangedSegment>,
}

impl Body for AskReference {
    const KIND: FrameType = FrameType::AskReference;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.disk.to_le_bytes());
        put_varint(out, self.first.0);
        put_varint(out, self.count.into());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            disk: reader.u16()?,
            first: read_number(reader)?,
            count: reader.varint("segments", SEGMENTS_MAX as u64)? as u16,
        })
    }
}

impl Body for ReferenceMaps {
    const KIND: FrameType = FrameType::ReferenceMaps;

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.maps.len() as u64);
        for ShortId(short) in &self.maps {
            out.extend_from_slice(short);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.count("maps", SEGMENTS_MAX as u64, SHORT_LEN)?;
        let maps = (0..count).map(|_| Ok(ShortId(reader.array()?)));
        Ok(Self {
            maps: maps.collect::<Result<_, DecodeError>>()?,
        })
    }
}

impl Body for SegmentsUnchanged {
    const KIND: FrameType = FrameType::SegmentsUnchanged;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.disk.to_le_bytes());
        put_varint(out, self.segments.len() as u64);
        let mut next = 0;
        for segment in &self.segments {
            put_varint(out, segment.number.0 - next);
            put_varint(out, segment.data_bytes.into());
            next = segment.number.0 + 1;
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let disk = reader.u16()?;
        let count = reader.count("segments", SEGMENTS_MAX as u64, 2)?;
        let mut segments = Vec::with_capacity(count);
        let mut next = 0;
        for _ in 0..count {
            let at = reader.clone();
            let number = read_number(reader)?.0 + next;
            if number > super::session::NUMBER_MAX {
                return Err(at.error(Problem::Invalid("number of a segment")));
            }
            segments.push(UnchangedSegment {
                number: SegmentNumber(number),
                data_bytes: read_len(reader, "data bytes")?,
            });
            next = number + 1;
        }
        Ok(Self { disk, segments })
    }
}
