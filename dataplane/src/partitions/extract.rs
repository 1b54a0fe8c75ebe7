//! A disk, or a partition, as a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use undercroft_format::units::DiskRange;

use crate::disk::ReadDisk;
use crate::progress::Progress;

/// Bytes read at once.
const PIECE_LEN: u64 = 1 << 20;
/// Bytes of disk whose holes are asked for at once.
const WINDOW_LEN: u64 = 1 << 30;
const PARTS_MAX: usize = 1024;

/// Writes all of `disk` to `file`, which is new, leaving holes; how many bytes were read.
///
/// # Errors
/// Those of reading and of writing; [`Interrupted`](io::ErrorKind::Interrupted) if `progress` says to stop.
pub fn extract(disk: &dyn ReadDisk, file: &File, progress: &Progress) -> io::Result<u64> {
    let size = disk.size().get();
    file.set_len(size)?;
    let mut buffer = vec![0; PIECE_LEN as usize];
    let (mut at, mut read) = (0, 0);
    while at < size {
        let window = DiskRange::new(at, size.min(at.saturating_add(WINDOW_LEN)));
        let parts = disk.allocation(window, PARTS_MAX)?;
        let Some(last) = parts.last() else {
            return Err(io::Error::other("a disk does not say what is there"));
        };
        at = last.range.end;
        for part in parts.iter().filter(|part| part.is_data) {
            let mut from = part.range.start;
            while from < part.range.end {
                if progress.is_stopping() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let piece = &mut buffer[..(part.range.end - from).min(PIECE_LEN) as usize];
                disk.read_at(from, piece)?;
                file.write_all_at(piece, from)?;
                from += piece.len() as u64;
                read += piece.len() as u64;
            }
        }
    }
    Ok(read)
}
