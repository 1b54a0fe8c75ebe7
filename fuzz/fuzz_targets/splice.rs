//! The splice: equals overwriting bytes one by one, and its result is in canonical form.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use undercroft_format::extent::Extent;
use undercroft_format::id::ChunkId;
use undercroft_format::segment::{Patch, SegmentMap};

#[derive(Arbitrary, Debug)]
struct Piece {
    chunk: u8,
    offset: u8,
    len: u8,
}

#[derive(Arbitrary, Debug)]
struct Input {
    old: Vec<Piece>,
    len: u16,
    patches: Vec<(u8, Vec<Piece>)>,
}

/// What one byte of a segment is: zero, or a byte of a chunk.
type Byte = Option<(u8, u32)>;

fuzz_target!(|input: Input| {
    let old = SegmentMap::from_extents(input.old.iter().map(extent));
    let len = u32::from(input.len);
    let mut expected: Vec<Byte> = bytes_of(&input.old);
    expected.resize(len as usize, None);
    let mut patches = Vec::new();
    let mut at = 0;
    for (gap, pieces) in &input.patches {
        let new = bytes_of(pieces);
        let start = at + usize::from(*gap);
        at = start + new.len();
        if at > expected.len() {
            break;
        }
        expected[start..at].copy_from_slice(&new);
        patches.push(Patch {
            start: start as u32,
            extents: pieces.iter().map(extent).collect(),
        });
    }
    let spliced = old.splice(len, &patches);
    assert_eq!(spliced.len(), len);
    let mut found: Vec<Byte> = Vec::new();
    for extent in spliced.extents() {
        match extent {
            Extent::Zero { len } => found.resize(found.len() + *len as usize, None),
            Extent::Data { chunk, offset, len } => {
                found.extend((0..*len).map(|at| Some((chunk.as_bytes()[0], offset + at))));
            }
        }
    }
    assert_eq!(found, expected);
    assert_eq!(
        SegmentMap::from_extents(spliced.extents().iter().copied()),
        spliced
    );
    if !spliced.is_zero() {
        assert_eq!(SegmentMap::decode(&spliced.encode()), Ok(spliced));
    }
});

/// Chunk 0 stands for zeros.
fn extent(piece: &Piece) -> Extent {
    let len = piece.len.into();
    match piece.chunk % 4 {
        0 => Extent::Zero { len },
        number => Extent::Data {
            chunk: ChunkId::from_bytes([number; 32]),
            offset: piece.offset.into(),
            len,
        },
    }
}

fn bytes_of(pieces: &[Piece]) -> Vec<Byte> {
    let byte = |piece: &Piece, at: u32| {
        let number = piece.chunk % 4;
        (number > 0).then(|| (number, u32::from(piece.offset) + at))
    };
    pieces
        .iter()
        .flat_map(|piece| (0..u32::from(piece.len)).map(move |at| byte(piece, at)))
        .collect()
}
