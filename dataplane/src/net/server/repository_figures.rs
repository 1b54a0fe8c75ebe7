//! What is counted of each repository that the server serves.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use undercroft_format::pack::RecordHeader;
use undercroft_format::wire::failure::{Failure, FailureCode};

use super::served::Served;
use crate::clock::Stopwatch;
use crate::progress::Progress;

/// How long a failed write keeps a repository from being ready, if no write succeeds before: without a
/// client that tries again, it would never be.
const FAILURE_MS_MAX: u128 = 300_000;

/// A turn in the life of a session. Texts are values of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A client began it.
    Begun,
    /// A client went on with it.
    Resumed,
    /// Its snapshot was published.
    Committed,
    /// Its client gave it up.
    Abandoned,
    /// Its lease lapsed.
    Lapsed,
    /// A client was told that another one goes on with it.
    Fenced,
}

impl SessionEvent {
    const ALL: [Self; 6] = [
        Self::Begun,
        Self::Resumed,
        Self::Committed,
        Self::Abandoned,
        Self::Lapsed,
        Self::Fenced,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Resumed => "resumed",
            Self::Committed => "committed",
            Self::Abandoned => "abandoned",
            Self::Lapsed => "lapsed",
            Self::Fenced => "fenced",
        }
    }
}

/// What clients ask for by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Chunks and nodes.
    Objects,
    /// Segment maps with all that they name.
    Segments,
}

/// Long work on a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Giving back space.
    Collect,
    /// Checking what is stored.
    Verify,
    /// Setting damage aside.
    Repair,
}

impl Work {
    const ALL: [Self; 3] = [Self::Collect, Self::Verify, Self::Repair];

    /// The word for it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Collect => "collect",
            Self::Verify => "verify",
            Self::Repair => "repair",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InRepository {
    repository: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEvent {
    repository: String,
    event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnswer {
    repository: String,
    kind: &'static str,
    answer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWork {
    repository: String,
    work: &'static str,
    outcome: &'static str,
}

type Durations = Family<InRepository, Histogram, fn() -> Histogram>;

fn durations() -> Durations {
    // Ten milliseconds to five minutes.
    fn histogram() -> Histogram {
        Histogram::new(exponential_buckets(0.01, 2.0, 16))
    }
    Durations::new_with_constructor(histogram)
}

/// The figures of all repositories.
#[derive(Debug)]
pub struct RepositoryFamilies {
    session_events: Family<OfEvent, Counter>,
    pushed_records: Family<InRepository, Counter>,
    pushed_bytes: Family<InRepository, Counter>,
    pushed_plain_bytes: Family<InRepository, Counter>,
    refused_records: Family<InRepository, Counter>,
    fetched_records: Family<InRepository, Counter>,
    fetched_bytes: Family<InRepository, Counter>,
    fetched_plain_bytes: Family<InRepository, Counter>,
    questions: Family<OfAnswer, Counter>,
    finished_segments: Family<InRepository, Counter>,
    checkpoints: Durations,
    checkpoint_failures: Family<InRepository, Counter>,
    commits: Durations,
    works: Family<OfWork, Counter>,
    repositories: Mutex<BTreeMap<String, Arc<RepositoryFigures>>>,
}

impl Default for RepositoryFamilies {
    fn default() -> Self {
        Self {
            session_events: Family::default(),
            pushed_records: Family::default(),
            pushed_bytes: Family::default(),
            pushed_plain_bytes: Family::default(),
            refused_records: Family::default(),
            fetched_records: Family::default(),
            fetched_bytes: Family::default(),
            fetched_plain_bytes: Family::default(),
            questions: Family::default(),
            finished_segments: Family::default(),
            checkpoints: durations(),
            checkpoint_failures: Family::default(),
            commits: durations(),
            works: Family::default(),
            repositories: Mutex::default(),
        }
    }
}

impl RepositoryFamilies {
    /// The figures of one repository.
    pub fn of(&self, name: &str) -> Arc<RepositoryFigures> {
        let mut repositories = self.repositories.lock();
        repositories
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(RepositoryFigures::new(self, name)))
            .clone()
    }

    /// The figures of every repository that was ever open, by name.
    pub fn all(&self) -> Vec<(String, Arc<RepositoryFigures>)> {
        let repositories = self.repositories.lock();
        let all = repositories.iter();
        all.map(|(name, of)| (name.clone(), of.clone())).collect()
    }

    /// Adds the figures to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "session_events",
            "Turns in the life of backup sessions",
            self.session_events.clone(),
        );
        for (name, help, family) in [
            (
                "pushed_records",
                "Records that clients sent and that were found good",
                &self.pushed_records,
            ),
            (
                "pushed_bytes",
                "Bytes appended to packs for them: as stored, headers included",
                &self.pushed_bytes,
            ),
            (
                "pushed_plain_bytes",
                "Bytes that the records stand for, before compression",
                &self.pushed_plain_bytes,
            ),
            (
                "refused_records",
                "Records that were not what they said",
                &self.refused_records,
            ),
            (
                "fetched_records",
                "Records that clients fetched",
                &self.fetched_records,
            ),
            (
                "fetched_bytes",
                "Bytes of the records that clients fetched, as stored, without headers",
                &self.fetched_bytes,
            ),
            (
                "fetched_plain_bytes",
                "Bytes that the fetched records stand for, before compression",
                &self.fetched_plain_bytes,
            ),
            (
                "finished_segments",
                "Segments of disks that clients called done",
                &self.finished_segments,
            ),
            (
                "checkpoint_failures",
                "Times that what was pushed could not be made durable",
                &self.checkpoint_failures,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "questions",
            "Ids that clients asked for, by kind and answer",
            self.questions.clone(),
        );
        registry.register(
            "checkpoint_duration_seconds",
            "Time to make durable what was pushed",
            self.checkpoints.clone(),
        );
        registry.register(
            "commit_duration_seconds",
            "Time to check and publish a snapshot",
            self.commits.clone(),
        );
        registry.register(
            "upkeep_runs",
            "Runs of long work that ended, by work and outcome",
            self.works.clone(),
        );
    }
}

/// The figures of one repository. What is counted for every batch is one atomic addition away.
#[derive(Debug)]
pub struct RepositoryFigures {
    name: String,
    session_events: Family<OfEvent, Counter>,
    pushed_records: Counter,
    pushed_bytes: Counter,
    pushed_plain_bytes: Counter,
    refused_records: Counter,
    fetched_records: Counter,
    fetched_bytes: Counter,
    fetched_plain_bytes: Counter,
    /// Objects unknown and known, segments unknown and known.
    questions: [Counter; 4],
    finished_segments: Counter,
    checkpoint: Histogram,
    checkpoint_failures: Counter,
    commit: Histogram,
    works: Family<OfWork, Counter>,
    running: Mutex<Vec<(Work, Weak<Progress>)>>,
    failed_write: Mutex<Option<(Stopwatch, FailureCode)>>,
    served: Mutex<Weak<Served>>,
}

impl RepositoryFigures {
    fn new(families: &RepositoryFamilies, name: &str) -> Self {
        let of = InRepository {
            repository: name.to_owned(),
        };
        let one = |family: &Family<InRepository, Counter>| family.get_or_create_owned(&of);
        let question = |kind, answer| {
            families.questions.get_or_create_owned(&OfAnswer {
                repository: name.to_owned(),
                kind,
                answer,
            })
        };
        let figures = Self {
            name: name.to_owned(),
            session_events: families.session_events.clone(),
            pushed_records: one(&families.pushed_records),
            pushed_bytes: one(&families.pushed_bytes),
            pushed_plain_bytes: one(&families.pushed_plain_bytes),
            refused_records: one(&families.refused_records),
            fetched_records: one(&families.fetched_records),
            fetched_bytes: one(&families.fetched_bytes),
            fetched_plain_bytes: one(&families.fetched_plain_bytes),
            questions: [
                question("objects", "unknown"),
                question("objects", "known"),
                question("segments", "unknown"),
                question("segments", "known"),
            ],
            finished_segments: one(&families.finished_segments),
            checkpoint: families.checkpoints.get_or_create_owned(&of),
            checkpoint_failures: one(&families.checkpoint_failures),
            commit: families.commits.get_or_create_owned(&of),
            works: families.works.clone(),
            running: Mutex::default(),
            failed_write: Mutex::default(),
            served: Mutex::default(),
        };
        // All that can happen is shown from the beginning: an alert sees the first of its kind.
        for event in SessionEvent::ALL {
            figures.session(event, 0);
        }
        for work in Work::ALL {
            figures.worked(work, "done", 0);
            figures.worked(work, "failed", 0);
        }
        figures
    }

    /// The repository is open.
    pub fn opened(&self, served: &Arc<Served>) {
        *self.served.lock() = Arc::downgrade(served);
    }

    /// The repository, while it is open.
    pub fn served(&self) -> Option<Arc<Served>> {
        self.served.lock().upgrade()
    }

    /// Counts turns in the life of sessions.
    pub fn session(&self, event: SessionEvent, times: u64) {
        let of = OfEvent {
            repository: self.name.clone(),
            event: event.text(),
        };
        self.session_events.get_or_create(&of).inc_by(times);
    }

    /// Counts what clients of this repository were told, as far as it is told apart by repository.
    pub fn failed(&self, code: FailureCode) {
        match code {
            FailureCode::Fenced => self.session(SessionEvent::Fenced, 1),
            FailureCode::BadRecord => drop(self.refused_records.inc()),
            _ => {}
        }
    }

    /// Counts records that were taken in, of which `stored` bytes were new.
    pub fn pushed(&self, records: &[(RecordHeader, &[u8])], stored: u64) {
        let plain = records.iter().map(|(header, _)| header.info.plain_len);
        self.pushed_records.inc_by(records.len() as u64);
        self.pushed_plain_bytes.inc_by(plain.map(u64::from).sum());
        self.pushed_bytes.inc_by(stored);
    }

    /// Counts records that were given out.
    pub fn fetched(&self, records: u64, stored: u64, plain: u64) {
        self.fetched_records.inc_by(records);
        self.fetched_bytes.inc_by(stored);
        self.fetched_plain_bytes.inc_by(plain);
    }

    /// Counts answers.
    pub fn answered(&self, asked: Asked, answers: &[bool]) {
        let known = answers.iter().filter(|known| **known).count() as u64;
        let at = match asked {
            Asked::Objects => 0,
            Asked::Segments => 2,
        };
        self.questions[at].inc_by(answers.len() as u64 - known);
        self.questions[at + 1].inc_by(known);
    }

    /// Counts a segment.
    pub fn finished_segment(&self) {
        self.finished_segments.inc();
    }

    /// Notes what came of making durable what was pushed.
    pub fn checkpoint(&self, took: &Stopwatch, ended: &Result<(), Failure>) {
        match ended {
            Ok(()) => self.checkpoint.observe(took.elapsed().as_secs_f64()),
            Err(_) => drop(self.checkpoint_failures.inc()),
        }
        self.wrote(ended.as_ref().err());
    }

    /// Notes what came of publishing a snapshot.
    pub fn commit<T>(&self, took: &Stopwatch, ended: &Result<T, Failure>) {
        if ended.is_ok() {
            self.commit.observe(took.elapsed().as_secs_f64());
        }
        self.wrote(ended.as_ref().err());
    }

    /// Refusals say nothing about the disk.
    fn wrote(&self, failure: Option<&Failure>) {
        match failure.map(|failure| failure.code) {
            None => *self.failed_write.lock() = None,
            Some(code @ (FailureCode::Failed | FailureCode::DiskFull)) => {
                *self.failed_write.lock() = Some((Stopwatch::start(), code));
            }
            Some(_) => {}
        }
    }

    /// Why the last write failed, if it did, and not long ago.
    pub fn failed_write(&self) -> Option<FailureCode> {
        let failed = *self.failed_write.lock();
        let recent = failed.filter(|(since, _)| since.elapsed().as_millis() < FAILURE_MS_MAX);
        recent.map(|(_, code)| code)
    }

    /// Shows long work for as long as `progress` is there.
    pub fn works(&self, work: Work, progress: &Arc<Progress>) {
        let mut running = self.running.lock();
        running.retain(|(_, progress)| progress.strong_count() > 0);
        running.push((work, Arc::downgrade(progress)));
    }

    /// Counts long work that ended.
    pub fn worked(&self, work: Work, outcome: &'static str, times: u64) {
        let of = OfWork {
            repository: self.name.clone(),
            work: work.text(),
            outcome,
        };
        self.works.get_or_create(&of).inc_by(times);
    }

    /// Long work that runs: how many, bytes done, bytes to do.
    pub fn running(&self) -> [(Work, u64, u64, u64); 3] {
        let running = self.running.lock();
        let alive: Vec<(Work, Arc<Progress>)> = running
            .iter()
            .filter_map(|(work, progress)| Some((*work, progress.upgrade()?)))
            .collect();
        Work::ALL.map(|work| {
            let of_work = alive.iter().filter(|(of, _)| *of == work);
            of_work.fold(
                (work, 0, 0, 0),
                |(work, count, done, total), (_, progress)| {
                    let (more, all) = (progress.done_bytes.get(), progress.total_bytes.get());
                    (work, count + 1, done + more, total + all)
                },
            )
        })
    }
}
