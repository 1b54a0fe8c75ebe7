//! Enrolment and renewal at the client, but for the bytes on the wire.
//!
//! ```text
//! let enrolment = Enrolment::begin(&store, &token, options, entropy)?;
//! connect with enrolment.config(clock)? to SERVER_NAME; send enrolment.request(); receive answer
//! let enrolled = enrolment.finish(&answer)?;
//! ```
//!
//! The private key is made here and never leaves the machine.

use std::sync::Arc;

use rustls::ClientConfig;
use undercroft_format::codec::DecodeError;

use super::certificate;
use super::credentials::Credentials;
use super::enrolled::{ClientStore, Enrolled};
use super::error::{Result, TrustError};
use super::fingerprint::{Fingerprint, fingerprint_of};
use super::key::KeyPair;
use super::message::{Answer, EnrolRequest, Grant, RenewRequest};
use super::name::IdentityName;
use super::refusal::Refusal;
use super::role::Role;
use super::scope::Scope;
use super::time::WallClock;
use super::tls;
use super::token::Token;
use crate::repository::entropy::Entropy;

/// As what a machine wants to be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolOptions {
    /// The role.
    pub role: Role,
    /// The name.
    pub name: IdentityName,
    /// The scope; all that the token is for if there is none.
    pub scope: Option<Scope>,
}

/// An enrolment or renewal failed at the client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A file or a certificate.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The server's answer is none.
    #[error("the server's answer cannot be read: use the same version of undercroft on both sides")]
    Answer(#[from] DecodeError),
    /// The bytes could not be exchanged.
    #[error("asking the server for a certificate")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A request got no answer.
#[derive(Debug)]
pub struct NoAnswer {
    source: Box<dyn std::error::Error + Send + Sync>,
    was_sent: bool,
}

impl NoAnswer {
    /// There was nobody to send it to.
    pub fn unsent(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
            was_sent: false,
        }
    }

    /// It was sent, or part of it: what came of it is not known.
    pub fn lost(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
            was_sent: true,
        }
    }
}

/// An enrolment that was begun.
#[derive(Debug)]
pub struct Enrolment {
    store: ClientStore,
    /// Its key was made now: no earlier request was made with it.
    is_first: bool,
    authority: Fingerprint,
    options: EnrolOptions,
    key: KeyPair,
    request: Vec<u8>,
}

/// A renewal that was begun.
#[derive(Debug)]
pub struct Renewal {
    store: ClientStore,
    present: Enrolled,
    key: KeyPair,
    request: Vec<u8>,
}

/// Enrols this machine: `exchange` connects with the settings that it is given, sends the bytes, and
/// returns those of the answer.
///
/// # Errors
/// [`EnrolError`]. The same token can be used again unless it was refused: a machine that did not get the
/// answer gets it then. Where it is certain that nothing was granted, nothing is left of the attempt.
pub fn enrol(
    store: &ClientStore,
    token: &Token,
    options: EnrolOptions,
    clock: &Arc<dyn WallClock>,
    entropy: &dyn Entropy,
    exchange: impl FnOnce(ClientConfig, &[u8]) -> Result<Vec<u8>, NoAnswer>,
) -> Result<Enrolled, EnrolError> {
    let enrolment = Enrolment::begin(store, token, options, entropy)?;
    match exchange(enrolment.config(clock)?, enrolment.request()) {
        Ok(answer) => enrolment.finish(&answer),
        Err(NoAnswer { source, was_sent }) => {
            if !was_sent {
                enrolment.give_up();
            }
            Err(EnrolError::Exchange(source))
        }
    }
}

impl Enrolment {
    /// Makes key and request, and keeps the key until the answer has come.
    ///
    /// # Errors
    /// [`Refusal::Role`] if the token itself says that it is for another role.
    pub fn begin(
        store: &ClientStore,
        token: &Token,
        options: EnrolOptions,
        entropy: &dyn Entropy,
    ) -> Result<Self, EnrolError> {
        if token.role != options.role {
            return Err(EnrolError::Refused(Refusal::Role {
                asked: options.role,
                granted: token.role,
            }));
        }
        let hash = token.secret.hash();
        let pending = store.pending(hash)?;
        let is_first = pending.is_none();
        let key = match pending {
            Some(key) => key,
            None => {
                let key = KeyPair::generate(entropy)?;
                store.begin(hash, &key)?;
                key
            }
        };
        let request = EnrolRequest {
            secret: token.secret.clone(),
            role: options.role,
            name: options.name.clone(),
            scope: options.scope.clone(),
            request: certificate::request(&key)?,
        };
        Ok(Self {
            store: store.clone(),
            is_first,
            authority: token.authority,
            options,
            key,
            request: request.encode(),
        })
    }

    /// The settings to connect with, to the name [`SERVER_NAME`](super::SERVER_NAME).
    pub fn config(&self, clock: &Arc<dyn WallClock>) -> Result<ClientConfig> {
        tls::enrolment_config(self.authority, clock)
    }

    /// The bytes to send.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Checks the answer and keeps what was granted.
    pub fn finish(self, answer: &[u8]) -> Result<Enrolled, EnrolError> {
        let grant = match granted(answer) {
            // A server that failed may have granted it all the same.
            Err(EnrolError::Refused(refusal)) if refusal != Refusal::Unavailable => {
                self.give_up();
                return Err(EnrolError::Refused(refusal));
            }
            grant => grant?,
        };
        let found = fingerprint_of(&grant.authority);
        if found != self.authority {
            return Err(EnrolError::Trust(TrustError::WrongAuthority {
                found,
                expected: self.authority,
            }));
        }
        let enrolled = accept(grant, self.key)?;
        let identity = enrolled.identity();
        let is_asked = identity.role == self.options.role
            && identity.name == self.options.name
            && self
                .options
                .scope
                .as_ref()
                .is_none_or(|scope| *scope == identity.scope);
        if !is_asked {
            return Err(EnrolError::Trust(TrustError::BadGrant {
                problem: "is a certificate for another name, role or scope than was asked for",
            }));
        }
        self.store.save(&enrolled)?;
        Ok(enrolled)
    }

    /// Nothing was granted for the key, and nothing will be. A key of an earlier attempt whose answer was lost
    /// stays: something may have been granted then.
    fn give_up(&self) {
        if self.is_first {
            self.store.give_up();
        }
    }
}

impl Renewal {
    /// Makes a new key and the request, to be sent over a connection that the present certificate
    /// authenticates.
    pub fn begin(
        store: &ClientStore,
        present: &Enrolled,
        entropy: &dyn Entropy,
    ) -> Result<Self, EnrolError> {
        let key = KeyPair::generate(entropy)?;
        let request = RenewRequest {
            request: certificate::request(&key)?,
        };
        Ok(Self {
            store: store.clone(),
            present: present.clone(),
            key,
            request: request.encode(),
        })
    }

    /// The bytes to send.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Checks the answer and keeps what was granted, in place of the present certificate.
    pub fn finish(self, answer: &[u8]) -> Result<Enrolled, EnrolError> {
        let grant = granted(answer)?;
        if grant.authority[..] != self.present.authority()[..] {
            return Err(EnrolError::Trust(TrustError::WrongAuthority {
                found: fingerprint_of(&grant.authority),
                expected: self.present.fingerprint(),
            }));
        }
        let enrolled = accept(grant, self.key)?;
        let (new, old) = (enrolled.identity(), self.present.identity());
        if (new.role, &new.name, &new.scope) != (old.role, &old.name, &old.scope) {
            return Err(EnrolError::Trust(TrustError::BadGrant {
                problem: "is a certificate for another name, role or scope than the present one",
            }));
        }
        self.store.save(&enrolled)?;
        Ok(enrolled)
    }
}

fn granted(answer: &[u8]) -> Result<Grant, EnrolError> {
    match Answer::decode(answer)? {
        Answer::Granted(grant) => Ok(grant),
        Answer::Refused(refusal) => Err(EnrolError::Refused(refusal)),
    }
}

/// What was granted, if it was signed by the authority beside it and is for `key`.
fn accept(grant: Grant, key: KeyPair) -> Result<Enrolled> {
    let credentials = Credentials {
        certificate: grant.certificate.into(),
        key,
    };
    Enrolled::new(credentials, grant.authority.into())?.ok_or(TrustError::BadGrant {
        problem: "is a certificate that does not fit this machine's key or the authority",
    })
}
