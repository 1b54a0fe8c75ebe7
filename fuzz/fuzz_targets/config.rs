//! A repository's config: what decodes encodes to the same bytes and is within the format's limits, also
//! when somebody made the hash fit; with a hash that does not fit, nothing decodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::config::{
    Config, FORMAT_VERSION, KeyMaterial, PACK_LEN_TARGET_MAX, SlotKind,
};

const HEADER_LEN: usize = 16;
const HASH_LEN: usize = 32;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    if let Some(forged) = forge(bytes) {
        check(&forged);
        let mut damaged = forged;
        let place = bytes[0] as usize % damaged.len();
        damaged[place] ^= 1;
        assert!(Config::decode(&damaged).is_err());
    }
});

fn check(bytes: &[u8]) {
    let Ok(config) = Config::decode(bytes) else {
        return;
    };
    assert_eq!(config.encode(), bytes);
    assert!(u64::from(config.pack_len_target) <= PACK_LEN_TARGET_MAX);
    if let KeyMaterial::Wrapped(slots) = &config.keys {
        assert!(
            !slots.is_empty() && slots.len() <= 32,
            "a config that nothing unlocks"
        );
        for slot in slots {
            if let SlotKind::Passphrase {
                memory_kib,
                passes,
                lanes,
                ..
            } = slot.kind
            {
                assert!(memory_kib <= 4 << 20 && passes <= 64 && lanes <= 64);
            }
        }
    }
}

/// `bytes` with the version, length and hash that they should have.
fn forge(bytes: &[u8]) -> Option<Vec<u8>> {
    let body_len = bytes.len().checked_sub(HEADER_LEN + HASH_LEN)?;
    let mut forged = bytes.to_vec();
    forged[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    forged[12..16].copy_from_slice(&(body_len as u32).to_le_bytes());
    let end = HEADER_LEN + body_len;
    let hash = blake3::hash(&forged[..end]);
    forged[end..].copy_from_slice(hash.as_bytes());
    Some(forged)
}
