//! What the unit tests of trust share.

use proptest::prelude::*;
use undercroft_format::codec::DecodeError;

use super::super::Scope;
use super::super::pattern::Pattern;

pub fn scope(vms: &[&str], repositories: &[&str]) -> Scope {
    let parse = |texts: &[&str]| -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    };
    Scope::new(parse(vms), parse(repositories)).expect("few patterns")
}

pub fn any_scope() -> impl Strategy<Value = Scope> {
    let patterns = || proptest::collection::vec("[a-z*?é%& ]{1,9}", 0..4);
    (patterns(), patterns()).prop_map(|(vms, repositories)| {
        let parse = |texts: Vec<String>| texts.into_iter().map(|text| text.parse().unwrap());
        Scope::new(parse(vms), parse(repositories)).unwrap()
    })
}

/// Checks that `decode` accepts `bytes` and refuses them with any byte changed, left out or added.
pub fn assert_only_whole<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, DecodeError>) {
    assert!(decode(bytes).is_ok());
    for place in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[place] ^= 1 << (place % 8);
        assert!(decode(&damaged).is_err(), "byte {place}");
        assert!(decode(&bytes[..place]).is_err(), "cut at {place}");
    }
    assert!(decode(&[bytes, b"x"].concat()).is_err());
}
