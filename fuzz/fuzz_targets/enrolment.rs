//! Requests for certificates and the answers to them: what decodes encodes to the same bytes and is within
//! its limits, also when somebody made the hash fit; with a hash that does not fit, nothing decodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::trust::message::{
    Answer, CERTIFICATE_LEN_MAX, EnrolRequest, MESSAGE_LEN_MAX, RenewRequest,
};
use undercroft_format::trust::scope::{PATTERNS_MAX, SCOPE_LEN_MAX};

const HEADER_LEN: usize = 16;
const HASH_LEN: usize = 32;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    if let Some(mut forged) = forge(bytes) {
        check(&forged);
        let place = bytes[0] as usize % forged.len();
        forged[place] ^= 1;
        assert!(EnrolRequest::decode(&forged).is_err());
        assert!(RenewRequest::decode(&forged).is_err());
        assert!(Answer::decode(&forged).is_err());
    }
});

fn check(bytes: &[u8]) {
    if let Ok(request) = EnrolRequest::decode(bytes) {
        assert_eq!(request.encode(), bytes);
        assert!(bytes.len() <= MESSAGE_LEN_MAX && request.request.len() <= CERTIFICATE_LEN_MAX);
        if let Some(scope) = &request.scope {
            assert!(scope.vms().len() <= PATTERNS_MAX && scope.repositories().len() <= PATTERNS_MAX);
            let patterns = scope.vms().iter().chain(scope.repositories());
            let len: usize = patterns.map(|pattern| pattern.as_str().len()).sum();
            assert!(len <= SCOPE_LEN_MAX);
            assert!(scope.contains(scope));
        }
    }
    if let Ok(request) = RenewRequest::decode(bytes) {
        assert_eq!(request.encode(), bytes);
    }
    if let Ok(answer) = Answer::decode(bytes) {
        assert_eq!(answer.encode(), bytes);
    }
}

/// `bytes` with the version, length and hash that they should have.
fn forge(bytes: &[u8]) -> Option<Vec<u8>> {
    let body_len = bytes.len().checked_sub(HEADER_LEN + HASH_LEN)?;
    let mut forged = bytes.to_vec();
    forged[8..12].copy_from_slice(&1_u32.to_le_bytes());
    forged[12..16].copy_from_slice(&(body_len as u32).to_le_bytes());
    let end = HEADER_LEN + body_len;
    let hash = blake3::hash(&forged[..end]);
    forged[end..].copy_from_slice(hash.as_bytes());
    Some(forged)
}
