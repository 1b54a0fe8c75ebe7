//! A node of a map tree: what decodes encodes to the same bytes; and a walk over a tree of such nodes, of
//! any size, stays within the range it was asked for.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use undercroft_format::codec::DecodeError;
use undercroft_format::id::NodeId;
use undercroft_format::maptree::{Node, NodeStore, Tree, diff, visit};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    segments: u64,
    other_segments: u64,
    start: u64,
    len: u8,
    node: &'a [u8],
}

/// Has the same node everywhere: an id's first byte is the level of the node, its children's is one less.
struct OneNode {
    encoded: Vec<u8>,
    loads: u32,
}

/// What ends a walk that would take too long.
#[derive(Debug)]
struct Stop;

impl From<DecodeError> for Stop {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

impl NodeStore for OneNode {
    type Error = Stop;

    fn load(&mut self, id: NodeId) -> Result<Vec<u8>, Stop> {
        self.loads += 1;
        if self.loads > 4096 {
            return Err(Stop);
        }
        let level = id.as_bytes()[0];
        let mut encoded = self.encoded.clone();
        encoded[1] = level;
        for child in encoded[34..].chunks_mut(32) {
            child[0] = level.wrapping_sub(1);
        }
        Ok(encoded)
    }

    fn save(&mut self, _: NodeId, _: Vec<u8>) -> Result<(), Stop> {
        Err(Stop)
    }
}

fuzz_target!(|input: Input<'_>| {
    let Ok(node) = Node::decode(input.node) else {
        return;
    };
    assert_eq!(node.encode(), input.node);
    assert!(node.children().count() >= 1 && 34 + 32 * node.children().count() == input.node.len());
    assert!(node.children().is_sorted_by(|a, b| a.0 < b.0));

    let mut store = OneNode {
        encoded: input.node.to_vec(),
        loads: 0,
    };
    let root = |level: u8| Some(NodeId::from_bytes([level; 32]));
    let level = undercroft_format::maptree::levels(input.segments);
    let tree = Tree {
        root: root(level),
        segments: input.segments,
    };
    let range = input.start..input.start.saturating_add(input.len.into());
    let mut next = range.start;
    let _ = visit(&mut store, tree, range.clone(), &mut |number, _| {
        assert!(number.0 >= next && number.0 < range.end.min(input.segments));
        next = number.0 + 1;
        Ok(())
    });
    store.loads = 0;
    let other = Tree {
        root: root(level ^ 1),
        segments: input.other_segments,
    };
    let _ = diff(&mut store, tree, other);
});
