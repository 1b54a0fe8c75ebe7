//! A task's work: as a command's, but it is shown and stopped elsewhere, and bounded.

use std::path::Path;
use std::sync::Arc;

use undercroft_dataplane::net::proxy::TaskRun;
use undercroft_dataplane::repository::Repository;
use undercroft_format::id::SessionId;

use super::bounds::Bounds;
use super::noted::{NotedRepository, Notes};
use crate::failure::Problem;
use crate::progress::Activity;
use crate::runner::Runner;
use crate::settings::Settings;
use crate::work::Work;

/// Runs one task.
pub struct TaskRunner {
    pub run: Arc<TaskRun>,
    pub bounds: Arc<Bounds>,
    pub threads: Arc<rayon::ThreadPool>,
}

impl Runner for TaskRunner {
    fn start(&self, _: &Settings, _: Activity) -> anyhow::Result<Work> {
        Ok(Work::silent(self.run.progress(), self.threads.clone()))
    }

    fn is_stopping(&self) -> bool {
        self.run.is_stopping()
    }

    fn how_to_go_on(&self) -> Option<String> {
        None
    }

    fn repository(&self, opened: &Arc<dyn Repository>) -> Arc<dyn Repository> {
        let notes = Arc::new(RunNotes(self.run.clone()));
        Arc::new(NotedRepository::new(opened.clone(), notes))
    }

    fn may_use(&self, vm: &str) -> anyhow::Result<()> {
        let owner = &self.run.entry.owner;
        if owner.scope.has_vm(vm) {
            return Ok(());
        }
        Err(Problem::new(format!(
            "{} may not use data of VM {vm:?}, which is out of its scope",
            owner.name
        ))
        .hint("enrol at the proxy with a token for that VM")
        .into())
    }

    fn may_write(&self, path: &Path) -> anyhow::Result<()> {
        self.bounds.check_writable(path)
    }

    fn wrote(&self, path: &Path) {
        // A path that cannot be told is one that a later run does not replace.
        if let Some(path) = path.to_str() {
            self.run.wrote(path);
        }
    }

    fn has_written(&self, path: &Path) -> bool {
        let written = &self.run.entry.written;
        written.iter().any(|known| Path::new(known) == path)
    }

    fn waits_for(&self, what: Option<&str>) {
        self.run.waits_for(what);
    }
}

struct RunNotes(Arc<TaskRun>);

impl Notes for RunNotes {
    fn opened(&self, session: SessionId) {
        self.0.opened(session);
    }

    fn is_postponed(&self) -> bool {
        self.0.is_postponed()
    }
}
