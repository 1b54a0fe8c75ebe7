//! What an authority decides about a request: pure functions of the registry, the request and the time.
//!
//! A token's use and the identity that it enrolled enter the registry together, and the registry is
//! durable before anything is answered. So a crash leaves either a token that was not used, or one that
//! was, with the identity; never two identities. Who lost the answer may ask again with the same key, and
//! gets the same certificate.

use super::certificate::{PublicKey, not_after};
use super::identity::PeerIdentity;
use super::message::EnrolRequest;
use super::name::IdentityName;
use super::refusal::Refusal;
use super::registry::{IDENTITIES_MAX, IssuedIdentity, IssuedToken, Registry, TokenUse};
use super::serial::Serial;
use super::time::UnixMs;

impl Registry {
    /// Enrols by a token: what the certificate is to say. `serial` is not in use.
    pub fn enrol(
        &mut self,
        request: &EnrolRequest,
        key: PublicKey,
        serial: Serial,
        now: UnixMs,
    ) -> Result<IssuedIdentity, Refusal> {
        let hash = request.secret.hash();
        let token = self.tokens.get(&hash).ok_or(Refusal::TokenUnknown)?;
        if let Some(used) = &token.used {
            return self.enrolled_before(used, request, key, now);
        }
        let identity = grant(token, request, serial, now)?;
        if self.has_live(&identity.name, now) {
            return Err(Refusal::NameTaken {
                name: identity.name,
            });
        }
        let issued = self.issue(identity, key, now)?;
        let token = self.tokens.get_mut(&hash).expect("it was found above");
        token.used = Some(TokenUse {
            serial,
            by: issued.identity.name.clone(),
            at: now,
        });
        Ok(issued)
    }

    /// Issues the successor of the certificate `present`, which authenticated the connection.
    ///
    /// Of one name's certificates the present one and the new one stay listed, so that renewing again
    /// and again fills no list, and an answer that was lost costs nothing.
    pub fn renew(
        &mut self,
        present: &PeerIdentity,
        key: PublicKey,
        serial: Serial,
        now: UnixMs,
    ) -> Result<IssuedIdentity, Refusal> {
        let listed = self.admit(present, now)?.identity.clone();
        let issued = self.issue(
            PeerIdentity {
                serial,
                ..listed.clone()
            },
            key,
            now,
        )?;
        self.identities.retain(|other, entry| {
            entry.identity.name != listed.name
                || entry.revoked.is_some()
                || [listed.serial, serial].contains(other)
        });
        Ok(issued)
    }

    /// Checks that the certificate of `peer` is listed, live and says what it said when it was issued.
    pub fn admit(&self, peer: &PeerIdentity, now: UnixMs) -> Result<&IssuedIdentity, Refusal> {
        let (name, serial) = (peer.name.clone(), peer.serial);
        let listed = self
            .identities
            .get(&serial)
            .filter(|listed| listed.identity == *peer);
        match listed {
            None => Err(Refusal::NotListed { name, serial }),
            Some(listed) if listed.revoked.is_some() => Err(Refusal::Revoked { name, serial }),
            Some(listed) if now >= listed.not_after => Err(Refusal::Expired {
                name,
                serial,
                at: listed.not_after,
            }),
            Some(listed) => Ok(listed),
        }
    }

    /// True if a live identity has the name.
    pub fn has_live(&self, name: &IdentityName, now: UnixMs) -> bool {
        self.identities
            .values()
            .any(|entry| entry.identity.name == *name && entry.is_live(now))
    }

    fn enrolled_before(
        &self,
        used: &TokenUse,
        request: &EnrolRequest,
        key: PublicKey,
        now: UnixMs,
    ) -> Result<IssuedIdentity, Refusal> {
        let same = self
            .identities
            .get(&used.serial)
            .filter(|entry| entry.key == key && entry.identity.name == request.name);
        match same {
            Some(entry) => self.admit(&entry.identity, now).cloned(),
            None => Err(Refusal::TokenUsed {
                by: used.by.clone(),
                at: used.at,
            }),
        }
    }

    fn issue(
        &mut self,
        identity: PeerIdentity,
        key: PublicKey,
        now: UnixMs,
    ) -> Result<IssuedIdentity, Refusal> {
        if self.identities.len() >= IDENTITIES_MAX {
            return Err(Refusal::Full);
        }
        let issued = IssuedIdentity {
            key,
            issued: now,
            not_after: not_after(now),
            revoked: None,
            identity,
        };
        let before = self
            .identities
            .insert(issued.identity.serial, issued.clone());
        assert!(before.is_none(), "a serial number was given twice");
        Ok(issued)
    }
}

/// What `token` grants of what `request` asks for.
fn grant(
    token: &IssuedToken,
    request: &EnrolRequest,
    serial: Serial,
    now: UnixMs,
) -> Result<PeerIdentity, Refusal> {
    if now >= token.not_after {
        return Err(Refusal::TokenExpired {
            at: token.not_after,
            now,
        });
    }
    if request.role != token.role {
        return Err(Refusal::Role {
            asked: request.role,
            granted: token.role,
        });
    }
    if let Some(granted) = token.name.as_ref().filter(|name| **name != request.name) {
        return Err(Refusal::Name {
            asked: request.name.clone(),
            granted: granted.clone(),
        });
    }
    let scope = request.scope.as_ref().unwrap_or(&token.scope);
    if !token.scope.contains(scope) {
        return Err(Refusal::Scope);
    }
    Ok(PeerIdentity {
        name: request.name.clone(),
        role: token.role,
        scope: scope.clone(),
        serial,
    })
}
