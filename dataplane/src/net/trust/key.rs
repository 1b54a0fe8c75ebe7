//! Key pairs: Ed25519 (RFC 8032), made of 32 random bytes.
//!
//! `ring` makes and uses them. Signatures under Ed25519 depend on key and message alone, so that a
//! certificate can be issued again, byte for byte, and a simulation repeats.

use std::sync::Arc;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::SigningKey;
use undercroft_format::codec::{DecodeError, Problem, Reader};
use zeroize::Zeroizing;

use super::error::{Result, TrustError};
use crate::repository::entropy::Entropy;

/// RFC 8410 section 7: the DER around the 32 bytes of an Ed25519 key.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const SEED_LEN: usize = 32;

/// A private key and what belongs to it.
#[derive(Clone)]
pub(super) struct KeyPair(Zeroizing<[u8; SEED_LEN]>);

impl KeyPair {
    /// A new key pair.
    pub fn generate(entropy: &dyn Entropy) -> Result<Self> {
        let seed = entropy.array().map_err(TrustError::randomness)?;
        Ok(Self(Zeroizing::new(seed)))
    }

    /// The key to make certificates and requests with.
    pub fn signer(&self) -> Result<rcgen::KeyPair> {
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&self.pkcs8(), &rcgen::PKCS_ED25519)
            .map_err(TrustError::certificate("using a key"))
    }

    /// The key to shake hands with.
    pub fn for_tls(&self) -> Result<Arc<dyn SigningKey>> {
        rustls::crypto::ring::sign::any_eddsa_type(&self.pkcs8())
            .map_err(TrustError::certificate("using a key"))
    }

    /// The public key.
    pub fn public(&self) -> Result<[u8; 32]> {
        let signer = self.signer()?;
        Ok(signer
            .public_key_raw()
            .try_into()
            .expect("a public key of Ed25519 has 32 bytes"))
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&*self.0);
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let seed = Zeroizing::new(reader.array::<SEED_LEN>()?);
        if seed.iter().all(|byte| *byte == 0) {
            return Err(reader.error(Problem::Invalid("private key")));
        }
        Ok(Self(seed))
    }

    fn pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], &self.0[..]].concat())
    }
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::entropy::SeededEntropy;

    #[test]
    fn a_key_is_what_its_seed_makes_it() {
        // RFC 8032 section 7.1, test 1.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec,
            0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03,
            0x1c, 0xae, 0x7f, 0x60,
        ];
        let public = KeyPair(Zeroizing::new(seed)).public().unwrap();
        assert_eq!(public[..4], [0xd7, 0x5a, 0x98, 0x01]);
        let entropy = SeededEntropy::new(1);
        let (a, b) = (
            KeyPair::generate(&entropy).unwrap(),
            KeyPair::generate(&entropy).unwrap(),
        );
        assert_ne!(a.public().unwrap(), b.public().unwrap());
        assert_eq!(format!("{a:?}"), "KeyPair(..)");
    }
}
