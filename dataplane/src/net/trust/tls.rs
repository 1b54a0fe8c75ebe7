//! The TLS settings of both sides: version 1.3 alone, AES-128-GCM first, the authority pinned.
//!
//! A server offers two protocols (ALPN). Under [`ALPN`] the peer shows a certificate, under
//! [`ALPN_ENROL`] it has none yet and can only be enrolled; [`admit`] tells which it is. There is no
//! resumption, and so no 0-RTT: a resumed session would be let in without a look at its certificate's end
//! or revocation.

use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::authority::Authority;
use super::error::{Result, TrustError};
use super::fingerprint::Fingerprint;
use super::identity::{PeerIdentity, identity_of};
use super::refusal::Refusal;
use super::time::{ClientTime, WallClock};
use super::verify_client::EnrolledClients;
use super::verify_server::TokenAuthority;

/// The protocol of peers with a certificate.
pub const ALPN: &[u8] = b"undercroft/1";
/// The protocol of peers with a certificate of a proxy.
pub const ALPN_PROXY: &[u8] = b"undercroft-proxy/1";
/// The protocol of enrolment, for peers without one.
pub const ALPN_ENROL: &[u8] = b"undercroft-enrol/1";

/// What a daemon speaks (ALPN): with enrolled peers, and with those that are to be enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// With peers that have a certificate.
    pub peers: &'static [u8],
    /// With peers that have none yet.
    pub enrolment: &'static [u8],
}

/// What a repository server speaks.
pub const REPOSITORY: Protocols = Protocols {
    peers: ALPN,
    enrolment: ALPN_ENROL,
};

/// What a proxy speaks. Enrolment is the same everywhere.
pub const PROXY: Protocols = Protocols {
    peers: ALPN_PROXY,
    enrolment: ALPN_ENROL,
};

/// Who a connection is with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Somebody without a certificate, who can send one [`EnrolRequest`](super::EnrolRequest).
    ToEnrol,
    /// An enrolled peer.
    Peer(PeerIdentity),
}

/// Why a connection is closed after its handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// It shows no certificate, or one that names nobody.
    #[error(transparent)]
    Identity(#[from] super::identity::IdentityError),
    /// Its certificate is not let in.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It speaks no protocol of ours.
    #[error(
        "the peer asked for none of this server's protocols: use the same version of undercroft on both sides"
    )]
    Protocol,
}

/// The settings of `authority`'s server, which speaks `protocols`.
///
/// The server's certificate is renewed under them, and revocations count from the next handshake on, with
/// no need to make them anew.
pub fn server_config(authority: &Arc<Authority>, protocols: Protocols) -> Result<ServerConfig> {
    let verifier = EnrolledClients::new(authority, &provider())?;
    let mut config = ServerConfig::builder_with_details(provider(), authority.time().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::certificate("setting TLS up"))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(ServerCertificate(authority.clone())));
    config.alpn_protocols = vec![protocols.peers.to_vec(), protocols.enrolment.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Who a connection is with, from what its handshake gave: the protocol and the peer's certificates.
/// Nothing else may be read from a connection before this was asked.
///
/// # Errors
/// [`AdmitError`], whose text may be sent to the peer.
pub fn admit(
    authority: &Authority,
    protocols: Protocols,
    alpn: Option<&[u8]>,
    chain: Option<&[CertificateDer<'_>]>,
) -> Result<Admitted, AdmitError> {
    match alpn {
        Some(alpn) if alpn == protocols.enrolment => Ok(Admitted::ToEnrol),
        Some(alpn) if alpn == protocols.peers => {
            let peer = identity_of(chain.unwrap_or_default())?;
            authority.admit(&peer)?;
            Ok(Admitted::Peer(peer))
        }
        _ => Err(AdmitError::Protocol),
    }
}

/// The settings of a client that is to be enrolled: the server must have the authority that the token
/// names.
pub(super) fn enrolment_config(
    authority: Fingerprint,
    clock: &Arc<dyn WallClock>,
) -> Result<ClientConfig> {
    let verifier = TokenAuthority::new(authority, provider());
    let config = client_builder(clock)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(finish_client(config, ALPN_ENROL))
}

/// The settings of an enrolled client, which speaks `protocols`: the server must have the pinned
/// authority.
pub(super) fn enrolled_config(
    authority: &CertificateDer<'static>,
    certified: Arc<CertifiedKey>,
    clock: &Arc<dyn WallClock>,
    protocols: Protocols,
) -> Result<ClientConfig> {
    let roots = root(authority).map_err(TrustError::certificate("pinning an authority"))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(TrustError::certificate("pinning an authority"))?;
    let config = client_builder(clock)?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    Ok(finish_client(config, protocols.peers))
}

/// The one authority, as a root.
pub(super) fn root(authority: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    Ok(Arc::new(roots))
}

fn client_builder(
    clock: &Arc<dyn WallClock>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>> {
    ClientConfig::builder_with_details(provider(), Arc::new(ClientTime(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TrustError::certificate("setting TLS up"))
}

fn finish_client(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// `ring`, with the cipher first that is fastest on processors with AES instructions.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..rustls::crypto::ring::default_provider()
    })
}

/// Shows what [`Authority::server`] has at the time of the handshake.
#[derive(Debug)]
struct ServerCertificate(Arc<Authority>);

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.server().certified.clone())
    }
}
