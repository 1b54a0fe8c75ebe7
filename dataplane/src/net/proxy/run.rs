//! A task that is worked on, as whoever works on it sees it.

use std::sync::Arc;

use undercroft_format::id::SessionId;
use undercroft_format::wire::books::{Entry, Owner};
use undercroft_format::wire::failure::Failure;
use undercroft_format::wire::proxy::TaskOver;
use undercroft_format::wire::task::Task;

use super::shared::Shared;
use crate::progress::Progress;

/// Does what tasks ask for.
pub trait Worker: Send + Sync + 'static {
    /// Looks at a task before it is taken: what never could be done is refused at once.
    ///
    /// # Errors
    /// What the client is told.
    fn check(&self, task: &Task, owner: &Owner) -> Result<(), Failure>;

    /// Does it, on a thread of the task's own. A panic ends this task alone.
    fn run(&self, run: TaskRun) -> TaskOver;

    /// Threads for CPU work, of all tasks together.
    fn threads(&self) -> usize;

    /// Below which directories tasks may read and write, for people.
    fn bounds(&self) -> (Vec<String>, Vec<String>);
}

/// One run of a task.
pub struct TaskRun {
    /// The task, as it was when the run began.
    pub entry: Entry,
    pub(super) shared: Arc<Shared>,
}

impl TaskRun {
    /// What counts from now on, from zero, and says when to stop.
    pub fn progress(&self) -> Arc<Progress> {
        self.shared.fresh_progress(self.entry.id)
    }

    /// True once the run was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.shared.is_stopping(self.entry.id)
    }

    /// The run opened a session at the repository's server. It is on disk on return: should the proxy die, the
    /// next run goes on with it.
    pub fn opened(&self, session: SessionId) {
        self.shared
            .change(self.entry.id, |books, id| books.opened(id, session));
    }

    /// The run completed a file, which a later run may replace. It is on disk on return.
    pub fn wrote(&self, path: &str) {
        self.shared
            .change(self.entry.id, |books, id| books.wrote(id, path));
    }

    /// Warns whoever follows the task.
    pub fn note(&self, text: &str) {
        self.shared.note(self.entry.id, text);
    }

    /// Says what the task waits for, beyond what can be told from its progress.
    pub fn waits_for(&self, what: Option<&str>) {
        self.shared.waits_for(self.entry.id, what);
    }

    /// True if it is the proxy that ends, not the task: another run will go on with it.
    pub fn is_postponed(&self) -> bool {
        self.shared.is_postponed(self.entry.id)
    }
}
