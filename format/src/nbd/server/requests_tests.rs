//! Our client against our server, in memory; and what no client of ours would send, once the export is open.

use std::collections::HashMap;

use proptest::prelude::*;

use super::negotiation::{ALLOCATION_CONTEXT, Opened};
use super::offer::{BLOCK_SIZES, PAYLOAD_MAX};
use super::replies::{put_data_header, put_end, put_error, put_hole, put_simple, put_status};
use super::requests::{Incoming, Requests};
use super::tests::{SIZE, offer};
use super::*;
use crate::nbd::extents::StatusExtent;
use crate::nbd::negotiation::{ContextId, Export};
use crate::nbd::transmission::{Event, Failure, Transmission};
use crate::nbd::wire::*;

fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_request(
        &mut bytes,
        Command::from_code(command),
        Cookie(cookie),
        offset,
        len,
    );
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes
}

fn requests(writable: bool, structured: bool) -> Requests {
    let opened = Opened {
        export: 0,
        structured,
        allocation: structured,
    };
    Requests::new(&offer("", writable), opened)
}

/// Passes `bytes` through in pieces of `cut`: what was asked, and the bytes of writes.
fn pass(
    machine: &mut Requests,
    bytes: &[u8],
    cut: usize,
) -> Result<(Vec<String>, Vec<u8>), ClientError> {
    let (mut said, mut written) = (Vec::new(), Vec::new());
    for mut piece in bytes.chunks(cut) {
        while let Some(incoming) = machine.next(&mut piece)? {
            match incoming {
                Incoming::Payload(bytes) => written.extend_from_slice(bytes),
                other => said.push(format!("{other:?}")),
            }
        }
        assert!(piece.is_empty());
    }
    Ok((said, written))
}

#[test]
fn requests_are_checked_as_the_protocol_says() {
    const OK: u32 = 0;
    for (writable, structured, bytes, expected) in [
        (false, true, request(0, 0, 1, 0, 512), OK),
        (false, true, request(0, 0, 1, SIZE - 1, 1), OK),
        (false, true, request(0, 0, 1, SIZE, 0), OK),
        (false, true, request(0, 0, 1, SIZE, 1), 22),
        (false, true, request(0, 0, 1, SIZE - 511, 512), 22),
        (false, true, request(0, 0, 1, u64::MAX, 512), 22),
        (false, true, request(0, 0, 1, 0, PAYLOAD_MAX + 1), 22),
        (false, true, request(4, 0, 1, 7, 9), OK),
        (false, false, request(4, 0, 1, 7, 9), 22),
        (false, true, request(2, 0, 1, 0, 9), 22),
        (false, true, request(0, 1, 1, 0, 0), 1),
        (false, true, request(0, 4, 1, 0, 9), 1),
        (false, true, request(0, 6, 1, 0, 9), 1),
        (true, true, request(0, 6, 1, 0, SIZE as u32), OK),
        (true, true, request(0x13, 6, 1, 0, 9), OK),
        (true, true, request(4, 6, 1, 0, 9), 22),
        (true, true, request(0, 6, 1, 1, SIZE as u32), 28),
        (true, true, request(0, 4, 1, 1, SIZE as u32), 22),
        (true, true, request(1, 4, 1, 3, 5), OK),
        (true, true, request(0, 1, 1, 9, 0), OK),
        (false, true, request(0, 3, 1, 0, 0), OK),
        (false, true, request(0, 3, 1, 0, 1), 22),
        (false, true, request(0, 5, 1, 0, SIZE as u32), OK),
        (false, true, request(0, 5, 1, 1, SIZE as u32), 22),
        (false, true, request(8, 7, 1, 0, 9), OK),
        (false, true, request(0, 7, 1, 0, 0), 22),
        (false, false, request(0, 7, 1, 0, 9), 22),
        (false, true, request(0, 8, 1, 0, 9), 22),
        (false, true, request(0, 999, 1, 0, 9), 22),
    ] {
        let mut machine = requests(writable, structured);
        let found = match machine.next(&mut &bytes[..]) {
            Ok(Some(Incoming::Request(request))) => {
                assert_eq!(request.cookie, Cookie(1));
                OK
            }
            Ok(Some(Incoming::Refused { errno, .. })) => errno.code(),
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "{bytes:02x?}");
        assert!(machine.is_idle());
    }
    let bad = [0x25, 0x60, 0x95, 0x14];
    let error = requests(false, true).next(&mut &bad[..]);
    assert!(matches!(
        error,
        Err(ClientError::Magic {
            what: "request",
            ..
        })
    ));
}

#[test]
fn bytes_of_refused_writes_are_no_requests() {
    let mut bytes = request(0, 1, 1, SIZE - 4, 8);
    bytes.extend(request(0, 0, 66, 0, 1)[..8].iter());
    bytes.extend(request(0, 1, 2, 0, 4));
    bytes.extend(b"good");
    bytes.extend(request(0, 2, 3, 0, 0));
    bytes.extend(b"nobody listens");
    for cut in [1, 3, 28, 1000] {
        let (said, written) = pass(&mut requests(true, true), &bytes, cut).expect("no error");
        assert_eq!(written, b"good");
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(
            said[0].contains("NoSpace") && said[1].contains("Cookie(2)"),
            "{said:?}"
        );
        assert_eq!(said[2], "Disconnect");
    }
}

/// Serves what `client` asked from `disk`, cut into parts and with the order of replies turned around.
fn serve(asked: &[u8], structured: bool, disk: &[u8], part: usize) -> Vec<u8> {
    let mut machine = requests(true, structured);
    let mut input = asked;
    let mut replies = Vec::new();
    while let Some(incoming) = machine.next(&mut input).expect("our client keeps to it") {
        let Incoming::Request(request) = incoming else {
            panic!("{incoming:?}");
        };
        let (cookie, start) = (request.cookie, request.offset as usize);
        let bytes = &disk[start..start + request.len as usize];
        let mut out = Vec::new();
        match request.command {
            Command::BlockStatus => {
                let state = STATE_HOLE | STATE_ZERO;
                put_status(
                    &mut out,
                    cookie,
                    &[StatusExtent {
                        len: request.len,
                        state,
                    }],
                );
            }
            _ if bytes.contains(&0xee) => {
                let at = Some(request.offset);
                put_error(&mut out, structured, cookie, Errno::Io, "damaged", at);
            }
            _ if !structured => {
                put_simple(&mut out, cookie);
                out.extend_from_slice(bytes);
            }
            _ => {
                let mut at = request.offset;
                for bytes in bytes.chunks(part) {
                    let len = bytes.len() as u32;
                    if bytes.iter().all(|byte| *byte == 0) {
                        put_hole(&mut out, false, cookie, at, len);
                    } else {
                        put_data_header(&mut out, false, cookie, at, len);
                        out.extend_from_slice(bytes);
                    }
                    at += u64::from(len);
                }
                put_end(&mut out, cookie);
            }
        }
        replies.push(out);
    }
    replies.reverse();
    replies.concat()
}

proptest! {
    #[test]
    fn our_client_gets_the_bytes_of_the_disk(
        reads in proptest::collection::vec((0_u64..60_000, 1_u32..5_000), 1..12),
        structured: bool,
        part in 1_usize..700,
        seed: u8,
    ) {
        let mut disk: Vec<u8> = (0..70_000_u32)
            .map(|at| if at / 512 % 3 == 0 { 0 } else { (at.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x7f })
            .collect();
        disk[usize::from(seed) * 250] = 0xee;
        let export = Export {
            size: SIZE,
            flags: offer("", true).flags(structured),
            block_sizes: BLOCK_SIZES,
            structured,
            allocation: structured.then_some(ContextId(ALLOCATION_CONTEXT)),
            dirty: None,
            dialect: crate::nbd::negotiation::Dialect::Standard,
        };
        let mut client = Transmission::new(&export);
        let mut wanted = HashMap::new();
        for (offset, len) in reads {
            // A part is never smaller than what the client keeps account of.
            wanted.insert(client.read(offset, len), (offset as usize, vec![0; len as usize]));
        }
        let status = structured.then(|| client.block_status(5, 77));
        let replies = serve(client.output(), structured, &disk, part);
        let mut input = &replies[..];
        let mut done = 0;
        while let Some(event) = client.next(&mut input).expect("the server keeps to the protocol") {
            match event {
                Event::Data { cookie, at, bytes } => {
                    let place = &mut wanted.get_mut(&cookie).expect("asked").1;
                    place[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                }
                Event::Zeros { .. } => {}
                Event::Status { cookie, extents, .. } => {
                    prop_assert_eq!(Some(cookie), status);
                    prop_assert_eq!(&extents, &[StatusExtent { len: 77, state: 3 }]);
                }
                Event::Done { cookie, result } => {
                    done += 1;
                    let Some((offset, bytes)) = wanted.get(&cookie) else { continue };
                    let expected = &disk[*offset..offset + bytes.len()];
                    match result {
                        Ok(()) => prop_assert_eq!(&bytes[..], expected),
                        Err(failure) => {
                            prop_assert!(expected.contains(&0xee));
                            prop_assert_eq!(failure, Failure {
                                errno: Errno::Io,
                                message: if structured { "damaged".to_owned() } else { String::new() },
                                offset: structured.then_some(*offset as u64),
                            });
                        }
                    }
                }
            }
        }
        prop_assert_eq!(done, wanted.len() + usize::from(structured));
        prop_assert_eq!(client.in_flight(), 0);
    }

    #[test]
    fn in_pieces_it_comes_to_the_same(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 1_usize..40,
        writable: bool,
    ) {
        let mut asked = request(0, 1, 5, 0, 40);
        asked.extend(&bytes);
        let whole = pass(&mut requests(writable, true), &asked, usize::MAX);
        prop_assert_eq!(pass(&mut requests(writable, true), &asked, cut), whole);
    }
}
