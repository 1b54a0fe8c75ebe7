//! Records in memory: encoding what is new, decoding and checking what was stored.
//!
//! The compressor of ingest and the decoder of restore both live here, because each is the other's
//! inverse. Contexts of zstd are made once per thread and reused.

use undercroft_format::id::{ObjectId, node_id, segment_map_id};
use undercroft_format::pack::{Encoding, ObjectKind, RecordHeader, RecordInfo};
use zstd::bulk::{Compressor, Decompressor};

use super::error::RecordProblem;
use super::keys::{Keys, Sealer};

/// A record is stored raw unless compression saves at least this share of it: 8 %.
const SAVING_MIN_PERCENT: usize = 8;

/// Encodes objects into payloads. One per thread.
pub struct RecordEncoder {
    zstd: Compressor<'static>,
    compressed: Vec<u8>,
    sealed: Vec<u8>,
}

/// A payload made by [`RecordEncoder::encode`], ready for a pack.
pub struct EncodedRecord<'a> {
    /// What the record is.
    pub info: RecordInfo,
    /// Its payload.
    pub payload: &'a [u8],
}

impl RecordEncoder {
    /// An encoder at zstd `level`.
    pub fn new(level: i32) -> Self {
        Self {
            zstd: Compressor::new(level).expect("zstd takes every level"),
            compressed: Vec::new(),
            sealed: Vec::new(),
        }
    }

    /// Encodes the plaintext of object `id`. Chunks are compressed and, given a sealer, sealed; maps
    /// and nodes are hashes, which do not compress, and stay in clear so that anyone can splice them.
    pub fn encode<'a>(
        &'a mut self,
        id: ObjectId,
        kind: ObjectKind,
        plain: &'a [u8],
        sealer: Option<&Sealer>,
    ) -> EncodedRecord<'a> {
        let is_chunk = kind == ObjectKind::Chunk;
        let compressed_len = is_chunk.then(|| self.compress(plain)).flatten();
        let body = match compressed_len {
            Some(len) => &self.compressed[..len],
            None => plain,
        };
        let sealer = sealer.filter(|_| is_chunk);
        let mut info = RecordInfo {
            id,
            kind,
            encoding: Encoding {
                zstd: compressed_len.is_some(),
                sealed: sealer.is_some(),
            },
            stored_len: body.len() as u32,
            plain_len: plain.len() as u32,
        };
        let payload = match sealer {
            Some(sealer) => {
                sealer.seal(body, &info.seal_context(), &mut self.sealed);
                info.stored_len = self.sealed.len() as u32;
                &self.sealed
            }
            None => body,
        };
        EncodedRecord { info, payload }
    }

    /// Compresses `plain` and returns the length; `None` if it does not pay.
    fn compress(&mut self, plain: &[u8]) -> Option<usize> {
        let limit = plain.len() - plain.len() * SAVING_MIN_PERCENT / 100;
        if self.compressed.len() < limit {
            self.compressed.resize(limit, 0);
        }
        // zstd gives up when the result does not fit into the space that makes it worth while.
        self.zstd
            .compress_to_buffer(plain, &mut self.compressed[..limit])
            .ok()
    }
}

/// Records that go to a pack together, so that what is read together lies together.
#[derive(Default)]
pub struct RecordBatch {
    headers: Vec<RecordHeader>,
    payloads: Vec<u8>,
}

impl RecordBatch {
    /// Adds a record.
    pub fn push(&mut self, record: &EncodedRecord<'_>) {
        self.headers
            .push(RecordHeader::new(record.info, record.payload));
        self.payloads.extend_from_slice(record.payload);
    }

    /// Bytes of the payloads.
    pub fn len(&self) -> usize {
        self.payloads.len()
    }

    /// True if there are no records.
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.headers.clear();
        self.payloads.clear();
    }

    /// The records in order.
    pub fn records(&self) -> impl Iterator<Item = (&RecordHeader, &[u8])> {
        let mut at = 0;
        self.headers.iter().map(move |header| {
            let start = at;
            at += header.info.stored_len as usize;
            (header, &self.payloads[start..at])
        })
    }
}

/// Decodes payloads. One per thread.
pub struct RecordDecoder {
    zstd: Decompressor<'static>,
    scratch: Vec<u8>,
}

impl Default for RecordDecoder {
    fn default() -> Self {
        Self {
            zstd: Decompressor::new().expect("a decompression context needs only memory"),
            scratch: Vec::new(),
        }
    }
}

impl RecordDecoder {
    /// Decodes `payload`, whose checksum the caller has checked, into `out`, which must be exactly
    /// `info.plain_len` long, and checks the plaintext against the id.
    ///
    /// # Errors
    /// [`RecordProblem::WrongId`] and the like; `out` then holds nothing of use.
    pub fn decode(
        &mut self,
        info: &RecordInfo,
        payload: &[u8],
        keys: &Keys,
        out: &mut [u8],
    ) -> Result<(), RecordProblem> {
        assert_eq!(out.len(), info.plain_len as usize);
        let body = if info.encoding.sealed {
            self.scratch.clear();
            self.scratch.extend_from_slice(payload);
            let range = keys.open(&mut self.scratch, &info.seal_context())?;
            &self.scratch[range]
        } else {
            payload
        };
        if info.encoding.zstd {
            let written = self
                .zstd
                .decompress_to_buffer(body, out)
                .map_err(|_| RecordProblem::Compression)?;
            if written != out.len() {
                return Err(RecordProblem::Compression);
            }
        } else if body.len() == out.len() {
            out.copy_from_slice(body);
        } else {
            return Err(RecordProblem::Compression);
        }
        check_id(info, out, keys)
    }

    /// Checks `payload` like [`decode`](Self::decode), for those who need no plaintext: one that is stored as
    /// it is is not copied. `scratch` grows as far as it has to.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode).
    pub fn verify(
        &mut self,
        info: &RecordInfo,
        payload: &[u8],
        keys: &Keys,
        scratch: &mut Vec<u8>,
    ) -> Result<(), RecordProblem> {
        let len = info.plain_len as usize;
        if info.encoding == Encoding::RAW {
            if payload.len() != len {
                return Err(RecordProblem::Compression);
            }
            return check_id(info, payload, keys);
        }
        if scratch.len() < len {
            scratch.resize(len, 0);
        }
        self.decode(info, payload, keys, &mut scratch[..len])
    }
}

fn check_id(info: &RecordInfo, plain: &[u8], keys: &Keys) -> Result<(), RecordProblem> {
    match object_id(info.kind, plain, keys) == info.id {
        true => Ok(()),
        false => Err(RecordProblem::WrongId),
    }
}

/// The id of an object's plaintext.
pub fn object_id(kind: ObjectKind, plain: &[u8], keys: &Keys) -> ObjectId {
    match kind {
        ObjectKind::Chunk => keys.chunk_id(plain).into(),
        ObjectKind::SegmentMap => segment_map_id(plain).into(),
        ObjectKind::Node => node_id(plain).into(),
    }
}

#[cfg(test)]
mod tests {
    use undercroft_format::config::MasterKey;
    use undercroft_format::id::SessionId;

    use super::*;

    fn round_trip(plain: &[u8], sealing: bool) -> RecordInfo {
        let keys = Keys::new(MasterKey::from_bytes([1; 32]), sealing);
        let sealer = keys.sealer(SessionId::from_bytes([2; 16]));
        let id = keys.chunk_id(plain).into();
        let mut encoder = RecordEncoder::new(1);
        let record = encoder.encode(id, ObjectKind::Chunk, plain, sealer.as_ref());
        let mut out = vec![0; plain.len()];
        let mut decoder = RecordDecoder::default();
        decoder
            .decode(&record.info, record.payload, &keys, &mut out)
            .unwrap();
        assert_eq!(out, plain);
        let mut damaged = record.payload.to_vec();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 4;
        assert!(
            decoder
                .decode(&record.info, &damaged, &keys, &mut out)
                .is_err()
        );
        record.info
    }

    #[test]
    fn text_is_compressed_and_noise_is_not() {
        let text = b"the same line again and again\n".repeat(2000);
        let mut noise = vec![0; 60_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for sealing in [false, true] {
            let info = round_trip(&text, sealing);
            assert!(info.encoding.zstd && info.stored_len < 2000);
            assert_eq!(info.encoding.sealed, sealing);
            assert!(!round_trip(&noise, sealing).encoding.zstd);
        }
    }
}
