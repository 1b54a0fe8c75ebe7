//! From the greeting to an export: the client's half of fixed newstyle negotiation.
//!
//! ```text
//! greeting > [STARTTLS] > STRUCTURED_REPLY > SET_META_CONTEXT > GO, or EXPORT_NAME where GO is unknown
//! ```
//!
//! STARTTLS is asked whenever the user wants TLS, and its refusal is the end: there is no way back to clear
//! text. What a server said before TLS is forgotten with the greeting's flags alone kept, as the protocol
//! demands. A server that knows neither structured replies nor GO, offers no flag but FIXED_NEWSTYLE and
//! gives a read-only export without any ability is xapi-nbd: [`Dialect::Xapi`].

use super::error::{Expected, ProtocolError, Refusal};
use super::wire::{
    BASE_ALLOCATION, DIRTY_BITMAP_PREFIX, EXPORT_NAME_PADDING, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    GREETING_MAGIC, INFO_BLOCK_SIZE, INFO_EXPORT, OLDSTYLE_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    OptionCode, OptionError, REP_ACK, REP_ERROR_BIT, REP_INFO, REP_META_CONTEXT, STRING_LEN_MAX,
    TransmissionFlags, be16, be32, be64, put_option, put_string,
};

const GREETING_LEN: usize = 18;
const REPLY_HEADER_LEN: usize = 20;
const EXPORT_REPLY_LEN: usize = 10;
/// Longest data of a reply: a string and its number.
const REPLY_DATA_MAX: usize = STRING_LEN_MAX + 4;
/// Most replies to one option.
const REPLIES_MAX: usize = 64;

/// What a client wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Name of the export.
    pub export: String,
    /// Only under TLS.
    pub tls: bool,
    /// A dirty bitmap's name.
    pub dirty_bitmap: Option<String>,
}

/// Block sizes in bytes: powers of two, but for the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this.
    pub minimum: u32,
    /// What pays.
    pub preferred: u32,
    /// Longest request.
    pub maximum: u32,
}

impl BlockSizes {
    /// What a client assumes of a server that tells nothing.
    pub const DEFAULT: Self = Self {
        minimum: 512,
        preferred: 4096,
        maximum: 32 << 20,
    };

    fn checked(self) -> Result<Self, ProtocolError> {
        let Self {
            minimum,
            preferred,
            maximum,
        } = self;
        let are_powers = minimum.is_power_of_two() && preferred.is_power_of_two();
        let is_multiple = maximum == u32::MAX || maximum.is_multiple_of(minimum.max(1));
        if are_powers
            && minimum <= 64 << 10
            && preferred >= minimum
            && maximum >= preferred.min(512).max(minimum)
            && is_multiple
        {
            return Ok(self);
        }
        Err(ProtocolError::BlockSizes {
            minimum,
            preferred,
            maximum,
        })
    }
}

/// A metadata context that was agreed on, and the number it has on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextId(pub u32);

/// How a server behaves beyond what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As the protocol says.
    Standard,
    /// xapi-nbd: one request at a time, any error ends the connection, a connection costs the host a device,
    /// at most 16 of them per host.
    Xapi,
}

/// An open export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its size in bytes, at most 2^63 - 1.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Which requests it takes.
    pub block_sizes: BlockSizes,
    /// Whether replies come in chunks.
    pub structured: bool,
    /// The context that tells zeros.
    pub allocation: Option<ContextId>,
    /// The context that tells changes.
    pub dirty: Option<ContextId>,
    /// How the server behaves.
    pub dialect: Dialect,
}

/// How a negotiation fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiationError {
    /// The server does not keep to the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The server says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// `EXPORT_NAME` has no refusals.
    #[error(
        "the server closed the connection without a byte when it was asked for the export: it has no such export, the session in the name is not valid, or it has too many clients"
    )]
    ClosedOnExportName,
}

/// What to do after bytes were taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send [`Negotiation::take_output`], then read on.
    Continue,
    /// Speak TLS, then call [`Negotiation::tls_established`].
    StartTls,
    /// The export is open; bytes that came behind are [`Negotiation::into_rest`]'s.
    Open(Export),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// Waiting for the replies to an option.
    Option(OptionCode),
    Tls,
    ExportName,
    Open,
}

/// The machine.
#[derive(Debug)]
pub struct Negotiation {
    wanted: Wanted,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    no_zeroes: bool,
    replies: usize,
    structured: bool,
    allocation: Option<ContextId>,
    dirty: Option<ContextId>,
    export: Option<(u64, u16)>,
    block_sizes: Option<BlockSizes>,
}

impl Negotiation {
    /// A client that waits for the greeting.
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            state: State::Greeting,
            input: Vec::new(),
            output: Vec::new(),
            no_zeroes: false,
            replies: 0,
            structured: false,
            allocation: None,
            dirty: None,
            export: None,
            block_sizes: None,
        }
    }

    /// What to send.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Bytes that came behind the end of the negotiation.
    pub fn into_rest(self) -> Vec<u8> {
        self.input
    }

    /// Takes in what came.
    ///
    /// # Errors
    /// [`NegotiationError`]; the connection is to be closed.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Step, NegotiationError> {
        self.input.extend_from_slice(bytes);
        loop {
            let step = match self.state {
                State::Greeting => self.greeting()?,
                State::Option(option) => self.reply(option)?,
                State::ExportName => self.export_name()?,
                State::Tls if self.input.is_empty() => return Ok(Step::StartTls),
                State::Tls => {
                    return Err(ProtocolError::ClearAfterStartTls(self.input.len()).into());
                }
                State::Open => None,
            };
            match step {
                None => return Ok(Step::Continue),
                Some(Step::Continue) => {}
                Some(step) => return Ok(step),
            }
        }
    }

    /// The connection is under TLS from here on.
    ///
    /// # Panics
    /// If TLS was not what [`Step`] said.
    pub fn tls_established(&mut self) {
        assert!(self.state == State::Tls, "TLS was not agreed on");
        self.ask_structured();
    }

    /// The server closed the connection: why that is an error.
    pub fn closed(&self) -> NegotiationError {
        match self.state {
            State::ExportName if self.input.is_empty() => NegotiationError::ClosedOnExportName,
            State::Greeting => ProtocolError::Closed("before its greeting was complete").into(),
            _ => ProtocolError::Closed("during the negotiation").into(),
        }
    }

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        if self.input.len() < len {
            return None;
        }
        let rest = self.input.split_off(len);
        Some(std::mem::replace(&mut self.input, rest))
    }

    fn greeting(&mut self) -> Result<Option<Step>, NegotiationError> {
        if self.input.len() >= 8 {
            let found = be64(&self.input, 0);
            if found != GREETING_MAGIC {
                return Err(ProtocolError::Greeting { found }.into());
            }
        }
        if self.input.len() >= 16 {
            match be64(&self.input, 8) {
                OPTION_MAGIC => {}
                OLDSTYLE_MAGIC => return Err(ProtocolError::Oldstyle.into()),
                found => return Err(magic("second half of the greeting", OPTION_MAGIC, found)),
            }
        }
        let Some(greeting) = self.take(GREETING_LEN) else {
            return Ok(None);
        };
        let flags = be16(&greeting, 16);
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ProtocolError::NotFixed { flags }.into());
        }
        self.no_zeroes = flags & FLAG_NO_ZEROES != 0;
        let flags = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        self.output
            .extend_from_slice(&u32::from(flags).to_be_bytes());
        match self.wanted.tls {
            true => self.ask(OptionCode::StartTls, &[]),
            false => self.ask_structured(),
        }
        Ok(Some(Step::Continue))
    }

    fn ask(&mut self, option: OptionCode, data: &[u8]) {
        put_option(&mut self.output, option, data);
        self.replies = 0;
        self.state = State::Option(option);
    }

    fn ask_structured(&mut self) {
        self.ask(OptionCode::StructuredReply, &[]);
    }

    fn contexts(&self) -> Vec<String> {
        let dirty = self.wanted.dirty_bitmap.iter();
        let dirty = dirty.map(|name| format!("{DIRTY_BITMAP_PREFIX}{name}"));
        std::iter::once(BASE_ALLOCATION.to_owned())
            .chain(dirty)
            .collect()
    }

    fn ask_contexts(&mut self) {
        let contexts = self.contexts();
        let mut data = Vec::new();
        put_string(&mut data, &self.wanted.export);
        data.extend_from_slice(&(contexts.len() as u32).to_be_bytes());
        contexts.iter().for_each(|name| put_string(&mut data, name));
        self.ask(OptionCode::SetMetaContext, &data);
    }

    fn ask_go(&mut self) {
        let mut data = Vec::new();
        put_string(&mut data, &self.wanted.export);
        data.extend_from_slice(&1_u16.to_be_bytes());
        data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
        self.ask(OptionCode::Go, &data);
    }

    fn ask_export_name(&mut self) {
        let name = self.wanted.export.clone();
        put_option(&mut self.output, OptionCode::ExportName, name.as_bytes());
        self.state = State::ExportName;
    }

    /// One reply to `option`.
    fn reply(&mut self, option: OptionCode) -> Result<Option<Step>, NegotiationError> {
        if self.input.len() < REPLY_HEADER_LEN {
            return Ok(None);
        }
        match be64(&self.input, 0) {
            OPTION_REPLY_MAGIC => {}
            found => return Err(magic("answer to an option", OPTION_REPLY_MAGIC, found)),
        }
        let (of, kind) = (be32(&self.input, 8), be32(&self.input, 12));
        if of != option.code() {
            return Err(ProtocolError::OtherOption {
                expected: option,
                found: of,
            }
            .into());
        }
        let len = be32(&self.input, 16) as usize;
        if len > REPLY_DATA_MAX {
            let expected = Expected::AtMost(REPLY_DATA_MAX as u64);
            return Err(length("answer to an option", len, expected));
        }
        let Some(reply) = self.take(REPLY_HEADER_LEN + len) else {
            return Ok(None);
        };
        self.replies += 1;
        if self.replies > REPLIES_MAX {
            return Err(ProtocolError::TooMany {
                what: "answers to one option",
                limit: REPLIES_MAX,
            }
            .into());
        }
        let data = &reply[REPLY_HEADER_LEN..];
        match kind {
            REP_ACK => self.acknowledged(option, data),
            REP_INFO if option == OptionCode::Go => self.info(data),
            REP_META_CONTEXT if option == OptionCode::SetMetaContext => self.context(data),
            error if error & REP_ERROR_BIT != 0 => self.refused(Refusal {
                option,
                error: OptionError::from_code(error & !REP_ERROR_BIT),
                message: String::from_utf8_lossy(data).into_owned(),
            }),
            found => Err(ProtocolError::ReplyType { option, found }.into()),
        }
    }

    fn acknowledged(
        &mut self,
        option: OptionCode,
        data: &[u8],
    ) -> Result<Option<Step>, NegotiationError> {
        if !data.is_empty() {
            return Err(length("acknowledgement", data.len(), Expected::Exactly(0)));
        }
        match option {
            OptionCode::StartTls => self.state = State::Tls,
            OptionCode::StructuredReply => {
                self.structured = true;
                self.ask_contexts();
            }
            OptionCode::SetMetaContext => self.ask_go(),
            _ => {
                let (size, flags) = self.export.ok_or(ProtocolError::NoExportInfo)?;
                return self.open(size, flags, Dialect::Standard).map(Some);
            }
        }
        Ok(Some(Step::Continue))
    }

    fn refused(&mut self, refusal: Refusal) -> Result<Option<Step>, NegotiationError> {
        let is_final = matches!(
            refusal.error,
            OptionError::TlsRequired | OptionError::Shutdown
        );
        match refusal.option {
            _ if is_final => return Err(refusal.into()),
            OptionCode::StructuredReply => self.ask_go(),
            OptionCode::SetMetaContext => {
                (self.allocation, self.dirty) = (None, None);
                self.ask_go();
            }
            OptionCode::Go if refusal.error == OptionError::Unsupported => self.ask_export_name(),
            _ => return Err(refusal.into()),
        }
        Ok(Some(Step::Continue))
    }

    fn info(&mut self, data: &[u8]) -> Result<Option<Step>, NegotiationError> {
        if data.len() < 2 {
            return Err(length("information", data.len(), Expected::AtLeast(2)));
        }
        let exactly = |len| match data.len() {
            found if found == len => Ok(()),
            found => Err(length("information", found, Expected::Exactly(len as u64))),
        };
        match be16(data, 0) {
            INFO_EXPORT => {
                exactly(12)?;
                let found = (be64(data, 2), be16(data, 10));
                if self.export.is_some_and(|before| before != found) {
                    return Err(ProtocolError::Contradiction("export's size or flags").into());
                }
                self.export = Some(found);
            }
            INFO_BLOCK_SIZE => {
                exactly(14)?;
                let found = BlockSizes {
                    minimum: be32(data, 2),
                    preferred: be32(data, 6),
                    maximum: be32(data, 10),
                }
                .checked()?;
                if self.block_sizes.is_some_and(|before| before != found) {
                    return Err(ProtocolError::Contradiction("export's block sizes").into());
                }
                self.block_sizes = Some(found);
            }
            _ => {}
        }
        Ok(Some(Step::Continue))
    }

    fn context(&mut self, data: &[u8]) -> Result<Option<Step>, NegotiationError> {
        if data.len() < 4 {
            let expected = Expected::AtLeast(4);
            return Err(length("metadata context", data.len(), expected));
        }
        let id = ContextId(be32(data, 0));
        let name = std::str::from_utf8(&data[4..]).map_err(|_| ProtocolError::Text {
            what: "name of a metadata context",
        })?;
        let place =
            match name {
                BASE_ALLOCATION => &mut self.allocation,
                name if self.wanted.dirty_bitmap.as_deref().is_some_and(|wanted| {
                    name.strip_prefix(DIRTY_BITMAP_PREFIX) == Some(wanted)
                }) =>
                {
                    &mut self.dirty
                }
                _ => return Err(unasked(name)),
            };
        if place.replace(id).is_some() || self.allocation == self.dirty {
            return Err(unasked(name));
        }
        Ok(Some(Step::Continue))
    }

    fn export_name(&mut self) -> Result<Option<Step>, NegotiationError> {
        let padding = if self.no_zeroes {
            0
        } else {
            EXPORT_NAME_PADDING
        };
        let Some(reply) = self.take(EXPORT_REPLY_LEN + padding) else {
            return Ok(None);
        };
        let (size, flags) = (be64(&reply, 0), be16(&reply, 8));
        let is_xapi = !self.no_zeroes
            && !self.structured
            && TransmissionFlags(flags) == TransmissionFlags::READ_ONLY_ALONE;
        let dialect = if is_xapi {
            Dialect::Xapi
        } else {
            Dialect::Standard
        };
        self.open(size, flags, dialect).map(Some)
    }

    fn open(&mut self, size: u64, flags: u16, dialect: Dialect) -> Result<Step, NegotiationError> {
        if size > i64::MAX as u64 {
            return Err(ProtocolError::Size { size }.into());
        }
        self.state = State::Open;
        Ok(Step::Open(Export {
            size,
            flags: TransmissionFlags(flags),
            block_sizes: self.block_sizes.unwrap_or(BlockSizes::DEFAULT),
            structured: self.structured,
            allocation: self.allocation,
            dirty: self.dirty,
            dialect,
        }))
    }
}

fn magic(what: &'static str, expected: u64, found: u64) -> NegotiationError {
    ProtocolError::Magic {
        what,
        expected,
        found,
    }
    .into()
}

fn length(what: &'static str, found: usize, expected: Expected) -> NegotiationError {
    ProtocolError::Length {
        what,
        found: found as u64,
        expected,
    }
    .into()
}

fn unasked(name: &str) -> NegotiationError {
    ProtocolError::Context {
        name: name.chars().take(256).collect(),
    }
    .into()
}

#[cfg(test)]
#[path = "negotiation_tests.rs"]
mod tests;
