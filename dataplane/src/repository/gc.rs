//! Collection: gives back the space of chunks that no snapshot refers to, while backups go on.
//!
//! In this order, which `registry` and `pins` rely on:
//! 1. holds are inherited from now on ([`Registry::begin_collection`](super::registry::Registry));
//! 2. the packs are listed, then the snapshots, then the pins of readers: an error anywhere ends the
//!    collection, because what could not be read may not pass for empty;
//! 3. *mark*: the maps of all snapshots are walked; only meta packs are read;
//! 4. *sweep*: packs without anything live go first, so that a full disk gets room; then packs with
//!    little live data are rewritten, and go when their copies are durable and indexed.
//!
//! Nothing depends on time. A crash anywhere leaves a chunk twice at worst.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use undercroft_format::id::{ObjectId, PackId, SessionId};
use undercroft_format::pack::{
    PACK_ALIGNMENT, PackKind, RECORD_HEADER_LEN, RecordHeader, TocEntry,
};

use super::error::{RecordProblem, RepositoryError, Result};
use super::fingerprints::{Fingerprints, Sight};
use super::index::PackNumber;
use super::lookup::Located;
use super::objects::corrupt;
use super::pack_reader::{PackContents, check_record, list_packs, read_contents};
use super::packer::{Packer, PackerContext};
use super::snapshots::StoredSnapshot;
use super::walk::{Mark, walk_snapshot};
use super::{LocalRepository, Repository, layout, pins};
use crate::io::BlockFile;
use crate::progress::Progress;

/// Copies of this many packs' live bytes are made before their originals go: a collection needs no more
/// room than that, however much there is to rewrite.
const REWRITE_BATCH_PACKS: u64 = 4;
/// Room left alone by copies: the last pack of each kind, and whatever the index writes.
const COPY_RESERVE: u64 = 4 * PACK_ALIGNMENT;

/// How to collect.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct CollectOptions {
    /// Packs with less than this share of live bytes are rewritten.
    pub rewrite_below_percent: u8,
    /// Memory for marks, in bytes: with less than needed, the maps are walked several times.
    pub mark_memory_max: u64,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self {
            rewrite_below_percent: 60,
            mark_memory_max: 56 << 20,
            dry_run: false,
        }
    }
}

/// What a collection found and did.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct CollectReport {
    /// Snapshots walked, pinned ones included.
    pub snapshots: u64,
    /// References walked.
    pub references: u64,
    /// Packs found.
    pub packs: u64,
    /// Bytes of packs found.
    pub bytes_before: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
    /// Packs removed because nothing in them was live.
    pub packs_removed: u64,
    /// Packs rewritten.
    pub packs_rewritten: u64,
    /// Packs that could have gone but are held by sessions or readers.
    pub packs_held: u64,
    /// Unsealed packs and other left-overs removed.
    pub leftovers_removed: u64,
    /// Bytes given back.
    pub bytes_freed: u64,
    /// Bytes written for rewritten packs.
    pub bytes_rewritten: u64,
    /// Why rewriting ended early.
    pub rewrite_stopped: Option<String>,
    /// Milliseconds spent marking.
    pub mark_ms: u64,
}

/// Collects. The caller owns the repository.
pub fn collect(
    repository: &Arc<LocalRepository>,
    options: &CollectOptions,
    progress: &Progress,
) -> Result<CollectReport> {
    if !repository.registry().begin_collection() {
        return Err(RepositoryError::Collecting);
    }
    let result = Collector {
        repository,
        options,
        progress,
        report: CollectReport::default(),
    }
    .run();
    repository.registry().end_collection();
    result
}

struct Collector<'a> {
    repository: &'a Arc<LocalRepository>,
    options: &'a CollectOptions,
    progress: &'a Progress,
    report: CollectReport,
}

/// A pack and which of its records are live: a bit per record, so that a collection of a large
/// repository fits into memory. The table of contents is read again where it is needed.
struct Sweeping {
    id: PackId,
    number: Option<PackNumber>,
    kind: PackKind,
    len: u64,
    entries: usize,
    live: Vec<u64>,
    live_bytes: u64,
    live_count: u64,
}

impl Sweeping {
    fn new(contents: &PackContents, number: Option<PackNumber>) -> Self {
        let entries = contents.toc.entries.len();
        Self {
            id: contents.id,
            number,
            kind: contents.kind,
            len: contents.len,
            entries,
            live: vec![0; entries.div_ceil(64)],
            live_bytes: 0,
            live_count: 0,
        }
    }

    fn is_live(&self, record: usize) -> bool {
        self.live[record / 64] & 1 << (record % 64) != 0
    }

    fn set_live(&mut self, record: usize, entry: &TocEntry, live: bool) {
        if self.is_live(record) == live {
            return;
        }
        self.live[record / 64] ^= 1 << (record % 64);
        let len = u64::from(entry.info.record_len());
        if live {
            self.live_bytes += len;
            self.live_count += 1;
        } else {
            self.live_bytes -= len;
            self.live_count -= 1;
        }
    }

    /// Room that a copy of what is live takes at most: its records, their lines in a table of contents,
    /// and the padding of a pack.
    fn copy_len_max(&self) -> u64 {
        self.live_bytes + self.live_count * RECORD_HEADER_LEN as u64 + PACK_ALIGNMENT
    }
}

impl Collector<'_> {
    fn run(mut self) -> Result<CollectReport> {
        let storage = self.repository.storage();
        let listing = list_packs(&**storage)?;
        let roots = self.roots()?;
        self.report.snapshots = roots.snapshots.len() as u64;
        let mut packs = Vec::with_capacity(listing.sealed.len());
        for (id, len) in &listing.sealed {
            let number = self.repository.lookup().index().pack_number(*id);
            packs.push(Sweeping::new(&self.contents(*id)?, number));
            self.report.packs += 1;
            self.report.bytes_before += len;
        }
        self.progress.total_bytes.add(self.report.bytes_before);
        let timer = crate::clock::Stopwatch::start();
        self.mark(&roots.snapshots, &mut packs)?;
        self.report.mark_ms = timer.elapsed().as_millis() as u64;
        self.report.live_bytes = packs.iter().map(|pack| pack.live_bytes).sum();
        self.sweep(packs, roots.pinned)?;
        self.sweep_leftovers(listing.open)?;
        Ok(self.report)
    }

    fn contents(&self, id: PackId) -> Result<PackContents> {
        read_contents(
            &**self.repository.storage(),
            self.repository.config().repository,
            id,
        )
    }

    fn roots(&self) -> Result<Roots> {
        let (mut snapshots, failed) = self.repository.snapshots().read_all()?;
        if let Some((id, error)) = failed.into_iter().next() {
            return Err(RepositoryError::IncompleteSnapshot {
                id,
                source: Box::new(error),
            });
        }
        // A snapshot that is not there must not come back when its chunks are gone: whoever forgot it may
        // have been killed before the removal was durable.
        self.repository
            .storage()
            .sync_dir(layout::SNAPSHOTS)
            .map_err(RepositoryError::io("making durable", layout::SNAPSHOTS))?;
        let pins = match self.repository.root() {
            Some(root) => pins::live_pins(root)?,
            None => Vec::new(),
        };
        let pinned = !pins.is_empty();
        for pin in pins {
            if snapshots.iter().any(|stored| stored.id == pin.id) {
                continue;
            }
            let snapshot = self
                .repository
                .snapshots()
                .decode(&pin.bytes, pin.id, layout::PINS)?;
            snapshots.push(StoredSnapshot {
                id: pin.id,
                snapshot,
                protected: false,
                incomplete: false,
                locked_until: None,
            });
        }
        for stored in self.repository.registry().pinned() {
            if !snapshots.iter().any(|known| known.id == stored.id) {
                snapshots.push(stored);
            }
        }
        Ok(Roots { snapshots, pinned })
    }

    /// Marks live records, in as many passes over the maps as the memory asks for.
    fn mark(&mut self, snapshots: &[StoredSnapshot], packs: &mut [Sweeping]) -> Result<()> {
        let (mut objects, mut maps) = (0_u64, 0_u64);
        for pack in packs.iter() {
            let entries = pack.entries as u64;
            objects += entries;
            maps += if pack.kind == PackKind::Meta {
                entries
            } else {
                0
            };
        }
        let for_live = self
            .options
            .mark_memory_max
            .saturating_sub(Fingerprints::memory_for(maps));
        let passes = Fingerprints::memory_for(objects)
            .div_ceil(for_live.max(1 << 20))
            .clamp(1, 256);
        let mut twice = HashSet::new();
        for pass in 0..passes {
            let first = (pass * 256 / passes) as u8;
            let last = ((pass + 1) * 256 / passes - 1) as u8;
            // Ids are hashes: a pass has its share of them, give or take. A table that grows is there twice.
            let share = objects / passes;
            let mut mark = Mark {
                live: Fingerprints::with_capacity((share + share / 64 + 1024) as usize),
                first_bytes: first..=last,
                walked: Fingerprints::with_capacity(maps as usize),
                references: 0,
            };
            for (walked, stored) in (pass * snapshots.len() as u64..).zip(snapshots) {
                self.examined(walked, passes * snapshots.len() as u64);
                if self.progress.is_stopping() {
                    return Err(RepositoryError::Cancelled);
                }
                self.mark_snapshot(stored, &mut mark)?;
            }
            self.report.references = mark.references;
            for pack in packs.iter_mut() {
                let toc = self.contents(pack.id)?.toc;
                for (record, entry) in toc.entries.iter().enumerate() {
                    let id = entry.info.id;
                    if !mark.first_bytes.contains(&id.as_bytes()[0]) {
                        continue;
                    }
                    let sight = mark.live.sight(&id);
                    if sight == Sight::Again {
                        twice.insert(id);
                    }
                    pack.set_live(record, entry, sight != Sight::Absent);
                }
            }
        }
        self.examined(1, 1);
        self.keep_newest_copy(packs, twice)
    }

    /// Tells how far the mark is: packs count as gone through in step with the walk over the snapshots.
    fn examined(&self, walked: u64, all: u64) {
        let bytes = u128::from(self.report.bytes_before) * u128::from(walked) / u128::from(all);
        let done = &self.progress.done_bytes;
        done.add((bytes as u64).saturating_sub(done.get()));
    }

    fn mark_snapshot(&self, stored: &StoredSnapshot, mark: &mut Mark) -> Result<()> {
        if let Some(metadata) = &stored.snapshot.metadata {
            for (chunk, _) in &metadata.chunks {
                mark.mark((*chunk).into());
            }
        }
        let objects = self.repository.objects();
        if stored.incomplete {
            // `repair` has said what is lost; what is left of the snapshot is still worth keeping.
            let mut tolerant = Tolerant(mark);
            return walk_snapshot(objects, stored.id, &stored.snapshot, &mut tolerant);
        }
        walk_snapshot(objects, stored.id, &stored.snapshot, mark)
    }

    /// An object that stands in several packs is live only where the index says: the other copies are
    /// what a crash between copying and removing left.
    fn keep_newest_copy(&self, packs: &mut [Sweeping], twice: HashSet<ObjectId>) -> Result<()> {
        if twice.is_empty() {
            return Ok(());
        }
        let ids: Vec<ObjectId> = twice.iter().copied().collect();
        // Not `locate`: its tables may know another copy than the index does, and with the index's own
        // copy the object would go from the index.
        let index = self.repository.lookup().index();
        let mut places = Vec::with_capacity(ids.len());
        if index.find(&ids, &mut places).is_err() {
            return Ok(());
        }
        let swept: HashMap<PackNumber, PackId> = packs
            .iter()
            .filter_map(|pack| Some((pack.number?, pack.id)))
            .collect();
        let homes: HashMap<ObjectId, PackId> = ids
            .into_iter()
            .zip(places)
            .filter_map(|(id, place)| Some((id, *swept.get(&place?.pack)?)))
            .collect();
        for pack in packs.iter_mut() {
            let toc = self.contents(pack.id)?.toc;
            for (record, entry) in toc.entries.iter().enumerate() {
                if homes
                    .get(&entry.info.id)
                    .is_some_and(|home| *home != pack.id)
                {
                    pack.set_live(record, entry, false);
                }
            }
        }
        Ok(())
    }

    /// Objects of which a session holds one copy while the index names another: two sessions stored them
    /// at the same time. With the other copy's pack they would go from the index, although the session was
    /// promised them.
    fn promised_elsewhere(&self) -> Result<HashSet<ObjectId>> {
        let index = self.repository.lookup().index();
        let held = self.repository.registry().held(|id| index.pack_number(id));
        let mut promised = HashSet::new();
        for pack in held {
            promised.extend(index.lost(pack)?);
        }
        Ok(promised)
    }

    fn sweep(&mut self, packs: Vec<Sweeping>, pinned: bool) -> Result<()> {
        let promised = self.promised_elsewhere()?;
        let (dead, rest): (Vec<_>, Vec<_>) =
            packs.into_iter().partition(|pack| pack.live_bytes == 0);
        for pack in dead {
            if self.condemn(&pack, &promised)? {
                self.report.packs_removed += 1;
                self.report.bytes_freed += pack.len;
                self.remove(&pack)?;
            }
        }
        let threshold = u64::from(self.options.rewrite_below_percent);
        let sparse = |pack: &Sweeping| pack.live_bytes * 100 < pack.len * threshold;
        let mut rewrite = Vec::new();
        for pack in rest.into_iter().filter(sparse) {
            // A reader in another process may have looked up a place in this pack already.
            if pinned {
                self.report.packs_held += 1;
            } else if self.condemn(&pack, &promised)? {
                rewrite.push(pack);
            }
        }
        // One sparse pack alone would only be copied into another sparse pack, for ever.
        let merged: u64 = rewrite.iter().map(|pack| pack.live_bytes).sum();
        let freed: u64 = rewrite.iter().map(|pack| pack.len).sum();
        if rewrite.is_empty() || merged * 100 >= freed * threshold {
            return Ok(());
        }
        // What frees most for the room that its copies take goes first.
        rewrite.sort_by_key(|pack| pack.live_bytes * 1000 / pack.len.max(1));
        self.progress.total_bytes.add(freed);
        let batch_len = REWRITE_BATCH_PACKS * u64::from(self.repository.config().pack_len_target);
        let mut rest = rewrite.as_slice();
        while !rest.is_empty() {
            let room = self.repository.storage().free_space();
            let room = room.unwrap_or(u64::MAX).saturating_sub(COPY_RESERVE);
            let mut taken = 0;
            let fits = rest.iter().take_while(|pack| {
                taken += pack.copy_len_max();
                taken <= batch_len.min(room)
            });
            let mut count = fits.count();
            if count == 0 && rest[0].copy_len_max() > room {
                self.report.rewrite_stopped = Some("no room for copies".into());
                return Ok(());
            }
            count = count.max(1);
            let (batch, after) = rest.split_at(count);
            match self.rewrite(batch) {
                Ok(()) => rest = after,
                Err(error) if error.is_disk_full() => {
                    self.report.rewrite_stopped = Some(format!("{error}: no room for copies"));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn condemn(&mut self, pack: &Sweeping, promised: &HashSet<ObjectId>) -> Result<bool> {
        let stands_in = !promised.is_empty() && {
            let toc = self.contents(pack.id)?.toc;
            toc.entries
                .iter()
                .any(|entry| promised.contains(&entry.info.id))
        };
        let free = !stands_in && self.repository.registry().condemn(pack.id, pack.number);
        if !free {
            self.report.packs_held += 1;
        }
        Ok(free)
    }

    fn rewrite(&mut self, packs: &[Sweeping]) -> Result<()> {
        if self.options.dry_run {
            self.report.packs_rewritten += packs.len() as u64;
            let len: u64 = packs.iter().map(|pack| pack.len).sum();
            self.progress.done_bytes.add(len);
            self.report.bytes_rewritten += packs.iter().map(|pack| pack.live_bytes).sum::<u64>();
            self.report.bytes_freed += packs.iter().map(|p| p.len - p.live_bytes).sum::<u64>();
            return Ok(());
        }
        let repository = self.repository;
        let session = SessionId::from_bytes(repository.entropy().array()?);
        repository.registry().begin(session);
        let packer = Packer::start(PackerContext::new(repository, session));
        let copied = packs
            .iter()
            .try_for_each(|pack| self.copy_live(pack, &packer));
        let finished = packer.finish();
        repository.registry().end(session);
        copied?;
        let figures = finished?;
        self.report.bytes_rewritten += figures.bytes;
        for pack in packs {
            self.report.packs_rewritten += 1;
            self.progress.done_bytes.add(pack.len);
            self.report.bytes_freed += pack.len;
            self.remove(pack)?;
        }
        self.report.bytes_freed = self.report.bytes_freed.saturating_sub(figures.bytes);
        Ok(())
    }

    fn copy_live(&self, pack: &Sweeping, packer: &Packer) -> Result<()> {
        let path = layout::pack(pack.id);
        let file = self
            .repository
            .storage()
            .open(&path, false)
            .map_err(RepositoryError::io("opening", &path))?;
        let toc = self.contents(pack.id)?.toc;
        let records = toc.entries.iter().enumerate();
        for (_, entry) in records.filter(|(record, _)| pack.is_live(*record)) {
            if self.progress.is_stopping() {
                return Err(RepositoryError::Cancelled);
            }
            let record = read_record(&*file, pack.id, entry)?;
            let position = u64::from(entry.position);
            let header = RecordHeader::decode(&record, pack.id, position)
                .map_err(|error| corrupt(located(pack.id, entry), error.into()))?;
            packer.append_checked(&header, &record[RECORD_HEADER_LEN..])?;
        }
        Ok(())
    }

    /// The pack goes from the index first, so that nobody is sent to a file that is gone; a crash in
    /// between is healed when the repository is opened next.
    fn remove(&self, pack: &Sweeping) -> Result<()> {
        if self.options.dry_run {
            return Ok(());
        }
        if let Some(number) = pack.number {
            let lookup = self.repository.lookup();
            let removed = self
                .contents(pack.id)
                .map(|contents| lookup.index().remove_pack(number, &contents.toc.entries))?;
            // On a full disk the index may be unable to say so; the file goes all the same, which makes
            // the room, and opening the repository brings the index in line.
            if let Err(error) = removed {
                tracing::warn!(%error, pack = %pack.id, "the index could not forget a pack");
            }
            lookup.forget(number);
            self.repository.registry().removed(number);
        }
        self.repository.files().forget(pack.id);
        self.remove_file(&layout::pack(pack.id))
    }

    fn remove_file(&self, path: &str) -> Result<()> {
        self.repository
            .storage()
            .remove(path)
            .map_err(RepositoryError::io("removing", path))
    }

    /// What sessions that died left. All is listed before the sessions that run are counted: if there
    /// are none then, nobody will come back for what was listed.
    fn sweep_leftovers(&mut self, open: Vec<(PackId, u64)>) -> Result<()> {
        let sessions = self
            .repository
            .storage()
            .list(layout::SESSIONS)
            .map_err(RepositoryError::io("listing", layout::SESSIONS))?;
        let listing = self.repository.snapshots().list()?;
        if !self.options.dry_run {
            self.repository.snapshots().sweep_locks(&listing)?;
        }
        let temporary = listing.temporary;
        if self.repository.registry().sessions() > 0 {
            return Ok(());
        }
        let open = open
            .into_iter()
            .map(|(id, len)| (layout::open_pack(id), len));
        let sessions = sessions
            .into_iter()
            .map(|entry| (format!("{}/{}", layout::SESSIONS, entry.name), 0));
        let temporary = temporary.into_iter().map(|path| (path, 0));
        for (path, len) in open.chain(sessions).chain(temporary) {
            if !self.options.dry_run {
                match self.repository.storage().remove(&path) {
                    Ok(()) => {}
                    // It was listed while its session ran, which then finished it.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(RepositoryError::io("removing", &path)(error)),
                }
            }
            self.report.leftovers_removed += 1;
            self.report.bytes_freed += len;
        }
        Ok(())
    }
}

struct Roots {
    snapshots: Vec<StoredSnapshot>,
    /// Readers of other processes are at work.
    pinned: bool,
}

/// Marks what is there of a snapshot that lost something.
struct Tolerant<'a>(&'a mut Mark);

impl super::walk::Visitor for Tolerant<'_> {
    fn enter(&mut self, object: ObjectId) -> bool {
        self.0.enter(object)
    }

    fn map(
        &mut self,
        place: &super::walk::Place<'_>,
        map: &undercroft_format::segment::SegmentMap,
    ) -> Result<()> {
        self.0.map(place, map)
    }

    fn unreadable(&mut self, place: &super::walk::Place<'_>, error: RepositoryError) -> Result<()> {
        match error {
            RepositoryError::MissingObject { .. } => Ok(()),
            error => self.0.unreadable(place, error),
        }
    }
}

fn located(pack: PackId, entry: &TocEntry) -> Located {
    Located {
        pack,
        position: u64::from(entry.position),
        info: entry.info,
    }
}

/// Reads and checks one record of a pack.
pub fn read_record(file: &dyn BlockFile, pack: PackId, entry: &TocEntry) -> Result<Vec<u8>> {
    let mut record = vec![0; entry.info.record_len() as usize];
    let position = u64::from(entry.position);
    let problem = match file.read_at(&mut record, position) {
        Err(error) => RecordProblem::Unreadable(error.to_string()),
        Ok(got) if got < record.len() => RecordProblem::Unreadable("the pack ends early".into()),
        Ok(_) => match check_record(&record, pack, position, &entry.info) {
            Ok(_) => return Ok(record),
            Err(problem) => problem,
        },
    };
    Err(corrupt(located(pack, entry), problem))
}
