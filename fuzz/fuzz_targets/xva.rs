//! An XVA: in pieces or at once it comes to the same; data goes forward and stays within its disk; an archive
//! that is complete has every disk, and one that ends earlier is none.
#![no_main]

mod forge_xva;

use libfuzzer_sys::fuzz_target;
use undercroft_format::xva::{Event, XvaError, XvaReader};

fuzz_target!(|bytes: &[u8]| {
    let [mode, cut, bytes @ ..] = bytes else {
        return;
    };
    let forged = match mode % 2 {
        0 => bytes.to_vec(),
        _ => forge_xva::forged(bytes),
    };
    let whole = read(&forged, usize::MAX);
    assert_eq!(read(&forged, usize::from(*cut) * 7 + 1), whole);
    if whole.is_ok() {
        let end = forged
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        assert!(
            read(&forged[..end], usize::MAX).is_err(),
            "without its end it is truncated"
        );
    }
});

/// A digest of what was told.
fn read(bytes: &[u8], cut: usize) -> Result<blake3::Hash, XvaError> {
    let mut reader = XvaReader::new();
    let mut told = blake3::Hasher::new();
    let (mut at, mut disk, mut ended) = (0, None, 0);
    let mut is_over = false;
    for mut piece in bytes.chunks(cut) {
        while !piece.is_empty() {
            let step = reader.step(piece)?;
            assert!(step.consumed <= piece.len());
            let event = step.event;
            assert!(step.consumed > 0 || event.is_some(), "it goes on");
            match event {
                None => {}
                Some(Event::Description) => {
                    told.update(&reader.description().expect("told").text);
                }
                Some(Event::DiskBegins(number)) => {
                    told.update(&number.to_le_bytes());
                    assert_eq!(disk.replace(number), None, "one disk at a time");
                    at = 0;
                }
                Some(Event::Data { offset, bytes }) => {
                    let description = reader.description().expect("told");
                    let size = description.disks[disk.expect("begun")].virtual_size.get();
                    assert!(offset.get() >= at && !bytes.is_empty());
                    // Where the pieces lie depends on the cut, what they are does not.
                    if offset.get() > at {
                        told.update(&offset.get().to_le_bytes());
                    }
                    told.update(bytes);
                    at = offset.get() + bytes.len() as u64;
                    assert!(at <= size);
                }
                Some(Event::DiskEnds(number)) => {
                    let description = reader.description().expect("told");
                    assert_eq!(disk.take(), Some(number));
                    assert_eq!(at, description.disks[number].virtual_size.get());
                    ended += 1;
                }
                Some(Event::End) => is_over = true,
            }
            piece = &piece[step.consumed..];
        }
    }
    reader.finish()?;
    assert!(is_over);
    let disks = &reader.description().expect("told").disks;
    let with_bytes = disks.iter().filter(|disk| disk.virtual_size.get() > 0);
    assert_eq!(ended, with_bytes.count());
    Ok(told.finalize())
}
