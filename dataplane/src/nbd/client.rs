//! All connections to an export: which request goes where, and what becomes of broken connections.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use undercroft_format::nbd::extents::KnownRanges;
use undercroft_format::nbd::negotiation::{Dialect, Export};
use undercroft_format::nbd::wire::TransmissionFlags;

use super::books::{Books, Limits, What};
use super::connect::Endpoint;
use super::connection::Connection;
use super::error::NbdError;
use super::source::NbdOptions;
use crate::clock::Stopwatch;
use crate::io::{Done, Transfer};

/// Bytes asked for at once: a quarter of it costs a fifth more system time on both sides.
const REQUEST_LEN: u64 = 1 << 20;
/// Requests in flight on a connection: 8 MiB cover 60 ms at 1 Gbit/s and 6 ms at 10.
const DEPTH: usize = 8;
/// Connections where a server allows several.
const CONNECTIONS: usize = 4;
/// xapi-nbd carries out one request at a time and opens a device per connection: larger requests, and few
/// of the 16 connections that a host has for all its clients.
const XAPI_REQUEST_LEN: u64 = 1 << 20;
const XAPI_CONNECTIONS: usize = 2;
/// What xapi-nbd's devices take at least, whatever their sectors.
const XAPI_ALIGN: u64 = 4096;
/// Bytes made zero at once: some servers do it in one go, and nobody wants to wait for that.
const ZEROES_LEN: u64 = 64 << 20;
/// Bytes whose status is asked for at once.
const STATUS_LEN: u64 = 1 << 30;
/// Status is asked for ahead when less than this is known ahead ...
const STATUS_AHEAD: u64 = 256 << 20;
/// ... and not too much is kept already.
const STATUS_RANGES: usize = 1 << 16;
/// Waits before tries to connect again, in milliseconds: servers restart, hosts unplug devices.
const RECONNECT_MS: [u64; 8] = [100, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000];
/// Connections that may break over one request without getting anything done.
const BREAKS_MAX: u32 = 4;
/// The longest wait without a look at the wish to stop.
const WAIT_MS: u64 = 200;

pub(super) struct Client {
    endpoint: Endpoint,
    export: Export,
    options: NbdOptions,
    limits: Limits,
    /// Requests in flight per connection.
    depth: usize,
    /// Connections to have while reading.
    wanted: usize,
    connections: Vec<Connection>,
    books: Books,
    /// What ended everything.
    dead: Option<Arc<NbdError>>,
}

impl Client {
    /// Opens the export on a first connection.
    pub fn open(endpoint: Endpoint, options: NbdOptions) -> Result<Self, NbdError> {
        let (opened, status) = (endpoint.open()?, endpoint.status());
        let export = opened.export.clone();
        let is_xapi = export.dialect == Dialect::Xapi;
        let (request_len, depth, connections, align) = match is_xapi {
            true => (XAPI_REQUEST_LEN, 1, XAPI_CONNECTIONS, XAPI_ALIGN),
            false if export.flags.can_multi_conn() => (REQUEST_LEN, DEPTH, CONNECTIONS, 1),
            false => (REQUEST_LEN, DEPTH, 1, 1),
        };
        let sizes = export.block_sizes;
        let align = align.max(sizes.minimum.into());
        let longest = u64::from(sizes.maximum) / align * align;
        let limits = Limits {
            size: export.size,
            align,
            request_len: request_len
                .max(sizes.preferred.into())
                .next_multiple_of(align)
                .min(longest)
                .max(align),
        };
        tracing::info!(
            size = export.size,
            ?sizes,
            dialect = ?export.dialect,
            structured = export.structured,
            ?status,
            has_status = status.context(&export).is_some(),
            multi_conn = export.flags.can_multi_conn(),
            "NBD export opened"
        );
        let asked = endpoint.uri().connections.map(usize::from);
        Ok(Self {
            limits,
            depth,
            wanted: asked.unwrap_or(connections),
            connections: vec![Connection::new(opened, status)],
            books: Books::new(status),
            dead: None,
            endpoint,
            export,
            options,
        })
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn export(&self) -> &Export {
        &self.export
    }

    pub fn submit(&mut self, transfer: Transfer) {
        self.books.submit(transfer, self.limits);
        if let Some(error) = self.dead.clone() {
            self.books.fail_all(&error);
            return;
        }
        // Requests go out while the caller plans the next ones.
        self.turn(false);
    }

    /// The next finished transfer, waiting for it if need be; `None` if none is in flight.
    pub fn wait(&mut self, may_wait: bool) -> Option<Done> {
        while !self.books.has_done() && self.books.in_flight() > 0 {
            let moved = self.turn(may_wait);
            if !may_wait && !moved {
                break;
            }
        }
        self.books.pop_done()
    }

    pub fn in_flight(&self) -> usize {
        self.books.in_flight()
    }

    pub fn depth(&self) -> u32 {
        (self.depth * self.wanted) as u32
    }

    /// Opens the connections that reading deserves, one after the other: a XenServer host cannot open one
    /// disk twice at the same moment.
    pub fn grow(&mut self) {
        while self.connections.len() < self.wanted {
            match self.connect() {
                Ok(connection) => self.connections.push(connection),
                Err(error) => {
                    if !self.connections.is_empty() {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "going on with fewer connections"
                        );
                        self.wanted = self.connections.len();
                    }
                    return;
                }
            }
        }
    }

    /// Gives up all transfers in flight.
    pub fn abandon(&mut self) {
        if self.books.in_flight() == 0 {
            return;
        }
        self.connections
            .retain(|connection| connection.in_flight() == 0);
        self.books.forget_transfers();
    }

    /// Reads `len` bytes at `offset`, which lie inside the export.
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), Arc<NbdError>> {
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            // The blocks around it are asked for: no more than one request's worth.
            let most = self.limits.request_len - at % self.limits.align;
            let len = most.min(rest.len() as u64) as usize;
            let (part, behind) = rest.split_at_mut(len);
            let key = self.books.ask(at, part.len() as u64, self.limits);
            let answer = loop {
                if let Some(answer) = self.books.take_answer(key) {
                    break answer?;
                }
                self.turn(true);
            };
            part.copy_from_slice(&answer);
            at += len as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`, inside the export: they are on their way when this returns.
    ///
    /// # Errors
    /// That an earlier write failed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Arc<NbdError>> {
        let align = self.limits.align;
        let mut at = 0;
        while at < bytes.len() {
            let from = offset + at as u64;
            let most = self.limits.request_len.min((bytes.len() - at) as u64);
            let len = match from % align {
                // Whole blocks, as far as there are any.
                0 if most >= align => most - most % align,
                over => most.min(align - over),
            } as usize;
            self.write_part(from, &bytes[at..at + len])?;
            at += len;
        }
        self.drain(self.writes_max())
    }

    /// Makes `len` bytes at `offset`, inside the export, zero: as [`write`](Self::write).
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<(), Arc<NbdError>> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let align = self.limits.align;
        let is_known = self
            .export
            .flags
            .contains(TransmissionFlags::SEND_WRITE_ZEROES);
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let left = end - at;
            let step = if is_known && at.is_multiple_of(align) && left >= align {
                let whole = left.min(ZEROES_LEN) / align * align;
                self.books.change(at, whole as u32, What::Zeroes);
                whole
            } else {
                let step = match at % align {
                    0 => left.min(ZEROS.len() as u64),
                    over => left.min(align - over),
                };
                self.write(at, &ZEROS[..step as usize])?;
                step
            };
            at += step;
            self.drain(self.writes_max())?;
        }
        Ok(())
    }

    /// Waits until all was written, and makes it durable if the server can.
    pub fn sync(&mut self) -> Result<(), Arc<NbdError>> {
        self.drain(0)?;
        if self.books.is_unflushed && self.export.flags.contains(TransmissionFlags::SEND_FLUSH) {
            self.books.change(0, 0, What::Flush);
            self.drain(0)?;
        }
        Ok(())
    }

    /// One request's worth, in the blocks that the server takes.
    fn write_part(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Arc<NbdError>> {
        let (align, len) = (self.limits.align, bytes.len() as u64);
        if offset.is_multiple_of(align) && len.is_multiple_of(align) {
            self.books
                .change(offset, len as u32, What::Write(bytes.to_vec()));
            return Ok(());
        }
        // The rest of the block stays as it is, and as those before left it.
        self.drain(0)?;
        let first = offset - offset % align;
        let end = (offset + len).next_multiple_of(align).min(self.export.size);
        let mut block = vec![0; (end - first) as usize];
        self.read(first, &mut block)?;
        block[(offset - first) as usize..][..bytes.len()].copy_from_slice(bytes);
        self.books
            .change(first, block.len() as u32, What::Write(block));
        self.drain(0)
    }

    fn writes_max(&self) -> usize {
        2 * self.depth * self.connections.len().max(1)
    }

    /// Waits until no more than `most` requests that write are under way.
    fn drain(&mut self, most: usize) -> Result<(), Arc<NbdError>> {
        loop {
            if let Some(error) = &self.dead {
                return Err(error.clone());
            }
            self.books.check_writes()?;
            if self.books.writes <= most {
                // What waits is sent as far as there is room.
                self.turn(false);
                return self.books.check_writes();
            }
            self.turn(true);
        }
    }

    /// Whether the server tells what it was to be asked for; until it is asked, it seems so.
    pub fn has_status(&self) -> bool {
        !self.books.no_status && self.endpoint.status().context(&self.export).is_some()
    }

    /// The first range at or after `offset` that may be of the status that is asked for: any, if there is
    /// none.
    pub fn next_known(
        &mut self,
        offset: u64,
        end: u64,
    ) -> Result<Option<Range<u64>>, Arc<NbdError>> {
        loop {
            if let Some(error) = &self.dead {
                return Err(error.clone());
            }
            if offset >= end {
                return Ok(None);
            }
            if !self.has_status() {
                return Ok(Some(offset..end));
            }
            let known = &mut self.books.known;
            if !(known.start()..=known.end()).contains(&offset) {
                *known = KnownRanges::beginning_at(offset);
            }
            known.forget_before(offset);
            let found = known.next_set(offset);
            let is_known_to_end = known.end() >= end;
            self.ask_ahead(offset);
            match found {
                Some((start, _)) if start >= end => return Ok(None),
                Some((start, stop)) => return Ok(Some(start..stop.min(end))),
                None if is_known_to_end => return Ok(None),
                None => self.turn(true),
            };
        }
    }

    /// Forgets the status of all ranges.
    pub fn forget_known(&mut self) {
        while self.books.status_in_flight && self.dead.is_none() {
            self.turn(true);
        }
        self.books.known = KnownRanges::default();
    }

    fn ask_ahead(&mut self, offset: u64) {
        let known = &self.books.known;
        let end = known.end();
        let is_ahead = end >= offset + STATUS_AHEAD || known.ranges() >= STATUS_RANGES;
        let is_needed = known.next_set(offset).is_none();
        if self.books.status_in_flight || end >= self.export.size || (is_ahead && !is_needed) {
            return;
        }
        let len = STATUS_LEN.min(self.export.size - end);
        self.books.ask_status(len as u32);
    }

    /// Sends what can be sent and takes in what came; waits for something if asked to. True if anything
    /// moved.
    fn turn(&mut self, may_wait: bool) -> bool {
        if self.dead.is_some() {
            return false;
        }
        match self.step(may_wait) {
            Ok(moved) => moved,
            Err(error) => {
                let error = Arc::new(error);
                for connection in std::mem::take(&mut self.connections) {
                    self.books.waiting.extend(connection.into_requests());
                }
                self.books.fail_all(&error);
                self.dead = Some(error);
                true
            }
        }
    }

    fn step(&mut self, may_wait: bool) -> Result<bool, NbdError> {
        self.revive()?;
        self.hand_out()?;
        let mut moved = false;
        let mut place = 0;
        while place < self.connections.len() {
            let connection = &mut self.connections[place];
            let result = match connection.is_silent() {
                true => Err(connection.silence()),
                false => connection.receive(&mut self.books),
            };
            match result {
                Ok(some) => {
                    moved |= some;
                    place += 1;
                }
                Err(error) => {
                    self.lose(place, error)?;
                    moved = true;
                }
            }
        }
        if moved {
            self.hand_out()?;
        } else if may_wait {
            self.wait_for_sockets()?;
        }
        Ok(moved)
    }

    /// Gives waiting requests to the connections with the least in flight.
    fn hand_out(&mut self) -> Result<(), NbdError> {
        while let Some(request) = self.books.waiting.front() {
            let is_status = matches!(request.what, What::Status);
            let free = self
                .connections
                .iter_mut()
                .filter(|connection| !is_status || connection.has_status())
                // Status is small, and reads are planned by it.
                .filter(|connection| is_status || connection.in_flight() < self.depth)
                .min_by_key(|connection| connection.in_flight());
            let Some(connection) = free else {
                if is_status && !self.connections.is_empty() {
                    // The connection that could is gone, and its successor cannot.
                    self.books.waiting.pop_front();
                    (self.books.no_status, self.books.status_in_flight) = (true, false);
                    continue;
                }
                break;
            };
            let request = self.books.waiting.pop_front().expect("just seen");
            connection.ask(request);
        }
        let mut place = 0;
        while place < self.connections.len() {
            match self.connections[place].flush() {
                Ok(()) => place += 1,
                Err(error) => self.lose(place, error)?,
            }
        }
        Ok(())
    }

    fn wait_for_sockets(&mut self) -> Result<(), NbdError> {
        let mut sockets: Vec<PollFd<'_>> = self
            .connections
            .iter()
            .map(|connection| {
                let write = match connection.wants_write() {
                    true => PollFlags::OUT,
                    false => PollFlags::empty(),
                };
                PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN | write)
            })
            .collect();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: WAIT_MS as i64 * 1_000_000,
        };
        match poll(&mut sockets, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(NbdError::Broken(error.into())),
        }
        self.check_stop()
    }

    fn check_stop(&self) -> Result<(), NbdError> {
        match (self.options.is_stopping)() {
            true => Err(NbdError::Stopped),
            false => Ok(()),
        }
    }

    /// Takes a broken connection out; what it had in flight is asked again.
    fn lose(&mut self, place: usize, error: NbdError) -> Result<(), NbdError> {
        if !error.is_of_connection() {
            return Err(error);
        }
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "an NBD connection was lost"
        );
        let is_written = self.books.writes > 0 || self.books.is_unflushed;
        if is_written {
            return Err(NbdError::BrokenWriting(Box::new(error)));
        }
        let error = Arc::new(error);
        let requests: Vec<_> = self
            .connections
            .swap_remove(place)
            .into_requests()
            .collect();
        for request in requests.into_iter().rev() {
            if request.breaks < BREAKS_MAX {
                self.books.waiting.push_front(request);
                continue;
            }
            let (offset, len, tries) = (request.offset, request.len, request.breaks);
            let hopeless = NbdError::Hopeless {
                offset,
                len,
                tries,
                source: error.clone(),
            };
            self.books.complete(request, Err(Arc::new(hopeless)));
        }
        if !self.connections.is_empty() {
            self.grow();
        }
        Ok(())
    }

    /// Makes a connection if there is none, trying for a while.
    fn revive(&mut self) -> Result<(), NbdError> {
        if !self.connections.is_empty() {
            return Ok(());
        }
        let mut last = None;
        for wait_ms in RECONNECT_MS {
            self.pause(wait_ms)?;
            match self.connect() {
                Ok(connection) => {
                    self.connections.push(connection);
                    self.grow();
                    return Ok(());
                }
                Err(error) if error.is_of_connection() => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "connecting to the NBD server again failed"
                    );
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(NbdError::Lost {
            tries: RECONNECT_MS.len(),
            source: Box::new(last.unwrap_or(NbdError::Stopped)),
        })
    }

    fn pause(&self, wait_ms: u64) -> Result<(), NbdError> {
        let clock = Stopwatch::start();
        let whole = Duration::from_millis(wait_ms);
        loop {
            self.check_stop()?;
            let left = whole.saturating_sub(clock.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(WAIT_MS)));
        }
    }

    /// Another connection to the same export: its size must be what it was.
    fn connect(&self) -> Result<Connection, NbdError> {
        let opened = self.endpoint.open()?;
        if opened.export.size != self.export.size {
            return Err(NbdError::Changed {
                before: self.export.size,
                now: opened.export.size,
            });
        }
        Ok(Connection::new(opened, self.endpoint.status()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        for connection in self.connections.drain(..) {
            connection.close();
        }
    }
}
