//! The certificate that an export shows, and whom it lets in.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::error::ExportError;

/// Largest file of certificates, in bytes.
const PEM_LEN_MAX: u64 = 8 << 20;

/// How clients are spoken to.
#[derive(Clone, Debug)]
pub struct ServerTls(pub(super) Arc<ServerConfig>);

impl ServerTls {
    /// Reads a certificate with those above it and its key, in PEM. With `client_ca` only those are let in whom
    /// an authority in that file vouches for.
    ///
    /// # Errors
    /// [`ExportError::Tls`], which names the file.
    pub fn read(
        certificate: &Path,
        key: &Path,
        client_ca: Option<&Path>,
    ) -> Result<Self, ExportError> {
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(setup("the protocol's versions".to_owned()))?;
        let config = match client_ca {
            None => config.with_no_client_auth(),
            Some(path) => {
                let what = || format!("the authorities in {}", path.display());
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(setup(what()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(setup(what()))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let what = format!("the key in {}", key.display());
        let read = PrivateKeyDer::from_pem_slice(&read_pem(key)?).map_err(setup(what))?;
        let what = format!(
            "the certificate in {} with the key in {}",
            certificate.display(),
            key.display()
        );
        let config = config
            .with_single_cert(certificates(certificate)?, read)
            .map_err(setup(what))?;
        Ok(Self(Arc::new(config)))
    }
}

fn setup<E: std::error::Error + Send + Sync + 'static>(
    what: String,
) -> impl FnOnce(E) -> ExportError {
    move |source| ExportError::Tls {
        what,
        source: Box::new(source),
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, ExportError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(PEM_LEN_MAX).read_to_end(&mut bytes))
        .map_err(setup(format!("reading {}", path.display())))?;
    Ok(bytes)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ExportError> {
    let what = || format!("reading the certificates in {}", path.display());
    let bytes = read_pem(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(setup(what()))?;
    if found.is_empty() {
        return Err(setup(what())(std::io::Error::other("there is none")));
    }
    Ok(found)
}
