//! How a connection begins: versions and capabilities, then a repository.

use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};
use crate::config::CONFIG_LEN_MAX;

use super::VERSION;
use super::frame::{Body, FrameType};

/// Longest name of a program, in bytes.
pub const PROGRAM_LEN_MAX: u64 = 64;
/// Longest name of a repository, in bytes.
pub const NAME_LEN_MAX: u64 = 64;

/// What the client speaks. The server answers with [`Welcome`] or a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest and the newest version of the protocol.
    pub versions: (u16, u16),
    /// A bit per optional part of the protocol that the client knows.
    pub capabilities: u64,
    /// The program and its version, for logs.
    pub program: String,
}

/// What the server chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak.
    pub version: u16,
    /// The optional parts that both know.
    pub capabilities: u64,
    /// Milliseconds that a session outlives its connections.
    pub lease_ms: u64,
    /// Most lanes of a session.
    pub lanes_max: u16,
    /// The program and its version, for logs.
    pub program: String,
}

/// Two ends that have no version in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the client speaks versions {oldest} to {newest} of the protocol, the server version {VERSION}"
)]
pub struct NoCommonVersion {
    oldest: u16,
    newest: u16,
}

impl Hello {
    /// What this program speaks; `program` names it.
    pub fn ours(program: &str) -> Self {
        Self {
            versions: (VERSION, VERSION),
            capabilities: 0,
            program: program.to_owned(),
        }
    }

    /// The newest version that both speak.
    pub fn common_version(&self) -> Result<u16, NoCommonVersion> {
        let (oldest, newest) = self.versions;
        if (oldest..=newest).contains(&VERSION) {
            return Ok(VERSION);
        }
        Err(NoCommonVersion { oldest, newest })
    }
}

impl Body for Hello {
    const KIND: FrameType = FrameType::Hello;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.versions.0.to_le_bytes());
        out.extend_from_slice(&self.versions.1.to_le_bytes());
        out.extend_from_slice(&self.capabilities.to_le_bytes());
        put_string(out, &self.program);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let versions = (reader.u16()?, reader.u16()?);
        if versions.0 > versions.1 {
            return Err(reader.error(Problem::Invalid("range of versions")));
        }
        Ok(Self {
            versions,
            capabilities: reader.u64()?,
            program: reader.string("program", PROGRAM_LEN_MAX)?,
        })
    }
}

impl Body for Welcome {
    const KIND: FrameType = FrameType::Welcome;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.capabilities.to_le_bytes());
        put_varint(out, self.lease_ms);
        out.extend_from_slice(&self.lanes_max.to_le_bytes());
        put_string(out, &self.program);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            version: reader.u16()?,
            capabilities: reader.u64()?,
            lease_ms: reader.varint("lease", u64::MAX)?,
            lanes_max: reader.u16()?,
            program: reader.string("program", PROGRAM_LEN_MAX)?,
        })
    }
}

/// Opens a repository: what else the connection carries is about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its name on the server.
    pub name: String,
}

/// The repository is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The bytes of its config: an encrypted repository's key is wrapped in it.
    pub config: Vec<u8>,
}

/// Makes a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Its name on the server.
    pub name: String,
    /// The bytes of its config, made by the client: a passphrase never travels.
    pub config: Vec<u8>,
}

impl Body for Open {
    const KIND: FrameType = FrameType::Open;

    fn put(&self, out: &mut Vec<u8>) {
        put_string(out, &self.name);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: reader.string("repository", NAME_LEN_MAX)?,
        })
    }
}

impl Body for Opened {
    const KIND: FrameType = FrameType::Opened;

    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.config);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            config: read_bytes(reader, "config length", CONFIG_LEN_MAX)?,
        })
    }
}

impl Body for Create {
    const KIND: FrameType = FrameType::Create;

    fn put(&self, out: &mut Vec<u8>) {
        put_string(out, &self.name);
        put_bytes(out, &self.config);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: reader.string("repository", NAME_LEN_MAX)?,
            config: read_bytes(reader, "config length", CONFIG_LEN_MAX)?,
        })
    }
}

/// Appends a length, then the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a length, then the bytes.
pub(super) fn read_bytes(
    reader: &mut Reader<'_>,
    field: &'static str,
    limit: u64,
) -> Result<Vec<u8>, DecodeError> {
    let len = reader.count(field, limit, 1)?;
    Ok(reader.take(len)?.to_vec())
}
