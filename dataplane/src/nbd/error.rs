//! What can go wrong with an NBD export.

use std::io;
use std::sync::Arc;

use rustls::CertificateError;
use undercroft_format::nbd::ProtocolError;
use undercroft_format::nbd::negotiation::NegotiationError;
use undercroft_format::nbd::transmission::Failure;
use undercroft_format::nbd::wire::OptionError;

/// An NBD export could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// No connection.
    #[error("connecting to the NBD server {server}")]
    Connect {
        /// Where it should be.
        server: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection failed before the export was open.
    #[error("opening the export {export:?} at the NBD server {server}")]
    Handshake {
        /// The server.
        server: String,
        /// The export, without a session in its name.
        export: String,
        /// What the system said, or TLS.
        source: io::Error,
    },
    /// The export was refused, or the server is none.
    #[error("opening the export {export:?} at the NBD server {server}")]
    Negotiation {
        /// The server.
        server: String,
        /// The export, without a session in its name.
        export: String,
        /// Why.
        source: NegotiationError,
    },
    /// A file of certificates or keys, or the whole of TLS's settings.
    #[error("setting up TLS: {what}")]
    TlsSetup {
        /// What was attempted.
        what: String,
        /// What was wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody to trust.
    #[error("setting up TLS: {0}")]
    TlsUnsettled(&'static str),
    /// The connection broke.
    #[error("the connection to the NBD server broke")]
    Broken(#[source] io::Error),
    /// The server went away.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// No answer.
    #[error("the NBD server did not answer for {seconds} s")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A range could not be read.
    #[error("bytes {offset}+{len}: {failure}")]
    Failed {
        /// First byte that could not be read, as exactly as the server says.
        offset: u64,
        /// Bytes that were asked for.
        len: u32,
        /// The server's words.
        failure: Failure,
    },
    /// After a reconnection there is another export of that name.
    #[error("the NBD export changed while it was read: it had {before} bytes and has {now}")]
    Changed {
        /// Its size when it was opened.
        before: u64,
        /// Its size now.
        now: u64,
    },
    /// The server tells nothing, or nothing more, of a dirty bitmap.
    #[error(
        "the NBD server {server} has no dirty bitmap {bitmap:?} of the export {export:?}, or does not tell of it"
    )]
    NoBitmap {
        /// The server.
        server: String,
        /// The export, without a session in its name.
        export: String,
        /// The bitmap.
        bitmap: String,
    },
    /// What is known of ranges could not be had.
    #[error(transparent)]
    Status(Arc<NbdError>),
    /// A broken connection could not be made anew.
    #[error("the connection to the NBD server was lost, and {tries} tries to make it anew failed")]
    Lost {
        /// How many.
        tries: usize,
        /// How the last one failed.
        source: Box<NbdError>,
    },
    /// Connections broke again and again over the same request.
    #[error("bytes {offset}+{len} could not be read: the connection broke {tries} times over them")]
    Hopeless {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// How often.
        tries: u32,
        /// How the last time was.
        source: Arc<NbdError>,
    },
    /// The connection that something was written over is gone, and with it perhaps what the server had not made
    /// durable.
    #[error("the connection to the NBD server broke while the export was written")]
    BrokenWriting(#[source] Box<NbdError>),
    /// Nothing can be written to the export.
    #[error("the export {export:?} at the NBD server {server} is read-only")]
    ReadOnly {
        /// The server.
        server: String,
        /// The export, without a session in its name.
        export: String,
    },
    /// The user asked to stop.
    #[error("stopped on request")]
    Stopped,
}

impl NbdError {
    /// What to do about it, if that is known.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Connect { .. } => Some(
                "check the address, and that the server runs: nbdinfo --list URI shows its exports",
            ),
            Self::Negotiation {
                source: NegotiationError::Refused(refusal),
                ..
            } if refusal.error == OptionError::Unknown => {
                Some("check the export's name: nbdinfo --list URI shows those that there are")
            }
            Self::Handshake { source, .. } => {
                let tls = source.get_ref().and_then(|inner| inner.downcast_ref());
                match tls? {
                    rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(
                        "say whom to trust: tls-certificates=DIR with a ca-cert.pem, or x-tls-pin=FILE, in the URI",
                    ),
                    rustls::Error::InvalidCertificate(
                        CertificateError::NotValidForName
                        | CertificateError::NotValidForNameContext { .. },
                    ) => Some(
                        "if it is the right server, say its name: tls-hostname=NAME in the URI",
                    ),
                    rustls::Error::InvalidCertificate(
                        CertificateError::Expired | CertificateError::ExpiredContext { .. },
                    ) => Some(
                        "give the server a new certificate, or trust exactly this one: x-tls-pin=FILE in the URI",
                    ),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// True if another connection may do better.
    pub(super) fn is_of_connection(&self) -> bool {
        match self {
            Self::Broken(_)
            | Self::Silent { .. }
            | Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::Protocol(ProtocolError::Closed(_)) => true,
            Self::Negotiation { source, .. } => matches!(
                source,
                NegotiationError::ClosedOnExportName
                    | NegotiationError::Protocol(ProtocolError::Closed(_))
            ),
            _ => false,
        }
    }
}
