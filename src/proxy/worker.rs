//! Does what tasks ask for, by the code that commands use.

use std::path::Path;
use std::sync::Arc;

use jiff::tz::TimeZone;
use undercroft_dataplane::net::proxy::{TaskRun, Worker};
use undercroft_dataplane::repository::open::Location;
use undercroft_format::wire::books::{Owner, ended};
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::proxy::{Ending, TaskOver};
use undercroft_format::wire::task::{BackupTask, RestoreTask, Task};

use super::bounds::Bounds;
use super::task_runner::TaskRunner;
use super::tasks;
use crate::backup_job::Request;
use crate::backup_run::{self, Resume};
use crate::failure::{Outcome, Problem, describe, hear_warnings, one_line, warn};
use crate::report;
use crate::restore_run;
use crate::runner::Runner;
use crate::settings::Settings;

/// Works for a proxy.
pub struct TaskWorker {
    settings: Settings,
    bounds: Arc<Bounds>,
    threads: Arc<rayon::ThreadPool>,
}

/// A report as JSON and as text, and what it comes to.
type Reports = (String, String, Outcome);

impl TaskWorker {
    /// Works with the keys of `settings`, within `bounds`, on `threads` that all tasks share.
    pub fn new(settings: Settings, bounds: Bounds, threads: Arc<rayon::ThreadPool>) -> Self {
        Self {
            settings,
            bounds: Arc::new(bounds),
            threads,
        }
    }

    fn look_at(&self, task: &Task) -> anyhow::Result<()> {
        match task {
            Task::Backup(task) => {
                self.readable(task)?;
                if let Some(parent) = &task.parent {
                    parent.parse::<undercroft_control::SnapshotSpec>()?;
                }
                self.settings_of(&task.repository, task.time_zone.as_deref())?;
            }
            Task::Restore(task) => {
                tasks::restore_request(task)?;
                self.bounds.check_writable(Path::new(&task.target))?;
                self.settings_of(&task.repository, task.time_zone.as_deref())?;
            }
        }
        Ok(())
    }

    /// The request of a task, with paths that may be read and lead through no links.
    fn readable(&self, task: &BackupTask) -> anyhow::Result<Request> {
        let mut request = tasks::backup_request(task);
        for disk in &mut request.disks {
            disk.source = self.bounds.readable_disk(&disk.source)?;
        }
        let bitmaps = request.disks.iter_mut();
        let bitmaps = bitmaps.filter_map(|disk| disk.changed_blocks.as_mut());
        for path in bitmaps.chain(request.metadata.as_mut()) {
            *path = self.bounds.readable(path)?;
        }
        Ok(request)
    }

    fn settings_of(&self, repository: &str, time_zone: Option<&str>) -> anyhow::Result<Settings> {
        let location: Location = repository.parse()?;
        if let Location::Local(root) = location {
            return Err(Problem::new(format!(
                "the repository {} is a directory: a proxy works with repositories behind a server",
                root.display()
            ))
            .into());
        }
        let time_zone = match time_zone {
            Some(name) => TimeZone::get(name)?,
            None => self.settings.time_zone.clone(),
        };
        Ok(self.settings.of_task(location, time_zone))
    }

    fn backup(&self, task: &BackupTask, runner: &TaskRunner) -> anyhow::Result<Reports> {
        let settings = self.settings_of(&task.repository, task.time_zone.as_deref())?;
        let request = self.readable(task)?;
        let parent = task.parent.as_deref().map(str::parse).transpose()?;
        let resume = Resume {
            asked: task.resume,
            left: runner.run.entry.session,
        };
        let report = backup_run::run_through(&settings, &request, parent.as_ref(), resume, runner)?;
        report.warnings.iter().for_each(warn);
        let json = backup_run::Report::of(&report);
        let (json, text) = report::both(&json, |text| backup_run::write(text, &settings, &report))?;
        Ok((json, text, backup_run::outcome(&report)))
    }

    fn restore(&self, task: &RestoreTask, runner: &TaskRunner) -> anyhow::Result<Reports> {
        let settings = self.settings_of(&task.repository, task.time_zone.as_deref())?;
        let request = tasks::restore_request(task)?;
        let report = restore_run::run_through(&settings, &request, runner)?;
        let (json, text) = report::both(&report, |text| restore_run::write(text, &report))?;
        Ok((json, text, report.outcome()))
    }
}

impl Worker for TaskWorker {
    fn check(&self, task: &Task, _: &Owner) -> Result<(), Failure> {
        self.look_at(task)
            .map_err(|error| Failure::new(FailureCode::Denied, one_line(&*error)))
    }

    fn run(&self, run: TaskRun) -> TaskOver {
        let run = Arc::new(run);
        let heard = run.clone();
        hear_warnings(move |text| heard.note(text));
        let runner = TaskRunner {
            run: run.clone(),
            bounds: self.bounds.clone(),
            threads: self.threads.clone(),
        };
        let done = match &run.entry.task {
            Task::Backup(task) => self.backup(task, &runner),
            Task::Restore(task) => self.restore(task, &runner),
        };
        match done {
            Ok((json, text, outcome)) => TaskOver {
                ending: match outcome {
                    Outcome::Done => Ending::Done,
                    Outcome::Damage => Ending::Damage,
                    Outcome::Warned => Ending::Warned,
                },
                json,
                text,
            },
            Err(error) => {
                let ending = match runner.is_stopping() {
                    true => Ending::Cancelled,
                    false => Ending::Failed,
                };
                ended(ending, describe(&error).json())
            }
        }
    }

    fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    fn bounds(&self) -> (Vec<String>, Vec<String>) {
        let writes = self.bounds.writes().iter();
        let writes = writes.map(|root| root.display().to_string());
        (self.bounds.shown_reads(), writes.collect())
    }
}
