//! The reader of XVAs: takes the bytes of a stream in pieces of any length and says what they are.
//!
//! It does no I/O and keeps nothing of the disks: data is handed back as parts of the bytes that came in,
//! hashed on the way. An XVA is good only when [`XvaReader::finish`] says so after the last byte: whoever acts
//! on what came before has to be able to undo it.
//!
//! Memory: one header, one extended header, and `ova.xml`, each bounded. Time: what is read, once.

use std::fmt;
use std::sync::Arc;

use super::blocks::{BlockSequence, SequenceError};
use super::checksum::{BlockHasher, ChecksumKind};
use super::ova_xml::{Disk, OVA_XML_LEN_MAX, OvaXml, OvaXmlError};
use super::tar::{Header, HeaderError, MemberKind, PaxError, TAR_BLOCK_LEN, pax_records};
use crate::units::DiskOffset;

const OVA_XML: &[u8] = b"ova.xml";
/// Longest extended header, in bytes; and GNU's longest name.
const EXTENSION_LEN_MAX: u64 = 64 << 10;
/// Most data of one step: it is still in the cache when whoever gets it copies it.
const STEP_LEN_MAX: usize = 128 << 10;
/// Zeros after the end: tar fills up its last record, which is 10 KiB unless asked otherwise.
const TRAILING_LEN_MAX: u64 = 1 << 20;
/// Members that say nothing, directories and extended headers, one after the other.
const IDLE_MEMBERS_MAX: u32 = 4096;
/// Digits of a block's number: 64 bits hold any 19.
const NUMBER_DIGITS_MAX: usize = 19;

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// `ova.xml` is complete: see [`XvaReader::description`].
    Description,
    /// The disk of this number in [`Description::disks`] begins.
    DiskBegins(usize),
    /// Bytes of that disk. What lies between them and those before is zero.
    Data {
        /// Where on the disk.
        offset: DiskOffset,
        /// What.
        bytes: &'a [u8],
    },
    /// The disk is complete, and its checksums fit.
    DiskEnds(usize),
    /// The archive is complete; only zeros may follow.
    End,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// What they are; `None` if more are needed to tell, or they say nothing.
    pub event: Option<Event<'a>>,
}

/// What stands before the disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The text of `ova.xml`.
    pub text: Vec<u8>,
    /// What it says.
    pub ova: OvaXml,
    /// The disks that the archive has to hold, in no particular order.
    pub disks: Vec<Disk>,
}

/// An XVA that cannot be used: which member, where in the archive, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{member} at byte {offset} of the archive: {problem}")]
pub struct XvaError {
    /// The member, or what stands in its place.
    pub member: String,
    /// Where the member, its payload or its end lies, in bytes from the archive's start.
    pub offset: u64,
    /// What is wrong.
    pub problem: XvaProblem,
}

/// What is wrong with an XVA.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XvaProblem {
    /// Not tar, or not what an XVA is made of.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// pax.
    #[error(transparent)]
    Extended(#[from] PaxError),
    /// pax, for all members.
    #[error("a global extended header that sets path or size is no part of an XVA")]
    GlobalPath,
    /// The description.
    #[error(transparent)]
    OvaXml(#[from] OvaXmlError),
    /// The disk's blocks.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// Another archive.
    #[error("an XVA begins with ova.xml")]
    NotFirst,
    /// Larger than what is held in memory.
    #[error("it is {size} bytes long, more than the {limit} that are read")]
    TooLong {
        /// Its length.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// Padding without end.
    #[error("{IDLE_MEMBERS_MAX} members in a row that hold nothing of the VM")]
    Idle,
    /// A name of another kind.
    #[error("a member of an XVA is called DISK/NUMBER, as in Ref:4/00000000")]
    Name,
    /// Not in the description.
    #[error("ova.xml has no disk {disk}; its disks are: {known}")]
    UnknownDisk {
        /// Its directory.
        disk: String,
        /// Those there are.
        known: String,
    },
    /// A disk that was complete.
    #[error("disk {disk} was complete already: its blocks lie together")]
    DiskAgain {
        /// Its directory.
        disk: String,
    },
    /// The next disk begins too early.
    #[error("disk {disk} ends after {offset} of {size} bytes: its last block is missing")]
    DiskShort {
        /// Its directory.
        disk: String,
        /// Bytes accounted for.
        offset: u64,
        /// Its length.
        size: u64,
    },
    /// The archive ends without it.
    #[error("disk {disk} is missing: ova.xml has it, with {size} bytes")]
    DiskMissing {
        /// Its directory.
        disk: String,
        /// Its length.
        size: u64,
    },
    /// No checksum.
    #[error(
        "the checksum of {block} is expected: {block}.xxhash, 16 bytes, or {block}.checksum, 40 bytes"
    )]
    ChecksumExpected {
        /// The block before.
        block: String,
    },
    /// The kinds of checksums change within a disk.
    #[error("a checksum {expected} is expected, as for the blocks of this disk before")]
    ChecksumKind {
        /// The suffix of the others.
        expected: &'static str,
    },
    /// Damage.
    #[error("the block has the checksum {computed}, not {stated}: it was damaged on its way")]
    Checksum {
        /// What the archive says.
        stated: String,
        /// What the bytes give.
        computed: String,
    },
    /// A last block that is longer than the disk, and not because it was filled up.
    #[error("the last block goes beyond the disk's end with bytes that are not zero")]
    Excess,
    /// Half an end.
    #[error("two blocks of zeros end an archive: here one is followed by something else")]
    HalfEnd,
    /// Something after the end.
    #[error("only zeros, and no more than {TRAILING_LEN_MAX}, may follow the archive's end")]
    Trailing,
    /// The archive stops.
    #[error("the archive is truncated: it ends here, where {expected} expected")]
    Truncated {
        /// What should have come.
        expected: &'static str,
    },
}

enum State {
    /// A header is being gathered.
    Header { filled: usize },
    /// The payload of a header that says something of the next.
    Extension { kind: MemberKind, left: u64 },
    /// The payload of `ova.xml`.
    Description { left: u64 },
    /// The payload of a block: of the disk, then beyond its end.
    Block { offset: u64, left: u64, excess: u64 },
    /// The payload of a checksum.
    Checksum { kind: ChecksumKind, left: u64 },
    /// What fills a payload up to a whole block of the tar.
    Padding { left: u64 },
    /// Beyond the end.
    Tail { zeros: u64 },
    /// An error was told.
    Failed,
}

/// The disk whose blocks are being read.
struct OpenDisk {
    number: usize,
    sequence: BlockSequence,
    /// Of its blocks so far.
    checksums: Option<ChecksumKind>,
}

/// A block whose checksum is still to come.
struct OpenBlock {
    name: String,
    hasher: BlockHasher,
}

/// Reads one XVA.
pub struct XvaReader {
    state: State,
    /// Bytes consumed.
    at: u64,
    header: [u8; TAR_BLOCK_LEN],
    /// A block of zeros came just before.
    half_end: bool,
    /// Where the current member's header began, and its name.
    member: Member,
    /// Payload of the current member that is held: an extended header, a checksum, `ova.xml`.
    payload: Vec<u8>,
    payload_len: u64,
    /// From extended headers, for the next member.
    next_name: Option<Vec<u8>>,
    next_size: Option<u64>,
    idle_members: u32,
    description: Option<Arc<Description>>,
    disk: Option<OpenDisk>,
    block: Option<OpenBlock>,
    /// By number in the description.
    is_done: Vec<bool>,
}

#[derive(Clone, Debug, Default)]
struct Member {
    name: String,
    at: u64,
}

impl Default for XvaReader {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for XvaReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XvaReader(at byte {})", self.at)
    }
}

impl XvaReader {
    /// At the first byte.
    pub fn new() -> Self {
        Self {
            state: State::Header { filled: 0 },
            at: 0,
            header: [0; TAR_BLOCK_LEN],
            half_end: false,
            member: Member::default(),
            payload: Vec::new(),
            payload_len: 0,
            next_name: None,
            next_size: None,
            idle_members: 0,
            description: None,
            disk: None,
            block: None,
            is_done: Vec::new(),
        }
    }

    /// What stands before the disks; `None` until [`Event::Description`].
    pub fn description(&self) -> Option<&Arc<Description>> {
        self.description.as_ref()
    }

    /// Bytes consumed so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Takes some of `input` and says what it is. Called again with what is left, until nothing is.
    ///
    /// # Errors
    /// The first thing that is wrong. After that every call fails.
    pub fn step<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, XvaError> {
        let step = self.take(input);
        match &step {
            Ok(step) => self.at += step.consumed as u64,
            Err(_) => self.state = State::Failed,
        }
        step
    }

    /// Says whether the archive may end where the input did.
    ///
    /// # Errors
    /// It may not: it is truncated.
    pub fn finish(&self) -> Result<(), XvaError> {
        let expected = match &self.state {
            State::Tail { .. } => return Ok(()),
            State::Header { .. } if self.description.is_none() => "ova.xml is",
            State::Header { .. } if self.block.is_some() => "the checksum of a block is",
            State::Header { .. } if self.half_end => "a second block of zeros is",
            State::Header { .. } if self.disk.is_some() => "more blocks of the disk are",
            State::Header { .. } => "another disk, or the end mark of 1024 zeros, is",
            State::Extension { .. } | State::Description { .. } | State::Block { .. } => {
                "more of the member is"
            }
            State::Checksum { .. } => "more of the checksum is",
            State::Padding { .. } => "the padding of the member is",
            State::Failed => "something else was",
        };
        Err(self.error_at(self.at, XvaProblem::Truncated { expected }))
    }

    fn error_at(&self, offset: u64, problem: impl Into<XvaProblem>) -> XvaError {
        let member = match self.member.name.as_str() {
            "" => "the header".to_owned(),
            name => name.to_owned(),
        };
        XvaError {
            member,
            offset,
            problem: problem.into(),
        }
    }

    /// An error of the member at hand.
    fn error(&self, problem: impl Into<XvaProblem>) -> XvaError {
        self.error_at(self.member.at, problem)
    }

    fn take<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, XvaError> {
        if input.is_empty() {
            return Ok(Step {
                consumed: 0,
                event: None,
            });
        }
        match self.state {
            State::Header { filled } => self.header(input, filled),
            State::Extension { kind, left } => {
                let taken = self.hold(input, left);
                self.state = State::Extension {
                    kind,
                    left: left - taken as u64,
                };
                if left == taken as u64 {
                    self.extension(kind)?;
                    self.pad();
                }
                Ok(silent(taken))
            }
            State::Description { left } => {
                let taken = self.hold(input, left);
                self.state = State::Description {
                    left: left - taken as u64,
                };
                match left == taken as u64 {
                    true => self.describe(taken),
                    false => Ok(silent(taken)),
                }
            }
            State::Block {
                offset,
                left,
                excess,
            } => self.data(input, offset, left, excess),
            State::Checksum { kind, left } => {
                let taken = self.hold(input, left);
                self.state = State::Checksum {
                    kind,
                    left: left - taken as u64,
                };
                match left == taken as u64 {
                    true => self.verify(kind, taken),
                    false => Ok(silent(taken)),
                }
            }
            State::Padding { left } => {
                let taken = bounded(input, left);
                self.state = match left - taken as u64 {
                    0 => State::Header { filled: 0 },
                    left => State::Padding { left },
                };
                Ok(silent(taken))
            }
            State::Tail { zeros } => {
                let zeros = zeros + input.len() as u64;
                if let Some(place) = input.iter().position(|byte| *byte != 0) {
                    return Err(self.error_at(self.at + place as u64, XvaProblem::Trailing));
                }
                if zeros > TRAILING_LEN_MAX {
                    return Err(self.error_at(self.at, XvaProblem::Trailing));
                }
                self.state = State::Tail { zeros };
                Ok(silent(input.len()))
            }
            State::Failed => Err(self.error_at(
                self.at,
                XvaProblem::Truncated {
                    expected: "nothing more is",
                },
            )),
        }
    }

    /// Adds to the held payload.
    fn hold(&mut self, input: &[u8], left: u64) -> usize {
        let taken = bounded(input, left);
        self.payload.extend_from_slice(&input[..taken]);
        taken
    }

    /// The current member's payload is over.
    fn pad(&mut self) {
        self.payload.clear();
        self.state = match self.payload_len % TAR_BLOCK_LEN as u64 {
            0 => State::Header { filled: 0 },
            rest => State::Padding {
                left: TAR_BLOCK_LEN as u64 - rest,
            },
        };
    }

    fn header<'a>(&mut self, input: &'a [u8], filled: usize) -> Result<Step<'a>, XvaError> {
        if filled == 0 {
            self.member = Member {
                name: String::new(),
                at: self.at,
            };
        }
        let taken = input.len().min(TAR_BLOCK_LEN - filled);
        self.header[filled..filled + taken].copy_from_slice(&input[..taken]);
        if filled + taken < TAR_BLOCK_LEN {
            self.state = State::Header {
                filled: filled + taken,
            };
            return Ok(silent(taken));
        }
        self.state = State::Header { filled: 0 };
        let header = Header::parse(&self.header).map_err(|error| self.error(error))?;
        let Some(header) = header else {
            return self.zero_block(taken);
        };
        if self.half_end {
            return Err(self.error(XvaProblem::HalfEnd));
        }
        let event = self.member(header)?;
        Ok(Step {
            consumed: taken,
            event,
        })
    }

    /// A block of zeros where a header could be.
    fn zero_block<'a>(&mut self, taken: usize) -> Result<Step<'a>, XvaError> {
        self.member.name = "the end mark".to_owned();
        self.check_between()?;
        if self.next_name.is_some() || self.next_size.is_some() {
            return Err(self.error(XvaProblem::Name));
        }
        let Some(description) = self.description.clone() else {
            return Err(self.error(XvaProblem::NotFirst));
        };
        if let Some(disk) = &self.disk {
            return Err(self.error(short(&description.disks[disk.number], &disk.sequence)));
        }
        let missing = self.is_done.iter().position(|done| !done);
        if let Some(missing) = missing {
            let disk = &description.disks[missing];
            return Err(self.error(XvaProblem::DiskMissing {
                disk: disk.reference.to_string(),
                size: disk.virtual_size.get(),
            }));
        }
        if !self.half_end {
            self.half_end = true;
            return Ok(silent(taken));
        }
        self.state = State::Tail { zeros: 0 };
        Ok(Step {
            consumed: taken,
            event: Some(Event::End),
        })
    }

    /// A block's checksum comes right behind it.
    fn check_between(&self) -> Result<(), XvaError> {
        match &self.block {
            Some(block) => Err(self.error(XvaProblem::ChecksumExpected {
                block: block.name.clone(),
            })),
            None => Ok(()),
        }
    }

    fn member<'a>(&mut self, header: Header) -> Result<Option<Event<'a>>, XvaError> {
        let is_file = header.kind == MemberKind::File;
        let name = match is_file {
            true => self.next_name.take().unwrap_or(header.name),
            false => header.name,
        };
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        self.member.name = shown(name);
        let size = match is_file {
            true => self.next_size.take().unwrap_or(header.size),
            false => header.size,
        };
        if size > i64::MAX as u64 - self.at {
            let limit = i64::MAX as u64;
            return Err(self.error(XvaProblem::TooLong { size, limit }));
        }
        self.payload_len = size;
        if is_file {
            self.idle_members = 0;
            return self.file(name, size);
        }
        self.idle_members += 1;
        if self.idle_members > IDLE_MEMBERS_MAX {
            return Err(self.error(XvaProblem::Idle));
        }
        if header.kind == MemberKind::Directory {
            // Whatever its size says, a directory has no payload.
            return Ok(None);
        }
        self.check_len(size, EXTENSION_LEN_MAX)?;
        self.state = State::Extension {
            kind: header.kind,
            left: size,
        };
        if size == 0 {
            self.extension(header.kind)?;
            self.pad();
        }
        Ok(None)
    }

    fn check_len(&self, size: u64, limit: u64) -> Result<(), XvaError> {
        match size <= limit {
            true => Ok(()),
            false => Err(self.error(XvaProblem::TooLong { size, limit })),
        }
    }

    /// An extended header is complete.
    fn extension(&mut self, kind: MemberKind) -> Result<(), XvaError> {
        match kind {
            MemberKind::LongName => {
                let len = self.payload.iter().position(|byte| *byte == 0);
                let name = &self.payload[..len.unwrap_or(self.payload.len())];
                self.next_name = Some(name.to_vec());
            }
            MemberKind::Extended | MemberKind::Global => {
                let records = pax_records(&self.payload).map_err(|error| self.error(error))?;
                let says_something = records.path.is_some() || records.size.is_some();
                if kind == MemberKind::Extended {
                    self.next_name = records.path.or(self.next_name.take());
                    self.next_size = records.size.or(self.next_size.take());
                } else if says_something {
                    return Err(self.error(XvaProblem::GlobalPath));
                }
            }
            MemberKind::LongLink | MemberKind::File | MemberKind::Directory => {}
        }
        Ok(())
    }

    fn file<'a>(&mut self, name: &[u8], size: u64) -> Result<Option<Event<'a>>, XvaError> {
        let Some(description) = self.description.clone() else {
            if name != OVA_XML {
                return Err(self.error(XvaProblem::NotFirst));
            }
            self.check_len(size, OVA_XML_LEN_MAX)?;
            if size == 0 {
                return Err(self.error(XvaProblem::Truncated {
                    expected: "a description of the VM is",
                }));
            }
            self.state = State::Description { left: size };
            return Ok(None);
        };
        if let Some(block) = &self.block {
            let suffix = name.strip_prefix(block.name.as_bytes());
            let kinds = [ChecksumKind::Xxh64, ChecksumKind::Sha1];
            let kind = kinds.into_iter().find(|kind| {
                suffix == Some(kind.suffix().as_bytes()) && size == kind.digits() as u64
            });
            let Some(kind) = kind else {
                return Err(self.error(XvaProblem::ChecksumExpected {
                    block: block.name.clone(),
                }));
            };
            self.state = State::Checksum { kind, left: size };
            return Ok(None);
        }
        let (directory, number) = block_name(name).ok_or_else(|| self.error(XvaProblem::Name))?;
        self.block_begins(&description, directory, number, size)
    }

    fn block_begins<'a>(
        &mut self,
        description: &Description,
        directory: &[u8],
        number: u64,
        size: u64,
    ) -> Result<Option<Event<'a>>, XvaError> {
        let is_of = |disk: &Disk| disk.reference.as_str().as_bytes() == directory;
        let mut event = None;
        let current = self.disk.as_ref().map(|disk| disk.number);
        if !current.is_some_and(|current| is_of(&description.disks[current])) {
            if let Some(disk) = &self.disk {
                let problem = short(&description.disks[disk.number], &disk.sequence);
                return Err(self.error(problem));
            }
            let next = description.disks.iter().position(is_of);
            let next = next.ok_or_else(|| self.error(unknown(directory, description)))?;
            let disk = &description.disks[next];
            if self.is_done[next] {
                return Err(self.error(XvaProblem::DiskAgain {
                    disk: disk.reference.to_string(),
                }));
            }
            self.disk = Some(OpenDisk {
                number: next,
                sequence: BlockSequence::new(disk.virtual_size),
                checksums: None,
            });
            event = Some(Event::DiskBegins(next));
        }
        let disk = self.disk.as_mut().expect("it was there or has begun");
        let placed = disk.sequence.place(number, size);
        let hasher = BlockHasher::new(disk.checksums);
        let placed = placed.map_err(|error| self.error(error))?;
        self.block = Some(OpenBlock {
            name: self.member.name.clone(),
            hasher,
        });
        match size {
            0 => self.pad(),
            _ => {
                self.state = State::Block {
                    offset: placed.offset,
                    left: placed.len,
                    excess: placed.excess,
                }
            }
        }
        Ok(event)
    }

    fn data<'a>(
        &mut self,
        input: &'a [u8],
        offset: u64,
        left: u64,
        excess: u64,
    ) -> Result<Step<'a>, XvaError> {
        let of_disk = left > 0;
        let taken = bounded(input, if of_disk { left } else { excess }).min(STEP_LEN_MAX);
        let bytes = &input[..taken];
        if !of_disk && bytes.iter().any(|byte| *byte != 0) {
            return Err(self.error(XvaProblem::Excess));
        }
        let block = self.block.as_mut().expect("a block's payload is its own");
        block.hasher.update(bytes);
        let (left, excess) = match of_disk {
            true => (left - taken as u64, excess),
            false => (0, excess - taken as u64),
        };
        self.state = State::Block {
            offset: offset + taken as u64,
            left,
            excess,
        };
        if left == 0 && excess == 0 {
            self.pad();
        }
        let offset = DiskOffset::new(offset);
        Ok(Step {
            consumed: taken,
            event: of_disk.then_some(Event::Data { offset, bytes }),
        })
    }

    fn describe<'a>(&mut self, taken: usize) -> Result<Step<'a>, XvaError> {
        let text = std::mem::take(&mut self.payload);
        let read = OvaXml::parse(&text).and_then(|ova| {
            let disks = ova.disks()?;
            Ok(Description { text, ova, disks })
        });
        let description = read.map_err(|error| self.error(error))?;
        // A disk without bytes has no blocks.
        let is_empty = |disk: &Disk| disk.virtual_size.get() == 0;
        self.is_done = description.disks.iter().map(is_empty).collect();
        self.description = Some(Arc::new(description));
        self.pad();
        Ok(Step {
            consumed: taken,
            event: Some(Event::Description),
        })
    }

    /// A checksum is complete.
    fn verify<'a>(&mut self, kind: ChecksumKind, taken: usize) -> Result<Step<'a>, XvaError> {
        let block = self.block.take().expect("a checksum follows its block");
        let disk = self.disk.as_mut().expect("a block is of a disk");
        let is_complete = disk.sequence.is_complete();
        let (number, before) = (disk.number, disk.checksums);
        disk.checksums = Some(kind);
        let Some(computed) = block.hasher.digits(kind) else {
            let expected = before.map_or("", ChecksumKind::suffix);
            return Err(self.error(XvaProblem::ChecksumKind { expected }));
        };
        if !self.payload.eq_ignore_ascii_case(computed.as_bytes()) {
            let stated = shown(&self.payload);
            return Err(self.error(XvaProblem::Checksum { stated, computed }));
        }
        self.pad();
        let event = is_complete.then(|| {
            self.disk = None;
            self.is_done[number] = true;
            Event::DiskEnds(number)
        });
        Ok(Step {
            consumed: taken,
            event,
        })
    }
}

fn silent<'a>(consumed: usize) -> Step<'a> {
    Step {
        consumed,
        event: None,
    }
}

fn bounded(input: &[u8], limit: u64) -> usize {
    (input.len() as u64).min(limit) as usize
}

fn short(disk: &Disk, sequence: &BlockSequence) -> XvaProblem {
    XvaProblem::DiskShort {
        disk: disk.reference.to_string(),
        offset: sequence.offset(),
        size: disk.virtual_size.get(),
    }
}

fn unknown(directory: &[u8], description: &Description) -> XvaProblem {
    let known = description.disks.iter().take(16);
    let known: Vec<_> = known.map(|disk| disk.reference.as_str()).collect();
    XvaProblem::UnknownDisk {
        disk: shown(directory),
        known: known.join(", "),
    }
}

/// A name for people: it may be anything.
fn shown(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(&name[..name.len().min(200)]);
    name.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Directory and number of a block.
fn block_name(name: &[u8]) -> Option<(&[u8], u64)> {
    let slash = name.iter().rposition(|byte| *byte == b'/')?;
    let (directory, digits) = (&name[..slash], &name[slash + 1..]);
    if digits.is_empty() || digits.len() > NUMBER_DIGITS_MAX {
        return None;
    }
    let number = digits.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'9' => Some(number * 10 + u64::from(digit - b'0')),
        _ => None,
    });
    Some((directory, number?))
}
