//! Disks restored as qcow2 images.
//!
//! As with [VHDs](super::vhd), the same snapshot gives the same file.

use std::io::{self, Write};

use undercroft_format::qcow2::layout::check_size;
use undercroft_format::qcow2::{CLUSTER_LEN, Layout, UnfitSize};
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::units::DiskRange;

use super::RestoreOptions;
use super::data_parts::data_parts;
use super::write::{InOrder, write_zeros};
use crate::repository::Repository;
use crate::repository::error::RepositoryError;

/// A disk cannot be laid out as a qcow2 image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// No image has that size.
    #[error(transparent)]
    Unfit(#[from] UnfitSize),
    /// The maps cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// The layout of a whole disk: the clusters that hold data are there.
///
/// # Errors
/// A size that no image has; damage, unless it is allowed: what cannot be read is then not there.
pub fn whole(
    repository: &dyn Repository,
    disk: &DiskManifest,
    options: RestoreOptions,
) -> Result<Layout, LayoutError> {
    check_size(disk.size)?;
    let data = data_parts(repository, disk, CLUSTER_LEN, options)?;
    Ok(Layout::new(disk.size, data)?)
}

/// Writes an image in order.
pub struct Qcow2Stream<W> {
    stream: W,
    layout: Layout,
    present: Vec<DiskRange>,
    /// Parts of `present` that are complete.
    complete: usize,
    /// Bytes of the disk that were taken.
    at: u64,
    /// Bytes of the file so far.
    written: u64,
}

impl<W: Write + Send> Qcow2Stream<W> {
    /// Of the image that `layout` describes.
    pub fn new(stream: W, layout: Layout) -> Self {
        Self {
            stream,
            present: layout.present().collect(),
            layout,
            complete: 0,
            at: 0,
            written: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.stream.write_all(bytes)
    }

    fn put_zeros(&mut self, len: u64) -> io::Result<()> {
        self.written += len;
        write_zeros(&mut self.stream, len)
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.written > 0 {
            return Ok(());
        }
        (0..self.layout.head_clusters()).try_for_each(|number| {
            let cluster = self.layout.head(number);
            self.put(&cluster)
        })
    }

    /// The part that the next byte lies in or before.
    fn part(&self) -> DiskRange {
        let part = self.present.get(self.complete);
        part.copied().unwrap_or(DiskRange::new(u64::MAX, u64::MAX))
    }

    /// Takes the next bytes of the disk: `bytes`, or `len` zeros.
    fn take(&mut self, mut bytes: Option<&[u8]>, mut len: u64) -> io::Result<()> {
        self.begin()?;
        while len > 0 {
            let part = self.part();
            let is_inside = self.at >= part.start;
            let end = if is_inside { part.end } else { part.start };
            let now = len.min(end - self.at);
            let split = bytes.map(|bytes| bytes.split_at(now as usize));
            match (is_inside, split) {
                (false, None) => {}
                (false, Some(_)) => return Err(self.unplaced()),
                (true, Some((bytes, _))) => self.put(bytes)?,
                (true, None) => self.put_zeros(now)?,
            }
            bytes = split.map(|(_, rest)| rest);
            self.at += now;
            len -= now;
            self.complete += usize::from(is_inside && self.at == part.end);
        }
        Ok(())
    }

    fn unplaced(&self) -> io::Error {
        io::Error::other(format!(
            "the disk has data at byte {} where the image was laid out without: its map could not be read before",
            self.at
        ))
    }
}

impl<W: Write + Send> InOrder for Qcow2Stream<W> {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.take(Some(bytes), bytes.len() as u64)
    }

    fn zeros(&mut self, len: u64) -> io::Result<()> {
        self.take(None, len)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.begin()?;
        // The disk ends before its last cluster does.
        let part = self.part();
        if self.at > part.start {
            self.put_zeros(part.end - self.at)?;
        }
        assert_eq!(
            self.written,
            self.layout.len(),
            "an image as it was laid out"
        );
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use undercroft_format::units::DiskLength;

    use super::*;

    /// Writes `disk`, whose data are at `data`, in pieces of at most `piece` bytes.
    fn write(disk: &[u8], data: &[DiskRange], piece: usize) -> io::Result<Vec<u8>> {
        let size = DiskLength::new(disk.len() as u64);
        let layout = Layout::new(size, data.to_vec()).expect("a size");
        let mut file = Vec::new();
        let mut stream = Qcow2Stream::new(&mut file, layout);
        let mut at = 0;
        for range in data {
            stream.zeros(range.start - at)?;
            let bytes = &disk[range.start as usize..range.end as usize];
            bytes
                .chunks(piece)
                .try_for_each(|bytes| stream.data(bytes))?;
            at = range.end;
        }
        stream.zeros(size.get() - at)?;
        stream.finish()?;
        Ok(file)
    }

    #[test]
    fn clusters_follow_the_head_in_order_whatever_the_pieces() {
        let mut disk = vec![0; (1 << 20) + 512];
        let end = disk.len() as u64;
        let data = [
            DiskRange::new(0, 4096),
            DiskRange::new((3 << 16) - 512, (4 << 16) + 512),
            DiskRange::new(end - 512, end),
        ];
        for (number, data) in (1..).zip(&data) {
            disk[data.start as usize..data.end as usize].fill(number);
        }
        let files = [512, 4096, 1 << 20].map(|piece| write(&disk, &data, piece).expect("memory"));
        assert!(files.iter().all(|file| *file == files[0]));
        disk.resize(17 << 16, 0);
        let clusters: Vec<u8> = [0, 2, 3, 4, 16]
            .iter()
            .flat_map(|number: &usize| &disk[number << 16..(number + 1) << 16])
            .copied()
            .collect();
        let head = files[0].len() - clusters.len();
        assert!(files[0][head..] == clusters);
    }

    #[test]
    fn data_without_a_cluster_are_never_left_out() {
        let size = DiskLength::new(1 << 20);
        let layout = Layout::new(size, [DiskRange::new(0, 1)]).expect("a size");
        let mut stream = Qcow2Stream::new(Vec::new(), layout);
        let error = stream.data(&[1; 1 << 17]).expect_err("a cluster lacks");
        assert!(error.to_string().contains("at byte 65536"), "{error}");
    }
}
