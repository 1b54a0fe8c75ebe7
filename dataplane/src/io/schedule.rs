//! Which request goes to the device next, and what its end means for its transfer: no I/O here.
//!
//! Transfers are cut into requests of at most [`REQUEST_LEN_MAX`], sent first in, first out. A transfer
//! becomes [`Done`] only when none of its requests is with the device any more, whatever the outcome:
//! that is what makes it sound to hand its buffer back. Requests that ended short are sent on for the
//! rest, before anything new.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::engine::{
    Direction, Done, Piece, REQUEST_LEN_MAX, Transfer, TransferError, WRITE_REQUEST_LEN_MAX,
};
use super::request::Request;
use super::slab::Slab;

/// Transfers in flight and the requests still to be sent.
pub(super) struct Schedule {
    transfers: Slab<Active>,
    /// Transfers with pieces not wholly sent, oldest first.
    unsent: VecDeque<usize>,
    /// Requests to send again, in part or whole.
    resend: VecDeque<Request>,
    done: VecDeque<Done>,
    /// Requests given out and not completed.
    outstanding: usize,
}

struct Active {
    transfer: Transfer,
    /// The next byte to send is this one of this piece.
    next_piece: usize,
    next_byte: usize,
    /// Requests given out or waiting to be sent again.
    pending: usize,
    error: Option<TransferError>,
}

impl Schedule {
    /// Nothing to do.
    pub(super) fn new() -> Schedule {
        Schedule {
            transfers: Slab::new(),
            unsent: VecDeque::new(),
            resend: VecDeque::new(),
            done: VecDeque::new(),
            outstanding: 0,
        }
    }

    /// Takes a transfer.
    ///
    /// # Panics
    /// If a piece lies outside the buffer, or pieces of a read overlap in it: memory safety rests on this.
    pub(super) fn push(&mut self, transfer: Transfer) {
        assert_pieces_fit(&transfer);
        let key = self.transfers.insert(Active {
            transfer,
            next_piece: 0,
            next_byte: 0,
            pending: 0,
            error: None,
        });
        self.unsent.push_back(key);
        self.skip_empty_pieces(key);
    }

    /// The next request for the device; every one must come back through [`Schedule::complete`] or
    /// [`Schedule::give_back`].
    pub(super) fn next_request(&mut self) -> Option<Request> {
        let request = match self.resend.pop_front() {
            Some(request) => request,
            None => self.cut_request()?,
        };
        self.outstanding += 1;
        Some(request)
    }

    /// Takes back a request that did not reach the device; it is the next one again.
    pub(super) fn give_back(&mut self, request: Request) {
        self.outstanding -= 1;
        self.resend.push_front(request);
    }

    /// The device has let go of `request` after moving some bytes (zero: the file has ended) or failing.
    pub(super) fn complete(&mut self, mut request: Request, result: io::Result<usize>) {
        self.outstanding -= 1;
        let key = request.transfer;
        let error = match result {
            Ok(moved) if moved >= request.len => None,
            Ok(0) => Some(io::Error::from(match request.direction {
                Direction::Read => io::ErrorKind::UnexpectedEof,
                Direction::Write => io::ErrorKind::WriteZero,
            })),
            Ok(moved) => {
                request.file_offset += moved as u64;
                // SAFETY: `moved < len`, so this stays inside the request's part of the buffer.
                request.memory = unsafe { request.memory.add(moved) };
                request.len -= moved;
                self.resend.push_back(request);
                return;
            }
            Err(error) => Some(error),
        };
        let active = self.transfers.get_mut(key);
        active.pending -= 1;
        if let Some(source) = error {
            active.fail(&request, source);
        }
        self.finish_if_idle(key);
    }

    /// A finished transfer, oldest end first.
    pub(super) fn pop_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// Whether a finished transfer is waiting to be taken.
    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Transfers taken and not popped.
    pub(super) fn in_flight(&self) -> usize {
        self.transfers.len() + self.done.len()
    }

    /// Requests with the device.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Gives up whatever is not with the device yet, for a queue that is being dropped.
    pub(super) fn cancel_unsent(&mut self) {
        self.unsent.clear();
        self.resend.clear();
    }

    fn cut_request(&mut self) -> Option<Request> {
        let key = *self.unsent.front()?;
        let active = self.transfers.get_mut(key);
        let piece = &active.transfer.pieces[active.next_piece];
        let len = request_len(piece, active.next_byte, active.transfer.direction);
        let request = Request {
            transfer: key,
            piece: active.next_piece,
            file: Arc::clone(&piece.file),
            direction: active.transfer.direction,
            file_offset: piece.file_offset + active.next_byte as u64,
            memory: active
                .transfer
                .buffer
                .address(piece.buffer_offset + active.next_byte),
            len,
        };
        active.next_byte += len;
        active.pending += 1;
        self.skip_empty_pieces(key);
        Some(request)
    }

    /// Moves a transfer's cursor to its next byte, and out of the unsent ones if there is none.
    fn skip_empty_pieces(&mut self, key: usize) {
        let active = self.transfers.get_mut(key);
        let pieces = &active.transfer.pieces;
        while active.next_piece < pieces.len() && active.next_byte >= pieces[active.next_piece].len
        {
            active.next_piece += 1;
            active.next_byte = 0;
        }
        self.finish_if_idle(key);
    }

    /// Turns a transfer that has nothing more to send and nothing with the device into a `Done`.
    fn finish_if_idle(&mut self, key: usize) {
        let active = self.transfers.get_mut(key);
        let all_sent = active.error.is_some() || active.next_piece == active.transfer.pieces.len();
        if !all_sent {
            return;
        }
        let pending = active.pending;
        if let Some(at) = self.unsent.iter().position(|&other| other == key) {
            self.unsent.remove(at);
        }
        if pending == 0 {
            let Active {
                transfer, error, ..
            } = self.transfers.remove(key);
            self.done.push_back(Done {
                transfer,
                result: error.map_or(Ok(()), Err),
            });
        }
    }
}

impl Active {
    fn fail(&mut self, request: &Request, source: io::Error) {
        self.error.get_or_insert(TransferError {
            direction: request.direction,
            piece: request.piece,
            file_offset: request.file_offset,
            len: request.len,
            source,
        });
    }
}

/// Length of the request that starts at byte `from` of `piece`. An unaligned tail becomes a request of
/// its own, so that the rest can go around the page cache.
fn request_len(piece: &Piece, from: usize, direction: Direction) -> usize {
    let rest = piece.len - from;
    let longest = match direction {
        Direction::Read => REQUEST_LEN_MAX,
        Direction::Write => WRITE_REQUEST_LEN_MAX,
    };
    if rest > longest {
        return longest;
    }
    let alignment = piece.file.os().map_or(1, |file| file.direct_alignment());
    match rest - rest % alignment {
        0 => rest,
        aligned => aligned,
    }
}

fn assert_pieces_fit(transfer: &Transfer) {
    let buffer_len = transfer.buffer.len();
    for piece in &transfer.pieces {
        assert!(
            piece
                .buffer_offset
                .checked_add(piece.len)
                .is_some_and(|end| end <= buffer_len),
            "a piece of {} bytes at {} lies outside its buffer of {buffer_len} bytes",
            piece.len,
            piece.buffer_offset
        );
    }
    if transfer.direction == Direction::Read {
        let mut ranges: Vec<_> = transfer
            .pieces
            .iter()
            .filter(|piece| piece.len > 0)
            .map(|piece| (piece.buffer_offset, piece.buffer_offset + piece.len))
            .collect();
        ranges.sort_unstable();
        assert!(
            ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0),
            "two pieces of a read share bytes of the buffer"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::BufferPool;
    use crate::io::sim::SimStorage;
    use crate::io::storage::Storage;

    fn transfer(token: u64, direction: Direction, lens: &[usize]) -> Transfer {
        let pool = BufferPool::new(lens.iter().sum());
        let file = SimStorage::new()
            .create(&format!("f{token}"), false)
            .expect("new");
        let mut at = 0;
        let pieces = lens
            .iter()
            .map(|&len| {
                let file = Arc::clone(&file);
                let piece = Piece {
                    file,
                    file_offset: at as u64,
                    buffer_offset: at,
                    len,
                };
                at += len;
                piece
            })
            .collect();
        Transfer {
            token,
            direction,
            buffer: pool.acquire(at),
            pieces,
        }
    }

    fn drain(schedule: &mut Schedule) -> Vec<Request> {
        std::iter::from_fn(|| schedule.next_request()).collect()
    }

    #[test]
    fn requests_are_bounded_and_first_in_first_out() {
        let mut schedule = Schedule::new();
        schedule.push(transfer(1, Direction::Read, &[REQUEST_LEN_MAX + 1, 0, 5]));
        schedule.push(transfer(2, Direction::Read, &[7]));
        let lens: Vec<usize> = drain(&mut schedule)
            .iter()
            .map(|request| request.len)
            .collect();
        assert_eq!(lens, [REQUEST_LEN_MAX, 1, 5, 7]);
        assert_eq!((schedule.outstanding(), schedule.in_flight()), (4, 2));
    }

    #[test]
    fn an_empty_transfer_is_done_at_once() {
        let mut schedule = Schedule::new();
        schedule.push(transfer(1, Direction::Read, &[0, 0]));
        schedule.push(transfer(2, Direction::Write, &[]));
        assert!(schedule.next_request().is_none());
        assert!(schedule.pop_done().expect("done").result.is_ok());
        assert_eq!(schedule.pop_done().expect("done").transfer.token, 2);
        assert_eq!(schedule.in_flight(), 0);
    }

    #[test]
    fn a_short_request_is_continued() {
        let mut schedule = Schedule::new();
        schedule.push(transfer(1, Direction::Read, &[1000]));
        let first = schedule.next_request().expect("one");
        let start = first.memory;
        schedule.complete(first, Ok(300));
        let second = schedule.next_request().expect("the rest");
        assert_eq!((second.file_offset, second.len), (300, 700));
        assert_eq!(second.memory as usize - start as usize, 300);
        schedule.complete(second, Ok(700));
        assert!(schedule.pop_done().expect("done").result.is_ok());
    }

    #[test]
    fn the_first_error_is_kept_and_the_buffer_too_until_all_requests_ended() {
        let mut schedule = Schedule::new();
        schedule.push(transfer(
            1,
            Direction::Write,
            &[10, 10, 3 * REQUEST_LEN_MAX],
        ));
        let a = schedule.next_request().expect("piece 0");
        let b = schedule.next_request().expect("piece 1");
        schedule.complete(b, Err(io::Error::from_raw_os_error(28)));
        assert!(!schedule.has_done(), "a request is still with the device");
        assert!(
            schedule.next_request().is_none(),
            "a failed transfer sends nothing more"
        );
        schedule.complete(a, Err(io::Error::from_raw_os_error(5)));
        let error = schedule
            .pop_done()
            .expect("done")
            .result
            .expect_err("it failed");
        assert_eq!((error.piece, error.source.raw_os_error()), (1, Some(28)));
        assert_eq!(error.to_string(), "writing 10 bytes at offset 10 (piece 1)");
    }

    #[test]
    fn an_early_end_of_the_file_is_an_error() {
        let mut schedule = Schedule::new();
        schedule.push(transfer(1, Direction::Read, &[1000]));
        let request = schedule.next_request().expect("one");
        schedule.complete(request, Ok(999));
        let request = schedule.next_request().expect("the rest");
        schedule.complete(request, Ok(0));
        let error = schedule
            .pop_done()
            .expect("done")
            .result
            .expect_err("it ended early");
        assert_eq!(
            (error.file_offset, error.source.kind()),
            (999, io::ErrorKind::UnexpectedEof)
        );
    }

    #[test]
    #[should_panic(expected = "lies outside its buffer")]
    fn a_piece_outside_its_buffer_is_our_bug() {
        let mut transfer = transfer(1, Direction::Write, &[10]);
        transfer.pieces[0].buffer_offset = 1;
        Schedule::new().push(transfer);
    }

    #[test]
    #[should_panic(expected = "share bytes")]
    fn a_read_into_the_same_bytes_twice_is_our_bug() {
        let mut transfer = transfer(1, Direction::Read, &[10, 10]);
        transfer.pieces[1].buffer_offset = 9;
        Schedule::new().push(transfer);
    }
}
