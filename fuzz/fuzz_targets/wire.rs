//! Frames, session files and task files: what decodes encodes to the same bytes, whatever the type, also when somebody
//! made the length or the checksum fit; a header alone bounds what its frame may take.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undercroft_format::codec::checksum;
use undercroft_format::wire::books::{Books, Entry, Phase};
use undercroft_format::wire::frame::{FRAME_HEADER_LEN, FrameHeader, FrameType};
use undercroft_format::wire::ledger::Ledger;
use undercroft_format::wire::message::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = bytes.first_chunk::<FRAME_HEADER_LEN>()
        && let Ok(header) = FrameHeader::decode(header)
    {
        assert!(header.len <= header.kind.body_len_max());
    }
    if let Ok(message) = Message::decode_frame(bytes) {
        assert_eq!(message.frame(), bytes);
    }
    if let [code, body @ ..] = bytes
        && let Some(kind) = FrameType::from_code(*code)
        && body.len() as u64 <= u64::from(kind.body_len_max())
        && let Ok(message) = Message::decode(kind, body)
    {
        let frame = message.frame();
        assert_eq!(&frame[FRAME_HEADER_LEN..], body);
        assert_eq!(Message::decode_frame(&frame), Ok(message));
    }
    session_file(bytes);
    task_file(bytes);
    let covered = bytes.len().saturating_sub(8);
    let mut forged = bytes[..covered].to_vec();
    let sum = checksum(&forged);
    forged.extend_from_slice(&sum.to_le_bytes());
    session_file(&forged);
    task_file(&forged);
});

fn task_file(bytes: &[u8]) {
    let Ok(entry) = Entry::decode(bytes) else {
        return;
    };
    assert_eq!(entry.encode(), bytes);
    let id = entry.id;
    let mut books = Books::new(1, false);
    let was_over = entry.phase == Phase::Over;
    books.recover([entry]);
    assert_eq!(books.running(), 0, "nothing runs that was read from a file");
    assert_eq!(books.start(0).map(|entry| entry.id), (!was_over).then_some(id));
}

fn session_file(bytes: &[u8]) {
    let Ok(mut ledger) = Ledger::decode(bytes, 0) else {
        return;
    };
    assert_eq!(ledger.encode(), bytes);
    assert!(!ledger.is_attached() && ledger.pending().is_empty());
    assert!(ledger.lapse(2, 1), "nobody is connected to what was read from a file");
}
