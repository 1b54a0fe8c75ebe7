//! What the threads of an agent share: the books, their files, and the runs.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex, MutexGuard};
use undercroft_format::id::TaskId;
use undercroft_format::wire::books::{Books, Cancelled, Entry, Phase, ended};
use undercroft_format::wire::proxy::{Ending, NOTE_LEN_MAX, RESULT_LEN_MAX, TaskOver, shortened};
use undercroft_format::wire::task::Task;

use super::agent::AgentOptions;
use super::figures::ProxyFigures;
use super::live::Live;
use super::run::TaskRun;
use super::status::{TaskFailure, TaskStatus};
use super::task_files::TaskFiles;
use crate::clock::Stopwatch;
use crate::net::trust::IdentityName;
use crate::progress::Progress;

/// Warnings of a task that are kept.
const NOTES_MAX: usize = 256;

/// What threads of an agent share.
pub struct Shared {
    pub(super) options: AgentOptions,
    pub(super) files: TaskFiles,
    pub(super) uptime: Stopwatch,
    state: Mutex<State>,
    pub(super) figures: ProxyFigures,
    /// Something changed that a follower may want to know.
    pub(super) changed: Condvar,
}

/// Books, and what is known of tasks but not kept.
pub(super) struct State {
    pub books: Books,
    pub live: HashMap<TaskId, Live>,
    pub notes: HashMap<TaskId, Vec<String>>,
    /// Why tasks were cancelled that still run, where that was not their owner's wish.
    why_cancelled: HashMap<TaskId, TaskFailure>,
    /// What runs moved that are over.
    moved: Moved,
}

/// Bytes that tasks moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub read_bytes: u64,
    pub stored_bytes: u64,
}

impl Moved {
    fn add(&mut self, progress: &Progress) {
        self.read_bytes += progress.read_bytes.get();
        self.stored_bytes += progress.stored_bytes.get();
    }
}

impl State {
    /// What all tasks moved since the proxy started: never less than before.
    pub fn moved(&self) -> Moved {
        let mut moved = self.moved;
        self.live
            .values()
            .for_each(|live| moved.add(&live.progress));
        moved
    }

    /// A task is not worked on any more.
    fn rest(&mut self, id: TaskId) {
        if let Some(live) = self.live.remove(&id) {
            self.moved.add(&live.progress);
        }
    }
}

impl Shared {
    /// Those of an agent with these books.
    pub(super) fn new(options: AgentOptions, files: TaskFiles, books: Books) -> Self {
        Self {
            options,
            files,
            uptime: Stopwatch::start(),
            state: Mutex::new(State {
                books,
                live: HashMap::new(),
                notes: HashMap::new(),
                why_cancelled: HashMap::new(),
                moved: Moved::default(),
            }),
            figures: ProxyFigures::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.options.clock.now().as_millis()
    }

    /// Begins what may begin.
    pub(super) fn pump(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while let Some(entry) = state.books.start(self.now_ms()) {
            let entry = entry.clone();
            self.keep(&entry);
            state.live.insert(entry.id, Live::begin());
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
                state.rest(id);
            } else {
                let why = state.why_cancelled.remove(&id);
                let why = why.filter(|_| result.ending == Ending::Cancelled);
                let result = match why {
                    Some(why) => ended(Ending::Cancelled, why.json()),
                    None => result,
                };
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
        state.rest(id);
        self.ended(state, id, &forgotten);
    }

    /// Ends a task because somebody asked for it.
    pub(super) fn cancel(&self, state: &mut State, id: TaskId) {
        let failure = TaskFailure::new("cancelled before it began: nothing was read or written");
        self.cancel_saying(state, id, failure);
    }

    /// Ends all tasks of owners who are let in no more.
    pub(super) fn cancel_of(&self, is_revoked: impl Fn(&IdentityName) -> bool) {
        let mut state = self.state.lock();
        let entries = state.books.entries().into_iter();
        let orphaned = entries.filter(|entry| {
            let is_told = matches!(entry.phase, Phase::Over | Phase::Cancelling);
            !is_told && is_revoked(&entry.owner.name)
        });
        let orphaned: Vec<_> = orphaned
            .map(|entry| (entry.id, entry.owner.name.clone()))
            .collect();
        for (id, owner) in orphaned {
            tracing::warn!(task = %id, %owner, reason = "its owner was revoked", "a task is ended");
            let text = format!("ended by the proxy: {owner}, who submitted the task, was revoked");
            let failure = TaskFailure {
                hints: vec!["submit it again as somebody whom the proxy lets in".to_owned()],
                ..TaskFailure::new(text)
            };
            state.why_cancelled.insert(id, failure.clone());
            self.cancel_saying(&mut state, id, failure);
        }
    }

    /// Ends a task; if it has not begun, `failure` is what is told of it.
    fn cancel_saying(&self, state: &mut State, id: TaskId, failure: TaskFailure) {
        let result = ended(Ending::Cancelled, failure.json());
        match state.books.cancel(id, result, self.now_ms()) {
            (Cancelled::AtOnce, forgotten) => {
                state.why_cancelled.remove(&id);
                self.ended(state, id, &forgotten);
            }
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
            if let Some(result) = &entry.result {
                self.figures.ended(&entry.task, result.ending);
            }
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

    /// Counts a run from zero again.
    pub(super) fn fresh_progress(&self, id: TaskId) -> Arc<Progress> {
        let state = &mut *self.state.lock();
        match state.live.get_mut(&id) {
            Some(live) => {
                state.moved.add(&live.progress);
                live.begin_anew()
            }
            None => Arc::default(),
        }
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

pub(super) fn entry_of(state: &State, id: TaskId) -> &Entry {
    state
        .books
        .get(id)
        .expect("it was just changed, and only what is over is forgotten")
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
