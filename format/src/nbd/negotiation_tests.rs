//! Scripted servers, their bytes split at every position.

use proptest::prelude::*;

use super::*;
use crate::nbd::wire::{REP_ERROR_BIT, STATE_ZERO};

/// What a server sends, and what it must have been told before.
fn greeting(flags: u16) -> Vec<u8> {
    let mut bytes = GREETING_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes
}

fn reply(option: OptionCode, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for number in [option.code(), kind, data.len() as u32] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    bytes
}

fn refusal(option: OptionCode, error: OptionError) -> Vec<u8> {
    reply(option, REP_ERROR_BIT | error.code(), b"")
}

fn info_export(size: u64, flags: u16) -> Vec<u8> {
    let mut data = INFO_EXPORT.to_be_bytes().to_vec();
    data.extend_from_slice(&size.to_be_bytes());
    data.extend_from_slice(&flags.to_be_bytes());
    reply(OptionCode::Go, REP_INFO, &data)
}

fn info_block_size(sizes: [u32; 3]) -> Vec<u8> {
    let mut data = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    sizes
        .iter()
        .for_each(|size| data.extend_from_slice(&size.to_be_bytes()));
    reply(OptionCode::Go, REP_INFO, &data)
}

fn context(id: u32, name: &str) -> Vec<u8> {
    let mut data = id.to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    reply(OptionCode::SetMetaContext, REP_META_CONTEXT, &data)
}

fn ack(option: OptionCode) -> Vec<u8> {
    reply(option, REP_ACK, b"")
}

fn export_reply(size: u64, flags: u16, padding: usize) -> Vec<u8> {
    let mut bytes = size.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.resize(bytes.len() + padding, 0);
    bytes
}

fn wanted(tls: bool) -> Wanted {
    Wanted {
        export: "disk".to_owned(),
        tls,
        dirty_bitmap: Some("b0".to_owned()),
    }
}

/// Feeds `bytes` in two pieces; what the machine said last and everything it sent.
fn negotiate(
    wanted: &Wanted,
    bytes: &[u8],
    split: usize,
) -> Result<(Step, Vec<u8>), NegotiationError> {
    let mut machine = Negotiation::new(wanted.clone());
    let mut sent = Vec::new();
    let mut last = Step::Continue;
    for piece in [&bytes[..split], &bytes[split..]] {
        last = machine.feed(piece)?;
        sent.extend(machine.take_output());
    }
    Ok((last, sent))
}

fn everywhere(wanted: &Wanted, bytes: &[u8]) -> Result<(Step, Vec<u8>), NegotiationError> {
    let whole = negotiate(wanted, bytes, 0);
    for split in 1..bytes.len() {
        assert_eq!(negotiate(wanted, bytes, split), whole, "split at {split}");
    }
    whole
}

fn opened(wanted: &Wanted, script: &[Vec<u8>]) -> Export {
    match everywhere(wanted, &script.concat()) {
        Ok((Step::Open(export), _)) => export,
        other => panic!("{other:?}"),
    }
}

fn modern() -> Vec<Vec<u8>> {
    vec![
        greeting(3),
        ack(OptionCode::StructuredReply),
        context(7, BASE_ALLOCATION),
        context(9, "qemu:dirty-bitmap:b0"),
        ack(OptionCode::SetMetaContext),
        reply(OptionCode::Go, REP_INFO, &[0, 2, b'd', b'e', b's', b'c']),
        info_block_size([4096, 65536, 1 << 20]),
        info_export(1 << 30, 0x100 | 3),
        ack(OptionCode::Go),
    ]
}

#[test]
fn a_modern_server_gives_everything() {
    let export = opened(&wanted(false), &modern());
    assert_eq!(
        export,
        Export {
            size: 1 << 30,
            flags: TransmissionFlags(0x103),
            block_sizes: BlockSizes {
                minimum: 4096,
                preferred: 65536,
                maximum: 1 << 20
            },
            structured: true,
            allocation: Some(ContextId(7)),
            dirty: Some(ContextId(9)),
            dialect: Dialect::Standard,
        }
    );
    assert_eq!(STATE_ZERO, 2);
}

#[test]
fn what_is_asked_is_what_the_protocol_says() {
    let (_, sent) = everywhere(&wanted(false), &modern().concat()).unwrap();
    let mut expected = 3_u32.to_be_bytes().to_vec();
    let option = |code: u32, data: &[u8]| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    };
    expected.extend(option(8, b""));
    expected.extend(option(
        10,
        b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x14qemu:dirty-bitmap:b0",
    ));
    expected.extend(option(7, b"\0\0\0\x04disk\0\x01\0\x03"));
    assert_eq!(sent, expected);
}

#[test]
fn a_server_without_go_is_asked_by_name() {
    for (flags, padding, dialect) in [(3, 0, Dialect::Standard), (1, 124, Dialect::Xapi)] {
        let script = [
            greeting(flags),
            refusal(OptionCode::StructuredReply, OptionError::Unsupported),
            refusal(OptionCode::Go, OptionError::Unsupported),
            export_reply(4096, 3, padding),
        ];
        let export = opened(&wanted(false), &script);
        assert_eq!((export.size, export.dialect), (4096, dialect));
        assert!(!export.structured && export.allocation.is_none());
        assert_eq!(export.block_sizes, BlockSizes::DEFAULT);
    }
}

#[test]
fn no_answer_to_an_export_name_is_explained() {
    let mut machine = Negotiation::new(wanted(false));
    let script = [
        greeting(1),
        refusal(OptionCode::StructuredReply, OptionError::Unsupported),
        refusal(OptionCode::Go, OptionError::Unsupported),
    ];
    machine.feed(&script.concat()).unwrap();
    assert_eq!(machine.closed(), NegotiationError::ClosedOnExportName);
    machine.feed(&[0; 3]).unwrap();
    assert!(matches!(machine.closed(), NegotiationError::Protocol(_)));
}

#[test]
fn a_refusal_of_tls_is_the_end() {
    for error in [
        OptionError::Unsupported,
        OptionError::Policy,
        OptionError::Other(99),
    ] {
        let script = [greeting(3), refusal(OptionCode::StartTls, error)].concat();
        let found = everywhere(&wanted(true), &script);
        assert!(
            matches!(found, Err(NegotiationError::Refused(_))),
            "{found:?}"
        );
    }
    let script = [
        greeting(3),
        refusal(OptionCode::StructuredReply, OptionError::TlsRequired),
    ];
    let found = everywhere(&wanted(false), &script.concat());
    assert!(
        matches!(found, Err(NegotiationError::Refused(_))),
        "{found:?}"
    );
}

#[test]
fn nothing_in_clear_may_follow_the_agreement_on_tls() {
    let script = [greeting(3), ack(OptionCode::StartTls)].concat();
    let (step, sent) = everywhere(&wanted(true), &script).unwrap();
    assert_eq!(step, Step::StartTls);
    assert_eq!(sent[4..], *b"IHAVEOPT\0\0\0\x05\0\0\0\0");
    let mut tampered = script.clone();
    tampered.extend(ack(OptionCode::StructuredReply));
    assert_eq!(
        negotiate(&wanted(true), &tampered, 0),
        Err(ProtocolError::ClearAfterStartTls(20).into())
    );
    let mut machine = Negotiation::new(wanted(true));
    machine.feed(&script).unwrap();
    machine.take_output();
    machine.tls_established();
    assert_eq!(machine.take_output()[8..12], [0, 0, 0, 8]);
}

#[test]
fn violations_are_named() {
    let after = |replies: &[Vec<u8>]| {
        let mut script = vec![greeting(3)];
        script.extend_from_slice(replies);
        everywhere(&wanted(false), &script.concat())
    };
    let structured = ack(OptionCode::StructuredReply);
    let contexts = ack(OptionCode::SetMetaContext);
    let go = ack(OptionCode::Go);
    let scripts: Vec<Vec<Vec<u8>>> = vec![
        vec![ack(OptionCode::Go)],
        vec![reply(OptionCode::StructuredReply, 2, b"")],
        vec![reply(OptionCode::StructuredReply, REP_ACK, b"x")],
        vec![reply(OptionCode::StructuredReply, REP_ACK, &[0; 5000])],
        vec![structured.clone(), context(1, "other:context")],
        vec![
            structured.clone(),
            context(1, BASE_ALLOCATION),
            context(2, BASE_ALLOCATION),
        ],
        vec![
            structured.clone(),
            context(1, BASE_ALLOCATION),
            context(1, "qemu:dirty-bitmap:b0"),
        ],
        vec![structured.clone(), contexts.clone(), go.clone()],
        vec![
            structured.clone(),
            contexts.clone(),
            info_export(1 << 63, 3),
            go,
        ],
        vec![
            structured.clone(),
            contexts.clone(),
            info_export(1, 3),
            info_export(2, 3),
        ],
        vec![
            structured.clone(),
            contexts.clone(),
            info_block_size([3, 4096, 4096]),
        ],
        vec![
            structured.clone(),
            contexts.clone(),
            info_block_size([0, 4096, 4096]),
        ],
        vec![
            structured,
            contexts,
            vec![reply(OptionCode::Go, REP_INFO, &[0, 9]); 65].concat(),
        ],
    ];
    for script in scripts {
        let found = after(&script);
        assert!(
            matches!(found, Err(NegotiationError::Protocol(_))),
            "{script:x?}: {found:?}"
        );
    }
    for (bytes, text) in [
        (b"HTTP/1.1".to_vec(), "NBDMAGIC"),
        (
            [GREETING_MAGIC.to_be_bytes(), OLDSTYLE_MAGIC.to_be_bytes()].concat(),
            "oldstyle",
        ),
        (greeting(2), "FIXED_NEWSTYLE"),
    ] {
        let error = everywhere(&wanted(false), &bytes).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

proptest! {
    #[test]
    fn any_flipped_byte_is_survived(place in 0_usize..200, value: u8, split in 0_usize..200) {
        let mut bytes = modern().concat();
        let place = place % bytes.len();
        bytes[place] = value;
        let split = split % bytes.len();
        prop_assert_eq!(negotiate(&wanted(false), &bytes, split), negotiate(&wanted(false), &bytes, 0));
    }
}
