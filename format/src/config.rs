//! The repository's config: written once by `init`, read by everything.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `UCCONF` 00 01 |
//! | 8 | 4 | format version of the repository |
//! | 12 | 4 | length of the body |
//! | 16 | n | body |
//! | 16+n | 32 | BLAKE3 of everything before |
//!
//! The master key stands here in clear, or wrapped once per key slot. All other keys derive from it:
//! see [`MasterKey`].

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::chunker::ChunkerSpec;
use crate::codec::{DecodeError, Problem, Reader, put_varint};
use crate::id::{IdKey, RepositoryId, SessionId};
use crate::units::SegmentSize;

const MAGIC: &[u8; 8] = b"UCCONF\0\x01";
/// The newest repository format that this program reads and the one that it writes.
pub const FORMAT_VERSION: u32 = 1;
/// Longest config file, in bytes.
pub const CONFIG_LEN_MAX: u64 = 64 << 10;
/// Longest pack that may be aimed at, in bytes: a scrub holds a whole pack in memory.
pub const PACK_LEN_TARGET_MAX: u64 = 64 << 20;
const SLOTS_MAX: u64 = 32;
/// Bytes of a slot without parameters: kind, nonce, wrapped key.
const SLOT_LEN_MIN: usize = 1 + 12 + WRAPPED_LEN;
/// Bytes of a wrapped master key: ciphertext and tag.
pub const WRAPPED_LEN: usize = 48;

/// The secret from which all keys of a repository derive (BLAKE3 `derive_key`, one context per use).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; 32]);

impl MasterKey {
    /// Wraps 32 random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for wrapping.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Keys chunk ids.
    pub fn id_key(&self) -> IdKey {
        IdKey::from_bytes(blake3::derive_key(
            "undercroft 2026-11 chunk id key",
            &self.0,
        ))
    }

    /// Authenticates snapshots.
    pub fn snapshot_key(&self) -> [u8; 32] {
        blake3::derive_key("undercroft 2026-11 snapshot authentication key", &self.0)
    }

    /// Seals the records of `session`: a key per session, so that nonces can be a session's own count.
    pub fn session_key(&self, session: SessionId) -> [u8; 32] {
        let mut material = [0; 48];
        material[..32].copy_from_slice(&self.0);
        material[32..].copy_from_slice(session.as_bytes());
        let key = blake3::derive_key("undercroft 2026-11 session sealing key", &material);
        material.zeroize();
        key
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// How the key that wraps the master key is had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// From a passphrase: Argon2id, version 0x13 (RFC 9106).
    Passphrase {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over the memory.
        passes: u32,
        /// Lanes.
        lanes: u32,
        /// Salt.
        salt: [u8; 16],
    },
    /// From the 256-bit recovery key printed by `init`.
    Recovery,
}

/// One way to unwrap the master key: AES-256-GCM, with the repository id as additional data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// How the wrapping key is had.
    pub kind: SlotKind,
    /// Nonce of the wrapping.
    pub nonce: [u8; 12],
    /// The wrapped master key and its tag.
    pub wrapped: [u8; WRAPPED_LEN],
}

/// Where the master key is.
#[derive(Clone, Debug)]
pub enum KeyMaterial {
    /// In the config: chunks are not sealed.
    Clear(MasterKey),
    /// Wrapped: chunks are sealed.
    Wrapped(Vec<KeySlot>),
}

/// What a repository is and how it was set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The repository's id.
    pub repository: RepositoryId,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// How disks are cut.
    pub chunker: ChunkerSpec,
    /// Size of segments.
    pub segment_size: SegmentSize,
    /// Packs are sealed when they reach this, in bytes.
    pub pack_len_target: u32,
    /// zstd level of new chunks.
    pub zstd_level: i8,
    /// Hard cap of the index's memory, in bytes.
    pub index_memory_max: u64,
    /// The keys.
    pub keys: KeyMaterial,
}

impl Config {
    /// True if chunks are sealed.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.keys, KeyMaterial::Wrapped(_))
    }

    /// The file.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(self.repository.as_bytes());
        put_varint(&mut body, self.created_ms);
        body.extend_from_slice(&self.chunker.encode());
        body.push(self.segment_size.log2());
        put_varint(&mut body, u64::from(self.pack_len_target));
        body.extend_from_slice(&self.zstd_level.to_le_bytes());
        put_varint(&mut body, self.index_memory_max);
        match &self.keys {
            KeyMaterial::Clear(master) => {
                body.push(0);
                body.extend_from_slice(master.as_bytes());
            }
            KeyMaterial::Wrapped(slots) => {
                body.push(1);
                put_varint(&mut body, slots.len() as u64);
                slots.iter().for_each(|slot| encode_slot(&mut body, slot));
            }
        }
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        body.zeroize();
        out
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`Problem::Magic`] if this is no config, [`Problem::Version`] if a newer program wrote it,
    /// [`Problem::Checksum`] if it is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("repository config", bytes);
        reader.magic(MAGIC)?;
        let version = reader.u32()?;
        let body_len = reader.u32()? as usize;
        let body = reader.take(body_len)?;
        let covered = &bytes[..reader.offset()];
        let hash: [u8; 32] = reader.array()?;
        if blake3::hash(covered) != hash {
            return Err(reader.error(Problem::Checksum));
        }
        if version != FORMAT_VERSION {
            return Err(reader.error(Problem::Version {
                found: version,
                newest: FORMAT_VERSION,
            }));
        }
        reader.finish()?;
        Self::decode_body(body)
    }

    fn decode_body(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("repository config body", body);
        let repository = RepositoryId::from_bytes(reader.array()?);
        let created_ms = reader.varint("creation time", u64::MAX)?;
        let chunker = ChunkerSpec::decode(&reader.array()?)
            .map_err(|_| reader.error(Problem::Invalid("chunker")))?;
        let segment_size = SegmentSize::from_log2(reader.u8()?)
            .ok_or_else(|| reader.error(Problem::Invalid("segment size")))?;
        let pack_len_target = reader.varint("pack length", PACK_LEN_TARGET_MAX)? as u32;
        let zstd_level = i8::from_le_bytes(reader.array()?);
        let index_memory_max = reader.varint("index memory", u64::MAX)?;
        let keys = match reader.u8()? {
            0 => KeyMaterial::Clear(MasterKey::from_bytes(reader.array()?)),
            1 => KeyMaterial::Wrapped(decode_slots(&mut reader)?),
            _ => return Err(reader.error(Problem::Invalid("key material"))),
        };
        reader.finish()?;
        Ok(Self {
            repository,
            created_ms,
            chunker,
            segment_size,
            pack_len_target,
            zstd_level,
            index_memory_max,
            keys,
        })
    }
}

fn encode_slot(out: &mut Vec<u8>, slot: &KeySlot) {
    match &slot.kind {
        SlotKind::Passphrase {
            memory_kib,
            passes,
            lanes,
            salt,
        } => {
            out.push(1);
            for value in [memory_kib, passes, lanes] {
                out.extend_from_slice(&value.to_le_bytes());
            }
            out.extend_from_slice(salt);
        }
        SlotKind::Recovery => out.push(2),
    }
    out.extend_from_slice(&slot.nonce);
    out.extend_from_slice(&slot.wrapped);
}

fn decode_slots(reader: &mut Reader<'_>) -> Result<Vec<KeySlot>, DecodeError> {
    let count = reader.count("number of key slots", SLOTS_MAX, SLOT_LEN_MIN)?;
    if count == 0 {
        return Err(reader.error(Problem::Invalid("number of key slots: nothing unlocks it")));
    }
    (0..count).map(|_| decode_slot(reader)).collect()
}

fn decode_slot(reader: &mut Reader<'_>) -> Result<KeySlot, DecodeError> {
    let kind = match reader.u8()? {
        1 => {
            let (memory_kib, passes, lanes) = (reader.u32()?, reader.u32()?, reader.u32()?);
            // A config must not make a reader allocate or compute without bound.
            if memory_kib > 4 << 20 || passes > 64 || lanes > 64 {
                return Err(reader.error(Problem::Invalid("Argon2id parameters")));
            }
            SlotKind::Passphrase {
                memory_kib,
                passes,
                lanes,
                salt: reader.array()?,
            }
        }
        2 => SlotKind::Recovery,
        _ => return Err(reader.error(Problem::Invalid("key slot"))),
    };
    Ok(KeySlot {
        kind,
        nonce: reader.array()?,
        wrapped: reader.array()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(keys: KeyMaterial) -> Config {
        Config {
            repository: RepositoryId::from_bytes([1; 16]),
            created_ms: 1_760_000_000_000,
            chunker: ChunkerSpec::default(),
            segment_size: SegmentSize::DEFAULT,
            pack_len_target: 32 << 20,
            zstd_level: 1,
            index_memory_max: 1 << 30,
            keys,
        }
    }

    fn examples() -> [Config; 2] {
        let slot = |kind| KeySlot {
            kind,
            nonce: [3; 12],
            wrapped: [4; 48],
        };
        let passphrase = SlotKind::Passphrase {
            memory_kib: 65_536,
            passes: 3,
            lanes: 1,
            salt: [5; 16],
        };
        [
            example(KeyMaterial::Clear(MasterKey::from_bytes([2; 32]))),
            example(KeyMaterial::Wrapped(vec![
                slot(passphrase),
                slot(SlotKind::Recovery),
            ])),
        ]
    }

    #[test]
    fn configs_round_trip_and_any_flipped_bit_is_found() {
        for config in examples() {
            let bytes = config.encode();
            assert_eq!(Config::decode(&bytes).unwrap().encode(), bytes);
            for place in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << (place % 8);
                assert!(Config::decode(&damaged).is_err(), "byte {place}");
                assert!(Config::decode(&bytes[..place]).is_err());
            }
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = examples()[0].encode();
        bytes[8] = 2;
        let end = bytes.len() - 32;
        let hash = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(hash.as_bytes());
        let error = Config::decode(&bytes).unwrap_err();
        assert!(matches!(error.problem, Problem::Version { found: 2, .. }));
    }

    #[test]
    fn a_config_that_nothing_unlocks_is_refused() {
        assert!(Config::decode(&example(KeyMaterial::Wrapped(Vec::new())).encode()).is_err());
    }

    #[test]
    fn keys_for_different_uses_differ() {
        let master = MasterKey::from_bytes([2; 32]);
        let a = master.session_key(SessionId::from_bytes([1; 16]));
        assert_ne!(a, master.session_key(SessionId::from_bytes([2; 16])));
        assert_ne!(a, master.snapshot_key());
    }
}
