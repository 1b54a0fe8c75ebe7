//! An XVA that is accepted is, to the `tar` crate, an archive of the same files, and its disks are what xapi's
//! rule makes of those.
#![no_main]

mod forge_xva;

use std::collections::BTreeMap;
use std::io::Read;

use libfuzzer_sys::fuzz_target;
use undercroft_format::xva::{Disk, Event, XvaReader};

/// The bytes of a disk that are not zero, by their places.
type Content = BTreeMap<u64, u8>;

fuzz_target!(|bytes: &[u8]| {
    let forged = forge_xva::forged(bytes);
    let mut reader = XvaReader::new();
    let mut found: BTreeMap<String, Content> = BTreeMap::new();
    let mut disk = None;
    let mut rest = &forged[..];
    while !rest.is_empty() {
        let Ok(step) = reader.step(rest) else { return };
        match step.event {
            Some(Event::DiskBegins(number)) => disk = Some(number),
            Some(Event::Data { offset, bytes }) => {
                let description = reader.description().expect("told");
                let disk = &description.disks[disk.expect("begun")];
                put(
                    found.entry(disk.reference.to_string()).or_default(),
                    offset.get(),
                    bytes,
                );
            }
            _ => {}
        }
        rest = &rest[step.consumed..];
    }
    if reader.finish().is_err() {
        return;
    }
    let description = reader.description().expect("told").clone();
    let mut archive = tar::Archive::new(&forged[..]);
    let mut files = Vec::new();
    for entry in archive.entries().expect("memory can be read") {
        let mut entry = entry.expect("what is accepted is tar");
        if !entry.header().entry_type().is_file() && !entry.header().entry_type().is_contiguous() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut payload = Vec::new();
        entry
            .read_to_end(&mut payload)
            .expect("the payload is there");
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        files.push((name, payload));
    }
    let (name, text) = &files[0];
    assert_eq!((name.as_str(), text), ("ova.xml", &description.text));
    for disk in &description.disks {
        let expected = by_rule(disk, &files[1..]);
        let found = found.remove(disk.reference.as_str()).unwrap_or_default();
        assert_eq!(found, expected, "{}", disk.reference);
    }
    assert!(found.is_empty());
});

fn put(content: &mut Content, offset: u64, bytes: &[u8]) {
    let placed = (offset..).zip(bytes);
    content.extend(
        placed
            .filter(|(_, byte)| **byte != 0)
            .map(|(at, byte)| (at, *byte)),
    );
}

/// What the importer does with the files of a disk.
fn by_rule(disk: &Disk, files: &[(String, Vec<u8>)]) -> Content {
    let prefix = format!("{}/", disk.reference);
    let mut content = Content::new();
    let (mut offset, mut next, mut unit) = (0_u64, 0_u64, None);
    for (name, payload) in files {
        let Some(number) = name
            .strip_prefix(&prefix)
            .and_then(|name| name.parse::<u64>().ok())
        else {
            continue;
        };
        let unit = *unit.get_or_insert(payload.len() as u64);
        offset += (number - next) * unit;
        put(&mut content, offset, payload);
        offset += payload.len() as u64;
        next = number + 1;
    }
    content
}
