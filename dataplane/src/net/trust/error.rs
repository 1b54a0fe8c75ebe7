//! What can go wrong with the files of trust, on either side.

use std::io;
use std::path::{Path, PathBuf};

use undercroft_format::codec::DecodeError;

use super::fingerprint::Fingerprint;
use crate::repository::error::RepositoryError;

/// An operation on an authority or on an enrolment failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted, as in "reading".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file's bytes are not what was written.
    #[error("{} is damaged: put back a copy of it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
    /// A file cannot be what it should be, though its bytes are whole.
    #[error("{} {problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// Others can read a private key.
    #[error("{} can be read by others (mode {mode:03o}), and it holds a private key: chmod 600 it, and enrol anew if somebody may have read it", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// There is no authority.
    #[error("{} holds no authority: `undercroft repository serve` or `undercroft proxy serve` makes one", path.display())]
    NoAuthority {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Part of an authority's files is gone.
    #[error("{} is missing beside other files of the authority: put back a copy of the whole directory", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file of another authority.
    #[error("{} belongs to another authority: put back copies of all files of one, made at one time", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// This machine was not enrolled with that server.
    #[error("{} holds no certificate for this server: enrol with a token, which `undercroft repository tokens` makes on the server, `undercroft proxy tokens` on a proxy", path.display())]
    NotEnrolled {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// No identity has that name or serial number.
    #[error(
        "no identity has the name or serial number {asked:?}: `undercroft repository identities` lists them"
    )]
    NoSuchIdentity {
        /// What was asked for.
        asked: String,
    },
    /// No token has that number.
    #[error(
        "no token that could still be used has the number {asked:?}: `undercroft repository tokens` lists them"
    )]
    NoSuchToken {
        /// What was asked for.
        asked: String,
    },
    /// A name that a live identity has.
    #[error("there is an identity named {name} already: revoke it first, or choose another name")]
    NameTaken {
        /// The name.
        name: super::name::IdentityName,
    },
    /// A list has as many entries as it can have.
    #[error(
        "there are {limit} {what} already, which is the most that one authority keeps: revoke or cancel some"
    )]
    Full {
        /// Of what.
        what: &'static str,
        /// The most.
        limit: usize,
    },
    /// What a server sent as a certificate does not fit what was asked for.
    #[error("the server's answer {problem}: nothing was changed; ask its administrator")]
    BadGrant {
        /// What is wrong.
        problem: &'static str,
    },
    /// The server's authority is another one than the token names.
    #[error(
        "the server's authority is {found}, but the token names {expected}: this is another server, or one in the middle"
    )]
    WrongAuthority {
        /// The one that the server has.
        found: Fingerprint,
        /// The one in the token.
        expected: Fingerprint,
    },
    /// The system's random numbers cannot be read.
    #[error("making a key or a number")]
    Randomness {
        /// The cause.
        source: Box<RepositoryError>,
    },
    /// A certificate could not be made or read.
    #[error("{action}")]
    Certificate {
        /// What was attempted.
        action: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Result of an operation on an authority or on an enrolment.
pub type Result<T, E = TrustError> = std::result::Result<T, E>;

impl TrustError {
    /// An I/O error while doing `action` to `path`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// A decode error in the file at `path`.
    pub(super) fn damaged(path: &Path) -> impl FnOnce(DecodeError) -> Self {
        let path = path.to_owned();
        move |source| Self::Damaged { path, source }
    }

    pub(super) fn randomness(source: RepositoryError) -> Self {
        Self::Randomness {
            source: Box::new(source),
        }
    }

    /// An error of a certificate library while doing `action`.
    pub(super) fn certificate<E>(action: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Certificate {
            action,
            source: Box::new(source),
        }
    }
}
