//! What RocksDB holds: the four column families and their values.
//!
//! | family | key | value |
//! | --- | --- | --- |
//! | `chunks` | object id (32) | pack number (4), position (4), payload length (3), plaintext length (3), kind and encoding (1) |
//! | `packs` | pack number, big-endian (4) | pack id (16), kind (1), length (8), entries (4) |
//! | `lost` | pack number, big-endian (4), object id (32) | nothing: the id is in the pack's table of contents, but does not stand there |
//! | `meta` | `schema` | schema version (4) |
//! | | `repository` | repository id (16) |
//! | | `state` | generation (8), next pack number (4), entries (8) |
//!
//! The last byte of a `chunks` value is the object kind in bits 0 to 3, zstd in bit 4, sealed in bit 5.
//! RocksDB's own checksums cover it all.

use undercroft_format::codec::{DecodeError, Problem, Reader};
use undercroft_format::id::{ObjectId, PackId};
use undercroft_format::pack::{
    Encoding, ObjectKind, PAYLOAD_LEN_MAX, PLAIN_LEN_MAX, PackKind, RecordInfo,
};

use super::{IndexedPack, PackNumber, Place};

pub(super) const CHUNKS: &str = "chunks";
pub(super) const PACKS: &str = "packs";
pub(super) const LOST: &str = "lost";
pub(super) const META: &str = "meta";

pub(super) const SCHEMA_KEY: &str = "schema";
pub(super) const REPOSITORY_KEY: &str = "repository";
pub(super) const STATE_KEY: &str = "state";

/// Changes whenever this file's table does: an index of another version is made anew, never converted.
pub(super) const SCHEMA: u32 = 2;

pub(super) const PLACE_LEN: usize = 15;

const _: () = assert!(PAYLOAD_LEN_MAX < 1 << 24 && PLAIN_LEN_MAX < 1 << 24);

const ZSTD: u8 = 1 << 4;
const SEALED: u8 = 1 << 5;

/// The `state` record: what every write batch brings up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Counts the times that the index was opened and changed: ties a stored RAM table to its index.
    pub(super) generation: u64,
    /// The number that the next pack gets.
    pub(super) next_pack: u32,
    /// Entries in `chunks`.
    pub(super) entries: u64,
}

pub(super) fn encode_place(place: &Place) -> [u8; PLACE_LEN] {
    let info = &place.info;
    let zstd = if info.encoding.zstd { ZSTD } else { 0 };
    let sealed = if info.encoding.sealed { SEALED } else { 0 };
    let mut out = [0; PLACE_LEN];
    out[..4].copy_from_slice(&place.pack.0.to_le_bytes());
    out[4..8].copy_from_slice(&place.position.to_le_bytes());
    out[8..11].copy_from_slice(&info.stored_len.to_le_bytes()[..3]);
    out[11..14].copy_from_slice(&info.plain_len.to_le_bytes()[..3]);
    out[14] = info.kind.code() | zstd | sealed;
    out
}

pub(super) fn decode_place(id: ObjectId, value: &[u8]) -> Result<Place, DecodeError> {
    let mut reader = Reader::new("place", value);
    let pack = PackNumber(reader.u32()?);
    let position = reader.u32()?;
    let stored_len = u24(&mut reader)?;
    let plain_len = u24(&mut reader)?;
    let flags = reader.u8()?;
    let kind = ObjectKind::from_code(flags & 0x0f).filter(|_| flags >> 6 == 0);
    let kind = kind.ok_or_else(|| reader.error(Problem::Invalid("object kind")))?;
    if pack > PackNumber::MAX {
        return Err(reader.error(Problem::Invalid("pack number")));
    }
    reader.finish()?;
    let encoding = Encoding {
        zstd: flags & ZSTD != 0,
        sealed: flags & SEALED != 0,
    };
    let info = RecordInfo {
        id,
        kind,
        encoding,
        stored_len,
        plain_len,
    };
    Ok(Place {
        pack,
        position,
        info,
    })
}

pub(super) fn pack_key(number: PackNumber) -> [u8; 4] {
    number.0.to_be_bytes()
}

pub(super) fn lost_key(number: PackNumber, id: &ObjectId) -> [u8; 4 + ObjectId::LEN] {
    let mut key = [0; 4 + ObjectId::LEN];
    key[..4].copy_from_slice(&pack_key(number));
    key[4..].copy_from_slice(id.as_bytes());
    key
}

pub(super) fn encode_pack(pack: &IndexedPack) -> Vec<u8> {
    let mut out = Vec::with_capacity(29);
    out.extend_from_slice(pack.id.as_bytes());
    out.push(pack.kind.code());
    out.extend_from_slice(&pack.len.to_le_bytes());
    out.extend_from_slice(&pack.entries.to_le_bytes());
    out
}

pub(super) fn decode_pack(key: &[u8], value: &[u8]) -> Result<IndexedPack, DecodeError> {
    let mut key = Reader::new("pack number", key);
    let number = PackNumber(u32::from_be_bytes(key.array()?));
    key.finish()?;
    let mut reader = Reader::new("indexed pack", value);
    let id = PackId::from_bytes(reader.array()?);
    let kind = PackKind::from_code(reader.u8()?);
    let kind = kind.ok_or_else(|| reader.error(Problem::Invalid("pack kind")))?;
    let pack = IndexedPack {
        number,
        id,
        kind,
        len: reader.u64()?,
        entries: reader.u32()?,
    };
    if number > PackNumber::MAX {
        return Err(reader.error(Problem::Invalid("pack number")));
    }
    reader.finish()?;
    Ok(pack)
}

pub(super) fn encode_state(state: &State) -> Vec<u8> {
    let mut out = Vec::with_capacity(20);
    out.extend_from_slice(&state.generation.to_le_bytes());
    out.extend_from_slice(&state.next_pack.to_le_bytes());
    out.extend_from_slice(&state.entries.to_le_bytes());
    out
}

pub(super) fn decode_state(value: &[u8]) -> Result<State, DecodeError> {
    let mut reader = Reader::new("index state", value);
    let state = State {
        generation: reader.u64()?,
        next_pack: reader.u32()?,
        entries: reader.u64()?,
    };
    reader.finish()?;
    Ok(state)
}

fn u24(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    let [a, b, c] = reader.array()?;
    Ok(u32::from_le_bytes([a, b, c, 0]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_round_trip(
            pack in 0..u32::MAX, position: u32,
            stored_len in 0..=PAYLOAD_LEN_MAX, plain_len in 0..=PLAIN_LEN_MAX,
            kind in 1..4_u8, zstd: bool, sealed: bool,
        ) {
            let id = ObjectId::from_bytes([5; 32]);
            let kind = ObjectKind::from_code(kind).expect("1 to 3 are kinds");
            let encoding = Encoding { zstd, sealed };
            let info = RecordInfo { id, kind, encoding, stored_len, plain_len };
            let place = Place { pack: PackNumber(pack), position, info };
            prop_assert_eq!(decode_place(id, &encode_place(&place)), Ok(place));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode_place(ObjectId::from_bytes([5; 32]), &bytes);
            let _ = decode_pack(&bytes, &bytes);
            let _ = decode_state(&bytes);
        }
    }
}
