//! How a server verifies a client's certificate: `webpki` checks signature, purpose and end by the
//! server's time, then the registry is asked.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::authority::Authority;
use super::error::{Result, TrustError};
use super::identity::identity_of;
use super::refusal::Refusal;
use super::tls::root;

/// Lets in whom the authority enrolled, and those who show no certificate: they can be enrolled.
#[derive(Debug)]
pub(super) struct EnrolledClients {
    authority: Arc<Authority>,
    signatures: Arc<dyn ClientCertVerifier>,
}

impl EnrolledClients {
    pub fn new(authority: &Arc<Authority>, provider: &Arc<CryptoProvider>) -> Result<Self> {
        let roots = root(authority.certificate())
            .map_err(TrustError::certificate("trusting the own authority"))?;
        let signatures = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(TrustError::certificate("trusting the own authority"))?;
        Ok(Self {
            authority: authority.clone(),
            signatures,
        })
    }

    fn check_registry(&self, certificate: &CertificateDer<'_>) -> Result<(), CertificateError> {
        let peer = identity_of(std::slice::from_ref(certificate)).map_err(|error| {
            tracing::warn!(reason = %error, "a peer was not let in");
            CertificateError::ApplicationVerificationFailure
        })?;
        self.authority.admit(&peer).map_err(|refusal| {
            tracing::warn!(peer = %peer.name, serial = %peer.serial, reason = %refusal, "a peer was not let in");
            match refusal {
                Refusal::Revoked { .. } => CertificateError::Revoked,
                Refusal::Expired { .. } => CertificateError::Expired,
                _ => CertificateError::ApplicationVerificationFailure,
            }
        })
    }
}

impl ClientCertVerifier for EnrolledClients {
    fn client_auth_mandatory(&self) -> bool {
        self.signatures.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signatures.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .signatures
            .verify_client_cert(end_entity, intermediates, now)?;
        self.check_registry(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}
