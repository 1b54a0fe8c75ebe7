//! Packs: append-only files of records, with a table of contents once sealed.
//!
//! ```text
//! header (64) | record | record | ... | table of contents | zeros | footer (64)
//! ```
//!
//! A record is a 64-byte header and its payload. Its checksum covers, besides the header, the id of the
//! pack and the record's position, which are not stored: stale or misdirected bytes never parse as
//! current ones. Records follow each other without gaps, or after zeros up to a multiple of 4096 where a
//! pack was flushed. The length of a sealed pack is a multiple of 4096 and its footer stands at the end.
//! A pack without a valid footer is unsealed: nothing published refers to it.

use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::codec::{DecodeError, Problem, Reader, checksum};
use crate::id::{ObjectId, PackId, RepositoryId, SessionId};

/// Bytes of a pack's header.
pub const PACK_HEADER_LEN: usize = 64;
/// Bytes of a record's header.
pub const RECORD_HEADER_LEN: usize = 64;
/// Bytes of a record's header on the wire: it has no place yet.
pub const RECORD_WIRE_LEN: usize = 56;
/// Bytes of an entry of the table of contents.
pub const TOC_ENTRY_LEN: usize = 48;
/// Bytes of a pack's footer.
pub const FOOTER_LEN: usize = 64;
/// Sealed packs are padded to this, in bytes, so that O_DIRECT can write their end.
pub const PACK_ALIGNMENT: u64 = 4096;
/// Longest payload, in bytes: a raw chunk of the longest class plus its seal, or the longest map.
pub const PAYLOAD_LEN_MAX: u32 = 9 << 20;
/// Longest plaintext of a record, in bytes. Bounds what a decoder allocates.
pub const PLAIN_LEN_MAX: u32 = 8 << 20;
/// Longest pack, in bytes: positions are stored in 32 bits.
pub const PACK_LEN_MAX: u64 = 1 << 31;
/// Bytes that precede the ciphertext of a sealed payload: see [`SealPrefix`].
pub const SEAL_PREFIX_LEN: usize = 24;
/// Bytes of the authentication tag after the ciphertext.
pub const SEAL_TAG_LEN: usize = 16;

const PACK_MAGIC: &[u8; 8] = b"UCPACK\0\x01";
const RECORD_MAGIC: &[u8; 4] = b"UCR\x01";
const FOOTER_MAGIC: &[u8; 8] = b"UCPTOC\0\x01";

/// What kind of objects a pack holds: maps apart from data, so that a collection reads only maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PackKind {
    /// Chunks.
    Data,
    /// Segment maps and map tree nodes.
    Meta,
}

impl PackKind {
    /// The byte that stands for it at rest.
    pub const fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Meta => 2,
        }
    }

    /// The kind that a byte stands for.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Data),
            2 => Some(Self::Meta),
            _ => None,
        }
    }
}

/// What a record's payload is once decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A piece of a disk or of a VM's metadata.
    Chunk,
    /// An encoded [`SegmentMap`](crate::segment::SegmentMap).
    SegmentMap,
    /// An encoded [`Node`](crate::maptree::Node).
    Node,
}

impl ObjectKind {
    /// The byte that stands for it at rest.
    pub const fn code(self) -> u8 {
        match self {
            Self::Chunk => 1,
            Self::SegmentMap => 2,
            Self::Node => 3,
        }
    }

    /// The kind that a byte stands for.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Chunk),
            2 => Some(Self::SegmentMap),
            3 => Some(Self::Node),
            _ => None,
        }
    }

    /// The packs where such objects live.
    pub const fn pack_kind(self) -> PackKind {
        match self {
            Self::Chunk => PackKind::Data,
            Self::SegmentMap | Self::Node => PackKind::Meta,
        }
    }
}

/// How a payload was made from the plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Encoding {
    /// A zstd frame (RFC 8878) with its content size, or the bytes as they are.
    pub zstd: bool,
    /// Sealed with AES-256-GCM after compression: [`SealPrefix`], ciphertext, tag.
    pub sealed: bool,
}

impl Encoding {
    /// The bytes as they are.
    pub const RAW: Self = Self {
        zstd: false,
        sealed: false,
    };

    const fn code(self) -> u8 {
        self.zstd as u8 | (self.sealed as u8) << 1
    }

    const fn from_code(code: u8) -> Option<Self> {
        if code > 3 {
            return None;
        }
        Some(Self {
            zstd: code & 1 != 0,
            sealed: code & 2 != 0,
        })
    }
}

/// Describes one record: what its header and its table entry both say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordInfo {
    /// Id of the object.
    pub id: ObjectId,
    /// Kind of the object.
    pub kind: ObjectKind,
    /// How the payload is encoded.
    pub encoding: Encoding,
    /// Bytes of payload.
    pub stored_len: u32,
    /// Bytes of the object's plaintext.
    pub plain_len: u32,
}

impl RecordInfo {
    /// Bytes of the whole record, header included.
    pub const fn record_len(&self) -> u32 {
        RECORD_HEADER_LEN as u32 + self.stored_len
    }

    /// The additional data that a seal authenticates: it stays the same when a record moves.
    pub fn seal_context(&self) -> [u8; 40] {
        let mut context = [0; 40];
        context[..32].copy_from_slice(self.id.as_bytes());
        context[32] = self.kind.code();
        context[33] = self.encoding.code();
        context[36..].copy_from_slice(&self.plain_len.to_le_bytes());
        context
    }

    fn check(self, reader: &Reader<'_>) -> Result<Self, DecodeError> {
        let limit = |field, value: u32, limit: u32| {
            if value > limit {
                return Err(reader.error(Problem::Limit {
                    field,
                    value: value.into(),
                    limit: limit.into(),
                }));
            }
            Ok(())
        };
        limit("payload length", self.stored_len, PAYLOAD_LEN_MAX)?;
        limit("plaintext length", self.plain_len, PLAIN_LEN_MAX)?;
        let overhead = if self.encoding.sealed {
            (SEAL_PREFIX_LEN + SEAL_TAG_LEN) as u32
        } else {
            0
        };
        if self.stored_len < overhead {
            return Err(reader.error(Problem::Invalid("payload length: shorter than a seal")));
        }
        if !self.encoding.zstd && self.stored_len != self.plain_len + overhead {
            return Err(reader.error(Problem::Invalid("lengths of a record stored raw")));
        }
        Ok(self)
    }
}

/// First bytes of a sealed payload: which key and nonce sealed it. They stay when the record moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealPrefix {
    /// The session that sealed the record: its sealing key is derived from it.
    pub session: SessionId,
    /// Counts the records that the session sealed: the nonce, unique under the key.
    pub sequence: u64,
}

impl SealPrefix {
    /// The bytes.
    pub fn encode(&self) -> [u8; SEAL_PREFIX_LEN] {
        let mut out = [0; SEAL_PREFIX_LEN];
        out[..16].copy_from_slice(self.session.as_bytes());
        out[16..].copy_from_slice(&self.sequence.to_le_bytes());
        out
    }

    /// Reads the first bytes of a sealed payload.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("seal", payload);
        Ok(Self {
            session: SessionId::from_bytes(reader.array()?),
            sequence: reader.u64()?,
        })
    }

    /// The 96-bit nonce of AES-GCM.
    pub fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.sequence.to_be_bytes());
        nonce
    }
}

/// First bytes of a pack file.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 8 | magic `UCPACK` 00 01 |
/// | 8 | 1 | kind: 1 data, 2 meta |
/// | 9 | 7 | zero |
/// | 16 | 16 | pack id |
/// | 32 | 16 | repository id |
/// | 48 | 8 | zero |
/// | 56 | 8 | XXH3-64 of bytes 0 to 56 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// The pack's id, as in its file name.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// The repository that it belongs to.
    pub repository: RepositoryId,
}

impl PackHeader {
    /// The bytes.
    pub fn encode(&self) -> [u8; PACK_HEADER_LEN] {
        let mut out = [0; PACK_HEADER_LEN];
        out[..8].copy_from_slice(PACK_MAGIC);
        out[8] = self.kind.code();
        out[16..32].copy_from_slice(self.id.as_bytes());
        out[32..48].copy_from_slice(self.repository.as_bytes());
        let sum = checksum(&out[..56]);
        out[56..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads and checks the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("pack header", bytes);
        let covered = reader.clone().take(56)?;
        reader.magic(PACK_MAGIC)?;
        let kind = reader.u8()?;
        let kind =
            PackKind::from_code(kind).ok_or_else(|| reader.error(Problem::Invalid("pack kind")))?;
        reader.zeros(7)?;
        let id = PackId::from_bytes(reader.array()?);
        let repository = RepositoryId::from_bytes(reader.array()?);
        reader.zeros(8)?;
        if reader.u64()? != checksum(covered) {
            return Err(reader.error(Problem::Checksum));
        }
        Ok(Self {
            id,
            kind,
            repository,
        })
    }
}

/// A record's header.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 4 | magic `UCR` 01 |
/// | 4 | 1 | object kind: 1 chunk, 2 segment map, 3 map tree node |
/// | 5 | 1 | encoding: bit 0 zstd, bit 1 sealed |
/// | 6 | 2 | zero |
/// | 8 | 4 | payload length |
/// | 12 | 4 | plaintext length |
/// | 16 | 32 | object id |
/// | 48 | 8 | XXH3-64 of the payload |
/// | 56 | 8 | XXH3-64 of bytes 0 to 56, the pack id, and the record's position as 8 bytes |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub info: RecordInfo,
    /// Checksum of the payload.
    pub payload_checksum: u64,
}

impl RecordHeader {
    /// The header of a record of `payload`.
    pub fn new(info: RecordInfo, payload: &[u8]) -> Self {
        assert_eq!(info.stored_len as usize, payload.len());
        Self {
            info,
            payload_checksum: checksum(payload),
        }
    }

    /// The first [`RECORD_WIRE_LEN`] bytes, which do not depend on where the record stands.
    pub fn encode_on_wire(&self) -> [u8; RECORD_WIRE_LEN] {
        let mut out = [0; RECORD_WIRE_LEN];
        out[..4].copy_from_slice(RECORD_MAGIC);
        out[4] = self.info.kind.code();
        out[5] = self.info.encoding.code();
        out[8..12].copy_from_slice(&self.info.stored_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.info.plain_len.to_le_bytes());
        out[16..48].copy_from_slice(self.info.id.as_bytes());
        out[48..56].copy_from_slice(&self.payload_checksum.to_le_bytes());
        out
    }

    /// Reads and checks what [`encode_on_wire`](Self::encode_on_wire) wrote.
    pub fn decode_on_wire(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.magic(RECORD_MAGIC)?;
        let (kind, encoding) = (reader.u8()?, reader.u8()?);
        reader.zeros(2)?;
        let (stored_len, plain_len) = (reader.u32()?, reader.u32()?);
        let id = ObjectId::from_bytes(reader.array()?);
        let payload_checksum = reader.u64()?;
        let info = record_info(reader, id, kind, encoding, stored_len, plain_len)?;
        Ok(Self {
            info,
            payload_checksum,
        })
    }

    /// The bytes, for a record at `position` of `pack`.
    pub fn encode(&self, pack: PackId, position: u64) -> [u8; RECORD_HEADER_LEN] {
        let mut out = [0; RECORD_HEADER_LEN];
        out[..RECORD_WIRE_LEN].copy_from_slice(&self.encode_on_wire());
        let sum = placed_checksum(&out[..56], pack, position);
        out[56..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads and checks the header of the record at `position` of `pack`.
    pub fn decode(bytes: &[u8], pack: PackId, position: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("record header", bytes);
        let covered = reader.clone().take(RECORD_WIRE_LEN)?;
        let mut sum = Reader::new("record header", &bytes[RECORD_WIRE_LEN..]);
        reader.magic(RECORD_MAGIC)?;
        if sum.u64()? != placed_checksum(covered, pack, position) {
            return Err(reader.error(Problem::Checksum));
        }
        Self::decode_on_wire(&mut Reader::new("record header", covered))
    }

    /// Checks that `payload` is what was written.
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), DecodeError> {
        if payload.len() != self.info.stored_len as usize
            || checksum(payload) != self.payload_checksum
        {
            return Err(Reader::new("record payload", payload).error(Problem::Checksum));
        }
        Ok(())
    }
}

fn placed_checksum(covered: &[u8], pack: PackId, position: u64) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(covered);
    hasher.update(pack.as_bytes());
    hasher.update(&position.to_le_bytes());
    hasher.digest()
}

fn record_info(
    reader: &Reader<'_>,
    id: ObjectId,
    kind: u8,
    encoding: u8,
    stored_len: u32,
    plain_len: u32,
) -> Result<RecordInfo, DecodeError> {
    RecordInfo {
        id,
        kind: ObjectKind::from_code(kind)
            .ok_or_else(|| reader.error(Problem::Invalid("object kind")))?,
        encoding: Encoding::from_code(encoding)
            .ok_or_else(|| reader.error(Problem::Invalid("encoding")))?,
        stored_len,
        plain_len,
    }
    .check(reader)
}

/// One line of a table of contents: a record and where it stands.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 32 | object id |
/// | 32 | 1 | object kind |
/// | 33 | 1 | encoding |
/// | 34 | 2 | zero |
/// | 36 | 4 | position of the record's header in the pack |
/// | 40 | 4 | payload length |
/// | 44 | 4 | plaintext length |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TocEntry {
    /// What the record is.
    pub info: RecordInfo,
    /// Position of the record's header in the pack, in bytes.
    pub position: u32,
}

impl TocEntry {
    /// One past the record's last byte.
    pub fn end(&self) -> u64 {
        u64::from(self.position) + u64::from(self.info.record_len())
    }
}

/// The table of contents of a sealed pack, in order of position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toc {
    /// The entries.
    pub entries: Vec<TocEntry>,
}

impl Toc {
    /// The bytes from the end of the last record to the end of the file: table, zeros, footer.
    ///
    /// `position` is where they begin.
    pub fn encode_tail(&self, pack: PackId, position: u64) -> Vec<u8> {
        let table_len = self.entries.len() * TOC_ENTRY_LEN;
        let end = (position + (table_len + FOOTER_LEN) as u64).next_multiple_of(PACK_ALIGNMENT);
        let mut out = Vec::with_capacity((end - position) as usize);
        for entry in &self.entries {
            out.extend_from_slice(entry.info.id.as_bytes());
            out.extend_from_slice(&[entry.info.kind.code(), entry.info.encoding.code(), 0, 0]);
            out.extend_from_slice(&entry.position.to_le_bytes());
            out.extend_from_slice(&entry.info.stored_len.to_le_bytes());
            out.extend_from_slice(&entry.info.plain_len.to_le_bytes());
        }
        let footer = Footer {
            pack,
            toc_position: position,
            entries: self.entries.len() as u32,
            toc_checksum: checksum(&out),
            pack_len: end,
        };
        out.resize((end - position) as usize - FOOTER_LEN, 0);
        out.extend_from_slice(&footer.encode());
        out
    }

    /// Reads the table that `footer` describes from its bytes.
    pub fn decode(bytes: &[u8], footer: &Footer) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("pack table of contents", bytes);
        let table = reader.clone().take(footer.toc_len())?;
        if checksum(table) != footer.toc_checksum {
            return Err(reader.error(Problem::Checksum));
        }
        let mut entries = Vec::with_capacity(footer.entries as usize);
        let mut end = PACK_HEADER_LEN as u64;
        for _ in 0..footer.entries {
            let id = ObjectId::from_bytes(reader.array()?);
            let (kind, encoding) = (reader.u8()?, reader.u8()?);
            reader.zeros(2)?;
            let (position, stored_len, plain_len) = (reader.u32()?, reader.u32()?, reader.u32()?);
            let info = record_info(&reader, id, kind, encoding, stored_len, plain_len)?;
            let entry = TocEntry { info, position };
            if u64::from(position) < end || entry.end() > footer.toc_position {
                return Err(reader.error(Problem::Invalid("record position")));
            }
            end = entry.end();
            entries.push(entry);
        }
        reader.finish()?;
        Ok(Self { entries })
    }
}

/// Last bytes of a sealed pack.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 8 | magic `UCPTOC` 00 01 |
/// | 8 | 16 | pack id |
/// | 24 | 8 | position of the table of contents |
/// | 32 | 4 | entries in it |
/// | 36 | 4 | zero |
/// | 40 | 8 | XXH3-64 of the table |
/// | 48 | 8 | length of the pack file |
/// | 56 | 8 | XXH3-64 of bytes 0 to 56 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The pack that it closes.
    pub pack: PackId,
    /// Where the table of contents begins.
    pub toc_position: u64,
    /// Entries in the table.
    pub entries: u32,
    /// Checksum of the table.
    pub toc_checksum: u64,
    /// Length of the whole file.
    pub pack_len: u64,
}

impl Footer {
    /// Bytes of the table of contents.
    pub fn toc_len(&self) -> usize {
        self.entries as usize * TOC_ENTRY_LEN
    }

    fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..8].copy_from_slice(FOOTER_MAGIC);
        out[8..24].copy_from_slice(self.pack.as_bytes());
        out[24..32].copy_from_slice(&self.toc_position.to_le_bytes());
        out[32..36].copy_from_slice(&self.entries.to_le_bytes());
        out[40..48].copy_from_slice(&self.toc_checksum.to_le_bytes());
        out[48..56].copy_from_slice(&self.pack_len.to_le_bytes());
        let sum = checksum(&out[..56]);
        out[56..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the last [`FOOTER_LEN`] bytes of a pack file of `file_len` bytes.
    pub fn decode(bytes: &[u8], file_len: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("pack footer", bytes);
        let covered = reader.clone().take(56)?;
        reader.magic(FOOTER_MAGIC)?;
        let pack = PackId::from_bytes(reader.array()?);
        let toc_position = reader.u64()?;
        let entries = reader.u32()?;
        reader.zeros(4)?;
        let toc_checksum = reader.u64()?;
        let pack_len = reader.u64()?;
        if reader.u64()? != checksum(covered) {
            return Err(reader.error(Problem::Checksum));
        }
        let footer = Self {
            pack,
            toc_position,
            entries,
            toc_checksum,
            pack_len,
        };
        let end = toc_position
            .checked_add((footer.toc_len() + FOOTER_LEN) as u64)
            .and_then(|end| end.checked_next_multiple_of(PACK_ALIGNMENT));
        if pack_len != file_len
            || pack_len > PACK_LEN_MAX
            || toc_position < PACK_HEADER_LEN as u64
            || end != Some(pack_len)
        {
            return Err(reader.error(Problem::Invalid("pack length")));
        }
        Ok(footer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACK: PackId = PackId::from_bytes([7; 16]);

    fn info(id: u8, stored_len: u32) -> RecordInfo {
        RecordInfo {
            id: ObjectId::from_bytes([id; 32]),
            kind: ObjectKind::Chunk,
            encoding: Encoding::RAW,
            stored_len,
            plain_len: stored_len,
        }
    }

    #[test]
    fn a_record_does_not_parse_at_another_place() {
        let payload = [1, 2, 3];
        let header = RecordHeader::new(info(9, 3), &payload);
        let bytes = header.encode(PACK, 640);
        assert_eq!(RecordHeader::decode(&bytes, PACK, 640), Ok(header));
        assert!(RecordHeader::decode(&bytes, PACK, 641).is_err());
        assert!(RecordHeader::decode(&bytes, PackId::from_bytes([8; 16]), 640).is_err());
        assert!(header.check_payload(&payload).is_ok());
        assert!(header.check_payload(&[1, 2, 4]).is_err());
    }

    #[test]
    fn a_footer_with_a_table_past_the_end_of_everything_is_refused() {
        for toc_position in [u64::MAX, u64::MAX - 64, u64::MAX - 4096] {
            let footer = Footer {
                pack: PACK,
                toc_position,
                entries: 0,
                toc_checksum: 0,
                pack_len: 4096,
            };
            assert!(Footer::decode(&footer.encode(), 4096).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_flipped_bit_of_a_header_is_found(place in 0..64_usize, bit in 0..8_u8) {
            let mut record = RecordHeader::new(info(9, 3), &[1, 2, 3]).encode(PACK, 64);
            record[place] ^= 1 << bit;
            prop_assert!(RecordHeader::decode(&record, PACK, 64).is_err());
            let mut pack = PackHeader {
                id: PACK,
                kind: PackKind::Meta,
                repository: RepositoryId::from_bytes([3; 16]),
            }
            .encode();
            pack[place] ^= 1 << bit;
            prop_assert!(PackHeader::decode(&pack).is_err());
        }

        #[test]
        fn tails_round_trip_and_any_flipped_bit_is_found(
            lens in proptest::collection::vec(0..5000_u32, 0..40),
            place: prop::sample::Index, bit in 0..8_u8,
        ) {
            let mut position = PACK_HEADER_LEN as u64;
            let mut entries = Vec::new();
            for (i, len) in lens.into_iter().enumerate() {
                let entry = TocEntry { info: info(i as u8, len), position: position as u32 };
                position = entry.end();
                entries.push(entry);
            }
            let toc = Toc { entries };
            let tail = toc.encode_tail(PACK, position);
            let file_len = position + tail.len() as u64;
            prop_assert_eq!(file_len % PACK_ALIGNMENT, 0);
            let read = |tail: &[u8]| {
                let footer = Footer::decode(&tail[tail.len() - FOOTER_LEN..], file_len)?;
                let start = (footer.toc_position - position) as usize;
                Toc::decode(&tail[start..start + footer.toc_len()], &footer)
            };
            prop_assert_eq!(read(&tail), Ok(toc.clone()));
            let mut damaged = tail.clone();
            let place = place.index(tail.len());
            damaged[place] ^= 1 << bit;
            let in_padding = (toc.entries.len() * TOC_ENTRY_LEN..tail.len() - FOOTER_LEN).contains(&place);
            prop_assert_eq!(read(&damaged).is_ok(), in_padding);
        }

        #[test]
        fn garbage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(RecordHeader::decode(&bytes, PACK, 0).is_err());
            prop_assert!(PackHeader::decode(&bytes).is_err());
            prop_assert!(Footer::decode(&bytes, 4096).is_err());
        }
    }
}
