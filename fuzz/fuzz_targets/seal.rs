//! The prefix of a sealed payload: what decodes encodes to the same bytes, and different sequence numbers
//! give different nonces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::pack::{SEAL_PREFIX_LEN, SealPrefix};

fuzz_target!(|input: (&[u8], u64)| {
    let (payload, other) = input;
    let decoded = SealPrefix::decode(payload);
    assert_eq!(decoded.is_ok(), payload.len() >= SEAL_PREFIX_LEN);
    let Ok(prefix) = decoded else { return };
    assert_eq!(prefix.encode(), payload[..SEAL_PREFIX_LEN]);
    let second = SealPrefix {
        sequence: other,
        ..prefix
    };
    assert_eq!(prefix.nonce() == second.nonce(), prefix.sequence == other);
});
