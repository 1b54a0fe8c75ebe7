//! Repair: takes what is damaged out of service, so that the next backup sends it again.
//!
//! Packs are the truth, so a damaged record cannot just be forgotten by the index: a rebuild would find
//! it again. The good records of a damaged pack are copied to a new one, and the old file moves to
//! `damaged/`, where nothing looks. Snapshots that lost something are marked, so that an increment on
//! one of them becomes a full read.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use undercroft_format::id::{PackId, SessionId, SnapshotId};
use undercroft_format::pack::{RECORD_HEADER_LEN, RecordHeader};

use super::damage::{AffectedRange, Damage};
use super::error::{RepositoryError, Result};
use super::gc::read_record;
use super::judge::Depth;
use super::pack_reader::list_packs;
use super::packer::{Packer, PackerContext};
use super::scrub::PackFindings;
use super::scrubber::scrub_packs;
use super::{LocalRepository, Repository, layout, loss};
use crate::progress::Progress;

/// What a repair did.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct RepairReport {
    /// Damage found.
    pub damage: Vec<Damage>,
    /// Packs whose good records were copied to new packs; the old file is in `damaged/`.
    pub packs_replaced: u64,
    /// Records that are lost until a backup sends them again.
    pub records_lost: u64,
    /// Snapshot files that cannot be read; they are in `damaged/`.
    pub snapshots_removed: Vec<SnapshotId>,
    /// Snapshots whose damaged mark of protection was written anew.
    pub markers_rewritten: Vec<SnapshotId>,
    /// Snapshots that lost something.
    pub snapshots_incomplete: Vec<SnapshotId>,
    /// Snapshots marked as incomplete earlier that are whole again.
    pub snapshots_whole_again: Vec<SnapshotId>,
    /// What cannot be restored now.
    pub affected: Vec<AffectedRange>,
}

/// Repairs. The caller owns the repository. `deep` decodes every record, which needs the key of an
/// encrypted repository.
pub fn repair(
    repository: &Arc<LocalRepository>,
    deep: bool,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<RepairReport> {
    repair_at(repository, Depth::of(deep), threads, progress)
}

/// Repairs what a scrub as deep as `depth` finds.
pub fn repair_at(
    repository: &Arc<LocalRepository>,
    depth: Depth<'_>,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<RepairReport> {
    let mut report = RepairReport::default();
    forget_lost_packs(repository, &mut report)?;
    let packs = list_packs(&**repository.storage())?.sealed;
    let (findings, mut present) = scrub_packs(repository, &packs, depth, threads, progress)?;
    let damaged: Vec<&PackFindings> = findings.iter().filter(|f| !f.damage.is_empty()).collect();
    for found in &damaged {
        report.damage.extend(found.damage.iter().cloned());
        report.records_lost += found.bad;
    }
    if !damaged.is_empty() {
        replace(repository, &damaged)?;
        report.packs_replaced = damaged.len() as u64;
    }
    let (snapshots, unreadable) = repository.snapshots().read_all()?;
    for (id, error) in unreadable {
        if error.is_damage() {
            let path = layout::snapshot(id);
            report.damage.push(Damage {
                path: path.clone(),
                position: None,
                problem: crate::restore::decode::describe(&error),
            });
            set_aside(
                repository,
                &path,
                layout::SNAPSHOTS,
                &format!("snapshot-{id}"),
            )?;
            report.snapshots_removed.push(id);
        }
    }
    mend_markers(repository, &mut report)?;
    report.affected = present.affected(repository, &snapshots)?;
    for stored in snapshots {
        let is_affected = report
            .affected
            .iter()
            .any(|range| range.snapshot == stored.id);
        if is_affected {
            report.snapshots_incomplete.push(stored.id);
        } else if stored.incomplete {
            report.snapshots_whole_again.push(stored.id);
        }
        if is_affected || stored.incomplete {
            repository
                .snapshots()
                .mark_incomplete(stored.id, is_affected)?;
        }
    }
    Ok(report)
}

/// Takes packs that are gone out of the index, as whoever opens the repository does: while it knows them, what was in
/// them is taken for stored, and no backup sends it again.
fn forget_lost_packs(repository: &LocalRepository, report: &mut RepairReport) -> Result<()> {
    let index = repository.lookup().index();
    // Packs enter the index after their files are there.
    let known = index.packs()?;
    let listed = list_packs(&**repository.storage())?.sealed;
    let present: HashSet<PackId> = listed.iter().map(|(id, _)| *id).collect();
    let mut is_noted = false;
    for pack in known.iter().filter(|pack| !present.contains(&pack.id)) {
        // A collection takes a pack from the index before its file goes.
        let Some(number) = index.pack_number(pack.id) else {
            continue;
        };
        if !is_noted {
            loss::note_loss(&**repository.storage())?;
            is_noted = true;
        }
        let entries = index.entries_of(number)?;
        index.remove_pack(number, &entries)?;
        repository.lookup().forget(number);
        repository.files().forget(pack.id);
        report.records_lost += entries.len() as u64;
        report.damage.push(Damage {
            path: layout::pack(pack.id),
            position: None,
            problem: "the pack is gone".into(),
        });
    }
    if is_noted {
        loss::mark_losers(repository)?;
    }
    Ok(())
}

/// Writes damaged marks of protection anew: a mark counts by its presence, whatever it says. A damaged lock
/// is told of and stays: nobody knows any more when it ends.
fn mend_markers(repository: &LocalRepository, report: &mut RepairReport) -> Result<()> {
    let snapshots = repository.snapshots();
    let listing = snapshots.list()?;
    for id in listing.locked {
        if !snapshots.lock_is_intact(id) {
            report.damage.push(Damage {
                path: layout::locked(id),
                position: None,
                problem: "the retention lock is damaged: it locks for good".into(),
            });
        }
    }
    for id in listing.protected {
        let path = layout::protected(id);
        if snapshots.marker_is_intact(&path) {
            continue;
        }
        report.damage.push(Damage {
            path,
            position: None,
            problem: "the marker's content is damaged".into(),
        });
        match snapshots.protect(id, true) {
            Ok(()) => report.markers_rewritten.push(id),
            // The mark of a snapshot that is gone protects nothing.
            Err(RepositoryError::NoSuchSnapshot { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies the good records of damaged packs to new ones, then takes the old files out of service.
fn replace(repository: &Arc<LocalRepository>, damaged: &[&PackFindings]) -> Result<()> {
    let session = SessionId::from_bytes(repository.entropy().array()?);
    repository.registry().begin(session);
    let packer = Packer::start(PackerContext::new(repository, session));
    let copied = damaged
        .iter()
        .try_for_each(|found| copy_good(repository, found, &packer));
    let finished = packer.finish();
    repository.registry().end(session);
    copied?;
    finished?;
    let index = repository.lookup().index();
    for found in damaged {
        if let Some(number) = index.pack_number(found.id) {
            let entries = index.entries_of(number)?;
            index.remove_pack(number, &entries)?;
            repository.lookup().forget(number);
        }
        repository.files().forget(found.id);
        let (path, dir) = (layout::pack(found.id), layout::pack_dir(found.id));
        set_aside(repository, &path, &dir, &format!("pack-{}", found.id))?;
    }
    Ok(())
}

fn copy_good(repository: &LocalRepository, found: &PackFindings, packer: &Packer) -> Result<()> {
    if found.good.is_empty() {
        return Ok(());
    }
    let path = layout::pack(found.id);
    let file = repository
        .storage()
        .open(&path, false)
        .map_err(RepositoryError::io("opening", &path))?;
    for entry in &found.good {
        let record = read_record(&*file, found.id, entry)?;
        let header = RecordHeader::decode(&record, found.id, u64::from(entry.position))
            .map_err(RepositoryError::damaged(&path))?;
        packer.append_checked(&header, &record[RECORD_HEADER_LEN..])?;
    }
    Ok(())
}

fn set_aside(repository: &LocalRepository, path: &str, dir: &str, name: &str) -> Result<()> {
    let storage = repository.storage();
    storage
        .rename(path, &format!("{}/{name}", layout::DAMAGED))
        .and_then(|()| storage.sync_dir(layout::DAMAGED))
        .and_then(|()| storage.sync_dir(dir))
        .map_err(RepositoryError::io("setting aside", path))
}
