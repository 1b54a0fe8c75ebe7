//! Clients: the real backup over the real client, on simulated streams, again and again until it is done.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use rayon::ThreadPool;
use undercroft_dataplane::ingest::backup::{BackupJob, DiskJob, backup};
use undercroft_dataplane::ingest::changes::ChangedBlocks;
use undercroft_dataplane::ingest::source::{DiskSource, Source};
use undercroft_dataplane::io::{BlockFile, SimEngine};
use undercroft_dataplane::net::client::{Link, RemoteRepository};
use undercroft_dataplane::net::conversation::StreamError;
use undercroft_dataplane::progress::Progress;
use undercroft_dataplane::repository::Repository;
use undercroft_dataplane::repository::entropy::SeededEntropy;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::keys::Keys;
use undercroft_format::audit::AuditShare;
use undercroft_format::config::Config;
use undercroft_format::id::{SessionId, SnapshotId};
use undercroft_format::units::SegmentNumber;
use undercroft_format::wire::failure::FailureCode;
use undercroft_format::wire::session::SegmentPlace;

use super::books::{Disks, Given};
use super::support::{MIB, MemoryFile, Rng, chain, changed_blocks, scribble};
use super::world::World;

/// Tries of one backup, until something is wrong with the test.
const TRIES_MAX: u32 = 60;

/// A VM whose disks change from day to day.
pub struct Vm {
    pub name: String,
    pub disks: Disks,
    pub days_left: u64,
    /// Today's backup was not made yet.
    pub is_due: bool,
    /// The last backup that a client heard of.
    pub last: Option<(SnapshotId, Disks)>,
    rng: Rng,
}

impl Vm {
    pub fn new(number: u64, rng: &mut Rng) -> Self {
        let mut rng = Rng(rng.next());
        let mut disks = Disks::new();
        for label in ["root", "data"].iter().take(1 + rng.below(2) as usize) {
            let len = MIB / 3 + rng.below(2 * MIB) + rng.below(2) * MIB;
            let mut disk = vec![0; len as usize];
            (0..3 + rng.below(5)).for_each(|_| scribble(&mut disk, &mut rng));
            disks.push(((*label).to_owned(), Arc::new(disk)));
        }
        Self {
            name: format!("vm{number}"),
            disks,
            days_left: 1 + rng.below(3),
            is_due: true,
            last: None,
            rng,
        }
    }

    fn pass_a_day(&mut self) {
        for (_, disk) in &mut self.disks {
            let disk = Arc::make_mut(disk);
            (0..1 + self.rng.below(2)).for_each(|_| scribble(disk, &mut self.rng));
        }
        self.is_due = true;
    }
}

/// What all clients share.
#[derive(Clone)]
pub struct Clients {
    pub world: World,
    pub config: Config,
    pub keys: Arc<Keys>,
    pub threads: Arc<ThreadPool>,
}

/// Why a try failed.
enum Failed {
    NobodyAnswers,
    With(RepositoryError),
}

impl Clients {
    /// Backs `vm` up day after day.
    pub fn live(&self, vm: &Mutex<Vm>, mut resume: Option<SessionId>) {
        loop {
            while vm.lock().is_due {
                self.back_up(vm, resume.take());
            }
            let mut vm = vm.lock();
            vm.days_left -= 1;
            if vm.days_left == 0 {
                return;
            }
            vm.pass_a_day();
        }
    }

    /// Backs `vm` up as the command does: goes on where a session was interrupted.
    pub fn back_up(&self, vm: &Mutex<Vm>, mut resume: Option<SessionId>) {
        for _ in 0..TRIES_MAX {
            let disks = vm.lock().disks.clone();
            match self.attempt(vm, disks, resume) {
                Ok(()) => return,
                Err(Failed::NobodyAnswers) => {}
                Err(Failed::With(error)) => {
                    let text = chain(&error);
                    self.world.note(|| format!("a try failed: {text}"));
                    let code = match &error {
                        RepositoryError::Remote(failure) => Some(failure.code),
                        _ => None,
                    };
                    let is_expected = match &error {
                        RepositoryError::Interrupted { .. } => true,
                        RepositoryError::Connection(_) => true,
                        // Published, and forgotten before it was looked at.
                        RepositoryError::NoSuchSnapshot { .. } => true,
                        _ => matches!(
                            code,
                            Some(
                                FailureCode::NoSuchSession
                                    | FailureCode::Fenced
                                    | FailureCode::DisksChanged
                                    // Of a careless client.
                                    | FailureCode::Unpublishable
                            )
                        ),
                    };
                    let has_disk_faults = self.world.lock().books.has_disk_faults;
                    assert!(is_expected || has_disk_faults, "a try failed: {text}");
                    resume = match error {
                        RepositoryError::Interrupted { session, .. } => Some(session),
                        RepositoryError::Connection(_) => resume,
                        _ => None,
                    };
                    if code == Some(FailureCode::Fenced) {
                        // Somebody else is at it.
                        self.world.sleep(60_000);
                        if !vm.lock().is_due {
                            return;
                        }
                    }
                }
            }
            let pause = 1000 + self.world.below(4000);
            self.world.sleep(pause);
        }
        panic!("{} cannot be backed up", vm.lock().name);
    }

    fn attempt(
        &self,
        vm: &Mutex<Vm>,
        disks: Disks,
        resume: Option<SessionId>,
    ) -> Result<(), Failed> {
        let (name, last, day) = {
            let vm = vm.lock();
            (vm.name.clone(), vm.last.clone(), vm.days_left as u8)
        };
        let (attempt, connections, entropy) = {
            let mut state = self.world.lock();
            let attempt = state.books.given.len() as u64 + 1;
            let given = Given {
                vm: name.clone(),
                disks: disks.clone(),
            };
            state.books.given.insert(attempt, given);
            state.note(format!("attempt {attempt} at {name}, resuming {resume:?}"));
            (attempt, 1 + state.rng.below(2) as usize, state.rng.next())
        };
        // A client may be wrong about what it sent; the server may not.
        let is_careless = self.world.once_in(12);
        let dial = self.world.connect(attempt, is_careless, connections);
        let dial = dial.ok_or(Failed::NobodyAnswers)?;
        let repository = RemoteRepository::assemble(
            Link::over(Box::new(dial)),
            self.config.clone(),
            Some(self.keys.clone()),
            Arc::new(SimEngine::new()),
            Arc::new(SeededEntropy::new(entropy)),
        );
        let parent = match &last {
            Some((id, _)) if !self.world.once_in(4) => match repository.snapshots().read(*id) {
                Ok(stored) => Some(stored),
                Err(RepositoryError::NoSuchSnapshot { .. }) => None,
                Err(error) => return Err(Failed::With(error)),
            },
            _ => None,
        };
        let is_read = Arc::<Mutex<BTreeSet<SegmentPlace>>>::default();
        let mut jobs = Vec::new();
        for (ordinal, (label, content)) in (0..).zip(&disks) {
            let old = last.as_ref().filter(|_| parent.is_some());
            let old = old.and_then(|(_, disks)| disks.iter().find(|(old, _)| old == label));
            let file = Watched {
                inner: MemoryFile {
                    bytes: content.clone(),
                    unreadable: None,
                },
                disk: ordinal,
                is_read: is_read.clone(),
            };
            let changed = old.map(|(_, old)| io::Cursor::new(changed_blocks(old, content)));
            jobs.push(DiskJob {
                label: label.clone(),
                source: Source::Disk(
                    DiskSource::new(Arc::new(file), true).expect("memory has a length"),
                ),
                source_name: label.clone(),
                changed_blocks: changed.map(ChangedBlocks::text),
                lineage: Vec::new(),
                state: [day; 32],
            });
        }
        let job = BackupJob {
            lock: None,
            // An audit looks at segments that are finished, too.
            audit: match resume {
                Some(_) => AuditShare::NONE,
                None => AuditShare::default(),
            },
            confirm: None,
            vm: name,
            disks: jobs,
            parent,
            metadata: self
                .world
                .once_in(2)
                .then(|| ("vm.json".to_owned(), b"{}".to_vec())),
            tags: Vec::new(),
            resume,
            // Tells the attempts' snapshots apart.
            now_ms: attempt,
        };
        let done = backup(repository, job, &self.threads, &Progress::default());
        self.check_reads(attempt, &is_read.lock());
        match done {
            Ok(report) => {
                // A session that had published already may have been of another day.
                let made_by = report.snapshot.created_ms;
                let mut state = self.world.lock();
                state.note(format!("attempt {attempt} made {}", report.id));
                state.books.promised.insert(report.id, made_by);
                let made_of = state.books.given[&made_by].disks.clone();
                drop(state);
                let mut vm = vm.lock();
                vm.is_due &= vm.disks != made_of;
                vm.last = Some((report.id, made_of));
                Ok(())
            }
            Err(error) => {
                self.check_error(attempt, &error);
                Err(Failed::With(error))
            }
        }
    }

    /// A lost connection interrupts a session that was begun, and nothing else does.
    fn check_error(&self, attempt: u64, error: &RepositoryError) {
        let has_begun = self.world.lock().books.heard_begun.contains(&attempt);
        match error {
            RepositoryError::Interrupted { .. } => {
                assert!(has_begun, "interrupted before it began")
            }
            error => assert!(
                !(has_begun && is_lost(error)),
                "attempt {attempt} can go on and does not know: {}",
                chain(error)
            ),
        }
    }

    /// What the server keeps is not read again.
    fn check_reads(&self, attempt: u64, is_read: &BTreeSet<SegmentPlace>) {
        let finished = self.world.lock().books.begin_of(attempt).finished;
        let again: Vec<_> = finished.intersection(is_read).collect();
        assert!(again.is_empty(), "attempt {attempt} reads {again:?} again");
    }
}

fn is_lost(error: &RepositoryError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let found = error.downcast_ref::<StreamError>();
        if found.is_some_and(StreamError::is_lost) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A disk that notes which segments are read.
#[derive(Debug)]
struct Watched {
    inner: MemoryFile,
    disk: u16,
    is_read: Arc<Mutex<BTreeSet<SegmentPlace>>>,
}

impl BlockFile for Watched {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let number = SegmentNumber(offset / MIB);
        // The partition table is looked at in any case.
        if number.0 > 0 {
            let disk = self.disk;
            self.is_read.lock().insert(SegmentPlace { disk, number });
        }
        self.inner.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch(offset, len)
    }

    fn next_data(&self, offset: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset, end)
    }

    fn advise_dont_need(&self) {}
}
