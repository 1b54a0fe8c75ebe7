use std::collections::BTreeMap;

use proptest::prelude::*;

use super::blocks::XVA_BLOCK_LEN;
use super::compose::{MadeUp, made_up};
use super::reader::{Event, XvaError, XvaProblem, XvaReader};
use super::tar::v7_header;
use super::writer::{DiskEncoder, END, description_member, in_order, may_omit_zeros};
use super::{ChecksumKind, OvaXml};
use crate::units::DiskLength;

/// A member as xapi writes it.
fn member(name: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = v7_header(name, payload.len() as u64).to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn block(name: &str, payload: &[u8], kind: ChecksumKind) -> Vec<u8> {
    let checksum = member(
        &format!("{name}{}", kind.suffix()),
        kind.of(payload).as_bytes(),
    );
    [member(name, payload), checksum].concat()
}

/// `ova.xml` of a VM with disks of these sizes: Ref:3, Ref:5, ...
fn description(sizes: &[u64]) -> Vec<u8> {
    let disks = sizes.iter().map(|size| ("d", DiskLength::new(*size)));
    made_up(&MadeUp {
        vm: "vm",
        disks: disks.collect(),
        seed: [1; 32],
    })
}

fn archive(sizes: &[u64], members: &[Vec<u8>]) -> Vec<u8> {
    let head = member("ova.xml", &description(sizes));
    [head, members.concat(), END.to_vec()].concat()
}

/// The disks' bytes, fed in pieces of `cut` bytes.
fn read(bytes: &[u8], cut: usize) -> Result<BTreeMap<String, Vec<u8>>, XvaError> {
    let mut reader = XvaReader::new();
    let mut disks = BTreeMap::new();
    let mut current: Option<(String, Vec<u8>)> = None;
    let mut is_over = false;
    for mut piece in bytes.chunks(cut) {
        while !piece.is_empty() {
            let step = reader.step(piece)?;
            assert!(step.consumed > 0);
            match step.event {
                None => {}
                Some(Event::Description) => assert!(reader.description().is_some()),
                Some(Event::DiskBegins(number)) => {
                    let disk = &reader.description().unwrap().disks[number];
                    current = Some((disk.reference.to_string(), Vec::new()));
                }
                Some(Event::Data { offset, bytes }) => {
                    let (_, disk) = current.as_mut().unwrap();
                    assert!(offset.get() >= disk.len() as u64, "data goes forward");
                    disk.resize(offset.get() as usize, 0);
                    disk.extend_from_slice(bytes);
                }
                Some(Event::DiskEnds(_)) => disks.extend(current.take()),
                Some(Event::End) => is_over = true,
            }
            piece = &piece[step.consumed..];
        }
    }
    reader.finish()?;
    assert!(is_over, "an end was told");
    Ok(disks)
}

fn problem(bytes: &[u8]) -> XvaProblem {
    read(bytes, usize::MAX)
        .expect_err("it is no good XVA")
        .problem
}

const X: ChecksumKind = ChecksumKind::Xxh64;
const S: ChecksumKind = ChecksumKind::Sha1;

/// Two disks, counters with a gap and a keep-alive, a short last block, both kinds of checksums.
fn example() -> (Vec<u8>, BTreeMap<String, Vec<u8>>) {
    let bytes = archive(
        &[2500, 1000],
        &[
            block("Ref:5/00000000", &[9; 1000], S),
            block("Ref:3/00000000", &[1; 500], X),
            block("Ref:3/00000001", &[], X),
            block("Ref:3/00000002", &[2; 500], X),
            block("Ref:3/00000005", &[3; 500], X),
        ],
    );
    let first = [[1; 500], [2; 500], [0; 500], [0; 500], [3; 500]].concat();
    let disks = [("Ref:3", first), ("Ref:5", vec![9; 1000])];
    (
        bytes,
        disks.map(|(name, bytes)| (name.to_owned(), bytes)).into(),
    )
}

#[test]
fn pieces_of_any_length_are_read_alike() {
    let (bytes, disks) = example();
    for cut in [1, 7, 511, 512, 513, 1000, usize::MAX] {
        assert_eq!(read(&bytes, cut).as_ref(), Ok(&disks), "pieces of {cut}");
    }
    let mut padded = bytes;
    padded.resize(padded.len().next_multiple_of(10240), 0);
    assert_eq!(read(&padded, 1000), Ok(disks));
}

#[test]
fn truncation_anywhere_is_told() {
    let (bytes, _) = example();
    for len in (0..bytes.len())
        .step_by(37)
        .chain([bytes.len() - 1, bytes.len() - 512])
    {
        let error = read(&bytes[..len], 4096).expect_err("it is truncated");
        let is_truncation = matches!(error.problem, XvaProblem::Truncated { .. });
        assert!(is_truncation, "{len}: {error}");
        assert_eq!(error.offset, len as u64);
    }
}

#[test]
fn any_flipped_bit_of_the_disks_is_told() {
    let (bytes, disks) = example();
    let start = member("ova.xml", &description(&[2500, 1000])).len();
    let is_padding = |place: usize| {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x20;
        read(&damaged, usize::MAX).as_ref() == Ok(&disks)
    };
    let unnoticed = (start..bytes.len())
        .filter(|place| is_padding(*place))
        .count();
    // The padding behind payloads, and hexadecimal letters, whose case says nothing.
    let padding = 24 + 2 * 12 + 12 + 12 + (512 - 40) + 4 * (512 - 16);
    let letters = 16 * 4 + 40;
    assert!(
        (padding..=padding + letters).contains(&unnoticed),
        "{unnoticed}"
    );
}

#[test]
fn members_out_of_place_are_told() {
    let a0 = || block("Ref:3/00000000", &[1; 500], X);
    let a1 = || block("Ref:3/00000001", &[1; 500], X);
    let b0 = || block("Ref:5/00000000", &[2; 10], X);
    let sizes = &[1000, 10][..];
    type Check = fn(&XvaProblem) -> bool;
    let cases: [(&str, Vec<Vec<u8>>, Check); 12] = [
        ("duplicate", vec![a0(), a0(), a1(), b0()], |p| {
            matches!(p, XvaProblem::Sequence(_))
        }),
        ("reordered", vec![a1(), a0(), b0()], |p| {
            matches!(p, XvaProblem::Sequence(_))
        }),
        ("interleaved", vec![a0(), b0(), a1()], |p| {
            matches!(p, XvaProblem::DiskShort { .. })
        }),
        ("again", vec![a0(), a1(), a0(), b0()], |p| {
            matches!(p, XvaProblem::DiskAgain { .. })
        }),
        ("missing disk", vec![a0(), a1()], |p| {
            matches!(p, XvaProblem::DiskMissing { .. })
        }),
        ("missing block", vec![b0(), a0()], |p| {
            matches!(p, XvaProblem::DiskShort { .. })
        }),
        ("unknown", vec![block("Ref:4/00000000", &[1; 10], X)], |p| {
            matches!(p, XvaProblem::UnknownDisk { .. })
        }),
        (
            "oversized",
            vec![a0(), block("Ref:3/00000001", &[1; 501], X)],
            |p| matches!(p, XvaProblem::Sequence(_)),
        ),
        (
            "no checksum",
            vec![member("Ref:3/00000000", &[1; 500]), a1()],
            |p| matches!(p, XvaProblem::ChecksumExpected { .. }),
        ),
        (
            "no checksum at the end",
            vec![b0(), a0(), member("Ref:3/00000001", &[1; 500])],
            |p| matches!(p, XvaProblem::ChecksumExpected { .. }),
        ),
        (
            "another's checksum",
            vec![
                member("Ref:3/00000000", &[1; 500]),
                member("Ref:3/00000001.xxhash", &[b'0'; 16]),
            ],
            |p| matches!(p, XvaProblem::ChecksumExpected { .. }),
        ),
        ("other file", vec![member("README", b"hello")], |p| {
            *p == XvaProblem::Name
        }),
    ];
    for (name, members, check) in cases {
        let problem = problem(&archive(sizes, &members));
        assert!(check(&problem), "{name}: {problem}");
    }
}

#[test]
fn wrong_checksums_are_told() {
    for kind in [X, S] {
        let digits = kind.of(&[2; 10]);
        let name = format!("Ref:3/00000000{}", kind.suffix());
        let members = [
            member("Ref:3/00000000", &[1; 10]),
            member(&name, digits.as_bytes()),
        ];
        let problem = problem(&archive(&[10], &members));
        let expected = XvaProblem::Checksum {
            stated: digits,
            computed: kind.of(&[1; 10]),
        };
        assert_eq!(problem, expected);
    }
    let mixed = [
        block("Ref:3/00000000", &[1; 10], X),
        block("Ref:3/00000001", &[1; 10], S),
    ];
    assert!(matches!(
        problem(&archive(&[20], &mixed)),
        XvaProblem::ChecksumKind { .. }
    ));
}

#[test]
fn the_end_is_two_blocks_of_zeros_and_nothing_more() {
    let (bytes, _) = example();
    let cut = &bytes[..bytes.len() - 512];
    let half = [cut, &member("Ref:3/00000000", &[1])[..]].concat();
    assert_eq!(problem(&half), XvaProblem::HalfEnd);
    let glued = [&bytes[..], b"HTTP/1.1 500 Internal Error\r\n"].concat();
    let error = read(&glued, usize::MAX).unwrap_err();
    assert_eq!(
        (error.problem, error.offset),
        (XvaProblem::Trailing, bytes.len() as u64)
    );
    let long = [&bytes[..], &vec![0; (1 << 20) + 1]].concat();
    assert_eq!(problem(&long), XvaProblem::Trailing);
    assert_eq!(problem(&END), XvaProblem::NotFirst);
}

#[test]
fn last_blocks_may_be_filled_up_with_zeros_alone() {
    let mut filled = vec![5; 700];
    filled.resize(1000, 0);
    let archive_of = |last: &[u8]| {
        archive(
            &[1700],
            &[
                block("Ref:3/00000000", &[4; 1000], X),
                block("Ref:3/00000001", last, X),
            ],
        )
    };
    let disk = [vec![4; 1000], vec![5; 700]].concat();
    for cut in [1, 700, usize::MAX] {
        assert_eq!(read(&archive_of(&filled), cut).unwrap()["Ref:3"], disk);
    }
    filled[999] = 1;
    assert_eq!(problem(&archive_of(&filled)), XvaProblem::Excess);
}

/// A member with headers of other flavours before it.
fn extended(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = member("././@LongLink", payload);
    bytes[156] = kind;
    bytes[148..156].fill(b' ');
    let sum: u64 = bytes[..512].iter().map(|byte| u64::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

#[test]
fn names_come_from_extended_headers() {
    let pax = |name: &str| {
        let record = format!(" path=./{name}\n");
        let len = record.len() + 2;
        extended(b'x', format!("{len}{record}").as_bytes())
    };
    let checksum = X.of(&[1; 10]);
    let members = [
        extended(b'5', &[]),
        pax("Ref:3/00000000"),
        member("other", &[1; 10]),
        extended(b'L', b"Ref:3/00000000.xxhash\0"),
        member("other", checksum.as_bytes()),
    ];
    assert_eq!(
        read(&archive(&[10], &members), 100).unwrap()["Ref:3"],
        [1; 10]
    );
    let global = [extended(b'g', b"10 path=x\n")];
    assert_eq!(problem(&archive(&[10], &global)), XvaProblem::GlobalPath);
    let endless = vec![extended(b'5', &[]); 4097];
    assert_eq!(problem(&archive(&[10], &endless)), XvaProblem::Idle);
    let long = [extended(b'L', &vec![b'x'; (64 << 10) + 1])];
    assert!(matches!(
        problem(&archive(&[10], &long)),
        XvaProblem::TooLong { .. }
    ));
    let mut sparse = member("Ref:3/00000000", &[1; 10]);
    sparse[156] = b'S';
    assert!(matches!(
        problem(&archive(&[10], &[sparse])),
        XvaProblem::Header(_)
    ));
}

#[test]
fn descriptions_are_bounded() {
    let mut huge = v7_header("ova.xml", 1 << 30).to_vec();
    huge.resize(4096, 0);
    assert!(matches!(problem(&huge), XvaProblem::TooLong { .. }));
    assert_eq!(
        problem(&member("Ref:3/00000000", &[1; 10])),
        XvaProblem::NotFirst
    );
}

/// Writes disks, given as bytes by reference, and their description.
fn write(
    sizes: &[u64],
    content: &BTreeMap<String, Vec<u8>>,
    checksums: ChecksumKind,
    piece: usize,
) -> Vec<u8> {
    let text = description(sizes);
    let mut disks = OvaXml::parse(&text).unwrap().disks().unwrap();
    in_order(&mut disks);
    let omit_zeros = may_omit_zeros(&disks);
    let mut bytes = description_member(&text);
    for disk in disks {
        let mut encoder = DiskEncoder::new(
            disk.reference.clone(),
            disk.virtual_size,
            checksums,
            omit_zeros,
        );
        let mut emit = |members: &[u8]| -> Result<(), ()> {
            bytes.extend_from_slice(members);
            Ok(())
        };
        for piece in content[disk.reference.as_str()].chunks(piece) {
            match piece.iter().all(|byte| *byte == 0) {
                true => encoder.zeros(piece.len() as u64, &mut emit),
                false => encoder.data(piece, &mut emit),
            }
            .unwrap();
        }
        encoder.finish();
    }
    bytes.extend_from_slice(&END);
    bytes
}

/// A disk of `size` bytes whose blocks are zeros or not, as `blocks` says.
fn disk(size: u64, blocks: &[bool]) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for (number, block) in bytes.chunks_mut(XVA_BLOCK_LEN as usize).enumerate() {
        if blocks[number % blocks.len()] {
            let place = number * 7919 % block.len();
            block[place] = number as u8 | 1;
        }
    }
    bytes
}

#[test]
fn zeros_are_left_out_between_first_and_last() {
    const M: u64 = XVA_BLOCK_LEN;
    let content = [("Ref:3".to_owned(), disk(5 * M + 1, &[false]))].into();
    let bytes = write(&[5 * M + 1], &content, X, 1 << 20);
    let text = description_member(&description(&[5 * M + 1])).len();
    assert_eq!(
        bytes.len() as u64,
        text as u64 + 1_050_112 + (512 * 4) + 1024
    );
    assert_eq!(read(&bytes, 1 << 16), Ok(content));
    // A first disk below 1 MiB would mislead xapi about what is left out.
    let content = [
        ("Ref:3".to_owned(), disk(100, &[true])),
        ("Ref:5".to_owned(), disk(3 * M, &[false])),
    ]
    .into();
    let bytes = write(&[100, 3 * M], &content, X, 1 << 20);
    assert!(bytes.len() as u64 > 3 * 1_050_112);
    assert_eq!(read(&bytes, 1 << 16), Ok(content));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_is_written_is_read_back(
        sizes in prop::collection::vec(1..4 * XVA_BLOCK_LEN, 1..4),
        blocks in prop::collection::vec(any::<bool>(), 1..5),
        sha1: bool,
        piece in prop::sample::select(vec![4096_usize, 100_000, 1 << 20, 3 << 20]),
        cut in prop::sample::select(vec![511_usize, 65_536, 1 << 20]),
    ) {
        let kind = if sha1 { S } else { X };
        let references = (0..).map(|place| format!("Ref:{}", 3 + 2 * place));
        let content: BTreeMap<_, _> = references
            .zip(&sizes)
            .map(|(reference, size)| (reference, disk(*size, &blocks)))
            .collect();
        let bytes = write(&sizes, &content, kind, piece);
        prop_assert_eq!(&bytes, &write(&sizes, &content, kind, 777));
        prop_assert_eq!(read(&bytes, cut), Ok(content));
    }

    #[test]
    fn damaged_archives_are_read_in_the_end(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in 1..3000_usize,
    ) {
        let (mut bytes, _) = example();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let whole = read(&bytes, usize::MAX);
        prop_assert_eq!(read(&bytes, cut), whole);
    }
}
