//! Who an NBD server may be: the one with a pinned certificate, one that a given authority vouches for, or
//! one that the system's authorities do. There is no other choice.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use undercroft_format::nbd::uri::TlsParameters;

use super::error::NbdError;

const PIN_PREFIX: &str = "sha256:";
/// Largest file of certificates, in bytes.
const PEM_LEN_MAX: u64 = 8 << 20;

/// How TLS is spoken with a server.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

impl Tls {
    /// The settings that `parameters` ask for, of a server at `host`.
    pub fn new(parameters: &TlsParameters, host: Option<&str>) -> Result<Self, NbdError> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match &parameters.pin {
            Some(pin) => Arc::new(PinnedCertificate {
                digest: read_pin(pin)?,
                provider: provider.clone(),
            }),
            None => {
                let roots = match &parameters.certificates {
                    Some(dir) => roots_of(&Path::new(dir).join("ca-cert.pem"))?,
                    None => system_roots()?,
                };
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(setup("the authorities".to_owned()))?
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(setup("the protocol's versions".to_owned()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match client_certificate(parameters)? {
            Some((chain, key)) => config
                .with_client_auth_cert(chain, key)
                .map_err(setup("the client's certificate".to_owned()))?,
            None => config.with_no_client_auth(),
        };
        let name = match (&parameters.hostname, host, &parameters.pin) {
            (Some(name), ..) => name,
            (None, Some(host), _) => host,
            // Not looked at: the certificate is known.
            (None, None, Some(_)) => "localhost",
            (None, None, None) => {
                return Err(NbdError::TlsUnsettled(
                    "a socket has no name to verify a certificate by: give tls-hostname=NAME or x-tls-pin=FILE",
                ));
            }
        };
        let name = ServerName::try_from(name.to_owned())
            .map_err(setup(format!("the server's name {name:?}")))?;
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }
}

fn setup<E: std::error::Error + Send + Sync + 'static>(what: String) -> impl FnOnce(E) -> NbdError {
    move |source| NbdError::TlsSetup {
        what,
        source: Box::new(source),
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, NbdError> {
    use std::io::Read;
    let what = || format!("reading {}", path.display());
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(PEM_LEN_MAX).read_to_end(&mut bytes))
        .map_err(setup(what()))?;
    Ok(bytes)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NbdError> {
    let what = || format!("reading the certificates in {}", path.display());
    let bytes = read_pem(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(setup(what()))?;
    if found.is_empty() {
        let error = std::io::Error::other("there is none");
        return Err(setup(what())(error));
    }
    Ok(found)
}

fn roots_of(path: &Path) -> Result<RootCertStore, NbdError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(setup(format!("the authorities in {}", path.display())))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, NbdError> {
    let mut roots = RootCertStore::empty();
    // Some of what a system has may be beyond us; what matters is that there is something.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(NbdError::TlsUnsettled(
            "the system has no certificates of authorities: give tls-certificates=DIR or x-tls-pin=FILE",
        ));
    }
    Ok(roots)
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(parameters: &TlsParameters) -> Result<Option<ClientCertificate>, NbdError> {
    let Some(dir) = &parameters.certificates else {
        return Ok(None);
    };
    let (chain, key) = (
        Path::new(dir).join("client-cert.pem"),
        Path::new(dir).join("client-key.pem"),
    );
    if !chain.exists() {
        return Ok(None);
    }
    let what = format!("the key in {}", key.display());
    let key = PrivateKeyDer::from_pem_slice(&read_pem(&key)?).map_err(setup(what))?;
    Ok(Some((certificates(&chain)?, key)))
}

fn read_pin(pin: &str) -> Result<[u8; 32], NbdError> {
    let Some(digits) = pin.strip_prefix(PIN_PREFIX) else {
        let certificates = certificates(Path::new(pin))?;
        return Ok(digest_of(&certificates[0]));
    };
    let digits: String = digits.chars().filter(|digit| *digit != ':').collect();
    let bytes: Option<Vec<u8>> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(NbdError::TlsUnsettled(
        "x-tls-pin should be the file of a certificate, or sha256: and the 64 hexadecimal digits of its digest",
    ))
}

fn digest_of(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let digest = ::ring::digest::digest(&::ring::digest::SHA256, certificate);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Trusts one certificate, whatever it says of names, times and authorities: what XAPI hands out are
/// self-signed ones. The peer must have its key.
#[derive(Debug)]
struct PinnedCertificate {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match digest_of(end_entity) == self.digest {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General(
                "the server shows another certificate than the pinned one".to_owned(),
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
