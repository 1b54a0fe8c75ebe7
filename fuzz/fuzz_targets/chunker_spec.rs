//! The choice of a chunker: bytes that decode encode to themselves, text that parses prints as itself, and
//! the lengths are such that the chunker can run.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::chunker::{CHUNK_LEN_MAX, ChunkerSpec};

fuzz_target!(|bytes: &[u8]| {
    if let Some(encoded) = bytes.first_chunk::<{ ChunkerSpec::ENCODED_LEN }>()
        && let Ok(spec) = ChunkerSpec::decode(encoded)
    {
        assert_eq!(spec.encode(), *encoded);
        assert_eq!(spec.to_string().parse(), Ok(spec));
        check(&spec);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(spec) = text.parse::<ChunkerSpec>()
    {
        assert!(spec.to_string() == text || spec.name() == text);
        assert_eq!(ChunkerSpec::decode(&spec.encode()), Ok(spec));
        check(&spec);
    }
});

fn check(spec: &ChunkerSpec) {
    assert!(spec.max_len() <= CHUNK_LEN_MAX);
    if let ChunkerSpec::Aligned(params) = spec {
        assert!(params.min() < params.avg() && params.avg() <= params.max());
        assert_eq!((params.avg() - params.min()) >> params.mask_bits(), 4096);
    }
}
