//! A model server that answers in any order and in any pieces.

use proptest::prelude::*;

use super::*;
use crate::nbd::negotiation::{BlockSizes, Dialect};
use crate::nbd::wire::{REQUEST_LEN, TransmissionFlags};

const ALLOCATION: ContextId = ContextId(5);

fn export(structured: bool) -> Export {
    Export {
        size: 1 << 20,
        flags: TransmissionFlags(3),
        block_sizes: BlockSizes::DEFAULT,
        structured,
        allocation: structured.then_some(ALLOCATION),
        dirty: None,
        dialect: Dialect::Standard,
    }
}

fn byte_at(offset: u64) -> u8 {
    match offset >> 12 & 1 {
        0 => 0,
        _ => (offset % 251) as u8 + 1,
    }
}

fn chunk(flags: u16, kind: u16, cookie: Cookie, body: &[u8]) -> Vec<u8> {
    let mut bytes = CHUNK_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.0.to_be_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn simple(error: u32, cookie: Cookie) -> Vec<u8> {
    let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&error.to_be_bytes());
    bytes.extend_from_slice(&cookie.0.to_be_bytes());
    bytes
}

fn data(flags: u16, cookie: Cookie, offset: u64, len: u32) -> Vec<u8> {
    let mut body = offset.to_be_bytes().to_vec();
    body.extend((offset..offset + u64::from(len)).map(byte_at));
    chunk(flags, CHUNK_OFFSET_DATA, cookie, &body)
}

fn hole(flags: u16, cookie: Cookie, offset: u64, len: u32) -> Vec<u8> {
    let mut body = offset.to_be_bytes().to_vec();
    body.extend_from_slice(&len.to_be_bytes());
    chunk(flags, CHUNK_OFFSET_HOLE, cookie, &body)
}

/// Runs `bytes` through the machine in pieces; gives what reads came to and how requests ended.
#[derive(Default)]
struct Client {
    buffers: HashMap<Cookie, Vec<u8>>,
    ended: Vec<(Cookie, Result<(), Failure>)>,
    statuses: Vec<Vec<StatusExtent>>,
}

impl Client {
    fn take(
        &mut self,
        machine: &mut Transmission,
        mut bytes: &[u8],
        direct: bool,
    ) -> Result<(), ProtocolError> {
        loop {
            if direct
                && let Some(payload) = machine.awaited_payload()
                && !bytes.is_empty()
            {
                let len = bytes.len().min(payload.len as usize);
                self.put(payload.cookie, payload.at, &bytes[..len]);
                bytes = &bytes[len..];
                machine.payload_arrived(len as u32);
            }
            match machine.next(&mut bytes)? {
                None => return Ok(()),
                Some(Event::Data { cookie, at, bytes }) => self.put(cookie, at, bytes),
                Some(Event::Zeros { cookie, at, len }) => {
                    self.put(cookie, at, &vec![0; len as usize]);
                }
                Some(Event::Status { extents, .. }) => self.statuses.push(extents),
                Some(Event::Done { cookie, result }) => self.ended.push((cookie, result)),
            }
        }
    }

    fn put(&mut self, cookie: Cookie, at: u32, bytes: &[u8]) {
        let buffer = self.buffers.entry(cookie).or_default();
        let end = at as usize + bytes.len();
        if buffer.len() < end {
            buffer.resize(end, 0xee);
        }
        buffer[at as usize..end].copy_from_slice(bytes);
    }
}

/// Replies of a server to reads, in chunks cut and shuffled by `choices`.
fn answer(structured: bool, reads: &[(Cookie, u64, u32)], choices: &[u16]) -> Vec<u8> {
    let mut choices = choices.iter().copied().cycle();
    let mut choose = move |bound: usize| choices.next().map_or(0, usize::from) % bound.max(1);
    let mut queues: Vec<Vec<Vec<u8>>> = Vec::new();
    for &(cookie, offset, len) in reads {
        if !structured {
            let mut bytes = simple(0, cookie);
            bytes.extend((offset..offset + u64::from(len)).map(byte_at));
            queues.push(vec![bytes]);
            continue;
        }
        let mut pieces = Vec::new();
        let mut at = offset;
        let end = offset + u64::from(len);
        while at < end {
            let to_edge = 4096 - at % 4096;
            let len = (1 + choose(5000) as u64).min(to_edge).min(end - at);
            pieces.push((at, len as u32));
            at += len;
        }
        for place in (1..pieces.len()).rev() {
            pieces.swap(place, choose(place + 1));
        }
        let last = pieces.len() - 1;
        let mut chunks = Vec::new();
        for (number, (at, len)) in pieces.into_iter().enumerate() {
            let flags = u16::from(number == last && choose(2) == 0);
            chunks.push(match byte_at(at) {
                0 => hole(flags, cookie, at, len),
                _ => data(flags, cookie, at, len),
            });
            if number == last && flags == 0 {
                chunks.push(chunk(CHUNK_FLAG_DONE, CHUNK_NONE, cookie, b""));
            }
        }
        chunks.reverse();
        queues.push(chunks);
    }
    let mut bytes = Vec::new();
    while queues.iter().any(|queue| !queue.is_empty()) {
        let place = choose(queues.len());
        let place = (place..queues.len())
            .chain(0..place)
            .find(|place| !queues[*place].is_empty());
        bytes.extend(queues[place.unwrap()].pop().unwrap());
    }
    bytes
}

proptest! {
    #[test]
    fn every_byte_arrives_whatever_the_pieces(
        structured: bool,
        direct: bool,
        reads in prop::collection::vec((0_u64..60_000, 1_u32..20_000), 1..6),
        choices in prop::collection::vec(any::<u16>(), 1..64),
        cuts in prop::collection::vec(1_usize..9_000, 1..16),
    ) {
        let mut machine = Transmission::new(&export(structured));
        let reads: Vec<_> = reads
            .into_iter()
            .map(|(offset, len)| (machine.read(offset, len), offset, len))
            .collect();
        prop_assert_eq!(machine.output().len(), reads.len() * REQUEST_LEN);
        let bytes = answer(structured, &reads, &choices);
        let mut client = Client::default();
        let mut rest = &bytes[..];
        let mut cuts = cuts.into_iter().cycle();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            client.take(&mut machine, piece, direct).unwrap();
            rest = after;
        }
        prop_assert_eq!(machine.in_flight(), 0);
        prop_assert_eq!(client.ended.len(), reads.len());
        for (cookie, offset, len) in reads {
            let expected: Vec<u8> = (offset..offset + u64::from(len)).map(byte_at).collect();
            prop_assert_eq!(&client.buffers[&cookie], &expected);
        }
    }

    #[test]
    fn any_flipped_byte_is_survived(
        place in 0_usize..2000, value: u8, cut in 1_usize..2000, structured: bool,
    ) {
        let run = |cut: usize| {
            let mut machine = Transmission::new(&export(structured));
            let cookie = machine.read(4000, 1500);
            let mut bytes = answer(structured, &[(cookie, 4000, 1500)], &[3, 700]);
            let place = place % bytes.len();
            bytes[place] = value;
            let mut client = Client::default();
            let result = bytes
                .chunks(cut)
                .try_for_each(|piece| client.take(&mut machine, piece, false));
            (result, client.ended, client.buffers)
        };
        let (cut_up, whole) = (run(cut), run(usize::MAX));
        prop_assert_eq!(&cut_up.0, &whole.0);
        if whole.0.is_ok() {
            prop_assert_eq!((cut_up.1, cut_up.2), (whole.1, whole.2));
        }
    }
}

fn violation(
    request: impl Fn(&mut Transmission) -> Cookie,
    reply: impl Fn(Cookie) -> Vec<u8>,
) -> ProtocolError {
    let mut found = None;
    for cut in 1..64 {
        let mut machine = Transmission::new(&export(true));
        let cookie = request(&mut machine);
        let bytes = reply(cookie);
        let mut client = Client::default();
        let result = bytes
            .chunks(cut)
            .try_for_each(|piece| client.take(&mut machine, piece, false));
        let error = result.expect_err("it is a violation");
        assert_eq!(
            found.get_or_insert(error.clone()),
            &error,
            "pieces of {cut}"
        );
    }
    found.unwrap()
}

fn read(machine: &mut Transmission) -> Cookie {
    machine.read(8192, 4096)
}

fn status(machine: &mut Transmission) -> Cookie {
    machine.block_status(8192, 8192)
}

fn extents(flags: u16, cookie: Cookie, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut body = context.to_be_bytes().to_vec();
    for (len, state) in extents {
        body.extend_from_slice(&len.to_be_bytes());
        body.extend_from_slice(&state.to_be_bytes());
    }
    chunk(flags, CHUNK_BLOCK_STATUS, cookie, &body)
}

#[test]
fn reads_are_covered_exactly_once() {
    let twice = |cookie| [data(0, cookie, 8192, 4096), data(1, cookie, 8192, 1)].concat();
    assert!(matches!(
        violation(read, twice),
        ProtocolError::Range { .. }
    ));
    let outside = |cookie| hole(1, cookie, 8191, 1);
    assert!(matches!(
        violation(read, outside),
        ProtocolError::Range { .. }
    ));
    let empty = |cookie| hole(1, cookie, 8192, 0);
    assert!(matches!(
        violation(read, empty),
        ProtocolError::Range { .. }
    ));
    let beyond = |cookie| hole(1, cookie, 12287, u32::MAX);
    assert!(matches!(
        violation(read, beyond),
        ProtocolError::Range { .. }
    ));
    let short = |cookie| {
        [
            data(0, cookie, 8192, 4095),
            chunk(1, CHUNK_NONE, cookie, b""),
        ]
        .concat()
    };
    assert_eq!(
        violation(read, short),
        ProtocolError::Short {
            offset: 8192,
            len: 4096,
            covered: 4095
        }
    );
    let simple = |cookie| simple(0, cookie);
    assert!(matches!(
        violation(read, simple),
        ProtocolError::SimpleReply { .. }
    ));
    assert!(matches!(
        violation(status, simple),
        ProtocolError::SimpleReply { .. }
    ));
    let foreign = |_| chunk(1, CHUNK_NONE, Cookie(77), b"");
    assert!(matches!(
        violation(read, foreign),
        ProtocolError::UnknownCookie { cookie: 77 }
    ));
    let unknown = |cookie| chunk(1, 77, cookie, b"");
    assert!(matches!(
        violation(read, unknown),
        ProtocolError::ChunkType { found: 77, .. }
    ));
    let empty = |cookie| chunk(0, CHUNK_NONE, cookie, b"");
    assert_eq!(violation(read, empty), ProtocolError::EmptyChunk);
    let zero = |cookie| chunk(1, CHUNK_ERROR, cookie, &[0; 6]);
    assert!(matches!(
        violation(read, zero),
        ProtocolError::ErrorZero { .. }
    ));
    let long = |cookie| {
        let mut bytes = chunk(1, CHUNK_ERROR, cookie, &[]);
        bytes[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes
    };
    assert!(matches!(
        violation(read, long),
        ProtocolError::Length { .. }
    ));
}

#[test]
fn block_status_may_overrun_at_its_end_alone() {
    let wrong = |reply: &dyn Fn(Cookie) -> Vec<u8>| violation(status, reply);
    let empty = |cookie| extents(1, cookie, 5, &[(0, 0)]);
    assert!(matches!(wrong(&empty), ProtocolError::StatusExtent { .. }));
    let past = |cookie| extents(1, cookie, 5, &[(8192, 0), (1, 0)]);
    assert!(matches!(wrong(&past), ProtocolError::StatusExtent { .. }));
    let foreign = |cookie| extents(1, cookie, 6, &[(8192, 0)]);
    assert!(matches!(
        wrong(&foreign),
        ProtocolError::StatusContexts { .. }
    ));
    let none = |cookie| chunk(1, CHUNK_NONE, cookie, b"");
    assert!(matches!(wrong(&none), ProtocolError::StatusContexts { .. }));
    let ragged = |cookie| {
        chunk(
            1,
            CHUNK_BLOCK_STATUS,
            cookie,
            &[0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 9],
        )
    };
    assert!(matches!(wrong(&ragged), ProtocolError::Length { .. }));

    let mut machine = Transmission::new(&export(true));
    let cookie = status(&mut machine);
    let mut client = Client::default();
    let bytes = extents(1, cookie, 5, &[(4096, 3), (1 << 30, 0)]);
    client.take(&mut machine, &bytes, true).unwrap();
    assert_eq!(client.ended, [(cookie, Ok(()))]);
    assert_eq!(client.statuses[0].len(), 2);
}

#[test]
fn failures_say_what_and_where() {
    let mut machine = Transmission::new(&export(true));
    let cookie = read(&mut machine);
    let mut body = 5_u32.to_be_bytes().to_vec();
    body.extend_from_slice(&3_u16.to_be_bytes());
    body.extend_from_slice(b"bad");
    body.extend_from_slice(&9000_u64.to_be_bytes());
    let mut bytes = data(0, cookie, 8192, 512);
    bytes.extend(chunk(1, CHUNK_ERROR_OFFSET, cookie, &body));
    let mut client = Client::default();
    client.take(&mut machine, &bytes, false).unwrap();
    let failure = client.ended[0].1.clone().unwrap_err();
    assert_eq!((failure.errno, failure.offset), (Errno::Io, Some(9000)));
    assert_eq!(failure.to_string(), "the server answers EIO (bad)");

    let mut machine = Transmission::new(&export(false));
    let cookie = read(&mut machine);
    client
        .take(&mut machine, &simple(22, cookie), false)
        .unwrap();
    assert_eq!(client.ended[1].1.clone().unwrap_err().errno, Errno::Invalid);
}

#[test]
fn an_end_of_the_connection_is_told_apart() {
    let mut machine = Transmission::new(&export(true));
    assert!(machine.closed().to_string().contains("nobody"));
    let cookie = read(&mut machine);
    assert!(machine.closed().to_string().contains("in flight"));
    let bytes = data(1, cookie, 8192, 4096);
    machine.next(&mut &bytes[..10]).unwrap();
    assert!(machine.closed().to_string().contains("middle"));
}
