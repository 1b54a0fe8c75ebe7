//! Records by id. Where they stand is the server's business; it says so only for error messages.

use crate::codec::{DecodeError, Reader, put_varint};
use crate::id::{ObjectId, PackId};
use crate::pack::{ObjectKind, PACK_LEN_MAX, RECORD_WIRE_LEN, RecordHeader};

use super::failure::{Failure, read_kind};
use super::frame::{Body, FrameType, IDS_MAX};
use super::lane::{put_ids, read_ids};

/// Bytes of a [`Record`](FrameType::Record) frame's body before the payload.
pub const RECORD_PREFIX_LEN: usize = 4 + 16 + 8 + RECORD_WIRE_LEN;

/// Asks for the records of objects. Each is answered by a [`Record`](FrameType::Record) or an
/// [`Unfetched`], in any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Kind of all the objects.
    pub kind: ObjectKind,
    /// Their ids.
    pub ids: Vec<ObjectId>,
}

/// What precedes the payload of a fetched record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPrefix {
    /// Ordinal of the id in the request.
    pub tag: u32,
    /// The pack where the record stands.
    pub pack: PackId,
    /// Its position there.
    pub position: u64,
    /// The record's header.
    pub header: RecordHeader,
}

/// An object that is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfetched {
    /// Ordinal of the id in the request.
    pub tag: u32,
    /// Why.
    pub failure: Failure,
}

impl Body for Fetch {
    const KIND: FrameType = FrameType::Fetch;

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

impl RecordPrefix {
    /// The bytes.
    pub fn encode(&self) -> [u8; RECORD_PREFIX_LEN] {
        let mut out = [0; RECORD_PREFIX_LEN];
        out[..4].copy_from_slice(&self.tag.to_le_bytes());
        out[4..20].copy_from_slice(self.pack.as_bytes());
        out[20..28].copy_from_slice(&self.position.to_le_bytes());
        out[28..].copy_from_slice(&self.header.encode_on_wire());
        out
    }

    /// Reads the first bytes of a body of `body_len` bytes.
    pub fn decode(bytes: &[u8], body_len: usize) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("fetched record", bytes);
        let at = reader.clone();
        let tag = reader.u32()?;
        let pack = PackId::from_bytes(reader.array()?);
        let position = reader.u64()?;
        let header = RecordHeader::decode_on_wire(&mut reader)?;
        reader.finish()?;
        let limit = |field, value: u64, limit: u64| {
            if value < limit {
                return Ok(());
            }
            Err(at.error(crate::codec::Problem::Limit {
                field,
                value,
                limit,
            }))
        };
        limit("tag", tag.into(), IDS_MAX)?;
        limit("position", position, PACK_LEN_MAX)?;
        if body_len != RECORD_PREFIX_LEN + header.info.stored_len as usize {
            return Err(at.error(crate::codec::Problem::Invalid("length of a fetched record")));
        }
        Ok(Self {
            tag,
            pack,
            position,
            header,
        })
    }
}

impl Body for Unfetched {
    const KIND: FrameType = FrameType::Unfetched;

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.tag.into());
        self.failure.put(out);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            tag: reader.varint("tag", IDS_MAX - 1)? as u32,
            failure: Failure::read(reader)?,
        })
    }
}
