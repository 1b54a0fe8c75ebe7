//! The repository's keys at work: making them, wrapping them, sealing and opening payloads.
//!
//! AES-256-GCM is `ring`'s, Argon2id the `argon2` crate's. A session seals under a key of its own with
//! its own count as nonce, so that no nonce can repeat under a key, whoever seals and in whatever order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use undercroft_format::config::{Config, KeyMaterial, KeySlot, MasterKey, SlotKind, WRAPPED_LEN};
use undercroft_format::id::{ChunkId, IdKey, RepositoryId, SessionId};
use undercroft_format::pack::{SEAL_PREFIX_LEN, SEAL_TAG_LEN, SealPrefix};
use zeroize::Zeroizing;

use super::entropy::Entropy;
use super::error::{RecordProblem, RepositoryError, Result};

/// Argon2id costs of new passphrase slots: 64 MiB, 3 passes (RFC 9106 section 4, second choice).
const ARGON_MEMORY_KIB: u32 = 64 << 10;
const ARGON_PASSES: u32 = 3;
const ARGON_LANES: u32 = 4;

/// What unlocks an encrypted repository.
#[derive(Clone)]
pub enum Unlock {
    /// The passphrase.
    Passphrase(Zeroizing<String>),
    /// The recovery key, as `init` printed it.
    RecoveryKey(Zeroizing<String>),
}

/// The keys of an open repository.
pub struct Keys {
    master: MasterKey,
    id_key: IdKey,
    sealing: bool,
    opening: RwLock<HashMap<SessionId, Arc<LessSafeKey>>>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("sealing", &self.sealing)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// The keys that derive from `master`; `sealing` if payloads are sealed.
    pub fn new(master: MasterKey, sealing: bool) -> Self {
        Self {
            id_key: master.id_key(),
            master,
            sealing,
            opening: RwLock::default(),
        }
    }

    /// Unlocks the keys of `config`.
    ///
    /// # Errors
    /// [`RepositoryError::KeyNeeded`] without `unlock`, [`RepositoryError::WrongKey`] if no slot opens.
    pub fn unlock(config: &Config, unlock: Option<&Unlock>) -> Result<Self> {
        match &config.keys {
            KeyMaterial::Clear(master) => Ok(Self::new(master.clone(), false)),
            KeyMaterial::Wrapped(slots) => {
                let unlock = unlock.ok_or(RepositoryError::KeyNeeded)?;
                slots
                    .iter()
                    .find_map(|slot| unwrap_slot(slot, unlock, config.repository))
                    .map(|master| Self::new(master, true))
                    .ok_or(RepositoryError::WrongKey)
            }
        }
    }

    /// The id of a chunk.
    pub fn chunk_id(&self, plain: &[u8]) -> ChunkId {
        self.id_key.chunk_id(plain)
    }

    /// The authenticator of a snapshot's body.
    pub fn authenticate(&self, body: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.master.snapshot_key(), body).as_bytes()
    }

    /// True if payloads are sealed.
    pub fn is_sealing(&self) -> bool {
        self.sealing
    }

    /// What seals the payloads of `session`; `None` if payloads are not sealed.
    pub fn sealer(&self, session: SessionId) -> Option<Sealer> {
        self.sealing.then(|| Sealer {
            session,
            key: aead_key(&self.master.session_key(session)),
            sequence: AtomicU64::new(0),
        })
    }

    /// Opens a sealed payload in place and returns the plaintext's range within it.
    pub fn open(
        &self,
        payload: &mut [u8],
        context: &[u8],
    ) -> Result<std::ops::Range<usize>, RecordProblem> {
        let prefix = SealPrefix::decode(payload)?;
        let key = self.opening_key(prefix.session);
        let nonce = Nonce::assume_unique_for_key(prefix.nonce());
        let sealed = &mut payload[SEAL_PREFIX_LEN..];
        match key.open_in_place(nonce, Aad::from(context), sealed) {
            Ok(plain) => Ok(SEAL_PREFIX_LEN..SEAL_PREFIX_LEN + plain.len()),
            Err(_) => Err(RecordProblem::Seal),
        }
    }

    fn opening_key(&self, session: SessionId) -> Arc<LessSafeKey> {
        if let Some(key) = self.opening.read().get(&session) {
            return key.clone();
        }
        let key = Arc::new(aead_key(&self.master.session_key(session)));
        let mut known = self.opening.write();
        // A repository of many sessions must not grow this without bound; keys are cheap to remake.
        if known.len() >= 4096 {
            known.clear();
        }
        known.insert(session, key.clone());
        key
    }
}

/// Seals the payloads of one session.
pub struct Sealer {
    session: SessionId,
    key: LessSafeKey,
    sequence: AtomicU64,
}

impl Sealer {
    /// Bytes that a seal adds to a payload.
    pub const OVERHEAD: usize = SEAL_PREFIX_LEN + SEAL_TAG_LEN;

    /// Makes the sealed payload of `plain` in `out`, which is overwritten.
    pub fn seal(&self, plain: &[u8], context: &[u8], out: &mut Vec<u8>) {
        let prefix = SealPrefix {
            session: self.session,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
        };
        out.clear();
        out.extend_from_slice(&prefix.encode());
        out.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(prefix.nonce());
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(context), &mut out[SEAL_PREFIX_LEN..])
            .expect("a payload is shorter than AES-GCM's 64 GiB limit");
        out.extend_from_slice(tag.as_ref());
    }
}

/// Wraps `master` for a passphrase and for a new recovery key; the key is returned to be shown once.
pub fn wrap_master(
    master: &MasterKey,
    passphrase: &str,
    repository: RepositoryId,
    entropy: &dyn Entropy,
) -> Result<(Vec<KeySlot>, Zeroizing<String>)> {
    let kind = SlotKind::Passphrase {
        memory_kib: ARGON_MEMORY_KIB,
        passes: ARGON_PASSES,
        lanes: ARGON_LANES,
        salt: entropy.array()?,
    };
    let recovery = Zeroizing::new(entropy.array::<32>()?);
    let recovery_text = Zeroizing::new(group(&recovery));
    let passphrase_key = passphrase_key(&kind, passphrase)?;
    let recovery_key = recovery_key(&recovery_text).ok_or(RepositoryError::WrongKey)?;
    let slots = vec![
        wrap_slot(kind, &passphrase_key, master, repository, entropy)?,
        wrap_slot(
            SlotKind::Recovery,
            &recovery_key,
            master,
            repository,
            entropy,
        )?,
    ];
    Ok((slots, recovery_text))
}

/// 64 hexadecimal digits in groups of eight.
fn group(key: &[u8; 32]) -> String {
    key.chunks(4)
        .map(|bytes| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        })
        .collect::<Vec<_>>()
        .join("-")
}

fn passphrase_key(kind: &SlotKind, passphrase: &str) -> Result<Zeroizing<[u8; 32]>> {
    let SlotKind::Passphrase {
        memory_kib,
        passes,
        lanes,
        salt,
    } = kind
    else {
        return Err(RepositoryError::WrongKey);
    };
    let params = argon2::Params::new(*memory_kib, *passes, *lanes, Some(32))
        .map_err(|_| RepositoryError::WrongKey)?;
    let argon = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut key = Zeroizing::new([0; 32]);
    argon
        .hash_password_into(passphrase.as_bytes(), salt, &mut key[..])
        .map_err(|_| RepositoryError::WrongKey)?;
    Ok(key)
}

/// The wrapping key of a recovery key: its 64 digits, whatever stands between them.
fn recovery_key(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits: Zeroizing<Vec<u8>> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != '-')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<Vec<u8>>>()?
        .into();
    if digits.len() != 64 {
        return None;
    }
    let bytes: Zeroizing<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect::<Vec<_>>()
        .into();
    Some(Zeroizing::new(blake3::derive_key(
        "undercroft 2026-11 recovery key",
        &bytes,
    )))
}

fn aead_key(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes"))
}

fn wrap_slot(
    kind: SlotKind,
    key: &[u8; 32],
    master: &MasterKey,
    repository: RepositoryId,
    entropy: &dyn Entropy,
) -> Result<KeySlot> {
    let nonce = entropy.array::<12>()?;
    let mut wrapped = [0; WRAPPED_LEN];
    let (secret, tag_place) = wrapped.split_at_mut(32);
    secret.copy_from_slice(master.as_bytes());
    let tag = aead_key(key)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(repository.as_bytes()),
            secret,
        )
        .expect("32 bytes are shorter than AES-GCM's limit");
    tag_place.copy_from_slice(tag.as_ref());
    Ok(KeySlot {
        kind,
        nonce,
        wrapped,
    })
}

fn unwrap_slot(slot: &KeySlot, unlock: &Unlock, repository: RepositoryId) -> Option<MasterKey> {
    let key = match (&slot.kind, unlock) {
        (SlotKind::Passphrase { .. }, Unlock::Passphrase(text)) => {
            passphrase_key(&slot.kind, text).ok()?
        }
        (SlotKind::Recovery, Unlock::RecoveryKey(text)) => recovery_key(text)?,
        _ => return None,
    };
    let mut wrapped = Zeroizing::new(slot.wrapped);
    let plain = aead_key(&key)
        .open_in_place(
            Nonce::assume_unique_for_key(slot.nonce),
            Aad::from(repository.as_bytes()),
            &mut wrapped[..],
        )
        .ok()?;
    Some(MasterKey::from_bytes(plain.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::entropy::SeededEntropy;

    const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);

    #[test]
    fn either_key_unlocks_and_nothing_else_does() {
        let entropy = SeededEntropy::new(1);
        let master = MasterKey::from_bytes([7; 32]);
        let (slots, recovery) = wrap_master(&master, "horse", REPOSITORY, &entropy).unwrap();
        let opens = |unlock: Unlock, repository| {
            slots
                .iter()
                .find_map(|slot| unwrap_slot(slot, &unlock, repository))
                .is_some_and(|key| key.as_bytes() == master.as_bytes())
        };
        let passphrase = |text: &str| Unlock::Passphrase(text.to_owned().into());
        assert!(opens(passphrase("horse"), REPOSITORY));
        assert!(!opens(passphrase("cow"), REPOSITORY));
        assert!(!opens(
            passphrase("horse"),
            RepositoryId::from_bytes([2; 16])
        ));
        assert!(opens(
            Unlock::RecoveryKey(recovery.to_uppercase().replace('-', " ").into()),
            REPOSITORY
        ));
        assert!(!opens(
            Unlock::RecoveryKey("00".repeat(32).into()),
            REPOSITORY
        ));
        assert!(!opens(
            Unlock::RecoveryKey("short".to_owned().into()),
            REPOSITORY
        ));
    }

    #[test]
    fn a_seal_opens_only_in_its_context() {
        let keys = Keys::new(MasterKey::from_bytes([7; 32]), true);
        let sealer = keys.sealer(SessionId::from_bytes([3; 16])).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        sealer.seal(b"secret", b"context", &mut a);
        sealer.seal(b"secret", b"context", &mut b);
        assert_ne!(a, b, "nonces repeat");
        let range = keys.open(&mut a, b"context").unwrap();
        assert_eq!(&a[range], b"secret");
        assert_eq!(
            keys.open(&mut b.clone(), b"other"),
            Err(RecordProblem::Seal)
        );
        b[30] ^= 1;
        assert_eq!(keys.open(&mut b, b"context"), Err(RecordProblem::Seal));
    }
}
