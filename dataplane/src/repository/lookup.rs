//! Lookups: which objects the repository has, and where.
//!
//! The index's RAM table names a pack that probably holds an id; the pack's table of contents, kept in
//! a bounded cache, settles it. A stream of duplicates stays within few packs, so that it costs one read
//! per pack and not one per chunk. Single ids are settled by the index itself.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::id::{ObjectId, PackId, RepositoryId};
use undercroft_format::pack::{RecordInfo, TocEntry};

use super::error::Result;
use super::index::{ChunkIndex, PackNumber};
use super::pack_reader::{list_packs, read_contents};
use crate::io::Storage;

/// Tables of contents kept in memory: at 1,500 entries of 56 bytes each about 10 MiB.
const TABLES_MAX: usize = 128;
/// A table is read when at least this many ids of a batch are said to be in its pack: reading it costs
/// about as much as this many lookups in the index.
const TABLE_PAYS_AT: usize = 8;
/// Tables that every lookup looks into first.
const RECENT_TABLES: usize = 8;
/// Tables that one call reads before it leaves the rest to the index.
const TABLES_PER_CALL_MAX: usize = 16;

/// Where an object's record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The pack.
    pub pack: PackId,
    /// Position of the record's header.
    pub position: u64,
    /// What it is.
    pub info: RecordInfo,
}

/// Answers lookups for all sessions and readers of an open repository.
pub struct Lookup {
    storage: Arc<dyn Storage>,
    repository: RepositoryId,
    index: Arc<dyn ChunkIndex>,
    tables: Mutex<HashMap<PackNumber, Arc<Table>>>,
    /// Tables that answered last, the latest first.
    recent: Mutex<Recent>,
    /// Packs that the index does not know, read when something was missing. Only readers need it: an
    /// owner brings the index up to date when it opens the repository.
    overlay: Mutex<Option<Arc<HashMap<ObjectId, Located>>>>,
    overlay_allowed: bool,
}

/// Tables that answered last. A lookup works on a copy and puts it back only if no pack was forgotten
/// meanwhile, because the copy may have that pack's table.
#[derive(Default)]
struct Recent {
    tables: Vec<Arc<Table>>,
    packs_forgotten: u64,
}

/// The entries of one pack, sorted by id.
struct Table {
    pack: PackId,
    entries: Vec<TocEntry>,
}

impl Table {
    fn entry(&self, id: &ObjectId) -> Option<&TocEntry> {
        let place = self.entries.binary_search_by_key(id, |entry| entry.info.id);
        place.ok().map(|place| &self.entries[place])
    }

    fn located(&self, id: &ObjectId) -> Option<Located> {
        self.entry(id).map(|entry| Located {
            pack: self.pack,
            position: u64::from(entry.position),
            info: entry.info,
        })
    }
}

impl Lookup {
    /// Lookups in `index`. A reader beside an owner passes `overlay_allowed`.
    pub fn new(
        storage: Arc<dyn Storage>,
        repository: RepositoryId,
        index: Arc<dyn ChunkIndex>,
        overlay_allowed: bool,
    ) -> Self {
        Self {
            storage,
            repository,
            index,
            tables: Mutex::default(),
            recent: Mutex::default(),
            overlay: Mutex::default(),
            overlay_allowed,
        }
    }

    /// The index behind.
    pub fn index(&self) -> &Arc<dyn ChunkIndex> {
        &self.index
    }

    /// For each id the pack that holds it, or `None`.
    pub fn probe(&self, ids: &[ObjectId]) -> Result<Vec<Option<PackNumber>>> {
        let mut candidates = Vec::with_capacity(ids.len());
        self.index.candidates(ids, &mut candidates)?;
        let mut per_pack: HashMap<PackNumber, usize> = HashMap::new();
        for pack in candidates.iter().flatten() {
            *per_pack.entry(*pack).or_default() += 1;
        }
        let mut tables: HashMap<PackNumber, Arc<Table>> = HashMap::new();
        for (pack, hits) in per_pack {
            if let Some(table) = self.table(pack, hits >= TABLE_PAYS_AT) {
                tables.insert(pack, table);
            }
        }
        let mut answers = vec![None; ids.len()];
        let mut doubtful = Vec::new();
        for (place, (id, candidate)) in ids.iter().zip(&candidates).enumerate() {
            let Some(pack) = candidate else { continue };
            match tables.get(pack) {
                Some(table) if table.entry(id).is_some() => answers[place] = Some(*pack),
                // Another id with the same fingerprint, or no table: the index knows.
                _ => doubtful.push(place),
            }
        }
        if !doubtful.is_empty() {
            let asked: Vec<ObjectId> = doubtful.iter().map(|place| ids[*place]).collect();
            let mut places = Vec::with_capacity(asked.len());
            self.index.find(&asked, &mut places)?;
            for (place, found) in doubtful.into_iter().zip(places) {
                answers[place] = found
                    .map(|found| found.pack)
                    .filter(|pack| self.index.pack(*pack).is_some());
            }
        }
        Ok(answers)
    }

    /// The table of a pack, from the cache or, if it pays, from the pack. A pack whose table cannot be
    /// read gives `None`: the index then answers, and whoever reads the record meets the damage.
    fn table(&self, number: PackNumber, read: bool) -> Option<Arc<Table>> {
        if let Some(table) = self.tables.lock().get(&number) {
            return Some(table.clone());
        }
        if !read {
            return None;
        }
        let pack = self.index.pack(number)?;
        let contents = read_contents(&*self.storage, self.repository, pack.id).ok()?;
        let mut entries = contents.toc.entries;
        entries.sort_unstable_by_key(|entry| entry.info.id);
        let table = Arc::new(Table {
            pack: pack.id,
            entries,
        });
        let mut tables = self.tables.lock();
        if tables.len() >= TABLES_MAX {
            tables.clear();
        }
        tables.insert(number, table.clone());
        Some(table)
    }

    /// Where the records of `ids` stand, or `None`. Made for the ids of one map: most of them lie in
    /// few packs, whose tables answer for all of them once one id has led there.
    pub fn locate(&self, ids: &[ObjectId]) -> Result<Vec<Option<Located>>> {
        let (mut recent, packs_forgotten) = {
            let recent = self.recent.lock();
            (recent.tables.clone(), recent.packs_forgotten)
        };
        let mut located: Vec<Option<Located>> = ids
            .iter()
            .map(|id| recent.iter().find_map(|table| table.located(id)))
            .collect();
        let mut tables_read = 0;
        while tables_read < TABLES_PER_CALL_MAX
            && located.iter().filter(|place| place.is_none()).count() >= TABLE_PAYS_AT
        {
            let first = located
                .iter()
                .position(Option::is_none)
                .expect("some are missing");
            let mut place = Vec::new();
            self.index.find(&ids[first..=first], &mut place)?;
            let Some(table) = place[0].and_then(|place| self.table(place.pack, true)) else {
                break;
            };
            for (id, place) in ids.iter().zip(&mut located) {
                *place = place.or_else(|| table.located(id));
            }
            if located[first].is_none() {
                break;
            }
            recent.retain(|known| known.pack != table.pack);
            recent.insert(0, table);
            recent.truncate(RECENT_TABLES);
            tables_read += 1;
        }
        if tables_read > 0 {
            let mut known = self.recent.lock();
            if known.packs_forgotten == packs_forgotten {
                known.tables = recent;
            }
        }
        self.locate_rest(ids, &mut located)?;
        Ok(located)
    }

    /// Asks the index, and a reader's overlay, for what no table answered.
    fn locate_rest(&self, ids: &[ObjectId], located: &mut [Option<Located>]) -> Result<()> {
        let missing: Vec<usize> = (0..ids.len())
            .filter(|place| located[*place].is_none())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let asked: Vec<ObjectId> = missing.iter().map(|place| ids[*place]).collect();
        let mut found = Vec::with_capacity(asked.len());
        self.index.find(&asked, &mut found)?;
        for (place, found) in missing.iter().zip(found) {
            located[*place] = found.and_then(|found| {
                Some(Located {
                    pack: self.index.pack(found.pack)?.id,
                    position: u64::from(found.position),
                    info: found.info,
                })
            });
        }
        if self.overlay_allowed && missing.iter().any(|place| located[*place].is_none()) {
            let overlay = self.overlay()?;
            for place in missing {
                located[place] = located[place].or_else(|| overlay.get(&ids[place]).copied());
            }
        }
        Ok(())
    }

    /// What packs hold that the index does not know: left by an owner that was killed before it could
    /// tell the index, or sealed by one that runs right now.
    fn overlay(&self) -> Result<Arc<HashMap<ObjectId, Located>>> {
        let mut overlay = self.overlay.lock();
        if let Some(known) = &*overlay {
            return Ok(known.clone());
        }
        let indexed: std::collections::HashSet<PackId> = self
            .index
            .packs()?
            .into_iter()
            .map(|pack| pack.id)
            .collect();
        let mut map = HashMap::new();
        for (id, _) in list_packs(&*self.storage)?.sealed {
            if indexed.contains(&id) {
                continue;
            }
            if let Ok(contents) = read_contents(&*self.storage, self.repository, id) {
                for entry in contents.toc.entries {
                    let located = Located {
                        pack: id,
                        position: u64::from(entry.position),
                        info: entry.info,
                    };
                    map.insert(entry.info.id, located);
                }
            }
        }
        let map = Arc::new(map);
        *overlay = Some(map.clone());
        Ok(map)
    }

    /// Forgets a pack that is about to be removed.
    pub fn forget(&self, number: PackNumber) {
        self.tables.lock().remove(&number);
        let mut recent = self.recent.lock();
        recent.tables.clear();
        recent.packs_forgotten += 1;
    }
}
