//! A snapshot file: what decodes encodes to the same bytes and the same id, also when somebody made the
//! checksum fit; with a key, nothing decodes that its holder did not write.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use undercroft_format::codec::checksum;
use undercroft_format::snapshot::Snapshot;

/// Before and after the body: magic, length; authenticator, checksum.
const HEADER_LEN: usize = 12;
const AUTHENTICATOR_LEN: usize = 32;
const CHECKSUM_LEN: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let tail_len = AUTHENTICATOR_LEN + CHECKSUM_LEN;
    let Some(body_len) = bytes.len().checked_sub(HEADER_LEN + tail_len) else {
        return;
    };
    let mut forged = bytes.to_vec();
    forged[8..12].copy_from_slice(&(body_len as u32).to_le_bytes());
    let covered = forged.len() - CHECKSUM_LEN;
    let sum = checksum(&forged[..covered]);
    forged[covered..].copy_from_slice(&sum.to_le_bytes());
    check(&forged);
    let place = bytes[0] as usize % forged.len();
    forged[place] ^= 1;
    assert!(Snapshot::decode(&forged, None).is_err());
});

fn check(bytes: &[u8]) {
    let Ok((id, snapshot)) = Snapshot::decode(bytes, None) else {
        return;
    };
    let body = snapshot.encode_body();
    let stored: [u8; AUTHENTICATOR_LEN] = bytes[HEADER_LEN + body.len()..][..AUTHENTICATOR_LEN]
        .try_into()
        .unwrap();
    assert_eq!(snapshot.encode(|_| stored), (id, bytes.to_vec()));
    let labels: HashSet<&str> = snapshot
        .disks
        .iter()
        .map(|disk| disk.label.as_str())
        .collect();
    assert_eq!(labels.len(), snapshot.disks.len(), "two disks of one label");
    for disk in &snapshot.disks {
        assert!(
            undercroft_format::maptree::levels(disk.tree().segments) <= 5,
            "{}",
            disk.size
        );
    }

    let key = |body: &[u8]| *blake3::keyed_hash(&[7; 32], body).as_bytes();
    let authentic = stored == key(&body);
    assert_eq!(Snapshot::decode(bytes, Some(&key)).is_ok(), authentic);
    let (_, written) = snapshot.encode(key);
    assert_eq!(Snapshot::decode(&written, Some(&key)), Ok((id, snapshot)));
}
