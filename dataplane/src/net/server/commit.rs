//! Looks at a snapshot before it is published: it must be the session's, and everything that it names must
//! be there. A snapshot with holes would end every later collection.

use std::collections::HashSet;

use undercroft_format::id::{ObjectId, SegmentMapId, SnapshotId};
use undercroft_format::lock::LockEnd;
use undercroft_format::maptree::diff;
use undercroft_format::snapshot::{DiskManifest, Snapshot};
use undercroft_format::wire::failure::{Failure, FailureCode};

use super::access::Caller;
use super::kept_session::KeptSession;
use super::served::Served;
use crate::net::convert::failure_of;
use crate::net::trust::Verb;
use crate::repository::Repository;
use crate::repository::error::Result as RepositoryResult;
use crate::repository::local_session::SessionStore;
use crate::repository::objects::ReadNodes;
use crate::repository::retention::UnixMs;
use crate::repository::snapshots::StoredSnapshot;

/// A snapshot that a client wants published, its own words checked against each other.
pub struct Candidate {
    id: SnapshotId,
    snapshot: Snapshot,
    bytes: Vec<u8>,
}

impl Candidate {
    /// Reads what a client sent and checks that it is a snapshot of the session's.
    pub fn new(
        served: &Served,
        session: &KeptSession,
        caller: &Caller,
        bytes: Vec<u8>,
    ) -> Result<Self, Failure> {
        let (id, snapshot) = served
            .repository()
            .snapshots()
            .decode_sent(&bytes)
            .map_err(|error| refuse(format!("the snapshot is refused: {error}")))?;
        caller.check_vm(Verb::Commit, &snapshot.vm)?;
        if snapshot.vm != session.vm() || snapshot.session != session.id() {
            return Err(refuse("the snapshot is not this session's"));
        }
        let labels = session.labels();
        if snapshot.disks.len() != labels.len()
            || snapshot
                .disks
                .iter()
                .zip(&labels)
                .any(|(disk, label)| disk.label != *label)
        {
            return Err(refuse("the snapshot does not have the session's disks"));
        }
        Ok(Self {
            id,
            snapshot,
            bytes,
        })
    }

    /// Its id.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Publishes it, once everything that it names is durable, and locks it. `store` has sealed what it had.
    pub fn publish(
        &self,
        served: &Served,
        session: &KeptSession,
        store: &SessionStore,
        lock: Option<LockEnd>,
    ) -> Result<Option<UnixMs>, Failure> {
        let is_whole =
            self.is_whole(served, session, store)
                .map_err(|error| match error.is_damage() {
                    true => refuse(format!(
                        "the snapshot names something that is not stored: {error}"
                    )),
                    false => failure_of(&error),
                })?;
        if !is_whole {
            return Err(refuse("the snapshot names something that is not stored"));
        }
        served
            .repository()
            .snapshots()
            .publish_encoded(self.id, &self.bytes, lock)
            .map_err(|error| failure_of(&error))
    }

    fn is_whole(
        &self,
        served: &Served,
        session: &KeptSession,
        store: &SessionStore,
    ) -> RepositoryResult<bool> {
        if let Some(metadata) = &self.snapshot.metadata {
            let chunks: Vec<ObjectId> =
                metadata.chunks.iter().map(|(id, _)| (*id).into()).collect();
            if !store.holds_durably(&chunks)? {
                return Ok(false);
            }
        }
        let (finished, pinned) = (session.finished(), session.pinned());
        for (disk, finished) in self.snapshot.disks.iter().zip(&finished) {
            let known: HashSet<SegmentMapId> =
                finished.values().filter_map(|done| done.map).collect();
            let maps = new_maps(served, disk, &pinned)?;
            let maps: Vec<SegmentMapId> = maps
                .into_iter()
                .filter(|map| !known.contains(map))
                .collect();
            if !store.has_durably(&maps)?.into_iter().all(|whole| whole) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The maps of a disk that no pinned snapshot of it has at their place: those have their chunks, and keep
/// them as long as the session holds the snapshot.
fn new_maps(
    served: &Served,
    disk: &DiskManifest,
    pinned: &[StoredSnapshot],
) -> RepositoryResult<Vec<SegmentMapId>> {
    let objects = served.repository().objects();
    let old = pinned
        .iter()
        .rev()
        .filter(|stored| !stored.incomplete)
        .filter_map(|stored| stored.snapshot.disk(&disk.label))
        .find(|old| old.segment_size == disk.segment_size);
    let mut maps = Vec::new();
    let differing = match old.map(|old| diff(&mut ReadNodes(objects), old.tree(), disk.tree())) {
        Some(Ok(differing)) => Some(differing),
        // What the old snapshot lost is no obstacle to the new one.
        Some(Err(error)) if error.is_damage() => None,
        Some(Err(error)) => return Err(error),
        None => None,
    };
    match differing {
        Some(differing) => maps.extend(differing.into_iter().filter_map(|(_, _, new)| new)),
        None => {
            let tree = disk.tree();
            objects.visit_tree(tree, 0..tree.segments, &mut |_, map| {
                maps.push(map);
                Ok(())
            })?;
        }
    }
    maps.sort_unstable();
    maps.dedup();
    Ok(maps)
}

fn refuse(text: impl Into<String>) -> Failure {
    Failure::new(FailureCode::Unpublishable, text)
}
