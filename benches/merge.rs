//! The merge of an increment: splices of segment maps, updates of a map tree.
#![allow(missing_docs, reason = "Criterion's macros make undocumented items")]

use std::collections::{BTreeMap, HashMap};

use criterion::{Criterion, criterion_group, criterion_main};
use undercroft_format::codec::DecodeError;
use undercroft_format::extent::Extent;
use undercroft_format::id::{ChunkId, NodeId, SegmentMapId};
use undercroft_format::maptree::{NodeStore, Tree, update};
use undercroft_format::segment::{Patch, SegmentMap};
use undercroft_format::units::SegmentNumber;

const SEGMENT: u32 = 16 << 20;
const CHUNK: u32 = 64 << 10;

fn chunk(number: u64) -> ChunkId {
    ChunkId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn full_map() -> SegmentMap {
    SegmentMap::from_extents((0..u64::from(SEGMENT / CHUNK)).map(|number| Extent::Data {
        chunk: chunk(number),
        offset: 0,
        len: CHUNK,
    }))
}

fn splices(criterion: &mut Criterion) {
    let map = full_map();
    let patch = |at: u32| Patch {
        start: at * CHUNK,
        extents: vec![Extent::Data {
            chunk: chunk(1 << 32 | u64::from(at)),
            offset: 0,
            len: CHUNK,
        }],
    };
    let patches = [patch(17), patch(200)];
    criterion.bench_function(
        "decode, splice two blocks, encode, hash a full 16 MiB map",
        |b| {
            let bytes = map.encode();
            b.iter(|| {
                let map = SegmentMap::decode(&bytes).expect("it was just encoded");
                map.splice(SEGMENT, &patches).encode_with_id().0
            });
        },
    );
}

#[derive(Default)]
struct Memory(HashMap<NodeId, Vec<u8>>);

impl NodeStore for Memory {
    type Error = DecodeError;

    fn load(&mut self, id: NodeId) -> Result<Vec<u8>, DecodeError> {
        Ok(self.0[&id].clone())
    }

    fn save(&mut self, id: NodeId, encoded: Vec<u8>) -> Result<(), DecodeError> {
        self.0.insert(id, encoded);
        Ok(())
    }
}

fn trees(criterion: &mut Criterion) {
    let map = |number: u64| SegmentMapId::from_bytes(*chunk(number).as_bytes());
    let segments = 65_536;
    let all: BTreeMap<_, _> = (0..segments)
        .map(|n| (SegmentNumber(n), Some(map(n))))
        .collect();
    let empty = Tree {
        root: None,
        segments: 0,
    };
    let mut store = Memory::default();
    let tree = update(&mut store, empty, segments, &all).expect("memory does not fail");
    criterion.bench_function("change 1,000 of 65,536 segments of a 1 TiB disk", |b| {
        let changes: BTreeMap<_, _> = (0..1000)
            .map(|n| (SegmentNumber(n * 65), Some(map(1 << 40 | n))))
            .collect();
        b.iter(|| update(&mut store, tree, segments, &changes).expect("memory does not fail"));
    });
}

criterion_group!(benches, splices, trees);
criterion_main!(benches);
