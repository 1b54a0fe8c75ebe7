//! A file or block device of the operating system, reached through the page cache and around it.
//!
//! Two descriptors may stand for the same file: a buffered one, always, and one with `O_DIRECT` where it
//! was asked for and the file system allows it. A request goes to the direct one exactly if its offset,
//! its length and its memory are aligned, so the unaligned tail of a file needs no care by the caller.
//! The kernel keeps the two coherent: direct reads flush dirty pages first, direct writes drop cached ones.

use std::fs::OpenOptions;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, AtFlags, FallocateFlags, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::file::BlockFile;

/// Permissions of new files: what they hold was somebody's disk.
pub const PRIVATE_FILE: u32 = 0o600;

/// What direct I/O is aligned to where the system does not say (Linux before 6.1): right for every disk
/// with sectors of up to 4 KiB.
const ALIGNMENT_UNKNOWN: usize = 4096;

/// Size of the zero writes that stand in for punching where nothing better is supported.
const ZEROS_LEN: usize = 256 * 1024;

/// An open file or block device.
#[derive(Debug)]
pub struct OsFile {
    path: PathBuf,
    buffered: OwnedFd,
    direct: Option<OwnedFd>,
    alignment: usize,
    block_device: bool,
    /// The file system took `O_DIRECT` at open and then refused a request: only `buffered` from there on.
    direct_refused: AtomicBool,
    sync_failed: AtomicBool,
}

impl OsFile {
    /// Opens an existing file or device for reading; `direct` asks for `O_DIRECT` besides.
    ///
    /// # Errors
    /// What `open(2)` says. That direct I/O is not supported is no error: see [`OsFile::is_direct`].
    pub fn open_read(path: impl AsRef<Path>, direct: bool) -> io::Result<OsFile> {
        OsFile::open(path.as_ref(), OpenOptions::new().read(true), direct)
    }

    /// Opens an existing file or device for reading and writing.
    ///
    /// # Errors
    /// As [`OsFile::open_read`].
    pub fn open_write(path: impl AsRef<Path>, direct: bool) -> io::Result<OsFile> {
        OsFile::open(
            path.as_ref(),
            OpenOptions::new().read(true).write(true),
            direct,
        )
    }

    /// Creates a file for reading and writing, its owner's alone; one that exists already is left alone.
    ///
    /// # Errors
    /// As [`OsFile::open_read`], and [`io::ErrorKind::AlreadyExists`].
    pub fn create_new(path: impl AsRef<Path>, direct: bool) -> io::Result<OsFile> {
        OsFile::open(
            path.as_ref(),
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(PRIVATE_FILE),
            direct,
        )
    }

    /// Where the file was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether aligned requests go around the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some() && !self.direct_refused.load(Ordering::Relaxed)
    }

    /// Whether this is a block device: fixed size, no holes.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// What offset, length and memory of a request must be multiples of to go around the page cache;
    /// 1 if nothing does.
    pub fn direct_alignment(&self) -> usize {
        if self.is_direct() { self.alignment } else { 1 }
    }

    /// The descriptor for a request on `len` bytes of memory at `address`, and whether it is the direct one.
    pub(super) fn fd_for(
        &self,
        address: *const u8,
        len: usize,
        offset: u64,
    ) -> (BorrowedFd<'_>, bool) {
        let mask = self.alignment - 1;
        let aligned = (address as usize | len | offset as usize) & mask == 0;
        match &self.direct {
            Some(direct) if aligned && self.is_direct() => (direct.as_fd(), true),
            _ => (self.buffered.as_fd(), false),
        }
    }

    /// Takes note that a direct request was refused as invalid, so that requests are buffered from now on.
    /// Some network and stacked file systems accept `O_DIRECT` at open only.
    pub(super) fn refuse_direct(&self) {
        self.direct_refused.store(true, Ordering::Relaxed);
    }

    /// Whether the file has no disk behind it (tmpfs, `linux/magic.h`). What is reserved there costs as much
    /// as writing it, and spares the writes no lock.
    fn is_in_memory(&self) -> bool {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        rustix::fs::fstatfs(&self.buffered).is_ok_and(|found| found.f_type as u64 == TMPFS_MAGIC)
    }

    fn open(path: &Path, options: &mut OpenOptions, direct: bool) -> io::Result<OsFile> {
        let file = options.open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        let buffered = OwnedFd::from(file);
        let block_device = metadata.file_type().is_block_device();
        let alignment = direct_alignment_of(&buffered, block_device);
        let direct = if direct && alignment.is_some() {
            options
                .create_new(false)
                .custom_flags(OFlags::DIRECT.bits() as i32);
            open_direct(path, options, &metadata)?
        } else {
            None
        };
        Ok(OsFile {
            path: path.to_owned(),
            buffered,
            direct,
            alignment: alignment.unwrap_or(1),
            block_device,
            direct_refused: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
        })
    }

    /// Runs `request` until it is done: again when interrupted, and buffered when direct is refused.
    fn attempt(
        &self,
        address: *const u8,
        len: usize,
        offset: u64,
        mut request: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let (fd, direct) = self.fd_for(address, len, offset);
            match request(fd) {
                Err(Errno::INTR) => {}
                Err(Errno::INVAL) if direct => self.refuse_direct(),
                other => return Ok(other?),
            }
        }
    }

    fn write_zeros(&self, range: Range<u64>) -> io::Result<()> {
        let zeros = vec![0; ZEROS_LEN];
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROS_LEN as u64);
            self.write_all_at(&zeros[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }
}

impl BlockFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let (rest, at) = (&mut buf[done..], offset + done as u64);
            let (address, len) = (rest.as_ptr(), rest.len());
            match self.attempt(address, len, at, |fd| rustix::io::pread(fd, &mut *rest, at))? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let (rest, at) = (&buf[done..], offset + done as u64);
            match self.attempt(rest.as_ptr(), rest.len(), at, |fd| {
                rustix::io::pwrite(fd, rest, at)
            })? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // Linux marks pages clean when their write-back fails, so that the next call would succeed without
        // them (https://lwn.net/Articles/752063/).
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "an earlier sync of this file failed, its data may be lost",
            ));
        }
        rustix::fs::fdatasync(&self.buffered).map_err(|errno| {
            self.sync_failed.store(true, Ordering::Release);
            errno.into()
        })
    }

    fn len(&self) -> io::Result<u64> {
        if self.block_device {
            return Ok(rustix::fs::seek(&self.buffered, SeekFrom::End(0))?);
        }
        Ok(rustix::fs::fstat(&self.buffered)?.st_size as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.buffered, len)?)
    }

    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || self.block_device || self.is_in_memory() {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.buffered, FallocateFlags::KEEP_SIZE, offset, len) {
            Err(errno) if is_unsupported(errno) => Ok(()),
            other => Ok(other?),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        // Never past the end: writing zeros there would grow the file, and a device refuses.
        let range = offset..offset.saturating_add(len).min(self.len()?);
        if range.is_empty() {
            return Ok(());
        }
        // On devices these two are what BLKDISCARD-with-zeroes and BLKZEROOUT do (block/fops.c,
        // `blkdev_fallocate`); sectors cut in half are refused as invalid and left to the last resort.
        let attempts: &[FallocateFlags] = if self.block_device {
            &[FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE]
        } else {
            &[FallocateFlags::PUNCH_HOLE]
        };
        for &flags in attempts {
            let flags = flags | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&self.buffered, flags, range.start, range.end - range.start)
            {
                Err(errno) if is_unsupported(errno) || errno == Errno::INVAL => {}
                other => return Ok(other?),
            }
        }
        self.write_zeros(range)
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        let rest = offset..end.min(self.len()?);
        if rest.is_empty() {
            return Ok(None);
        }
        if self.block_device {
            return Ok(Some(rest));
        }
        let data = match rustix::fs::seek(&self.buffered, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(None),
            Err(errno) if is_unsupported(errno) || errno == Errno::INVAL => return Ok(Some(rest)),
            Err(errno) => return Err(errno.into()),
        };
        if data >= rest.end {
            return Ok(None);
        }
        let hole = rustix::fs::seek(&self.buffered, SeekFrom::Hole(data))?;
        Ok(Some(data.max(offset)..hole.min(rest.end)))
    }

    fn advise_dont_need(&self) {
        let whole_file: Option<NonZeroU64> = None;
        let _ = rustix::fs::fadvise(&self.buffered, 0, whole_file, Advice::DontNeed);
    }

    fn os(&self) -> Option<&OsFile> {
        Some(self)
    }
}

/// Opens the direct twin of a file already open; `None` if the file system does not do that.
fn open_direct(
    path: &Path,
    options: &OpenOptions,
    expected: &std::fs::Metadata,
) -> io::Result<Option<OwnedFd>> {
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error)
            if Errno::from_io_error(&error)
                .is_some_and(|e| is_unsupported(e) || e == Errno::INVAL) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let actual = file.metadata()?;
    if (actual.dev(), actual.ino()) != (expected.dev(), expected.ino()) {
        return Err(io::Error::other(
            "the file was replaced while it was being opened",
        ));
    }
    Ok(Some(file.into()))
}

/// What direct requests on `fd` must be aligned to; `None` if they are not possible.
fn direct_alignment_of(fd: &OwnedFd, block_device: bool) -> Option<usize> {
    if let Ok(statx) = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && StatxFlags::from_bits_retain(statx.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        let alignment = statx.stx_dio_mem_align.max(statx.stx_dio_offset_align) as usize;
        return alignment.is_power_of_two().then_some(alignment);
    }
    let sector = block_device
        .then(|| rustix::fs::ioctl_blksszget(fd).ok())
        .flatten();
    Some(sector.map_or(ALIGNMENT_UNKNOWN, |bytes| bytes as usize))
        .filter(|bytes| bytes.is_power_of_two())
}

fn is_unsupported(errno: Errno) -> bool {
    // ENOTSUP is EOPNOTSUPP on Linux.
    errno == Errno::OPNOTSUPP || errno == Errno::NOSYS || errno == Errno::NODEV
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::BufferPool;
    use std::fs;

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").expect("/var/tmp is writable")
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251 + 1) as u8).collect()
    }

    #[test]
    fn direct_read_across_an_unaligned_end_is_short() {
        let dir = scratch();
        let path = dir.path().join("odd");
        let bytes = pattern(3 * 4096 + 777);
        fs::write(&path, &bytes).expect("scratch is writable");
        let file = OsFile::open_read(&path, true).expect("it exists");
        let mut buffer = BufferPool::new(1 << 20).acquire(64 * 1024);
        assert_eq!(file.read_at(&mut buffer, 0).expect("readable"), bytes.len());
        assert_eq!(&buffer[..bytes.len()], &bytes[..]);
        assert_eq!(
            file.read_at(&mut buffer[..8192], 3 * 4096)
                .expect("readable"),
            777
        );
        assert_eq!(&buffer[..777], &bytes[3 * 4096..]);
        assert_eq!(
            file.read_at(&mut buffer, 1 << 20)
                .expect("past the end is empty"),
            0
        );
        assert!(file.is_direct(), "this machine's /var/tmp does direct I/O");
    }

    #[test]
    fn unaligned_writes_meet_aligned_ones() {
        let dir = scratch();
        let file = OsFile::create_new(dir.path().join("f"), true).expect("new");
        let bytes = pattern(128 * 1024 + 5);
        let mut buffer = BufferPool::new(1 << 20).acquire(bytes.len());
        buffer.copy_from_slice(&bytes);
        file.write_all_at(&buffer[..64 * 1024], 0).expect("aligned");
        file.write_all_at(&buffer[64 * 1024..], 64 * 1024)
            .expect("unaligned length");
        file.write_all_at(&buffer[1..100], 1)
            .expect("unaligned all over");
        file.sync().expect("durable");
        assert_eq!(file.len().expect("known"), bytes.len() as u64);
        buffer.fill(0);
        assert_eq!(file.read_at(&mut buffer, 0).expect("readable"), bytes.len());
        assert_eq!(&buffer[..], &bytes[..]);
    }

    #[test]
    fn a_refused_direct_descriptor_is_left_alone() {
        let dir = scratch();
        let file = OsFile::create_new(dir.path().join("f"), true).expect("new");
        assert!(file.direct_alignment() >= 512);
        file.refuse_direct();
        assert!(!file.is_direct());
        assert_eq!(file.direct_alignment(), 1);
        file.write_all_at(&[1; 4096], 0).expect("buffered");
    }

    #[test]
    fn create_new_leaves_an_existing_file_alone() {
        let dir = scratch();
        fs::write(dir.path().join("f"), b"old").expect("scratch is writable");
        let error = OsFile::create_new(dir.path().join("f"), false).expect_err("it exists");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let error = OsFile::open_read(dir.path(), false).expect_err("a directory");
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn data_ranges_of_a_sparse_file_are_found() {
        let dir = scratch();
        let file = OsFile::create_new(dir.path().join("sparse"), false).expect("new");
        file.set_len(16 << 20).expect("sparse");
        file.write_all_at(&[1; 65536], 1 << 20).expect("data");
        file.write_all_at(&[2; 65536], 8 << 20).expect("data");
        let first = 1 << 20..(1 << 20) + 65536;
        let second = 8 << 20..(8 << 20) + 65536;
        let next = |offset, end| file.next_data(offset, end).expect("seekable");
        assert_eq!(next(0, u64::MAX), Some(first.clone()));
        assert_eq!(
            next(first.start + 100, u64::MAX),
            Some(first.start + 100..first.end)
        );
        assert_eq!(next(first.end, u64::MAX), Some(second.clone()));
        assert_eq!(next(first.end, second.start), None);
        assert_eq!(
            next(first.end, second.start + 10),
            Some(second.start..second.start + 10)
        );
        assert_eq!(next(second.end, u64::MAX), None);
        assert_eq!(next(1 << 30, u64::MAX), None);
    }

    #[test]
    fn a_punched_range_reads_as_zero_and_is_a_hole() {
        let dir = scratch();
        let file = OsFile::create_new(dir.path().join("f"), false).expect("new");
        file.write_all_at(&[9; 1 << 20], 0).expect("data");
        file.punch(100, 500_000).expect("punched");
        file.punch(900_000, 1 << 30).expect("punched to the end");
        assert_eq!(file.len().expect("known"), 1 << 20);
        let mut bytes = vec![1; 1 << 20];
        file.read_at(&mut bytes, 0).expect("readable");
        for (at, &byte) in bytes.iter().enumerate() {
            let punched = (100..500_100).contains(&at) || at >= 900_000;
            assert_eq!(byte, if punched { 0 } else { 9 }, "byte {at}");
        }
        assert_eq!(
            file.next_data(4096, 1 << 20)
                .expect("seekable")
                .expect("data")
                .start,
            499_712
        );
    }

    #[test]
    fn a_failed_sync_stays_failed() {
        // A character device cannot be synced: the nearest thing to a failing disk at hand.
        let file = OsFile::open_write("/dev/full", false).expect("every Linux has it");
        let error = file.sync().expect_err("not a disk");
        assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
        let error = file.sync().expect_err("never retried");
        assert_eq!(error.raw_os_error(), None);
    }

    #[test]
    fn preallocation_keeps_the_size() {
        let dir = scratch();
        let file = OsFile::create_new(dir.path().join("f"), false).expect("new");
        file.preallocate(0, 1 << 20).expect("there is room");
        file.preallocate(0, 0).expect("nothing to do");
        file.advise_dont_need();
        assert_eq!(file.len().expect("known"), 0);
    }
}
