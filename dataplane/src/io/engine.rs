//! The words between stages and whatever drives the disks: transfers go into a queue, and come out done.
//!
//! A [`Transfer`] moves bytes between one buffer and any number of places in files. The queue owns the
//! buffer until it gives the transfer back, so nothing else can touch memory the kernel is working on.
//! Which body serves the trait ([`EngineKind`]) changes speed only, never results.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::buffer::{Buffer, BufferPool};
use super::file::BlockFile;

/// Largest read given to a device at once. Measured on the reference disks: 256 KiB requests, 8 to 16
/// at once, already reach the device's limit; larger ones only make the queue's unit of fairness coarser.
pub const REQUEST_LEN_MAX: usize = 256 * 1024;

/// Largest write given to a device at once. Into blocks that are there, 256 to 512 KiB at 8 to 16 at once
/// reach 3.0 GB/s on the reference disks and 2 MiB ones 2.4; blocks are reserved before
/// ([`super::BlockFile::preallocate`]), because writes that allocate take the file's lock one by one.
pub const WRITE_REQUEST_LEN_MAX: usize = 512 << 10;

/// What drives the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Linux's io_uring.
    Uring,
    /// Threads that call `pread` and `pwrite`.
    Posix,
    /// Requests carried out one by one in the caller's thread.
    Sim,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Uring => "io_uring",
            EngineKind::Posix => "posix",
            EngineKind::Sim => "simulated",
        })
    }
}

/// Which engine a run uses, for its report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineChoice {
    /// The engine in use.
    pub kind: EngineKind,
    /// Why it is not the preferred one; `None` if it is, or was asked for by name.
    pub reason: Option<String>,
}

/// The engine asked for cannot be had here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No ring: not in this kernel, or not permitted (`kernel.io_uring_disabled`, seccomp, old dom0s).
    #[error("setting up an io_uring")]
    Setup {
        /// `ENOSYS`, `EPERM` or `ENOMEM`, mostly.
        #[source]
        source: io::Error,
    },
    /// The kernel would not tell which operations it has: it is older than 5.6.
    #[error("asking the kernel which io_uring operations it has")]
    Probe {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel is too old.
    #[error("io_uring has no operation `{operation}` here")]
    Operation {
        /// The operation's name.
        operation: &'static str,
    },
}

/// A way to drive disks.
pub trait Engine: Send + Sync {
    /// Which engine this is, and why.
    fn choice(&self) -> &EngineChoice;

    /// Makes a queue with at most `depth` requests (at least one) on the device at once, for buffers of
    /// `pool`. Meant to be one per device thread: the thread of the first [`Queue::submit`] must be the
    /// one that waits, and should be the one that drops it.
    ///
    /// # Errors
    /// The system refuses the ring or the threads.
    fn queue(&self, pool: &Arc<BufferPool>, depth: u32) -> io::Result<Box<dyn Queue>>;
}

/// Transfers under way. Dropping a queue waits until the device has let go of every buffer.
pub trait Queue: Send {
    /// Takes a transfer; its first requests are on their way when this returns, if there is room.
    ///
    /// # Panics
    /// If a piece lies outside its buffer, or two pieces of a read share bytes of it.
    fn submit(&mut self, transfer: Transfer);

    /// Waits for the next finished transfer, in any order; `None` if none is in flight.
    fn wait(&mut self) -> Option<Done>;

    /// A finished transfer, if there is one now. Requests that wait for room are sent on the way.
    fn try_wait(&mut self) -> Option<Done>;

    /// Transfers submitted and not yet given back.
    fn in_flight(&self) -> usize;

    /// Most requests on the device at once, as asked for; the number in use adapts below it.
    fn depth(&self) -> u32;
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the files into the buffer.
    Read,
    /// From the buffer into the files.
    Write,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Read => "reading",
            Direction::Write => "writing",
        })
    }
}

/// One place in a file and its place in the buffer.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The file.
    pub file: Arc<dyn BlockFile>,
    /// In bytes from the file's start.
    pub file_offset: u64,
    /// In bytes from the buffer's start.
    pub buffer_offset: usize,
    /// In bytes; zero moves nothing and succeeds.
    pub len: usize,
}

/// Bytes to move between a buffer and files.
///
/// Pieces are carried out in no order. Pieces of a write may share bytes of the buffer, those of a read
/// may not.
#[derive(Debug)]
pub struct Transfer {
    /// The submitter's name for it; the queue only hands it back.
    pub token: u64,
    /// Which way.
    pub direction: Direction,
    /// The memory.
    pub buffer: Buffer,
    /// The places.
    pub pieces: Vec<Piece>,
}

/// A transfer that the device has let go of.
#[derive(Debug)]
pub struct Done {
    /// As submitted, with the buffer filled if it was a successful read.
    pub transfer: Transfer,
    /// After a failure the pieces are in no known state: each may be done, partly done or untouched.
    pub result: Result<(), TransferError>,
}

/// A piece could not be read or written. The first failure of a transfer is the one reported.
#[derive(Debug, thiserror::Error)]
#[error("{direction} {len} bytes at offset {file_offset} (piece {piece})")]
pub struct TransferError {
    /// Which way.
    pub direction: Direction,
    /// Index into the transfer's pieces.
    pub piece: usize,
    /// Where in the file the failing request began; inside the piece, not always its start.
    pub file_offset: u64,
    /// Length of the failing request.
    pub len: usize,
    /// What the system said; [`io::ErrorKind::UnexpectedEof`] if the file ended inside the piece.
    pub source: io::Error,
}
