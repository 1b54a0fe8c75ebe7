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
    pub threads: Arc<rayon::ThreadPool>,
    _display: Option<Display>,
}

impl Work {
    /// Makes the threads, begins to show progress, and turns Ctrl-C into a wish to stop.
    pub fn start(settings: &Settings, activity: Activity) -> anyhow::Result<Self> {
        let progress = Arc::<Progress>::default();
        let threads = threads(settings)?;
        signals::stop_cleanly(progress.clone()).context("watching for signals")?;
        Ok(Self {
            _display: Some(Display::start(settings, activity, progress.clone())?),
            progress,
            threads,
        })
    }

    /// Work that is done elsewhere: it is shown, and Ctrl-C is turned into a wish to stop, but there are no
    /// threads for it.
    pub fn watched(settings: &Settings, activity: Activity) -> anyhow::Result<Watched> {
        let progress = Arc::<Progress>::default();
        signals::stop_cleanly(progress.clone()).context("watching for signals")?;
        Ok(Watched {
            _display: Display::start(settings, activity, progress.clone())?,
            progress,
        })
    }

    /// Work that others show and stop, on threads that it shares.
    pub fn silent(progress: Arc<Progress>, threads: Arc<rayon::ThreadPool>) -> Self {
        Self {
            progress,
            threads,
            _display: None,
        }
    }
}

/// Work that is done elsewhere. Dropping it ends the display of progress.
pub struct Watched {
    /// To be told how far it is; says when to stop.
    pub progress: Arc<Progress>,
    _display: Display,
}

/// Threads for CPU work.
pub fn threads(settings: &Settings) -> anyhow::Result<Arc<rayon::ThreadPool>> {
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(settings.threads)
        .thread_name(|number| format!("undercroft-cpu-{number}"))
        .build()
        .context("starting threads")?;
    Ok(Arc::new(threads))
}
