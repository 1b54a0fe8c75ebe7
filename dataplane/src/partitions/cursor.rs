//! A disk for readers that know only `Read` and `Seek`.

use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::sync::Arc;

use crate::disk::ReadDisk;

/// Bytes read at once: readers of file systems ask for a few bytes here and there.
const BUFFER_LEN: u64 = 32 << 10;

/// A disk, and a place on it.
pub struct DiskCursor {
    disk: Arc<dyn ReadDisk>,
    at: u64,
    buffer: Vec<u8>,
    /// Where on the disk the buffer's bytes are from.
    buffer_at: u64,
}

impl DiskCursor {
    /// The start of `disk`.
    pub fn new(disk: Arc<dyn ReadDisk>) -> Self {
        Self {
            disk,
            at: 0,
            buffer: Vec::new(),
            buffer_at: 0,
        }
    }

    fn buffered(&self) -> &[u8] {
        let from = self.at.checked_sub(self.buffer_at).unwrap_or(u64::MAX);
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        self.buffer.get(from..).unwrap_or_default()
    }
}

impl BufRead for DiskCursor {
    /// What lies at a multiple of the buffer's length and holds the place.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let size = self.disk.size().get();
        if self.buffered().is_empty() && self.at < size {
            let start = self.at / BUFFER_LEN * BUFFER_LEN;
            self.buffer.resize(BUFFER_LEN.min(size - start) as usize, 0);
            self.buffer_at = start;
            if let Err(error) = self.disk.read_at(start, &mut self.buffer) {
                self.buffer.clear();
                return Err(error);
            }
        }
        Ok(self.buffered())
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount as u64;
    }
}

impl Read for DiskCursor {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let size = self.disk.size().get();
        let left = size.saturating_sub(self.at).min(out.len() as u64) as usize;
        let at = self.at;
        // What is damaged near the bytes that are asked for is none of their business.
        let read = match self.fill_buf() {
            Ok(buffered) if out.len() as u64 <= BUFFER_LEN => {
                let read = buffered.len().min(left);
                out[..read].copy_from_slice(&buffered[..read]);
                read
            }
            _ => {
                self.disk.read_at(at, &mut out[..left])?;
                left
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for DiskCursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.disk.size().get().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
