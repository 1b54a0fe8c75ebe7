//! One place bytes are kept: a disk image, a block device, a pack, or a simulation of one.
//!
//! All positions are in bytes. A file has no cursor, so any number of threads may use one at once; what
//! they write to the same bytes at the same time is in no order.

use std::fmt::Debug;
use std::io;
use std::ops::Range;

use super::os_file::OsFile;

/// Reads, writes and makes durable one file or block device.
#[expect(
    clippy::len_without_is_empty,
    reason = "asking costs a system call and may fail"
)]
pub trait BlockFile: Send + Sync + Debug {
    /// Fills `buf` from `offset`; returns how many bytes there were, fewer than asked only at the end of
    /// the file.
    ///
    /// # Errors
    /// What the system says; an interrupted call is repeated, not reported.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`, growing a regular file as needed. Durable only after
    /// [`BlockFile::sync`].
    ///
    /// # Errors
    /// What the system says; some of the bytes may have been written.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written before the call durable, the file's length included, its name not
    /// (see [`super::Storage::sync_dir`]).
    ///
    /// # Errors
    /// A failure is final: the system may have dropped the bytes, so a second call must not be taken for
    /// success, and [`OsFile`] keeps failing.
    fn sync(&self) -> io::Result<()>;

    /// Size in bytes, of a regular file or of a device.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or extends a regular file to `len` bytes; new bytes read as zero.
    ///
    /// # Errors
    /// What the system says; devices have a fixed size.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves room for `len` bytes at `offset` without changing the file's size; they read as before.
    /// Where the file system cannot, nothing happens.
    ///
    /// # Errors
    /// No room, above all.
    fn preallocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes `len` bytes at `offset` read as zero, releasing their room where possible. The file's size
    /// stays.
    ///
    /// # Errors
    /// What the system says.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The first range at or after `offset` and before `end` that may hold other bytes than zero; what
    /// lies between `offset` and its start is a hole. `None` if only holes follow.
    ///
    /// Where holes cannot be told, on devices for one, all that is left counts as data.
    ///
    /// # Errors
    /// What the system says.
    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>>;

    /// Tells the system that what it caches of this file will not be needed again. A hint; cannot fail.
    fn advise_dont_need(&self);

    /// The operating system's file behind this one, for engines that go around these methods; `None` for
    /// simulated files.
    fn os(&self) -> Option<&OsFile> {
        None
    }
}
