//! Every index against a plain map, under random histories and crashes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;
use undercroft_format::id::{ObjectId, PackId, RepositoryId};
use undercroft_format::pack::{Encoding, ObjectKind, PackKind, RecordInfo, TocEntry};

use super::*;

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([1; 16]);
/// Holds every table that these tests fill.
const AMPLE: u64 = 64 << 20;
/// Room for a filter, but not for a table.
const FILTER: u64 = 60 << 10;
/// Too little for either.
const SCANT: u64 = 20 << 10;

fn options(memory_budget: u64) -> IndexOptions {
    IndexOptions {
        repository: REPOSITORY,
        memory_budget,
        read_only: false,
    }
}

fn read_only() -> IndexOptions {
    IndexOptions {
        read_only: true,
        ..options(AMPLE)
    }
}

fn id(seed: u32) -> ObjectId {
    ObjectId::from_bytes(*blake3::hash(&seed.to_le_bytes()).as_bytes())
}

/// Differs from `id(seed)` only beyond what the RAM table tells apart.
fn twin(seed: u32) -> ObjectId {
    let mut bytes = *id(seed).as_bytes();
    bytes[31] ^= 1;
    ObjectId::from_bytes(bytes)
}

fn entry(id: ObjectId, position: u32) -> TocEntry {
    TocEntry {
        info: RecordInfo {
            id,
            kind: ObjectKind::Chunk,
            encoding: Encoding {
                zstd: true,
                sealed: false,
            },
            stored_len: 1000 + position,
            plain_len: 70_000,
        },
        position,
    }
}

fn entries(seeds: impl IntoIterator<Item = u32>) -> Vec<TocEntry> {
    let ids = seeds.into_iter().map(id);
    ids.zip((64..).step_by(100))
        .map(|(id, at)| entry(id, at))
        .collect()
}

fn pack_id(seed: u32) -> PackId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    PackId::from_bytes(bytes)
}

fn insert(index: &dyn ChunkIndex, pack: u32, entries: &[TocEntry]) -> PackNumber {
    let inserted = index.insert_pack(pack_id(pack), PackKind::Data, 4096, entries);
    inserted.expect("inserts")
}

fn find(index: &dyn ChunkIndex, ids: &[ObjectId]) -> Vec<Option<Place>> {
    let mut out = Vec::new();
    index.find(ids, &mut out).expect("finds");
    out
}

fn table_of(index: &RocksIndex) -> &RamTable {
    index.table().expect("loads")
}

/// What a kill would leave now. RocksDB compacts meanwhile, and a mix of two moments is no state that a
/// crash could leave, so the copy is made again until nothing has changed under it.
fn copy(dir: &Path) -> TempDir {
    let lengths = || -> BTreeMap<PathBuf, Option<u64>> {
        let files = fs::read_dir(dir).expect("lists");
        files
            .map(|file| file.expect("lists"))
            .map(|file| (file.path(), file.metadata().ok().map(|meta| meta.len())))
            .collect()
    };
    loop {
        let before = lengths();
        let copy = tempfile::tempdir().expect("a temporary directory");
        let complete = before.keys().all(|path| {
            let name = path.file_name().expect("listed by name");
            fs::copy(path, copy.path().join(name)).is_ok()
        });
        if complete && lengths() == before {
            return copy;
        }
    }
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir)
        .expect("lists")
        .map(|file| file.expect("lists").path());
    paths
        .map(|path| (path.clone(), fs::read(path).expect("reads")))
        .collect()
}

#[derive(Debug, Default)]
struct Model {
    packs: BTreeMap<u32, (PackNumber, Vec<TocEntry>)>,
    places: HashMap<ObjectId, Place>,
}

impl Model {
    fn check(&self, index: &dyn ChunkIndex) {
        let ids: Vec<_> = (0..60).flat_map(|seed| [id(seed), twin(seed)]).collect();
        let expected: Vec<_> = ids.iter().map(|id| self.places.get(id).copied()).collect();
        assert_eq!(find(index, &ids), expected);
        let mut candidates = Vec::new();
        index.candidates(&ids, &mut candidates).expect("answers");
        assert_eq!(candidates.len(), ids.len());
        for (candidate, place) in candidates.iter().zip(&expected) {
            let missed = *candidate == Candidate::Absent && place.is_some();
            assert!(!missed, "an entry is missed");
        }
        assert_eq!(index.len(), self.places.len() as u64);
        let packs = index.packs().expect("lists");
        let expected: BTreeMap<_, _> = self
            .packs
            .iter()
            .map(|(seed, (n, _))| (*n, *seed))
            .collect();
        let found: BTreeMap<_, _> = packs.iter().map(|pack| (pack.number, pack.id)).collect();
        let expected: BTreeMap<_, _> = expected.into_iter().map(|(n, s)| (n, pack_id(s))).collect();
        assert_eq!(found, expected);
        for (seed, (number, entries)) in &self.packs {
            assert_eq!(index.pack_number(pack_id(*seed)), Some(*number));
            let pack = index.pack(*number).expect("is there");
            assert_eq!(pack.entries as usize, entries.len());
            let here = |id: &ObjectId| {
                self.places
                    .get(id)
                    .is_some_and(|place| place.pack == *number)
            };
            let elsewhere = entries
                .iter()
                .map(|entry| entry.info.id)
                .filter(|id| !here(id));
            let elsewhere: BTreeSet<_> = elsewhere.collect();
            let lost: BTreeSet<_> = index.lost(*number).expect("lists").into_iter().collect();
            assert_eq!(lost, elsewhere);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert { pack: u32, seeds: Vec<(u32, bool)> },
    Remove { pack: u32 },
    Forget { pack: u32, seeds: Vec<u32> },
    Flush,
    Reopen { budget: u64 },
    Kill { budget: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let budget = || prop_oneof![3 => Just(AMPLE), 2 => Just(FILTER), 1 => Just(SCANT)];
    let seeds = proptest::collection::vec((0..60_u32, any::<bool>()), 0..30);
    let forgotten = proptest::collection::vec(0..60_u32, 0..10);
    let step = prop_oneof![
        6 => (0..12_u32, seeds).prop_map(|(pack, seeds)| Step::Insert { pack, seeds }),
        3 => (0..12_u32).prop_map(|pack| Step::Remove { pack }),
        1 => (0..12_u32, forgotten).prop_map(|(pack, seeds)| Step::Forget { pack, seeds }),
        1 => Just(Step::Flush),
        1 => budget().prop_map(|budget| Step::Reopen { budget }),
        1 => budget().prop_map(|budget| Step::Kill { budget }),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Does what reopening does to an index on disk, if this one is.
type Restart<'a> = dyn FnMut(Box<dyn ChunkIndex>, &Step) -> Box<dyn ChunkIndex> + 'a;

fn run(mut index: Box<dyn ChunkIndex>, steps: &[Step], restart: &mut Restart<'_>) {
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Insert { pack, seeds } => {
                let ids = seeds
                    .iter()
                    .map(|(seed, other)| if *other { twin(*seed) } else { id(*seed) });
                let entries: Vec<_> = ids.zip(64..).map(|(id, at)| entry(id, at)).collect();
                let number = insert(&*index, *pack, &entries);
                if let Some((known, _)) = model.packs.get(pack) {
                    assert_eq!(number, *known);
                } else {
                    for entry in &entries {
                        model
                            .places
                            .insert(entry.info.id, Place::new(number, entry));
                    }
                    model.packs.insert(*pack, (number, entries));
                }
            }
            Step::Remove { pack } => {
                if let Some((number, entries)) = model.packs.remove(pack) {
                    let mut left = index.entries_of(number).expect("lists");
                    left.retain(|entry| !entries.contains(entry));
                    assert_eq!(left, []);
                    index.remove_pack(number, &entries).expect("removes");
                    model.places.retain(|_, place| place.pack != number);
                    assert_eq!(index.entries_of(number).expect("lists"), []);
                }
            }
            Step::Forget { pack, seeds } => {
                if let Some((number, _)) = model.packs.get(pack) {
                    let ids: Vec<_> = seeds.iter().map(|seed| id(*seed)).collect();
                    index.forget(*number, &ids).expect("forgets");
                    model
                        .places
                        .retain(|id, place| place.pack != *number || !ids.contains(id));
                }
            }
            Step::Flush => index.flush().expect("flushes"),
            Step::Reopen { .. } | Step::Kill { .. } => index = restart(index, step),
        }
        model.check(&*index);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_memory_index_is_a_map(steps in steps()) {
        run(Box::new(MemoryIndex::new()), &steps, &mut |index, _| index);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_rocks_index_is_a_map_through_clean_closes_and_crashes(steps in steps(), ask_early: bool) {
        let mut dir = tempfile::tempdir().expect("a temporary directory");
        let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
        run(Box::new(index), &steps, &mut |index, step| {
            let budget = match step {
                Step::Kill { budget } => {
                    let killed = copy(dir.path());
                    drop(index);
                    dir = killed;
                    assert_eq!(check_seal(dir.path()).expect("reads"), SealState::Open);
                    *budget
                }
                Step::Reopen { budget } => {
                    index.shutdown().expect("shuts down");
                    assert_eq!(check_seal(dir.path()).expect("reads"), SealState::Clean);
                    *budget
                }
                _ => AMPLE,
            };
            let index = RocksIndex::open(dir.path(), options(budget)).expect("opens");
            if ask_early {
                index.table().expect("loads");
            }
            Box::new(index)
        });
    }

    #[test]
    fn a_built_index_equals_one_filled_pack_by_pack(
        packs in proptest::collection::vec((0..12_u32, proptest::collection::vec(0..60_u32, 0..30)), 0..12),
    ) {
        let filled = MemoryIndex::new();
        let contents: Vec<_> = packs
            .into_iter()
            .map(|(pack, seeds)| PackContents {
                id: pack_id(pack),
                kind: PackKind::Data,
                len: 4096,
                entries: entries(seeds),
            })
            .collect();
        for pack in &contents {
            filled.insert_pack(pack.id, pack.kind, pack.len, &pack.entries).expect("inserts");
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let built = RocksIndex::build(dir.path(), contents, options(AMPLE)).expect("builds");
        let ids: Vec<_> = (0..60).map(id).collect();
        prop_assert_eq!(find(&built, &ids), find(&filled, &ids));
        prop_assert_eq!(built.packs().expect("lists"), filled.packs().expect("lists"));
        prop_assert_eq!(built.len(), filled.len());
        prop_assert_eq!(table_of(&built).len(), filled.len());
        for pack in filled.packs().expect("lists") {
            let sorted = |index: &dyn ChunkIndex| index.lost(pack.number).expect("lists").into_iter().collect::<BTreeSet<_>>();
            prop_assert_eq!(sorted(&built), sorted(&filled));
        }
        built.shutdown().expect("shuts down");
        let reopened = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
        prop_assert_eq!(find(&reopened, &ids), find(&filled, &ids));
    }
}

proptest! {
    #[test]
    fn the_ram_table_holds_what_a_map_holds(
        steps in proptest::collection::vec((0..40_u32, any::<bool>(), 0..6_u32), 0..400),
    ) {
        let mut table = RamTable::new(AMPLE);
        let mut model = HashMap::new();
        let ids: Vec<_> = (0..40).flat_map(|seed| [id(seed), twin(seed)]).collect();
        for (seed, other, action) in steps {
            let id = if other { twin(seed) } else { id(seed) };
            let to = PackNumber(action);
            match (action, model.get(&id).copied()) {
                (0, Some(pack)) => {
                    model.remove(&id);
                    table.apply([Change::Remove { id, pack }]);
                }
                (0, None) => {
                    let mut bytes = Vec::new();
                    prop_assert!(table.save(7, &mut bytes).expect("writing to memory"));
                    let loaded = RamTable::load(&bytes[..], bytes.len() as u64, 7, model.len() as u64, AMPLE);
                    table = loaded.expect("loads");
                }
                (_, known) => {
                    model.insert(id, to);
                    let change = match known {
                        Some(from) => Change::Move { id, from, to },
                        None => Change::Insert { id, pack: to },
                    };
                    table.apply([change]);
                }
            }
            let mut candidates = Vec::new();
            table.candidates(&ids, &mut candidates);
            for (pair, found) in ids.chunks(2).zip(candidates.chunks(2)) {
                let here: Vec<_> = pair.iter().filter_map(|id| model.get(id)).collect();
                let right = |found: &Candidate| match found {
                    Candidate::Absent => here.is_empty(),
                    Candidate::In(pack) => here.contains(&pack),
                    Candidate::Unsure => false,
                };
                prop_assert!(found.iter().all(right));
            }
            prop_assert_eq!(table.len(), model.len() as u64);
        }
    }
}

/// What a power cut leaves of an index whose last write was long ago.
fn index_with_log(packs: u32) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    for pack in 0..packs {
        insert(&index, pack, &entries(pack * 50..pack * 50 + 50));
    }
    copy(dir.path())
}

fn log_of(dir: &Path) -> (PathBuf, Vec<u8>) {
    let logs = files(dir)
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "log"));
    logs.max_by_key(|(_, bytes)| bytes.len())
        .expect("has a log")
}

fn assert_first_packs(index: &RocksIndex, packs: u32) -> u32 {
    let here = index.packs().expect("lists");
    let count = here.len() as u32;
    assert_eq!(
        here.iter().map(|pack| pack.id).collect::<Vec<_>>(),
        (0..count).map(pack_id).collect::<Vec<_>>()
    );
    let ids: Vec<_> = (0..packs * 50).map(id).collect();
    let found = find(index, &ids);
    assert!(found[..count as usize * 50].iter().all(Option::is_some));
    assert!(found[count as usize * 50..].iter().all(Option::is_none));
    assert_eq!(index.len(), u64::from(count) * 50);
    count
}

#[test]
fn a_power_cut_takes_back_whole_packs_from_the_end() {
    let dir = index_with_log(10);
    let (path, whole) = log_of(dir.path());
    let mut counts = Vec::new();
    for cut in (0..=whole.len()).step_by(whole.len() / 15) {
        let dir = copy(dir.path());
        let path = dir.path().join(path.file_name().expect("is a file"));
        fs::write(path, &whole[..cut]).expect("writes");
        let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
        counts.push(assert_first_packs(&index, 10));
    }
    assert!(counts.is_sorted(), "{counts:?}");
    assert!(
        counts.contains(&4) && counts.last() >= Some(&9),
        "{counts:?}"
    );
}

#[test]
fn a_flipped_bit_in_the_log_is_found() {
    let dir = index_with_log(10);
    let (path, whole) = log_of(dir.path());
    for place in (0..whole.len()).step_by(whole.len() / 15) {
        let dir = copy(dir.path());
        let mut flipped = whole.clone();
        flipped[place] ^= 4;
        let path = dir.path().join(path.file_name().expect("is a file"));
        fs::write(path, flipped).expect("writes");
        match RocksIndex::open(dir.path(), options(AMPLE)) {
            Ok(index) => assert!(assert_first_packs(&index, 10) < 10),
            Err(error) => assert!(error.needs_rebuild(), "{error}"),
        }
    }
}

fn sealed_index(count: u32) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    insert(&index, 1, &entries(0..count));
    index.shutdown().expect("shuts down");
    dir
}

#[test]
fn a_flipped_bit_in_any_file_of_a_closed_index_is_found() {
    let dir = sealed_index(500);
    for (path, whole) in files(dir.path()) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("is ASCII");
        for place in (0..whole.len()).step_by(1 + whole.len() / 20) {
            let mut flipped = whole.clone();
            flipped[place] ^= 0x10;
            fs::write(&path, flipped).expect("writes");
            let state = check_seal(dir.path()).expect("reads");
            assert_eq!(
                state,
                SealState::Damaged(vec![name.to_owned()]),
                "byte {place}"
            );
        }
        fs::write(&path, whole).expect("writes");
    }
    assert_eq!(check_seal(dir.path()).expect("reads"), SealState::Clean);
}

#[test]
fn an_index_that_cannot_be_used_says_to_rebuild() {
    let needs_rebuild = |dir: &Path, options| match RocksIndex::open(dir, options) {
        Err(error @ IndexError::Damaged { .. }) => error.needs_rebuild(),
        _ => false,
    };
    let other = IndexOptions {
        repository: RepositoryId::from_bytes([2; 16]),
        ..options(AMPLE)
    };
    assert!(needs_rebuild(sealed_index(10).path(), other));
    assert!(needs_rebuild(Path::new("/nonexistent/index"), read_only()));
    for kind in ["CURRENT", "MANIFEST", ".sst"] {
        let dir = sealed_index(10);
        for (path, mut bytes) in files(dir.path()) {
            if path.to_string_lossy().contains(kind) {
                bytes.truncate(bytes.len() / 2);
                fs::write(&path, bytes).expect("writes");
            }
        }
        assert!(
            needs_rebuild(dir.path(), options(AMPLE)),
            "{kind} cut short"
        );
        let dir = sealed_index(10);
        for path in files(dir.path()).keys() {
            if path.to_string_lossy().contains(kind) {
                fs::remove_file(path).expect("removes");
            }
        }
        assert!(needs_rebuild(dir.path(), options(AMPLE)), "{kind} missing");
    }
}

#[test]
fn a_damaged_stored_table_is_made_anew() {
    let dir = sealed_index(1000);
    let path = dir.path().join("ram-table");
    let mut bytes = fs::read(&path).expect("reads");
    bytes[5000] ^= 1;
    fs::write(&path, bytes).expect("writes");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    assert_eq!(table_of(&index).len(), 1000);
    index.shutdown().expect("shuts down");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    assert_eq!(table_of(&index).len(), 1000);
    assert!(index.table_is_as_stored());
}

#[test]
fn changes_before_any_candidates_are_asked_for_are_in_the_table_that_is_stored() {
    let dir = sealed_index(1000);
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    let number = index.pack_number(pack_id(1)).expect("is there");
    index.forget(number, &[id(3)]).expect("forgets");
    insert(&index, 2, &entries(900..1500));
    index.shutdown().expect("shuts down");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    assert_eq!(table_of(&index).len(), 1499);
    assert!(index.table_is_as_stored());
    let mut candidates = Vec::new();
    let ids = [id(3), id(1499)];
    index.candidates(&ids, &mut candidates).expect("answers");
    let second = index.pack_number(pack_id(2)).expect("is there");
    assert_eq!(candidates, [Candidate::Absent, Candidate::In(second)]);
}

#[test]
fn a_stored_table_of_an_older_generation_is_not_believed() {
    let dir = sealed_index(1000);
    let path = dir.path().join("ram-table");
    let old = fs::read(&path).expect("reads");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    let number = index.pack_number(pack_id(1)).expect("is there");
    index
        .remove_pack(number, &entries(0..1000))
        .expect("removes");
    insert(&index, 2, &entries(1000..2000));
    drop(index);
    fs::write(&path, old).expect("writes");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    let ids: Vec<_> = (0..2000).map(id).collect();
    assert_eq!(table_of(&index).len(), 1000);
    assert!(!index.table_is_as_stored());
    let found = find(&index, &ids);
    assert!(found[..1000].iter().all(Option::is_none));
    assert!(found[1000..].iter().all(Option::is_some));
}

#[test]
fn a_table_that_outgrows_the_budget_becomes_a_filter() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let budget = 300 << 10;
    let index = RocksIndex::open(dir.path(), options(budget)).expect("opens");
    assert_eq!(table_of(&index).knowledge(), Knowledge::Packs);
    for pack in 0..40 {
        insert(&index, pack, &entries(pack * 1000..pack * 1000 + 1000));
        assert!(table_of(&index).memory_bytes() < budget);
    }
    let check = |index: &RocksIndex, stored| {
        assert_eq!(table_of(index).knowledge(), Knowledge::Absence);
        assert_eq!(index.table_is_as_stored(), stored);
        assert!(table_of(index).memory_bytes() < budget);
        let ids: Vec<_> = (0..42_000).map(id).collect();
        let mut candidates = Vec::new();
        index.candidates(&ids, &mut candidates).expect("answers");
        let absent = |candidates: &[Candidate]| {
            let absent = candidates
                .iter()
                .filter(|known| **known == Candidate::Absent);
            absent.count()
        };
        assert_eq!(absent(&candidates[..40_000]), 0);
        assert!(absent(&candidates[40_000..]) > 1000);
        assert!(find(index, &ids)[..40_000].iter().all(Option::is_some));
        assert_eq!(index.len(), 40_000);
    };
    check(&index, false);
    index.shutdown().expect("shuts down");
    assert_eq!(check_seal(dir.path()).expect("reads"), SealState::Clean);
    let index = RocksIndex::open(dir.path(), options(budget)).expect("opens");
    check(&index, true);
    drop(index);
    // After a crash that follows a change, the stored filter lacks what was added.
    let index = RocksIndex::open(dir.path(), options(budget)).expect("opens");
    insert(&index, 40, &entries(50_000..50_001));
    let number = index.pack_number(pack_id(40)).expect("is there");
    index
        .remove_pack(number, &entries(50_000..50_001))
        .expect("removes");
    drop(index);
    let index = RocksIndex::open(dir.path(), options(budget)).expect("opens");
    check(&index, false);
    index.shutdown().expect("shuts down");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    assert_eq!(table_of(&index).len(), 40_000);
}

#[test]
fn who_never_asks_for_candidates_loads_no_table_and_leaves_the_stored_one() {
    let dir = sealed_index(1000);
    let path = dir.path().join("ram-table");
    let before = fs::read(&path).expect("reads");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    assert!(find(&index, &[id(5)])[0].is_some());
    assert!(!index.has_loaded_table());
    index.shutdown().expect("shuts down");
    assert_eq!(fs::read(&path).expect("reads"), before);
    assert_eq!(check_seal(dir.path()).expect("reads"), SealState::Clean);
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    assert_eq!(table_of(&index).len(), 1000);
    assert!(index.table_is_as_stored());
}

#[test]
fn a_reader_follows_the_owner_and_writes_nothing_beside_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let owner = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    insert(&owner, 1, &entries(0..100));
    let before = files(dir.path());
    let reader = RocksIndex::open(dir.path(), read_only()).expect("opens");
    let ids: Vec<_> = (0..200).map(id).collect();
    assert_eq!(find(&reader, &ids), find(&owner, &ids));
    assert_eq!(
        reader.packs().expect("lists"),
        owner.packs().expect("lists")
    );
    assert_eq!(files(dir.path()), before);

    // Some of it moves to another pack, so that old values must give way to new ones.
    insert(&owner, 2, &entries(50..200));
    reader.refresh().expect("refreshes");
    assert_eq!(find(&reader, &ids), find(&owner, &ids));
    insert(&owner, 3, &entries(150..200));
    owner.flush().expect("flushes");
    reader.refresh().expect("refreshes");
    assert_eq!(find(&reader, &ids), find(&owner, &ids));
    assert_eq!(reader.len(), 200);
    let refused = reader.insert_pack(pack_id(3), PackKind::Data, 4096, &[]);
    assert!(matches!(refused, Err(IndexError::ReadOnly { .. })));
    reader.shutdown().expect("shuts down");

    let second = RocksIndex::open(dir.path(), options(AMPLE));
    assert!(
        matches!(second, Err(IndexError::Locked { .. })),
        "{second:?}"
    );
}

#[test]
fn reading_a_sealed_index_leaves_the_seal_whole() {
    let dir = sealed_index(100);
    let before = files(dir.path());
    let reader = RocksIndex::open(dir.path(), read_only()).expect("opens");
    assert_eq!(reader.len(), 100);
    assert!(find(&reader, &[id(5)])[0].is_some());
    drop(reader);
    assert_eq!(files(dir.path()), before);
    assert_eq!(check_seal(dir.path()).expect("reads"), SealState::Clean);
}

#[test]
fn a_closed_index_answers_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    index.shutdown().expect("shuts down");
    index.shutdown().expect("a second time changes nothing");
    let closed = index.candidates(&[id(1)], &mut Vec::new());
    assert!(matches!(closed, Err(IndexError::Closed { .. })));
}

#[test]
fn a_build_that_was_interrupted_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let torn = tempfile::tempdir().expect("a temporary directory");
    let packs = (0..3).map(|pack| {
        if pack == 2 {
            // All of it but the last pack is there, and no schema.
            for file in fs::read_dir(dir.path()).expect("lists").flatten() {
                let _ = fs::copy(file.path(), torn.path().join(file.file_name()));
            }
        }
        PackContents {
            id: pack_id(pack),
            kind: PackKind::Data,
            len: 4096,
            entries: entries(pack * 100..pack * 100 + 100),
        }
    });
    RocksIndex::build(dir.path(), packs, options(AMPLE)).expect("builds");
    let again = RocksIndex::build(dir.path(), [], options(AMPLE));
    assert!(matches!(again, Err(IndexError::NotEmpty { .. })));
    let opened = RocksIndex::open(torn.path(), options(AMPLE));
    assert!(opened.is_err() || opened.is_ok_and(|index| index.is_empty()));
}

#[test]
fn lookups_run_while_packs_come_and_go() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = RocksIndex::open(dir.path(), options(AMPLE)).expect("opens");
    let steady = entries(0..2000);
    insert(&index, 0, &steady);
    let ids: Vec<_> = steady.iter().map(|entry| entry.info.id).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut candidates = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    index.candidates(&ids, &mut candidates).expect("answers");
                    assert!(candidates.iter().all(|known| *known != Candidate::Absent));
                    assert!(find(&index, &ids).iter().all(Option::is_some));
                }
            });
        }
        for pack in 1..60 {
            let others = entries(pack * 2000..pack * 2000 + 2000);
            let number = insert(&index, pack, &others);
            if pack % 3 == 0 {
                index.remove_pack(number, &others).expect("removes");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(index.len(), 2000 * 41);
    assert_eq!(table_of(&index).len(), index.len());
}
