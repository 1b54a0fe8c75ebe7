//! Walking everything that snapshots refer to: what a collection keeps and a scrub must find.
//!
//! Trees share most of their nodes and maps; each is read once, however many snapshots share it.

use undercroft_format::id::{NodeId, ObjectId, SegmentMapId, SnapshotId};
use undercroft_format::maptree::{Node, levels};
use undercroft_format::segment::SegmentMap;
use undercroft_format::snapshot::Snapshot;
use undercroft_format::units::SegmentNumber;

use super::error::{RepositoryError, Result};
use super::fingerprints::Fingerprints;
use super::objects::Objects;

/// What a walk meets.
pub trait Visitor {
    /// A map tree node or segment map that is about to be read; false to leave it and what is below
    /// it alone.
    fn enter(&mut self, object: ObjectId) -> bool;

    /// A segment map that was read.
    fn map(&mut self, place: &Place<'_>, map: &SegmentMap) -> Result<()>;

    /// A node or map that could not be read; an error ends the walk.
    fn unreadable(&mut self, place: &Place<'_>, error: RepositoryError) -> Result<()>;

    /// A node or map that was entered, and everything below it, is done.
    fn leave(&mut self, object: ObjectId) {
        let _ = object;
    }
}

/// Where in a snapshot a walk is.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// The snapshot.
    pub id: SnapshotId,
    /// What it says.
    pub snapshot: &'a Snapshot,
    /// Ordinal of the disk.
    pub disk: usize,
    /// First segment below this place.
    pub first: SegmentNumber,
    /// Segments below this place.
    pub count: u64,
}

impl Place<'_> {
    /// The disk's range below this place.
    pub fn range(&self) -> undercroft_format::units::DiskRange {
        let disk = &self.snapshot.disks[self.disk];
        let segment = disk.segment_size.bytes();
        let start = self.first.0.saturating_mul(segment).min(disk.size.get());
        let end = self
            .first
            .0
            .saturating_add(self.count)
            .saturating_mul(segment);
        undercroft_format::units::DiskRange::new(start, end.min(disk.size.get()))
    }
}

/// Walks the trees of all disks of a snapshot.
pub fn walk_snapshot(
    objects: &Objects,
    id: SnapshotId,
    snapshot: &Snapshot,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    (0..snapshot.disks.len()).try_for_each(|disk| walk_disk(objects, id, snapshot, disk, visitor))
}

/// Walks the tree of one disk of a snapshot, by its ordinal.
pub fn walk_disk(
    objects: &Objects,
    id: SnapshotId,
    snapshot: &Snapshot,
    disk: usize,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    let tree = snapshot.disks[disk].tree();
    let Some(root) = tree.root else { return Ok(()) };
    let level = levels(tree.segments);
    let place = Place {
        id,
        snapshot,
        disk,
        first: SegmentNumber(0),
        count: span(level),
    };
    walk_below(objects, root.into(), level, &place, visitor)
}

fn span(level: u8) -> u64 {
    256_u64.checked_pow(u32::from(level)).unwrap_or(u64::MAX)
}

fn walk_below(
    objects: &Objects,
    id: ObjectId,
    level: u8,
    place: &Place<'_>,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    if !visitor.enter(id) {
        return Ok(());
    }
    walk_entered(objects, id, level, place, visitor)?;
    visitor.leave(id);
    Ok(())
}

fn walk_entered(
    objects: &Objects,
    id: ObjectId,
    level: u8,
    place: &Place<'_>,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    if level == 0 {
        return match objects.segment_map(SegmentMapId::from(id)) {
            Ok(map) => visitor.map(place, &map),
            Err(error) => visitor.unreadable(place, error),
        };
    }
    let node = objects
        .node(NodeId::from(id))
        .and_then(|bytes| Ok(Node::decode(&bytes)?));
    let node = match node {
        Ok(node) => node,
        Err(error) => return visitor.unreadable(place, error),
    };
    for (at, child) in node.children() {
        let below = Place {
            first: SegmentNumber(
                place
                    .first
                    .0
                    .saturating_add(u64::from(at) * span(level - 1)),
            ),
            count: span(level - 1),
            ..place.clone()
        };
        walk_below(objects, child, level - 1, &below, visitor)?;
    }
    Ok(())
}

/// Marks every object that snapshots refer to.
pub struct Mark {
    /// What was marked.
    pub live: Fingerprints,
    /// Only ids whose first byte lies in this range are kept, so that a mark fits into its memory; the
    /// others are left to another pass.
    pub first_bytes: std::ops::RangeInclusive<u8>,
    /// Nodes and maps already walked, whatever their first byte.
    pub walked: Fingerprints,
    /// References seen.
    pub references: u64,
}

impl Mark {
    /// Marks `id`.
    pub fn mark(&mut self, id: ObjectId) {
        self.references += 1;
        if self.first_bytes.contains(&id.as_bytes()[0]) {
            self.live.insert(&id);
        }
    }
}

impl Visitor for Mark {
    fn enter(&mut self, object: ObjectId) -> bool {
        let fresh = self.walked.insert(&object);
        if fresh {
            self.mark(object);
        }
        fresh
    }

    fn map(&mut self, _: &Place<'_>, map: &SegmentMap) -> Result<()> {
        for chunk in map.chunks() {
            self.mark(chunk.into());
        }
        Ok(())
    }

    fn unreadable(&mut self, place: &Place<'_>, error: RepositoryError) -> Result<()> {
        Err(RepositoryError::IncompleteSnapshot {
            id: place.id,
            source: Box::new(error),
        })
    }
}
