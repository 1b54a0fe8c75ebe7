//! Why a server refuses a certificate: the same words on both sides.

use crate::codec::{DecodeError, Problem, Reader, put_string};

use super::name::IdentityName;
use super::role::Role;
use super::serial::Serial;
use super::time::UnixMs;

/// Why no certificate was issued. Nothing changed on the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The server never issued the token, or forgot it long after its end, or somebody cancelled it.
    #[error(
        "the server does not know this token: it was cancelled, ended long ago, or the server's trust directory was put back from an older copy; get a new one by `undercroft repository tokens`"
    )]
    TokenUnknown,
    /// The token was used.
    #[error(
        "this token was used already, by {by} on {at}: each enrols once, so get a new one by `undercroft repository tokens`; if it was not you who used it, revoke {by}"
    )]
    TokenUsed {
        /// Whom it enrolled.
        by: IdentityName,
        /// When.
        at: UnixMs,
    },
    /// The token has ended.
    #[error(
        "this token expired on {at} (the server's time is {now}): get a new one by `undercroft repository tokens`"
    )]
    TokenExpired {
        /// When.
        at: UnixMs,
        /// The server's time.
        now: UnixMs,
    },
    /// The token is for another role.
    #[error(
        "this token is for the role {granted}, not {asked}: enrol with --role {granted}, or get another token"
    )]
    Role {
        /// The role that was asked for.
        asked: Role,
        /// The role that the token is for.
        granted: Role,
    },
    /// The token is for another name.
    #[error(
        "this token is for the name {granted}, not {asked}: enrol with that name, or get another token"
    )]
    Name {
        /// The name that was asked for.
        asked: IdentityName,
        /// The name that the token is for.
        granted: IdentityName,
    },
    /// A live identity has the name.
    #[error(
        "the name {name} is taken by an identity that is not revoked and has not expired: choose another name, or revoke that one"
    )]
    NameTaken {
        /// The name.
        name: IdentityName,
    },
    /// The token is for less.
    #[error(
        "this token is for fewer VMs or repositories than were asked for: ask for no more than it has, or get another token"
    )]
    Scope,
    /// The request for a certificate is not signed with a key of ours.
    #[error(
        "the request for a certificate is not valid: its signature does not fit, or its key is not one of Ed25519; use the same version of undercroft on both sides"
    )]
    Request,
    /// The certificate in use was revoked.
    #[error("the certificate {serial} of {name} was revoked: enrol anew with a new token")]
    Revoked {
        /// Whose it was.
        name: IdentityName,
        /// Its number.
        serial: Serial,
    },
    /// The certificate in use has ended.
    #[error("the certificate {serial} of {name} expired on {at}: enrol anew with a new token")]
    Expired {
        /// Whose it was.
        name: IdentityName,
        /// Its number.
        serial: Serial,
        /// When.
        at: UnixMs,
    },
    /// The server does not have the certificate in use on its list.
    #[error(
        "the server does not have the certificate {serial} of {name} on its list: it was replaced by a newer one, or the server's trust directory was put back from an older copy; enrol anew with a new token"
    )]
    NotListed {
        /// Whose it is.
        name: IdentityName,
        /// Its number.
        serial: Serial,
    },
    /// The server keeps no more identities.
    #[error(
        "the server has issued as many certificates as it keeps: its administrator must revoke some"
    )]
    Full,
    /// The server failed.
    #[error(
        "the server could not issue a certificate now: its log says why; try again later with the same token"
    )]
    Unavailable,
}

impl Refusal {
    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(self.code());
        match self {
            Self::TokenUnknown | Self::Scope | Self::Request | Self::Full | Self::Unavailable => {}
            Self::TokenUsed { by, at } => {
                put_string(out, by.as_str());
                at.put(out);
            }
            Self::TokenExpired { at, now } => {
                at.put(out);
                now.put(out);
            }
            Self::Role { asked, granted } => out.extend([asked.code(), granted.code()]),
            Self::Name { asked, granted } => {
                put_string(out, asked.as_str());
                put_string(out, granted.as_str());
            }
            Self::NameTaken { name } => put_string(out, name.as_str()),
            Self::Revoked { name, serial } | Self::NotListed { name, serial } => {
                put_string(out, name.as_str());
                out.extend_from_slice(serial.as_bytes());
            }
            Self::Expired { name, serial, at } => {
                put_string(out, name.as_str());
                out.extend_from_slice(serial.as_bytes());
                at.put(out);
            }
        }
    }

    /// Reads what `put` wrote.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        Ok(match reader.u8()? {
            1 => Self::TokenUnknown,
            2 => Self::TokenUsed {
                by: IdentityName::read(reader)?,
                at: UnixMs::read(reader)?,
            },
            3 => Self::TokenExpired {
                at: UnixMs::read(reader)?,
                now: UnixMs::read(reader)?,
            },
            4 => Self::Role {
                asked: Role::read(reader)?,
                granted: Role::read(reader)?,
            },
            5 => Self::Name {
                asked: IdentityName::read(reader)?,
                granted: IdentityName::read(reader)?,
            },
            6 => Self::NameTaken {
                name: IdentityName::read(reader)?,
            },
            7 => Self::Scope,
            8 => Self::Request,
            9 => Self::Revoked {
                name: IdentityName::read(reader)?,
                serial: Serial::read(reader)?,
            },
            10 => Self::Expired {
                name: IdentityName::read(reader)?,
                serial: Serial::read(reader)?,
                at: UnixMs::read(reader)?,
            },
            11 => Self::NotListed {
                name: IdentityName::read(reader)?,
                serial: Serial::read(reader)?,
            },
            12 => Self::Full,
            13 => Self::Unavailable,
            _ => return Err(at.error(Problem::Invalid("reason"))),
        })
    }

    fn code(&self) -> u8 {
        match self {
            Self::TokenUnknown => 1,
            Self::TokenUsed { .. } => 2,
            Self::TokenExpired { .. } => 3,
            Self::Role { .. } => 4,
            Self::Name { .. } => 5,
            Self::NameTaken { .. } => 6,
            Self::Scope => 7,
            Self::Request => 8,
            Self::Revoked { .. } => 9,
            Self::Expired { .. } => 10,
            Self::NotListed { .. } => 11,
            Self::Full => 12,
            Self::Unavailable => 13,
        }
    }
}
