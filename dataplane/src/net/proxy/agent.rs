//! The agent: takes tasks, runs as many at once as there are streams, and forgets none when it dies.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use undercroft_format::id::TaskId;
use undercroft_format::nbd::uri::NbdUri;
use undercroft_format::wire::books::{Books, Entry, Phase, Refusal};
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::proxy::{Accepted, Submit};
use undercroft_format::wire::task::Task;

use super::figures::ProxyFigures;
use super::live::Live;
use super::machine::{self, memory};
use super::permission::{denied, may_look_after, may_submit, owner_of};
use super::run::Worker;
use super::shared::{Moved, Shared, State, entry_of};
use super::status::{ProxyStatus, TaskDetails, TaskStatus};
use super::task_files::TaskFiles;
use crate::clock::Stopwatch;
use crate::net::trust::{IdentityName, Object, PeerIdentity, Verb, WallClock};

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

impl Agent {
    /// Takes up what was left, and returns what is wrong with it. Nothing runs before [`begin`](Self::begin).
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
        let shared = Arc::new(Shared::new(options, files, books));
        for id in to_cancel {
            shared.cancel(&mut shared.state(), id);
        }
        Ok((Self(shared), problems))
    }

    /// Begins with the tasks that were left.
    pub fn begin(&self) {
        self.0.pump();
    }

    /// Ends all tasks of owners whom the proxy lets in no more, those that run as if they were cancelled.
    pub fn end_tasks_of(&self, is_revoked: impl Fn(&IdentityName) -> bool) {
        self.0.cancel_of(is_revoked);
    }

    /// Takes a task: it is on disk on return.
    pub fn submit(&self, peer: &PeerIdentity, submit: Submit) -> Result<Accepted, Failure> {
        let shared = &self.0;
        let Submit { id, task } = submit;
        may_submit(peer, &task)?;
        let owner = owner_of(peer);
        let known = shared.state().books.get(id).is_some();
        if !known {
            shared.options.worker.check(&task, &owner)?;
        }
        let is_new = {
            let mut state = shared.state();
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
        let mut state = shared.state();
        look_after(&state, peer, id)?;
        shared.cancel(&mut state, id);
        Ok(())
    }

    /// The tasks that the peer may see, in the order in which they came.
    pub fn list(&self, peer: &PeerIdentity) -> Result<Vec<TaskStatus>, Failure> {
        denied(peer.check(Verb::OwnTasks, Object::default()))?;
        let state = self.0.state();
        let entries = state.books.entries().into_iter();
        let seen = entries.filter(|entry| {
            entry.owner.name == peer.name || peer.check(Verb::AllTasks, Object::default()).is_ok()
        });
        Ok(seen.map(|entry| self.0.status_of(&state, entry)).collect())
    }

    /// All that is known of a task.
    pub fn show(&self, peer: &PeerIdentity, id: TaskId) -> Result<TaskDetails, Failure> {
        let state = self.0.state();
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
        Ok(self.status_now())
    }

    /// The same for those who need no permission.
    pub(super) fn status_now(&self) -> ProxyStatus {
        let state = self.0.state();
        let books = &state.books;
        let is_open = !books.is_suspended() && !books.is_draining();
        let free = books.streams().saturating_sub(books.running());
        let memory = memory();
        let (reads, writes) = self.0.options.worker.bounds();
        ProxyStatus {
            program: self.0.options.program.clone(),
            uptime_ms: self.uptime_ms(),
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
            // The sum of nothing would be minus zero.
            rate_bytes_per_s: state.live.values().map(Live::rate).fold(0.0, |a, b| a + b),
            reads,
            writes,
        }
    }

    /// Tasks that are not over, by phase, and what all tasks moved since the proxy started.
    pub(super) fn tallies(&self) -> ([(Phase, usize); 3], Moved) {
        let state = self.0.state();
        let phases = [Phase::Queued, Phase::Running, Phase::Cancelling];
        let phases = phases.map(|phase| (phase, state.books.count(phase)));
        (phases, state.moved())
    }

    /// What it counts.
    pub(super) fn figures(&self) -> &ProxyFigures {
        &self.0.figures
    }

    /// Milliseconds since it started.
    pub(super) fn uptime_ms(&self) -> u64 {
        self.0.uptime.elapsed().as_millis() as u64
    }

    /// The directory of its files.
    pub(super) fn state_dir(&self) -> &Path {
        &self.0.options.state
    }

    /// Whether an administrator suspended it.
    pub(super) fn is_suspended(&self) -> bool {
        self.0.state().books.is_suspended()
    }

    /// Takes and begins no tasks, or does so again. It is on disk on return.
    pub fn suspend(&self, peer: &PeerIdentity, is_suspended: bool) -> Result<(), Failure> {
        denied(peer.check(Verb::Suspend, Object::default()))?;
        {
            let mut state = self.0.state();
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
        let mut state = self.0.state();
        state.live.values_mut().for_each(Live::sample);
        drop(state);
        self.0.figures.beat(self.uptime_ms());
    }

    /// Takes no tasks any more and stops what runs, so that it can be gone on with. Returns the number of
    /// tasks that did not stop in time.
    pub fn drain(&self, at_most: Duration) -> usize {
        let clock = Stopwatch::start();
        self.0.figures.drain();
        let mut state = self.0.state();
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

/// A source as it may be shown: the name of an NBD export may hold a session.
fn shown_source(source: &str) -> String {
    match NbdUri::is_like(source) {
        true => NbdUri::parse(source).map_or_else(|_| "nbd".to_owned(), |uri| uri.to_string()),
        false => source.to_owned(),
    }
}

fn paths_of(task: &Task) -> Vec<(String, String)> {
    match task {
        Task::Backup(task) => {
            let disks = task.disks.iter();
            disks
                .map(|disk| (disk.label.clone(), shown_source(&disk.source)))
                .collect()
        }
        Task::Restore(task) => {
            let label = task.disk.clone().unwrap_or_else(|| "*".to_owned());
            vec![(label, task.target.clone())]
        }
    }
}

#[cfg(test)]
mod tests;
