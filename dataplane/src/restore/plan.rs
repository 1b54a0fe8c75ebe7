//! The plan of a segment: which records its extents need, and in which order to read them.

use std::collections::HashMap;

use undercroft_format::extent::Extent;
use undercroft_format::id::{ChunkId, ObjectId};
use undercroft_format::pack::ObjectKind;
use undercroft_format::segment::SegmentMap;
use undercroft_format::units::{DiskRange, SegmentNumber};

use crate::io::Piece;
use crate::repository::error::{RecordProblem, RepositoryError, Result};
use crate::repository::lookup::Located;
use crate::repository::objects::{Objects, corrupt};

/// Records that lie this close together are read as one: skipping would cost the disk more.
const GAP_MAX: u64 = 32 << 10;
/// Bytes read ahead of decoding for one segment. What a badly scattered segment needs beyond this is
/// read record by record while it is decoded.
pub const FETCH_LEN_MAX: usize = 20 << 20;
const ALIGNMENT: u64 = 4096;

/// A use of a chunk in the segment.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Where in the segment.
    pub at: u32,
    /// First byte within the chunk.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// A chunk that the segment needs.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The chunk.
    pub id: ChunkId,
    /// Its record; `None` if the repository does not have it.
    pub located: Option<Located>,
    /// Where its bytes go.
    pub uses: Vec<Use>,
    /// Where in the fetch buffer its record begins, if it is fetched ahead.
    pub fetched_at: Option<usize>,
}

/// What it takes to restore one segment.
#[derive(Clone, Debug)]
pub struct SegmentPlan {
    /// Which segment.
    pub number: SegmentNumber,
    /// Where it lies on the disk.
    pub range: DiskRange,
    /// What it holds; a segment whose map cannot be read has none.
    pub map: SegmentMap,
    /// The chunks, in the order of their records.
    pub wanted: Vec<Wanted>,
    /// Bytes of the fetch buffer.
    pub fetch_len: usize,
}

impl SegmentPlan {
    /// Plans the segment that `map` describes.
    pub fn new(
        objects: &Objects,
        number: SegmentNumber,
        range: DiskRange,
        map: SegmentMap,
    ) -> Result<Self> {
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut known: HashMap<ChunkId, usize> = HashMap::new();
        for (at, extent) in map.placed() {
            let Extent::Data { chunk, offset, len } = *extent else {
                continue;
            };
            let place = *known.entry(chunk).or_insert_with(|| {
                wanted.push(Wanted {
                    id: chunk,
                    located: None,
                    uses: Vec::new(),
                    fetched_at: None,
                });
                wanted.len() - 1
            });
            wanted[place].uses.push(Use { at, offset, len });
        }
        let ids: Vec<ObjectId> = wanted.iter().map(|wanted| wanted.id.into()).collect();
        for (wanted, located) in wanted.iter_mut().zip(objects.lookup().locate(&ids)?) {
            wanted.located = located.filter(|located| located.info.kind == ObjectKind::Chunk);
        }
        wanted.sort_by_key(|wanted| {
            wanted
                .located
                .map(|located| (located.pack, located.position))
        });
        Ok(Self {
            number,
            range,
            map,
            wanted,
            fetch_len: 0,
        })
    }

    /// The reads that fetch the records ahead of decoding, in few large pieces.
    ///
    /// A pack that cannot be opened is left out: decoding will meet the same error and report it.
    pub fn fetch(&mut self, objects: &Objects) -> Vec<Piece> {
        let mut pieces: Vec<(Piece, undercroft_format::id::PackId)> = Vec::new();
        let mut len = 0_usize;
        for wanted in &mut self.wanted {
            let Some(located) = wanted.located else {
                continue;
            };
            let start = located.position / ALIGNMENT * ALIGNMENT;
            let end = (located.position + u64::from(located.info.record_len()))
                .next_multiple_of(ALIGNMENT);
            if let Some((piece, pack)) = pieces.last_mut()
                && *pack == located.pack
                && start <= piece.file_offset + piece.len as u64 + GAP_MAX
            {
                let piece_end = piece.file_offset + piece.len as u64;
                let more = end.saturating_sub(piece_end) as usize;
                if len + more > FETCH_LEN_MAX {
                    break;
                }
                piece.len += more;
                len += more;
                wanted.fetched_at =
                    Some(piece.buffer_offset + (located.position - piece.file_offset) as usize);
                continue;
            }
            if len + (end - start) as usize > FETCH_LEN_MAX {
                break;
            }
            let Ok(file) = objects.files().get(located.pack) else {
                continue;
            };
            let piece = Piece {
                file,
                file_offset: start,
                buffer_offset: len,
                len: (end - start) as usize,
            };
            wanted.fetched_at = Some(len + (located.position - start) as usize);
            len += piece.len;
            pieces.push((piece, located.pack));
        }
        self.fetch_len = len;
        pieces.into_iter().map(|(piece, _)| piece).collect()
    }
}

impl Wanted {
    /// The record's bytes: from the fetch buffer, or read now.
    pub fn record<'a>(
        &self,
        fetched: Option<&'a [u8]>,
        objects: &Objects,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8]> {
        let located = self.located.ok_or(RepositoryError::MissingObject {
            kind: ObjectKind::Chunk,
            id: self.id.into(),
        })?;
        let len = located.info.record_len() as usize;
        if let (Some(fetched), Some(at)) = (fetched, self.fetched_at) {
            return Ok(&fetched[at..at + len]);
        }
        scratch.resize(len, 0);
        let read = objects
            .files()
            .get(located.pack)
            .and_then(|file| file.read_at(scratch, located.position));
        let problem = match read {
            Ok(got) if got == len => return Ok(scratch),
            Ok(_) => RecordProblem::Unreadable("the pack ends early".into()),
            Err(error) => RecordProblem::Unreadable(error.to_string()),
        };
        Err(corrupt(located, problem))
    }
}
