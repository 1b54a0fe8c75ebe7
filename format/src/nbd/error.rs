//! What a server can do wrong, and how it says no.

use std::fmt;

use super::wire::{OptionCode, OptionError};

/// A server sent what the protocol does not allow there. The connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Not the bytes every server begins with.
    #[error("this is no NBD server: its greeting should begin with NBDMAGIC, not {found:016x}")]
    Greeting {
        /// What came instead.
        found: u64,
    },
    /// The protocol before 2012, which has no options.
    #[error(
        "the server speaks oldstyle NBD, which cannot name exports: fixed newstyle is expected"
    )]
    Oldstyle,
    /// A server that does not answer options.
    #[error("the server offers handshake flags {flags:#06x}: FIXED_NEWSTYLE (bit 0) is expected")]
    NotFixed {
        /// What it offers.
        flags: u16,
    },
    /// A number that should mark the beginning of something.
    #[error("the {what} should begin with {expected:x}, not {found:x}")]
    Magic {
        /// What was to begin.
        what: &'static str,
        /// Its magic number.
        expected: u64,
        /// What came instead.
        found: u64,
    },
    /// An answer to an option that was not asked.
    #[error("an answer to option {expected} is expected, this one is for option {found}")]
    OtherOption {
        /// The option asked.
        expected: OptionCode,
        /// What the answer names.
        found: u32,
    },
    /// An answer of a kind that the option does not have.
    #[error("option {option} was answered with reply type {found:#x}, which it does not have")]
    ReplyType {
        /// The option asked.
        option: OptionCode,
        /// The answer's type.
        found: u32,
    },
    /// A length outside its bounds.
    #[error("the {what} is {found} bytes long: {expected} expected")]
    Length {
        /// Of what.
        what: &'static str,
        /// Its length.
        found: u64,
        /// What it may be.
        expected: Expected,
    },
    /// A count beyond its limit.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most that is taken.
        limit: usize,
    },
    /// Text that is no UTF-8.
    #[error("the {what} is not UTF-8 text")]
    Text {
        /// Which text.
        what: &'static str,
    },
    /// The export was accepted before its size was told.
    #[error(
        "the export was accepted without its size: an INFO reply of type EXPORT is expected first"
    )]
    NoExportInfo,
    /// Told again, differently.
    #[error("the {0} was told twice, differently")]
    Contradiction(&'static str),
    /// A size that no offset can reach.
    #[error("the export's size {size} is past 2^63 - 1")]
    Size {
        /// What the server says.
        size: u64,
    },
    /// Block sizes that contradict the protocol.
    #[error(
        "the block sizes {minimum}, {preferred}, {maximum} are invalid: powers of two in order are expected"
    )]
    BlockSizes {
        /// Smallest block.
        minimum: u32,
        /// Best block.
        preferred: u32,
        /// Largest payload.
        maximum: u32,
    },
    /// A metadata context that was not asked for, or twice.
    #[error("metadata context {name:?} was not asked for, or given twice")]
    Context {
        /// Its name.
        name: String,
    },
    /// Plain bytes behind the agreement to speak TLS: somebody else may have put them there.
    #[error(
        "{0} bytes follow the answer to STARTTLS in clear: somebody may be tampering with the connection"
    )]
    ClearAfterStartTls(usize),
    /// A reply to nothing.
    #[error("a reply to request {cookie} came, which is not in flight")]
    UnknownCookie {
        /// What it names.
        cookie: u64,
    },
    /// A simple reply where a structured one must come.
    #[error(
        "the request for bytes {offset}+{len} was answered with a simple reply: a structured one was agreed on"
    )]
    SimpleReply {
        /// Of the request.
        offset: u64,
        /// Of the request.
        len: u32,
    },
    /// A chunk type that the request does not have.
    #[error(
        "the request for bytes {offset}+{len} was answered with chunk type {found}, which it does not have"
    )]
    ChunkType {
        /// Of the request.
        offset: u64,
        /// Of the request.
        len: u32,
        /// The chunk's type.
        found: u16,
    },
    /// Bytes outside the request, or twice.
    #[error(
        "the request for bytes {offset}+{len} was answered with bytes {found_offset}+{found_len}: outside of it, or a second time"
    )]
    Range {
        /// Of the request.
        offset: u64,
        /// Of the request.
        len: u32,
        /// Where the answer's bytes lie.
        found_offset: u64,
        /// How many they are.
        found_len: u64,
    },
    /// A request was said to be done before all of it was there.
    #[error("the request for bytes {offset}+{len} was ended after {covered} of them")]
    Short {
        /// Of the request.
        offset: u64,
        /// Of the request.
        len: u32,
        /// Bytes that came.
        covered: u64,
    },
    /// Block status without an answer for a context.
    #[error(
        "the block status of bytes {offset}+{len} was ended without an answer for every context, or has two for one"
    )]
    StatusContexts {
        /// Of the request.
        offset: u64,
        /// Of the request.
        len: u32,
    },
    /// Extents that cannot be.
    #[error(
        "the block status of bytes {offset}+{len} has an extent that is empty or begins past its end"
    )]
    StatusExtent {
        /// Of the request.
        offset: u64,
        /// Of the request.
        len: u32,
    },
    /// An error without a number.
    #[error("the request for bytes {offset}+{len} failed with error 0: a number is expected")]
    ErrorZero {
        /// Of the request.
        offset: u64,
        /// Of the request.
        len: u32,
    },
    /// A chunk with nothing in it that is not the last.
    #[error("an empty chunk came that does not end its reply")]
    EmptyChunk,
    /// The connection was closed inside a message.
    #[error("the server closed the connection {0}")]
    Closed(&'static str),
}

/// What a length may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One length alone.
    Exactly(u64),
    /// Not more.
    AtMost(u64),
    /// Not less.
    AtLeast(u64),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(len) => write!(f, "exactly {len}"),
            Self::AtMost(len) => write!(f, "at most {len}"),
            Self::AtLeast(len) => write!(f, "at least {len}"),
        }
    }
}

/// The server does not want to, or cannot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server refuses {option}: {error}{}", Self::shown(.message))]
pub struct Refusal {
    /// What it was asked.
    pub option: OptionCode,
    /// Its reason.
    pub error: OptionError,
    /// What it says of it; may be empty.
    pub message: String,
}

impl Refusal {
    fn shown(message: &str) -> String {
        match message {
            "" => String::new(),
            text => format!(" ({})", text.escape_debug()),
        }
    }
}
