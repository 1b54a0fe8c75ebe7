//! From the greeting to an export: the server's half of fixed newstyle negotiation.
//!
//! With TLS nothing but STARTTLS and ABORT is answered before it, and what was agreed on before is forgotten.
//! Options that are not known, or too long, are passed over and refused.

use std::sync::Arc;

use super::error::ClientError;
use super::offer::Offers;
use super::option_data::{context_data, info_data, information, shown};
use crate::nbd::wire::{
    BASE_ALLOCATION, BASE_PREFIX, EXPORT_NAME_PADDING, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    GREETING_MAGIC, OPTION_MAGIC, OptionCode, OptionError, REP_ACK, REP_ERROR_BIT, REP_INFO,
    REP_META_CONTEXT, REP_SERVER, be32, be64, put_option_reply, put_string,
};

/// Longest option that is looked at, in bytes: far more than any that is known needs.
pub const OPTION_LEN_MAX: u32 = 64 << 10;
/// Longest option that is passed over.
pub const OPTION_SKIP_MAX: u32 = 32 << 20;
/// Most options of one client.
pub const OPTIONS_MAX: usize = 1024;
/// The number of `base:allocation` on every connection.
pub const ALLOCATION_CONTEXT: u32 = 1;

const OPTION_HEADER_LEN: usize = 16;

/// What to do after bytes were taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStep {
    /// Send [`ServerNegotiation::take_output`], then read on.
    Continue,
    /// Send the output, speak TLS, then call [`ServerNegotiation::tls_established`].
    StartTls,
    /// Send the output. The export is open; bytes that came behind are [`ServerNegotiation::into_rest`]'s.
    Open(Opened),
    /// Send the output and close: the client has what it wanted.
    Close,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Which of the offers.
    pub export: usize,
    /// Whether replies go in chunks.
    pub structured: bool,
    /// Whether block status was asked for, as [`ALLOCATION_CONTEXT`].
    pub allocation: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Flags,
    Option,
    /// The rest of an option that is too long.
    Skip {
        option: OptionCode,
        left: u32,
    },
    Tls,
    Ended(ServerStep),
}

/// The machine.
#[derive(Debug)]
pub struct ServerNegotiation {
    offers: Arc<Offers>,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    no_zeroes: bool,
    secure: bool,
    structured: bool,
    /// The export that `base:allocation` was chosen for.
    allocation: Option<usize>,
    options: usize,
}

impl ServerNegotiation {
    /// A server that has its greeting to send.
    pub fn new(offers: Arc<Offers>) -> Self {
        let mut output = GREETING_MAGIC.to_be_bytes().to_vec();
        output.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        output.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Self {
            offers,
            state: State::Flags,
            input: Vec::new(),
            output,
            no_zeroes: false,
            secure: false,
            structured: false,
            allocation: None,
            options: 0,
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

    /// Takes in what came. Holds no more of it than an option may have.
    ///
    /// # Errors
    /// [`ClientError`]; what there is of output may still be sent.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<ServerStep, ClientError> {
        self.input.extend_from_slice(bytes);
        loop {
            let is_over = match self.state {
                State::Flags => self.client_flags()?,
                State::Option => self.option()?,
                State::Skip { option, left } => self.skip(option, left),
                State::Tls if self.input.is_empty() => return Ok(ServerStep::StartTls),
                State::Tls => return Err(ClientError::ClearAfterStartTls(self.input.len())),
                State::Ended(step) => return Ok(step),
            };
            if !is_over {
                return Ok(ServerStep::Continue);
            }
        }
    }

    /// The connection is under TLS from here on.
    ///
    /// # Panics
    /// If TLS was not what [`ServerStep`] said.
    pub fn tls_established(&mut self) {
        assert!(self.state == State::Tls, "TLS was not agreed on");
        self.secure = true;
        self.structured = false;
        self.allocation = None;
        self.state = State::Option;
    }

    /// False: more bytes are needed.
    fn client_flags(&mut self) -> Result<bool, ClientError> {
        let Some(flags) = self.take(4) else {
            return Ok(false);
        };
        let flags = be32(&flags, 0);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(ClientError::Flags { flags });
        }
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        self.state = State::Option;
        Ok(true)
    }

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        if self.input.len() < len {
            return None;
        }
        let rest = self.input.split_off(len);
        Some(std::mem::replace(&mut self.input, rest))
    }

    fn option(&mut self) -> Result<bool, ClientError> {
        if self.input.len() >= 8 && be64(&self.input, 0) != OPTION_MAGIC {
            return Err(ClientError::Magic {
                what: "option",
                expected: OPTION_MAGIC,
                found: be64(&self.input, 0),
            });
        }
        if self.input.len() < OPTION_HEADER_LEN {
            return Ok(false);
        }
        let option = OptionCode::from_code(be32(&self.input, 8));
        let len = be32(&self.input, 12);
        if len > OPTION_SKIP_MAX {
            return Err(ClientError::OptionLen {
                found: len,
                limit: OPTION_SKIP_MAX,
            });
        }
        if len > OPTION_LEN_MAX {
            self.count()?;
            self.input.drain(..OPTION_HEADER_LEN);
            self.state = State::Skip { option, left: len };
            return Ok(true);
        }
        let Some(message) = self.take(OPTION_HEADER_LEN + len as usize) else {
            return Ok(false);
        };
        self.count()?;
        self.answer(option, &message[OPTION_HEADER_LEN..])?;
        Ok(true)
    }

    fn count(&mut self) -> Result<(), ClientError> {
        self.options += 1;
        match self.options > OPTIONS_MAX {
            true => Err(ClientError::TooManyOptions { limit: OPTIONS_MAX }),
            false => Ok(()),
        }
    }

    fn skip(&mut self, option: OptionCode, left: u32) -> bool {
        let len = self.input.len().min(left as usize);
        self.input.drain(..len);
        let left = left - len as u32;
        if left > 0 {
            self.state = State::Skip { option, left };
            return false;
        }
        self.refuse(option, OptionError::TooBig, "");
        self.state = match option {
            // It has no refusals, and its name is longer than any.
            OptionCode::ExportName => State::Ended(ServerStep::Close),
            _ => State::Option,
        };
        true
    }

    fn reply(&mut self, option: OptionCode, kind: u32, data: &[u8]) {
        put_option_reply(&mut self.output, option, kind, data);
    }

    fn acknowledge(&mut self, option: OptionCode) {
        self.reply(option, REP_ACK, &[]);
    }

    fn refuse(&mut self, option: OptionCode, error: OptionError, text: &str) {
        if option != OptionCode::ExportName {
            self.reply(option, REP_ERROR_BIT | error.code(), text.as_bytes());
        }
    }

    fn answer(&mut self, option: OptionCode, data: &[u8]) -> Result<(), ClientError> {
        let is_locked = self.offers.tls && !self.secure;
        match option {
            OptionCode::Abort => {
                self.acknowledge(option);
                self.state = State::Ended(ServerStep::Close);
            }
            OptionCode::ExportName => self.export_name(data, is_locked)?,
            OptionCode::StartTls => self.start_tls(data),
            _ if is_locked => {
                self.refuse(option, OptionError::TlsRequired, "only under TLS");
            }
            OptionCode::StructuredReply => match data {
                [] => {
                    self.structured = true;
                    self.acknowledge(option);
                }
                _ => self.refuse(option, OptionError::Invalid, "no data is expected"),
            },
            OptionCode::List => self.list(data),
            OptionCode::Info | OptionCode::Go => self.info(option, data),
            OptionCode::ListMetaContext | OptionCode::SetMetaContext => {
                self.contexts(option, data);
            }
            OptionCode::Other(_) => self.refuse(option, OptionError::Unsupported, ""),
        }
        Ok(())
    }

    fn start_tls(&mut self, data: &[u8]) {
        let option = OptionCode::StartTls;
        if !data.is_empty() {
            self.refuse(option, OptionError::Invalid, "no data is expected");
        } else if self.secure {
            self.refuse(option, OptionError::Invalid, "TLS is spoken already");
        } else if !self.offers.tls {
            self.refuse(option, OptionError::Policy, "this server speaks no TLS");
        } else {
            self.acknowledge(option);
            self.state = State::Tls;
        }
    }

    fn export_name(&mut self, data: &[u8], is_locked: bool) -> Result<(), ClientError> {
        let found = std::str::from_utf8(data).ok();
        let found = found.and_then(|name| self.offers.find(name));
        let problem = match found {
            _ if is_locked => "without TLS",
            Some(export) => {
                let offer = &self.offers.list()[export];
                let flags = offer.flags(self.structured).0;
                self.output.extend_from_slice(&offer.size.to_be_bytes());
                self.output.extend_from_slice(&flags.to_be_bytes());
                if !self.no_zeroes {
                    let len = self.output.len() + EXPORT_NAME_PADDING;
                    self.output.resize(len, 0);
                }
                self.open(export);
                return Ok(());
            }
            None => "which there is not",
        };
        Err(ClientError::ExportName {
            name: shown(data),
            problem,
        })
    }

    fn open(&mut self, export: usize) {
        self.state = State::Ended(ServerStep::Open(Opened {
            export,
            structured: self.structured,
            // Chosen for another export it is worth nothing.
            allocation: self.structured && self.allocation == Some(export),
        }));
    }

    fn list(&mut self, data: &[u8]) {
        let option = OptionCode::List;
        if !data.is_empty() {
            return self.refuse(option, OptionError::Invalid, "no data is expected");
        }
        for offer in self.offers.clone().list() {
            let mut data = Vec::new();
            put_string(&mut data, &offer.name);
            data.extend_from_slice(offer.description.as_bytes());
            self.reply(option, REP_SERVER, &data);
        }
        self.acknowledge(option);
    }

    fn info(&mut self, option: OptionCode, data: &[u8]) {
        let offers = self.offers.clone();
        let Some((name, wanted)) = info_data(data) else {
            return self.refuse(option, OptionError::Invalid, "it is malformed");
        };
        let Some(export) = self.find(option, name) else {
            return;
        };
        let offer = &offers.list()[export];
        for data in information(offer, self.structured, wanted) {
            self.reply(option, REP_INFO, &data);
        }
        self.acknowledge(option);
        if option == OptionCode::Go {
            self.open(export);
        }
    }

    /// Finds an export, or refuses.
    fn find(&mut self, option: OptionCode, name: &[u8]) -> Option<usize> {
        let found = std::str::from_utf8(name).ok();
        let found = found.and_then(|name| self.offers.find(name));
        if found.is_none() {
            let text = format!("there is no export {:?}", shown(name));
            self.refuse(option, OptionError::Unknown, &text);
        }
        found
    }

    fn contexts(&mut self, option: OptionCode, data: &[u8]) {
        let is_list = option == OptionCode::ListMetaContext;
        if !is_list {
            // Whatever comes of this one: what was chosen before is not any more.
            self.allocation = None;
        }
        if !self.structured {
            let text = "structured replies come first";
            return self.refuse(option, OptionError::Invalid, text);
        }
        let Some((name, queries)) = context_data(data) else {
            return self.refuse(option, OptionError::Invalid, "it is malformed");
        };
        let Some(export) = self.find(option, name) else {
            return;
        };
        let is_meant = |query: &&[u8]| {
            **query == *BASE_ALLOCATION.as_bytes()
                || (is_list && **query == *BASE_PREFIX.as_bytes())
        };
        if (is_list && queries.is_empty()) || queries.iter().any(is_meant) {
            let id = if is_list { 0 } else { ALLOCATION_CONTEXT };
            let mut data = id.to_be_bytes().to_vec();
            data.extend_from_slice(BASE_ALLOCATION.as_bytes());
            self.reply(option, REP_META_CONTEXT, &data);
            if !is_list {
                self.allocation = Some(export);
            }
        }
        self.acknowledge(option);
    }
}
