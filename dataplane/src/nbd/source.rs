//! An export as a disk: of a backup, or to be written by a restore.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::nbd::uri::NbdUri;
use undercroft_format::nbd::wire::{Errno, TransmissionFlags};

use super::client::Client;
use super::connect::Endpoint;
use super::error::NbdError;
use super::status::Status;
use crate::ingest::source::{DiskSource, Reads};
use crate::io::{BlockFile, Done, Queue, Transfer};

/// How an export is read.
#[derive(Clone)]
pub struct NbdOptions {
    /// Tells whether to stop, because the user asked for it or the export is of no use any more: waits end
    /// then.
    pub is_stopping: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for NbdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NbdOptions")
    }
}

/// Opens the export that `uri` names.
///
/// # Errors
/// [`NbdError`]: what was attempted, at which server, and what it said.
pub fn open(uri: NbdUri, options: NbdOptions) -> Result<DiskSource, NbdError> {
    let client = Client::open(Endpoint::new(uri, Status::Data)?, options)?;
    let size = client.export().size;
    let file = Arc::new(NbdFile {
        size,
        is_target: false,
        client: Arc::new(Mutex::new(client)),
    });
    Ok(DiskSource::remote(file.clone(), size, file))
}

/// Opens the export that `uri` names to be written.
///
/// What it holds can be read, too. What was written is known to have succeeded only after a
/// [`sync`](BlockFile::sync): a write that fails is told of by a later call.
///
/// # Errors
/// As of [`open`], and [`NbdError::ReadOnly`].
pub fn open_target(uri: NbdUri, options: NbdOptions) -> Result<Arc<NbdFile>, NbdError> {
    let mut client = Client::open(Endpoint::new(uri, Status::Data)?, options)?;
    let flags = client.export().flags;
    if flags.contains(TransmissionFlags::READ_ONLY) {
        let endpoint = client.endpoint();
        return Err(NbdError::ReadOnly {
            server: endpoint.server(),
            export: endpoint.uri().shown_export(),
        });
    }
    client.grow();
    Ok(Arc::new(NbdFile {
        size: client.export().size,
        is_target: true,
        client: Arc::new(Mutex::new(client)),
    }))
}

/// An export as a file.
pub struct NbdFile {
    size: u64,
    is_target: bool,
    client: Arc<Mutex<Client>>,
}

impl NbdFile {
    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Forgets what the server told of holes: it has been written to since.
    pub fn forget_holes(&self) {
        self.client.lock().forget_known();
    }

    fn check_target(&self) -> io::Result<()> {
        match self.is_target {
            true => Ok(()),
            false => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len).is_some_and(|end| end <= self.size) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "bytes {offset}+{len} lie behind the end of the export, which has {}",
                    self.size
                ),
            )),
        }
    }
}

/// A failure as those know it who write files.
fn write_error(error: Arc<NbdError>) -> io::Error {
    let kind = match &*error {
        NbdError::Failed { failure, .. } if failure.errno == Errno::NoSpace => {
            io::ErrorKind::StorageFull
        }
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl fmt::Debug for NbdFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NbdFile({} bytes)", self.size)
    }
}

impl Reads for NbdFile {
    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        let mut client = self.client.lock();
        client.grow();
        Ok(Box::new(NbdQueue(self.client.clone())))
    }
}

impl BlockFile for NbdFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = (self.size.saturating_sub(offset)).min(buf.len() as u64) as usize;
        let read = self.client.lock().read(offset, &mut buf[..len]);
        read.map_err(io::Error::other)?;
        Ok(len)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_target()?;
        self.check_range(offset, buf.len() as u64)?;
        self.client.lock().write(offset, buf).map_err(write_error)
    }

    fn sync(&self) -> io::Result<()> {
        match self.is_target {
            true => self.client.lock().sync().map_err(write_error),
            false => Ok(()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn preallocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.check_target()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_target()?;
        self.check_range(offset, len)?;
        self.client.lock().zero(offset, len).map_err(write_error)
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        let found = self.client.lock().next_known(offset, end.min(self.size));
        found.map_err(io::Error::other)
    }

    fn advise_dont_need(&self) {}
}

/// Reads of a backup. Dropping it gives up what is in flight.
struct NbdQueue(Arc<Mutex<Client>>);

impl Queue for NbdQueue {
    fn submit(&mut self, transfer: Transfer) {
        self.0.lock().submit(transfer);
    }

    fn wait(&mut self) -> Option<Done> {
        self.0.lock().wait(true)
    }

    fn try_wait(&mut self) -> Option<Done> {
        self.0.lock().wait(false)
    }

    fn in_flight(&self) -> usize {
        self.0.lock().in_flight()
    }

    fn depth(&self) -> u32 {
        self.0.lock().depth()
    }
}

impl Drop for NbdQueue {
    fn drop(&mut self) {
        self.0.lock().abandon();
    }
}
