//! Segment maps: which bytes a segment of a disk holds; and the splice, the merge of an increment.
//!
//! A map lists extents that cover its segment exactly, in address order, in canonical form: no empty
//! extent, neighbours that could be one are one, so that equal content cut equally has one encoding and
//! one id. A segment of zeros alone has no map.
//!
//! | offset | size | field | invariant |
//! | --- | --- | --- | --- |
//! | 0 | 1 | version | 1 |
//! | 1 | varint | length of the segment in bytes | 1 to 64 MiB |
//! | | varint | number of extents | 1 to 131,072 |
//! | | varint | `extent length * 2 + (1 if data)` | per extent |
//! | | varint | offset in the chunk | data only |
//! | | varint | 0: a new chunk id follows; k: the k-th id of this map again | data only |
//! | | 32 | chunk id | after a 0 only |

use std::collections::HashMap;

use crate::codec::{DecodeError, Problem, Reader, put_varint};
use crate::extent::{Extent, push_extent};
use crate::id::{ChunkId, SegmentMapId, segment_map_id};
use crate::ranges::RangeSet;
use crate::units::DiskRange;

/// Version of the encoding.
const VERSION: u8 = 1;
/// A 64 MiB segment of 512-byte extents.
const EXTENTS_MAX: u64 = 1 << 17;
/// Longest segment, in bytes.
const SEGMENT_LEN_MAX: u64 = 1 << 26;
/// Longest encoding of a map, in bytes; a bound for those who fetch one.
pub const SEGMENT_MAP_LEN_MAX: usize = 8 << 20;

/// The content of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentMap {
    len: u32,
    extents: Vec<Extent>,
}

/// Extents that replace what a segment held from `start` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// First byte replaced, from the segment's start.
    pub start: u32,
    /// What stands there now.
    pub extents: Vec<Extent>,
}

impl Patch {
    /// One past the last byte replaced, from the segment's start.
    pub fn end(&self) -> u64 {
        u64::from(self.start) + self.extents.iter().map(|e| u64::from(e.len())).sum::<u64>()
    }
}

impl SegmentMap {
    /// The map of a segment of zeros: the start of every segment, never stored.
    pub fn zero(len: u32) -> Self {
        let mut extents = Vec::new();
        push_extent(&mut extents, Extent::Zero { len });
        Self { len, extents }
    }

    /// The map made of `extents`, brought into canonical form.
    pub fn from_extents(extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut map = Self {
            len: 0,
            extents: Vec::new(),
        };
        for extent in extents {
            map.len += extent.len();
            push_extent(&mut map.extents, extent);
        }
        map
    }

    /// Bytes of disk covered.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// True for the map of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True if all bytes are zero: such a segment has no object.
    pub fn is_zero(&self) -> bool {
        self.extents
            .iter()
            .all(|extent| matches!(extent, Extent::Zero { .. }))
    }

    /// The extents, in address order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The extents with their positions from the segment's start.
    pub fn placed(&self) -> impl Iterator<Item = (u32, &Extent)> {
        self.extents.iter().scan(0_u32, |at, extent| {
            let start = *at;
            *at += extent.len();
            Some((start, extent))
        })
    }

    /// Bytes that are not zero extents.
    pub fn data_bytes(&self) -> u64 {
        self.extents
            .iter()
            .map(|extent| match extent {
                Extent::Data { len, .. } => u64::from(*len),
                Extent::Zero { .. } => 0,
            })
            .sum()
    }

    /// The chunks referred to, with repetitions.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.extents.iter().filter_map(|extent| match extent {
            Extent::Data { chunk, .. } => Some(*chunk),
            Extent::Zero { .. } => None,
        })
    }

    /// The segment after `patches`, now `len` bytes long: the merge of an increment.
    ///
    /// What no patch covers stays as it was; bytes past the old length are zero; bytes past `len` are
    /// gone. Patches must be in address order, apart from each other, and end at `len` or before.
    pub fn splice(&self, len: u32, patches: &[Patch]) -> Self {
        let mut extents = Vec::with_capacity(self.extents.len() + 3 * patches.len());
        let mut old = Cursor::new(&self.extents);
        let mut at = 0_u32;
        for patch in patches {
            assert!(patch.start >= at && patch.end() <= u64::from(len));
            old.copy(patch.start - at, &mut extents);
            at = patch.start;
            for extent in &patch.extents {
                push_extent(&mut extents, *extent);
                at += extent.len();
            }
            old.skip(at - patch.start);
        }
        old.copy(len - at, &mut extents);
        Self { len, extents }
    }

    /// The map of this segment, which lies at `range` of its disk, with zeros wherever `kept` does not say otherwise.
    pub fn masked(&self, range: DiskRange, kept: &RangeSet) -> Self {
        let mut extents = Vec::new();
        let mut old = Cursor::new(&self.extents);
        let mut at = range.start;
        let zero = |extents: &mut Vec<_>, old: &mut Cursor<'_>, len: u64| {
            old.skip(len as u32);
            push_extent(extents, Extent::Zero { len: len as u32 });
        };
        for part in kept.within(range) {
            zero(&mut extents, &mut old, part.start - at);
            old.copy(part.len() as u32, &mut extents);
            at = part.end;
        }
        zero(&mut extents, &mut old, range.end - at);
        Self {
            len: self.len,
            extents,
        }
    }

    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.extents.len() * 38);
        let mut known: HashMap<ChunkId, u64> = HashMap::with_capacity(self.extents.len());
        out.push(VERSION);
        put_varint(&mut out, u64::from(self.len));
        put_varint(&mut out, self.extents.len() as u64);
        for extent in &self.extents {
            match extent {
                Extent::Zero { len } => put_varint(&mut out, u64::from(*len) << 1),
                Extent::Data { chunk, offset, len } => {
                    put_varint(&mut out, u64::from(*len) << 1 | 1);
                    put_varint(&mut out, u64::from(*offset));
                    let next = known.len() as u64 + 1;
                    let ordinal = *known.entry(*chunk).or_insert(next);
                    if ordinal == next {
                        put_varint(&mut out, 0);
                        out.extend_from_slice(chunk.as_bytes());
                    } else {
                        put_varint(&mut out, ordinal);
                    }
                }
            }
        }
        out
    }

    /// The canonical encoding and its id.
    pub fn encode_with_id(&self) -> (SegmentMapId, Vec<u8>) {
        let bytes = self.encode();
        (segment_map_id(&bytes), bytes)
    }

    /// Reads a canonical encoding.
    ///
    /// # Errors
    /// Anything that [`encode`](Self::encode) never writes, a map of zeros alone included.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("segment map", bytes);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(reader.error(Problem::Version {
                found: version.into(),
                newest: VERSION.into(),
            }));
        }
        let len = reader.varint("segment length", SEGMENT_LEN_MAX)? as u32;
        let count = reader.count("number of extents", EXTENTS_MAX, 1)?;
        let mut extents = Vec::with_capacity(count);
        let mut ids: Vec<ChunkId> = Vec::new();
        let mut covered = 0_u64;
        for _ in 0..count {
            let tag = reader.varint("extent", SEGMENT_LEN_MAX << 1 | 1)?;
            let extent_len = (tag >> 1) as u32;
            if extent_len == 0 {
                return Err(reader.error(Problem::NotCanonical("empty extent")));
            }
            covered += u64::from(extent_len);
            let extent = if tag & 1 == 0 {
                Extent::Zero { len: extent_len }
            } else {
                let offset = reader.varint("offset in chunk", SEGMENT_LEN_MAX)? as u32;
                let ordinal = reader.varint("chunk ordinal", ids.len() as u64)? as usize;
                let chunk = if ordinal == 0 {
                    let id = ChunkId::from_bytes(reader.array()?);
                    ids.push(id);
                    id
                } else {
                    ids[ordinal - 1]
                };
                Extent::Data {
                    chunk,
                    offset,
                    len: extent_len,
                }
            };
            if extents
                .last()
                .is_some_and(|last: &Extent| last.join(&extent).is_some())
            {
                return Err(reader.error(Problem::NotCanonical("extents that are one")));
            }
            extents.push(extent);
        }
        if covered != u64::from(len) {
            return Err(reader.error(Problem::Invalid("extents: they do not cover the segment")));
        }
        if ids.is_empty() {
            return Err(reader.error(Problem::NotCanonical("map of zeros alone")));
        }
        // Eight bytes tell nearly all of them apart, and compare faster than 32.
        let head = |id: &ChunkId| u64::from_be_bytes(*id.as_bytes().first_chunk().expect("of 32"));
        ids.sort_unstable_by(|a, b| head(a).cmp(&head(b)).then_with(|| a.cmp(b)));
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(reader.error(Problem::NotCanonical("chunk id written twice")));
        }
        reader.finish()?;
        Ok(Self { len, extents })
    }
}

/// A position within a list of extents; past the end lie zeros.
struct Cursor<'a> {
    extents: std::slice::Iter<'a, Extent>,
    current: Option<Extent>,
}

impl<'a> Cursor<'a> {
    fn new(extents: &'a [Extent]) -> Self {
        Self {
            extents: extents.iter(),
            current: None,
        }
    }

    /// The next at most `len` bytes as one extent; `None` past the end.
    fn next(&mut self, len: u32) -> Option<Extent> {
        let current = match self.current.take() {
            Some(extent) => extent,
            None => *self.extents.next()?,
        };
        let taken = current.len().min(len);
        if taken < current.len() {
            self.current = Some(current.slice(taken, current.len() - taken));
        }
        Some(current.slice(0, taken))
    }

    fn copy(&mut self, mut len: u32, out: &mut Vec<Extent>) {
        while len > 0 {
            let extent = self.next(len).unwrap_or(Extent::Zero { len });
            len -= extent.len();
            push_extent(out, extent);
        }
    }

    fn skip(&mut self, mut len: u32) {
        while len > 0 {
            match self.next(len) {
                Some(extent) => len -= extent.len(),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(number: u8) -> ChunkId {
        ChunkId::from_bytes([number; 32])
    }

    /// What every byte of the map is: (chunk, offset in it), or `None` for zero.
    fn naive(map: &SegmentMap) -> Vec<Option<(ChunkId, u32)>> {
        map.extents()
            .iter()
            .flat_map(|extent| {
                let extent = *extent;
                (0..extent.len()).map(move |i| match extent {
                    Extent::Zero { .. } => None,
                    Extent::Data { chunk, offset, .. } => Some((chunk, offset + i)),
                })
            })
            .collect()
    }

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let extent = (0..6_u8, 0..50_u32, 1..40_u32).prop_map(|(number, offset, len)| {
            if number == 0 {
                Extent::Zero { len }
            } else {
                Extent::Data {
                    chunk: chunk(number),
                    offset,
                    len,
                }
            }
        });
        proptest::collection::vec(extent, 0..20)
    }

    fn patches(len: u32) -> impl Strategy<Value = Vec<Patch>> {
        proptest::collection::vec((0..20_u32, extents()), 0..5).prop_map(move |pieces| {
            let mut at = 0;
            let mut patches = Vec::new();
            for (gap, extents) in pieces {
                let patch = Patch {
                    start: at + gap,
                    extents,
                };
                if patch.end() > u64::from(len) {
                    break;
                }
                at = patch.end() as u32;
                patches.push(patch);
            }
            patches
        })
    }

    proptest! {
        #[test]
        fn maps_round_trip(extents in extents()) {
            let map = SegmentMap::from_extents(extents);
            let decoded = SegmentMap::decode(&map.encode());
            if map.is_zero() {
                prop_assert!(decoded.is_err());
            } else {
                prop_assert_eq!(decoded, Ok(map));
            }
        }

        #[test]
        fn whatever_decodes_is_canonical(
            extents in extents(), place: prop::sample::Index, bit in 0..8_u8,
        ) {
            let mut bytes = SegmentMap::from_extents(extents).encode();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            if let Ok(map) = SegmentMap::decode(&bytes) {
                prop_assert_eq!(map.encode(), bytes);
            }
        }

        #[test]
        fn splice_equals_overwriting_bytes(
            (old, len, patches) in (extents(), 0..900_u32)
                .prop_flat_map(|(old, len)| (Just(old), Just(len), patches(len)))
        ) {
            let old = SegmentMap::from_extents(old);
            let new = old.splice(len, &patches);
            let mut expected = naive(&old);
            expected.resize(len as usize, None);
            for patch in &patches {
                let bytes = naive(&SegmentMap::from_extents(patch.extents.clone()));
                let start = patch.start as usize;
                expected[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            prop_assert_eq!(naive(&new), expected);
            prop_assert_eq!(new.len(), len);
            let canonical = SegmentMap::from_extents(new.extents().iter().copied());
            prop_assert_eq!(new, canonical);
        }
    }

    #[test]
    fn a_chunk_split_by_a_splice_is_named_once() {
        let old = SegmentMap::from_extents([Extent::Data {
            chunk: chunk(1),
            offset: 0,
            len: 100,
        }]);
        let patch = Patch {
            start: 40,
            extents: vec![Extent::Zero { len: 20 }],
        };
        let new = old.splice(100, &[patch]);
        assert_eq!(new.extents().len(), 3);
        assert!(new.encode().len() < 32 + 20);
    }
}
