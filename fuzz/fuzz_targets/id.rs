//! Ids parsed from text: any text gives an id or an error, and an id's text gives the id back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::id::{ChunkId, PackId};

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<ChunkId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(id) = text.parse::<PackId>() {
        assert_eq!(id.to_string().parse::<PackId>(), Ok(id));
    }
});
