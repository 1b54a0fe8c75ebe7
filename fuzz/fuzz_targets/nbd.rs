//! What an NBD server says: in pieces or at once it comes to the same, reads are done only when each byte
//! came exactly once, nothing is held beyond its limit; URIs that are read are shown as the same export.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use undercroft_format::nbd::ProtocolError;
use undercroft_format::nbd::negotiation::{Export, Negotiation, NegotiationError, Step, Wanted};
use undercroft_format::nbd::negotiation::{BlockSizes, ContextId, Dialect};
use undercroft_format::nbd::transmission::{Event, Transmission};
use undercroft_format::nbd::uri::NbdUri;
use undercroft_format::nbd::wire::{Cookie, TransmissionFlags};

fuzz_target!(|bytes: &[u8]| {
    let [mode, cut, bytes @ ..] = bytes else {
        return;
    };
    let cut = usize::from(*cut).max(1);
    match mode % 4 {
        0 => uri(bytes),
        1 => {
            assert_eq!(negotiate(bytes, cut), negotiate(bytes, usize::MAX));
        }
        mode => {
            let whole = transmit(bytes, usize::MAX, mode == 2, false);
            assert_eq!(transmit(bytes, cut, mode == 2, false), whole);
            assert_eq!(transmit(bytes, cut, mode == 2, true), whole);
        }
    }
});

fn uri(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(uri) = NbdUri::parse(text) {
        assert!(NbdUri::is_like(text));
        let again = NbdUri::parse(&uri.to_string()).expect("what is shown can be read");
        assert_eq!(again.server, uri.server);
        assert_eq!(again.shown_export(), uri.shown_export());
    }
}

fn negotiate(bytes: &[u8], cut: usize) -> Result<(Option<Export>, Vec<u8>), NegotiationError> {
    let mut machine = Negotiation::new(Wanted {
        export: "e".to_owned(),
        tls: false,
        dirty_bitmap: Some("b".to_owned()),
    });
    let mut sent = Vec::new();
    for piece in bytes.chunks(cut) {
        let step = machine.feed(piece)?;
        sent.extend(machine.take_output());
        match step {
            Step::Continue => {}
            Step::Open(export) => return Ok((Some(export), sent)),
            Step::StartTls => panic!("nobody asked for TLS"),
        }
    }
    Ok((None, sent))
}

/// What requests came to: bytes that arrived by request, and how each ended.
type Outcome = (Result<(), ProtocolError>, HashMap<Cookie, Vec<u8>>, Vec<(Cookie, bool)>);

fn transmit(bytes: &[u8], cut: usize, structured: bool, direct: bool) -> Outcome {
    let export = Export {
        size: 1 << 20,
        flags: TransmissionFlags(3),
        block_sizes: BlockSizes::DEFAULT,
        structured,
        allocation: structured.then_some(ContextId(1)),
        dirty: None,
        dialect: Dialect::Standard,
    };
    let mut machine = Transmission::new(&export);
    let reads = [(0, 32), (512, 512), (4096, 64)];
    let mut memory: HashMap<Cookie, Vec<u8>> = reads
        .iter()
        .map(|(offset, len)| (machine.read(*offset, *len), vec![0xee; *len as usize]))
        .collect();
    let mut left: HashMap<Cookie, usize> = reads
        .iter()
        .zip(1..)
        .map(|((_, len), number)| (Cookie(number), *len as usize))
        .collect();
    if structured {
        machine.block_status(0, 1 << 20);
    }
    let mut ended = Vec::new();
    for piece in bytes.chunks(cut) {
        let mut rest = piece;
        loop {
            if direct
                && !rest.is_empty()
                && let Some(payload) = machine.awaited_payload()
            {
                let len = rest.len().min(payload.len as usize);
                let at = payload.at as usize;
                let place = memory.get_mut(&payload.cookie).expect("a read of ours");
                place[at..at + len].copy_from_slice(&rest[..len]);
                *left.get_mut(&payload.cookie).expect("a read of ours") -= len;
                machine.payload_arrived(len as u32);
                rest = &rest[len..];
            }
            match machine.next(&mut rest) {
                Err(error) => return (Err(error), HashMap::new(), Vec::new()),
                Ok(None) => break,
                Ok(Some(Event::Data { cookie, at, bytes })) => {
                    let place = memory.get_mut(&cookie).expect("a read of ours");
                    place[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                    *left.get_mut(&cookie).expect("a read of ours") -= bytes.len();
                }
                Ok(Some(Event::Zeros { cookie, at, len })) => {
                    let place = memory.get_mut(&cookie).expect("a read of ours");
                    place[at as usize..(at + len) as usize].fill(0);
                    *left.get_mut(&cookie).expect("a read of ours") -= len as usize;
                }
                Ok(Some(Event::Status { extents, .. })) => {
                    assert!(extents.iter().all(|extent| extent.len > 0) && !extents.is_empty());
                }
                Ok(Some(Event::Done { cookie, result })) => {
                    if result.is_ok() && let Some(left) = left.get(&cookie) {
                        assert_eq!(*left, 0, "done, but not all there");
                    }
                    ended.push((cookie, result.is_ok()));
                }
            }
        }
    }
    (Ok(()), memory, ended)
}
