//! Long work: its threads, and its progress.

use std::sync::Arc;

use anyhow::Context;
use undercroft_dataplane::progress::Progress;

use crate::progress::{Activity, Display};
use crate::settings::Settings;
use crate::signals;

/// What long work runs with. Dropping it ends the display of progress.
pub struct Work {
    /// Counts, and says when to stop.
    pub progress: Arc<Progress>,
    /// For CPU work.
    pub threads: rayon::ThreadPool,
    _display: Display,
}

impl Work {
    /// Makes the threads, begins to show progress, and turns Ctrl-C into a wish to stop.
    pub fn start(settings: &Settings, activity: Activity) -> anyhow::Result<Self> {
        let progress = Arc::<Progress>::default();
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(settings.threads)
            .thread_name(|number| format!("undercroft-cpu-{number}"))
            .build()
            .context("starting threads")?;
        signals::stop_cleanly(progress.clone()).context("watching for signals")?;
        Ok(Self {
            _display: Display::start(settings, activity, progress.clone())?,
            progress,
            threads,
        })
    }
}
