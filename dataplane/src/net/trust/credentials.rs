//! A certificate with its private key: what stands in the files `authority` and `server`.
//!
//! The body, within its [envelope](super::envelope): the key's 32 bytes (the seed of RFC 8032), then the
//! length of the certificate as a varint, then the certificate (DER).

use std::path::Path;

use rustls::pki_types::CertificateDer;
use undercroft_format::codec::{DecodeError, Problem, Reader};
use zeroize::Zeroizing;

use super::certificate::facts;
use super::envelope::{Kind, put_bytes, read_bytes};
use super::error::{Result, TrustError};
use super::file;
use super::key::KeyPair;
use super::message::CERTIFICATE_LEN_MAX;

/// The kind of the file `authority`.
pub(super) const AUTHORITY: Kind = kind("authority", b"UCTRAUT\x01");
/// The kind of the file `server`.
pub(super) const SERVER: Kind = kind("server certificate", b"UCTRSRV\x01");

const fn kind(object: &'static str, magic: &'static [u8; 8]) -> Kind {
    Kind {
        object,
        magic,
        version: 1,
        len_max: CERTIFICATE_LEN_MAX + 128,
    }
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub certificate: CertificateDer<'static>,
    pub key: KeyPair,
}

impl Credentials {
    pub fn put(&self, out: &mut Vec<u8>) {
        self.key.put(out);
        put_bytes(out, &self.certificate);
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let key = KeyPair::read(reader)?;
        let certificate = read_bytes(reader, "length of a certificate", CERTIFICATE_LEN_MAX)?;
        Ok(Self {
            certificate: certificate.to_vec().into(),
            key,
        })
    }

    /// Writes them as the file at `path`.
    pub fn save(&self, kind: Kind, path: &Path) -> Result<()> {
        let mut body = Zeroizing::new(Vec::new());
        self.put(&mut body);
        file::replace(path, &Zeroizing::new(kind.wrap(&body)))
    }

    /// Reads the file at `path`, if there is one.
    pub fn load(kind: Kind, path: &Path) -> Result<Option<Self>> {
        let Some((bytes, _)) = file::read(path, kind.len_max)? else {
            return Ok(None);
        };
        let credentials = Self::decode(kind, &bytes).map_err(TrustError::damaged(path))?;
        Ok(Some(credentials))
    }

    fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = kind.unwrap(bytes)?;
        let credentials = Self::read(&mut reader)?;
        if reader.remaining() > 0 {
            return Err(reader.error(Problem::Trailing(reader.remaining())));
        }
        Ok(credentials)
    }

    /// True if `authority` signed the certificate and it is the key's.
    pub fn fit(&self, authority: &CertificateDer<'_>) -> Result<bool> {
        let public = self.key.public()?;
        Ok(facts(&self.certificate, authority).is_some_and(|facts| facts.key.0 == public))
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificate;
    use super::super::serial::Serial;
    use super::super::tests::support::assert_only_whole;
    use super::super::time::UnixMs;
    use super::*;
    use crate::repository::entropy::SeededEntropy;

    #[test]
    fn credentials_read_back_and_any_changed_byte_is_found() {
        let key = KeyPair::generate(&SeededEntropy::new(1)).unwrap();
        let serial = Serial::from_random([1; 8]);
        let certificate = certificate::authority(&key, serial, UnixMs::from_seconds(1)).unwrap();
        let credentials = Credentials { certificate, key };
        assert!(credentials.fit(&credentials.certificate).unwrap());
        let mut body = Vec::new();
        credentials.put(&mut body);
        let bytes = AUTHORITY.wrap(&body);
        let read = Credentials::decode(AUTHORITY, &bytes).unwrap();
        assert_eq!(read.certificate, credentials.certificate);
        assert_only_whole(&bytes, |bytes| Credentials::decode(AUTHORITY, bytes));
        assert!(Credentials::decode(SERVER, &bytes).is_err());
    }
}
