//! The fingerprint of an authority's certificate.

use ring::digest::{SHA256, digest};
pub use undercroft_format::trust::fingerprint::Fingerprint;

/// The fingerprint of a certificate.
pub fn fingerprint_of(certificate_der: &[u8]) -> Fingerprint {
    let digest = digest(&SHA256, certificate_der);
    Fingerprint::from_bytes(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}
