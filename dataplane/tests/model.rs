//! Any history of backups, forgetting and collections against a plain copy of every disk.

mod support;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use proptest::prelude::*;
use rayon::ThreadPool;
use undercroft_dataplane::io::{SimEngine, SimStorage, Storage};
use undercroft_dataplane::progress::Progress;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::gc::{CollectOptions, collect};
use undercroft_dataplane::repository::index::{ChunkIndex, MemoryIndex};
use undercroft_dataplane::repository::keys::Keys;
use undercroft_dataplane::repository::pack_reader::list_packs;
use undercroft_dataplane::repository::{LocalRepository, Repository};
use undercroft_format::audit::AuditShare;
use undercroft_format::config::Config;
use undercroft_format::id::SnapshotId;
use undercroft_format::reason::Reason;
use undercroft_format::snapshot::ReadMode;

use support::{
    Content, Decoded, DiskInput, MIB, Rng, assert_no_leftovers, assert_restores, chain,
    changed_bytes, config, job, live_objects, make_directories, one_thread, open_with,
    packs_on_disk, run_backup, scribble,
};

/// What a bitmap is worth.
#[derive(Clone, Copy, Debug)]
enum Bitmap {
    True,
    TooShort,
    TooLong,
    Garbage,
}

#[derive(Clone, Debug)]
enum Step {
    /// The VM goes on living, and all its disks are read.
    Full {
        vm: usize,
        seed: u64,
    },
    /// The VM goes on living, and its disks are read by what changed since one of its snapshots.
    Increment {
        vm: usize,
        seed: u64,
        parent: prop::sample::Index,
        bitmap: Bitmap,
    },
    /// Nothing changed since the last full backup, which comes right before.
    Unchanged {
        vm: usize,
    },
    Forget(prop::sample::Index),
    Protect(prop::sample::Index, bool),
    Collect {
        percent: u8,
        small_memory: bool,
    },
    /// The index is made anew from packs.
    Rebuild,
    /// The index is kept.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let vm = 0..2_usize;
    let bitmap = prop_oneof![
        8 => Just(Bitmap::True),
        1 => Just(Bitmap::TooShort),
        1 => Just(Bitmap::TooLong),
        1 => Just(Bitmap::Garbage),
    ];
    prop_oneof![
        2 => (vm.clone(), any::<u64>()).prop_map(|(vm, seed)| Step::Full { vm, seed }),
        5 => (vm.clone(), any::<u64>(), any::<prop::sample::Index>(), bitmap).prop_map(
            |(vm, seed, parent, bitmap)| Step::Increment { vm, seed, parent, bitmap }
        ),
        1 => vm.prop_map(|vm| Step::Unchanged { vm }),
        3 => any::<prop::sample::Index>().prop_map(Step::Forget),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, on)| Step::Protect(at, on)),
        3 => (prop::sample::select(vec![0, 30, 60, 90, 100]), any::<bool>())
            .prop_map(|(percent, small_memory)| Step::Collect { percent, small_memory }),
        1 => Just(Step::Rebuild),
        1 => Just(Step::Reopen),
    ]
}

/// The disks of one VM, by label.
type Disks = BTreeMap<String, Vec<u8>>;

/// A published snapshot as it should be.
struct Kept {
    vm: usize,
    disks: Vec<(String, Content)>,
    protected: bool,
}

/// A repository and the plain copy of what it should hold.
struct World {
    storage: SimStorage,
    config: Config,
    keys: Arc<Keys>,
    index: Arc<dyn ChunkIndex>,
    repository: Arc<LocalRepository>,
    threads: Arc<ThreadPool>,
    vms: [Disks; 2],
    kept: BTreeMap<SnapshotId, Kept>,
    now_ms: u64,
    opened: u64,
    decoded: Decoded,
}

impl World {
    fn new(encrypted: bool, pack_len: u32, seed: u64) -> Self {
        let (config, keys) = config(pack_len, encrypted);
        let storage = SimStorage::new();
        make_directories(&storage);
        let index: Arc<dyn ChunkIndex> = Arc::new(MemoryIndex::new());
        let repository = reopen(&storage, &config, &keys, &index, 0);
        let rng = &mut Rng(seed);
        let mut vms = [Disks::new(), Disks::new()];
        for vm in &mut vms {
            for label in 0..1 + rng.below(2) {
                let mut disk = vec![0; rng.below(5 * MIB) as usize];
                (0..rng.below(12)).for_each(|_| scribble(&mut disk, rng));
                vm.insert(format!("xvd{label}"), disk);
            }
        }
        Self {
            storage,
            config,
            keys,
            index,
            repository,
            threads: one_thread(),
            vms,
            kept: BTreeMap::new(),
            now_ms: 0,
            opened: 0,
            decoded: Decoded::default(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Full { vm, seed } => {
                self.change(*vm, &mut Rng(*seed));
                self.full(*vm);
            }
            Step::Unchanged { vm } => self.unchanged(*vm),
            Step::Increment {
                vm,
                seed,
                parent,
                bitmap,
            } => {
                self.change(*vm, &mut Rng(*seed));
                self.increment(*vm, parent, *bitmap);
            }
            Step::Forget(at) => self.forget(at),
            Step::Protect(at, protected) => {
                if let Some(id) = self.pick(at) {
                    let snapshots = self.repository.snapshots();
                    snapshots.protect(id, *protected).expect("it is there");
                    self.kept.get_mut(&id).expect("picked").protected = *protected;
                }
            }
            Step::Collect {
                percent,
                small_memory,
            } => self.collect(*percent, *small_memory),
            Step::Rebuild => {
                self.index = Arc::new(MemoryIndex::new());
                self.reopen();
            }
            Step::Reopen => self.reopen(),
        }
        self.check();
    }

    /// A day in the life of a VM.
    fn change(&mut self, vm: usize, rng: &mut Rng) {
        let disks = &mut self.vms[vm];
        for disk in disks.values_mut() {
            match rng.below(8) {
                0 => disk.resize(rng.below(5 * MIB) as usize, 0),
                1 => disk.resize(disk.len() + rng.below(70_000) as usize, 0),
                2 => disk.truncate(disk.len() / 2 / (1 << 20) * (1 << 20)),
                _ => {}
            }
            (0..rng.below(4)).for_each(|_| scribble(disk, rng));
        }
        match rng.below(12) {
            0 => {
                let mut disk = vec![0; rng.below(2 * MIB) as usize];
                scribble(&mut disk, rng);
                disks.insert(format!("xvd{}", rng.below(4)), disk);
            }
            1 if disks.len() > 1 => {
                disks.pop_last();
            }
            _ => {}
        }
    }

    fn state(&self, vm: usize) -> Vec<(String, Content)> {
        let disks = self.vms[vm].iter();
        disks
            .map(|(label, disk)| (label.clone(), Arc::new(disk.clone())))
            .collect()
    }

    fn full(&mut self, vm: usize) {
        let state = self.state(vm);
        let inputs = state
            .iter()
            .map(|(label, content)| DiskInput::full(label, content))
            .collect();
        self.now_ms += 1;
        let job = job(&format!("vm{vm}"), self.now_ms, None, inputs);
        let report = run_backup(&self.repository, &self.threads, job)
            .unwrap_or_else(|error| panic!("full: {}", chain(&error)));
        self.keep(report.id, vm, state);
    }

    fn keep(&mut self, id: SnapshotId, vm: usize, disks: Vec<(String, Content)>) {
        let kept = Kept {
            vm,
            disks,
            protected: false,
        };
        assert!(self.kept.insert(id, kept).is_none(), "an id came twice");
    }

    fn unchanged(&mut self, vm: usize) {
        self.full(vm);
        let before = self.storage.contents();
        self.full(vm);
        let after = self.storage.contents();
        let new: Vec<_> = after
            .keys()
            .filter(|path| !before.contains_key(*path))
            .collect();
        assert_eq!(new.len(), 1, "{new:?}");
        assert!(new[0].starts_with("snapshots/"), "{new:?}");
        // And by an empty bitmap nothing is read, either.
        let (id, state) = self.newest(vm).expect("two were just made");
        let inputs = state
            .iter()
            .map(|(label, content)| DiskInput::since(label, content, content))
            .collect();
        self.now_ms += 1;
        let parent = self.repository.snapshots().read(id).expect("it is there");
        let job = job(&format!("vm{vm}"), self.now_ms, Some(parent), inputs);
        let report = run_backup(&self.repository, &self.threads, job).expect("stored");
        assert_eq!((report.packs, report.pack_bytes), (0, 0));
        for disk in &report.snapshot.disks {
            assert_eq!(disk.figures.read_bytes, 0);
        }
        self.keep(report.id, vm, state);
    }

    fn newest(&self, vm: usize) -> Option<(SnapshotId, Vec<(String, Content)>)> {
        let (all, _) = self.repository.snapshots().read_all().expect("listed");
        let id = all
            .iter()
            .rev()
            .find(|stored| self.kept[&stored.id].vm == vm)?
            .id;
        Some((id, self.kept[&id].disks.clone()))
    }

    fn increment(&mut self, vm: usize, parent: &prop::sample::Index, bitmap: Bitmap) {
        let candidates: Vec<SnapshotId> = self.kept.keys().copied().collect();
        let parent = (!candidates.is_empty()).then(|| *parent.get(&candidates));
        let old: Vec<(String, Content)> =
            parent.map_or(Vec::new(), |id| self.kept[&id].disks.clone());
        let state = self.state(vm);
        let empty: Content = Arc::default();
        let old_of = |label: &str| old.iter().find(|(old, _)| old == label).map(|(_, c)| c);
        let inputs = state
            .iter()
            .map(|(label, content)| {
                let mut input = DiskInput::since(label, old_of(label).unwrap_or(&empty), content);
                let text = input.changed_blocks.as_mut().expect("just made");
                match bitmap {
                    Bitmap::True => {}
                    // One byte of bitmap is half a megabyte of disk.
                    Bitmap::TooShort => text.clear(),
                    Bitmap::TooLong => *text = b"AAAA".repeat(5000),
                    Bitmap::Garbage => *text = b"!no bitmap at all".to_vec(),
                }
                input
            })
            .collect();
        self.now_ms += 1;
        let stored = parent.map(|id| self.repository.snapshots().read(id).expect("it is there"));
        let mut job = job(&format!("vm{vm}"), self.now_ms, stored, inputs);
        // Nothing of what did not change may look as if it did.
        job.audit = AuditShare::ALL;
        let report = run_backup(&self.repository, &self.threads, job)
            .unwrap_or_else(|error| panic!("increment: {}", chain(&error)));
        for audit in &report.audits {
            assert_eq!(
                (audit.mismatch, audit.unknown_blocks),
                (None, 0),
                "{audit:?}"
            );
            assert_eq!(audit.blocks, audit.unchanged_blocks);
        }
        for (disk, (label, content)) in report.snapshot.disks.iter().zip(&state) {
            let trusted = match (bitmap, old_of(label)) {
                (_, None) => false,
                (Bitmap::True, _) => true,
                // An empty bitmap is right for an empty disk, also for one that grew since.
                (Bitmap::TooShort, Some(old)) => content.is_empty() || old.is_empty(),
                (Bitmap::TooLong | Bitmap::Garbage, _) => false,
            };
            if trusted {
                let old = old_of(label).expect("trusted");
                assert_eq!(
                    disk.read_mode,
                    ReadMode::ChangedBlocks,
                    "{:?}",
                    disk.reasons
                );
                let grown = content.len().saturating_sub(old.len()) as u64;
                let limit = changed_bytes(old, content) + grown;
                assert!(
                    disk.figures.read_bytes <= limit,
                    "{:?} of {limit}",
                    disk.figures
                );
            } else {
                assert_eq!(disk.read_mode, ReadMode::Full);
                let reason = match (parent, old_of(label), bitmap) {
                    (None, ..) => Reason::NoParent,
                    (_, None, _) => Reason::DiskNotInParent,
                    (.., Bitmap::TooShort) => Reason::BitmapTooShort,
                    (.., Bitmap::TooLong) => Reason::BitmapTooLong,
                    _ => Reason::BitmapUnreadable,
                };
                assert!(disk.reasons.contains(&reason), "{:?}", disk.reasons);
            }
        }
        self.keep(report.id, vm, state);
    }

    fn pick(&self, at: &prop::sample::Index) -> Option<SnapshotId> {
        let ids: Vec<SnapshotId> = self.kept.keys().copied().collect();
        (!ids.is_empty()).then(|| *at.get(&ids))
    }

    fn forget(&mut self, at: &prop::sample::Index) {
        let Some(id) = self.pick(at) else { return };
        let result = self.repository.snapshots().forget(&[id]);
        if self.kept[&id].protected {
            assert!(matches!(result, Err(RepositoryError::Protected { .. })));
        } else {
            result.expect("it is there");
            self.kept.remove(&id);
        }
    }

    fn collect(&mut self, percent: u8, small_memory: bool) {
        let options = CollectOptions {
            rewrite_below_percent: percent,
            mark_memory_max: if small_memory { 0 } else { 112 << 20 },
            dry_run: false,
        };
        let bytes = || -> u64 {
            let listing = list_packs(&self.storage).expect("listed");
            listing.sealed.iter().map(|(_, len)| len).sum()
        };
        let before = bytes();
        let progress = Progress::default();
        let report = collect(&self.repository, &options, &progress)
            .unwrap_or_else(|error| panic!("gc: {}", chain(&error)));
        assert!(progress.total_bytes.get() >= before);
        assert_eq!(progress.done_bytes.get(), progress.total_bytes.get());
        assert_eq!(report.bytes_before, before);
        // Rewriting packs that are all live gains nothing, and may cost a block.
        assert_eq!(
            report.bytes_freed,
            before.saturating_sub(bytes()),
            "{report:?}"
        );
        assert_no_leftovers(&self.repository);
        let (all, _) = self.repository.snapshots().read_all().expect("listed");
        let live = live_objects(&self.repository, &all).expect("all is there");
        let packs = packs_on_disk(&self.repository);
        let mut seen = HashSet::new();
        for (id, objects) in &packs {
            let live_here = objects.iter().filter(|object| live.contains(*object));
            assert!(live_here.count() > 0, "pack {id} is dead");
            for object in objects {
                assert!(percent < 100 || live.contains(object), "garbage is left");
                assert!(seen.insert(*object) || percent < 100, "two copies are left");
            }
        }
        assert!(live.is_subset(&seen));
        assert!(!live.is_empty() || packs.is_empty());
    }

    fn reopen(&mut self) {
        self.opened += 1;
        self.repository = reopen(
            &self.storage,
            &self.config,
            &self.keys,
            &self.index,
            self.opened,
        );
    }

    fn check(&self) {
        let (all, failed) = self.repository.snapshots().read_all().expect("listed");
        assert!(failed.is_empty(), "{failed:?}");
        let ids: Vec<_> = all.iter().map(|stored| stored.id).collect();
        assert_eq!(ids.len(), self.kept.len());
        for stored in &all {
            let kept = &self.kept[&stored.id];
            assert_eq!(stored.protected, kept.protected);
            assert_restores(&self.repository, stored, &kept.disks, &self.decoded);
            for (disk, (label, content)) in stored.snapshot.disks.iter().zip(&kept.disks) {
                let data = content.iter().filter(|byte| **byte != 0).count() as u64;
                let figures = disk.figures;
                assert!(
                    data <= figures.data_bytes && figures.data_bytes <= content.len() as u64,
                    "{label}: {figures:?}, {data} of {}",
                    content.len()
                );
            }
        }
    }
}

fn reopen(
    storage: &SimStorage,
    config: &Config,
    keys: &Arc<Keys>,
    index: &Arc<dyn ChunkIndex>,
    seed: u64,
) -> Arc<LocalRepository> {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    let engine = Arc::new(SimEngine::new());
    let (repository, notes) = open_with(storage, config, keys, seed, index.clone(), engine)
        .unwrap_or_else(|error| panic!("opening: {}", chain(&error)));
    for note in notes {
        assert!(format!("{note:?}").starts_with("PacksAdded"), "{note:?}");
    }
    repository
}

fn history(encrypted: bool, pack_len: u32, seed: u64, steps: &[Step]) {
    let mut world = World::new(encrypted, pack_len, seed);
    for step in steps {
        world.step(step);
    }
    // In the end everything goes, in no order in particular, and so does every pack.
    for id in world.kept.keys().copied().collect::<Vec<_>>() {
        if world.kept[&id].protected {
            world
                .repository
                .snapshots()
                .protect(id, false)
                .expect("it is there");
        }
        world
            .repository
            .snapshots()
            .forget(&[id])
            .expect("it is there");
        world.kept.remove(&id);
        if world.kept.len().is_multiple_of(4) {
            world.collect(60, false);
            world.check();
        }
    }
    world.collect(0, false);
    assert!(packs_on_disk(&world.repository).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_restores_exactly(
        pack_len in prop::sample::select(vec![64_u32 << 10, 100 << 10, 256 << 10]),
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..18),
    ) {
        history(false, pack_len, seed, &steps);
    }

    #[test]
    fn any_encrypted_history_restores_exactly(
        pack_len in prop::sample::select(vec![64_u32 << 10, 256 << 10]),
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..18),
    ) {
        history(true, pack_len, seed, &steps);
    }
}
