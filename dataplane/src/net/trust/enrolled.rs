//! What an enrolled machine keeps: one directory per server, for its owner alone.
//!
//! | file | body, within its [envelope](super::envelope) |
//! | --- | --- |
//! | `identity` | private key (32 bytes), certificate, authority's certificate |
//! | `pending` | hash of a token's secret (32 bytes), private key (32 bytes) |
//!
//! A certificate is its length as a varint, then its DER. Key and certificates change together, by one
//! rename. `pending` is there from before an enrolment is asked for until its answer is kept: a machine
//! that lost the answer asks again with the same key, which gets it the same certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use undercroft_format::codec::{DecodeError, Problem};
use zeroize::Zeroizing;

use super::certificate::{RENEWAL_LEAD, facts};
use super::credentials::Credentials;
use super::envelope::{Kind, put_bytes, read_bytes};
use super::error::{Result, TrustError};
use super::file;
use super::fingerprint::{Fingerprint, fingerprint_of};
use super::identity::{PeerIdentity, identity_of};
use super::key::KeyPair;
use super::layout;
use super::message::CERTIFICATE_LEN_MAX;
use super::time::{UnixMs, WallClock};
use super::tls;
use super::token::SecretHash;
use crate::net::address::ServerAddress;

const IDENTITY: Kind = Kind {
    object: "identity",
    magic: b"UCTRIDE\x01",
    version: 1,
    len_max: 2 * CERTIFICATE_LEN_MAX + 256,
};
const PENDING: Kind = Kind {
    object: "pending enrolment",
    magic: b"UCTRPEN\x01",
    version: 1,
    len_max: 256,
};

/// Where a machine keeps what it needs to be known to one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStore {
    dir: PathBuf,
}

/// A certificate that was granted to this machine, its key, and the authority to be trusted.
#[derive(Clone, Debug)]
pub struct Enrolled {
    credentials: Credentials,
    authority: CertificateDer<'static>,
    identity: PeerIdentity,
    not_after: UnixMs,
}

impl ClientStore {
    /// The store of `server` below `base`, which is `~/.config/undercroft` unless the environment names another.
    pub fn of_server(base: &Path, server: &ServerAddress) -> Self {
        Self {
            dir: base.join(server.to_string()),
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is kept.
    ///
    /// # Errors
    /// [`TrustError::NotEnrolled`] if there is nothing.
    pub fn load(&self) -> Result<Enrolled> {
        let path = self.dir.join(layout::IDENTITY);
        let Some((bytes, _)) = file::read(&path, IDENTITY.len_max)? else {
            return Err(TrustError::NotEnrolled {
                path: self.dir.clone(),
            });
        };
        let (credentials, authority) =
            decode_identity(&bytes).map_err(TrustError::damaged(&path))?;
        Enrolled::new(credentials, authority)?.ok_or(TrustError::Unusable {
            path,
            problem: "holds a certificate that does not fit its key or its authority: enrol anew",
        })
    }

    /// Keeps `enrolled`, in place of what was kept.
    pub(super) fn save(&self, enrolled: &Enrolled) -> Result<()> {
        file::create_directory(&self.dir)?;
        let bytes = encode_identity(&enrolled.credentials, &enrolled.authority);
        file::replace(&self.dir.join(layout::IDENTITY), &bytes)?;
        file::remove(&self.dir.join(layout::PENDING))
    }

    /// The key with which an enrolment by the token `token` was begun.
    pub(super) fn pending(&self, token: SecretHash) -> Result<Option<KeyPair>> {
        let path = self.dir.join(layout::PENDING);
        let Some((bytes, _)) = file::read(&path, PENDING.len_max)? else {
            return Ok(None);
        };
        let (begun, key) = decode_pending(&bytes).map_err(TrustError::damaged(&path))?;
        Ok((begun == token).then_some(key))
    }

    /// Keeps the key with which an enrolment by the token `token` begins.
    pub(super) fn begin(&self, token: SecretHash, key: &KeyPair) -> Result<()> {
        file::create_directory(&self.dir)?;
        file::replace(&self.dir.join(layout::PENDING), &encode_pending(token, key))
    }

    /// Removes what [`begin`](Self::begin) left, and the directory if nothing else is in it. What cannot be removed
    /// does no harm: the next enrolment replaces it.
    pub(super) fn give_up(&self) {
        let _ = file::remove(&self.dir.join(layout::PENDING));
        let _ = std::fs::remove_dir(&self.dir);
    }
}

impl Enrolled {
    /// `None` if they do not belong together.
    pub(super) fn new(
        credentials: Credentials,
        authority: CertificateDer<'static>,
    ) -> Result<Option<Self>> {
        if !credentials.fit(&authority)? {
            return Ok(None);
        }
        let identity = identity_of(std::slice::from_ref(&credentials.certificate)).ok();
        let facts = facts(&credentials.certificate, &authority);
        Ok(identity.zip(facts).map(|(identity, facts)| Self {
            credentials,
            authority,
            identity,
            not_after: facts.not_after,
        }))
    }

    /// As what this machine is known.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> UnixMs {
        self.not_after
    }

    /// The certificate of the authority that is trusted.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// The fingerprint of the authority that is trusted.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint_of(&self.authority)
    }

    /// True if the certificate should be renewed: see [`Renewal`](super::enrolment::Renewal).
    pub fn needs_renewal(&self, now: UnixMs) -> bool {
        now.after(RENEWAL_LEAD) >= self.not_after
    }

    /// True if the certificate has ended, so that no server lets it in.
    pub fn has_ended(&self, now: UnixMs) -> bool {
        now >= self.not_after
    }

    /// The settings to connect to a repository server with, to the name
    /// [`SERVER_NAME`](super::SERVER_NAME).
    pub fn client_config(&self, clock: &Arc<dyn WallClock>) -> Result<ClientConfig> {
        self.client_config_for(clock, tls::REPOSITORY)
    }

    /// As [`client_config`](Self::client_config), to a daemon that speaks `protocols`.
    pub fn client_config_for(
        &self,
        clock: &Arc<dyn WallClock>,
        protocols: tls::Protocols,
    ) -> Result<ClientConfig> {
        tls::enrolled_config(&self.authority, self.certified()?, clock, protocols)
    }

    pub(super) fn certified(&self) -> Result<Arc<CertifiedKey>> {
        let chain = vec![self.credentials.certificate.clone()];
        let key = self.credentials.key.for_tls()?;
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

fn encode_identity(
    credentials: &Credentials,
    authority: &CertificateDer<'_>,
) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::new());
    credentials.put(&mut body);
    put_bytes(&mut body, authority);
    Zeroizing::new(IDENTITY.wrap(&body))
}

fn decode_identity(bytes: &[u8]) -> Result<(Credentials, CertificateDer<'static>), DecodeError> {
    let mut reader = IDENTITY.unwrap(bytes)?;
    let credentials = Credentials::read(&mut reader)?;
    let authority = read_bytes(&mut reader, "length of a certificate", CERTIFICATE_LEN_MAX)?;
    let authority = authority.to_vec().into();
    reader.finish()?;
    Ok((credentials, authority))
}

fn encode_pending(token: SecretHash, key: &KeyPair) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(token.as_bytes().to_vec());
    key.put(&mut body);
    Zeroizing::new(PENDING.wrap(&body))
}

fn decode_pending(bytes: &[u8]) -> Result<(SecretHash, KeyPair), DecodeError> {
    let mut reader = PENDING.unwrap(bytes)?;
    let token = SecretHash::from_bytes(reader.array()?);
    let key = KeyPair::read(&mut reader)?;
    if reader.remaining() > 0 {
        return Err(reader.error(Problem::Trailing(reader.remaining())));
    }
    Ok((token, key))
}

#[cfg(test)]
mod tests {
    use super::super::certificate;
    use super::super::serial::Serial;
    use super::super::tests::support::assert_only_whole;
    use super::*;
    use crate::repository::entropy::SeededEntropy;

    #[test]
    fn files_read_back_and_any_changed_byte_is_found() {
        let key = KeyPair::generate(&SeededEntropy::new(1)).unwrap();
        let serial = Serial::from_random([1; 8]);
        let certificate = certificate::authority(&key, serial, UnixMs::from_seconds(1)).unwrap();
        let pending = encode_pending(SecretHash::from_bytes([7; 32]), &key);
        assert_only_whole(&pending, decode_pending);
        let credentials = Credentials {
            certificate: certificate.clone(),
            key,
        };
        let bytes = encode_identity(&credentials, &certificate);
        assert_eq!(decode_identity(&bytes).unwrap().1, certificate);
        assert_only_whole(&bytes, decode_identity);
    }

    #[test]
    fn a_store_that_holds_nothing_says_what_to_do() {
        let base = tempfile::tempdir().unwrap();
        let store = ClientStore::of_server(base.path(), &"[fd00::1]:7000".parse().unwrap());
        assert!(store.dir().ends_with("[fd00::1]:7000"));
        let error = store.load().unwrap_err();
        assert!(matches!(error, TrustError::NotEnrolled { .. }));
        assert!(error.to_string().contains("enrol with a token"));
    }
}
