//! Power failures and kills at every operation of a repository's life, on a simulated disk.
//!
//! A workload runs with the power failing after each of its mutating operations in turn. Every state
//! that the disk could then be in must open, hold every committed snapshot bit-exactly and no snapshot
//! with holes, and take a further backup and a collection. A failure prints the seed and the operation.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rayon::ThreadPool;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::io::{SimStorage, Storage};
use undercroft_dataplane::repository::entropy::SeededEntropy;
use undercroft_dataplane::repository::error::{RepositoryError, Result};
use undercroft_dataplane::repository::keys::Keys;
use undercroft_dataplane::repository::open::{create, read_config};
use undercroft_dataplane::repository::retention::UnixMs;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_dataplane::repository::{LocalRepository, Repository, layout};
use undercroft_dataplane::wall_clock::SetClock;
use undercroft_format::config::Config;
use undercroft_format::id::SnapshotId;
use undercroft_format::lock::LockEnd;

use support::{
    Content, Decoded, DiskInput, KIB, MIB, Rng, Watched, assert_no_leftovers, assert_restores,
    chain, create_options, job, one_thread, open, run_backup, run_gc, scribble,
};

type Disks = Vec<(String, Content)>;

/// What the outside world knows when the power fails.
#[derive(Clone, Default)]
struct Known {
    /// `init` returned.
    created: bool,
    /// What each backup was given, by its time, whether it returned or not.
    given: BTreeMap<u64, Disks>,
    /// Backups that returned.
    committed: BTreeMap<SnapshotId, u64>,
    /// Snapshots that somebody began to forget.
    forgetting: BTreeSet<SnapshotId>,
    /// Snapshots whose protection returned and was not lifted since.
    protected: BTreeSet<SnapshotId>,
    /// Until when snapshots are locked, where extending that returned.
    locked: BTreeMap<SnapshotId, UnixMs>,
}

/// The VM whose snapshots are locked when they are made ...
const LOCKED_VM: &str = "b";
/// ... until then, ...
const LOCKED_UNTIL: UnixMs = UnixMs::from_seconds(2_000);
/// ... which is not yet.
const NOW: UnixMs = UnixMs::from_seconds(1_000);

/// Inputs of a workload.
struct Script {
    seed: u64,
    pack_len: u32,
    a: [Disks; 4],
    b: Disks,
    decoded: Decoded,
}

impl Script {
    fn new(seed: u64, pack_len: u32) -> Self {
        let rng = &mut Rng(seed);
        let mut root = vec![0; (MIB + 300 * KIB + 777) as usize];
        let mut data = vec![0; 150_001];
        (0..6).for_each(|_| scribble(&mut root, rng));
        (0..3).for_each(|_| scribble(&mut data, rng));
        let mut days = Vec::new();
        for day in 0..4 {
            if day > 0 {
                (0..2).for_each(|_| scribble(&mut root, rng));
                scribble(&mut data, rng);
            }
            if day == 2 {
                root.truncate(MIB as usize - 5000);
                data.resize(170_000, 0);
            }
            days.push(vec![
                ("root".to_owned(), Arc::new(root.clone())),
                ("data".to_owned(), Arc::new(data.clone())),
            ]);
        }
        scribble(&mut root, rng);
        Self {
            seed,
            pack_len,
            a: days.try_into().expect("four days"),
            b: vec![("root".to_owned(), Arc::new(root))],
            decoded: Decoded::default(),
        }
    }
}

/// A repository and what was done to it.
struct Run<'a> {
    repository: Arc<LocalRepository>,
    known: &'a mut Known,
    threads: &'a ThreadPool,
}

impl Run<'_> {
    fn backup(
        &mut self,
        vm: &str,
        now_ms: u64,
        disks: &Disks,
        parent: Option<(&StoredSnapshot, &Disks)>,
    ) -> Result<StoredSnapshot> {
        let inputs = disks
            .iter()
            .enumerate()
            .map(|(at, (label, content))| match parent {
                Some((_, old)) => DiskInput::since(label, &old[at].1, content),
                None => DiskInput::full(label, content),
            })
            .collect();
        self.known.given.insert(now_ms, disks.clone());
        let parent = parent.map(|(stored, _)| stored.clone());
        self.repository
            .snapshots()
            .keep_time_by(Arc::new(SetClock::new(NOW)));
        let mut job = job(vm, now_ms, parent, inputs);
        job.lock = (vm == LOCKED_VM).then_some(LockEnd::At(LOCKED_UNTIL));
        let report = run_backup(&self.repository, self.threads, job)?;
        self.known.committed.insert(report.id, now_ms);
        self.repository.snapshots().read(report.id)
    }

    fn forget(&mut self, id: SnapshotId) -> Result<()> {
        self.known.forgetting.insert(id);
        self.repository.snapshots().forget(&[id])
    }

    fn lock(&mut self, id: SnapshotId, until: UnixMs) -> Result<()> {
        let until = self.repository.snapshots().lock(id, LockEnd::At(until))?;
        self.known.locked.insert(id, until);
        Ok(())
    }

    fn protect(&mut self, id: SnapshotId, protected: bool) -> Result<()> {
        if !protected {
            self.known.protected.remove(&id);
        }
        self.repository.snapshots().protect(id, protected)?;
        if protected {
            self.known.protected.insert(id);
        }
        Ok(())
    }
}

fn keys_of(config: &Config) -> Arc<Keys> {
    Arc::new(Keys::unlock(config, None).expect("not encrypted"))
}

/// A short life of a repository, until it ends or the power fails.
fn live(
    storage: &Arc<dyn Storage>,
    script: &Script,
    known: &mut Known,
    threads: &ThreadPool,
) -> Result<()> {
    let entropy = SeededEntropy::new(script.seed);
    create(
        &**storage,
        &create_options(script.pack_len),
        &entropy,
        "sim",
    )?;
    known.created = true;
    let config = read_config(&**storage, "sim")?;
    let keys = keys_of(&config);
    let mut run = Run {
        repository: open(storage.clone(), &config, &keys, script.seed + 1)?,
        known,
        threads,
    };
    let [day1, day2, day3, day4] = &script.a;
    let first = run.backup("a", 1, day1, None)?;
    let second = run.backup("a", 2, day2, Some((&first, day1)))?;
    run.protect(first.id, true)?;
    let locked = run.backup(LOCKED_VM, 3, &script.b, None)?;
    run.lock(locked.id, LOCKED_UNTIL.after(Duration::from_secs(1)))?;
    run.protect(first.id, false)?;
    run.forget(first.id)?;
    run_gc(&run.repository, 90)?;
    let third = run.backup("a", 4, day3, Some((&second, day2)))?;
    run.forget(second.id)?;
    run_gc(&run.repository, 100)?;
    run.backup("a", 5, day4, Some((&third, day3)))?;
    Ok(())
}

/// What anyone finds after the failure must be right. With `go_on`, so must what they do next.
fn check(state: &SimStorage, script: &Script, known: &Known, threads: &ThreadPool, go_on: bool) {
    let storage: Arc<dyn Storage> = Arc::new(state.clone());
    let config = match read_config(&*storage, "sim") {
        Ok(config) => config,
        Err(RepositoryError::NotARepository { .. }) if !known.created => {
            if go_on {
                let entropy = SeededEntropy::new(script.seed + 77);
                create(
                    &*storage,
                    &create_options(script.pack_len),
                    &entropy,
                    "again",
                )
                .expect("what `init` left is no obstacle to another one");
            }
            return;
        }
        Err(error) => panic!("the config: {}", chain(&error)),
    };
    let keys = keys_of(&config);
    let repository = open(storage.clone(), &config, &keys, script.seed + 1_000_003)
        .unwrap_or_else(|error| panic!("opening: {}", chain(&error)));
    check_snapshots(&repository, known, &script.decoded);
    if !go_on {
        return;
    }

    let mut known = known.clone();
    known.forgetting.clear();
    known.protected.clear();
    let (stored, _) = repository
        .snapshots()
        .read_all()
        .expect("they were just read");
    known.committed = stored
        .iter()
        .map(|s| (s.id, s.snapshot.created_ms))
        .collect();
    let mut run = Run {
        repository,
        known: &mut known,
        threads,
    };
    // A full read of what was being sent finds whatever the dead session left; an increment splices.
    run.backup("a", 91, &script.a[1], None)
        .unwrap_or_else(|error| panic!("a backup afterwards: {}", chain(&error)));
    if let Some(parent) = stored.iter().rev().find(|s| s.snapshot.vm == "a") {
        let old = run.known.given[&parent.snapshot.created_ms].clone();
        run.backup("a", 92, &script.a[3], Some((parent, &old)))
            .unwrap_or_else(|error| panic!("an increment afterwards: {}", chain(&error)));
    }
    check_snapshots(&run.repository, run.known, &script.decoded);
    run_gc(&run.repository, 100)
        .unwrap_or_else(|error| panic!("a collection afterwards: {}", chain(&error)));
    assert_no_leftovers(&run.repository);
    let reopened = open(storage, &config, &keys, script.seed + 2_000_003).expect("it opens");
    check_snapshots(&reopened, &known, &script.decoded);
}

fn check_snapshots(repository: &LocalRepository, known: &Known, decoded: &Decoded) {
    let (stored, failed) = repository
        .snapshots()
        .read_all()
        .unwrap_or_else(|error| panic!("listing snapshots: {}", chain(&error)));
    assert!(failed.is_empty(), "unreadable snapshots: {failed:?}");
    for (id, now_ms) in &known.committed {
        let found = stored.iter().find(|stored| stored.id == *id);
        assert!(
            found.is_some() || known.forgetting.contains(id),
            "committed snapshot {id} of time {now_ms} is gone"
        );
        if let Some(found) = found
            && known.protected.contains(id)
        {
            assert!(found.protected, "{id} lost its protection");
        }
    }
    for stored in &stored {
        let disks = &known.given[&stored.snapshot.created_ms];
        if stored.snapshot.vm == LOCKED_VM {
            let at_least = known
                .locked
                .get(&stored.id)
                .copied()
                .unwrap_or(LOCKED_UNTIL);
            assert!(
                stored.locked_until >= Some(at_least),
                "{} was seen without its lock: {:?}",
                stored.id,
                stored.locked_until
            );
        }
        assert_restores(repository, stored, disks, decoded);
    }
}

/// Runs `body`; says where in case it fails.
fn told<R>(seed: u64, place: &str, body: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        eprintln!("failed with seed {seed}, {place}");
        resume_unwind(panic)
    })
}

fn op_count_of(script: &Script, threads: &ThreadPool) -> u64 {
    let sim = SimStorage::new();
    let mut known = Known::default();
    let storage: Arc<dyn Storage> = Arc::new(sim.clone());
    live(&storage, script, &mut known, threads).expect("nothing fails");
    let count = sim.op_count();
    check(&sim, script, &known, threads, true);
    count
}

/// The power fails after every operation.
fn power_failures(seed: u64, pack_len: u32, states_per_op: usize, go_on_every: u64) {
    let timer = Stopwatch::start();
    let threads = one_thread();
    let script = Script::new(seed, pack_len);
    let total = told(seed, "no failure", || op_count_of(&script, &threads));
    let mut states = 0_u64;
    for op in 0..=total {
        let sim = SimStorage::new();
        sim.set_crash_after(op);
        let storage: Arc<dyn Storage> = Arc::new(sim.clone());
        let mut known = Known::default();
        let _ = told(seed, &format!("power off after operation {op}"), || {
            live(&storage, &script, &mut known, &threads)
        });
        for (at, state) in sim
            .crash_states(seed ^ op, states_per_op)
            .iter()
            .enumerate()
        {
            let go_on = states.is_multiple_of(go_on_every);
            told(seed, &format!("after operation {op}, state {at}"), || {
                check(state, &script, &known, &threads, go_on);
            });
            states += 1;
        }
    }
    report("power failures", seed, pack_len, total, states, &timer);
}

/// The process is killed after an operation, another goes on with what the kernel still has, and then
/// the power fails: what the first one wrote and did not sync is as volatile as ever.
fn kill_then_power_failure(seed: u64, pack_len: u32, stride: u64, states_per_op: usize) {
    let timer = Stopwatch::start();
    let threads = one_thread();
    let script = Script::new(seed, pack_len);
    let total = op_count_of(&script, &threads);
    let mut states = 0_u64;
    let rng = &mut Rng(seed);
    for killed in (rng.below(stride)..=total).step_by(stride as usize) {
        // How many operations later the power fails; the last ones are beyond the end.
        for later in [rng.below(20), 20 + rng.below(60), u64::MAX] {
            let sim = SimStorage::new();
            sim.set_crash_after(killed);
            let storage: Arc<dyn Storage> = Arc::new(sim.clone());
            let mut known = Known::default();
            let _ = live(&storage, &script, &mut known, &threads);
            sim.set_crash_after(sim.op_count().saturating_add(later));
            let place = format!("killed after operation {killed}, power off {later} later");
            told(seed, &place, || {
                go_on_after_kill(&storage, &script, &mut known, &threads);
            });
            for (at, state) in sim
                .crash_states(seed ^ killed, states_per_op)
                .iter()
                .enumerate()
            {
                told(seed, &format!("{place}, state {at}"), || {
                    check(state, &script, &known, &threads, false);
                });
                states += 1;
            }
        }
    }
    report("kills, then power", seed, pack_len, total, states, &timer);
}

/// What the next process does: whatever its predecessor began, then a backup and a collection.
fn go_on_after_kill(
    storage: &Arc<dyn Storage>,
    script: &Script,
    known: &mut Known,
    threads: &ThreadPool,
) {
    let Ok(config) = read_config(&**storage, "sim") else {
        return;
    };
    let keys = keys_of(&config);
    let Ok(repository) = open(storage.clone(), &config, &keys, script.seed + 1_000_003) else {
        return;
    };
    let mut run = Run {
        repository,
        known,
        threads,
    };
    let go_on = |run: &mut Run<'_>| -> Result<()> {
        // Snapshots that are not there any more to this process must not come back with holes.
        run_gc(&run.repository, 90)?;
        run.backup("a", 91, &script.a[1], None)?;
        run_gc(&run.repository, 100)?;
        Ok(())
    };
    let _ = go_on(&mut run);
}

fn report(what: &str, seed: u64, pack_len: u32, ops: u64, states: u64, timer: &Stopwatch) {
    static ALL: AtomicU64 = AtomicU64::new(0);
    let all = ALL.fetch_add(states, Ordering::Relaxed) + states;
    let elapsed: Duration = timer.elapsed();
    println!(
        "{what}: seed {seed}, packs of {pack_len}: {ops} operations, {states} states, {elapsed:.1?} ({all} states so far)"
    );
}

#[test]
fn nothing_committed_is_lost_when_the_power_fails_with_small_packs() {
    power_failures(1, 64 << 10, 120, 16);
}

#[test]
fn nothing_committed_is_lost_when_the_power_fails_with_large_packs() {
    power_failures(2, 1 << 20, 150, 16);
}

#[test]
fn nothing_committed_is_lost_when_the_power_fails_with_middling_packs() {
    power_failures(3, 160 << 10, 120, 16);
}

#[test]
fn nothing_committed_is_lost_when_a_kill_is_followed_by_a_power_failure() {
    kill_then_power_failure(4, 96 << 10, 1, 30);
}

/// Ids, and thereby names, come from the seed; only the duration of a backup does not.
#[test]
fn the_same_seed_gives_the_same_operations() {
    let log_of = |seed: u64| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let hook = {
            let log = log.clone();
            move |op: &str, path: &str, bytes: &[u8]| {
                let mut line = format!("{op} {path} {}", blake3::hash(bytes));
                if path.starts_with(layout::SNAPSHOTS) {
                    line = format!("{op} in {}", layout::SNAPSHOTS);
                }
                log.lock().push(line);
            }
        };
        let storage: Arc<dyn Storage> = Arc::new(Watched {
            inner: Arc::new(SimStorage::new()),
            hook: Arc::new(hook),
        });
        let script = Script::new(seed, 64 << 10);
        live(&storage, &script, &mut Known::default(), &one_thread()).expect("nothing fails");
        std::mem::take(&mut *log.lock())
    };
    let (first, second) = (log_of(7), log_of(7));
    let differs = first.iter().zip(&second).position(|(a, b)| a != b);
    assert_eq!(differs.map(|at| (at, &first[at], &second[at])), None);
    assert_eq!(first.len(), second.len());
    assert_ne!(first, log_of(8));
}
