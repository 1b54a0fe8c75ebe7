//! A file as a stream, read ahead past the page cache: many reads in flight, their bytes in order.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

use crate::ingest::source::DiskSource;
use crate::io::{Buffer, BufferPool, Direction, Done, Engine, Piece, Queue, Transfer};

/// Bytes of one read.
const SLAB_LEN: usize = 1 << 20;
/// Slabs of memory: what the device works on, what is queued behind it, and the one being taken.
const SLABS: usize = 8;
/// Requests at the device at once: see [`crate::ingest::reader`].
const QUEUE_DEPTH: u32 = 16;
/// Where reads begin and end.
const ALIGNMENT: u64 = 4096;
/// Times that a failed read is tried again.
const RETRIES_MAX: u32 = 2;

/// Reads a file from some place to its end.
pub struct ReadAhead {
    source: DiskSource,
    queue: Box<dyn Queue>,
    pool: Arc<BufferPool>,
    /// Where the next read begins.
    next: u64,
    /// Slabs in order: `None` for those that are being read.
    slabs: VecDeque<Slab>,
    /// Bytes of the first slab that were consumed.
    taken: usize,
}

struct Slab {
    token: u64,
    buffer: Option<Buffer>,
    tries: u32,
}

impl ReadAhead {
    /// From byte `at` of `source` on. The thread that reads has to be the one that makes and drops it.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(source: DiskSource, engine: &dyn Engine, at: u64) -> io::Result<Self> {
        let pool = BufferPool::new(SLABS * SLAB_LEN);
        let start = at - at % ALIGNMENT;
        Ok(Self {
            queue: source.queue(engine, &pool, QUEUE_DEPTH)?,
            source,
            pool,
            next: start,
            slabs: VecDeque::new(),
            taken: (at - start) as usize,
        })
    }

    /// Starts reads until enough are in flight.
    fn start(&mut self) {
        let size = self.source.size().get();
        while self.slabs.len() < SLABS && self.next < size {
            let len = (size - self.next).min(SLAB_LEN as u64) as usize;
            let Some(buffer) = self.pool.try_acquire(len) else {
                return;
            };
            let token = self.next;
            self.slabs.push_back(Slab {
                token,
                buffer: None,
                tries: 0,
            });
            self.queue.submit(Transfer {
                token,
                direction: Direction::Read,
                buffer,
                pieces: vec![Piece {
                    file: self.source.file().clone(),
                    file_offset: self.next,
                    buffer_offset: 0,
                    len,
                }],
            });
            self.next += len as u64;
        }
    }

    /// Takes what is done: only then does the queue send what waits for room at the device.
    fn reap(&mut self) -> io::Result<()> {
        while let Some(done) = self.queue.try_wait() {
            self.done(done)?;
        }
        Ok(())
    }

    /// Waits for one read.
    fn wait(&mut self) -> io::Result<()> {
        let done = self.queue.wait();
        self.done(done.expect("a slab without bytes is in flight"))
    }

    fn done(&mut self, done: Done) -> io::Result<()> {
        let slab = self.slabs.iter_mut();
        let slab = slab
            .into_iter()
            .find(|slab| slab.token == done.transfer.token);
        let slab = slab.expect("every read has its slab");
        match done.result {
            Ok(()) => slab.buffer = Some(done.transfer.buffer),
            Err(error) => {
                slab.tries += 1;
                if slab.tries > RETRIES_MAX || error.source.kind() == io::ErrorKind::UnexpectedEof {
                    return Err(error.source);
                }
                self.queue.submit(done.transfer);
            }
        }
        Ok(())
    }
}

impl BufRead for ReadAhead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let front =
            |slabs: &VecDeque<Slab>| slabs.front()?.buffer.as_ref().map(|buffer| buffer.len());
        if front(&self.slabs).is_some_and(|len| self.taken >= len) {
            self.taken -= front(&self.slabs).unwrap_or(0);
            self.slabs.pop_front();
            self.reap()?;
        }
        self.start();
        while self.slabs.front().is_some_and(|slab| slab.buffer.is_none()) {
            self.wait()?;
        }
        match self.slabs.front() {
            Some(Slab {
                buffer: Some(buffer),
                ..
            }) => Ok(buffer.get(self.taken..).unwrap_or_default()),
            _ => Ok(&[]),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.taken += amount;
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let len = available.len().min(buffer.len());
        buffer[..len].copy_from_slice(&available[..len]);
        self.consume(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::io::{EngineRequest, choose};

    #[test]
    fn all_bytes_come_in_order_from_anywhere_on() {
        for len in [0, 5, 2 * SLAB_LEN, 11 * SLAB_LEN + 777] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
            for engine in [EngineRequest::Posix, EngineRequest::Auto] {
                let engine = choose(engine).unwrap();
                for at in [0, 1, 4095, 4096, SLAB_LEN + 5, len] {
                    let at = at.min(len);
                    let source = DiskSource::open(file.path()).unwrap();
                    let mut input = ReadAhead::new(source, &*engine, at as u64).unwrap();
                    let mut read = Vec::new();
                    input.read_to_end(&mut read).unwrap();
                    assert!(read == bytes[at..], "{len} bytes from {at}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_meanwhile_is_an_error() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![1; 3 * SLAB_LEN]).unwrap();
        let source = DiskSource::open(file.path()).unwrap();
        file.as_file().set_len(SLAB_LEN as u64 + 9).unwrap();
        let engine = choose(EngineRequest::Auto).unwrap();
        let mut input = ReadAhead::new(source, &*engine, 0).unwrap();
        let error = input.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
