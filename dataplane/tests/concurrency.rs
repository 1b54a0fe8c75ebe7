//! Backups, collections and forgetting at the same time, in one process.
//!
//! First step by step on a simulated disk: a collection at every single step of a backup. Then with real
//! threads, files, index and engine.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use undercroft_dataplane::io::{EngineRequest, SimStorage, Storage, choose};
use undercroft_dataplane::progress::Progress;
use undercroft_dataplane::repository::local_session::SessionStore;
use undercroft_dataplane::repository::open::{
    Access, OpenOptions, create_local, open_local, rebuild_index,
};
use undercroft_dataplane::repository::record::RecordEncoder;
use undercroft_dataplane::repository::{LocalRepository, Repository};
use undercroft_format::id::{ObjectId, SessionId, SnapshotId};
use undercroft_format::pack::{ObjectKind, RecordHeader};

use support::{
    Content, Decoded, DiskInput, KIB, MIB, Rng, Watched, assert_no_leftovers, assert_restores,
    chain, config, create_options, fill_noise, job, make_directories, one_thread, open, run_backup,
    run_gc, scribble, threads,
};

fn disk(len: u64, scribbles: usize, rng: &mut Rng) -> Vec<u8> {
    let mut disk = vec![0; len as usize];
    (0..scribbles).for_each(|_| scribble(&mut disk, rng));
    disk
}

fn one_disk(content: &Content) -> Vec<(String, Content)> {
    vec![("root".to_owned(), content.clone())]
}

type Action = Box<dyn FnMut() + Send>;

/// Does `action` right after the `at`-th change of the disk from now on.
struct Interruption {
    count: AtomicU64,
    at: AtomicU64,
    action: Mutex<Option<Action>>,
}

impl Interruption {
    fn new(inner: Arc<dyn Storage>) -> (Arc<Self>, Arc<dyn Storage>) {
        let this = Arc::new(Self {
            count: AtomicU64::new(0),
            at: AtomicU64::new(u64::MAX),
            action: Mutex::new(None),
        });
        let hook = {
            let this = this.clone();
            move |_: &str, _: &str, _: &[u8]| {
                let count = this.count.fetch_add(1, Ordering::SeqCst);
                if count == this.at.load(Ordering::SeqCst) {
                    // Taken out: the action changes the disk too.
                    let action = this.action.lock().take();
                    if let Some(mut action) = action {
                        action();
                    }
                }
            }
        };
        let hook = Arc::new(hook);
        (this, Arc::new(Watched { inner, hook }))
    }

    fn set(&self, at: u64, action: Action) {
        *self.action.lock() = Some(action);
        self.count.store(0, Ordering::SeqCst);
        self.at.store(at, Ordering::SeqCst);
    }
}

/// One backup with a collection after its `at`-th change; false if it ended before.
fn backup_interrupted_at(at: u64, increment: bool, forget_parent: bool) -> bool {
    let rng = &mut Rng(11);
    let threads = one_thread();
    let (config, keys) = config(64 << 10, false);
    let (interruption, storage) = Interruption::new(Arc::new(SimStorage::new()));
    make_directories(&*storage);
    let repository = open(storage.clone(), &config, &keys, 1).expect("it opens");
    let old: Content = Arc::new(disk(2 * MIB + 100, 10, rng));
    let mut changed = (*old).clone();
    (0..3).for_each(|_| scribble(&mut changed, rng));
    let new: Content = Arc::new(changed);
    let full =
        |vm, now, content: &Content| job(vm, now, None, vec![DiskInput::full("root", content)]);
    // Garbage whose chunks the interrupted backup can use, among others.
    let half: Content = Arc::new(new[..MIB as usize].to_vec());
    let garbage = run_backup(&repository, &threads, full("gone", 1, &half)).expect("stored");
    let parent = run_backup(&repository, &threads, full("vm", 2, &old)).expect("stored");
    repository
        .snapshots()
        .forget(&[garbage.id])
        .expect("it is there");

    let stored = repository.snapshots().read(parent.id).expect("it is there");
    let input = if increment {
        DiskInput::since("root", &old, &new)
    } else {
        DiskInput::full("root", &new)
    };
    interruption.set(at, {
        let repository = repository.clone();
        Box::new(move || {
            if forget_parent {
                repository
                    .snapshots()
                    .forget(&[parent.id])
                    .expect("it is there");
            }
            run_gc(&repository, 100).unwrap_or_else(|error| panic!("gc: {}", chain(&error)));
        })
    });
    let report = run_backup(
        &repository,
        &threads,
        job("vm", 3, Some(stored), vec![input]),
    )
    .unwrap_or_else(|error| panic!("gc after change {at}: {}", chain(&error)));
    let interrupted = interruption.action.lock().take().is_none();

    let decoded = Decoded::default();
    for reopen in [false, true] {
        let reopened = || open(storage.clone(), &config, &keys, 2).expect("it opens");
        let repository = &if reopen {
            reopened()
        } else {
            repository.clone()
        };
        for round in 0..2 {
            let (all, failed) = repository.snapshots().read_all().expect("listed");
            assert!(failed.is_empty());
            assert!(
                all.iter().any(|stored| stored.id == report.id),
                "at {at}, round {round}"
            );
            for stored in all {
                let content = if stored.id == report.id { &new } else { &old };
                assert_restores(repository, &stored, &one_disk(content), &decoded);
            }
            run_gc(repository, 100).expect("nothing is missing");
        }
        assert_no_leftovers(repository);
    }
    interrupted
}

fn interrupt_everywhere(increment: bool, forget_parent: bool) {
    let mut at = 0;
    while backup_interrupted_at(at, increment, forget_parent) {
        at += 1;
    }
    assert!(at > 20, "only {at} changes");
    println!("{at} places of a collection in a backup");
}

#[test]
fn a_collection_at_any_step_of_a_full_backup_takes_nothing_from_it() {
    interrupt_everywhere(false, false);
}

#[test]
fn a_collection_at_any_step_of_an_increment_takes_nothing_from_it() {
    interrupt_everywhere(true, false);
}

#[test]
fn a_parent_forgotten_and_collected_at_any_step_of_an_increment_takes_nothing_from_it() {
    interrupt_everywhere(true, true);
}

#[test]
fn a_parent_that_is_gone_before_the_backup_begins_means_a_full_read() {
    let rng = &mut Rng(5);
    let threads = one_thread();
    let (config, keys) = config(64 << 10, false);
    let storage: Arc<dyn Storage> = Arc::new(SimStorage::new());
    make_directories(&*storage);
    let repository = open(storage, &config, &keys, 1).expect("it opens");
    let old: Content = Arc::new(disk(MIB, 8, rng));
    let mut new = (*old).clone();
    scribble(&mut new, rng);
    let new: Content = Arc::new(new);
    let inputs = vec![DiskInput::full("root", &old)];
    let parent = run_backup(&repository, &threads, job("vm", 1, None, inputs)).expect("stored");
    let parent = repository.snapshots().read(parent.id).expect("it is there");
    repository
        .snapshots()
        .forget(&[parent.id])
        .expect("it is there");
    run_gc(&repository, 60).expect("nothing is missing");
    let inputs = vec![DiskInput::since("root", &old, &new)];
    let report = run_backup(&repository, &threads, job("vm", 2, Some(parent), inputs))
        .expect("a full read needs no parent");
    let stored = repository.snapshots().read(report.id).expect("it is there");
    assert_eq!(stored.snapshot.parent, None);
    assert_restores(&repository, &stored, &one_disk(&new), &Decoded::default());
}

/// Opens the repository at `root` with whatever engine serves here.
fn open_real(root: &std::path::Path, request: EngineRequest) -> Arc<LocalRepository> {
    let options = OpenOptions {
        unlock: None,
        access: Access::Own("a test".into()),
        engine: choose(request).expect("an engine for tests"),
    };
    open_local(root, &options).expect("it opens").0
}

/// Backups in two threads, each now and then forgetting what it stored, and collections in a third.
fn hammer(request: EngineRequest, rounds: u64) {
    let root = tempfile::tempdir().expect("a directory");
    create_local(root.path(), &create_options(256 << 10)).expect("created");
    let repository = open_real(root.path(), request);
    let live: Mutex<BTreeMap<SnapshotId, Content>> = Mutex::default();
    let done = AtomicBool::new(false);
    let collections = AtomicU64::new(0);
    let stop_at_end = |ended: &AtomicBool| ended.load(Ordering::Acquire);
    std::thread::scope(|scope| {
        let backups: Vec<_> = (0..2_u64)
            .map(|vm| {
                let (repository, live) = (&repository, &live);
                scope.spawn(move || {
                    let rng = &mut Rng(vm);
                    let threads = threads(1);
                    let mut mine: Vec<(SnapshotId, Content)> = Vec::new();
                    // Both store the same bytes at the start, and share blocks later.
                    let mut state = disk(3 * MIB + 1234, 12, &mut Rng(99));
                    for round in 0..rounds {
                        let content: Content = Arc::new(state.clone());
                        let parent = mine.last().filter(|_| rng.below(3) > 0);
                        let input = match parent {
                            Some((_, old)) => DiskInput::since("root", old, &content),
                            None => DiskInput::full("root", &content),
                        };
                        let parent = parent.map(|(id, _)| {
                            repository
                                .snapshots()
                                .read(*id)
                                .expect("nobody else forgets it")
                        });
                        let job = job(&format!("vm{vm}"), round, parent, vec![input]);
                        let report = run_backup(repository, &threads, job)
                            .unwrap_or_else(|e| panic!("vm {vm} round {round}: {}", chain(&e)));
                        live.lock().insert(report.id, content.clone());
                        mine.push((report.id, content));
                        while mine.len() > 3 || (mine.len() > 1 && rng.below(3) == 0) {
                            let (id, _) = mine.remove(rng.below(mine.len() as u64) as usize);
                            live.lock().remove(&id);
                            repository.snapshots().forget(&[id]).expect("it is there");
                        }
                        (0..2).for_each(|_| scribble(&mut state, rng));
                        if rng.below(4) == 0 {
                            // The other one's first state again: its chunks may just be going.
                            state = disk(3 * MIB + 1234, 12, &mut Rng(99));
                        }
                    }
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            let mut percent = 0;
            while !stop_at_end(&done) {
                percent = (percent + 33) % 101;
                match run_gc(&repository, percent) {
                    Ok(_) => collections.fetch_add(1, Ordering::Relaxed),
                    Err(error) => panic!("gc: {}", chain(&error)),
                };
            }
        });
        let results: Vec<_> = backups.into_iter().map(|thread| thread.join()).collect();
        done.store(true, Ordering::Release);
        collector.join().expect("collections went well");
        for result in results {
            result.expect("backups went well");
        }
    });
    println!(
        "{} backups, {} collections, {}",
        2 * rounds,
        collections.load(Ordering::Relaxed),
        repository.engine().choice().kind
    );
    let live = live.into_inner();
    let check = |repository: &Arc<LocalRepository>| {
        let (all, failed) = repository.snapshots().read_all().expect("listed");
        assert!(failed.is_empty());
        assert_eq!(all.len(), live.len());
        let decoded = Decoded::default();
        for stored in all {
            assert_restores(repository, &stored, &one_disk(&live[&stored.id]), &decoded);
        }
    };
    check(&repository);
    run_gc(&repository, 80).expect("nothing is missing");
    assert_no_leftovers(&repository);
    check(&repository);
    repository.close().expect("closed");
    drop(repository);
    let repository = open_real(root.path(), request);
    check(&repository);
    drop(repository);
    let storage = undercroft_dataplane::io::LocalStorage::new(root.path().to_owned());
    let config =
        undercroft_dataplane::repository::open::read_config(&storage, "here").expect("read");
    let progress = Progress::default();
    rebuild_index(root.path(), &storage, &config, &mut Vec::new(), &progress).expect("rebuilt");
    check(&open_real(root.path(), request));
}

#[test]
fn backups_and_collections_in_threads_lose_nothing_with_plain_io() {
    hammer(EngineRequest::Posix, 30);
}

#[test]
fn backups_and_collections_in_threads_lose_nothing_with_the_best_engine() {
    hammer(EngineRequest::Auto, 30);
}

#[test]
fn sessions_that_store_the_same_chunks_at_once_both_restore() {
    let root = tempfile::tempdir().expect("a directory");
    create_local(root.path(), &create_options(256 << 10)).expect("created");
    let repository = open_real(root.path(), EngineRequest::Auto);
    let mut content = vec![0; (4 * MIB + 500 * KIB) as usize];
    fill_noise(&mut content, &mut Rng(3));
    let content: Content = Arc::new(content);
    let reports: Vec<_> = std::thread::scope(|scope| {
        let backups: Vec<_> = (0..4)
            .map(|vm| {
                let (repository, content) = (&repository, &content);
                scope.spawn(move || {
                    let inputs = vec![DiskInput::full("root", content)];
                    let job = job(&format!("vm{vm}"), 1, None, inputs);
                    run_backup(repository, &threads(2), job).expect("stored")
                })
            })
            .collect();
        backups
            .into_iter()
            .map(|t| t.join().expect("it went well"))
            .collect()
    });
    let decoded = Decoded::default();
    for report in &reports {
        let stored = repository.snapshots().read(report.id).expect("it is there");
        assert_restores(&repository, &stored, &one_disk(&content), &decoded);
    }
    // Copies that were stored twice are given back, and the rest is still right.
    run_gc(&repository, 100).expect("nothing is missing");
    let copies: usize = support::packs_on_disk(&repository)
        .values()
        .map(Vec::len)
        .sum();
    let (all, _) = repository.snapshots().read_all().expect("listed");
    let live = support::live_objects(&repository, &all).expect("all is there");
    assert_eq!(copies, live.len());
    for stored in &all {
        assert_restores(&repository, stored, &one_disk(&content), &decoded);
    }
}

/// Which of two copies is the one to keep is for the index to say: it knows one of them alone.
#[test]
fn of_two_copies_the_collection_keeps_the_one_in_the_index() {
    let rng = &mut Rng(21);
    let (config, keys) = config(1 << 20, false);
    let (interruption, storage) = Interruption::new(Arc::new(SimStorage::new()));
    make_directories(&*storage);
    let repository = open(storage, &config, &keys, 1).expect("it opens");
    let mut content = vec![0; (MIB + 5000) as usize];
    fill_noise(&mut content[..(400 * KIB) as usize], rng);
    let content: Content = Arc::new(content);
    // The second session stores everything while the first has asked and not stored yet, and its tables
    // are the ones that lookups remember.
    interruption.set(7, {
        let (repository, content) = (repository.clone(), content.clone());
        Box::new(move || {
            let inputs = vec![DiskInput::full("root", &content)];
            run_backup(&repository, &one_thread(), job("b", 1, None, inputs)).expect("stored");
            let ids: Vec<_> = support::packs_on_disk(&repository)
                .into_values()
                .flatten()
                .collect();
            let located = repository.lookup().locate(&ids).expect("answered");
            assert!(located.iter().all(Option::is_some));
        })
    });
    let inputs = vec![DiskInput::full("root", &content)];
    let mut first = job("a", 2, None, inputs);
    // Its pack is made when the first chunk is stored, which is when the interruption comes.
    first.metadata = None;
    run_backup(&repository, &one_thread(), first).expect("stored");
    let before: usize = support::packs_on_disk(&repository)
        .values()
        .map(Vec::len)
        .sum();
    for _ in 0..2 {
        run_gc(&repository, 60).expect("nothing is missing");
        let (all, _) = repository.snapshots().read_all().expect("listed");
        assert_eq!(all.len(), 2);
        for stored in &all {
            assert_restores(
                &repository,
                stored,
                &one_disk(&content),
                &Decoded::default(),
            );
        }
        let live = support::live_objects(&repository, &all).expect("all is there");
        assert!(before > live.len(), "nothing was stored twice");
    }
}

/// The index moved from a session's copy to another's. The other's goes, the session's promise stays.
#[test]
fn a_copy_that_stands_in_for_a_held_one_is_not_collected() {
    let (config, keys) = config(1 << 20, false);
    let storage = Arc::new(SimStorage::new());
    make_directories(&*storage);
    let repository = open(storage, &config, &keys, 1).expect("it opens");
    let plain = vec![7; 5000];
    let id = ObjectId::from(keys.chunk_id(&plain));
    let mut encoder = RecordEncoder::new(1);
    let record = encoder.encode(id, ObjectKind::Chunk, &plain, None);
    let header = RecordHeader::new(record.info, record.payload);
    let sessions = [1, 2].map(|number| {
        let id = SessionId::from_bytes([number; 16]);
        SessionStore::begin(&repository, id, 1 << 20, b"").expect("begun")
    });
    for session in &sessions {
        assert_eq!(session.probe(&[id]).expect("answered"), [false]);
    }
    for session in &sessions {
        let records = [(header, record.payload)];
        session.append_all(&records).expect("stored");
    }
    for session in &sessions {
        session.checkpoint().expect("durable");
    }
    let [first, mut second] = sessions;
    second.seal().expect("ended");
    drop(second);
    for _ in 0..2 {
        let report = run_gc(&repository, 60).expect("collected");
        assert_eq!(report.packs_removed, 0, "{report:?}");
        assert_eq!(first.probe(&[id]).expect("answered"), [true]);
        let located = repository.lookup().locate(&[id]).expect("answered");
        assert!(located[0].is_some());
    }
    // Nobody holds either copy any more.
    drop(first);
    assert_eq!(run_gc(&repository, 60).expect("collected").packs_removed, 2);
}
