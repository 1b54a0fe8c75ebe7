//! What clients ask of an open export.
//!
//! Every request is checked before it is given out: its range lies within the export, its flags are known, the
//! export can do it. One that is not goes out as [`Incoming::Refused`], to be answered with its error; the bytes
//! that a refused write brings are passed over.

use super::error::ClientError;
use super::negotiation::Opened;
use super::offer::{Offer, PAYLOAD_MAX};
use crate::nbd::wire::{
    Command, CommandFlags, Cookie, Errno, REQUEST_LEN, REQUEST_MAGIC, be16, be32, be64,
};

/// A request that can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its name, to answer by.
    pub cookie: Cookie,
    /// What to do; never [`Command::Disconnect`], nor one that is not known.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u32,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A request to serve. The bytes of a write follow.
    Request(Request),
    /// A request to be answered with an error.
    Refused {
        /// Which request.
        cookie: Cookie,
        /// What it was.
        command: Command,
        /// The error.
        errno: Errno,
        /// Why.
        text: &'static str,
    },
    /// Bytes of the last write, in order.
    Payload(&'a [u8]),
    /// The client says goodbye: it waits for no more answers.
    Disconnect,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Payload { left: u32 },
    Skip { left: u32 },
    Ended,
}

/// The machine.
#[derive(Debug)]
pub struct Requests {
    size: u64,
    writable: bool,
    structured: bool,
    allocation: bool,
    state: State,
    held: Vec<u8>,
}

impl Requests {
    /// Requests to `offer`, which was opened as `opened` says.
    pub fn new(offer: &Offer, opened: Opened) -> Self {
        Self {
            size: offer.size,
            writable: offer.writable,
            structured: opened.structured,
            allocation: opened.allocation,
            state: State::Header,
            held: Vec::with_capacity(REQUEST_LEN),
        }
    }

    /// Bytes of a write that come next on the connection: the shell may read them straight into place.
    pub fn awaited_payload(&self) -> Option<u32> {
        match self.state {
            State::Payload { left } => Some(left),
            _ => None,
        }
    }

    /// The first `len` bytes of [`awaited_payload`](Self::awaited_payload) are in their place.
    ///
    /// # Panics
    /// If no more than that were awaited.
    pub fn payload_arrived(&mut self, len: u32) {
        let State::Payload { left } = self.state else {
            panic!("no payload was awaited");
        };
        assert!(len <= left, "more than was awaited");
        self.state = match left - len {
            0 => State::Header,
            left => State::Payload { left },
        };
    }

    /// True between requests.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Header | State::Ended) && self.held.is_empty()
    }

    /// Takes bytes off the front of `input` and says what they came to; `None` when more are needed, and
    /// `input` is empty then.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Incoming<'a>>, ClientError> {
        loop {
            match self.state {
                State::Header => {
                    let missing = REQUEST_LEN - self.held.len();
                    let (bytes, rest) = input.split_at(missing.min(input.len()));
                    self.held.extend_from_slice(bytes);
                    *input = rest;
                    if self.held.len() >= 4 && be32(&self.held, 0) != REQUEST_MAGIC {
                        return Err(ClientError::Magic {
                            what: "request",
                            expected: REQUEST_MAGIC.into(),
                            found: be32(&self.held, 0).into(),
                        });
                    }
                    if self.held.len() < REQUEST_LEN {
                        return Ok(None);
                    }
                    let incoming = self.request();
                    self.held.clear();
                    return Ok(Some(incoming));
                }
                State::Payload { left } => {
                    let len = input.len().min(left as usize);
                    if len == 0 {
                        return Ok(None);
                    }
                    let (bytes, rest) = input.split_at(len);
                    *input = rest;
                    self.payload_arrived(len as u32);
                    return Ok(Some(Incoming::Payload(bytes)));
                }
                State::Skip { left } => {
                    let len = input.len().min(left as usize);
                    *input = &input[len..];
                    match left - len as u32 {
                        0 => self.state = State::Header,
                        left => {
                            self.state = State::Skip { left };
                            return Ok(None);
                        }
                    }
                }
                State::Ended => {
                    *input = &[];
                    return Ok(None);
                }
            }
        }
    }

    fn request<'a>(&mut self) -> Incoming<'a> {
        let request = Request {
            flags: CommandFlags(be16(&self.held, 4)),
            command: Command::from_code(be16(&self.held, 6)),
            cookie: Cookie(be64(&self.held, 8)),
            offset: be64(&self.held, 16),
            len: be32(&self.held, 24),
        };
        if request.command == Command::Disconnect {
            self.state = State::Ended;
            return Incoming::Disconnect;
        }
        let checked = self.check(&request);
        if request.command == Command::Write && request.len > 0 {
            let left = request.len;
            self.state = match checked {
                Ok(()) => State::Payload { left },
                Err(_) => State::Skip { left },
            };
        }
        match checked {
            Ok(()) => Incoming::Request(request),
            Err((errno, text)) => Incoming::Refused {
                cookie: request.cookie,
                command: request.command,
                errno,
                text,
            },
        }
    }

    fn check(&self, request: &Request) -> Result<(), (Errno, &'static str)> {
        type Flags = CommandFlags;
        let changes = matches!(
            request.command,
            Command::Write | Command::Trim | Command::WriteZeroes
        );
        // FUA is known, and so may come with everything.
        let known = match request.command {
            Command::Read if self.structured => Flags::FUA.with(Flags::DF),
            Command::WriteZeroes => Flags::FUA.with(Flags::NO_HOLE).with(Flags::FAST_ZERO),
            Command::BlockStatus => Flags::FUA.with(Flags::REQ_ONE),
            Command::Other(_) => return Err((Errno::Invalid, "the command is not known")),
            _ => Flags::FUA,
        };
        if changes && !self.writable {
            return Err((Errno::Perm, "the export is read-only"));
        }
        if !request.flags.is_within(known) {
            return Err((Errno::Invalid, "a flag is not known with this command"));
        }
        if request.command == Command::Flush {
            return match (request.offset, request.len) {
                (0, 0) => Ok(()),
                _ => Err((Errno::Invalid, "a flush has neither offset nor length")),
            };
        }
        let carries = matches!(request.command, Command::Read | Command::Write);
        if carries && request.len > PAYLOAD_MAX {
            return Err((Errno::Invalid, "more than 32 MiB in one request"));
        }
        let end = request.offset.checked_add(request.len.into());
        if end.is_none_or(|end| end > self.size) {
            let errno = match request.command {
                Command::Write | Command::WriteZeroes => Errno::NoSpace,
                _ => Errno::Invalid,
            };
            return Err((errno, "the range reaches past the export's end"));
        }
        if request.command == Command::BlockStatus {
            if !self.allocation {
                return Err((Errno::Invalid, "base:allocation was not chosen"));
            }
            if request.len == 0 {
                return Err((Errno::Invalid, "the status of no bytes"));
            }
        }
        Ok(())
    }
}
