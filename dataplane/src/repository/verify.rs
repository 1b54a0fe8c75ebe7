//! The scrub of a repository: is everything that was written still there, and what does it mean if not.
//!
//! Every pack is read once, front to back, several at a time, and every byte of it is accounted for by
//! a checksum. Then the maps of all snapshots are walked, to find objects that are not there at all. With
//! `deep`, records are decoded and hashed to their ids. Packs alone are asked what is there: the index is
//! a cache, and is itself checked against the seal that its last owner left.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use undercroft_format::id::{ObjectId, PackId, SessionId, SnapshotId};
use undercroft_format::pack::{ObjectKind, PackKind};
use undercroft_format::segment::SegmentMap;
use undercroft_format::units::DiskRange;
use undercroft_format::wire::ledger::{LEDGER_LEN_MAX, Ledger};

use super::damage::{AffectedRange, Damage};
use super::error::{RepositoryError, Result};
use super::fingerprints::Fingerprints;
use super::index::{SealState, check_seal};
use super::judge::Depth;
use super::pack_reader::{list_packs, read_contents};
use super::scrubber::scrub_packs;
use super::snapshots::StoredSnapshot;
use super::walk::{Place, Visitor, walk_snapshot};
use super::{LocalRepository, Repository, layout, lock};
use crate::progress::Progress;
use crate::restore::decode::describe;

/// What to verify.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct VerifyOptions {
    /// Decode every record and hash it to its id.
    pub deep: bool,
    /// Only these snapshots are walked; all if empty. With some given, only packs that they use are read.
    pub snapshots: Vec<SnapshotId>,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct VerifyReport {
    /// Snapshots checked.
    pub snapshots: u64,
    /// Packs read.
    pub packs: u64,
    /// Records checked.
    pub records: u64,
    /// Bytes of packs read.
    pub bytes: u64,
    /// Packs left unsealed by sessions that run or died; nothing published refers to them.
    pub unsealed_packs: u64,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
    /// Which ranges of which disks that affects.
    pub affected: Vec<AffectedRange>,
}

/// Verifies. `deep` needs the key of an encrypted repository, and nothing else does.
pub fn verify(
    repository: &Arc<LocalRepository>,
    options: &VerifyOptions,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<VerifyReport> {
    let depth = Depth::of(options.deep);
    verify_at(repository, options, depth, threads, progress)
}

/// Verifies as deep as `depth` says, whatever the options say of that.
pub fn verify_at(
    repository: &Arc<LocalRepository>,
    options: &VerifyOptions,
    depth: Depth<'_>,
    threads: &rayon::ThreadPool,
    progress: &Progress,
) -> Result<VerifyReport> {
    let (snapshots, unreadable) = repository.snapshots().read_all()?;
    let mut report = VerifyReport::default();
    let selected: Vec<StoredSnapshot> = snapshots
        .into_iter()
        .filter(|stored| options.snapshots.is_empty() || options.snapshots.contains(&stored.id))
        .collect();
    report.snapshots = selected.len() as u64;
    for (id, error) in unreadable {
        report
            .damage
            .push(file_damage(&layout::snapshot(id), &error));
    }
    check_small_files(repository, &mut report.damage)?;
    let listing = list_packs(&**repository.storage())?;
    report.unsealed_packs = listing.open.len() as u64;
    let mut packs = listing.sealed;
    if !options.snapshots.is_empty() {
        let used = packs_of(repository, &selected, &packs)?;
        packs.retain(|(id, _)| used.contains(id));
    }
    let (findings, mut present) = scrub_packs(repository, &packs, depth, threads, progress)?;
    let mut scrubbed: HashSet<PackId> = findings.iter().map(|found| found.id).collect();
    for found in findings {
        report.packs += 1;
        report.bytes += found.len;
        report.records += found.records;
        report.damage.extend(found.damage);
    }
    report.affected = present.affected(repository, &selected)?;
    let mut left_packs: HashSet<PackId> = HashSet::new();
    while !report.affected.is_empty() {
        let mut others = list_packs(&**repository.storage())?.sealed;
        left_packs = others.iter().map(|(id, _)| *id).collect();
        others.retain(|(id, _)| !scrubbed.contains(id));
        if others.is_empty() {
            break;
        }
        // Collections moved records while packs were read: what is missing may stand in a pack that came
        // since. As often as there is a pack that was not looked at.
        let (found, moved) = scrub_packs(repository, &others, depth, threads, progress)?;
        scrubbed.extend(found.iter().map(|found| found.id));
        present.merge(moved);
        report.affected = present.affected(repository, &selected)?;
    }
    if !report.affected.is_empty() {
        // A snapshot forgotten meanwhile may have lost chunks to a collection, rightly so.
        let left = repository.snapshots().list()?.ids;
        report
            .affected
            .retain(|range| left.contains(&range.snapshot));
        if !report.affected.is_empty() {
            for pack in repository.lookup().index().packs()? {
                if !left_packs.contains(&pack.id) {
                    let path = layout::pack(pack.id);
                    report.damage.push(problem(&path, "the pack is gone"));
                }
            }
        }
    }
    Ok(report)
}

/// Files outside packs and snapshots: config, lock, markers, index.
fn check_small_files(repository: &LocalRepository, damage: &mut Vec<Damage>) -> Result<()> {
    let storage = repository.storage();
    if let Err(error) = super::open::read_config(&**storage, "the repository") {
        damage.push(file_damage(layout::CONFIG, &error));
    }
    let listing = repository.snapshots().list()?;
    let protected = listing.protected.iter().map(|id| layout::protected(*id));
    let incomplete = listing.incomplete.iter().map(|id| layout::incomplete(*id));
    for path in protected.chain(incomplete) {
        if !repository.snapshots().marker_is_intact(&path) {
            damage.push(problem(&path, "the marker's content is damaged"));
        }
    }
    for id in listing.locked {
        if !repository.snapshots().lock_is_intact(id) {
            let text = "the retention lock is damaged: it locks for good";
            damage.push(problem(&layout::locked(id), text));
        }
    }
    let unchecked = layout::UNCHECKED;
    if super::loss::is_noted(&**storage)? && !repository.snapshots().marker_is_intact(unchecked) {
        damage.push(problem(unchecked, "the marker's content is damaged"));
    }
    check_sessions(repository, damage)?;
    if let Ok(content) = storage.read(layout::LOCK, 4096)
        && !lock::content_is_intact(&content)
    {
        damage.push(problem(layout::LOCK, "the content is damaged"));
    }
    if let Some(root) = repository.root() {
        let dir = root.join(layout::INDEX);
        let state = match check_seal(&dir) {
            // An owner may have broken the seal after it was read.
            Ok(SealState::Damaged(_)) => check_seal(&dir),
            state => state,
        };
        match state {
            Ok(SealState::Damaged(files)) => {
                for file in files {
                    let path = format!("{}/{file}", layout::INDEX);
                    damage.push(problem(
                        &path,
                        "not what its last owner left: run rebuild-index",
                    ));
                }
            }
            Ok(SealState::Clean | SealState::Open) => {}
            Err(error) => damage.push(problem(layout::INDEX, &describe(&error))),
        }
    }
    Ok(())
}

/// A session's file says its id, which is its name.
fn check_sessions(repository: &LocalRepository, damage: &mut Vec<Damage>) -> Result<()> {
    let storage = repository.storage();
    let entries = storage
        .list(layout::SESSIONS)
        .map_err(RepositoryError::io("listing", layout::SESSIONS))?;
    for entry in entries {
        let Ok(id) = entry.name.parse::<SessionId>() else {
            continue;
        };
        let path = layout::session(id);
        match storage.read(&path, LEDGER_LEN_MAX) {
            Ok(content) if content == id.to_string().as_bytes() => {}
            Ok(content) if Ledger::decode(&content, 0).is_ok() => {}
            // It ended since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            _ => damage.push(problem(&path, "the content is damaged")),
        }
    }
    Ok(())
}

fn file_damage(path: &str, error: &RepositoryError) -> Damage {
    problem(path, &describe(error))
}

fn problem(path: &str, text: &str) -> Damage {
    Damage {
        path: path.to_owned(),
        position: None,
        problem: text.to_owned(),
    }
}

/// The packs that hold what these snapshots refer to. Meta packs are all taken: they are few.
fn packs_of(
    repository: &Arc<LocalRepository>,
    snapshots: &[StoredSnapshot],
    packs: &[(PackId, u64)],
) -> Result<HashSet<PackId>> {
    struct Used<'a> {
        repository: &'a LocalRepository,
        packs: HashSet<PackId>,
        seen: Fingerprints,
    }
    impl Visitor for Used<'_> {
        fn enter(&mut self, object: ObjectId) -> bool {
            self.seen.insert(&object)
        }

        fn map(&mut self, _: &Place<'_>, map: &SegmentMap) -> Result<()> {
            let ids: Vec<ObjectId> = map.chunks().map(ObjectId::from).collect();
            let located = self.repository.lookup().locate(&ids)?;
            self.packs
                .extend(located.iter().flatten().map(|located| located.pack));
            Ok(())
        }

        fn unreadable(&mut self, _: &Place<'_>, _: RepositoryError) -> Result<()> {
            Ok(())
        }
    }
    let mut used = Used {
        repository,
        packs: HashSet::new(),
        seen: Fingerprints::with_capacity(1024),
    };
    for stored in snapshots {
        walk_snapshot(repository.objects(), stored.id, &stored.snapshot, &mut used)?;
        if let Some(metadata) = &stored.snapshot.metadata {
            let ids: Vec<ObjectId> = metadata.chunks.iter().map(|(id, _)| (*id).into()).collect();
            let located = repository.lookup().locate(&ids)?;
            used.packs
                .extend(located.iter().flatten().map(|located| located.pack));
        }
    }
    for (id, _) in packs {
        let contents = read_contents(&**repository.storage(), repository.config().repository, *id);
        if contents.map_or(true, |contents| contents.kind == PackKind::Meta) {
            used.packs.insert(*id);
        }
    }
    Ok(used.packs)
}

/// Which objects have a good record somewhere.
pub struct Presence {
    /// What each scrub found good.
    good: Vec<Fingerprints>,
    /// Nodes and maps below which everything is present: need not be looked at again.
    complete: Fingerprints,
}

impl Presence {
    /// The objects that a scrub of all packs found good.
    pub fn new(good: Fingerprints) -> Self {
        Self {
            good: vec![good],
            complete: Fingerprints::with_capacity(1024),
        }
    }

    /// Adds what another scrub found good.
    fn merge(&mut self, other: Self) {
        self.good.extend(other.good);
    }

    fn has(&self, id: ObjectId) -> bool {
        self.good.iter().any(|good| good.contains(&id))
    }

    /// The ranges of the disks of `snapshots` that cannot be restored.
    pub fn affected(
        &mut self,
        repository: &LocalRepository,
        snapshots: &[StoredSnapshot],
    ) -> Result<Vec<AffectedRange>> {
        let mut affected = Vec::new();
        for stored in snapshots {
            if let Some(metadata) = &stored.snapshot.metadata
                && metadata
                    .chunks
                    .iter()
                    .any(|(id, _)| !self.has((*id).into()))
            {
                affected.push(AffectedRange {
                    snapshot: stored.id,
                    vm: stored.snapshot.vm.clone(),
                    disk: String::new(),
                    range: DiskRange::new(0, metadata.len),
                    problem: format!("the VM's metadata {} is damaged", metadata.name),
                });
            }
            let mut search = Search {
                presence: self,
                affected: &mut affected,
                problems: 0,
                entered: Vec::new(),
            };
            walk_snapshot(
                repository.objects(),
                stored.id,
                &stored.snapshot,
                &mut search,
            )?;
        }
        Ok(affected)
    }
}

struct Search<'a> {
    presence: &'a mut Presence,
    affected: &'a mut Vec<AffectedRange>,
    /// Problems met so far, and how many those were when each of the nodes and maps around was entered.
    problems: u64,
    entered: Vec<u64>,
}

impl Search<'_> {
    fn push(&mut self, place: &Place<'_>, range: DiskRange, problem: String) {
        self.problems += 1;
        let disk = &place.snapshot.disks[place.disk].label;
        if let Some(last) = self.affected.last_mut()
            && last.snapshot == place.id
            && last.disk == *disk
            && last.range.end == range.start
        {
            last.range.end = range.end;
            return;
        }
        self.affected.push(AffectedRange {
            snapshot: place.id,
            vm: place.snapshot.vm.clone(),
            disk: disk.clone(),
            range,
            problem,
        });
    }
}

impl Visitor for Search<'_> {
    fn enter(&mut self, object: ObjectId) -> bool {
        let enters = !self.presence.complete.contains(&object);
        if enters {
            self.entered.push(self.problems);
        }
        enters
    }

    fn leave(&mut self, object: ObjectId) {
        if self.entered.pop() == Some(self.problems) {
            self.presence.complete.insert(&object);
        }
    }

    fn map(&mut self, place: &Place<'_>, map: &SegmentMap) -> Result<()> {
        let start = place.range().start;
        for (at, extent) in map.placed() {
            if let undercroft_format::extent::Extent::Data { chunk, len, .. } = extent
                && !self.presence.has((*chunk).into())
            {
                let from = start + u64::from(at);
                let error = RepositoryError::MissingObject {
                    kind: ObjectKind::Chunk,
                    id: (*chunk).into(),
                };
                let range = DiskRange::new(from, from + u64::from(*len));
                self.push(place, range, format!("{error}, or is damaged"));
            }
        }
        Ok(())
    }

    fn unreadable(&mut self, place: &Place<'_>, error: RepositoryError) -> Result<()> {
        self.push(place, place.range(), describe(&error));
        Ok(())
    }
}
