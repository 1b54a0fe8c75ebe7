//! Reads, writes and block status on an open export: the client's half.
//!
//! Bytes of the disk are not held here. They pass through as [`Event::Data`], or the shell reads them
//! straight into place: [`Transmission::awaited_payload`] says what comes next, and
//! [`Transmission::payload_arrived`] that it came. A read is done only when each of its bytes came exactly
//! once. The bytes of a write are not held either: the shell sends them behind the request.

use std::collections::HashMap;

use super::error::{Expected, ProtocolError};
use super::extents::{EXTENTS_MAX, StatusExtent};
use super::negotiation::{ContextId, Export};
use super::wire::{
    CHUNK_BLOCK_STATUS, CHUNK_ERROR, CHUNK_ERROR_BIT, CHUNK_ERROR_OFFSET, CHUNK_FLAG_DONE,
    CHUNK_LEN, CHUNK_MAGIC, CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, Command, Cookie,
    Errno, SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC, STRING_LEN_MAX, be16, be32, be64, put_request,
};

/// Most separate parts that a read's bytes may have come in: more than its data needs, and a bound of memory.
const PARTS_MAX: usize = 4096;
/// Longest payload of a failure: number, length, text and offset.
const ERROR_LEN_MAX: usize = 6 + STRING_LEN_MAX + 8;

/// What came of the bytes taken in.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Bytes of a read.
    Data {
        /// Which read.
        cookie: Cookie,
        /// Where they belong, from the read's start.
        at: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Zeros of a read.
    Zeros {
        /// Which read.
        cookie: Cookie,
        /// Where they belong, from the read's start.
        at: u32,
        /// How many.
        len: u32,
    },
    /// What one context knows of a range, from its start.
    Status {
        /// Which request.
        cookie: Cookie,
        /// Which context.
        context: ContextId,
        /// In order; may cover less than was asked, but at least one byte.
        extents: Vec<StatusExtent>,
    },
    /// A request is over.
    Done {
        /// Which one.
        cookie: Cookie,
        /// How it went.
        result: Result<(), Failure>,
    },
}

/// The server could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server answers {errno}{}", shown(.message))]
pub struct Failure {
    /// Its reason.
    pub errno: Errno,
    /// What it says of it; may be empty.
    pub message: String,
    /// Where on the export it happened, if it says so.
    pub offset: Option<u64>,
}

fn shown(message: &str) -> String {
    match message {
        "" => String::new(),
        text => format!(" ({})", text.escape_debug()),
    }
}

/// Bytes of a read that come next on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Which read.
    pub cookie: Cookie,
    /// Where they belong, from the read's start.
    pub at: u32,
    /// How many, at least one.
    pub len: u32,
}

/// What the answer to a request brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Bytes,
    Status,
    /// Nothing but how it went.
    Outcome,
}

#[derive(Debug)]
struct Pending {
    awaited: Awaited,
    offset: u64,
    len: u32,
    /// Parts that came: ordered, neither touching nor overlapping.
    parts: Vec<(u32, u32)>,
    contexts: Vec<ContextId>,
    failure: Option<Failure>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Reading a simple reply's or a chunk's header, or a chunk's body that is taken as a whole.
    Message,
    /// Bytes of a read are coming; `done` if the reply ends with them.
    Payload { payload: Payload, done: bool },
    /// The reply of this request has ended.
    Ended(Cookie),
}

/// The machine.
#[derive(Debug)]
pub struct Transmission {
    structured: bool,
    contexts: Vec<ContextId>,
    pending: HashMap<Cookie, Pending>,
    next_cookie: u64,
    state: State,
    held: Vec<u8>,
    output: Vec<u8>,
}

impl Transmission {
    /// A client of `export` with nothing in flight.
    pub fn new(export: &Export) -> Self {
        Self {
            structured: export.structured,
            contexts: export.allocation.into_iter().chain(export.dirty).collect(),
            pending: HashMap::new(),
            next_cookie: 1,
            state: State::Message,
            held: Vec::new(),
            output: Vec::new(),
        }
    }

    /// What to send, in order.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// What to send, taken by a shell that sends something else behind it.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The first `len` bytes of [`output`](Self::output) were sent.
    pub fn sent(&mut self, len: usize) {
        self.output.drain(..len);
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Asks for `len` bytes at `offset`, at least one.
    pub fn read(&mut self, offset: u64, len: u32) -> Cookie {
        self.request(Command::Read, Awaited::Bytes, offset, len)
    }

    /// Asks what is known of `len` bytes at `offset`, at least one; only where contexts were agreed on.
    pub fn block_status(&mut self, offset: u64, len: u32) -> Cookie {
        self.request(Command::BlockStatus, Awaited::Status, offset, len)
    }

    /// Writes `len` bytes at `offset`, at least one. They are to be sent right behind the
    /// [`output`](Self::output), before anything else is.
    pub fn write(&mut self, offset: u64, len: u32) -> Cookie {
        self.request(Command::Write, Awaited::Outcome, offset, len)
    }

    /// Makes `len` bytes at `offset`, at least one, zero; only where the export knows the command.
    pub fn write_zeroes(&mut self, offset: u64, len: u32) -> Cookie {
        self.request(Command::WriteZeroes, Awaited::Outcome, offset, len)
    }

    /// Makes durable what writes that are done have written; only where the export knows the command.
    pub fn flush(&mut self) -> Cookie {
        self.request(Command::Flush, Awaited::Outcome, 0, 0)
    }

    /// Says goodbye. Nothing may be in flight that still matters.
    pub fn disconnect(&mut self) {
        put_request(&mut self.output, Command::Disconnect, Cookie(0), 0, 0);
    }

    fn request(&mut self, command: Command, awaited: Awaited, offset: u64, len: u32) -> Cookie {
        let is_empty = command == Command::Flush;
        assert!(is_empty || len > 0, "a request asks for something");
        let cookie = Cookie(self.next_cookie);
        self.next_cookie += 1;
        put_request(&mut self.output, command, cookie, offset, len);
        let pending = Pending {
            awaited,
            offset,
            len,
            parts: Vec::new(),
            contexts: Vec::new(),
            failure: None,
        };
        self.pending.insert(cookie, pending);
        cookie
    }

    /// What the shell may read straight into place.
    pub fn awaited_payload(&self) -> Option<Payload> {
        match self.state {
            State::Payload { payload, .. } => Some(payload),
            _ => None,
        }
    }

    /// The first `len` bytes of [`awaited_payload`](Self::awaited_payload) are in their place.
    pub fn payload_arrived(&mut self, len: u32) {
        let State::Payload { payload, done } = &mut self.state else {
            panic!("no payload was awaited");
        };
        assert!(len <= payload.len, "more than was awaited");
        payload.at += len;
        payload.len -= len;
        if payload.len == 0 {
            self.state = match *done {
                true => State::Ended(payload.cookie),
                false => State::Message,
            };
        }
    }

    /// Takes bytes off the front of `input` and says what they came to; `None` when more are needed, and
    /// `input` is empty then.
    ///
    /// # Errors
    /// [`ProtocolError`]; the connection is to be closed, and nothing in flight is known to be done.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        loop {
            match self.state {
                State::Ended(cookie) => {
                    self.state = State::Message;
                    return self.ended(cookie).map(Some);
                }
                State::Payload { payload, .. } => {
                    let len = input.len().min(payload.len as usize);
                    if len == 0 {
                        return Ok(None);
                    }
                    let (bytes, rest) = input.split_at(len);
                    *input = rest;
                    self.payload_arrived(len as u32);
                    return Ok(Some(Event::Data {
                        cookie: payload.cookie,
                        at: payload.at,
                        bytes,
                    }));
                }
                State::Message => {
                    let wanted = self.wanted_len()?;
                    if self.held.len() < wanted {
                        let len = input.len().min(wanted - self.held.len());
                        if len == 0 {
                            return Ok(None);
                        }
                        let (bytes, rest) = input.split_at(len);
                        self.held.extend_from_slice(bytes);
                        *input = rest;
                        continue;
                    }
                    let message = std::mem::take(&mut self.held);
                    let event = match be32(&message, 0) {
                        SIMPLE_REPLY_MAGIC => self.simple(&message)?,
                        _ => self.chunk(&message)?,
                    };
                    // Its room is used again, unless it was large.
                    if message.capacity() <= 8 << 10 {
                        self.held = message;
                        self.held.clear();
                    }
                    if event.is_some() {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// The server closed the connection: why that is an error.
    pub fn closed(&self) -> ProtocolError {
        ProtocolError::Closed(match (self.pending.len(), self.held.len(), &self.state) {
            (0, 0, State::Message) => "though nobody said goodbye",
            (_, 0, State::Message) => "with requests in flight",
            _ => "in the middle of a reply",
        })
    }

    /// How many bytes to hold before the message at hand can be understood.
    fn wanted_len(&self) -> Result<usize, ProtocolError> {
        if self.held.len() < 4 {
            return Ok(4);
        }
        match be32(&self.held, 0) {
            SIMPLE_REPLY_MAGIC => return Ok(SIMPLE_REPLY_LEN),
            CHUNK_MAGIC if self.structured => {}
            found => {
                let expected = match self.structured {
                    true => CHUNK_MAGIC,
                    false => SIMPLE_REPLY_MAGIC,
                };
                return Err(ProtocolError::Magic {
                    what: "reply",
                    expected: expected.into(),
                    found: found.into(),
                });
            }
        }
        if self.held.len() < CHUNK_LEN {
            return Ok(CHUNK_LEN);
        }
        let (kind, len) = (be16(&self.held, 6), be32(&self.held, 16) as usize);
        let pending = self.find(Cookie(be64(&self.held, 8)))?;
        let limits = match kind {
            CHUNK_NONE => 0..=0,
            CHUNK_OFFSET_DATA if pending.awaited == Awaited::Bytes => 9..=8 + pending.len as usize,
            CHUNK_OFFSET_HOLE if pending.awaited == Awaited::Bytes => 12..=12,
            CHUNK_BLOCK_STATUS if pending.awaited == Awaited::Status => 12..=4 + EXTENTS_MAX * 8,
            kind if kind & CHUNK_ERROR_BIT != 0 => 6..=ERROR_LEN_MAX,
            found => {
                return Err(ProtocolError::ChunkType {
                    offset: pending.offset,
                    len: pending.len,
                    found,
                });
            }
        };
        if !limits.contains(&len) {
            let (least, most) = (*limits.start() as u64, *limits.end() as u64);
            return Err(ProtocolError::Length {
                what: "payload of a chunk",
                found: len as u64,
                expected: match len as u64 {
                    _ if least == most => Expected::Exactly(least),
                    len if len < least => Expected::AtLeast(least),
                    _ => Expected::AtMost(most),
                },
            });
        }
        Ok(CHUNK_LEN
            + match kind {
                // The data behind its offset passes through.
                CHUNK_OFFSET_DATA => 8,
                _ => len,
            })
    }

    fn find(&self, cookie: Cookie) -> Result<&Pending, ProtocolError> {
        self.pending
            .get(&cookie)
            .ok_or(ProtocolError::UnknownCookie { cookie: cookie.0 })
    }

    fn simple<'a>(&mut self, message: &[u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        let (error, cookie) = (be32(message, 4), Cookie(be64(message, 8)));
        let is_structured = self.structured;
        let pending = self.find_mut(cookie)?;
        // A server may be as short as this where nothing but the outcome is awaited, and when block status fails.
        let is_too_short = match pending.awaited {
            Awaited::Bytes => true,
            Awaited::Status => error == 0,
            Awaited::Outcome => false,
        };
        if is_structured && is_too_short {
            return Err(ProtocolError::SimpleReply {
                offset: pending.offset,
                len: pending.len,
            });
        }
        if error != 0 {
            pending.failure = Some(Failure {
                errno: Errno::from_code(error),
                message: String::new(),
                offset: None,
            });
            self.state = State::Ended(cookie);
            return Ok(None);
        }
        if pending.awaited == Awaited::Outcome {
            self.state = State::Ended(cookie);
            return Ok(None);
        }
        let len = pending.len;
        pending.parts.push((0, len));
        self.state = State::Payload {
            payload: Payload { cookie, at: 0, len },
            done: true,
        };
        Ok(None)
    }

    fn find_mut(&mut self, cookie: Cookie) -> Result<&mut Pending, ProtocolError> {
        self.pending
            .get_mut(&cookie)
            .ok_or(ProtocolError::UnknownCookie { cookie: cookie.0 })
    }

    fn chunk<'a>(&mut self, message: &[u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        let done = be16(message, 4) & CHUNK_FLAG_DONE != 0;
        let (kind, cookie) = (be16(message, 6), Cookie(be64(message, 8)));
        let (len, body) = (be32(message, 16), &message[CHUNK_LEN..]);
        let contexts = self.contexts.clone();
        let pending = self.find_mut(cookie)?;
        let mut event = None;
        match kind {
            CHUNK_NONE if !done => return Err(ProtocolError::EmptyChunk),
            CHUNK_NONE => {}
            CHUNK_OFFSET_DATA => {
                let at = pending.cover(be64(body, 0), len - 8)?;
                let payload = Payload {
                    cookie,
                    at,
                    len: len - 8,
                };
                self.state = State::Payload { payload, done };
                return Ok(None);
            }
            CHUNK_OFFSET_HOLE => {
                let len = be32(body, 8);
                let at = pending.cover(be64(body, 0), len)?;
                event = Some(Event::Zeros { cookie, at, len });
            }
            CHUNK_BLOCK_STATUS => {
                let context = ContextId(be32(body, 0));
                if !contexts.contains(&context) || pending.contexts.contains(&context) {
                    return Err(pending.wrong_contexts());
                }
                pending.contexts.push(context);
                event = Some(Event::Status {
                    cookie,
                    context,
                    extents: pending.extents(&body[4..])?,
                });
            }
            kind => {
                let failure = pending.failure(kind, body)?;
                pending.failure.get_or_insert(failure);
            }
        }
        if done {
            self.state = State::Ended(cookie);
        }
        Ok(event)
    }

    fn ended<'a>(&mut self, cookie: Cookie) -> Result<Event<'a>, ProtocolError> {
        let pending = self
            .pending
            .remove(&cookie)
            .ok_or(ProtocolError::UnknownCookie { cookie: cookie.0 })?;
        let covered: u64 = pending.parts.iter().map(|part| u64::from(part.1)).sum();
        let result = match pending.failure {
            Some(failure) => Err(failure),
            None if pending.awaited == Awaited::Bytes && covered != u64::from(pending.len) => {
                return Err(ProtocolError::Short {
                    offset: pending.offset,
                    len: pending.len,
                    covered,
                });
            }
            None if pending.awaited == Awaited::Status
                && pending.contexts.len() != self.contexts.len() =>
            {
                return Err(pending.wrong_contexts());
            }
            None => Ok(()),
        };
        Ok(Event::Done { cookie, result })
    }
}

impl Pending {
    /// Notes that `len` bytes at `offset` of the export come, and gives their place in the read.
    fn cover(&mut self, offset: u64, len: u32) -> Result<u32, ProtocolError> {
        let wrong = ProtocolError::Range {
            offset: self.offset,
            len: self.len,
            found_offset: offset,
            found_len: len.into(),
        };
        let at = offset
            .checked_sub(self.offset)
            .and_then(|at| u32::try_from(at).ok());
        let fits = |at: &u32| at.checked_add(len).is_some_and(|end| end <= self.len);
        let Some(at) = at.filter(fits).filter(|_| len > 0) else {
            return Err(wrong);
        };
        let end = at + len;
        let place = self.parts.partition_point(|part| part.0 < at);
        let meets_next = self.parts.get(place).is_some_and(|part| part.0 < end);
        let before = place.checked_sub(1).map(|place| self.parts[place]);
        if meets_next || before.is_some_and(|part| part.0 + part.1 > at) {
            return Err(wrong);
        }
        let joins_next = self.parts.get(place).is_some_and(|part| part.0 == end);
        let joins_before = before.is_some_and(|part| part.0 + part.1 == at);
        match (joins_before, joins_next) {
            (true, true) => {
                let next = self.parts.remove(place);
                self.parts[place - 1].1 += len + next.1;
            }
            (true, false) => self.parts[place - 1].1 += len,
            (false, true) => self.parts[place] = (at, len + self.parts[place].1),
            (false, false) if self.parts.len() >= PARTS_MAX => {
                return Err(ProtocolError::TooMany {
                    what: "parts of one read",
                    limit: PARTS_MAX,
                });
            }
            (false, false) => self.parts.insert(place, (at, len)),
        }
        Ok(at)
    }

    fn wrong_contexts(&self) -> ProtocolError {
        ProtocolError::StatusContexts {
            offset: self.offset,
            len: self.len,
        }
    }

    fn extents(&self, body: &[u8]) -> Result<Vec<StatusExtent>, ProtocolError> {
        let (descriptors, rest) = body.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(ProtocolError::Length {
                what: "list of extents",
                found: body.len() as u64,
                expected: Expected::Exactly(body.len() as u64 & !7),
            });
        }
        let mut at = 0_u64;
        let mut extents = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            let extent = StatusExtent {
                len: be32(descriptor, 0),
                state: be32(descriptor, 4),
            };
            if extent.len == 0 || at >= u64::from(self.len) {
                return Err(ProtocolError::StatusExtent {
                    offset: self.offset,
                    len: self.len,
                });
            }
            at += u64::from(extent.len);
            extents.push(extent);
        }
        Ok(extents)
    }

    fn failure(&self, kind: u16, body: &[u8]) -> Result<Failure, ProtocolError> {
        let (error, text_len) = (be32(body, 0), be16(body, 4) as usize);
        let tail = if kind == CHUNK_ERROR_OFFSET { 8 } else { 0 };
        let is_known = matches!(kind, CHUNK_ERROR | CHUNK_ERROR_OFFSET);
        let expected = 6 + text_len + tail;
        if body.len() < expected || (is_known && body.len() != expected) {
            return Err(ProtocolError::Length {
                what: "description of a failure",
                found: body.len() as u64,
                expected: Expected::Exactly(expected as u64),
            });
        }
        if error == 0 {
            return Err(ProtocolError::ErrorZero {
                offset: self.offset,
                len: self.len,
            });
        }
        let text = String::from_utf8_lossy(&body[6..6 + text_len]);
        let range = self.offset..self.offset + u64::from(self.len);
        let offset = (tail > 0).then(|| be64(body, 6 + text_len));
        Ok(Failure {
            errno: Errno::from_code(error),
            message: text.into_owned(),
            offset: offset.filter(|offset| range.contains(offset)),
        })
    }
}

#[cfg(test)]
#[path = "transmission_tests.rs"]
mod tests;
