//! Every operation of the repository's disk fails once, at every position of a backup and a collection;
//! the disk is full; the source cannot be read. Nothing of that may cost more than the work at hand.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rayon::ThreadPool;
use undercroft_dataplane::ingest::backup::BackupReport;
use undercroft_dataplane::io::{SimOp, SimStorage, Storage};
use undercroft_dataplane::repository::error::{RepositoryError, Result};
use undercroft_dataplane::repository::gc::CollectReport;
use undercroft_dataplane::repository::keys::Keys;
use undercroft_dataplane::repository::pack_reader::list_packs;
use undercroft_dataplane::repository::stats::stats;
use undercroft_dataplane::repository::{LocalRepository, Repository};
use undercroft_format::config::Config;
use undercroft_format::partition::PARTITION_HEAD_LEN;

use support::{
    Content, Decoded, DiskInput, KIB, MIB, Rng, Watched, assert_no_leftovers, assert_restores,
    chain, config, disk_job, fill_noise, job, make_directories, one_thread, open, run_backup,
    run_gc, scribble,
};

const OPS: [SimOp; 11] = [
    SimOp::Open,
    SimOp::Create,
    SimOp::Read,
    SimOp::Write,
    SimOp::SetLen,
    SimOp::Sync,
    SimOp::SyncDir,
    SimOp::List,
    SimOp::Rename,
    SimOp::Remove,
    SimOp::CreateDir,
];
const ERRNOS: [i32; 2] = [libc::EIO, libc::ENOSPC];
/// The times of the snapshots, which tell their contents.
const GONE: u64 = 1;
const PARENT: u64 = 2;
const OTHER: u64 = 3;
const NEXT: u64 = 4;
const RETRY: u64 = 5;

/// A repository with three snapshots, one of them forgotten but not collected.
struct World {
    sim: SimStorage,
    config: Config,
    keys: Arc<Keys>,
    repository: Arc<LocalRepository>,
    threads: Arc<ThreadPool>,
    contents: BTreeMap<u64, Content>,
}

impl World {
    fn new(pack_len: u32) -> Self {
        let rng = &mut Rng(17);
        let (config, keys) = config(pack_len, false);
        let sim = SimStorage::new();
        make_directories(&sim);
        let repository = open(Arc::new(sim.clone()), &config, &keys, 1).expect("it opens");
        let mut contents = BTreeMap::new();
        let mut disk = vec![0; (MIB + 200 * KIB) as usize];
        for (time, scribbles) in [(GONE, 6), (PARENT, 3), (OTHER, 3), (NEXT, 2)] {
            (0..scribbles).for_each(|_| scribble(&mut disk, rng));
            contents.insert(time, Arc::new(disk.clone()));
        }
        contents.insert(RETRY, contents[&NEXT].clone());
        let world = Self {
            sim,
            config,
            keys,
            repository,
            threads: one_thread(),
            contents,
        };
        for time in [GONE, PARENT, OTHER] {
            let report = world.full(time).expect("nothing fails");
            if time == GONE {
                let snapshots = world.repository.snapshots();
                snapshots.forget(&[report.id]).expect("it is there");
            }
        }
        world
    }

    fn full(&self, time: u64) -> Result<BackupReport> {
        let inputs = vec![DiskInput::full("root", &self.contents[&time])];
        run_backup(
            &self.repository,
            &self.threads,
            job("vm", time, None, inputs),
        )
    }

    fn increment(&self, time: u64) -> Result<BackupReport> {
        let (all, _) = self.repository.snapshots().read_all()?;
        let parent = all
            .into_iter()
            .find(|stored| stored.snapshot.created_ms == PARENT);
        let old = &self.contents[&PARENT];
        let inputs = vec![DiskInput::since("root", old, &self.contents[&time])];
        run_backup(
            &self.repository,
            &self.threads,
            job("vm", time, parent, inputs),
        )
    }

    /// All snapshots are right and these are among them, for this process, the next one, and after a
    /// power failure at once.
    fn check(&self, times: &[u64], decoded: &Decoded) {
        self.check_one(&self.repository, times, decoded);
        for state in self
            .sim
            .crash_states(1, 3)
            .into_iter()
            .chain([self.sim.clone()])
        {
            let reopened = open(Arc::new(state), &self.config, &self.keys, 900)
                .unwrap_or_else(|error| panic!("opening: {}", chain(&error)));
            self.check_one(&reopened, times, decoded);
        }
    }

    fn check_one(&self, repository: &LocalRepository, times: &[u64], decoded: &Decoded) {
        let (all, failed) = repository.snapshots().read_all().expect("listed");
        assert!(failed.is_empty(), "{failed:?}");
        for time in times {
            assert!(
                all.iter().any(|stored| stored.snapshot.created_ms == *time),
                "the snapshot of time {time} is gone"
            );
        }
        for stored in all {
            let content = self.contents[&stored.snapshot.created_ms].clone();
            assert_restores(
                repository,
                &stored,
                &[("root".to_owned(), content)],
                decoded,
            );
        }
    }

    /// True if the fault that was armed has not struck yet; it is gone then.
    fn disarm(&self, op: SimOp) -> bool {
        let sim = &self.sim;
        let scratch = |name: &str| {
            let _ = sim.remove(name);
            sim.create(name, false)
        };
        let result = match op {
            SimOp::Create => scratch("scratch").map(drop),
            SimOp::Open => scratch("scratch").and_then(|_| sim.open("scratch", false).map(drop)),
            SimOp::Read => scratch("scratch").and_then(|f| f.read_at(&mut [0], 0).map(drop)),
            SimOp::Write => scratch("scratch").and_then(|f| f.write_all_at(&[0], 0)),
            SimOp::SetLen => scratch("scratch").and_then(|f| f.set_len(1)),
            SimOp::Sync => scratch("scratch").and_then(|f| f.sync()),
            SimOp::SyncDir => sim.sync_dir(""),
            SimOp::List => sim.list("").map(drop),
            SimOp::Rename => scratch("scratch").and_then(|_| sim.rename("scratch", "scratch2")),
            SimOp::Remove => sim
                .create("scratch3", false)
                .and_then(|_| sim.remove("scratch3")),
            SimOp::CreateDir => sim.create_dir("scratch.d"),
            SimOp::Punch => unreachable!("a repository punches nothing"),
        };
        result.is_err()
    }

    fn packs(&self) -> usize {
        list_packs(&self.sim).expect("listed").sealed.len()
    }

    fn used(&self) -> u64 {
        let files = self.sim.contents();
        files
            .values()
            .flatten()
            .map(|bytes| bytes.len() as u64)
            .sum()
    }
}

/// Runs `body` in a thread of its own and fails if it does not end.
fn within_a_minute<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = sender.send(body());
    });
    match receiver.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().expect_err("it sent nothing"))
        }
    }
}

/// Lets every operation of every kind fail once in `work`; gives the outcomes to `judge`. What comes after
/// must work: checks, `work` again, a collection.
fn every_fault<R: Send + 'static>(
    name: &str,
    pack_len: u32,
    work: fn(&World) -> Result<R>,
    judge: fn(&World, SimOp, &Result<R>, packs_before: usize),
) {
    let decoded = Arc::new(Decoded::default());
    let (mut cases, mut survived) = (0, 0);
    for op in OPS {
        for errno in ERRNOS {
            for n in 1.. {
                let decoded = decoded.clone();
                let struck = within_a_minute(move || {
                    let world = World::new(pack_len);
                    let packs_before = world.packs();
                    world.sim.fail_nth(op, n, errno);
                    let result = work(&world);
                    if world.disarm(op) {
                        result.unwrap_or_else(|e| panic!("{op:?} {n}: {}", chain(&e)));
                        return None;
                    }
                    let place = format!("{op:?} {n} with errno {errno}");
                    judge(&world, op, &result, packs_before);
                    world.check(&[PARENT, OTHER], &decoded);
                    world
                        .increment(RETRY)
                        .unwrap_or_else(|e| panic!("a backup after {place}: {}", chain(&e)));
                    run_gc(&world.repository, 90)
                        .unwrap_or_else(|e| panic!("gc after {place}: {}", chain(&e)));
                    world.check(&[PARENT, OTHER, RETRY], &decoded);
                    assert_no_leftovers(&world.repository);
                    Some(result.is_ok())
                });
                let Some(ok) = struck else { break };
                cases += 1;
                survived += u64::from(ok);
            }
        }
    }
    println!("{name}: {cases} faults, {survived} of them without effect");
    assert!(cases > 40);
}

/// Kinds that nothing may go on after.
fn is_final(op: SimOp) -> bool {
    !matches!(op, SimOp::Read | SimOp::Open | SimOp::Remove)
}

#[test]
fn any_failed_operation_fails_a_backup_and_nothing_else() {
    static SYNCS: AtomicUsize = AtomicUsize::new(0);
    let judge = |_: &World, op: SimOp, result: &Result<BackupReport>, _: usize| match result {
        Ok(_) if op == SimOp::SyncDir => drop(SYNCS.fetch_add(1, Ordering::Relaxed)),
        Ok(_) => assert!(!is_final(op), "{op:?} went unnoticed"),
        Err(_) => {}
    };
    every_fault("increment", 64 << 10, |world| world.increment(NEXT), judge);
    every_fault("full backup", 1 << 20, |world| world.full(NEXT), judge);
    // That the file of the ended session is gone is all that may fail to become durable.
    let syncs = SYNCS.load(Ordering::Relaxed);
    assert!(syncs <= 2 * ERRNOS.len(), "{syncs} syncs went unnoticed");
}

#[test]
fn any_failed_operation_fails_a_collection_and_nothing_else() {
    every_fault(
        "collection",
        64 << 10,
        |world| run_gc(&world.repository, 90),
        |world, op, result, packs_before| match result {
            Ok(report) => {
                let stopped = report.rewrite_stopped.is_some();
                assert!(stopped || !is_final(op), "{op:?} went unnoticed");
            }
            Err(error) if op == SimOp::List => {
                let text = chain(error);
                // The last two lists are for left-overs, when the work is done.
                let done = world.packs() != packs_before;
                assert!(
                    !done || !text.contains("packs"),
                    "{text}: removed something"
                );
            }
            Err(_) => {}
        },
    );
}

/// A list that fails before the sweep leaves every pack where it is.
#[test]
fn a_collection_whose_listing_fails_removes_nothing() {
    let lists = |world: &World| 1 + world.sim.list("packs").expect("listed").len() as u64 + 1;
    let first = World::new(64 << 10);
    for n in 1..=lists(&first) {
        let world = World::new(64 << 10);
        let before = world.sim.contents();
        world.sim.fail_nth(SimOp::List, n, libc::EIO);
        run_gc(&world.repository, 90).expect_err("a short listing is no listing");
        assert!(
            world.sim.contents() == before,
            "list {n}: something changed"
        );
    }
}

#[test]
fn a_full_disk_fails_a_backup_cleanly_and_a_collection_makes_room() {
    let decoded = Decoded::default();
    let (mut failed, mut stored) = (0, 0);
    for room in (0..140 * KIB).step_by(1500) {
        let world = World::new(16 << 10);
        let mut used = world.used();
        world.sim.set_capacity(used + room);
        match world.increment(NEXT) {
            Ok(_) => {
                used = world.used();
                stored += 1;
            }
            Err(error) => {
                assert!(error.is_disk_full(), "{}", chain(&error));
                failed += 1;
            }
        }
        world.check(&[PARENT, OTHER], &decoded);
        // The packs of the forgotten snapshot alone go at once; the others as room for copies is made.
        let mut reports = Vec::new();
        for _ in 0..4 {
            let report: CollectReport = run_gc(&world.repository, 90)
                .unwrap_or_else(|error| panic!("gc with {room} to spare: {}", chain(&error)));
            reports.push(report);
            world.check(&[PARENT, OTHER], &decoded);
            assert_no_leftovers(&world.repository);
        }
        assert!(
            reports[0].packs_removed > 0 && world.used() < used,
            "{reports:#?}"
        );
    }
    println!("{failed} backups failed, {stored} fitted");
    assert!(failed > 10 && stored > 10);
}

#[test]
fn on_a_disk_filled_to_the_last_byte_everything_can_be_forgotten_and_collected() {
    let world = World::new(64 << 10);
    world.sim.set_capacity(world.used());
    world.full(NEXT).expect_err("there is no room");
    let (all, _) = world.repository.snapshots().read_all().expect("listed");
    for stored in all {
        world
            .repository
            .snapshots()
            .forget(&[stored.id])
            .expect("needs no room");
        run_gc(&world.repository, 60).expect("needs no room");
    }
    assert_eq!(world.packs(), 0);
    world.full(OTHER).expect("there is room again");
    world.check(&[OTHER], &Decoded::default());
}

#[test]
fn an_unreadable_source_fails_the_backup_and_says_where() {
    let world = World::new(64 << 10);
    let mut content = (*world.contents[&NEXT]).clone();
    fill_noise(&mut content, &mut Rng(4));
    let content: Content = Arc::new(content);
    let len = content.len() as u64;
    for at in [0, 5000, MIB - 1, MIB, MIB + 70_000, len - 1] {
        let mut job = job("vm", 9, None, Vec::new());
        let input = DiskInput::full("root", &content);
        let mut disk = disk_job(input, None);
        disk.source = disk_job(DiskInput::full("root", &content), Some(at..at + 1)).source;
        job.disks.push(disk);
        let before = world.repository.snapshots().list().expect("listed").ids;
        let error = run_backup(&world.repository, &world.threads, job)
            .expect_err("a disk with a hole in it is no backup");
        let RepositoryError::Io { path, source, .. } = &error else {
            panic!("{}", chain(&error));
        };
        assert_eq!(source.raw_os_error(), Some(libc::EIO));
        if at >= PARTITION_HEAD_LEN as u64 {
            let told: u64 = path
                .rsplit(' ')
                .next()
                .and_then(|offset| offset.parse().ok())
                .unwrap_or_else(|| panic!("no offset in {path:?}"));
            assert!(told <= at && at < told + 256 * KIB, "{path}: not {at}");
        }
        let after = world.repository.snapshots().list().expect("listed").ids;
        assert_eq!(before, after);
    }
    world.check(&[PARENT, OTHER], &Decoded::default());
    run_gc(&world.repository, 60).expect("nothing is missing");
    assert_no_leftovers(&world.repository);
}

/// A backup of 10 MiB in one pack, and how often the length of its file was set.
fn long_pack(prepare: impl Fn(&SimStorage)) -> (Result<BackupReport>, usize) {
    let (config, keys) = config(16 << 20, false);
    let sim = SimStorage::new();
    make_directories(&sim);
    let resized = Arc::new(AtomicUsize::new(0));
    let storage = {
        let resized = resized.clone();
        Watched {
            inner: Arc::new(sim.clone()),
            hook: Arc::new(move |op: &str, _: &str, _: &[u8]| {
                if op == "set_len" {
                    resized.fetch_add(1, Ordering::Relaxed);
                }
            }),
        }
    };
    let repository = open(Arc::new(storage), &config, &keys, 1).expect("it opens");
    let mut disk = vec![0; 10 << 20];
    fill_noise(&mut disk, &mut Rng(1));
    let disks = vec![DiskInput::full("disk", &Arc::new(disk))];
    prepare(&sim);
    let result = run_backup(&repository, &one_thread(), job("vm", 1, None, disks));
    // The meta pack is cut once, when it is sealed.
    (result, resized.load(Ordering::Relaxed) - 1)
}

#[test]
fn room_is_set_aside_for_a_pack_only_where_there_is_ample() {
    let (result, resized) = long_pack(|_| {});
    result.expect("nothing fails");
    assert_eq!(resized, 2, "once ahead, once when sealed");
    let (result, resized) = long_pack(|sim| sim.set_capacity(64 << 20));
    result.expect("there is room");
    assert_eq!(resized, 1, "when sealed");
}

#[test]
fn a_write_that_finds_no_room_gets_what_was_set_aside() {
    // The session's file is the first write, the pack's first 4 MiB take eight.
    let (result, resized) = long_pack(|sim| sim.fail_nth(SimOp::Write, 12, libc::ENOSPC));
    result.expect("what was set aside is enough");
    assert_eq!(resized, 3, "ahead, given back, sealed");
}

#[test]
fn figures_do_not_mind_a_pack_that_goes_meanwhile() {
    let world = World::new(64 << 10);
    let all = stats(&world.repository).expect("nothing fails");
    // After its listing, each snapshot is opened, then each pack.
    world
        .sim
        .fail_nth(SimOp::Open, all.snapshots + 1, libc::ENOENT);
    let fewer = stats(&world.repository).expect("a pack was collected");
    assert_eq!(fewer.packs + 1, all.packs);
}
