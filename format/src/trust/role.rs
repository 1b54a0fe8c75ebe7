//! What a peer was enrolled for.

use std::fmt;
use std::str::FromStr;

use crate::codec::{DecodeError, Problem, Reader};

/// The role of an identity. It says what its holder may do; its scope says to which VMs and repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Adds snapshots of its own VMs. Reads the maps of their parents, but no data, and removes nothing.
    Ingest,
    /// Reads snapshots and their data.
    Restore,
    /// Does everything, except shorten a retention lock.
    Admin,
}

/// Text that names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: it is one of ingest, restore, admin")]
pub struct UnknownRole(String);

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Ingest, Self::Restore, Self::Admin];

    /// The word for it, on the command line and in certificates.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Restore => "restore",
            Self::Admin => "admin",
        }
    }

    /// The number for it in tokens, files and messages.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ingest => 1,
            Self::Restore => 2,
            Self::Admin => 3,
        }
    }

    /// The role with a number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.code() == code)
    }

    /// Reads one.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        Self::from_code(reader.u8()?).ok_or_else(|| at.error(Problem::Invalid("role")))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| UnknownRole(text.chars().take(80).collect()))
    }
}
