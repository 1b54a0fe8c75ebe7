//! What can be exported.

use std::io;
use std::sync::Arc;

use undercroft_format::nbd::server::offer::Offer;
use undercroft_format::units::DiskRange;

use crate::disk::ReadDisk;

/// How zeros are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// They need not take room.
    pub may_punch: bool,
}

/// A disk that can be written anywhere, by many threads at once. Every range lies within the disk.
pub trait WriteDisk: ReadDisk {
    /// Writes `bytes` from `offset` on. Seen by all who read from then on; durable with the next
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`StorageFull`](io::ErrorKind::StorageFull) if there is no room: what was there before stays, or part of
    /// what was to be written is there.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes zeros of `range`.
    ///
    /// # Errors
    /// As of [`write_at`](Self::write_at).
    fn write_zeros(&self, range: DiskRange, flags: ZeroFlags) -> io::Result<()>;

    /// `range` is not needed any more; what is read from there is zeros, or what was there.
    ///
    /// # Errors
    /// As of [`write_at`](Self::write_at).
    fn trim(&self, range: DiskRange) -> io::Result<()>;

    /// All that was written before is durable when this returns.
    ///
    /// # Errors
    /// What the system says: then nothing is known of what was written since the last flush.
    fn flush(&self) -> io::Result<()>;
}

/// A disk, to be read or to be written, too.
#[derive(Clone)]
pub enum Disk {
    /// Never changes.
    ReadOnly(Arc<dyn ReadDisk>),
    /// Changes.
    Writable(Arc<dyn WriteDisk>),
}

impl Disk {
    /// As those see it who read.
    pub fn read(&self) -> &dyn ReadDisk {
        match self {
            Self::ReadOnly(disk) => &**disk,
            Self::Writable(disk) => &**disk,
        }
    }

    /// As those see it who write.
    ///
    /// # Errors
    /// If it is not to be written.
    pub fn write(&self) -> io::Result<&dyn WriteDisk> {
        match self {
            Self::ReadOnly(_) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Self::Writable(disk) => Ok(&**disk),
        }
    }
}

/// An export.
pub struct Exported {
    /// Its name; one with an empty name is the default, as is an only one.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
    /// Its bytes.
    pub disk: Disk,
}

impl Exported {
    /// As clients are told.
    pub(super) fn offer(&self) -> Offer {
        Offer {
            name: self.name.clone(),
            description: self.description.clone(),
            size: self.disk.read().size().get(),
            writable: matches!(self.disk, Disk::Writable(_)),
        }
    }
}
