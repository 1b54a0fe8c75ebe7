//! Ids parsed from text: any text gives an id or an error, and an id's text gives the id back.
#![no_main]

use std::fmt::Display;
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use undercroft_format::id::{ChunkId, PackId, SnapshotId};

fuzz_target!(|text: &str| {
    check::<ChunkId>(text, ChunkId::LEN);
    check::<PackId>(text, PackId::LEN);
    check::<SnapshotId>(text, SnapshotId::LEN);
});

fn check<Id: FromStr + Display>(text: &str, len: usize) {
    let digits = text.len() == 2 * len && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parsed = text.parse::<Id>();
    assert_eq!(parsed.is_ok(), digits);
    if let Ok(id) = parsed {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
}
