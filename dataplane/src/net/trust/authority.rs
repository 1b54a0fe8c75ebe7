//! The authority of a repository server: who is let in, and as what.
//!
//! It lives in a directory, `trust` in the server's store:
//!
//! | file | holds | changes |
//! | --- | --- | --- |
//! | `authority` | its certificate and key | never |
//! | `server` | the server's certificate and key | when renewed |
//! | `registry` | tokens and identities | with each of them |
//! | `time` | the latest time ever seen | every minute |
//! | `lock` | nothing; locked by whoever changes the others | never |
//!
//! Several processes may have it open: the server, and commands on the same machine. Each change is made
//! under the lock, to what the file holds by then; each question sees the changes of others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use super::authority_files::{
    ServerCredentials, create, load_authority, load_or_renew_server, load_registry,
};
use super::certificate::{self, PublicKey, RENEWAL_LEAD, Signer};
use super::change::Change;
use super::error::{Result, TrustError};
use super::file::{self, Stamp};
use super::fingerprint::{Fingerprint, fingerprint_of};
use super::floor::ServerTime;
use super::identity::PeerIdentity;
use super::layout;
use super::message::{Answer, EnrolRequest, Grant, RenewRequest};
use super::name::IdentityName;
use super::refusal::Refusal;
use super::registry::{IssuedIdentity, IssuedToken, Registry, TOKENS_MAX};
use super::role::Role;
use super::scope::Scope;
use super::serial::Serial;
use super::time::{UnixMs, WallClock};
use super::time_file;
use super::token::{Secret, SecretHash, Token};
use crate::repository::entropy::Entropy;

/// How long a token can be used, unless asked otherwise.
pub const TOKEN_LIFETIME_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// The longest that a token can be used.
pub const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a token is to be for.
#[derive(Clone, Debug)]
pub struct TokenOptions {
    /// The role.
    pub role: Role,
    /// The widest scope.
    pub scope: Scope,
    /// The one name, if it is not to be chosen by who enrols.
    pub name: Option<IdentityName>,
    /// How long it can be used; at most [`TOKEN_LIFETIME_MAX`], to which more is cut.
    pub lifetime: Duration,
}

/// A server's authority, opened.
pub struct Authority {
    dir: PathBuf,
    certificate: CertificateDer<'static>,
    signer: Signer,
    time: Arc<ServerTime>,
    entropy: Arc<dyn Entropy>,
    state: Mutex<State>,
}

struct State {
    registry: Arc<Registry>,
    stamp: Option<Stamp>,
    server: Arc<ServerCredentials>,
}

impl Authority {
    /// Opens the authority in `dir`, and makes it if the directory is missing or empty.
    ///
    /// # Errors
    /// [`TrustError::Missing`] if part of its files is gone: nothing is made in place of what was lost.
    pub fn open_or_create(
        dir: &Path,
        clock: Arc<dyn WallClock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        file::create_directory(dir)?;
        let change = Change::begin(dir)?;
        if file::stamp(&dir.join(layout::AUTHORITY))?.is_none() {
            create(dir, &*clock, &*entropy)?;
        }
        drop(change);
        Self::open(dir, clock, entropy)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// [`TrustError::NoAuthority`] if there is none.
    pub fn open(dir: &Path, clock: Arc<dyn WallClock>, entropy: Arc<dyn Entropy>) -> Result<Self> {
        if file::stamp(&dir.join(layout::AUTHORITY))?.is_none() {
            return Err(TrustError::NoAuthority {
                path: dir.to_owned(),
            });
        }
        let change = Change::begin(dir)?;
        let authority = load_authority(dir)?;
        let fingerprint = fingerprint_of(&authority.certificate);
        let (registry, stamp) = load_registry(dir, fingerprint)?;
        let floor = time_file::load(dir)?.max(registry.written);
        let time = Arc::new(ServerTime::new(clock, floor));
        let signer = Signer::new(&authority.certificate, &authority.key)?;
        let server =
            load_or_renew_server(dir, &authority.certificate, &signer, &*entropy, time.now())?;
        time_file::save(dir, time.now())?;
        drop(change);
        Ok(Self {
            dir: dir.to_owned(),
            certificate: authority.certificate,
            signer,
            time,
            entropy,
            state: Mutex::new(State {
                registry: Arc::new(registry),
                stamp: Some(stamp),
                server: Arc::new(server),
            }),
        })
    }

    /// The fingerprint of the authority's certificate: what tokens carry.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint_of(&self.certificate)
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The server's time: by it tokens and certificates end, and retention locks begin.
    pub fn time(&self) -> &Arc<ServerTime> {
        &self.time
    }

    /// Makes a token. It is shown this once: only a hash of its secret is kept.
    ///
    /// # Errors
    /// [`TrustError::NameTaken`], [`TrustError::Full`].
    pub fn issue_token(&self, options: &TokenOptions) -> Result<(Token, IssuedToken)> {
        let secret = Secret::from_bytes(self.entropy.array().map_err(TrustError::randomness)?);
        let issued = self.change(|registry, now| {
            registry.forget_old(now);
            if let Some(name) = &options.name
                && registry.has_live(name, now)
            {
                return Err(TrustError::NameTaken { name: name.clone() });
            }
            if registry.tokens.len() >= TOKENS_MAX {
                return Err(TrustError::Full {
                    what: "tokens",
                    limit: TOKENS_MAX,
                });
            }
            let issued = IssuedToken {
                role: options.role,
                scope: options.scope.clone(),
                name: options.name.clone(),
                issued: now,
                not_after: now.after(options.lifetime.min(TOKEN_LIFETIME_MAX)),
                used: None,
            };
            registry.tokens.insert(secret.hash(), issued.clone());
            Ok(issued)
        })?;
        let token = Token {
            role: options.role,
            authority: self.fingerprint(),
            secret,
        };
        Ok((token, issued))
    }

    /// The tokens that are remembered, those that were used or have ended included.
    pub fn tokens(&self) -> Result<Vec<(SecretHash, IssuedToken)>> {
        let registry = self.registry()?;
        Ok(registry
            .tokens
            .iter()
            .map(|(hash, token)| (*hash, token.clone()))
            .collect())
    }

    /// Cancels the token that was not used and whose number ([`SecretHash::short`]) is `short`.
    ///
    /// # Errors
    /// [`TrustError::NoSuchToken`].
    pub fn cancel_token(&self, short: &str) -> Result<IssuedToken> {
        self.change(|registry, _| {
            let found = registry
                .tokens
                .iter()
                .find(|(hash, token)| token.used.is_none() && hash.short() == short)
                .map(|(hash, _)| *hash);
            found
                .and_then(|hash| registry.tokens.remove(&hash))
                .ok_or_else(|| TrustError::NoSuchToken {
                    asked: short.chars().take(80).collect(),
                })
        })
    }

    /// The identities that are remembered, those that have ended or were revoked included.
    pub fn identities(&self) -> Result<Vec<IssuedIdentity>> {
        Ok(self.registry()?.identities.values().cloned().collect())
    }

    /// Names that were let in once and are no more: a certificate of theirs was revoked, and none is live.
    pub fn revoked_names(&self) -> Result<BTreeSet<IdentityName>> {
        let now = self.time().now();
        let registry = self.registry()?;
        let entries = || registry.identities.values();
        let names = |of: fn(&IssuedIdentity, UnixMs) -> bool| -> BTreeSet<IdentityName> {
            let entries = entries().filter(|entry| of(entry, now));
            entries.map(|entry| entry.identity.name.clone()).collect()
        };
        let live = names(IssuedIdentity::is_live);
        let revoked = names(|entry, _| entry.revoked.is_some());
        Ok(revoked.difference(&live).cloned().collect())
    }

    /// Revokes all certificates of a name, or the one of a serial number. Returns those that were live.
    /// Whoever is connected stays so until the server asks [`Authority::admit`] again, which it does all the
    /// time.
    ///
    /// # Errors
    /// [`TrustError::NoSuchIdentity`] if there is none, live or not.
    pub fn revoke(&self, name_or_serial: &str) -> Result<Vec<IssuedIdentity>> {
        let serial = name_or_serial.parse::<Serial>().ok();
        self.change(|registry, now| {
            let mut is_known = false;
            let mut revoked = Vec::new();
            for (found, entry) in &mut registry.identities {
                let name = entry.identity.name.as_str();
                if serial.map_or(name != name_or_serial, |serial| serial != *found) {
                    continue;
                }
                is_known = true;
                if entry.is_live(now) {
                    entry.revoked = Some(now);
                    revoked.push(entry.clone());
                }
            }
            if is_known {
                Ok(revoked)
            } else {
                Err(TrustError::NoSuchIdentity {
                    asked: name_or_serial.chars().take(80).collect(),
                })
            }
        })
    }

    /// Checks that `peer` is let in now: its certificate is listed, has not ended and is not revoked.
    /// To be asked when a peer connects and from time to time while it is connected.
    ///
    /// # Errors
    /// [`Refusal`], [`Refusal::Unavailable`] if the registry cannot be read.
    pub fn admit(&self, peer: &PeerIdentity) -> Result<(), Refusal> {
        let registry = self.registry().map_err(|error| unavailable(&error))?;
        registry.admit(peer, self.time.now()).map(|_| ())
    }

    /// Answers a request to be enrolled.
    ///
    /// Who has no token costs the server a look at the list in memory: no signature, no file, no lock.
    pub fn enrol(&self, request: &EnrolRequest) -> Answer {
        match self.registry() {
            Ok(registry) if registry.tokens.contains_key(&request.secret.hash()) => {}
            Ok(_) => return Answer::Refused(Refusal::TokenUnknown),
            Err(error) => return Answer::Refused(unavailable(&error)),
        }
        self.answer(&request.request, |registry, key, serial, now| {
            registry.enrol(request, key, serial, now)
        })
    }

    /// Answers a request of `peer`, which its connection has authenticated, to have its certificate
    /// renewed.
    pub fn renew(&self, peer: &PeerIdentity, request: &RenewRequest) -> Answer {
        self.answer(&request.request, |registry, key, serial, now| {
            registry.renew(peer, key, serial, now)
        })
    }

    /// To be called every minute: makes the floor of time durable, renews the server's certificate when
    /// its end is near, and forgets what ended long ago.
    pub fn upkeep(&self) -> Result<()> {
        let now = self.time.now();
        let has_old = self.registry()?.has_old(now);
        if has_old {
            self.change(|registry, now| {
                registry.forget_old(now);
                Ok(())
            })?;
        }
        // In the order of `change`, which would wait for this one for ever otherwise.
        let mut state = self.state.lock();
        let _change = Change::begin(&self.dir)?;
        self.time.raise(time_file::load(&self.dir)?);
        let now = self.time.now();
        time_file::save(&self.dir, now)?;
        if now.after(RENEWAL_LEAD) >= state.server.not_after {
            let (dir, authority) = (&self.dir, &self.certificate);
            let server = load_or_renew_server(dir, authority, &self.signer, &*self.entropy, now)?;
            state.server = Arc::new(server);
        }
        Ok(())
    }

    /// What the server shows to clients now.
    pub(super) fn server(&self) -> Arc<ServerCredentials> {
        self.state.lock().server.clone()
    }

    fn answer(
        &self,
        request: &[u8],
        decide: impl FnOnce(&mut Registry, PublicKey, Serial, UnixMs) -> Result<IssuedIdentity, Refusal>,
    ) -> Answer {
        let Some(key) = certificate::requested_key(request) else {
            return Answer::Refused(Refusal::Request);
        };
        let decided = self.change(|registry, now| {
            registry.forget_old(now);
            let serial = self.new_serial(registry)?;
            Ok(decide(registry, key, serial, now))
        });
        let granted = decided.and_then(|decision| {
            let issued = match decision {
                Ok(issued) => issued,
                Err(refusal) => return Ok(Answer::Refused(refusal)),
            };
            let certificate = self
                .signer
                .identity(&issued.identity, &issued.key, issued.issued)?;
            Ok(Answer::Granted(Grant {
                certificate: certificate.to_vec(),
                authority: self.certificate.to_vec(),
            }))
        });
        granted.unwrap_or_else(|error| Answer::Refused(unavailable(&error)))
    }

    fn new_serial(&self, registry: &Registry) -> Result<Serial> {
        loop {
            let random = self.entropy.array().map_err(TrustError::randomness)?;
            let serial = Serial::from_random(random);
            if !registry.identities.contains_key(&serial) {
                return Ok(serial);
            }
        }
    }

    /// The registry as it is in its file.
    fn registry(&self) -> Result<Arc<Registry>> {
        let mut state = self.state.lock();
        if file::stamp(&self.dir.join(layout::REGISTRY))? != state.stamp {
            self.reload(&mut state)?;
        }
        Ok(state.registry.clone())
    }

    fn reload(&self, state: &mut State) -> Result<()> {
        let (registry, stamp) = load_registry(&self.dir, self.fingerprint())?;
        self.time.raise(registry.written);
        state.registry = Arc::new(registry);
        state.stamp = Some(stamp);
        Ok(())
    }

    /// Changes the registry: on `Ok` the change is durable, on `Err` nothing changed.
    fn change<T>(&self, make: impl FnOnce(&mut Registry, UnixMs) -> Result<T>) -> Result<T> {
        let mut state = self.state.lock();
        let _change = Change::begin(&self.dir)?;
        self.reload(&mut state)?;
        let now = self.time.now();
        let mut registry = Registry::clone(&state.registry);
        let made = make(&mut registry, now)?;
        if registry == *state.registry {
            return Ok(made);
        }
        registry.written = now;
        file::replace(&self.dir.join(layout::REGISTRY), &registry.encode())?;
        self.reload(&mut state)?;
        Ok(made)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("dir", &self.dir)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

fn unavailable(error: &TrustError) -> Refusal {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "no certificate could be issued or checked"
    );
    Refusal::Unavailable
}
