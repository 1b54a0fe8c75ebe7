//! Lookups: which objects the repository has, and where.
//!
//! The index's RAM table names a pack that probably holds an id; the pack's table of contents, kept in
//! a bounded cache, settles it. A stream of duplicates stays within few packs, so that it costs one read
//! per pack and not one per chunk. Single ids are settled by the index itself.
//!
//! Beyond the memory cap, RAM tells no packs any more. Then the tables that answered last are asked first,
//! and of what they do not have a few ids are looked up in the index, which leads to the next tables.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::id::{ObjectId, PackId, RepositoryId};
use undercroft_format::pack::{RecordInfo, TocEntry};

use super::error::Result;
use super::index::{Candidate, ChunkIndex, PackNumber};
use super::pack_reader::{list_packs, read_contents};
use crate::io::Storage;

/// Entries of the tables of contents kept in memory, 64 bytes each: 12 MiB, more than 300 usual packs.
const TABLE_ENTRIES_MAX: usize = 192 << 10;
/// A table is read when at least this many ids of a batch are said to be in its pack: reading it costs
/// about as much as this many lookups in the index.
const TABLE_PAYS_AT: usize = 8;
/// Tables that every lookup looks into first.
const RECENT_TABLES: usize = 8;
/// Tables that one call reads before it leaves the rest to the index.
const TABLES_PER_CALL_MAX: usize = 16;
/// Ids that are looked up to find the packs of many. A pack that is met once among so many holds too few
/// of them to have its table read.
const SAMPLE: usize = 16;

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

/// The entries of one pack.
struct Table {
    number: PackNumber,
    pack: PackId,
    entries: Vec<TocEntry>,
    /// For each entry the first four bytes of its id and, below them, its place among the entries; sorted.
    /// Whole entries take several times as long to sort.
    by_id: Vec<u64>,
    /// What of it stands in other packs now, or is not to be offered any more; by id.
    lost: Vec<ObjectId>,
    /// The index's count of losses when `lost` was read.
    losses: u64,
}

/// The first bytes of an id, above a place among the entries of a pack, of which there are fewer than 2^32.
fn id_key(id: &ObjectId, place: usize) -> u64 {
    let [a, b, c, d, ..] = *id.as_bytes();
    u64::from(u32::from_be_bytes([a, b, c, d])) << 32 | place as u64
}

fn sorted_by_id(entries: &[TocEntry]) -> Vec<u64> {
    let entries = entries.iter().enumerate();
    let mut keys: Vec<u64> = entries
        .map(|(place, entry)| id_key(&entry.info.id, place))
        .collect();
    keys.sort_unstable();
    keys
}

impl Table {
    fn entry(&self, id: &ObjectId) -> Option<&TocEntry> {
        let first = self.by_id.partition_point(|key| *key < id_key(id, 0));
        self.by_id[first..]
            .iter()
            .take_while(|key| **key >> 32 == id_key(id, 0) >> 32)
            .map(|key| &self.entries[*key as u32 as usize])
            .find(|entry| entry.info.id == *id)
    }

    /// Whether the pack is where the index has the object.
    fn holds(&self, id: &ObjectId) -> bool {
        self.entry(id).is_some() && self.lost.binary_search(id).is_err()
    }

    /// Whether the pack has lost nothing since this was read, nor gone.
    fn is_current(&self, index: &dyn ChunkIndex) -> bool {
        index.pack(self.number).is_some() && index.losses(self.number) == self.losses
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
    ///
    /// Never another pack than the index has it in, as of a moment during the call: when packs with older
    /// copies go, nobody may rely on those.
    pub fn probe(&self, ids: &[ObjectId]) -> Result<Vec<Option<PackNumber>>> {
        let mut candidates = Vec::with_capacity(ids.len());
        self.index.candidates(ids, &mut candidates)?;
        let mut probe = Probe {
            index: &*self.index,
            ids,
            answers: vec![None; ids.len()],
            open: Vec::new(),
        };
        self.ask_named(&mut probe, &candidates);
        let unsure = candidates.iter().enumerate();
        let unsure = unsure.filter(|(_, candidate)| **candidate == Candidate::Unsure);
        let named = std::mem::replace(&mut probe.open, unsure.map(|(place, _)| place).collect());
        if !probe.open.is_empty() {
            self.ask_recent(&mut probe)?;
        }
        probe.open.extend(named);
        probe.ask_index(probe.open.len())?;
        Ok(probe.answers)
    }

    /// Settles ids whose pack RAM named. Another id with the same fingerprint, or a table that it does not
    /// pay to read, leaves an id open.
    fn ask_named(&self, probe: &mut Probe<'_>, candidates: &[Candidate]) {
        let mut per_pack: HashMap<PackNumber, Vec<usize>> = HashMap::new();
        for (place, candidate) in candidates.iter().enumerate() {
            if let Candidate::In(pack) = candidate {
                per_pack.entry(*pack).or_default().push(place);
            }
        }
        for (pack, places) in per_pack {
            let table = self.table(pack, places.len() >= TABLE_PAYS_AT);
            for place in places {
                match &table {
                    Some(table) if table.entry(&probe.ids[place]).is_some() => {
                        probe.answers[place] = Some(pack);
                    }
                    _ => probe.open.push(place),
                }
            }
        }
        probe.open.sort_unstable();
    }

    /// Settles open ids by the tables that answered last, and by those that a sample of the rest leads to,
    /// as long as that settles enough.
    fn ask_recent(&self, probe: &mut Probe<'_>) -> Result<()> {
        let (mut recent, packs_forgotten) = self.recent();
        recent.iter().for_each(|table| {
            probe.ask_table(table);
        });
        let mut read = 0;
        while probe.open.len() > SAMPLE && read < TABLES_PER_CALL_MAX {
            let sampled = probe.ask_sample()?;
            let (mut settled, mut pays_at) = (0, 0);
            for (pack, hits) in sampled {
                let Some(table) = self.table(pack, hits > 1) else {
                    continue;
                };
                settled += probe.ask_table(&table);
                pays_at += TABLE_PAYS_AT;
                read += 1;
                to_front(&mut recent, table);
            }
            if settled <= pays_at {
                break;
            }
        }
        if read > 0 {
            self.set_recent(recent, packs_forgotten);
        }
        Ok(())
    }

    /// The table of a pack, from the cache or, if it pays, from the pack. A pack whose table cannot be
    /// read gives `None`: the index then answers, and whoever reads the record meets the damage.
    fn table(&self, number: PackNumber, read: bool) -> Option<Arc<Table>> {
        if let Some(table) = self.tables.lock().get(&number)
            && table.is_current(&*self.index)
        {
            return Some(table.clone());
        }
        if !read {
            return None;
        }
        let pack = self.index.pack(number)?;
        // Before what was lost is read: a loss in between makes the table outdated, not wrong.
        let losses = self.index.losses(number);
        let lost = self.index.lost(number).ok()?;
        let contents = read_contents(&*self.storage, self.repository, pack.id).ok()?;
        let entries = contents.toc.entries;
        let by_id = sorted_by_id(&entries);
        let table = Arc::new(Table {
            number,
            pack: pack.id,
            entries,
            by_id,
            lost,
            losses,
        });
        let mut tables = self.tables.lock();
        let kept: usize = tables.values().map(|table| table.entries.len()).sum();
        if kept + table.entries.len() > TABLE_ENTRIES_MAX {
            tables.clear();
        }
        tables.insert(number, table.clone());
        Some(table)
    }

    fn recent(&self) -> (Vec<Arc<Table>>, u64) {
        let recent = self.recent.lock();
        (recent.tables.clone(), recent.packs_forgotten)
    }

    fn set_recent(&self, tables: Vec<Arc<Table>>, packs_forgotten: u64) {
        let mut known = self.recent.lock();
        if known.packs_forgotten == packs_forgotten {
            known.tables = tables;
        }
    }

    /// Where the records of `ids` stand, or `None`. Made for the ids of one map: most of them lie in
    /// few packs, whose tables answer for all of them once one id has led there.
    pub fn locate(&self, ids: &[ObjectId]) -> Result<Vec<Option<Located>>> {
        let (mut recent, packs_forgotten) = self.recent();
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
            to_front(&mut recent, table);
            tables_read += 1;
        }
        if tables_read > 0 {
            self.set_recent(recent, packs_forgotten);
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

fn to_front(recent: &mut Vec<Arc<Table>>, table: Arc<Table>) {
    recent.retain(|known| known.number != table.number);
    recent.insert(0, table);
    recent.truncate(RECENT_TABLES);
}

/// A batch of ids on their way to answers.
struct Probe<'a> {
    index: &'a dyn ChunkIndex,
    ids: &'a [ObjectId],
    answers: Vec<Option<PackNumber>>,
    /// Places of the ids that have no answer yet.
    open: Vec<usize>,
}

impl Probe<'_> {
    /// Settles what the table has. Returns how many.
    fn ask_table(&mut self, table: &Table) -> usize {
        if self.open.is_empty() || !table.is_current(self.index) {
            return 0;
        }
        let before = self.open.len();
        let (ids, answers) = (self.ids, &mut self.answers);
        self.open.retain(|place| {
            let holds = table.holds(&ids[*place]);
            if holds {
                answers[*place] = Some(table.number);
            }
            !holds
        });
        before - self.open.len()
    }

    /// Settles a sample of the open ids, evenly spread, by the index, and counts their packs.
    fn ask_sample(&mut self) -> Result<Vec<(PackNumber, usize)>> {
        let (open, step) = (self.open.len(), self.open.len().div_ceil(SAMPLE));
        let (sample, rest) = (0..open).partition::<Vec<_>, _>(|at| at % step == 0);
        let order = sample.iter().chain(&rest);
        self.open = order.map(|at| self.open[*at]).collect();
        let sampled = self.open[..sample.len()].to_vec();
        self.ask_index(sample.len())?;
        let mut packs: HashMap<PackNumber, usize> = HashMap::new();
        for pack in sampled.iter().filter_map(|place| self.answers[*place]) {
            *packs.entry(pack).or_default() += 1;
        }
        Ok(packs.into_iter().collect())
    }

    /// Settles the first `count` open ids by the index.
    fn ask_index(&mut self, count: usize) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let asked: Vec<ObjectId> = self.open[..count]
            .iter()
            .map(|place| self.ids[*place])
            .collect();
        let mut places = Vec::with_capacity(count);
        self.index.find(&asked, &mut places)?;
        for (place, found) in self.open.drain(..count).zip(places) {
            let pack = found.map(|found| found.pack);
            self.answers[place] = pack.filter(|pack| self.index.pack(*pack).is_some());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;
    use undercroft_format::pack::{Encoding, ObjectKind, PackHeader, PackKind, Toc};

    use super::super::index::{IndexError, IndexedPack, MemoryIndex, Place};
    use super::super::layout;
    use super::*;
    use crate::io::SimStorage;

    const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);

    /// An index beyond its memory cap: RAM tells nothing, and what is asked beyond it is counted.
    #[derive(Debug, Default)]
    struct Beyond {
        inner: MemoryIndex,
        found: AtomicUsize,
    }

    impl ChunkIndex for Beyond {
        fn packs(&self) -> Result<Vec<IndexedPack>, IndexError> {
            self.inner.packs()
        }

        fn pack(&self, number: PackNumber) -> Option<IndexedPack> {
            self.inner.pack(number)
        }

        fn pack_number(&self, id: PackId) -> Option<PackNumber> {
            self.inner.pack_number(id)
        }

        fn insert_pack(
            &self,
            id: PackId,
            kind: PackKind,
            len: u64,
            entries: &[TocEntry],
        ) -> Result<PackNumber, IndexError> {
            self.inner.insert_pack(id, kind, len, entries)
        }

        fn remove_pack(&self, number: PackNumber, entries: &[TocEntry]) -> Result<(), IndexError> {
            self.inner.remove_pack(number, entries)
        }

        fn forget(&self, number: PackNumber, ids: &[ObjectId]) -> Result<(), IndexError> {
            self.inner.forget(number, ids)
        }

        fn entries_of(&self, number: PackNumber) -> Result<Vec<TocEntry>, IndexError> {
            self.inner.entries_of(number)
        }

        fn lost(&self, number: PackNumber) -> Result<Vec<ObjectId>, IndexError> {
            self.inner.lost(number)
        }

        fn losses(&self, number: PackNumber) -> u64 {
            self.inner.losses(number)
        }

        fn candidates(&self, ids: &[ObjectId], out: &mut Vec<Candidate>) -> Result<(), IndexError> {
            out.clear();
            out.resize(ids.len(), Candidate::Unsure);
            Ok(())
        }

        fn find(&self, ids: &[ObjectId], out: &mut Vec<Option<Place>>) -> Result<(), IndexError> {
            self.found.fetch_add(ids.len(), Ordering::Relaxed);
            self.inner.find(ids, out)
        }

        fn len(&self) -> u64 {
            self.inner.len()
        }

        fn memory_bytes(&self) -> u64 {
            self.inner.memory_bytes()
        }

        fn disk_bytes(&self) -> Result<u64, IndexError> {
            self.inner.disk_bytes()
        }

        fn flush(&self) -> Result<(), IndexError> {
            self.inner.flush()
        }

        fn shutdown(&self) -> Result<(), IndexError> {
            self.inner.shutdown()
        }
    }

    fn id(n: u32) -> ObjectId {
        ObjectId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn entries(ids: impl IntoIterator<Item = u32>) -> Vec<TocEntry> {
        let entry = |(n, position): (u32, u32)| TocEntry {
            info: RecordInfo {
                id: id(n),
                kind: ObjectKind::Chunk,
                encoding: Encoding::RAW,
                stored_len: 36,
                plain_len: 36,
            },
            position,
        };
        ids.into_iter()
            .zip((64..).step_by(100))
            .map(entry)
            .collect()
    }

    struct Fixture {
        storage: Arc<SimStorage>,
        index: Arc<Beyond>,
        lookup: Lookup,
    }

    impl Fixture {
        fn new() -> Self {
            let storage = Arc::new(SimStorage::new());
            storage.create_dir(layout::PACKS).expect("makes");
            let index = Arc::new(Beyond::default());
            let lookup = Lookup::new(storage.clone(), REPOSITORY, index.clone(), false);
            Self {
                storage,
                index,
                lookup,
            }
        }

        fn insert(&self, number: u8, entries: &[TocEntry]) -> PackNumber {
            let id = PackId::from_bytes([number; 16]);
            let header = PackHeader {
                kind: PackKind::Data,
                id,
                repository: REPOSITORY,
            };
            let end = entries.last().map_or(64, TocEntry::end);
            let mut bytes = header.encode().to_vec();
            bytes.resize(end as usize, 0);
            let toc = Toc {
                entries: entries.to_vec(),
            };
            bytes.extend(toc.encode_tail(id, end));
            self.storage
                .create_dir(&layout::pack_dir(id))
                .expect("makes");
            self.storage
                .write_new(&layout::pack(id), &bytes)
                .expect("writes");
            let inserted = self
                .index
                .insert_pack(id, PackKind::Data, bytes.len() as u64, entries);
            inserted.expect("inserts")
        }

        /// Answers to a probe, and how many ids the index was asked for.
        fn probe(&self, ids: &[ObjectId]) -> (Vec<Option<PackNumber>>, usize) {
            let before = self.index.found.load(Ordering::Relaxed);
            let answers = self.lookup.probe(ids).expect("probes");
            (answers, self.index.found.load(Ordering::Relaxed) - before)
        }
    }

    #[test]
    fn a_stream_of_duplicates_beyond_the_cap_asks_the_index_for_few_of_them() {
        let fixture = Fixture::new();
        for pack in 0..4 {
            let first = u32::from(pack) * 1000;
            fixture.insert(pack, &entries(first..first + 1000));
        }
        let ids: Vec<_> = (0..4000).map(id).collect();
        let mut asked = 0;
        for (batch, ids) in ids.chunks(250).enumerate() {
            let (answers, more) = fixture.probe(ids);
            assert_eq!(answers, vec![Some(PackNumber(batch as u32 / 4)); 250]);
            asked += more;
        }
        assert_eq!(asked, 4 * SAMPLE);
    }

    #[test]
    fn ids_that_begin_alike_are_told_apart() {
        let mut entries = entries(0..3);
        let alike = |last: u8| {
            let mut id = [0xff; ObjectId::LEN];
            id[ObjectId::LEN - 1] = last;
            ObjectId::from_bytes(id)
        };
        for (entry, last) in entries.iter_mut().zip([2, 0, 1]) {
            entry.info.id = alike(last);
        }
        let table = Table {
            number: PackNumber(1),
            pack: PackId::from_bytes([1; 16]),
            by_id: sorted_by_id(&entries),
            entries: entries.clone(),
            lost: Vec::new(),
            losses: 0,
        };
        for entry in &entries {
            assert_eq!(table.entry(&entry.info.id), Some(entry));
        }
        assert_eq!(table.entry(&alike(3)), None);
        assert_eq!(table.entry(&ObjectId::from_bytes([0; ObjectId::LEN])), None);
    }

    #[test]
    fn what_a_pack_lost_is_not_found_in_its_table() {
        let fixture = Fixture::new();
        let first = fixture.insert(1, &entries(0..100));
        let ids: Vec<_> = (0..100).map(id).collect();
        fixture.probe(&ids);
        fixture.index.forget(first, &ids[3..4]).expect("forgets");
        let second = fixture.insert(2, &entries(50..60));
        for _ in 0..2 {
            let (answers, _) = fixture.probe(&ids);
            for (n, answer) in answers.into_iter().enumerate() {
                let expected = match n {
                    3 => None,
                    50..60 => Some(second),
                    _ => Some(first),
                };
                assert_eq!(answer, expected, "chunk {n}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_probe_beyond_the_cap_answers_as_the_index_does(
            steps in proptest::collection::vec((0..40_u8, 0..200_u32, 1..200_u32, 0..4_u8), 1..25),
        ) {
            let fixture = Fixture::new();
            let mut packs = HashMap::new();
            for (pack, first, count, action) in steps {
                match (action, packs.remove(&pack)) {
                    (0, Some((number, entries))) => {
                        let entries: Vec<TocEntry> = entries;
                        fixture.index.remove_pack(number, &entries).expect("removes");
                        fixture.lookup.forget(number);
                    }
                    (1, Some((number, entries))) => {
                        let ids: Vec<_> = (first..first + count).map(id).collect();
                        fixture.index.forget(number, &ids).expect("forgets");
                        packs.insert(pack, (number, entries));
                    }
                    (_, Some(known)) => {
                        packs.insert(pack, known);
                    }
                    (_, None) if fixture.storage.exists(&layout::pack(PackId::from_bytes([pack; 16]))).expect("looks") => {}
                    (_, None) => {
                        let entries = entries(first..first + count);
                        packs.insert(pack, (fixture.insert(pack, &entries), entries));
                    }
                }
                let ids: Vec<_> = (first..first + 250).map(id).collect();
                let mut places = Vec::new();
                fixture.index.find(&ids, &mut places).expect("finds");
                let expected: Vec<_> = places.iter().map(|place| place.map(|place| place.pack)).collect();
                prop_assert_eq!(fixture.probe(&ids).0, expected);
            }
        }
    }
}
