//! Disks restored as VHDs.
//!
//! What the file looks like is known before its first byte: which blocks are there follows from the segment maps. The
//! same snapshot gives the same file, whenever and wherever it is restored.

use std::io::{self, Write};

use undercroft_format::ranges::RangeSet;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::units::DiskRange;
use undercroft_format::vhd::footer::timestamp;
use undercroft_format::vhd::header::BlockSize;
use undercroft_format::vhd::layout::{Identity, Layout, UnfitSize, check_size};
use undercroft_format::vhd::uuid::VhdUuid;

use super::RestoreOptions;
use super::data_parts::data_parts;
use super::write::{InOrder, write_zeros};
use crate::repository::Repository;
use crate::repository::diff::diff_disks;
use crate::repository::error::RepositoryError;
use crate::repository::snapshots::StoredSnapshot;

/// Sets the identities of disks apart from whatever else is derived from ids.
const IDENTITY_CONTEXT: &str = "undercroft 2026-11-25 VHD identity of a disk of a snapshot";

/// A disk cannot be laid out as a VHD.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// No VHD is that large.
    #[error(transparent)]
    Unfit(#[from] UnfitSize),
    /// The maps cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Who a disk of a snapshot is as a VHD.
pub fn identity(stored: &StoredSnapshot, disk: &DiskManifest) -> Identity {
    let mut hasher = blake3::Hasher::new_derive_key(IDENTITY_CONTEXT);
    hasher.update(stored.id.as_bytes());
    hasher.update(disk.label.as_bytes());
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    Identity {
        uuid: VhdUuid::derived(bytes),
        timestamp: timestamp(stored.snapshot.created_ms),
    }
}

/// The layout of a whole disk: the blocks that hold data are there.
///
/// # Errors
/// A size that no VHD has; damage, unless it is allowed: what cannot be read is then not there.
pub fn whole(
    repository: &dyn Repository,
    stored: &StoredSnapshot,
    disk: &DiskManifest,
    options: RestoreOptions,
) -> Result<Layout, LayoutError> {
    check_size(disk.size)?;
    let data = data_parts(repository, disk, BlockSize::DEFAULT.bytes(), options)?;
    Ok(Layout::dynamic(disk.size, identity(stored, disk), data)?)
}

/// The layout of what differs between a disk and an older state of it.
///
/// # Errors
/// A size that no VHD has; damage.
pub fn difference(
    repository: &dyn Repository,
    older: (&StoredSnapshot, &DiskManifest),
    newer: (&StoredSnapshot, &DiskManifest),
) -> Result<Layout, LayoutError> {
    check_size(newer.1.size)?;
    let differing = diff_disks(repository.objects(), older.1, newer.1)?;
    let (identity, parent) = (identity(newer.0, newer.1), identity(older.0, older.1));
    Ok(Layout::differencing(
        newer.1.size,
        identity,
        parent,
        differing,
    )?)
}

/// Writes a VHD in order.
pub struct VhdStream<W> {
    stream: W,
    layout: Layout,
    /// Bytes of the disk that were taken.
    at: u64,
    /// Blocks that are complete.
    complete: usize,
    /// Bytes of the file so far.
    written: u64,
}

impl<W: Write + Send> VhdStream<W> {
    /// Of the file that `layout` describes.
    pub fn new(stream: W, layout: Layout) -> Self {
        Self {
            stream,
            layout,
            at: 0,
            complete: 0,
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

    /// The block that the next byte may lie in or before.
    fn block(&self) -> Option<(u32, DiskRange)> {
        let number = *self.layout.present().get(self.complete)?;
        Some((number, BlockSize::DEFAULT.range_of(number.into())))
    }

    /// Takes the next bytes of the disk: `bytes`, or `len` zeros.
    fn take(&mut self, mut bytes: Option<&[u8]>, mut len: u64) -> io::Result<()> {
        if self.written == 0 {
            let head = self.layout.head();
            self.put(&head)?;
        }
        while len > 0 {
            let (number, block) = self
                .block()
                .unwrap_or((0, DiskRange::new(u64::MAX, u64::MAX)));
            let is_inside = self.at >= block.start;
            let now = match is_inside {
                true => len.min(block.end - self.at),
                false => len.min(block.start - self.at),
            };
            let part = bytes.map(|bytes| bytes.split_at(now as usize));
            match (is_inside, part) {
                (false, None) => {}
                (false, Some(_)) => return Err(self.unplaced()),
                (true, part) => {
                    if self.at == block.start {
                        let bitmap = self.layout.bitmap(number);
                        self.put(&bitmap)?;
                    }
                    match part {
                        Some((part, _)) => self.put(part)?,
                        None => self.put_zeros(now)?,
                    }
                }
            }
            bytes = part.map(|(_, rest)| rest);
            self.at += now;
            len -= now;
            if is_inside && self.at == block.end {
                self.complete += 1;
            }
        }
        Ok(())
    }

    fn unplaced(&self) -> io::Error {
        io::Error::other(format!(
            "the disk has data at byte {} where the VHD was laid out without: its map could not be read before",
            self.at
        ))
    }
}

impl<W: Write + Send> InOrder for VhdStream<W> {
    fn wanted(&self) -> Option<RangeSet> {
        self.layout.differing().cloned()
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.take(Some(bytes), bytes.len() as u64)
    }

    fn zeros(&mut self, len: u64) -> io::Result<()> {
        self.take(None, len)
    }

    fn finish(&mut self) -> io::Result<()> {
        // The disk ends before its last block does.
        if let Some((_, block)) = self.block()
            && self.at > block.start
        {
            self.put_zeros(block.end - self.at)?;
        }
        let footer = self.layout.footer();
        self.put(&footer)?;
        assert_eq!(self.written, self.layout.len(), "a VHD as it was laid out");
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use undercroft_format::units::DiskLength;
    use undercroft_format::vhd::image::{Content, Image};

    use super::*;

    const IDENTITY: Identity = Identity {
        uuid: VhdUuid::derived([3; 16]),
        timestamp: 9,
    };

    /// Writes `disk`, whose data are at `data`, in pieces of at most `piece` bytes.
    fn write(
        disk: &[u8],
        data: &[DiskRange],
        piece: usize,
        laid_out: &[DiskRange],
    ) -> io::Result<Vec<u8>> {
        let size = DiskLength::new(disk.len() as u64);
        let layout = Layout::dynamic(size, IDENTITY, laid_out.to_vec()).expect("a size");
        let mut file = Vec::new();
        let mut stream = VhdStream::new(&mut file, layout);
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
    fn a_disk_is_written_alike_whatever_its_pieces() {
        let mut disk = vec![0; (21 << 20) + 1536];
        let end = disk.len() as u64;
        let data = [
            DiskRange::new(0, 4096),
            DiskRange::new((4 << 20) - 512, (6 << 20) + 512),
            DiskRange::new(17 << 20, (17 << 20) + 1),
            DiskRange::new(end - 512, end),
        ];
        for (number, data) in (1..).zip(&data) {
            disk[data.start as usize..data.end as usize].fill(number);
        }
        let files = [512, 4096, 1 << 20, 5 << 20]
            .map(|piece| write(&disk, &data, piece, &data).expect("memory"));
        assert!(files.iter().all(|file| *file == files[0]));
        let file = &files[0];
        let read = &mut |out: &mut [u8], offset: u64| {
            let offset = offset as usize;
            out.copy_from_slice(&file[offset..offset + out.len()]);
            Ok::<_, Infallible>(())
        };
        let image = Image::open(file.len() as u64, read).expect("it is whole");
        let Content::Blocks { table, .. } = &image.content else {
            panic!("blocks");
        };
        assert_eq!(table.len(), 6, "blocks 0, 1, 2, 3, 8 and 10");
        let mut found = vec![0; 22 << 20];
        for number in 0..11 {
            if let Some(block) = table.get(number) {
                let (to, from) = (number as usize * (2 << 20), block.data_offset as usize);
                found[to..to + (2 << 20)].copy_from_slice(&file[from..from + (2 << 20)]);
            }
        }
        assert!(found[..disk.len()] == disk[..]);
        assert!(found[disk.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn data_without_a_block_are_never_left_out() {
        let disk = vec![1; 4 << 20];
        let all = [DiskRange::new(0, 4 << 20)];
        let error =
            write(&disk, &all, 4 << 20, &[DiskRange::new(0, 1)]).expect_err("a block lacks");
        assert!(error.to_string().contains("at byte 2097152"), "{error}");
    }

    #[test]
    fn a_disk_of_zeros_has_no_blocks() {
        let file = write(&vec![0; 3 << 20], &[], 1, &[]).expect("memory");
        assert_eq!(file.len(), 2048 + 512 + 512);
    }
}
