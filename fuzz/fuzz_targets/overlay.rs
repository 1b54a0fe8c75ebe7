//! Overlays: what is read of a header is written the same; an entry comes to what its whole slots say, and never to a state
//! in which something is zeros and lost at once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::overlay::{BlockState, DataPlace, ENTRY_LEN, HEADER_LEN, Header, PARTS, PartState};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(header.encode(), bytes);
        places(&header);
    }
    // As the fuzzer cannot make checksums fit.
    if bytes.len() == HEADER_LEN {
        let mut forged = bytes.to_vec();
        let body = HEADER_LEN - 32;
        let checksum = blake3::hash(&forged[..body]);
        forged[body..].copy_from_slice(checksum.as_bytes());
        if let Ok(header) = Header::decode(&forged) {
            assert_eq!(header.encode(), forged);
            places(&header);
            entry(&header, bytes);
        }
    }
});

fn places(header: &Header) {
    let blocks = header.blocks();
    let (map_end, data_end) = (header.entry_at(blocks), header.data_at(header.size.get()));
    match header.data {
        DataPlace::Here => assert!(map_end <= header.data_start() && data_end == header.file_len()),
        DataPlace::Elsewhere => assert!(map_end == header.file_len() && data_end == header.size.get()),
    }
}

fn entry(header: &Header, bytes: &[u8]) {
    for (block, bytes) in (0..).zip(bytes.as_chunks::<ENTRY_LEN>().0) {
        let found = header.decode_entry(block, bytes);
        assert!(found.state.is_sound());
        for part in 0..PARTS {
            assert_eq!(
                found.state.part(part) == PartState::Below,
                found.state.here >> part & 1 == 0
            );
        }
        let state = BlockState {
            here: u16::from(bytes[0]),
            zeros: u16::from(bytes[0] & bytes[1]),
            lost: 0,
        };
        let mut whole = [0; ENTRY_LEN];
        whole[32..].copy_from_slice(&header.encode_slot(block, state, 7));
        assert_eq!(header.decode_entry(block, &whole).state, state);
        assert_ne!(header.decode_entry(block + 1, &whole).torn, 0);
    }
}
