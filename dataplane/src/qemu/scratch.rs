//! What QEMU is lent: files for scratch images, and the socket that it serves exports on.
//!
//! All of it is handed over as open files. So QEMU needs no right to write anywhere, and nothing has a name
//! that would stay behind: when QEMU and this process are gone, so are they.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstatvfs, openat, unlinkat};

use super::error::QemuError;

/// A backup is given up while this share of the file system is free ...
const RESERVE_PERCENT: u64 = 5;
/// ... but at least this much: a guest writes so much between two looks ...
const RESERVE_MIN: u64 = 32 << 20;
/// ... and more than this is enough for any guest.
const RESERVE_MAX: u64 = 1 << 30;

/// Where scratch files are.
#[derive(Debug)]
pub struct ScratchDir {
    path: PathBuf,
    dir: OwnedFd,
    files: Vec<File>,
}

impl ScratchDir {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// It is no directory, cannot be written to, or is nearly full.
    pub fn open(path: &Path) -> Result<Self, QemuError> {
        let error = |source| QemuError::Scratch {
            dir: path.to_owned(),
            source,
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty()).map_err(|errno| error(errno.into()))?;
        let scratch = Self {
            path: path.to_owned(),
            dir,
            files: Vec::new(),
        };
        scratch.check_space()?;
        Ok(scratch)
    }

    /// Makes a file without a name.
    pub fn file(&mut self) -> Result<BorrowedFd<'_>, QemuError> {
        let file = tempfile::tempfile_in(&self.path).map_err(|source| self.error(source))?;
        self.files.push(file);
        Ok(self.files.last().expect("just pushed").as_fd())
    }

    /// Makes a socket to listen on, which only this process can connect to. `name` is free in the
    /// directory; the socket has it for a moment.
    pub fn socket(&self, name: &str) -> Result<ExportSocket, QemuError> {
        // A path through the descriptor is short: addresses of sockets are.
        let path = format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd());
        let listener = UnixListener::bind(path).map_err(|source| self.error(source))?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let inode = openat(&self.dir, name, flags, Mode::empty());
        let unlinked = unlinkat(&self.dir, name, AtFlags::empty());
        let inode = inode.map_err(|errno| self.error(errno.into()))?;
        unlinked.map_err(|errno| self.error(errno.into()))?;
        Ok(ExportSocket {
            listener: Some(listener),
            inode,
        })
    }

    /// Whether there is room for what the guest overwrites.
    ///
    /// # Errors
    /// [`QemuError::ScratchFull`].
    pub fn check_space(&self) -> Result<(), QemuError> {
        let space = fstatvfs(&self.dir).map_err(|errno| self.error(errno.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        let reserve = bytes(space.f_blocks) / 100 * RESERVE_PERCENT;
        let reserve = reserve.clamp(RESERVE_MIN, RESERVE_MAX);
        let free = bytes(space.f_bavail);
        if free >= reserve {
            return Ok(());
        }
        Err(QemuError::ScratchFull {
            dir: self.path.clone(),
            free,
            reserve,
        })
    }

    /// Gives the space back, even if QEMU still has a file open.
    pub fn empty(&mut self) {
        for file in self.files.drain(..) {
            if let Err(error) = file.set_len(0) {
                tracing::warn!(%error, "a scratch file keeps its space until QEMU closes it");
            }
        }
    }

    fn error(&self, source: io::Error) -> QemuError {
        QemuError::Scratch {
            dir: self.path.clone(),
            source,
        }
    }
}

/// A socket for exports.
#[derive(Debug)]
pub struct ExportSocket {
    listener: Option<UnixListener>,
    inode: OwnedFd,
}

impl ExportSocket {
    /// What QEMU listens on, to be handed over.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// QEMU has it: once it closes it, too, nobody waits for a connection that is never served.
    pub fn handed_over(&mut self) {
        self.listener = None;
    }

    /// The path by which this process connects to it, as long as this lives.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.inode.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_without_a_name_can_be_connected_to() {
        let dir = tempfile::tempdir().expect("a directory");
        // Longer than the address of a socket may be.
        let deep = dir.path().join("d".repeat(200));
        std::fs::create_dir(&deep).expect("a directory");
        let mut scratch = ScratchDir::open(&deep).expect("it is there");
        let socket = scratch.socket("x.sock").expect("a socket");
        scratch.file().expect("a file");
        let left = std::fs::read_dir(&deep).expect("a list").count();
        assert_eq!(left, 0, "nothing has a name");
        let mut client = UnixStream::connect(socket.path()).expect("a connection");
        let listener = socket.listener.as_ref().expect("not handed over");
        let (mut served, _) = listener.accept().expect("the other end");
        client.write_all(b"x").expect("sent");
        let mut byte = [0];
        served.read_exact(&mut byte).expect("received");
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("missing");
        let error = ScratchDir::open(&missing).expect_err("refused");
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
