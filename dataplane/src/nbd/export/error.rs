//! Why disks cannot be exported.

use std::io;
use std::path::PathBuf;

use undercroft_format::nbd::server::offer::OfferError;

/// Disks could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Not these exports.
    #[error(transparent)]
    Offer(#[from] OfferError),
    /// Not there.
    #[error("listening on {place}")]
    Listen {
        /// An address, or a socket's path.
        place: String,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else is there.
    #[error("another program listens on the socket {0}")]
    SocketInUse(PathBuf),
    /// Something else is there.
    #[error("{0} exists and is no socket")]
    NoSocket(PathBuf),
    /// Certificates or keys.
    #[error("setting up TLS: {what}")]
    Tls {
        /// What was attempted.
        what: String,
        /// What was wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No threads.
    #[error("starting the export's threads")]
    Threads(#[source] io::Error),
}
