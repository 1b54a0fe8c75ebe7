//! Copies a snapshot of a repository many times, each with a session id of its own, to measure what a
//! command costs before it does anything: `many_snapshots REPOSITORY COUNT`.

use std::path::PathBuf;

use undercroft_dataplane::io::{LocalStorage, Storage};
use undercroft_dataplane::repository::keys::Keys;
use undercroft_dataplane::repository::layout;
use undercroft_dataplane::repository::open::read_config;
use undercroft_dataplane::repository::snapshots::Snapshots;
use undercroft_format::id::SessionId;

fn main() {
    let mut words = std::env::args().skip(1);
    let (Some(root), Some(count)) = (words.next(), words.next()) else {
        panic!("usage: many_snapshots REPOSITORY COUNT");
    };
    let count: u64 = count.parse().expect("a number of snapshots");
    let root = PathBuf::from(root);
    let storage = std::sync::Arc::new(LocalStorage::new(root.clone()));
    let config = read_config(&*storage, "the repository").expect("a repository");
    let keys = Keys::unlock(&config, None).expect("a repository that is not encrypted");
    let snapshots = Snapshots::new(storage.clone(), config.repository, None);
    let first = snapshots.list().expect("a listing").ids[0];
    let mut snapshot = snapshots.read(first).expect("a snapshot").snapshot;
    for number in 0..count {
        let mut session = [0; 16];
        session[..8].copy_from_slice(&number.to_le_bytes());
        snapshot.session = SessionId::from_bytes(session);
        snapshot.created_ms += 1;
        let (id, bytes) = snapshot.encode(|body| keys.authenticate(body));
        std::fs::write(root.join(layout::snapshot(id)), bytes).expect("room for a snapshot");
    }
    storage.sync_dir(layout::SNAPSHOTS).expect("a directory");
}
