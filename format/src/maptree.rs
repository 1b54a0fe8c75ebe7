//! Map trees: a wide Merkle tree over the segment maps of one disk at one time.
//!
//! A node has 256 children; those of level 1 are segment maps, those of level n are nodes of level
//! n - 1. A child of zeros alone is absent, a node without children does not exist. The number of levels
//! follows from the disk's size alone, so that equal disks have equal roots.
//!
//! | offset | size | field | invariant |
//! | --- | --- | --- | --- |
//! | 0 | 1 | version | 1 |
//! | 1 | 1 | level | 1 to 5 |
//! | 2 | 32 | which children are present, child 0 in the least significant bit of byte 0 | not all 0 |
//! | 34 | 32 each | ids of the present children, in order | |

use std::collections::BTreeMap;
use std::ops::Range;

use crate::codec::{DecodeError, Problem, Reader};
use crate::id::{NodeId, ObjectId, SegmentMapId, node_id};
use crate::units::SegmentNumber;

const VERSION: u8 = 1;
/// Children of a node.
pub const FANOUT: u64 = 256;
const FANOUT_LOG2: u32 = 8;
/// Levels that the longest disk needs with segments of the smallest size.
const LEVEL_MAX: u8 = 5;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    level: u8,
    children: BTreeMap<u8, ObjectId>,
}

impl Node {
    /// 1 if the children are segment maps, else one more than the children's level.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The present children by position.
    pub fn children(&self) -> impl Iterator<Item = (u8, ObjectId)> + '_ {
        self.children.iter().map(|(at, id)| (*at, *id))
    }

    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(34 + 32 * self.children.len());
        out.extend_from_slice(&[VERSION, self.level]);
        let mut present = [0_u8; 32];
        for at in self.children.keys() {
            present[usize::from(at / 8)] |= 1 << (at % 8);
        }
        out.extend_from_slice(&present);
        for id in self.children.values() {
            out.extend_from_slice(id.as_bytes());
        }
        out
    }

    /// Reads a canonical encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("map tree node", bytes);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(reader.error(Problem::Version {
                found: version.into(),
                newest: VERSION.into(),
            }));
        }
        let level = reader.u8()?;
        if !(1..=LEVEL_MAX).contains(&level) {
            return Err(reader.error(Problem::Invalid("level")));
        }
        let present: [u8; 32] = reader.array()?;
        let mut children = BTreeMap::new();
        for at in 0..=255_u8 {
            if present[usize::from(at / 8)] & 1 << (at % 8) != 0 {
                children.insert(at, ObjectId::from_bytes(reader.array()?));
            }
        }
        if children.is_empty() {
            return Err(reader.error(Problem::NotCanonical("node without children")));
        }
        reader.finish()?;
        Ok(Self { level, children })
    }
}

/// Levels of the tree of a disk of `segments` segments: at least 1.
pub fn levels(segments: u64) -> u8 {
    let mut levels = 1;
    while segments > span(levels) {
        levels += 1;
    }
    levels
}

/// Segments below one node of `level`.
fn span(level: u8) -> u64 {
    1_u64
        .checked_shl(FANOUT_LOG2 * u32::from(level))
        .unwrap_or(u64::MAX)
}

/// A tree: its root and the number of segments of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The root, absent for a disk of zeros.
    pub root: Option<NodeId>,
    /// Segments of the disk, zeros included.
    pub segments: u64,
}

/// Where nodes come from and go to.
pub trait NodeStore {
    /// Why a node could not be had or kept.
    type Error: From<DecodeError>;

    /// The encoding of node `id`, checked against the id.
    fn load(&mut self, id: NodeId) -> Result<Vec<u8>, Self::Error>;

    /// Keeps a node; called for each new node once, children before parents.
    fn save(&mut self, id: NodeId, encoded: Vec<u8>) -> Result<(), Self::Error>;
}

fn load<S: NodeStore>(store: &mut S, id: NodeId, level: u8) -> Result<Node, S::Error> {
    let bytes = store.load(id)?;
    let node = Node::decode(&bytes)?;
    if node.level != level {
        let reader = Reader::new("map tree node", &bytes);
        return Err(reader
            .error(Problem::Invalid("level: not the one of its place"))
            .into());
    }
    Ok(node)
}

/// The tree of a disk of `segments` segments that equals `old` but for `changes`: `None` makes a
/// segment zero. Reads and writes only the nodes above changed segments.
pub fn update<S: NodeStore>(
    store: &mut S,
    old: Tree,
    segments: u64,
    changes: &BTreeMap<SegmentNumber, Option<SegmentMapId>>,
) -> Result<Tree, S::Error> {
    let (old_levels, new_levels) = (levels(old.segments), levels(segments));
    let mut root = old.root.map(ObjectId::from);
    for level in old_levels..new_levels {
        if let Some(child) = root {
            let node = Node {
                level: level + 1,
                children: BTreeMap::from([(0, child)]),
            };
            root = save(store, &node)?;
        }
    }
    for level in (new_levels + 1..=old_levels).rev() {
        if let Some(id) = root {
            root = load(store, id.into(), level)?.children.get(&0).copied();
        }
    }
    let mut truncated = changes.clone();
    truncated.retain(|number, _| number.0 < segments);
    let limit = (segments < old.segments).then_some(segments);
    let root = update_below(store, root, new_levels, 0, limit, &truncated)?;
    Ok(Tree {
        root: root.map(NodeId::from),
        segments,
    })
}

fn save<S: NodeStore>(store: &mut S, node: &Node) -> Result<Option<ObjectId>, S::Error> {
    if node.children.is_empty() {
        return Ok(None);
    }
    let bytes = node.encode();
    let id = node_id(&bytes);
    store.save(id, bytes)?;
    Ok(Some(id.into()))
}

fn update_below<S: NodeStore>(
    store: &mut S,
    old: Option<ObjectId>,
    level: u8,
    first: u64,
    limit: Option<u64>,
    changes: &BTreeMap<SegmentNumber, Option<SegmentMapId>>,
) -> Result<Option<ObjectId>, S::Error> {
    if level == 0 {
        let changed = changes.get(&SegmentNumber(first));
        return Ok(changed.map_or(old, |map| map.map(ObjectId::from)));
    }
    let mut node = match old {
        Some(id) => load(store, id.into(), level)?,
        None => Node {
            level,
            children: BTreeMap::new(),
        },
    };
    let before = node.clone();
    let child_span = span(level - 1);
    if let Some(limit) = limit {
        node.children
            .retain(|at, _| first + u64::from(*at) * child_span < limit);
    }
    let end = first.saturating_add(span(level));
    let mut next = first;
    loop {
        let changed = changes
            .range(SegmentNumber(next)..SegmentNumber(end))
            .next();
        let cut = limit.filter(|limit| (next..end).contains(limit));
        let Some(number) = changed
            .map(|(number, _)| number.0)
            .into_iter()
            .chain(cut)
            .min()
        else {
            break;
        };
        let at = (number - first) / child_span;
        let child_first = first + at * child_span;
        let old_child = node.children.get(&(at as u8)).copied();
        let child = update_below(store, old_child, level - 1, child_first, limit, changes)?;
        match child {
            Some(id) => node.children.insert(at as u8, id),
            None => node.children.remove(&(at as u8)),
        };
        next = child_first.saturating_add(child_span);
        if next >= end {
            break;
        }
    }
    if node == before && old.is_some() {
        return Ok(old);
    }
    save(store, &node)
}

/// Visits the segments of `tree` within `range` that are not zero, in order.
pub fn visit<S: NodeStore>(
    store: &mut S,
    tree: Tree,
    range: Range<u64>,
    visitor: &mut dyn FnMut(SegmentNumber, SegmentMapId) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    match tree.root {
        Some(root) => {
            let end = range.end.min(tree.segments);
            let range = range.start..end;
            visit_below(
                store,
                root.into(),
                levels(tree.segments),
                0,
                &range,
                visitor,
            )
        }
        None => Ok(()),
    }
}

fn visit_below<S: NodeStore>(
    store: &mut S,
    id: ObjectId,
    level: u8,
    first: u64,
    range: &Range<u64>,
    visitor: &mut dyn FnMut(SegmentNumber, SegmentMapId) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    if level == 0 {
        return visitor(SegmentNumber(first), id.into());
    }
    let child_span = span(level - 1);
    for (at, child) in load(store, id.into(), level)?.children() {
        let start = first + u64::from(at) * child_span;
        if start < range.end && start.saturating_add(child_span) > range.start {
            visit_below(store, child, level - 1, start, range, visitor)?;
        }
    }
    Ok(())
}

/// A segment that differs between two trees, with its map on each side.
pub type Difference = (SegmentNumber, Option<SegmentMapId>, Option<SegmentMapId>);

/// The segments in which two trees differ, in order, without reading what they share.
pub fn diff<S: NodeStore>(store: &mut S, a: Tree, b: Tree) -> Result<Vec<Difference>, S::Error> {
    let mut out = Vec::new();
    let (a_levels, b_levels) = (levels(a.segments), levels(b.segments));
    let level = a_levels.max(b_levels);
    let side = |tree: Tree, levels| tree.root.map(|root| (ObjectId::from(root), levels));
    diff_below(
        store,
        side(a, a_levels),
        side(b, b_levels),
        level,
        0,
        &mut out,
    )?;
    Ok(out)
}

fn diff_below<S: NodeStore>(
    store: &mut S,
    a: Option<(ObjectId, u8)>,
    b: Option<(ObjectId, u8)>,
    level: u8,
    first: u64,
    out: &mut Vec<Difference>,
) -> Result<(), S::Error> {
    if a == b {
        return Ok(());
    }
    if level == 0 {
        let map = |side: Option<(ObjectId, u8)>| side.map(|(id, _)| SegmentMapId::from(id));
        out.push((SegmentNumber(first), map(a), map(b)));
        return Ok(());
    }
    let mut children =
        |side: Option<(ObjectId, u8)>| -> Result<BTreeMap<u8, (ObjectId, u8)>, S::Error> {
            Ok(match side {
                None => BTreeMap::new(),
                // A lower tree is the first child of a taller one.
                Some((id, own)) if own < level => BTreeMap::from([(0, (id, own))]),
                Some((id, _)) => load(store, id.into(), level)?
                    .children()
                    .map(|(at, child)| (at, (child, level - 1)))
                    .collect(),
            })
        };
    let (a, b) = (children(a)?, children(b)?);
    let places: std::collections::BTreeSet<u8> = a.keys().chain(b.keys()).copied().collect();
    for at in places {
        let start = first + u64::from(at) * span(level - 1);
        diff_below(
            store,
            a.get(&at).copied(),
            b.get(&at).copied(),
            level - 1,
            start,
            out,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Memory {
        nodes: HashMap<NodeId, Vec<u8>>,
        loads: usize,
    }

    impl NodeStore for Memory {
        type Error = DecodeError;

        fn load(&mut self, id: NodeId) -> Result<Vec<u8>, DecodeError> {
            self.loads += 1;
            Ok(self.nodes[&id].clone())
        }

        fn save(&mut self, id: NodeId, encoded: Vec<u8>) -> Result<(), DecodeError> {
            self.nodes.insert(id, encoded);
            Ok(())
        }
    }

    const EMPTY: Tree = Tree {
        root: None,
        segments: 0,
    };

    fn map(number: u8) -> SegmentMapId {
        SegmentMapId::from_bytes([number; 32])
    }

    fn content(store: &mut Memory, tree: Tree) -> BTreeMap<SegmentNumber, SegmentMapId> {
        let mut found = BTreeMap::new();
        visit(store, tree, 0..u64::MAX, &mut |number, id| {
            assert!(found.insert(number, id).is_none());
            Ok(())
        })
        .unwrap();
        found
    }

    fn step() -> impl Strategy<Value = (u64, BTreeMap<SegmentNumber, Option<SegmentMapId>>)> {
        let sizes = prop_oneof![0..300_u64, 60_000..70_000_u64];
        sizes.prop_flat_map(|segments| {
            let change = (0..segments.max(1), 0..5_u8)
                .prop_map(|(number, id)| (SegmentNumber(number), (id > 0).then(|| map(id))));
            let changes = proptest::collection::btree_map(
                change.clone().prop_map(|c| c.0),
                change.prop_map(|c| c.1),
                0..12,
            );
            (Just(segments), changes)
        })
    }

    proptest! {
        #[test]
        fn updates_equal_a_plain_map_and_equal_content_has_one_root(
            steps in proptest::collection::vec(step(), 1..6)
        ) {
            let mut store = Memory::default();
            let mut tree = EMPTY;
            let mut model: BTreeMap<SegmentNumber, SegmentMapId> = BTreeMap::new();
            for (segments, changes) in steps {
                let before = (tree, model.clone());
                tree = update(&mut store, tree, segments, &changes).unwrap();
                model.retain(|number, _| number.0 < segments);
                for (number, id) in &changes {
                    if number.0 >= segments {
                        continue;
                    }
                    match id {
                        Some(id) => model.insert(*number, *id),
                        None => model.remove(number),
                    };
                }
                prop_assert_eq!(content(&mut store, tree), model.clone());
                let all = model.iter().map(|(number, id)| (*number, Some(*id))).collect();
                prop_assert_eq!(update(&mut store, EMPTY, segments, &all).unwrap(), tree);
                let differences = diff(&mut store, before.0, tree).unwrap();
                let mut expected = Vec::new();
                let numbers: std::collections::BTreeSet<_> =
                    before.1.keys().chain(model.keys()).copied().collect();
                for number in numbers {
                    let sides = (before.1.get(&number).copied(), model.get(&number).copied());
                    if sides.0 != sides.1 {
                        expected.push((number, sides.0, sides.1));
                    }
                }
                prop_assert_eq!(differences, expected);
            }
        }

        #[test]
        fn nodes_are_canonical(
            numbers in proptest::collection::btree_map(any::<u8>(), any::<u8>(), 1..20),
            place: prop::sample::Index, bit in 0..8_u8,
        ) {
            let node = Node {
                level: 2,
                children: numbers.into_iter().map(|(at, id)| (at, ObjectId::from_bytes([id; 32]))).collect(),
            };
            let mut bytes = node.encode();
            prop_assert_eq!(Node::decode(&bytes), Ok(node));
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            if let Ok(node) = Node::decode(&bytes) {
                prop_assert_eq!(node.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_small_change_of_a_large_disk_touches_one_path() {
        let mut store = Memory::default();
        let all = (0..65_536)
            .map(|n| (SegmentNumber(n), Some(map(1))))
            .collect();
        let tree = update(&mut store, EMPTY, 65_536, &all).unwrap();
        store.loads = 0;
        let saved = store.nodes.len();
        let change = BTreeMap::from([(SegmentNumber(777), Some(map(2)))]);
        update(&mut store, tree, 65_536, &change).unwrap();
        assert_eq!((store.loads, store.nodes.len() - saved), (2, 2));
    }
}
