//! A disk of a snapshot as a file: for the few bytes that an increment needs and did not bring.
//!
//! It reads in the caller's thread, chunk by chunk. A restore reads much faster.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::extent::Extent;
use undercroft_format::id::ChunkId;
use undercroft_format::segment::SegmentMap;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::units::{DiskRange, SegmentNumber};

use super::error::{RepositoryError, Result};
use super::keys::Keys;
use super::objects::Objects;
use crate::io::BlockFile;

/// Chunks kept, of at most 256 KiB each: reads that follow each other often end and begin in one.
const CHUNKS_MAX: usize = 8;

/// A disk of a snapshot that nobody may remove meanwhile.
pub struct SnapshotDisk {
    disk: DiskManifest,
    objects: Objects,
    keys: Arc<Keys>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    map: Option<(SegmentNumber, Arc<SegmentMap>)>,
    chunks: VecDeque<(ChunkId, Arc<Vec<u8>>)>,
}

impl SnapshotDisk {
    /// The disk that `disk` describes, of the repository that `objects` reads.
    pub fn new(objects: &Objects, keys: Arc<Keys>, disk: DiskManifest) -> Self {
        Self {
            disk,
            objects: Objects::new(objects.records().clone()),
            keys,
            cache: Mutex::default(),
        }
    }

    fn read(&self, out: &mut [u8], range: DiskRange) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let number = self.disk.segment_size.segment_at(at);
            let segment = self.disk.segment_size.range_of(number, self.disk.size);
            let part = DiskRange::new(at, range.end.min(segment.end));
            let local = DiskRange::new(part.start - segment.start, part.end - segment.start);
            let from = (at - range.start) as usize;
            self.read_segment(number, local, &mut out[from..from + part.len() as usize])?;
            at = part.end;
        }
        Ok(())
    }

    /// Reads `local`, a range from the segment's start.
    fn read_segment(&self, number: SegmentNumber, local: DiskRange, out: &mut [u8]) -> Result<()> {
        let map = self.map(number)?;
        for (at, extent) in map.placed() {
            let at = u64::from(at);
            let part = DiskRange::new(at, at + u64::from(extent.len())).intersect(local);
            if part.is_empty() {
                continue;
            }
            let from = (part.start - local.start) as usize;
            let out = &mut out[from..from + part.len() as usize];
            match extent {
                Extent::Zero { .. } => out.fill(0),
                Extent::Data { chunk, offset, .. } => {
                    let plain = self.chunk(*chunk)?;
                    let skip = (u64::from(*offset) + part.start - at) as usize;
                    let bytes = plain.get(skip..skip + out.len());
                    out.copy_from_slice(bytes.ok_or(RepositoryError::MissingObject {
                        kind: undercroft_format::pack::ObjectKind::Chunk,
                        id: (*chunk).into(),
                    })?);
                }
            }
        }
        Ok(())
    }

    fn map(&self, number: SegmentNumber) -> Result<Arc<SegmentMap>> {
        if let Some((known, map)) = &self.cache.lock().map
            && *known == number
        {
            return Ok(map.clone());
        }
        let mut id = None;
        let segment = number.0..number.0 + 1;
        self.objects
            .visit_tree(self.disk.tree(), segment, &mut |_, map| {
                id = Some(map);
                Ok(())
            })?;
        let range = self.disk.segment_size.range_of(number, self.disk.size);
        let map = match id {
            None => SegmentMap::zero(range.len() as u32),
            Some(id) => {
                let map = self.objects.segment_map(id)?;
                if u64::from(map.len()) != range.len() {
                    return Err(RepositoryError::ForeignMap { id, range });
                }
                map
            }
        };
        let map = Arc::new(map);
        self.cache.lock().map = Some((number, map.clone()));
        Ok(map)
    }

    fn chunk(&self, id: ChunkId) -> Result<Arc<Vec<u8>>> {
        if let Some((_, plain)) = self
            .cache
            .lock()
            .chunks
            .iter()
            .find(|(known, _)| *known == id)
        {
            return Ok(plain.clone());
        }
        let plain = Arc::new(self.objects.chunk(id, &self.keys)?);
        let chunks = &mut self.cache.lock().chunks;
        if chunks.len() >= CHUNKS_MAX {
            chunks.pop_front();
        }
        chunks.push_back((id, plain.clone()));
        Ok(plain)
    }
}

impl fmt::Debug for SnapshotDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotDisk({} bytes)", self.disk.size)
    }
}

impl BlockFile for SnapshotDisk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = offset.saturating_add(buf.len() as u64);
        let range = DiskRange::new(offset, end).intersect(DiskRange::new(0, self.disk.size.get()));
        let len = range.len() as usize;
        self.read(&mut buf[..len], range)
            .map_err(io::Error::other)?;
        Ok(len)
    }

    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.size.get())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn preallocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn punch(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        let end = end.min(self.disk.size.get());
        Ok((offset < end).then_some(offset..end))
    }

    fn advise_dont_need(&self) {}
}
