//! The agent: takes tasks, runs as many at once as there are streams, and forgets none when it dies.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use undercroft_format::id::TaskId;
use undercroft_format::wire::books::{Books, Cancelled, Entry, Phase, Refusal, ended};
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::proxy::{
    Accepted, Ending, NOTE_LEN_MAX, RESULT_LEN_MAX, Submit, TaskOver, shortened,
};
use undercroft_format::wire::task::Task;

use super::machine::{self, memory};
use super::permission::{denied, may_look_after, may_submit, owner_of};
use super::run::{TaskRun, Worker};
use super::status::{ProxyStatus, TaskDetails, TaskFailure, TaskStatus};
use super::task_files::TaskFiles;
use crate::clock::Stopwatch;
use crate::net::trust::{Object, PeerIdentity, Verb, WallClock};
use crate::progress::{Progress, Waits};

/// Warnings of a task that are kept.
const NOTES_MAX: usize = 256;
/// Rates are means over this time.
const RATE_WINDOW: Duration = Duration::from_secs(8);

/// What an agent works with.
pub struct AgentOptions {
    /// The directory of its files.
    pub state: PathBuf,
    /// Tasks at once.
    pub streams: usize,
    /// The program and its version.
    pub program: String,
    /// Does the work.
    pub worker: Arc<dyn Worker>,
    /// For times that people are told.
    pub clock: Arc<dyn WallClock>,
}

/// An agent's files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The directory or one of its files.
    #[error("reading the tasks in {}", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// An agent. Clones are the same.
#[derive(Clone)]
pub struct Agent(pub(super) Arc<Shared>);

/// What threads of an agent share.
pub struct Shared {
    options: AgentOptions,
    files: TaskFiles,
    uptime: Stopwatch,
    state: Mutex<State>,
    /// Something changed that a follower may want to know.
    pub(super) changed: Condvar,
}

/// Books, and what is known of tasks but not kept.
pub(super) struct State {
    pub books: Books,
    pub live: HashMap<TaskId, Live>,
    pub notes: HashMap<TaskId, Vec<String>>,
}

/// A task that is worked on.
pub(super) struct Live {
    pub progress: Arc<Progress>,
    started: Stopwatch,
    waits_for: Option<String>,
    /// When, and bytes moved.
    samples: VecDeque<(Duration, u64)>,
}

impl Agent {
    /// Takes up what was left, and returns what is wrong with it.
    ///
    /// # Errors
    /// [`AgentError`] if the files cannot be read.
    pub fn start(options: AgentOptions) -> Result<(Self, Vec<String>), AgentError> {
        let failed = |source| AgentError::State {
            path: options.state.clone(),
            source,
        };
        let files = TaskFiles::open(&options.state).map_err(failed)?;
        let (entries, problems) = files.load().map_err(failed)?;
        let mut books = Books::new(options.streams, files.is_suspended());
        let to_cancel = books.recover(entries);
        let shared = Arc::new(Shared {
            options,
            files,
            uptime: Stopwatch::start(),
            state: Mutex::new(State {
                books,
                live: HashMap::new(),
                notes: HashMap::new(),
            }),
            changed: Condvar::new(),
        });
        for id in to_cancel {
            shared.cancel(&mut shared.state.lock(), id);
        }
        shared.pump();
        Ok((Self(shared), problems))
    }

    /// Takes a task: it is on disk on return.
    pub fn submit(&self, peer: &PeerIdentity, submit: Submit) -> Result<Accepted, Failure> {
        let shared = &self.0;
        let Submit { id, task } = submit;
        may_submit(peer, &task)?;
        let owner = owner_of(peer);
        let known = shared.state.lock().books.get(id).is_some();
        if !known {
            shared.options.worker.check(&task, &owner)?;
        }
        let is_new = {
            let mut state = shared.state.lock();
            let now = shared.now_ms();
            let is_new = state.books.submit(id, task, owner, now).map_err(refused)?;
            if is_new && let Err(error) = shared.files.write(entry_of(&state, id)) {
                state.books.retract(id);
                let text = format!("the proxy cannot keep the task: {error}");
                return Err(Failure::new(FailureCode::Failed, text));
            }
            is_new
        };
        shared.pump();
        Ok(Accepted { is_new })
    }

    /// Ends a task.
    pub fn cancel(&self, peer: &PeerIdentity, id: TaskId) -> Result<(), Failure> {
        let shared = &self.0;
        let mut state = shared.state.lock();
        look_after(&state, peer, id)?;
        shared.cancel(&mut state, id);
        Ok(())
    }

    /// The tasks that the peer may see, in the order in which they came.
    pub fn list(&self, peer: &PeerIdentity) -> Result<Vec<TaskStatus>, Failure> {
        denied(peer.check(Verb::OwnTasks, Object::default()))?;
        let state = self.0.state.lock();
        let entries = state.books.entries().into_iter();
        let seen = entries.filter(|entry| {
            entry.owner.name == peer.name || peer.check(Verb::AllTasks, Object::default()).is_ok()
        });
        Ok(seen.map(|entry| self.0.status_of(&state, entry)).collect())
    }

    /// All that is known of a task.
    pub fn show(&self, peer: &PeerIdentity, id: TaskId) -> Result<TaskDetails, Failure> {
        let state = self.0.state.lock();
        let entry = look_after(&state, peer, id)?;
        let result = entry.result.as_ref();
        Ok(TaskDetails {
            status: self.0.status_of(&state, entry),
            paths: paths_of(&entry.task),
            notes: state.notes.get(&id).cloned().unwrap_or_default(),
            result: result.and_then(|result| serde_json::from_str(&result.json).ok()),
            text: result.map(|result| result.text.clone()).unwrap_or_default(),
        })
    }

    /// What the proxy does.
    pub fn status(&self, peer: &PeerIdentity) -> Result<ProxyStatus, Failure> {
        denied(peer.check(Verb::Status, Object::default()))?;
        let state = self.0.state.lock();
        let books = &state.books;
        let is_open = !books.is_suspended() && !books.is_draining();
        let free = books.streams().saturating_sub(books.running());
        let memory = memory();
        let (reads, writes) = self.0.options.worker.bounds();
        Ok(ProxyStatus {
            program: self.0.options.program.clone(),
            uptime_ms: self.0.uptime.elapsed().as_millis() as u64,
            is_suspended: books.is_suspended(),
            is_draining: books.is_draining(),
            cores: machine::cores() as u64,
            memory_total_bytes: memory.total,
            memory_available_bytes: memory.available,
            resident_bytes: memory.resident,
            resident_max_bytes: memory.resident_max,
            streams: books.streams() as u64,
            streams_busy: books.running() as u64,
            streams_free: if is_open { free as u64 } else { 0 },
            queued: books.count(Phase::Queued) as u64,
            rate_bytes_per_s: state.live.values().map(Live::rate).sum(),
            reads,
            writes,
        })
    }

    /// Takes and begins no tasks, or does so again. It is on disk on return.
    pub fn suspend(&self, peer: &PeerIdentity, is_suspended: bool) -> Result<(), Failure> {
        denied(peer.check(Verb::Suspend, Object::default()))?;
        {
            let mut state = self.0.state.lock();
            let noted = self.0.files.set_suspended(is_suspended);
            noted.map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))?;
            state.books.set_suspended(is_suspended);
        }
        self.0.changed.notify_all();
        self.0.pump();
        Ok(())
    }

    /// The program and its version.
    pub fn program(&self) -> &str {
        &self.0.options.program
    }

    /// Notes how far tasks are, for their rates: to be called every second.
    pub fn tick(&self) {
        let mut state = self.0.state.lock();
        state.live.values_mut().for_each(Live::sample);
    }

    /// Takes no tasks any more and stops what runs, so that it can be gone on with. Returns the number of
    /// tasks that did not stop in time.
    pub fn drain(&self, at_most: Duration) -> usize {
        let clock = Stopwatch::start();
        let mut state = self.0.state.lock();
        state.books.drain();
        state.live.values().for_each(|live| live.progress.stop());
        self.0.changed.notify_all();
        while state.books.running() > 0 && clock.elapsed() < at_most {
            self.0
                .changed
                .wait_for(&mut state, Duration::from_millis(100));
        }
        state.books.running()
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn now_ms(&self) -> u64 {
        self.options.clock.now().as_millis()
    }

    /// Begins what may begin.
    fn pump(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while let Some(entry) = state.books.start(self.now_ms()) {
            let entry = entry.clone();
            self.keep(&entry);
            let live = Live {
                progress: Arc::default(),
                started: Stopwatch::start(),
                waits_for: None,
                samples: VecDeque::new(),
            };
            state.live.insert(entry.id, live);
            let id = entry.id;
            let run = TaskRun {
                entry,
                shared: self.clone(),
            };
            let thread = thread::Builder::new().name("undercroft-task".into());
            if let Err(error) = thread.spawn(move || work(run)) {
                let failure = TaskFailure::new(format!("starting a thread: {error}"));
                let result = ended(Ending::Failed, failure.json());
                self.end(&mut state, id, result);
            }
        }
        self.changed.notify_all();
    }

    /// The run of a task is over.
    fn finish(self: &Arc<Self>, id: TaskId, result: TaskOver) {
        {
            let mut state = self.state.lock();
            let is_cut_short = matches!(result.ending, Ending::Failed | Ending::Cancelled);
            if is_cut_short && state.books.is_draining() && state.books.postpone(id) {
                self.keep(entry_of(&state, id));
                state.live.remove(&id);
            } else {
                self.end(&mut state, id, result);
            }
        }
        self.changed.notify_all();
        self.pump();
    }

    fn end(&self, state: &mut State, id: TaskId, result: TaskOver) {
        let result = bounded(result);
        tracing::info!(task = %id, ending = result.ending.name(), "a task ended");
        let forgotten = state.books.over(id, result, self.now_ms());
        state.live.remove(&id);
        self.ended(state, id, &forgotten);
    }

    fn cancel(&self, state: &mut State, id: TaskId) {
        let failure = TaskFailure::new("cancelled before it began: nothing was read or written");
        let result = ended(Ending::Cancelled, failure.json());
        match state.books.cancel(id, result, self.now_ms()) {
            (Cancelled::AtOnce, forgotten) => self.ended(state, id, &forgotten),
            (Cancelled::Running, _) => {
                self.keep(entry_of(state, id));
                if let Some(live) = state.live.get(&id) {
                    live.progress.stop();
                }
            }
            (Cancelled::WasOver | Cancelled::Unknown, _) => {}
        }
        self.changed.notify_all();
    }

    /// A task is over: its file says so, and those of forgotten ones go.
    fn ended(&self, state: &mut State, id: TaskId, forgotten: &[TaskId]) {
        if let Some(entry) = state.books.get(id) {
            self.keep(entry);
        }
        for id in forgotten {
            state.notes.remove(id);
            if let Err(error) = self.files.remove(*id) {
                tracing::warn!(task = %id, %error, "the file of a task could not be removed");
            }
        }
    }

    /// Writes a task's file. If that fails the task goes on: after a crash it would be run once more.
    fn keep(&self, entry: &Entry) {
        if let Err(error) = self.files.write(entry) {
            tracing::warn!(task = %entry.id, %error, "the file of a task could not be written");
        }
    }

    /// Changes an entry, and writes its file if that made a difference.
    pub(super) fn change(&self, id: TaskId, change: impl FnOnce(&mut Books, TaskId) -> bool) {
        let mut state = self.state.lock();
        if change(&mut state.books, id) {
            self.keep(entry_of(&state, id));
        }
    }

    pub(super) fn note(&self, id: TaskId, text: &str) {
        let mut state = self.state.lock();
        let notes = state.notes.entry(id).or_default();
        if notes.len() < NOTES_MAX {
            notes.push(shortened(text, NOTE_LEN_MAX).to_owned());
        }
        self.changed.notify_all();
    }

    pub(super) fn waits_for(&self, id: TaskId, what: Option<&str>) {
        if let Some(live) = self.state.lock().live.get_mut(&id) {
            live.waits_for = what.map(str::to_owned);
        }
    }

    /// Replaces the progress of a run; a wish to stop stays.
    pub(super) fn fresh_progress(&self, id: TaskId) -> Arc<Progress> {
        let fresh = Arc::<Progress>::default();
        if let Some(live) = self.state.lock().live.get_mut(&id) {
            if live.progress.is_stopping() {
                fresh.stop();
            }
            live.progress = fresh.clone();
            live.started = Stopwatch::start();
            live.samples.clear();
        }
        fresh
    }

    pub(super) fn is_stopping(&self, id: TaskId) -> bool {
        let state = self.state.lock();
        let live = state.live.get(&id);
        live.is_none_or(|live| live.progress.is_stopping())
    }

    pub(super) fn is_postponed(&self, id: TaskId) -> bool {
        let state = self.state.lock();
        let phase = state.books.get(id).map(|entry| entry.phase);
        state.books.is_draining() && phase == Some(Phase::Running)
    }

    pub(super) fn status_of(&self, state: &State, entry: &Entry) -> TaskStatus {
        let live = state.live.get(&entry.id);
        let progress = live.map(|live| &live.progress);
        let figure = |of: fn(&Progress) -> u64| progress.map_or(0, |progress| of(progress));
        let result = entry.result.as_ref();
        TaskStatus {
            task: entry.id.to_string(),
            kind: entry.task.kind().to_owned(),
            subject: match &entry.task {
                Task::Backup(task) => task.vm.clone(),
                Task::Restore(task) => task.snapshot.clone(),
            },
            repository: entry.task.repository().to_owned(),
            owner: entry.owner.name.to_string(),
            state: match result {
                Some(result) => result.ending.name().to_owned(),
                None => entry.phase.name().to_owned(),
            },
            submitted_ms: entry.submitted_ms,
            started_ms: entry.started_ms,
            ended_ms: entry.ended_ms,
            runs: entry.runs,
            waits_for: self.wait_of(state, entry),
            session: entry.session.map(|session| session.to_string()),
            total_bytes: figure(|progress| progress.total_bytes.get()),
            done_bytes: figure(|progress| progress.done_bytes.get()),
            read_bytes: figure(|progress| progress.read_bytes.get()),
            new_bytes: figure(|progress| progress.new_bytes.get()),
            stored_bytes: figure(|progress| progress.stored_bytes.get()),
            rate_bytes_per_s: live.map_or(0.0, Live::rate),
        }
    }

    fn wait_of(&self, state: &State, entry: &Entry) -> Option<String> {
        let what = match entry.phase {
            Phase::Over => return None,
            Phase::Queued if state.books.is_draining() => "the proxy's next start".to_owned(),
            Phase::Queued if state.books.is_suspended() => "the proxy to be resumed".to_owned(),
            Phase::Queued => "a free stream".to_owned(),
            Phase::Running | Phase::Cancelling => {
                let live = state.live.get(&entry.id)?;
                match &live.waits_for {
                    Some(what) => what.clone(),
                    None => live.slowest(self.options.worker.threads()).to_owned(),
                }
            }
        };
        Some(what)
    }
}

/// Runs a task on its own thread.
fn work(run: TaskRun) {
    let shared = run.shared.clone();
    let id = run.entry.id;
    tracing::info!(task = %id, kind = run.entry.task.kind(), run = run.entry.runs, "a task begins");
    let worked = catch_unwind(AssertUnwindSafe(|| shared.options.worker.run(run)));
    let result = worked.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        let failure = TaskFailure::new(format!(
            "the task ended by a bug of the program: {}",
            text.unwrap_or("a panic")
        ));
        ended(Ending::Failed, failure.json())
    });
    shared.finish(id, result);
}

impl Live {
    fn moved(&self) -> u64 {
        let progress = &self.progress;
        progress.read_bytes.get().max(progress.stored_bytes.get())
    }

    fn sample(&mut self) {
        let now = self.started.elapsed();
        self.samples.push_back((now, self.moved()));
        while self.samples.len() > 1 && now - self.samples[0].0 > RATE_WINDOW {
            self.samples.pop_front();
        }
    }

    fn rate(&self) -> f64 {
        let (since, then) = self.samples.front().copied().unwrap_or_default();
        let seconds = self.started.elapsed().saturating_sub(since).as_secs_f64();
        match seconds > 0.0 {
            true => self.moved().saturating_sub(then) as f64 / seconds,
            false => 0.0,
        }
    }

    /// What the run waited for most.
    fn slowest(&self, threads: usize) -> &'static str {
        let waits = Waits::of(&self.progress, threads, self.started.elapsed());
        let shares = [
            (waits.source_percent, "the source"),
            (waits.cpu_percent, "the processor"),
            (waits.repository_percent, "the repository"),
        ];
        let most = shares.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
        most.map_or("the source", |(_, what)| what)
    }
}

fn entry_of(state: &State, id: TaskId) -> &Entry {
    state
        .books
        .get(id)
        .expect("it was just changed, and only what is over is forgotten")
}

/// A task that the peer may see.
pub(super) fn look_after<'a>(
    state: &'a State,
    peer: &PeerIdentity,
    id: TaskId,
) -> Result<&'a Entry, Failure> {
    let entry = state.books.get(id).ok_or_else(|| {
        let text = format!("the proxy has no task {id}: it never had, or it ended long ago");
        Failure::new(FailureCode::NoSuchTask, text)
    })?;
    may_look_after(peer, entry)?;
    Ok(entry)
}

fn refused(refusal: Refusal) -> Failure {
    let code = match refusal {
        Refusal::OtherTask(_) => FailureCode::AlreadyExists,
        Refusal::Suspended => FailureCode::Suspended,
        Refusal::Draining => FailureCode::Draining,
        _ => FailureCode::Busy,
    };
    Failure::new(code, refusal.to_string())
}

/// A result that fits into a frame. A longer JSON would be none when it is cut.
fn bounded(result: TaskOver) -> TaskOver {
    let json = match result.json.len() as u64 <= RESULT_LEN_MAX {
        true => result.json,
        false => TaskFailure::new("the report is too long to be kept").json(),
    };
    TaskOver {
        ending: result.ending,
        json,
        text: shortened(&result.text, RESULT_LEN_MAX).to_owned(),
    }
}

fn paths_of(task: &Task) -> Vec<(String, String)> {
    match task {
        Task::Backup(task) => {
            let disks = task.disks.iter();
            disks
                .map(|disk| (disk.label.clone(), disk.source.clone()))
                .collect()
        }
        Task::Restore(task) => {
            let label = task.disk.clone().unwrap_or_else(|| "*".to_owned());
            vec![(label, task.target.clone())]
        }
    }
}
