//! Overlays: what is written to a snapshot's disk goes to a file of its own. What the bytes of that file mean says
//! [`undercroft_format::overlay`].
//!
//! What makes it safe against a crash is the order of a flush: the data of all writes that have ended are made durable,
//! then the entries that name them are written, each into the slot that is not the durable one, and made durable. Only
//! then the next flush begins. Between flushes entries change in memory alone.
//!
//! - [`mod@file`]: made, locked, opened; `map`: which parts are here
//! - [`disk`]: the overlay over a disk, to be exported; [`delta`]: what was written, to be backed up
//! - [`fill`]: an overlay whose data are the disk that is being restored

pub mod delta;
pub mod disk;
pub mod file;
pub mod fill;
mod map;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use undercroft_format::codec::DecodeError;
use undercroft_format::overlay::{BLOCK_LEN, BlockState, HEADER_LEN, Header};
use undercroft_format::units::DiskRange;

use self::map::{Map, PAGE_LEN};
use crate::io::BlockFile;

/// Blocks whose number comes to the same here are written one after the other.
const TURNS: usize = 64;

/// An overlay could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// What the system says.
    #[error("{what} the overlay {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Its file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else has it.
    #[error("another process has the overlay {path} open")]
    InUse {
        /// Its file.
        path: String,
    },
    /// It is none, or damaged.
    #[error("{path} is no overlay, or damaged")]
    Header {
        /// Its file.
        path: String,
        /// What is wrong.
        source: DecodeError,
    },
    /// A copy that broke off, or a file system that lost its end.
    #[error("the overlay {path} is cut short: it has {len} bytes, where {expected} are expected")]
    CutShort {
        /// Its file.
        path: String,
        /// Its length.
        len: u64,
        /// What its header asks for.
        expected: u64,
    },
    /// It lies over something else.
    #[error("the overlay {path} lies over another disk: its {what} is {found}, not {wanted}")]
    OtherDisk {
        /// Its file.
        path: String,
        /// What differs.
        what: &'static str,
        /// What the overlay says.
        found: String,
        /// What it should say.
        wanted: String,
    },
}

/// An open overlay.
#[derive(Debug)]
pub struct Overlay {
    header: Header,
    file: Arc<dyn BlockFile>,
    /// Where the data are: the same file, or one of their own.
    data: Arc<dyn BlockFile>,
    map: RwLock<Map>,
    turns: Vec<Mutex<()>>,
    /// True if a write ended after the last flush began.
    written: AtomicBool,
    flushing: Mutex<()>,
}

impl Overlay {
    /// Writes an empty overlay into the empty `file`, durably.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(file: Arc<dyn BlockFile>, header: Header) -> io::Result<Self> {
        file.set_len(header.file_len())?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync()?;
        Ok(Self::new(file, None, header, Map::default()))
    }

    /// Reads the header.
    ///
    /// # Errors
    /// What the system says; [`InvalidData`](io::ErrorKind::InvalidData) with a [`DecodeError`].
    pub fn read_header(file: &dyn BlockFile) -> io::Result<Header> {
        let mut bytes = vec![0; HEADER_LEN];
        let got = file.read_at(&mut bytes, 0)?;
        Header::decode(&bytes[..got])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Reads the map of an overlay whose header was read. `data` is where its data are, if that is elsewhere.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(
        file: Arc<dyn BlockFile>,
        data: Option<Arc<dyn BlockFile>>,
        header: Header,
    ) -> io::Result<Self> {
        let mut map = Map::default();
        let end = header.entry_at(header.blocks());
        let mut at = HEADER_LEN as u64;
        while at < end
            && let Some(data) = file.next_data(at, end)?
        {
            let first = (data.start.max(at) - HEADER_LEN as u64) / PAGE_LEN;
            let last = (data.end.min(end) - HEADER_LEN as u64).div_ceil(PAGE_LEN);
            for page in first..last {
                let start = HEADER_LEN as u64 + page * PAGE_LEN;
                let mut bytes = vec![0; PAGE_LEN.min(end - start) as usize];
                let got = file.read_at(&mut bytes, start)?;
                map.load(&header, page, &bytes[..got]);
            }
            at = HEADER_LEN as u64 + last * PAGE_LEN;
        }
        Ok(Self::new(file, data, header, map))
    }

    fn new(
        file: Arc<dyn BlockFile>,
        data: Option<Arc<dyn BlockFile>>,
        header: Header,
        map: Map,
    ) -> Self {
        Self {
            header,
            data: data.unwrap_or_else(|| file.clone()),
            file,
            map: RwLock::new(map),
            turns: (0..TURNS).map(|_| Mutex::default()).collect(),
            written: AtomicBool::new(false),
            flushing: Mutex::default(),
        }
    }

    /// What it lies over.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Entries of which a slot is torn: the other one counts. Whole blocks may be lost.
    pub fn torn(&self) -> u64 {
        self.map.read().torn()
    }

    /// Bytes of the disk in blocks of which something is here.
    pub fn here_bytes(&self) -> u64 {
        self.map.read().blocks_here().count() as u64 * BLOCK_LEN
    }

    /// The states of the blocks that `range` touches, from the first on.
    fn states(&self, range: DiskRange) -> Vec<BlockState> {
        let (first, last) = (range.start / BLOCK_LEN, range.end.div_ceil(BLOCK_LEN));
        let map = self.map.read();
        (first..last).map(|block| map.state(block)).collect()
    }

    /// Changes the state of a block whose bytes are written.
    fn change(&self, block: u64, change: impl FnOnce(BlockState) -> BlockState) {
        self.map.write().change(block, change);
        self.written.store(true, Ordering::SeqCst);
    }

    /// Makes sure that a flush finds room for the entry of `block`.
    fn reserve(&self, block: u64) -> io::Result<()> {
        let page = Map::page_of(block);
        if self.map.read().has_room(page) {
            return Ok(());
        }
        // Whoever comes second must not undo what the first one flushes.
        let _turn = self.flushing.lock();
        if self.map.read().has_room(page) {
            return Ok(());
        }
        let start = HEADER_LEN as u64 + page * PAGE_LEN;
        let end = self.header.entry_at(self.header.blocks());
        let zeros = vec![0; PAGE_LEN.min(end - start) as usize];
        self.file.write_all_at(&zeros, start)?;
        self.map.write().note_room(page);
        Ok(())
    }

    /// Makes durable all that was written before.
    ///
    /// # Errors
    /// What the system says. After a failure to make bytes durable every flush fails.
    pub fn flush(&self) -> io::Result<()> {
        let _turn = self.flushing.lock();
        if !self.written.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let flushed = self.flush_written();
        if flushed.is_err() {
            self.written.store(true, Ordering::SeqCst);
        }
        flushed
    }

    fn flush_written(&self) -> io::Result<()> {
        let dirty = self.map.write().take_dirty();
        let written = self.write_entries(&dirty);
        let mut map = self.map.write();
        match &written {
            Ok(()) => map.are_durable(&dirty),
            // The next try goes to the same slots: the others are the durable ones.
            Err(_) => map.are_dirty(&dirty),
        }
        written
    }

    fn write_entries(&self, dirty: &[map::Dirty]) -> io::Result<()> {
        // What these entries name was written before they were taken.
        self.data.sync()?;
        if dirty.is_empty() {
            return Ok(());
        }
        for entry in dirty {
            let slot = self
                .header
                .encode_slot(entry.block, entry.state, entry.sequence);
            let at = self.header.entry_at(entry.block) + entry.slot_at();
            self.file.write_all_at(&slot, at)?;
        }
        self.file.sync()
    }
}
