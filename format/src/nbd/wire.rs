//! The protocol's numbers. Everything on the wire is big-endian.

use std::fmt;

/// Port that IANA gave to NBD.
pub const PORT: u16 = 10809;
/// Longest string of the protocol, in bytes.
pub const STRING_LEN_MAX: usize = 4096;
/// `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: begins every option, and tells newstyle servers.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Tells oldstyle servers.
pub const OLDSTYLE_MAGIC: u64 = 0x4202_8186_1253;
/// Begins every answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Begins every chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Bytes of a request.
pub const REQUEST_LEN: usize = 28;
/// Bytes of a simple reply without its data.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a chunk without its payload.
pub const CHUNK_LEN: usize = 20;

/// Handshake flag: the server answers options it does not know.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no padding behind the answer to `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;
/// Zeros behind the answer to `EXPORT_NAME`, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING: usize = 124;

/// Reply to an option: done.
pub const REP_ACK: u32 = 1;
/// Reply to an option: the name of an export.
pub const REP_SERVER: u32 = 2;
/// Reply to an option: a piece of information.
pub const REP_INFO: u32 = 3;
/// Reply to an option: a metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Replies with this bit are refusals.
pub const REP_ERROR_BIT: u32 = 1 << 31;
/// Information: size and flags.
pub const INFO_EXPORT: u16 = 0;
/// Information: the export's own name.
pub const INFO_NAME: u16 = 1;
/// Information: a text for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// Information: block sizes.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Chunk flag: the last of its reply.
pub const CHUNK_FLAG_DONE: u16 = 1;
/// Chunk type: nothing.
pub const CHUNK_NONE: u16 = 0;
/// Chunk type: bytes.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk type: zeros.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Chunk type: block status.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk types with this bit are failures.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;
/// Chunk type: a failure.
pub const CHUNK_ERROR: u16 = CHUNK_ERROR_BIT | 1;
/// Chunk type: a failure at an offset.
pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR_BIT | 2;

/// The metadata context that tells holes and zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// What the names of the protocol's own contexts begin with.
pub const BASE_PREFIX: &str = "base:";
/// What the names of QEMU's dirty bitmaps begin with.
pub const DIRTY_BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";
/// Of `base:allocation`: takes no room.
pub const STATE_HOLE: u32 = 1;
/// Of `base:allocation`: reads as zero.
pub const STATE_ZERO: u32 = 2;
/// Of a dirty bitmap: changed.
pub const STATE_DIRTY: u32 = 1;

macro_rules! numbers {
    ($(#[$type_doc:meta])* $type:ident: $int:ty { $($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)* }) => {
        $(#[$type_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$doc])* $name,)*
            /// A number without a meaning here.
            Other($int),
        }

        impl $type {
            /// The number on the wire.
            pub const fn code(self) -> $int {
                match self { $(Self::$name => $code,)* Self::Other(code) => code }
            }

            /// What a number stands for.
            pub const fn from_code(code: $int) -> Self {
                match code { $($code => Self::$name,)* other => Self::Other(other) }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str($text),)*
                    Self::Other(code) => write!(f, "number {code}"),
                }
            }
        }
    };
}

numbers! {
    /// What a client asks before an export is open.
    OptionCode: u32 {
        /// Opens an export; a refusal closes the connection.
        ExportName = 1, "EXPORT_NAME";
        /// Ends the connection.
        Abort = 2, "ABORT";
        /// Asks for the names of the exports.
        List = 3, "LIST";
        /// Goes on under TLS.
        StartTls = 5, "STARTTLS";
        /// Asks what an export is like.
        Info = 6, "INFO";
        /// Opens an export, with refusals.
        Go = 7, "GO";
        /// Replies come in chunks.
        StructuredReply = 8, "STRUCTURED_REPLY";
        /// Asks what block status can tell.
        ListMetaContext = 9, "LIST_META_CONTEXT";
        /// Chooses what block status tells.
        SetMetaContext = 10, "SET_META_CONTEXT";
    }
}

numbers! {
    /// Why an option is refused; the numbers are those of the wire without [`REP_ERROR_BIT`].
    OptionError: u32 {
        /// The server does not know the option.
        Unsupported = 1, "it does not know that";
        /// Not allowed.
        Policy = 2, "its policy forbids it";
        /// Malformed.
        Invalid = 3, "it takes the request for invalid";
        /// Not possible where it runs.
        Platform = 4, "its platform cannot do that";
        /// Only under TLS.
        TlsRequired = 5, "it requires TLS (nbds:// or nbds+unix://)";
        /// No such export.
        Unknown = 6, "it has no such export";
        /// It is going down.
        Shutdown = 7, "it is shutting down";
        /// The client has to keep to block sizes.
        BlockSizeRequired = 8, "it requires block sizes to be respected";
        /// More than it takes.
        TooBig = 9, "the request is too big";
    }
}

numbers! {
    /// Why a request failed.
    Errno: u32 {
        /// Not permitted.
        Perm = 1, "EPERM";
        /// The device failed.
        Io = 5, "EIO";
        /// No memory.
        NoMemory = 12, "ENOMEM";
        /// Malformed, or outside the export.
        Invalid = 22, "EINVAL";
        /// No room.
        NoSpace = 28, "ENOSPC";
        /// Too large.
        Overflow = 75, "EOVERFLOW";
        /// Not supported.
        NotSupported = 95, "ENOTSUP";
        /// The server is going down.
        Shutdown = 108, "ESHUTDOWN";
    }
}

/// What an export can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// All that xapi-nbd gives: HAS_FLAGS and READ_ONLY.
    pub const READ_ONLY_ALONE: Self = Self(Self::HAS_FLAGS.0 | Self::READ_ONLY.0);
    /// The others mean something.
    pub const HAS_FLAGS: Self = Self(1);
    /// Nothing can be written.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// FLUSH is known.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// FUA is known.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// TRIM is known.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// WRITE_ZEROES is known.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// DF is known; only with structured replies.
    pub const SEND_DF: Self = Self(1 << 7);
    /// Several connections see the same bytes, and a flush of one covers what others had written.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// CACHE is known.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// FAST_ZERO is known.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);

    /// True if all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those.
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// These but for those.
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// True if several connections see the same bytes.
    pub const fn can_multi_conn(self) -> bool {
        self.contains(Self::CAN_MULTI_CONN)
    }
}

/// Names a request while it is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

numbers! {
    /// What a request does.
    Command: u16 {
        /// Reads bytes.
        Read = 0, "READ";
        /// Writes bytes.
        Write = 1, "WRITE";
        /// Ends the connection.
        Disconnect = 2, "DISC";
        /// What was written becomes durable.
        Flush = 3, "FLUSH";
        /// Bytes are not needed any more.
        Trim = 4, "TRIM";
        /// Bytes are going to be read.
        Cache = 5, "CACHE";
        /// Bytes become zeros.
        WriteZeroes = 6, "WRITE_ZEROES";
        /// Asks what is known of a range.
        BlockStatus = 7, "BLOCK_STATUS";
    }
}

/// How a request is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// Durable before the answer.
    pub const FUA: Self = Self(1);
    /// Zeros take room.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// The bytes come in one piece.
    pub const DF: Self = Self(1 << 2);
    /// One extent is enough.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// Zeros only if that is faster than writing them.
    pub const FAST_ZERO: Self = Self(1 << 4);

    /// True if all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// True if none but `flags` are set.
    pub const fn is_within(self, flags: Self) -> bool {
        self.0 & !flags.0 == 0
    }

    /// These and those.
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

/// Appends a request.
pub fn put_request(out: &mut Vec<u8>, command: Command, cookie: Cookie, offset: u64, len: u32) {
    out.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
    out.extend_from_slice(&0_u16.to_be_bytes());
    out.extend_from_slice(&command.code().to_be_bytes());
    out.extend_from_slice(&cookie.0.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Appends an answer to an option.
pub fn put_option_reply(out: &mut Vec<u8>, option: OptionCode, kind: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.code().to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends an option.
pub fn put_option(out: &mut Vec<u8>, option: OptionCode, data: &[u8]) {
    out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.code().to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends a string with its length before it.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// # Panics
/// If the bytes end before: callers check lengths first.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..]
        .first_chunk()
        .expect("the length was checked before")
}
