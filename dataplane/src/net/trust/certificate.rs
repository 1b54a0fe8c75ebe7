//! The certificates: the authority's own, its server's, and those of the enrolled.
//!
//! All are X.509 v3 (RFC 5280) under Ed25519 (RFC 8410). Of a request for a certificate only the public
//! key is taken; everything else is the server's to say.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::error::{Result, TrustError};
use super::identity::{PeerIdentity, uri};
use super::key::KeyPair;
use super::serial::Serial;
use super::time::UnixMs;

/// The name that every server's certificate is for, whatever its hosts are called. A client verifies that
/// the pinned authority made the certificate, and an authority has one server.
pub const SERVER_NAME: &str = "repository.undercroft.internal";
/// How long certificates of servers and of the enrolled are valid.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long before its end a certificate is renewed.
pub const RENEWAL_LEAD: Duration = Duration::from_secs(30 * 24 * 3600);
/// Certificates begin this much earlier than they are made, for peers whose clocks are slow.
const BACKDATING: Duration = Duration::from_secs(24 * 3600);

/// A public key that a request for a certificate was signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PublicKey(pub [u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// How long a certificate issued at `issued` is valid.
pub(super) fn not_after(issued: UnixMs) -> UnixMs {
    issued.to_second().after(CERTIFICATE_LIFETIME)
}

/// The certificate of a new authority. It does not end: replacing it means to enrol everything anew, and
/// verifiers do not look at a trust anchor's end.
pub(super) fn authority(
    key: &KeyPair,
    serial: Serial,
    now: UnixMs,
) -> Result<CertificateDer<'static>> {
    let mut params = params(&format!("Undercroft authority {serial}"), serial, now);
    params.not_after = UnixMs::MAX.to_date();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .self_signed(&key.signer()?)
        .map(|certificate| certificate.der().clone())
        .map_err(TrustError::certificate("making an authority's certificate"))
}

/// What signs certificates for an authority.
pub(super) struct Signer(Issuer<'static, rcgen::KeyPair>);

impl Signer {
    /// Signs in the name of `authority`, whose key is `key`.
    pub fn new(authority: &CertificateDer<'_>, key: &KeyPair) -> Result<Self> {
        Issuer::from_ca_cert_der(authority, key.signer()?)
            .map(Self)
            .map_err(TrustError::certificate(
                "reading an authority's certificate",
            ))
    }

    /// The certificate of the authority's server.
    pub fn server(
        &self,
        key: &PublicKey,
        serial: Serial,
        now: UnixMs,
    ) -> Result<CertificateDer<'static>> {
        let mut params = params("Undercroft server", serial, now);
        params.subject_alt_names = vec![SanType::DnsName(
            SERVER_NAME.try_into().expect("the name is ASCII"),
        )];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params, key)
    }

    /// The certificate of an identity. The same arguments give the same bytes.
    pub fn identity(
        &self,
        identity: &PeerIdentity,
        key: &PublicKey,
        issued: UnixMs,
    ) -> Result<CertificateDer<'static>> {
        let mut params = params(identity.name.as_str(), identity.serial, issued);
        let uri = uri(identity.role, &identity.name, &identity.scope);
        params.subject_alt_names = vec![SanType::URI(
            uri.try_into().expect("an identity's URI is ASCII"),
        )];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, key)
    }

    fn sign(&self, params: &CertificateParams, key: &PublicKey) -> Result<CertificateDer<'static>> {
        params
            .signed_by(key, &self.0)
            .map(|certificate| certificate.der().clone())
            .map_err(TrustError::certificate("signing a certificate"))
    }
}

/// A request for a certificate (PKCS #10, RFC 2986), which proves that `key` is at hand.
pub(super) fn request(key: &KeyPair) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .serialize_request(&key.signer()?)
        .map(|request| request.der().to_vec())
        .map_err(TrustError::certificate(
            "making a request for a certificate",
        ))
}

/// The public key of a request for a certificate, if it is a key of ours and the request is signed with
/// it.
pub(super) fn requested_key(request: &[u8]) -> Option<PublicKey> {
    let request = CertificateSigningRequestDer::from(request);
    let request = CertificateSigningRequestParams::from_der(&request).ok()?;
    if request.public_key.algorithm() != &rcgen::PKCS_ED25519 {
        return None;
    }
    request
        .public_key
        .der_bytes()
        .try_into()
        .ok()
        .map(PublicKey)
}

/// What a client checks of a certificate that it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Whose it is.
    pub key: PublicKey,
    /// When it ends.
    pub not_after: UnixMs,
}

/// Key and end of `certificate`, if `authority` signed it.
pub(super) fn facts(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
) -> Option<Facts> {
    let (_, authority) = X509Certificate::from_der(authority).ok()?;
    let (rest, certificate) = X509Certificate::from_der(certificate).ok()?;
    certificate
        .verify_signature(Some(authority.public_key()))
        .ok()?;
    let key = certificate.public_key().subject_public_key.data.as_ref();
    let not_after = certificate.validity().not_after.timestamp();
    (rest.is_empty() && certificate.issuer() == authority.subject()).then_some(Facts {
        key: PublicKey(key.try_into().ok()?),
        not_after: UnixMs::from_seconds(u64::try_from(not_after).ok()?),
    })
}

fn params(name: &str, serial: Serial, now: UnixMs) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.not_before = now.before(BACKDATING).to_date();
    params.not_after = not_after(now).to_date();
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

#[cfg(test)]
mod tests {
    use super::super::identity::identity_of;
    use super::super::role::Role;
    use super::super::tests::support::scope;
    use super::*;
    use crate::repository::entropy::SeededEntropy;

    fn now() -> UnixMs {
        UnixMs::from_seconds(1_764_000_000)
    }

    fn identity() -> PeerIdentity {
        PeerIdentity {
            name: "proxy-1".parse().unwrap(),
            role: Role::Ingest,
            scope: scope(&["web*", "größe"], &["main"]),
            serial: Serial::from_random([9; 8]),
        }
    }

    #[test]
    fn a_certificate_names_its_identity_and_is_made_again_byte_for_byte() {
        let entropy = SeededEntropy::new(1);
        let (ca_key, key) = (
            KeyPair::generate(&entropy).unwrap(),
            KeyPair::generate(&entropy).unwrap(),
        );
        let ca = authority(&ca_key, Serial::from_random([1; 8]), now()).unwrap();
        let signer = Signer::new(&ca, &ca_key).unwrap();
        let asked = requested_key(&request(&key).unwrap()).unwrap();
        assert_eq!(asked.0, key.public().unwrap());
        let certificate = signer.identity(&identity(), &asked, now()).unwrap();
        assert_eq!(
            identity_of(std::slice::from_ref(&certificate)),
            Ok(identity())
        );
        assert_eq!(
            certificate,
            signer.identity(&identity(), &asked, now()).unwrap()
        );
        let facts = facts(&certificate, &ca).unwrap();
        assert_eq!((facts.key, facts.not_after), (asked, not_after(now())));
    }

    #[test]
    fn no_changed_byte_makes_a_certificate_say_something_else() {
        let entropy = SeededEntropy::new(1);
        let key = KeyPair::generate(&entropy).unwrap();
        let ca = authority(&key, Serial::from_random([1; 8]), now()).unwrap();
        let signer = Signer::new(&ca, &key).unwrap();
        let public = PublicKey(key.public().unwrap());
        let certificate = signer.identity(&identity(), &public, now()).unwrap();
        let whole = facts(&certificate, &ca);
        for place in 0..certificate.len() {
            let mut damaged = certificate.to_vec();
            damaged[place] ^= 1 << (place % 8);
            let damaged = CertificateDer::from(damaged);
            let said = identity_of(std::slice::from_ref(&damaged));
            // The few bytes around what is signed are no part of what a certificate says.
            if let Some(facts) = facts(&damaged, &ca) {
                assert_eq!((Some(facts), said), (whole, Ok(identity())), "byte {place}");
            }
        }
    }

    #[test]
    fn no_changed_byte_makes_a_request_ask_for_another_key() {
        let key = KeyPair::generate(&SeededEntropy::new(1)).unwrap();
        let request = request(&key).unwrap();
        for place in 0..request.len() {
            let mut damaged = request.clone();
            damaged[place] ^= 1 << (place % 8);
            if let Some(asked) = requested_key(&damaged) {
                assert_eq!(asked.0, key.public().unwrap(), "byte {place}");
            }
        }
        // A request under another algorithm is none of ours.
        let other = rcgen::KeyPair::generate().unwrap();
        let other = CertificateParams::default()
            .serialize_request(&other)
            .unwrap();
        assert_eq!(requested_key(other.der()), None);
    }
}
