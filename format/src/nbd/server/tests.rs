//! Our client against our server, in memory; and what no client of ours would send, until an export is open.

use std::sync::Arc;

use proptest::prelude::*;

use super::negotiation::{
    ALLOCATION_CONTEXT, OPTION_LEN_MAX, OPTION_SKIP_MAX, OPTIONS_MAX, Opened, ServerNegotiation,
    ServerStep,
};
use super::offer::{BLOCK_SIZES, Offer, OfferError, Offers};
use super::*;
use crate::nbd::negotiation::{ContextId, Export, Negotiation, Step, Wanted};
use crate::nbd::wire::*;

pub(super) const SIZE: u64 = 1 << 20;

pub(super) fn offer(name: &str, writable: bool) -> Offer {
    Offer {
        name: name.to_owned(),
        description: String::new(),
        size: SIZE,
        writable,
    }
}

fn offers(names: &[&str], tls: bool) -> Arc<Offers> {
    let list = names.iter().map(|name| offer(name, false)).collect();
    Arc::new(Offers::new(list, tls).expect("they fit together"))
}

/// Both machines until the export is open on both sides.
fn meet(offers: Arc<Offers>, wanted: Wanted) -> (Export, Opened) {
    let mut client = Negotiation::new(wanted);
    let mut server = ServerNegotiation::new(offers);
    let mut opened = None;
    for _ in 0..20 {
        match client
            .feed(&server.take_output())
            .expect("the server keeps to the protocol")
        {
            Step::Open(export) => return (export, opened.expect("both say so")),
            Step::StartTls => client.tls_established(),
            Step::Continue => {}
        }
        match server
            .feed(&client.take_output())
            .expect("the client does, too")
        {
            ServerStep::Open(agreed) => opened = Some(agreed),
            ServerStep::StartTls => {
                assert!(matches!(
                    client.feed(&server.take_output()),
                    Ok(Step::StartTls)
                ));
                server.tls_established();
                client.tls_established();
                server.feed(&client.take_output()).expect("it goes on");
            }
            ServerStep::Continue => {}
            ServerStep::Close => panic!("nobody wants to close"),
        }
    }
    panic!("they never agree");
}

#[test]
fn our_client_and_our_server_agree() {
    for (names, tls, export, expected) in [
        (&["root"][..], false, "", 0),
        (&["root"], false, "root", 0),
        (&["root", "swap"], true, "swap", 1),
        (&["", "swap"], true, "", 0),
    ] {
        let wanted = Wanted {
            export: export.to_owned(),
            tls,
            dirty_bitmap: Some("daily".to_owned()),
        };
        let (export, opened) = meet(offers(names, tls), wanted);
        assert_eq!(
            opened,
            Opened {
                export: expected,
                structured: true,
                allocation: true
            }
        );
        assert_eq!(export.size, SIZE);
        assert_eq!(export.block_sizes, BLOCK_SIZES);
        assert_eq!(export.allocation, Some(ContextId(ALLOCATION_CONTEXT)));
        assert_eq!(export.dirty, None);
        assert_eq!(export.flags.0, 0b101_1000_1111, "{:#b}", export.flags.0);
    }
    let writable = offer("x", true).flags(false).0;
    assert_eq!(writable, 0b1101_0110_1101, "{writable:#b}");
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_option(&mut bytes, OptionCode::from_code(code), data);
    bytes
}

/// Options after the greeting and the flags; all replies as (option, type, data), and how it ended.
fn ask(
    offers: Arc<Offers>,
    flags: u32,
    options: &[u8],
) -> (
    Vec<(u32, u32, Vec<u8>)>,
    Result<ServerStep, ClientError>,
    Vec<u8>,
) {
    let mut server = ServerNegotiation::new(offers);
    server.take_output();
    let mut step = server.feed(&flags.to_be_bytes());
    if step == Ok(ServerStep::Continue) {
        step = server.feed(options);
    }
    let output = server.take_output();
    let mut replies = Vec::new();
    let mut rest = &output[..];
    while rest.len() >= 20 && be64(rest, 0) == OPTION_REPLY_MAGIC {
        let len = be32(rest, 16) as usize;
        replies.push((be32(rest, 8), be32(rest, 12), rest[20..20 + len].to_vec()));
        rest = &rest[20 + len..];
    }
    (replies, step, rest.to_vec())
}

fn kinds(offers: Arc<Offers>, options: &[u8]) -> Vec<u32> {
    let (replies, step, _) = ask(offers, 3, options);
    step.expect("nothing is wrong enough to close");
    replies
        .iter()
        .map(|reply| reply.1 & !REP_ERROR_BIT)
        .collect()
}

fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(&mut data, name);
    data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
    infos
        .iter()
        .for_each(|info| data.extend_from_slice(&info.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(&mut data, name);
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    queries
        .iter()
        .for_each(|query| put_string(&mut data, query));
    data
}

#[test]
fn options_are_answered_and_others_refused() {
    let two = || offers(&["a", "b"], false);
    let (replies, step, _) = ask(two(), 3, &option(3, b""));
    assert_eq!(step, Ok(ServerStep::Continue));
    assert_eq!(replies[0], (3, REP_SERVER, b"\0\0\0\x01a".to_vec()));
    assert_eq!(replies[1], (3, REP_SERVER, b"\0\0\0\x01b".to_vec()));
    assert_eq!(replies[2], (3, REP_ACK, vec![]));
    let error = |error: OptionError| vec![error.code()];
    for (options, expected) in [
        (option(3, b"x"), error(OptionError::Invalid)),
        (option(8, b"x"), error(OptionError::Invalid)),
        (option(8, b""), vec![REP_ACK]),
        (option(4, b"whatever"), error(OptionError::Unsupported)),
        (option(11, b""), error(OptionError::Unsupported)),
        (option(5, b""), error(OptionError::Policy)),
        (option(6, &go("a", &[])), vec![REP_INFO, REP_INFO, REP_ACK]),
        (
            option(6, &go("a", &[1, 2, 3])),
            vec![REP_INFO, REP_INFO, REP_INFO, REP_ACK],
        ),
        (option(6, &go("c", &[])), error(OptionError::Unknown)),
        // With several exports none of them is the default.
        (option(7, &go("", &[])), error(OptionError::Unknown)),
        (option(6, &go("a", &[])[1..]), error(OptionError::Invalid)),
        (option(6, &go("a", &[3])[..8]), error(OptionError::Invalid)),
        (option(6, &[0xff; 9]), error(OptionError::Invalid)),
        (
            option(6, &go(&"x".repeat(4097), &[])),
            error(OptionError::Invalid),
        ),
        (
            option(10, &contexts("a", &[BASE_ALLOCATION])),
            error(OptionError::Invalid),
        ),
        (
            [option(8, b""), option(10, &contexts("c", &[]))].concat(),
            vec![REP_ACK, OptionError::Unknown.code()],
        ),
        (
            [option(8, b""), option(10, &[0; 7])].concat(),
            vec![REP_ACK, OptionError::Invalid.code()],
        ),
        (
            [option(8, b""), option(9, &contexts("a", &[]))].concat(),
            vec![REP_ACK, REP_META_CONTEXT, REP_ACK],
        ),
        (
            [option(8, b""), option(9, &contexts("a", &["base:"]))].concat(),
            vec![REP_ACK, REP_META_CONTEXT, REP_ACK],
        ),
        (
            [
                option(8, b""),
                option(10, &contexts("a", &["base:", "other:x"])),
            ]
            .concat(),
            vec![REP_ACK, REP_ACK],
        ),
        (
            [
                option(8, b""),
                option(10, &contexts("a", &[BASE_ALLOCATION; 3])),
            ]
            .concat(),
            vec![REP_ACK, REP_META_CONTEXT, REP_ACK],
        ),
        (
            [
                option(77, &vec![7; OPTION_LEN_MAX as usize + 1]),
                option(8, b""),
            ]
            .concat(),
            vec![OptionError::TooBig.code(), REP_ACK],
        ),
    ] {
        assert_eq!(
            kinds(two(), &options),
            expected,
            "{:02x?}",
            &options[..options.len().min(64)]
        );
    }
}

#[test]
fn block_status_is_agreed_on_for_the_export_that_is_opened() {
    for (chosen, again, opened, expected) in [
        ("a", None, "a", true),
        ("a", None, "b", false),
        ("a", Some(vec![]), "a", false),
        ("b", Some(vec![BASE_ALLOCATION]), "a", true),
    ] {
        let mut options = option(8, b"");
        options.extend(option(10, &contexts(chosen, &[BASE_ALLOCATION])));
        if let Some(queries) = &again {
            options.extend(option(10, &contexts("a", queries)));
        }
        options.extend(option(7, &go(opened, &[])));
        let (_, step, _) = ask(offers(&["a", "b"], false), 3, &options);
        let Ok(ServerStep::Open(found)) = step else {
            panic!("{step:?}");
        };
        assert_eq!(found.allocation, expected, "{chosen} {again:?} {opened}");
    }
}

#[test]
fn export_name_opens_with_or_without_zeros_or_closes() {
    for (flags, padding) in [(3, 0), (1, EXPORT_NAME_PADDING), (0, EXPORT_NAME_PADDING)] {
        let (_, step, rest) = ask(offers(&["a"], false), flags, &option(1, b""));
        assert!(matches!(
            step,
            Ok(ServerStep::Open(Opened {
                structured: false,
                ..
            }))
        ));
        assert_eq!(rest.len(), 10 + padding);
        assert_eq!(be64(&rest, 0), SIZE);
        assert_eq!(be16(&rest, 8) & (1 << 7), 0, "no DF without chunks");
    }
    for (name, tls) in [(&b"b"[..], false), (b"a", true), (b"\xff", false)] {
        let (replies, step, rest) = ask(offers(&["a"], tls), 3, &option(1, name));
        assert!(
            matches!(step, Err(ClientError::ExportName { .. })),
            "{step:?}"
        );
        assert!(replies.is_empty() && rest.is_empty());
    }
}

#[test]
fn nothing_is_told_before_tls_and_nothing_kept_from_before() {
    let secure = || offers(&["a"], true);
    for code in [3, 6, 7, 8, 9, 10, 99] {
        let kinds = kinds(secure(), &option(code, b""));
        assert_eq!(kinds, [OptionError::TlsRequired.code()], "option {code}");
    }
    let (_, step, _) = ask(secure(), 3, &option(5, b""));
    assert_eq!(step, Ok(ServerStep::StartTls));
    let injected = [option(5, b""), option(8, b"")].concat();
    let (_, step, _) = ask(secure(), 3, &injected);
    assert_eq!(step, Err(ClientError::ClearAfterStartTls(16)));
    let mut server = ServerNegotiation::new(secure());
    server.feed(&3_u32.to_be_bytes()).expect("flags");
    server.feed(&option(5, b"")).expect("TLS");
    server.tls_established();
    server.take_output();
    server.feed(&option(5, b"")).expect("an answer");
    let again = server.take_output();
    assert_eq!(
        be32(&again, 12),
        REP_ERROR_BIT | OptionError::Invalid.code()
    );
    let step = server.feed(&option(1, b"a")).expect("it opens");
    assert!(matches!(
        step,
        ServerStep::Open(Opened {
            structured: false,
            ..
        })
    ));
}

#[test]
fn clients_beyond_help_are_let_go() {
    let one = || offers(&["a"], false);
    assert_eq!(ask(one(), 4, b"").1, Err(ClientError::Flags { flags: 4 }));
    assert_eq!(ask(one(), 3, &option(2, b"")).1, Ok(ServerStep::Close));
    assert!(matches!(
        ask(one(), 3, &[0; 8]).1,
        Err(ClientError::Magic { .. })
    ));
    let mut endless = option(3, b"");
    endless[12..16].copy_from_slice(&(OPTION_SKIP_MAX + 1).to_be_bytes());
    assert!(matches!(
        ask(one(), 3, &endless).1,
        Err(ClientError::OptionLen { .. })
    ));
    let many = option(3, b"").repeat(OPTIONS_MAX + 1);
    assert!(matches!(
        ask(one(), 3, &many).1,
        Err(ClientError::TooManyOptions { .. })
    ));
    let long_name = option(1, &vec![b'x'; OPTION_LEN_MAX as usize + 1]);
    assert_eq!(ask(one(), 3, &long_name).1, Ok(ServerStep::Close));
}

#[test]
fn exports_that_cannot_be_offered_are_refused() {
    let new = |list| Offers::new(list, false);
    let twice = new(vec![offer("a", false), offer("a", true)]);
    assert_eq!(twice, Err(OfferError::Twice("a".to_owned())));
    assert!(matches!(
        new(vec![offer(&"x".repeat(4097), false)]),
        Err(OfferError::Name(_))
    ));
    let large = Offer {
        size: 1 << 63,
        ..offer("a", false)
    };
    assert!(matches!(new(vec![large]), Err(OfferError::Size { .. })));
}

proptest! {
    #[test]
    fn in_pieces_it_comes_to_the_same(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        cut in 1_usize..40,
    ) {
        let mut options = option(8, b"");
        options.extend(option(7, &bytes));
        options.extend(&bytes);
        let negotiate = |cut: usize| {
            let mut server = ServerNegotiation::new(offers(&["a", "b"], false));
            server.feed(&3_u32.to_be_bytes()).expect("flags");
            let mut step = Ok(ServerStep::Continue);
            for piece in options.chunks(cut) {
                step = server.feed(piece);
                if step != Ok(ServerStep::Continue) { break }
            }
            (step, server.take_output())
        };
        prop_assert_eq!(negotiate(cut), negotiate(usize::MAX));
    }
}
