//! What an NBD client says to our server: in pieces or at once it comes to the same, replies are whole, what is
//! given out lies within the export, nothing is held beyond its limit.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use undercroft_format::nbd::server::ClientError;
use undercroft_format::nbd::server::negotiation::{
    OPTION_LEN_MAX, Opened, ServerNegotiation, ServerStep,
};
use undercroft_format::nbd::server::offer::{Offer, Offers, PAYLOAD_MAX};
use undercroft_format::nbd::server::requests::{Incoming, Requests};
use undercroft_format::nbd::wire::{Command, Cookie, Errno};

const SIZE: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let [mode, cut, bytes @ ..] = bytes else {
        return;
    };
    let cut = usize::from(*cut).max(1);
    let is_set = |bit: u8| mode & 1 << bit != 0;
    if is_set(0) {
        let whole = negotiate(bytes, usize::MAX, is_set(1));
        assert_eq!(negotiate(bytes, cut, is_set(1)), whole);
    } else {
        let whole = requests(bytes, usize::MAX, is_set(1), is_set(2), false);
        assert_eq!(requests(bytes, cut, is_set(1), is_set(2), false), whole);
        assert_eq!(requests(bytes, cut, is_set(1), is_set(2), true), whole);
    }
});

fn offer(name: &str, writable: bool) -> Offer {
    Offer {
        name: name.to_owned(),
        description: "a disk".to_owned(),
        size: SIZE,
        writable,
    }
}

fn negotiate(bytes: &[u8], cut: usize, tls: bool) -> (Option<ServerStep>, Vec<u8>) {
    let list = vec![offer("root", false), offer("swap", true)];
    let offers = Arc::new(Offers::new(list, tls).expect("they fit together"));
    let mut machine = ServerNegotiation::new(offers);
    let mut sent = machine.take_output();
    for piece in bytes.chunks(cut) {
        let step = machine.feed(piece);
        let output = machine.take_output();
        // Options are short or have short answers.
        assert!(output.len() <= 1000 + 200 * piece.len() + OPTION_LEN_MAX as usize);
        sent.extend(output);
        match step {
            Ok(ServerStep::Continue) => {}
            // Whether clear bytes follow depends on the pieces: no further.
            Ok(ServerStep::StartTls) => return (Some(ServerStep::StartTls), Vec::new()),
            Ok(ServerStep::Open(opened)) => {
                assert!(opened.export < 2 && (opened.structured || !opened.allocation));
                return (Some(ServerStep::Open(opened)), sent);
            }
            Ok(ServerStep::Close) => return (Some(ServerStep::Close), sent),
            Err(ClientError::ClearAfterStartTls(_)) => {
                return (Some(ServerStep::StartTls), Vec::new());
            }
            Err(_) => return (None, sent),
        }
    }
    (Some(ServerStep::Continue), sent)
}

/// What was asked, how it was refused, and the bytes of writes.
type Outcome = (bool, Vec<(Cookie, Command, Option<Errno>)>, Vec<u8>);

fn requests(bytes: &[u8], cut: usize, writable: bool, structured: bool, direct: bool) -> Outcome {
    let opened = Opened {
        export: 0,
        structured,
        allocation: structured,
    };
    let mut machine = Requests::new(&offer("", writable), opened);
    let (mut asked, mut written) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(cut) {
        let mut rest = piece;
        loop {
            if direct && let Some(left) = machine.awaited_payload() {
                let len = rest.len().min(left as usize);
                written.extend_from_slice(&rest[..len]);
                machine.payload_arrived(len as u32);
                rest = &rest[len..];
            }
            match machine.next(&mut rest) {
                Err(_) => return (false, asked, written),
                Ok(None) => break,
                Ok(Some(Incoming::Payload(bytes))) => written.extend_from_slice(bytes),
                Ok(Some(Incoming::Disconnect)) => {
                    asked.push((Cookie(0), Command::Disconnect, None))
                }
                Ok(Some(Incoming::Refused {
                    cookie,
                    command,
                    errno,
                    ..
                })) => asked.push((cookie, command, Some(errno))),
                Ok(Some(Incoming::Request(request))) => {
                    assert!(request.offset + u64::from(request.len) <= SIZE);
                    let carries = matches!(request.command, Command::Read | Command::Write);
                    assert!(!carries || request.len <= PAYLOAD_MAX);
                    let changes = matches!(
                        request.command,
                        Command::Write | Command::Trim | Command::WriteZeroes
                    );
                    assert!(writable || !changes);
                    assert!(!matches!(
                        request.command,
                        Command::Disconnect | Command::Other(_)
                    ));
                    asked.push((request.cookie, request.command, None));
                }
            }
        }
        assert!(rest.is_empty());
    }
    (true, asked, written)
}
