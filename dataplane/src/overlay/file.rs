//! The file of an overlay: made whole or not at all, open to one process at a time.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use undercroft_format::codec::DecodeError;
use undercroft_format::overlay::{DataPlace, Header};

use super::{Overlay, OverlayError};
use crate::io::{BlockFile, OsFile};

/// An overlay in a file that nobody else has open.
#[derive(Debug)]
pub struct OverlayFile {
    /// The overlay.
    pub overlay: Arc<Overlay>,
    path: PathBuf,
    _lock: File,
}

impl OverlayFile {
    /// Opens the overlay at `path`, or makes one as `wanted` says, whose id is to be a fresh one. `data` is where its data
    /// are, if that is elsewhere.
    ///
    /// # Errors
    /// [`OverlayError`]; [`OverlayError::OtherDisk`] if it is there and lies over something else.
    pub fn open_or_create(
        path: &Path,
        data: Option<Arc<dyn BlockFile>>,
        wanted: &Header,
    ) -> Result<Self, OverlayError> {
        if let Err(source) = std::fs::symlink_metadata(path)
            && source.kind() == io::ErrorKind::NotFound
        {
            create(path, wanted)?;
        }
        let found = Self::open_with(path, data)?;
        check(path, found.overlay.header(), wanted)?;
        Ok(found)
    }

    /// Opens the overlay at `path`.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn open(path: &Path) -> Result<Self, OverlayError> {
        Self::open_with(path, None)
    }

    fn open_with(path: &Path, data: Option<Arc<dyn BlockFile>>) -> Result<Self, OverlayError> {
        let shown = || path.display().to_string();
        let failed = |what| {
            move |source| OverlayError::Io {
                what,
                path: path.display().to_string(),
                source,
            }
        };
        let lock = OpenOptions::new().read(true).write(true).open(path);
        let lock = lock.map_err(failed("opening"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(OverlayError::InUse { path: shown() });
            }
            Err(errno) => return Err(failed("locking")(errno.into())),
        }
        let file = OsFile::open_write(path, false).map_err(failed("opening"))?;
        let file: Arc<dyn BlockFile> = Arc::new(file);
        let header = header_of(&*file, path)?;
        let (len, expected) = (file.len().map_err(failed("reading"))?, header.file_len());
        // What is missing would read as zeros where something else was flushed.
        if len < expected {
            return Err(OverlayError::CutShort {
                path: shown(),
                len,
                expected,
            });
        }
        let overlay = Overlay::open(file, data, header).map_err(failed("reading"))?;
        Ok(Self {
            overlay: Arc::new(overlay),
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Reads what the overlay at `path` lies over, whoever has it open.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn read_header(path: &Path) -> Result<Header, OverlayError> {
        let file = OsFile::open_read(path, false).map_err(|source| OverlayError::Io {
            what: "opening",
            path: path.display().to_string(),
            source,
        })?;
        header_of(&file, path)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// What the system says.
    pub fn discard(self) -> Result<(), OverlayError> {
        std::fs::remove_file(&self.path).map_err(|source| OverlayError::Io {
            what: "removing",
            path: self.path.display().to_string(),
            source,
        })
    }
}

fn header_of(file: &dyn BlockFile, path: &Path) -> Result<Header, OverlayError> {
    let path = path.display().to_string();
    Overlay::read_header(file).map_err(|error| {
        let problem: Option<&DecodeError> = error.get_ref().and_then(|error| error.downcast_ref());
        match problem.cloned() {
            Some(source) => OverlayError::Header { path, source },
            None => OverlayError::Io {
                what: "reading",
                path,
                source: error,
            },
        }
    })
}

/// Makes an empty one under another name first: a crash leaves no half of it.
fn create(path: &Path, header: &Header) -> Result<(), OverlayError> {
    let made = || -> io::Result<()> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let scratch = tempfile::Builder::new()
            .prefix(".overlay-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .tempfile_in(dir)?;
        let file = OsFile::open_write(scratch.path(), false)?;
        Overlay::create(Arc::new(file), header.clone())?;
        // Whoever was faster made one, too: it is looked at like any other.
        match scratch.persist_noclobber(path) {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.error),
        }
        let dir = File::open(dir)?;
        dir.sync_all()
    };
    made().map_err(|source| OverlayError::Io {
        what: "making",
        path: path.display().to_string(),
        source,
    })
}

fn check(path: &Path, found: &Header, wanted: &Header) -> Result<(), OverlayError> {
    let place = |header: &Header| match header.data {
        DataPlace::Here => "in it",
        DataPlace::Elsewhere => "in a restored disk",
    };
    let pairs = [
        (
            "data's place",
            place(found).to_owned(),
            place(wanted).to_owned(),
        ),
        (
            "repository",
            found.repository.to_string(),
            wanted.repository.to_string(),
        ),
        (
            "snapshot",
            found.snapshot.to_string(),
            wanted.snapshot.to_string(),
        ),
        ("disk", found.label.clone(), wanted.label.clone()),
        ("size", found.size.to_string(), wanted.size.to_string()),
    ];
    for (what, found, wanted) in pairs {
        if found != wanted {
            return Err(OverlayError::OtherDisk {
                path: path.display().to_string(),
                what,
                found,
                wanted,
            });
        }
    }
    Ok(())
}
