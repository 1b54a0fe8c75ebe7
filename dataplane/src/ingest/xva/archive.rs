//! An XVA from its first byte to its last.
//!
//! [`XvaArchive`] has been read as far as its description goes, so that it is known which disks there will be;
//! `XvaStream` then gives their bytes. A plain file is read through the repository's engine, everything else as
//! it comes.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::units::DiskLength;
use undercroft_format::xva::{Description, Event, XvaError, XvaReader};

use super::pump::Patience;
use super::read_ahead::ReadAhead;
use super::unpack::{Compression, MAGIC_LEN, NotXva};
use crate::ingest::source::{DiskSource, OpenSourceError};
use crate::io::Engine;
use crate::progress::Progress;
use crate::repository::error::{RepositoryError, Result};

/// Bytes read at once of what is no plain file.
const STREAM_LEN: usize = 1 << 20;

/// An XVA whose description was read.
pub struct XvaArchive {
    name: String,
    reader: XvaReader,
    description: Arc<Description>,
    input: Input,
    is_repeatable: bool,
}

enum Input {
    /// A plain file, which is read anew from where its description ends.
    File(DiskSource),
    Stream(Box<dyn BufRead + Send>),
}

/// An XVA could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenXvaError {
    /// The file.
    #[error(transparent)]
    File(#[from] OpenSourceError),
    /// Reading it failed.
    #[error("reading the XVA {name}")]
    Read {
        /// What it is called.
        name: String,
        /// How.
        source: io::Error,
    },
    /// Something else.
    #[error("{name} is no XVA: {source}")]
    NotXva {
        /// What it is called.
        name: String,
        /// Why.
        source: NotXva,
    },
    /// It is one, but cannot be used.
    #[error("reading the XVA {name}")]
    Xva {
        /// What it is called.
        name: String,
        /// Why.
        source: XvaError,
    },
}

impl XvaArchive {
    /// Opens a file and reads its description.
    ///
    /// # Errors
    /// It cannot be read, or is no XVA that can be used.
    pub fn open_file(path: &Path, patience: Patience) -> std::result::Result<Self, OpenXvaError> {
        let name = path.display().to_string();
        let source = DiskSource::open(path)?;
        let read_error = |source| OpenXvaError::Read {
            name: name.clone(),
            source,
        };
        let mut file = BufReader::with_capacity(256 << 10, File::open(path).map_err(read_error)?);
        let compression = Compression::of(file.fill_buf().map_err(read_error)?);
        let compression = compression.map_err(|source| OpenXvaError::NotXva {
            name: name.clone(),
            source,
        })?;
        if compression != Compression::None {
            let opened = Self::open_stream(name, Box::new(file), patience)?;
            return Ok(Self {
                is_repeatable: true,
                ..opened
            });
        }
        let mut reader = XvaReader::new();
        let description = describe(&name, &mut reader, &mut file)?;
        Ok(Self {
            name,
            reader,
            description,
            input: Input::File(source),
            is_repeatable: true,
        })
    }

    /// Reads the description of an XVA that comes as a stream called `name`.
    ///
    /// # Errors
    /// As [`open_file`](Self::open_file).
    pub fn open_stream(
        name: String,
        mut stream: Box<dyn Read + Send>,
        patience: Patience,
    ) -> std::result::Result<Self, OpenXvaError> {
        let read_error = |source| OpenXvaError::Read {
            name: name.clone(),
            source,
        };
        let mut head = Vec::new();
        let mut first = (&mut stream).take(MAGIC_LEN as u64);
        first.read_to_end(&mut head).map_err(read_error)?;
        let compression = Compression::of(&head).map_err(|source| OpenXvaError::NotXva {
            name: name.clone(),
            source,
        })?;
        let stream = Cursor::new(head).chain(stream);
        let mut stream: Box<dyn BufRead + Send> = match compression {
            Compression::None => Box::new(BufReader::with_capacity(STREAM_LEN, stream)),
            packed => Box::new(
                packed
                    .unpack(Box::new(stream), patience)
                    .map_err(read_error)?,
            ),
        };
        let mut reader = XvaReader::new();
        let description = describe(&name, &mut reader, &mut *stream)?;
        Ok(Self {
            name,
            reader,
            description,
            input: Input::Stream(stream),
            is_repeatable: false,
        })
    }

    /// What stands before the disks.
    pub fn description(&self) -> &Arc<Description> {
        &self.description
    }

    /// Begins with the disks. The calling thread has to read and to drop the result.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn into_stream(self, engine: &dyn Engine) -> Result<XvaStream> {
        let input: Box<dyn BufRead + Send> = match self.input {
            Input::File(source) => {
                let input = ReadAhead::new(source, engine, self.reader.position());
                Box::new(input.map_err(RepositoryError::io("starting I/O for", &self.name))?)
            }
            Input::Stream(stream) => stream,
        };
        Ok(XvaStream {
            name: self.name,
            reader: self.reader,
            input,
            is_repeatable: self.is_repeatable,
        })
    }
}

/// Reads up to the end of the description, and not a byte more.
fn describe(
    name: &str,
    reader: &mut XvaReader,
    input: &mut dyn BufRead,
) -> std::result::Result<Arc<Description>, OpenXvaError> {
    loop {
        if let Some(description) = reader.description() {
            return Ok(description.clone());
        }
        let bytes = input.fill_buf().map_err(|source| OpenXvaError::Read {
            name: name.to_owned(),
            source,
        })?;
        let step = match bytes.is_empty() {
            true => reader.finish().map(|()| 0),
            false => reader.step(bytes).map(|step| step.consumed),
        };
        let consumed = step.map_err(|source| OpenXvaError::Xva {
            name: name.to_owned(),
            source,
        })?;
        input.consume(consumed);
    }
}

/// What a step of an XVA came to. Data goes elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Nothing,
    Data,
    /// The disk of this number in the description begins.
    DiskBegins(usize),
    DiskEnds,
    /// The archive was complete, and nothing came after it.
    End,
}

/// The disks of an XVA.
pub(crate) struct XvaStream {
    name: String,
    reader: XvaReader,
    input: Box<dyn BufRead + Send>,
    is_repeatable: bool,
}

impl XvaStream {
    /// Whether the same bytes can be had again.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.is_repeatable
    }

    /// Takes the next bytes; those of a disk go to `data`, with their offset there.
    pub(crate) fn step(&mut self, data: &mut dyn FnMut(u64, &[u8])) -> Result<Happening> {
        let at = self.reader.position();
        let bytes = self.input.fill_buf().map_err(|error| {
            let place = format!("the XVA {} at byte {at}", self.name);
            RepositoryError::io("reading", &place)(error)
        })?;
        let failed = |error: XvaError| {
            RepositoryError::io("reading", &format!("the XVA {}", self.name))(io::Error::other(
                error,
            ))
        };
        if bytes.is_empty() {
            self.reader.finish().map_err(failed)?;
            return Ok(Happening::End);
        }
        let step = self.reader.step(bytes).map_err(failed)?;
        let happening = match step.event {
            Some(Event::Data { offset, bytes }) => {
                data(offset.get(), bytes);
                Happening::Data
            }
            Some(Event::DiskBegins(number)) => Happening::DiskBegins(number),
            Some(Event::DiskEnds(_)) => Happening::DiskEnds,
            Some(Event::Description | Event::End) | None => Happening::Nothing,
        };
        let consumed = step.consumed;
        self.input.consume(consumed);
        Ok(happening)
    }

    /// The disk that begins next; `None` at the archive's end.
    pub(crate) fn next_disk(&mut self) -> Result<Option<usize>> {
        loop {
            match self.step(&mut |_, _| unreachable!("data lies in disks"))? {
                Happening::DiskBegins(number) => return Ok(Some(number)),
                Happening::End => return Ok(None),
                Happening::Nothing | Happening::Data | Happening::DiskEnds => {}
            }
        }
    }

    /// Checks the disk that has just begun, and keeps nothing of it.
    pub(crate) fn skip_disk(&mut self, progress: &Progress) -> Result<()> {
        while self.step(&mut |_, _| {})? != Happening::DiskEnds {
            if progress.is_stopping() {
                return Err(RepositoryError::Cancelled);
            }
        }
        Ok(())
    }
}

/// A disk of an XVA, which is read along with the others of it.
#[derive(Clone)]
pub struct ArchivedDisk {
    /// The archive, until it is read.
    pub archive: Arc<Mutex<Option<XvaArchive>>>,
    /// Which of its disks.
    pub number: usize,
    /// Its size.
    pub size: DiskLength,
}

impl fmt::Debug for ArchivedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArchivedDisk({}, {} bytes)", self.number, self.size)
    }
}

impl fmt::Debug for XvaArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XvaArchive({:?})", self.name)
    }
}
