//! What can go wrong with a guest's monitor.

use std::io;
use std::path::PathBuf;

use undercroft_format::qmp::QmpError;
use undercroft_format::qmp::message::{Refusal, Version};

/// A guest could not be asked, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QemuError {
    /// No connection.
    #[error("connecting to the QMP socket {socket}", socket = .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A monitor serves one client at a time.
    #[error(
        "the QMP socket {socket} gave no greeting within {seconds} s: another program is connected to it",
        socket = .socket.display()
    )]
    NoGreeting {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The connection broke.
    #[error("asking QEMU to {command}")]
    Connection {
        /// The command.
        command: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Not QMP.
    #[error("asking QEMU to {command}")]
    Protocol {
        /// The command.
        command: &'static str,
        /// What was wrong.
        source: QmpError,
    },
    /// No answer.
    #[error("QEMU did not answer {command} for {seconds} s")]
    NoAnswer {
        /// The command.
        command: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// QEMU said no.
    #[error("QEMU refused {command}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Why.
        source: Refusal,
    },
    /// A job of QEMU failed.
    #[error("QEMU could not make the scratch image of disk {label}: {reason}")]
    ScratchImage {
        /// The disk.
        label: String,
        /// QEMU's words.
        reason: String,
    },
    /// No file could be made for scratch images.
    #[error("making a scratch file in {dir}", dir = .dir.display())]
    Scratch {
        /// Where.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Writes of the guest would soon find no place for what they overwrite.
    #[error(
        "the scratch directory {dir} has {free} bytes left, and {reserve} are the least to go on with: what the guest overwrites is kept there during a backup",
        dir = .dir.display()
    )]
    ScratchFull {
        /// Where.
        dir: PathBuf,
        /// Bytes that are left.
        free: u64,
        /// Bytes below which a backup is given up.
        reserve: u64,
    },
    /// What kept the point ended.
    #[error("the point in time of disk {label} is lost: its job {job} in QEMU {state}")]
    PointLost {
        /// The disk.
        label: String,
        /// The job.
        job: String,
        /// What became of it.
        state: String,
    },
    /// Something is still there after the time it should take to go.
    #[error("{what} did not go from QEMU within {seconds} s")]
    Stays {
        /// What.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// QEMU itself would end.
    #[error(
        "disk {label} is served by the I/O thread {thread}: QEMU {}.{} ends, and the guest with it, when a client of its NBD server leaves such a disk",
        .version.major, .version.minor
    )]
    IoThread {
        /// The disk.
        label: String,
        /// The thread.
        thread: String,
        /// QEMU's version.
        version: Version,
    },
    /// More disks than names are made for.
    #[error("{count} disks are more than the {limit} that can be backed up as one point in time")]
    TooManyDisks {
        /// How many.
        count: usize,
        /// The most.
        limit: usize,
    },
    /// An answer of QEMU that lacks something.
    #[error(transparent)]
    Answer(#[from] QmpError),
}

impl QemuError {
    /// Whether the connection is of no use any more.
    pub fn is_broken(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::NoGreeting { .. }
                | Self::Connection { .. }
                | Self::Protocol { .. }
                | Self::NoAnswer { .. }
        )
    }

    /// Whether QEMU does not know a command.
    pub fn is_unknown_command(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.is_unknown_command())
    }
}
