//! Packs of a repository, and harm done to them.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::path::{Path, PathBuf};

use undercroft_dataplane::io::LocalStorage;
use undercroft_dataplane::repository::open::read_config;
use undercroft_dataplane::repository::pack_reader::{list_packs, read_contents};
use undercroft_format::id::PackId;
use undercroft_format::pack::{PackKind, RECORD_HEADER_LEN, RecordHeader};

use super::files_below;

/// Flips a bit.
pub fn flip(file: &Path, position: usize, bit: u8) {
    let mut bytes = std::fs::read(file).expect("the file");
    bytes[position] ^= 1 << bit;
    std::fs::write(file, bytes).expect("it can be written");
}

/// The pack that holds most.
pub fn largest_data_pack(repo: &Path) -> PathBuf {
    files_below(&repo.join("packs"))
        .into_iter()
        .max_by_key(|file| std::fs::metadata(file).expect("its length").len())
        .expect("a pack")
}

/// The sealed packs of one kind, with the positions and lengths of their records.
pub fn packs_of(repo: &Path, kind: PackKind) -> Vec<(PathBuf, Vec<(usize, usize)>)> {
    let storage = LocalStorage::new(repo.to_owned());
    let config = read_config(&storage, "repo").expect("a config");
    let sealed = list_packs(&storage).expect("a listing").sealed;
    let contents = sealed
        .into_iter()
        .map(|(id, _)| read_contents(&storage, config.repository, id).expect("a sealed pack"));
    contents
        .filter(|pack| pack.kind == kind)
        .map(|pack| {
            let id = pack.id.to_string();
            let records = pack.toc.entries.iter();
            (
                repo.join("packs").join(&id[..2]).join(&id),
                records
                    .map(|entry| (entry.position as usize, entry.info.record_len() as usize))
                    .collect(),
            )
        })
        .collect()
}

/// Changes a byte of a record's payload and makes its checksums fit: what a forger, or a broken program, could
/// have written.
pub fn forge(pack: &Path, (position, len): (usize, usize)) {
    let mut bytes = std::fs::read(pack).expect("the pack");
    let name = pack.file_name().expect("a name").to_string_lossy();
    let id: PackId = name.parse().expect("an id");
    let record = &mut bytes[position..position + len];
    let header = RecordHeader::decode(record, id, position as u64).expect("a record");
    record[(RECORD_HEADER_LEN + len) / 2] ^= 4;
    let forged = RecordHeader::new(header.info, &record[RECORD_HEADER_LEN..]);
    let forged = forged.encode(id, position as u64);
    record[..RECORD_HEADER_LEN].copy_from_slice(&forged);
    std::fs::write(pack, bytes).expect("it can be written");
}
