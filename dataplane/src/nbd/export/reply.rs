//! Replies as they go out: messages, and bytes of disks in buffers that are used again.
//!
//! A buffer of some size costs as much to get from the system as to fill: it is kept for the next read.

use std::io::IoSlice;
use std::sync::Arc;

use parking_lot::Mutex;

/// Buffers that are kept, and the longest of them, in bytes.
const KEPT_MAX: usize = 48;
const KEPT_LEN_MAX: usize = 1 << 20;

/// Buffers between two uses.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer for bytes of a disk, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// One of `len` bytes, with anything in it.
    pub fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let kept = self.0.lock().pop();
        let mut bytes = kept.unwrap_or_default();
        if bytes.len() < len {
            // Zeroed by the system, where growing would do it by hand.
            bytes = vec![0; len];
        }
        Buffer {
            bytes,
            len,
            home: self.clone(),
        }
    }
}

impl Buffer {
    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = self.home.0.lock();
        if kept.len() < KEPT_MAX && self.bytes.len() <= KEPT_LEN_MAX {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// A part of a reply.
#[derive(Debug)]
enum Piece {
    Message(Vec<u8>),
    Disk(Buffer),
}

/// A reply.
#[derive(Debug, Default)]
pub(super) struct Reply(Vec<Piece>);

impl Reply {
    /// One without bytes in buffers.
    pub fn new(message: Vec<u8>) -> Self {
        Self(vec![Piece::Message(message)])
    }

    /// Where to append a message.
    pub fn message(&mut self) -> &mut Vec<u8> {
        if !matches!(self.0.last(), Some(Piece::Message(_))) {
            self.0.push(Piece::Message(Vec::new()));
        }
        match self.0.last_mut() {
            Some(Piece::Message(message)) => message,
            _ => unreachable!("one was added"),
        }
    }

    /// Appends bytes of a disk.
    pub fn add(&mut self, buffer: Buffer) {
        self.0.push(Piece::Disk(buffer));
    }

    /// Its bytes, in order.
    pub fn slices(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.0.iter().map(|piece| {
            IoSlice::new(match piece {
                Piece::Message(message) => message,
                Piece::Disk(buffer) => &buffer.bytes[..buffer.len],
            })
        })
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.slices().map(|slice| slice.len()).sum()
    }
}
