//! When an authority's certificates end.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::Authority;
use super::time::UnixMs;

/// Ends of certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The authority's; it is not renewed by itself. `None` if it says none.
    pub authority: Option<UnixMs>,
    /// The server's, which is renewed in time while the server runs.
    pub server: UnixMs,
}

impl Authority {
    /// When the authority's certificate and the server's end.
    pub fn expiry(&self) -> Expiry {
        let parsed = X509Certificate::from_der(self.certificate());
        let authority = parsed
            .ok()
            .map(|(_, certificate)| certificate.validity().not_after.timestamp())
            .and_then(|seconds| u64::try_from(seconds).ok())
            .and_then(|seconds| seconds.checked_mul(1000))
            .map(UnixMs::from_millis);
        Expiry {
            authority,
            server: self.server().not_after,
        }
    }
}
