//! What an authority knows: tokens and identities.
//!
//! The body of `trust/registry`, within its [envelope](super::envelope):
//!
//! | field | type |
//! | --- | --- |
//! | fingerprint of the authority | 32 bytes |
//! | time of writing | varint, ms |
//! | number of tokens | varint |
//! | per token: hash of its secret, role, scope, name, times of issue and of end, use | see [`IssuedToken`] |
//! | number of identities | varint |
//! | per identity: serial number, role, name, scope, public key, times of issue and end, revocation | see [`IssuedIdentity`] |
//!
//! Times are varints of milliseconds, strings carry their length, and what may be missing begins with a
//! byte 0 or 1. Tokens stand in the order of their hashes, identities in that of their serial numbers.

use std::collections::BTreeMap;

use undercroft_format::codec::{DecodeError, Problem, Reader, put_string, put_varint};

use super::certificate::PublicKey;
use super::envelope::{Kind, put_option, read_option};
use super::fingerprint::Fingerprint;
use super::identity::PeerIdentity;
use super::name::IdentityName;
use super::role::Role;
use super::scope::Scope;
use super::serial::{SERIAL_LEN, Serial};
use super::time::UnixMs;
use super::token::SecretHash;

/// Most tokens that are kept, those that were used included.
pub const TOKENS_MAX: usize = 1024;
/// Most identities that are kept, those that ended or were revoked included.
pub const IDENTITIES_MAX: usize = 16 << 10;

/// The kind of the registry's file.
pub(super) const REGISTRY: Kind = Kind {
    object: "registry of identities",
    magic: b"UCTRREG\x01",
    version: 1,
    len_max: 64 << 20,
};

/// A token, as the authority that issued it remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    /// The role that it is for.
    pub role: Role,
    /// The widest scope that it is for.
    pub scope: Scope,
    /// The name that it is for, if it is for one alone.
    pub name: Option<IdentityName>,
    /// When it was made.
    pub issued: UnixMs,
    /// When it ends.
    pub not_after: UnixMs,
    /// Whom it enrolled, if it was used.
    pub used: Option<TokenUse>,
}

/// That a token was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUse {
    /// The certificate that was issued for it.
    pub serial: Serial,
    /// The name in it.
    pub by: IdentityName,
    /// When.
    pub at: UnixMs,
}

/// A certificate, as the authority that issued it remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedIdentity {
    /// What it says.
    pub identity: PeerIdentity,
    /// Its public key.
    pub(super) key: PublicKey,
    /// When it was issued.
    pub issued: UnixMs,
    /// When it ends.
    pub not_after: UnixMs,
    /// When it was revoked.
    pub revoked: Option<UnixMs>,
}

impl IssuedIdentity {
    /// True if its holder is let in at `now`.
    pub fn is_live(&self, now: UnixMs) -> bool {
        self.revoked.is_none() && now < self.not_after
    }
}

/// All tokens and identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registry {
    pub authority: Fingerprint,
    pub written: UnixMs,
    pub tokens: BTreeMap<SecretHash, IssuedToken>,
    pub identities: BTreeMap<Serial, IssuedIdentity>,
}

impl Registry {
    /// An authority that has issued nothing.
    pub fn new(authority: Fingerprint, now: UnixMs) -> Self {
        Self {
            authority,
            written: now,
            tokens: BTreeMap::new(),
            identities: BTreeMap::new(),
        }
    }

    /// The file.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = self.authority.as_bytes().to_vec();
        self.written.put(&mut body);
        put_varint(&mut body, self.tokens.len() as u64);
        for (hash, token) in &self.tokens {
            body.extend_from_slice(hash.as_bytes());
            token.put(&mut body);
        }
        put_varint(&mut body, self.identities.len() as u64);
        self.identities
            .values()
            .for_each(|issued| issued.put(&mut body));
        REGISTRY.wrap(&body)
    }

    /// Reads the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = REGISTRY.unwrap(bytes)?;
        let mut registry = Self::new(
            Fingerprint::from_bytes(reader.array()?),
            UnixMs::read(&mut reader)?,
        );
        let tokens = reader.count("number of tokens", TOKENS_MAX as u64, 38)?;
        for _ in 0..tokens {
            let at = reader.clone();
            let hash = SecretHash::from_bytes(reader.array()?);
            if registry
                .tokens
                .last_key_value()
                .is_some_and(|(last, _)| *last >= hash)
            {
                return Err(at.error(Problem::NotCanonical("tokens out of order")));
            }
            registry
                .tokens
                .insert(hash, IssuedToken::read(&mut reader)?);
        }
        let identities = reader.count("number of identities", IDENTITIES_MAX as u64, 46)?;
        for _ in 0..identities {
            let at = reader.clone();
            let issued = IssuedIdentity::read(&mut reader)?;
            let serial = issued.identity.serial;
            if registry
                .identities
                .last_key_value()
                .is_some_and(|(last, _)| *last >= serial)
            {
                return Err(at.error(Problem::NotCanonical("identities out of order")));
            }
            registry.identities.insert(serial, issued);
        }
        reader.finish()?;
        Ok(registry)
    }
}

impl IssuedToken {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.role.code());
        self.scope.put(out);
        put_option(out, self.name.as_ref(), |out, name| {
            put_string(out, name.as_str());
        });
        self.issued.put(out);
        self.not_after.put(out);
        put_option(out, self.used.as_ref(), |out, used| {
            out.extend_from_slice(used.serial.as_bytes());
            put_string(out, used.by.as_str());
            used.at.put(out);
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            role: Role::read(reader)?,
            scope: Scope::read(reader)?,
            name: read_option(reader, IdentityName::read)?,
            issued: UnixMs::read(reader)?,
            not_after: UnixMs::read(reader)?,
            used: read_option(reader, |reader| {
                Ok(TokenUse {
                    serial: Serial::read(reader)?,
                    by: IdentityName::read(reader)?,
                    at: UnixMs::read(reader)?,
                })
            })?,
        })
    }
}

impl IssuedIdentity {
    fn put(&self, out: &mut Vec<u8>) {
        put_identity(out, &self.identity);
        out.extend_from_slice(&self.key.0);
        self.issued.put(out);
        self.not_after.put(out);
        put_option(out, self.revoked.as_ref(), |out, at| at.put(out));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            identity: read_identity(reader)?,
            key: PublicKey(reader.array()?),
            issued: UnixMs::read(reader)?,
            not_after: UnixMs::read(reader)?,
            revoked: read_option(reader, UnixMs::read)?,
        })
    }
}

fn put_identity(out: &mut Vec<u8>, identity: &PeerIdentity) {
    out.extend_from_slice(identity.serial.as_bytes());
    out.push(identity.role.code());
    put_string(out, identity.name.as_str());
    identity.scope.put(out);
}

fn read_identity(reader: &mut Reader<'_>) -> Result<PeerIdentity, DecodeError> {
    const { assert!(SERIAL_LEN == 8) };
    let serial = Serial::read(reader)?;
    let role = Role::read(reader)?;
    Ok(PeerIdentity {
        name: IdentityName::read(reader)?,
        role,
        scope: Scope::read(reader)?,
        serial,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::support::assert_only_whole;
    use super::super::tests::support::scope;
    use super::*;

    #[test]
    fn registries_round_trip_and_any_changed_byte_is_found() {
        let now = UnixMs::from_seconds(1_764_000_000);
        let mut registry = Registry::new(Fingerprint::from_bytes([0xca; 32]), now);
        let name: IdentityName = "proxy-1".parse().unwrap();
        for n in 0..3_u8 {
            let serial = Serial::from_random([n; 8]);
            registry.tokens.insert(
                SecretHash::from_bytes([n; 32]),
                IssuedToken {
                    role: Role::Ingest,
                    scope: scope(&["web*"], &["*"]),
                    name: (n == 1).then(|| name.clone()),
                    issued: now,
                    not_after: now.after(std::time::Duration::from_secs(60)),
                    used: (n == 2).then(|| TokenUse {
                        serial,
                        by: name.clone(),
                        at: now,
                    }),
                },
            );
            let identity = PeerIdentity {
                name: name.clone(),
                role: Role::Admin,
                scope: Scope::everything(),
                serial,
            };
            registry.identities.insert(
                serial,
                IssuedIdentity {
                    identity,
                    key: PublicKey([n; 32]),
                    issued: now,
                    not_after: UnixMs::MAX,
                    revoked: (n == 0).then_some(now),
                },
            );
        }
        let bytes = registry.encode();
        assert_eq!(Registry::decode(&bytes), Ok(registry));
        assert_only_whole(&bytes, Registry::decode);
    }
}
