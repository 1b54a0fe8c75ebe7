//! What is asked of a device at once: one contiguous run of bytes, in a file and in memory.
//!
//! Only the schedule makes requests, and it keeps the transfer whose buffer the memory belongs to until
//! the request comes back to it. Whoever holds a request may therefore let the kernel, or
//! [`Request::execute`], use the memory, and nobody else does.

use std::io;
use std::sync::Arc;

use super::engine::Direction;
use super::file::BlockFile;

/// A part of a piece, small enough for one request.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The schedule's key of the transfer it is part of.
    pub(super) transfer: usize,
    /// Index of the piece it is part of.
    pub(super) piece: usize,
    /// Where the bytes are.
    pub(super) file: Arc<dyn BlockFile>,
    /// Which way they go.
    pub(super) direction: Direction,
    /// Where in the file.
    pub(super) file_offset: u64,
    /// The memory: `len` bytes inside the transfer's buffer, which the schedule keeps until the request
    /// is completed. No other request of a read covers any of them.
    pub(super) memory: *mut u8,
    /// How many bytes, never zero.
    pub(super) len: usize,
}

// SAFETY: `memory` points into a buffer that the schedule owns until this request is completed, and no
// other thread holds a reference into that part of it meanwhile.
unsafe impl Send for Request {}

impl Request {
    /// Carries the request out by the file's own methods, blocking; gives the bytes moved.
    ///
    /// # Errors
    /// As [`BlockFile::read_at`] and [`BlockFile::write_all_at`].
    pub(super) fn execute(&self) -> io::Result<usize> {
        match self.direction {
            Direction::Read => {
                // SAFETY: `memory` is `len` initialized bytes that live until the request is completed,
                // and this request alone may touch them (see the field).
                let memory = unsafe { std::slice::from_raw_parts_mut(self.memory, self.len) };
                self.file.read_at(memory, self.file_offset)
            }
            Direction::Write => {
                // SAFETY: `memory` is `len` initialized bytes that live until the request is completed,
                // and nobody writes to the buffer of a write in flight.
                let memory = unsafe { std::slice::from_raw_parts(self.memory, self.len) };
                self.file
                    .write_all_at(memory, self.file_offset)
                    .map(|()| self.len)
            }
        }
    }
}
