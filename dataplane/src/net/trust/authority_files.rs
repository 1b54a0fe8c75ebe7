//! The files of an authority: made, read, and the server's renewed. Callers hold the right to
//! [change](super::change) them.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use super::certificate::{self, PublicKey, RENEWAL_LEAD, Signer};
use super::credentials::{self, Credentials};
use super::error::{Result, TrustError};
use super::file::{self, Stamp};
use super::fingerprint::{Fingerprint, fingerprint_of};
use super::key::KeyPair;
use super::layout;
use super::registry::{REGISTRY, Registry};
use super::serial::Serial;
use super::time::{UnixMs, WallClock};
use super::time_file;
use crate::repository::entropy::Entropy;

/// What the server shows to clients.
#[derive(Debug)]
pub(super) struct ServerCredentials {
    pub certified: Arc<CertifiedKey>,
    pub not_after: UnixMs,
}

impl ServerCredentials {
    /// The chain has the authority's certificate too: who has only a token knows it by its fingerprint.
    fn new(
        credentials: &Credentials,
        authority: &CertificateDer<'static>,
        not_after: UnixMs,
    ) -> Result<Self> {
        let chain = vec![credentials.certificate.clone(), authority.clone()];
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(chain, credentials.key.for_tls()?)),
            not_after,
        })
    }
}

/// Certificate and key of the authority.
pub(super) fn load_authority(dir: &Path) -> Result<Credentials> {
    let path = dir.join(layout::AUTHORITY);
    let Some(authority) = Credentials::load(credentials::AUTHORITY, &path)? else {
        return Err(TrustError::NoAuthority {
            path: dir.to_owned(),
        });
    };
    if !authority.fit(&authority.certificate)? {
        return Err(TrustError::Unusable {
            path,
            problem: "holds a certificate that is not its key's: put back a copy of it",
        });
    }
    Ok(authority)
}

/// Makes an authority. Its own file comes last: with it, all is there.
pub(super) fn create(dir: &Path, clock: &dyn WallClock, entropy: &dyn Entropy) -> Result<()> {
    let registry_path = dir.join(layout::REGISTRY);
    if let Some((bytes, _)) = file::read(&registry_path, REGISTRY.len_max)? {
        let registry = Registry::decode(&bytes).map_err(TrustError::damaged(&registry_path))?;
        if !registry.tokens.is_empty() || !registry.identities.is_empty() {
            return Err(TrustError::Missing {
                path: dir.join(layout::AUTHORITY),
            });
        }
    }
    let now = clock.now();
    let key = KeyPair::generate(entropy)?;
    let serial = Serial::from_random(entropy.array().map_err(TrustError::randomness)?);
    let certificate = certificate::authority(&key, serial, now)?;
    let registry = Registry::new(fingerprint_of(&certificate), now);
    // What an interrupted start made belongs to an authority that never was.
    file::remove(&dir.join(layout::SERVER))?;
    file::replace(&registry_path, &registry.encode())?;
    time_file::save(dir, now)?;
    Credentials { certificate, key }.save(credentials::AUTHORITY, &dir.join(layout::AUTHORITY))
}

/// The registry of `authority`, and which version of its file that is.
pub(super) fn load_registry(dir: &Path, authority: Fingerprint) -> Result<(Registry, Stamp)> {
    let path = dir.join(layout::REGISTRY);
    let Some((bytes, stamp)) = file::read(&path, REGISTRY.len_max)? else {
        return Err(TrustError::Missing { path });
    };
    let registry = Registry::decode(&bytes).map_err(TrustError::damaged(&path))?;
    if registry.authority != authority {
        return Err(TrustError::Foreign { path });
    }
    Ok((registry, stamp))
}

/// The server's credentials, made anew if there are none or their end is near.
pub(super) fn load_or_renew_server(
    dir: &Path,
    authority: &CertificateDer<'static>,
    signer: &Signer,
    entropy: &dyn Entropy,
    now: UnixMs,
) -> Result<ServerCredentials> {
    let path = dir.join(layout::SERVER);
    if let Some(credentials) = Credentials::load(credentials::SERVER, &path)? {
        let public = credentials.key.public()?;
        let facts = certificate::facts(&credentials.certificate, authority)
            .filter(|facts| facts.key.0 == public)
            .ok_or_else(|| TrustError::Foreign { path: path.clone() })?;
        if now.after(RENEWAL_LEAD) < facts.not_after {
            return ServerCredentials::new(&credentials, authority, facts.not_after);
        }
    }
    let key = KeyPair::generate(entropy)?;
    let serial = Serial::from_random(entropy.array().map_err(TrustError::randomness)?);
    let certificate = signer.server(&PublicKey(key.public()?), serial, now)?;
    let credentials = Credentials { certificate, key };
    credentials.save(credentials::SERVER, &path)?;
    ServerCredentials::new(&credentials, authority, certificate::not_after(now))
}
