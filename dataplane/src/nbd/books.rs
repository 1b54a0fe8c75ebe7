//! What is to be read and where it goes, and what is to be written: transfers, their requests, and what is known of
//! holes.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use undercroft_format::nbd::extents::{KnownRanges, StatusExtent};

use super::error::NbdError;
use super::status::Status;
use crate::io::{Done, Transfer, TransferError};

/// A server that tells of fewer bytes than this at a time ...
const SHORT_ANSWER: u64 = 4096;
/// ... is asked so often, and then no more: one that tells of a byte at a time would be asked for ever.
const SHORT_ANSWERS_MAX: u64 = 10_000;

/// Something to ask a server.
#[derive(Debug)]
pub(super) struct Request {
    pub offset: u64,
    /// In bytes, at least one where there is anything to be read or written.
    pub len: u32,
    pub what: What,
    /// Times that the server failed it.
    pub failures: u32,
    /// Times that a connection broke over it without getting anything done.
    pub breaks: u32,
}

#[derive(Debug)]
pub(super) enum What {
    /// Bytes that go straight into their place.
    Direct(Place),
    /// Whole blocks of which only a part is wanted.
    Through {
        block: Vec<u8>,
        /// Bytes of it before the part, and the part's length.
        skip: usize,
        keep: usize,
        to: Goal,
    },
    /// What is known of a range.
    Status,
    /// Bytes to be written.
    Write(Vec<u8>),
    /// Zeros to be written.
    Zeroes,
    /// What was written becomes durable. Has no length.
    Flush,
}

impl What {
    /// True if the export is another afterwards: such a request is not made twice.
    pub fn changes(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Zeroes | Self::Flush)
    }
}

/// In the buffer of a transfer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    transfer: u64,
    piece: usize,
    at: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    Transfer(Place),
    /// The answer that somebody waits for.
    Answer(u64),
}

struct Active {
    transfer: Transfer,
    pending: usize,
    error: Option<TransferError>,
}

/// The client's books.
pub(super) struct Books {
    pub waiting: VecDeque<Request>,
    transfers: HashMap<u64, Active>,
    done: VecDeque<Done>,
    answers: HashMap<u64, Result<Vec<u8>, Arc<NbdError>>>,
    next_key: u64,
    /// What is asked of ranges.
    status: Status,
    /// Which bytes are of that status, as far as asked.
    pub known: KnownRanges,
    pub status_in_flight: bool,
    /// Answers about status, and how many bytes of the export they told of.
    told: (u64, u64),
    /// The server cannot tell, or failed to: any byte may be.
    pub no_status: bool,
    /// Requests that write and are not over.
    pub writes: usize,
    /// Something was written that may not be durable.
    pub is_unflushed: bool,
    /// The first of those that failed, until somebody is told.
    write_error: Option<Arc<NbdError>>,
}

/// Which requests a server takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub size: u64,
    /// Offsets and lengths are multiples of this, but for the export's end.
    pub align: u64,
    /// Longest request, a multiple of `align`.
    pub request_len: u64,
}

impl Limits {
    /// The whole blocks around `start..end`.
    fn blocks(&self, start: u64, end: u64) -> (u64, u32) {
        let first = start - start % self.align;
        let end = end.next_multiple_of(self.align).min(self.size);
        (first, (end - first) as u32)
    }
}

impl Books {
    pub fn new(status: Status) -> Self {
        Self {
            status,
            waiting: VecDeque::new(),
            transfers: HashMap::new(),
            done: VecDeque::new(),
            answers: HashMap::new(),
            next_key: 0,
            known: KnownRanges::default(),
            status_in_flight: false,
            told: (0, 0),
            no_status: false,
            writes: 0,
            is_unflushed: false,
            write_error: None,
        }
    }

    /// Takes a request that writes.
    pub fn change(&mut self, offset: u64, len: u32, what: What) {
        self.writes += 1;
        self.is_unflushed |= !matches!(what, What::Flush);
        self.waiting.push_back(Request::new(offset, len, what));
    }

    /// Whether all requests that wrote went well.
    pub fn check_writes(&self) -> Result<(), Arc<NbdError>> {
        match &self.write_error {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Transfers submitted and not yet given back.
    pub fn in_flight(&self) -> usize {
        self.transfers.len() + self.done.len()
    }

    pub fn pop_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Takes a transfer and cuts it into requests.
    pub fn submit(&mut self, transfer: Transfer, limits: Limits) {
        let key = self.key();
        let mut pending = 0;
        let mut past_end = None;
        for (piece, part) in transfer.pieces.iter().enumerate() {
            let mut at = part.file_offset;
            let end = at + part.len as u64;
            if end > limits.size {
                past_end = Some(TransferError {
                    direction: transfer.direction,
                    piece,
                    file_offset: limits.size,
                    len: part.len,
                    source: io::ErrorKind::UnexpectedEof.into(),
                });
                break;
            }
            while at < end {
                let place = Place {
                    transfer: key,
                    piece,
                    at: part.buffer_offset + (at - part.file_offset) as usize,
                };
                let mut len = limits.request_len.min(end - at);
                if at + len != limits.size {
                    len -= len % limits.align;
                }
                let request = if at % limits.align == 0 && len > 0 {
                    Request::new(at, len as u32, What::Direct(place))
                } else {
                    let to_edge = limits.align - at % limits.align;
                    len = to_edge.min(end - at);
                    Request::through(limits, at, len, Goal::Transfer(place))
                };
                self.waiting.push_back(request);
                pending += 1;
                at += len;
            }
        }
        let active = Active {
            transfer,
            pending,
            error: past_end,
        };
        if active.error.is_some() {
            self.waiting
                .retain(|request| request.transfer() != Some(key));
        }
        match active.pending == 0 || active.error.is_some() {
            true => self.finish(active),
            false => drop(self.transfers.insert(key, active)),
        }
    }

    /// Asks for bytes that [`take_answer`](Self::take_answer) gives; at most one request's worth.
    pub fn ask(&mut self, offset: u64, len: u64, limits: Limits) -> u64 {
        let key = self.key();
        let request = Request::through(limits, offset, len, Goal::Answer(key));
        self.waiting.push_front(request);
        key
    }

    pub fn take_answer(&mut self, key: u64) -> Option<Result<Vec<u8>, Arc<NbdError>>> {
        self.answers.remove(&key)
    }

    /// Asks what is known behind what is known; before other requests, since reads are planned by it.
    pub fn ask_status(&mut self, len: u32) {
        self.status_in_flight = true;
        let request = Request::new(self.known.end(), len, What::Status);
        self.waiting.push_front(request);
    }

    /// Where `len` bytes of a request belong.
    pub fn memory<'a>(&'a mut self, request: &'a mut Request, at: u32, len: u32) -> &'a mut [u8] {
        let (at, len) = (at as usize, len as usize);
        match &mut request.what {
            What::Direct(place) => {
                let active = self.transfers.get_mut(&place.transfer);
                let active = active.expect("it stays until its requests are over");
                &mut active.transfer.buffer[place.at + at..][..len]
            }
            What::Through { block, .. } => &mut block[at..][..len],
            _ => unreachable!("the machine gives bytes to reads alone"),
        }
    }

    /// Notes what the server knows of ranges.
    pub fn know(&mut self, request: &Request, extents: &[StatusExtent]) {
        if self.known.end() != request.offset {
            return;
        }
        let end = request.offset + u64::from(request.len);
        self.told.0 += 1;
        for extent in extents {
            let len = u64::from(extent.len).min(end - self.known.end());
            self.known.push(len, self.status.is_set(extent.state));
            self.told.1 += len;
        }
        let (answers, bytes) = self.told;
        if answers >= SHORT_ANSWERS_MAX && bytes / answers < SHORT_ANSWER {
            tracing::warn!(
                answers,
                bytes,
                status = ?self.status,
                "the NBD server's answers about block status are too short to be of use"
            );
            self.no_status = true;
        }
    }

    /// A request is over, for better or worse.
    pub fn complete(&mut self, request: Request, result: Result<(), Arc<NbdError>>) {
        match request.what {
            What::Write(_) | What::Zeroes | What::Flush => {
                self.writes -= 1;
                self.is_unflushed &= !(matches!(request.what, What::Flush) && result.is_ok());
                if let Err(error) = result {
                    self.write_error.get_or_insert(error);
                }
            }
            What::Status => {
                self.status_in_flight = false;
                if let Err(error) = result {
                    tracing::warn!(
                        error = &*error as &dyn std::error::Error,
                        status = ?self.status,
                        "block status failed"
                    );
                    self.no_status = true;
                }
            }
            What::Direct(place) => self.arrived(place, request.offset, request.len, result),
            What::Through {
                block,
                skip,
                keep,
                to,
            } => match to {
                Goal::Answer(key) => {
                    let answer = result.map(|()| block[skip..skip + keep].to_vec());
                    self.answers.insert(key, answer);
                }
                Goal::Transfer(place) => {
                    if let Some(active) = self.transfers.get_mut(&place.transfer) {
                        active.transfer.buffer[place.at..][..keep]
                            .copy_from_slice(&block[skip..][..keep]);
                    }
                    self.arrived(place, request.offset, request.len, result);
                }
            },
        }
    }

    fn arrived(&mut self, place: Place, offset: u64, len: u32, result: Result<(), Arc<NbdError>>) {
        let Some(active) = self.transfers.get_mut(&place.transfer) else {
            return;
        };
        active.pending -= 1;
        if let Err(error) = result {
            let file_offset = match &*error {
                NbdError::Failed { offset, .. } => *offset,
                _ => offset,
            };
            active.error.get_or_insert(TransferError {
                direction: active.transfer.direction,
                piece: place.piece,
                file_offset,
                len: len as usize,
                source: io::Error::other(error),
            });
        }
        if active.pending == 0 {
            let active = self.transfers.remove(&place.transfer);
            self.finish(active.expect("just seen"));
        }
    }

    fn finish(&mut self, active: Active) {
        self.done.push_back(Done {
            transfer: active.transfer,
            result: active.error.map_or(Ok(()), Err),
        });
    }

    /// Ends everything that waits with `error`.
    pub fn fail_all(&mut self, error: &Arc<NbdError>) {
        while let Some(request) = self.waiting.pop_front() {
            self.complete(request, Err(error.clone()));
        }
    }

    /// Forgets all transfers; no connection may have requests of them in flight.
    pub fn forget_transfers(&mut self) {
        self.waiting.retain(|request| request.what.changes());
        self.transfers.clear();
        self.done.clear();
        self.status_in_flight = false;
    }
}

impl Request {
    fn new(offset: u64, len: u32, what: What) -> Self {
        Self {
            offset,
            len,
            what,
            failures: 0,
            breaks: 0,
        }
    }

    fn through(limits: Limits, offset: u64, len: u64, to: Goal) -> Self {
        let (first, block_len) = limits.blocks(offset, offset + len);
        let what = What::Through {
            block: vec![0; block_len as usize],
            skip: (offset - first) as usize,
            keep: len as usize,
            to,
        };
        Self::new(first, block_len, what)
    }

    fn transfer(&self) -> Option<u64> {
        match self.what {
            What::Direct(place)
            | What::Through {
                to: Goal::Transfer(place),
                ..
            } => Some(place.transfer),
            _ => None,
        }
    }
}
