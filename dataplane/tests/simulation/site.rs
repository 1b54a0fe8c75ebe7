//! The server's machine: its disk, which fails, fills up and loses power, and the server when it runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use undercroft_dataplane::io::{SimEngine, SimStorage, Storage};
use undercroft_dataplane::net::server::{CheckpointPolicy, UnpluggedServer};
use undercroft_dataplane::repository::entropy::SeededEntropy;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::index::MemoryIndex;
use undercroft_dataplane::repository::keys::Keys;
use undercroft_dataplane::repository::open::reconcile;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_dataplane::repository::{LocalRepository, Parts, Repository};
use undercroft_dataplane::wall_clock::SetClock;
use undercroft_format::config::Config;
use undercroft_format::extent::Extent;
use undercroft_format::id::SnapshotId;
use undercroft_format::trust::time::UnixMs;

use super::books::Disks;
use super::support::{
    Decoded, Watched, assert_no_leftovers, chain, live_objects, make_directories, open,
    packs_on_disk, run_gc,
};
use super::world::World;

/// How long sessions outlive their clients.
pub const LEASE: Duration = Duration::from_secs(20);

pub struct Site {
    world: World,
    config: Config,
    keys: Arc<Keys>,
    pub disk: SimStorage,
    pub server: Option<Arc<UnpluggedServer>>,
    policy: CheckpointPolicy,
    decoded: Decoded,
    /// A collection right after the change of that number from now.
    collect_after: Arc<AtomicU64>,
    is_collecting: Arc<AtomicBool>,
}

impl Site {
    pub fn new(world: &World, config: &Config, keys: &Arc<Keys>) -> Self {
        let disk = SimStorage::new();
        make_directories(&disk);
        let policy = CheckpointPolicy {
            interval_ms: 100 + world.below(4000),
            bytes: 50_000 << world.below(6),
        };
        Self {
            world: world.clone(),
            config: config.clone(),
            keys: keys.clone(),
            disk,
            server: None,
            policy,
            decoded: Decoded::default(),
            collect_after: Arc::default(),
            is_collecting: Arc::default(),
        }
    }

    /// Starts the server on what is on the disk.
    pub fn start(&mut self) -> Result<(), RepositoryError> {
        let seed = self.world.lock().rng.next();
        // The repository owns the disk, which must not own the repository.
        let current = Arc::new(Mutex::new(Weak::new()));
        let storage = self.interruptible(&current);
        let repository = self.open_as_owner(storage, seed)?;
        *current.lock() = Arc::downgrade(&repository);
        let clock = Arc::new(SetClock::new(UnixMs::from_millis(1)));
        let name = "main".parse().expect("a name");
        let server = UnpluggedServer::new(name, repository, LEASE, self.policy, clock)?;
        self.server = Some(Arc::new(server));
        let mut state = self.world.lock();
        state.is_server_up = true;
        state.note("the server is up".to_owned());
        Ok(())
    }

    /// Opens the repository without a key if that is a secret.
    fn open_as_owner(
        &self,
        storage: Arc<dyn Storage>,
        seed: u64,
    ) -> Result<Arc<LocalRepository>, RepositoryError> {
        let index = Arc::new(MemoryIndex::new());
        reconcile(&*storage, self.config.repository, &*index, &mut Vec::new())?;
        Ok(LocalRepository::assemble(Parts {
            storage,
            engine: Arc::new(SimEngine::new()),
            entropy: Arc::new(SeededEntropy::new(seed)),
            config: self.config.clone(),
            keys: (!self.config.is_encrypted()).then(|| self.keys.clone()),
            index,
            root: None,
            lock: None,
            beside_owner: false,
        }))
    }

    /// The disk, with collections in the middle of whatever changes it.
    fn interruptible(&self, current: &Arc<Mutex<Weak<LocalRepository>>>) -> Arc<dyn Storage> {
        let (current, after) = (current.clone(), self.collect_after.clone());
        let is_collecting = self.is_collecting.clone();
        let world = self.world.clone();
        let hook = move |_: &str, _: &str, _: &[u8]| {
            if after.load(Ordering::Relaxed) == 0 || is_collecting.swap(true, Ordering::Relaxed) {
                return;
            }
            let is_due = after.fetch_sub(1, Ordering::Relaxed) == 1;
            let repository = current.lock().upgrade().filter(|_| is_due);
            if let Some(repository) = repository {
                collect(&world, &repository);
            }
            is_collecting.store(false, Ordering::Relaxed);
        };
        Arc::new(Watched {
            inner: Arc::new(self.disk.clone()),
            hook: Arc::new(hook),
        })
    }

    /// Has a collection in the middle of something.
    pub fn collect_soon(&self) {
        let after = 1 + self.world.below(60);
        self.collect_after.store(after, Ordering::Relaxed);
    }

    pub fn collect(&self) {
        if let Some(server) = &self.server {
            self.is_collecting.store(true, Ordering::Relaxed);
            collect(&self.world, server.repository());
            self.is_collecting.store(false, Ordering::Relaxed);
        }
    }

    /// Someone forgets a snapshot.
    pub fn forget(&self) {
        let Some(server) = &self.server else { return };
        let snapshots = server.repository().snapshots();
        let Ok(listing) = snapshots.list() else {
            return;
        };
        if listing.ids.is_empty() {
            return;
        }
        let id = listing.ids[self.world.below(listing.ids.len() as u64) as usize];
        let mut state = self.world.lock();
        state.books.forgetting.insert(id);
        state.note(format!("{id} is forgotten"));
        drop(state);
        // Without room or with a bad disk it stays.
        let _ = snapshots.forget(&[id]);
    }

    /// The disk as it is found after the server ended; without power it has lost some of what was not synced.
    pub fn lose_power(&mut self, is_power_lost: bool) {
        self.collect_after.store(0, Ordering::Relaxed);
        self.disk.clear_faults();
        if is_power_lost {
            let seed = self.world.lock().rng.next();
            let mut states = self.disk.crash_states(seed, 4);
            let chosen = self.world.below(states.len() as u64);
            self.disk = states.swap_remove(chosen as usize);
        }
    }

    /// Panics unless what is visible is right and what was promised is there.
    pub fn check(&self) {
        let storage: Arc<dyn Storage> = Arc::new(self.disk.clone());
        let repository = open(storage, &self.config, &self.keys, 0).expect("it opens");
        self.check_in(&repository);
    }

    fn check_in(&self, repository: &LocalRepository) {
        let (all, unreadable) = repository.snapshots().read_all().expect("listed");
        assert!(unreadable.is_empty(), "a snapshot cannot be read");
        let state = self.world.lock();
        let books = &state.books;
        let visible: Vec<SnapshotId> = all.iter().map(|stored| stored.id).collect();
        for id in books.promised.keys() {
            assert!(
                visible.contains(id) || books.forgetting.contains(id),
                "{id} was promised and is gone"
            );
        }
        for (at, stored) in all.iter().enumerate() {
            let attempt = stored.snapshot.created_ms;
            let session = stored.snapshot.session;
            let twice = all[..at]
                .iter()
                .find(|other| other.snapshot.session == session);
            assert!(twice.is_none(), "session {session} published twice");
            assert_eq!(
                books.last_holder(session),
                Some(attempt),
                "{} was published by who did not hold its session last",
                stored.id
            );
            let given = &books.given[&attempt];
            assert_eq!(stored.snapshot.vm, given.vm);
            self.compare(repository, stored, &given.disks);
        }
    }

    /// Panics unless a snapshot is these disks, without laying them out in memory.
    fn compare(&self, repository: &LocalRepository, stored: &StoredSnapshot, disks: &Disks) {
        let snapshot = &stored.snapshot;
        assert!(!stored.incomplete, "{} is incomplete", stored.id);
        assert_eq!(snapshot.disks.len(), disks.len(), "disks of {}", stored.id);
        for (disk, (label, content)) in snapshot.disks.iter().zip(disks) {
            let what = format!("{} disk {label}", stored.id);
            assert_eq!(
                (&disk.label, disk.size.get()),
                (label, content.len() as u64)
            );
            let mut zeros_from = 0;
            let tree = disk.tree();
            let walked =
                repository
                    .objects()
                    .visit_tree(tree, 0..tree.segments, &mut |number, id| {
                        let map = repository.objects().segment_map(id)?;
                        let range = disk.segment_size.range_of(number, disk.size);
                        assert_eq!(u64::from(map.len()), range.len(), "{what}, {number:?}");
                        assert_zero(content, zeros_from..range.start as usize, &what);
                        zeros_from = range.end as usize;
                        for (start, extent) in map.placed() {
                            let at = range.start as usize + start as usize;
                            match *extent {
                                Extent::Zero { len } => {
                                    assert_zero(content, at..at + len as usize, &what)
                                }
                                Extent::Data { chunk, offset, len } => {
                                    let plain = self.decoded.chunk(repository, chunk)?;
                                    let plain = &plain[offset as usize..(offset + len) as usize];
                                    let is_same = *plain == content[at..at + len as usize];
                                    assert!(is_same, "{what} differs at {at}");
                                }
                            }
                        }
                        Ok(())
                    });
            walked.unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
            assert_zero(content, zeros_from..content.len(), &what);
        }
        for (chunk, len) in snapshot
            .metadata
            .iter()
            .flat_map(|metadata| &metadata.chunks)
        {
            let plain = self
                .decoded
                .chunk(repository, *chunk)
                .expect("metadata is there");
            assert_eq!(plain.len() as u32, *len);
        }
    }

    /// Panics unless, once all is quiet, nothing is left of what ended, and nothing is missing.
    pub fn check_rest(&self) {
        let server = self.server.as_ref().expect("it runs");
        server.tick();
        assert!(server.sessions().is_empty(), "{:?}", server.sessions());
        let repository = server.repository();
        for _ in 0..2 {
            let report = run_gc(repository, 100);
            let report = report.unwrap_or_else(|error| panic!("gc: {}", chain(&error)));
            assert_eq!(report.rewrite_stopped, None);
        }
        assert_no_leftovers(repository);
        self.check();
        let (all, _) = repository.snapshots().read_all().expect("listed");
        let live = live_objects(repository, &all).expect("all is there");
        let mut kept = BTreeMap::new();
        for (pack, ids) in packs_on_disk(repository) {
            for id in ids {
                assert!(live.contains(&id), "{id} is kept in {pack} and not needed");
                let other = kept.insert(id, pack);
                assert!(other.is_none(), "{id} is kept in {pack} and in {other:?}");
            }
        }
    }

    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (path, content) in self.disk.contents() {
            hasher.update(path.as_bytes());
            hasher.update(&content.unwrap_or_default());
        }
        hasher.finalize()
    }

    /// Bytes on the disk.
    pub fn used(&self) -> u64 {
        let contents = self.disk.contents();
        contents.values().flatten().map(|of| of.len() as u64).sum()
    }
}

fn assert_zero(content: &[u8], range: Range<usize>, what: &str) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut pieces = content[range.clone()].chunks(ZEROS.len());
    let is_zero = pieces.all(|piece| *piece == ZEROS[..piece.len()]);
    assert!(is_zero, "{what} differs within {range:?}");
}

fn collect(world: &World, repository: &Arc<LocalRepository>) {
    let percent = world.below(101) as u8;
    match run_gc(repository, percent) {
        Ok(report) => world.note(|| format!("a collection removed {}", report.packs_removed)),
        Err(error) => {
            world.note(|| format!("a collection failed: {}", chain(&error)));
            let state = world.lock();
            let has_faults = state.books.has_disk_faults || (state.is_server_mute)();
            drop(state);
            assert!(has_faults, "a collection failed: {}", chain(&error));
        }
    }
}
