//! What snapshots lost when packs went.
//!
//! The index is the only witness of a pack that is gone: once an owner has brought it in line with the
//! packs, nothing says any more that there was one. An increment reads neither the maps nor the chunks of
//! what did not change, so it would pass a loss on, into a snapshot that cannot be restored. Whoever is
//! about to let the witness go therefore leaves a note first ([`layout::UNCHECKED`]); the owner then walks
//! the maps of all snapshots, asks the index for what they name, and marks those that lost something as
//! incomplete, so that increments on them become full reads. The note goes last: a crash in between
//! repeats the walk.

use undercroft_format::id::{ObjectId, SnapshotId};
use undercroft_format::segment::SegmentMap;

use super::error::{RepositoryError, Result};
use super::fingerprints::Fingerprints;
use super::lookup::Lookup;
use super::snapshots::{StoredSnapshot, marker_content};
use super::walk::{Place, Visitor, walk_snapshot};
use super::{LocalRepository, Repository, layout};
use crate::io::Storage;

/// Notes that the index may have forgotten packs that snapshots need.
///
/// On a full disk this does nothing: what makes room must not fail for lack of it, and the check that
/// follows needs the note only if it is cut short.
pub fn note_loss(storage: &dyn Storage) -> Result<()> {
    let path = layout::UNCHECKED;
    let noted = storage
        .publish(path, &marker_content(path))
        .map_err(RepositoryError::io("writing", path));
    match noted {
        Err(error) if error.is_disk_full() => Ok(()),
        noted => noted,
    }
}

/// True if a loss was noted and its check is not done.
pub fn is_noted(storage: &dyn Storage) -> Result<bool> {
    storage
        .exists(layout::UNCHECKED)
        .map_err(RepositoryError::io("looking for", layout::UNCHECKED))
}

/// Marks the snapshots that name what the index does not know as incomplete, and returns them. The
/// caller owns the repository.
pub fn mark_losers(repository: &LocalRepository) -> Result<Vec<SnapshotId>> {
    let (snapshots, _) = repository.snapshots().read_all()?;
    let losers = losers(repository, &snapshots)?;
    for id in &losers {
        match repository.snapshots().mark_incomplete(*id, true) {
            // A backup, which the mark would keep from an increment, has no room either.
            Err(error) if error.is_disk_full() => return Ok(losers),
            marked => marked?,
        }
    }
    let storage = repository.storage();
    if is_noted(&**storage)? {
        storage
            .remove(layout::UNCHECKED)
            .and_then(|()| storage.sync_dir(""))
            .map_err(RepositoryError::io("removing", layout::UNCHECKED))?;
    }
    Ok(losers)
}

fn losers(repository: &LocalRepository, snapshots: &[StoredSnapshot]) -> Result<Vec<SnapshotId>> {
    let mut search = Search {
        lookup: repository.lookup(),
        whole: Fingerprints::with_capacity(1024),
        lost: false,
    };
    let mut losers = Vec::new();
    for stored in snapshots {
        search.lost = false;
        if let Some(metadata) = &stored.snapshot.metadata {
            search.ask(metadata.chunks.iter().map(|(chunk, _)| (*chunk).into()))?;
        }
        walk_snapshot(
            repository.objects(),
            stored.id,
            &stored.snapshot,
            &mut search,
        )?;
        if search.lost {
            losers.push(stored.id);
        }
    }
    Ok(losers)
}

/// Looks for the first object of a snapshot that is not there.
struct Search<'a> {
    lookup: &'a Lookup,
    /// Nodes and maps below which nothing is missing.
    whole: Fingerprints,
    lost: bool,
}

impl Search<'_> {
    fn ask(&mut self, ids: impl Iterator<Item = ObjectId>) -> Result<()> {
        let ids: Vec<ObjectId> = ids.collect();
        let known = self.lookup.probe(&ids)?;
        self.lost |= known.iter().any(Option::is_none);
        Ok(())
    }
}

impl Visitor for Search<'_> {
    fn enter(&mut self, object: ObjectId) -> bool {
        !self.lost && !self.whole.contains(&object)
    }

    fn map(&mut self, _: &Place<'_>, map: &SegmentMap) -> Result<()> {
        self.ask(map.chunks().map(ObjectId::from))
    }

    fn unreadable(&mut self, _: &Place<'_>, error: RepositoryError) -> Result<()> {
        self.lost = true;
        match error.is_damage() {
            true => Ok(()),
            false => Err(error),
        }
    }

    fn leave(&mut self, object: ObjectId) {
        if !self.lost {
            self.whole.insert(&object);
        }
    }
}
