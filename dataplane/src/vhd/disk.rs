//! A VHD and its parents as one disk.
//!
//! The newest layer that has a sector gives it; what no layer has is the base's, or zero.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use undercroft_format::units::DiskRange;

use super::layer::{Layer, Part};
use crate::ingest::source::{DiskSource, Layout, Place};
use crate::io::BlockFile;

/// The layers of a disk, the newest first.
#[derive(Debug)]
pub struct VhdDisk {
    layers: Vec<Layer>,
    /// What lies below all layers.
    base: Option<Arc<dyn BlockFile>>,
    size: u64,
}

impl VhdDisk {
    /// The disk of these layers, which is as large as the first.
    pub fn new(layers: Vec<Layer>, base: Option<Arc<dyn BlockFile>>) -> Self {
        let size = layers.first().map_or(0, |layer| layer.image().size.get());
        Self { layers, base, size }
    }

    /// The layers, the newest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// True if all reads go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.layers.iter().all(Layer::is_direct)
    }

    /// The disk as a source.
    pub fn into_source(self) -> DiskSource {
        let (size, is_direct) = (self.size, self.is_direct());
        let disk = Arc::new(self);
        DiskSource::scattered(disk.clone(), size, is_direct, disk)
    }

    fn places_from(
        &self,
        depth: usize,
        range: DiskRange,
        found: &mut dyn FnMut(Place<'_>),
    ) -> io::Result<()> {
        let Some(layer) = self.layers.get(depth) else {
            return self.places_in_base(range, found);
        };
        layer.parts(range, &mut |range, part| match part {
            Part::Here(file_offset) => {
                found(Place {
                    range,
                    file: layer.file(),
                    file_offset,
                });
                Ok(())
            }
            // What a parent lost when it was made smaller does not come back when the child grows.
            Part::Below => self.places_from(
                depth + 1,
                range.intersect(DiskRange::new(0, layer.image().size.get())),
                found,
            ),
        })
    }

    fn places_in_base(&self, range: DiskRange, found: &mut dyn FnMut(Place<'_>)) -> io::Result<()> {
        let Some(file) = &self.base else {
            return Ok(());
        };
        let range = range.intersect(DiskRange::new(0, file.len()?));
        if !range.is_empty() {
            let file_offset = range.start;
            found(Place {
                range,
                file,
                file_offset,
            });
        }
        Ok(())
    }
}

impl Layout for VhdDisk {
    fn places(&self, range: DiskRange, found: &mut dyn FnMut(Place<'_>)) -> io::Result<()> {
        self.places_from(0, range, found)
    }
}

impl BlockFile for VhdDisk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = offset.saturating_add(buf.len() as u64).min(self.size);
        let range = DiskRange::new(offset.min(end), end);
        let buf = &mut buf[..range.len() as usize];
        buf.fill(0);
        let mut result = Ok(());
        self.places(range, &mut |place| {
            let at = (place.range.start - offset) as usize;
            let part = &mut buf[at..at + place.range.len() as usize];
            let read = place.file.read_at(part, place.file_offset);
            let read = read.and_then(|got| match got == part.len() {
                true => Ok(()),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            });
            if result.is_ok() {
                result = read;
            }
        })?;
        result.map(|()| buf.len())
    }

    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.size)
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
        let end = end.min(self.size);
        if self.base.is_some() {
            return Ok((offset < end).then_some(offset..end));
        }
        let mut first: Option<DiskRange> = None;
        for layer in &self.layers {
            let end = first.map_or(end, |first| first.start);
            first = layer.next_here(offset, end)?.or(first);
        }
        Ok(first.map(|range| range.start..range.end))
    }

    fn advise_dont_need(&self) {
        for layer in &self.layers {
            layer.file().advise_dont_need();
        }
    }
}
