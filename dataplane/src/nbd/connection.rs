//! One connection to an open export: its requests in flight, and the bytes of their replies.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use undercroft_format::nbd::negotiation::{ContextId, Dialect};
use undercroft_format::nbd::transmission::{Event, Failure, Transmission};
use undercroft_format::nbd::wire::{Cookie, Errno};

use super::books::{Books, Request, What};
use super::connect::Opened;
use super::error::NbdError;
use super::status::Status;
use super::transport::Transport;
use crate::clock::Stopwatch;

/// Headers of replies are read along with the payload before them, this much at once.
const STAGING_LEN: usize = 8 << 10;
/// Bytes taken from one connection before the others get their turn.
const TURN_LEN: usize = 4 << 20;
/// Times that a server may fail a request before the range is given up.
const FAILURES_MAX: u32 = 3;
/// How long a server may be silent while it owes an answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The same while it makes durable what it was given.
const FLUSH_MAX: Duration = Duration::from_secs(600);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

pub(super) struct Connection {
    transport: Transport,
    machine: Transmission,
    /// Requests and bytes to be written, to be sent before what the machine has.
    outbox: VecDeque<Vec<u8>>,
    /// Bytes of the first of them that were sent.
    sent: usize,
    /// The context that tells what the books want to know.
    status: Option<ContextId>,
    dialect: Dialect,
    in_flight: HashMap<Cookie, Request>,
    staging: Box<[u8]>,
    /// Bytes of the staging area that are not looked at yet.
    staged: std::ops::Range<usize>,
    heard: Stopwatch,
    /// Whether any request was answered.
    is_of_use: bool,
}

impl Connection {
    pub fn new(opened: Opened, status: Status) -> Self {
        let mut staging = vec![0; STAGING_LEN.max(opened.rest.len())].into_boxed_slice();
        staging[..opened.rest.len()].copy_from_slice(&opened.rest);
        Self {
            transport: opened.transport,
            machine: Transmission::new(&opened.export),
            outbox: VecDeque::new(),
            sent: 0,
            status: status.context(&opened.export),
            dialect: opened.export.dialect,
            in_flight: HashMap::new(),
            staging,
            staged: 0..opened.rest.len(),
            heard: Stopwatch::start(),
            is_of_use: false,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether it can be asked for block status.
    pub fn has_status(&self) -> bool {
        self.status.is_some()
    }

    /// True if it waits for room in the socket.
    pub fn wants_write(&self) -> bool {
        !self.outbox.is_empty() || !self.machine.output().is_empty() || self.transport.wants_write()
    }

    pub fn is_silent(&self) -> bool {
        !self.in_flight.is_empty() && self.heard.elapsed() > self.patience()
    }

    pub fn silence(&self) -> NbdError {
        NbdError::Silent {
            seconds: self.patience().as_secs(),
        }
    }

    fn patience(&self) -> Duration {
        let mut requests = self.in_flight.values();
        match requests.any(|request| matches!(request.what, What::Flush)) {
            true => FLUSH_MAX,
            false => SILENCE_MAX,
        }
    }

    /// Takes a request; [`flush`](Self::flush) sends it.
    pub fn ask(&mut self, mut request: Request) {
        if self.in_flight.is_empty() {
            self.heard = Stopwatch::start();
        }
        let (offset, len) = (request.offset, request.len);
        let cookie = match &mut request.what {
            What::Status => self.machine.block_status(offset, len),
            What::Direct(_) | What::Through { .. } => self.machine.read(offset, len),
            What::Zeroes => self.machine.write_zeroes(offset, len),
            What::Flush => self.machine.flush(),
            What::Write(bytes) => {
                let cookie = self.machine.write(offset, len);
                self.outbox.push_back(self.machine.take_output());
                self.outbox.push_back(std::mem::take(bytes));
                cookie
            }
        };
        self.in_flight.insert(cookie, request);
    }

    /// Sends what the socket has room for.
    pub fn flush(&mut self) -> Result<(), NbdError> {
        while let Some(first) = self.outbox.front() {
            let rest = &first[self.sent..];
            let sent = self.transport.send(rest).map_err(NbdError::Broken)?;
            if sent < rest.len() {
                self.sent += sent;
                return Ok(());
            }
            self.outbox.pop_front();
            self.sent = 0;
        }
        let output = self.machine.output();
        if output.is_empty() && !self.transport.wants_write() {
            return Ok(());
        }
        let sent = self.transport.send(output).map_err(NbdError::Broken)?;
        self.machine.sent(sent);
        Ok(())
    }

    /// Takes in what came; false if nothing did.
    pub fn receive(&mut self, books: &mut Books) -> Result<bool, NbdError> {
        let mut received = 0;
        loop {
            self.digest(books)?;
            if received >= TURN_LEN {
                return Ok(true);
            }
            let read = match self.machine.awaited_payload() {
                Some(payload) => {
                    let request = self.in_flight.get_mut(&payload.cookie);
                    let request = request.expect("the machine knows the same requests");
                    let memory = books.memory(request, payload.at, payload.len);
                    self.transport.read_into(memory, &mut self.staging)
                }
                None => self.transport.read_into(&mut self.staging, &mut []),
            };
            let read = match read {
                Ok(0) => return Err(self.machine.closed().into()),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Ok(received > 0);
                }
                Err(error) => return Err(NbdError::Broken(error)),
            };
            received += read;
            self.heard = Stopwatch::start();
            let payload = self.machine.awaited_payload();
            let in_place = payload.map_or(0, |payload| read.min(payload.len as usize));
            if in_place > 0 {
                self.machine.payload_arrived(in_place as u32);
            }
            self.staged = 0..read - in_place;
        }
    }

    /// Goes through what is staged.
    fn digest(&mut self, books: &mut Books) -> Result<(), NbdError> {
        let mut input = &self.staging[self.staged.clone()];
        while let Some(event) = self.machine.next(&mut input)? {
            let cookie = match &event {
                Event::Data { cookie, .. }
                | Event::Zeros { cookie, .. }
                | Event::Status { cookie, .. }
                | Event::Done { cookie, .. } => *cookie,
            };
            let request = self.in_flight.get_mut(&cookie);
            let request = request.expect("the machine knows the same requests");
            match event {
                Event::Data { at, bytes, .. } => {
                    let len = bytes.len() as u32;
                    books.memory(request, at, len).copy_from_slice(bytes);
                }
                Event::Zeros { at, len, .. } => books.memory(request, at, len).fill(0),
                Event::Status {
                    context, extents, ..
                } => {
                    if self.status == Some(context) {
                        books.know(request, &extents);
                    }
                }
                Event::Done { result, .. } => {
                    self.is_of_use |= result.is_ok();
                    let request = self.in_flight.remove(&cookie).expect("just seen");
                    match result {
                        Ok(()) => books.complete(request, Ok(())),
                        Err(failure) => failed(request, failure, self.dialect, books),
                    }
                }
            }
        }
        self.staged = 0..0;
        Ok(())
    }

    /// What it had in flight, for another connection: each is a break more likely to be at fault if this
    /// connection got nothing done.
    pub fn into_requests(self) -> impl Iterator<Item = Request> {
        let breaks = u32::from(!self.is_of_use);
        let mut requests: Vec<Request> = self.in_flight.into_values().collect();
        requests.sort_by_key(|request| request.offset);
        requests.into_iter().map(move |request| Request {
            breaks: request.breaks + breaks,
            ..request
        })
    }

    /// Says goodbye.
    pub fn close(mut self) {
        self.machine.disconnect();
        let last = self.machine.output().to_vec();
        self.transport.close(&last, GOODBYE);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

/// Asks again what may go better another time, or gives it up.
fn failed(mut request: Request, failure: Failure, dialect: Dialect, books: &mut Books) {
    request.failures += 1;
    let is_final = request.what.changes()
        || match failure.errno {
            // All errors of xapi-nbd that can be seen are of this kind.
            Errno::Invalid => dialect == Dialect::Standard,
            Errno::Perm | Errno::NotSupported | Errno::Overflow => true,
            _ => false,
        };
    if !is_final && request.failures < FAILURES_MAX {
        books.waiting.push_back(request);
        return;
    }
    let error = NbdError::Failed {
        offset: failure.offset.unwrap_or(request.offset),
        len: request.len,
        failure,
    };
    books.complete(request, Err(Arc::new(error)));
}
