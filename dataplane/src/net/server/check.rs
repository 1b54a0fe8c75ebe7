//! Looks at every record before it is taken in: nothing that a client sends is believed.

use undercroft_format::pack::{ObjectKind, RecordHeader, RecordInfo};
use undercroft_format::wire::failure::{Failure, FailureCode};

use crate::repository::error::RecordProblem;
use crate::repository::keys::Keys;
use crate::repository::record::RecordDecoder;

/// Checks records. One per lane.
pub struct RecordChecker {
    decoder: RecordDecoder,
    plain: Vec<u8>,
    chunk_len_max: usize,
}

impl RecordChecker {
    /// A checker of chunks of at most `chunk_len_max` bytes: a short record of a longer one, which no client
    /// makes, would cost the server far more work than its sender.
    pub fn new(chunk_len_max: usize) -> Self {
        Self {
            decoder: RecordDecoder::default(),
            plain: Vec::new(),
            chunk_len_max,
        }
    }

    /// Checks the payload's checksum, and, by decoding it, that it is the object of its id. Chunks of an
    /// encrypted repository are sealed, which only who has the key can open: of them the checksum alone.
    pub fn check(
        &mut self,
        header: &RecordHeader,
        payload: &[u8],
        keys: Option<&Keys>,
    ) -> Result<(), Failure> {
        let bad = |problem: &dyn std::fmt::Display| {
            let text = format!(
                "the record of object {} is refused: {problem}",
                header.info.id
            );
            Failure::new(FailureCode::BadRecord, text)
        };
        header.check_payload(payload).map_err(|error| bad(&error))?;
        let encoding = header.info.encoding;
        let plain_len = header.info.plain_len as usize;
        if header.info.kind == ObjectKind::Chunk && plain_len > self.chunk_len_max {
            let max = self.chunk_len_max;
            return Err(bad(&format_args!(
                "the chunk has {plain_len} bytes, those of the repository have {max} at most"
            )));
        }
        match (header.info.kind, keys) {
            (ObjectKind::Chunk, None) if encoding.sealed => Ok(()),
            (ObjectKind::Chunk, None) => Err(bad(&"the repository is encrypted, the chunk is not")),
            (_, _) if encoding.sealed => Err(bad(&"it is sealed and should not be")),
            (ObjectKind::SegmentMap | ObjectKind::Node, _) if encoding.zstd => {
                Err(bad(&"maps are stored as they are"))
            }
            (kind, keys) => self
                .decode(&header.info, kind, payload, keys)
                .map_err(|problem| bad(&problem)),
        }
    }

    fn decode(
        &mut self,
        info: &RecordInfo,
        kind: ObjectKind,
        payload: &[u8],
        keys: Option<&Keys>,
    ) -> Result<(), RecordProblem> {
        match (kind, keys) {
            (ObjectKind::SegmentMap, _) => {
                let id = undercroft_format::id::segment_map_id(payload);
                undercroft_format::segment::SegmentMap::decode(payload)?;
                (info.id == id.into())
                    .then_some(())
                    .ok_or(RecordProblem::WrongId)
            }
            (ObjectKind::Node, _) => {
                let id = undercroft_format::id::node_id(payload);
                undercroft_format::maptree::Node::decode(payload)?;
                (info.id == id.into())
                    .then_some(())
                    .ok_or(RecordProblem::WrongId)
            }
            (ObjectKind::Chunk, Some(keys)) => {
                self.decoder.verify(info, payload, keys, &mut self.plain)
            }
            (ObjectKind::Chunk, None) => unreachable!("sealed chunks are not decoded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use undercroft_format::config::MasterKey;
    use undercroft_format::id::ObjectId;
    use undercroft_format::pack::Encoding;

    use super::*;

    fn raw(id: ObjectId, kind: ObjectKind, payload: &[u8]) -> RecordHeader {
        let len = payload.len() as u32;
        let info = RecordInfo {
            id,
            kind,
            encoding: Encoding::RAW,
            stored_len: len,
            plain_len: len,
        };
        RecordHeader::new(info, payload)
    }

    #[test]
    fn only_what_is_what_it_says_is_taken_in() {
        let keys = Keys::new(MasterKey::from_bytes([1; 32]), false);
        let mut checker = RecordChecker::new(1 << 20);
        let payload = b"some bytes of a disk";
        let chunk = raw(keys.chunk_id(payload).into(), ObjectKind::Chunk, payload);
        assert!(checker.check(&chunk, payload, Some(&keys)).is_ok());
        assert!(
            checker
                .check(&chunk, b"other bytes of one!!", Some(&keys))
                .is_err()
        );
        assert!(checker.check(&chunk, payload, None).is_err(), "not sealed");
        let other = raw(ObjectId::from_bytes([9; 32]), ObjectKind::Chunk, payload);
        assert!(
            checker.check(&other, payload, Some(&keys)).is_err(),
            "wrong id"
        );
        let map = raw(chunk.info.id, ObjectKind::SegmentMap, payload);
        assert!(checker.check(&map, payload, Some(&keys)).is_err(), "no map");
    }

    #[test]
    fn a_chunk_longer_than_those_of_the_repository_is_not_decoded() {
        let keys = Keys::new(MasterKey::from_bytes([1; 32]), false);
        let plain = vec![0; 2 << 20];
        let payload = zstd::bulk::compress(&plain, 1).unwrap();
        let mut header = raw(keys.chunk_id(&plain).into(), ObjectKind::Chunk, &payload);
        header.info.encoding.zstd = true;
        header.info.plain_len = 2 << 20;
        let mut exact = RecordChecker::new(2 << 20);
        assert!(exact.check(&header, &payload, Some(&keys)).is_ok());
        let mut checker = RecordChecker::new((2 << 20) - 1);
        let refused = checker.check(&header, &payload, Some(&keys)).unwrap_err();
        assert!(refused.text.contains("2097151 at most"), "{}", refused.text);
        assert!(checker.plain.is_empty());
    }

    #[test]
    fn a_decompression_bomb_is_no_more_than_its_header_says() {
        let keys = Keys::new(MasterKey::from_bytes([1; 32]), false);
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let mut header = raw(ObjectId::from_bytes([9; 32]), ObjectKind::Chunk, &bomb);
        header.info.encoding.zstd = true;
        header.info.plain_len = 4096;
        let mut checker = RecordChecker::new(1 << 20);
        assert!(checker.check(&header, &bomb, Some(&keys)).is_err());
        assert!(checker.plain.len() <= 4096);
    }
}
