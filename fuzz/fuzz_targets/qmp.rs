//! What a QEMU monitor says: in pieces or at once it comes to the same messages, none longer than the limit;
//! whatever lists a guest's drives gives labels that can be told from nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::qmp::QmpError;
use undercroft_format::qmp::devices::devices;
use undercroft_format::qmp::frames::{Frame, Frames};
use undercroft_format::qmp::message::Message;

const LIMIT: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let [cut, bytes @ ..] = bytes else {
        return;
    };
    let whole = frames(bytes, usize::MAX);
    assert_eq!(frames(bytes, usize::from(*cut).max(1)), whole);
    for frame in whole.0 {
        if let Ok(Message::Return { value, .. }) = Message::of(frame)
            && let Ok(found) = devices(&value)
        {
            assert!(found.iter().all(|device| !device.label.is_empty() && !device.label.contains('/')));
        }
    }
});

fn frames(bytes: &[u8], cut: usize) -> (Vec<Frame>, Option<QmpError>) {
    let mut frames = Frames::new(LIMIT);
    let mut found = Vec::new();
    for piece in bytes.chunks(cut.min(bytes.len()).max(1)) {
        frames.feed(piece);
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}
