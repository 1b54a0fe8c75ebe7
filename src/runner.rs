//! Who runs a backup or a restore: a command at a terminal, or a proxy for somebody else. The work is the
//! same; what it tells, when it stops and what it may touch differ.

use std::path::Path;
use std::sync::Arc;

use undercroft_dataplane::repository::Repository;

use crate::failure::quote;
use crate::progress::Activity;
use crate::settings::Settings;
use crate::signals;
use crate::work::Work;

/// Runs work. What is provided is what a command does.
pub trait Runner {
    /// Begins work, or begins it anew.
    fn start(&self, settings: &Settings, activity: Activity) -> anyhow::Result<Work> {
        Work::start(settings, activity)
    }

    /// Whether somebody asked to stop.
    fn is_stopping(&self) -> bool {
        signals::is_stopping()
    }

    /// How to go on after that; nothing if whoever asked knows better.
    fn how_to_go_on(&self) -> Option<String> {
        let words: Vec<String> = std::env::args().skip(1).map(|word| quote(&word)).collect();
        // Not in backquotes: these words name the repository already.
        Some(format!(
            "to go on, run again: undercroft {}",
            words.join(" ")
        ))
    }

    /// The repository that a backup goes to.
    fn repository(&self, opened: &Arc<dyn Repository>) -> Arc<dyn Repository> {
        opened.clone()
    }

    /// Whether data of this VM may be used.
    fn may_use(&self, vm: &str) -> anyhow::Result<()> {
        let _ = vm;
        Ok(())
    }

    /// Whether the file or directory may be written; links followed.
    fn may_write(&self, path: &Path) -> anyhow::Result<()> {
        let _ = path;
        Ok(())
    }

    /// A file was completed.
    fn wrote(&self, path: &Path) {
        let _ = path;
    }

    /// Whether an earlier run of the same work completed the file.
    fn has_written(&self, path: &Path) -> bool {
        let _ = path;
        false
    }

    /// Tells what the work waits for.
    fn waits_for(&self, what: Option<&str>) {
        let _ = what;
    }
}

/// A command.
pub struct Terminal;

impl Runner for Terminal {}
