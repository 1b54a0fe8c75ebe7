//! Who may do what: certificates, tokens, roles.
//!
//! A repository server has an [`authority`] of its own. A person has it make a [`token`] and copies that
//! to a machine; there [`enrolment`] gets a certificate for it, which [`enrolled`] keeps and with which
//! [`tls`] connects from then on. The server reads the peer's [`identity`] from the certificate and asks
//! [`access`] whether its role and scope allow the [`verb`].
//!
//! - [`role`], [`pattern`], [`scope`], [`name`], [`serial`], [`fingerprint`], [`time`]: the nouns
//! - [`identity`], [`verb`], [`access`]: who may do what
//! - [`token`], [`message`], [`refusal`]: what is sent
//! - [`authority`], [`registry`], [`floor`]: the server's side
//! - [`enrolment`], [`enrolled`]: the client's side
//! - [`tls`], [`handshake`]: the settings of both, and what their failures mean
//!
//! The nouns and what is sent are encoded in [`undercroft_format::trust`].
//!
//! Nothing here opens a connection or is asynchronous; `ring`, `rustls`, `webpki` and `rcgen` do the
//! cryptography. docs/trust.md has the formats and the reasons.

pub mod access;
pub mod authority;
mod authority_files;
mod certificate;
mod change;
mod credentials;
mod decide;
pub mod enrolled;
pub mod enrolment;
pub mod error;
mod expiry;
mod file;
pub mod fingerprint;
pub mod floor;
mod forget;
pub mod handshake;
pub mod identity;
mod key;
mod layout;
pub mod registry;
#[cfg(test)]
mod tests;
pub mod time;
mod time_file;
pub mod tls;
pub mod verb;
mod verify_client;
mod verify_server;

use undercroft_format::trust::envelope;
pub use undercroft_format::trust::{message, name, pattern, refusal, role, scope, serial, token};

pub use access::{Denied, Object};
pub use authority::{Authority, TokenOptions};
pub use certificate::{CERTIFICATE_LIFETIME, RENEWAL_LEAD, SERVER_NAME};
pub use enrolled::{ClientStore, Enrolled};
pub use enrolment::{EnrolError, EnrolOptions, Enrolment, NoAnswer, Renewal, enrol};
pub use error::TrustError;
pub use expiry::Expiry;
pub use handshake::{HandshakeError, Side};
pub use identity::{PeerIdentity, identity_of};
pub use layout::DIRECTORY;
pub use message::{Answer, EnrolRequest, Grant, RenewRequest};
pub use name::IdentityName;
pub use refusal::Refusal;
pub use role::Role;
pub use scope::Scope;
pub use serial::Serial;
pub use time::{SetClock, SystemClock, UnixMs, WallClock};
pub use tls::{ALPN, ALPN_ENROL, AdmitError, Admitted, Protocols, admit, server_config};
pub use token::Token;
pub use verb::{Verb, allows};
