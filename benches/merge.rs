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

/// The whole merge of an increment: every touched map decoded, spliced, encoded and hashed, then the tree.
fn whole(criterion: &mut Criterion) {
    const SEGMENTS: u64 = 65_536;
    const CHANGES: u64 = 100_000;
    let blocks_of_segment = u64::from(SEGMENT / CHUNK);
    let mut scattered: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for number in 0..CHANGES {
        let hash = blake3::hash(&number.to_le_bytes());
        let random = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 bytes"));
        let block = random % (SEGMENTS * blocks_of_segment);
        let segment = scattered.entry(block / blocks_of_segment).or_default();
        segment.push(block % blocks_of_segment);
    }
    for blocks in scattered.values_mut() {
        blocks.sort_unstable();
        blocks.dedup();
    }
    let old = full_map().encode();
    let map_id = |number: u64| SegmentMapId::from_bytes(*chunk(number).as_bytes());
    let all: BTreeMap<_, _> = (0..SEGMENTS)
        .map(|n| (SegmentNumber(n), Some(map_id(n))))
        .collect();
    let empty = Tree {
        root: None,
        segments: 0,
    };
    let mut store = Memory::default();
    let tree = update(&mut store, empty, SEGMENTS, &all).expect("memory does not fail");
    let merge = |store: &mut Memory| {
        let mut new_bytes = 0;
        let mut changes = BTreeMap::new();
        for (segment, blocks) in &scattered {
            let map = SegmentMap::decode(&old).expect("it was just encoded");
            let patches: Vec<Patch> = blocks
                .iter()
                .map(|block| Patch {
                    start: *block as u32 * CHUNK,
                    extents: vec![Extent::Data {
                        chunk: chunk(1 << 32 | segment << 8 | block),
                        offset: 0,
                        len: CHUNK,
                    }],
                })
                .collect();
            let (id, bytes) = map.splice(SEGMENT, &patches).encode_with_id();
            new_bytes += bytes.len();
            changes.insert(SegmentNumber(*segment), Some(id));
        }
        let nodes = store.0.len();
        update(store, tree, SEGMENTS, &changes).expect("memory does not fail");
        (scattered.len(), new_bytes, store.0.len() - nodes)
    };
    let (maps, map_bytes, nodes) = merge(&mut store);
    eprintln!("{CHANGES} changes make {maps} maps of {map_bytes} bytes and {nodes} nodes");
    let mut group = criterion.benchmark_group("whole");
    group.sample_size(10);
    group.bench_function(
        "merge 100,000 scattered blocks into a full disk of 1 TiB",
        |b| b.iter(|| merge(&mut store)),
    );
    group.finish();
}

criterion_group!(benches, splices, trees, whole);
criterion_main!(benches);
