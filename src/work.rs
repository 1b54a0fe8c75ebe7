//! Long work: its threads, its progress, and how a user stops it.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use undercroft_dataplane::progress::Progress;

use crate::progress::{Activity, Display};
use crate::settings::Settings;

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
        stop_on_signals(progress.clone()).context("watching for signals")?;
        Ok(Self {
            _display: Display::start(settings, activity, progress.clone())?,
            progress,
            threads,
        })
    }
}

/// The first Ctrl-C or SIGTERM asks to stop cleanly, the second ends the process where it stands; the
/// repository is safe either way.
fn stop_on_signals(progress: Arc<Progress>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("undercroft-signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if progress.is_stopping() {
                    low_level::exit(128 + signal);
                }
                progress.stop();
                let _ = writeln!(
                    io::stderr(),
                    "\nStopping as soon as that leaves everything clean; once more to stop at once."
                );
            }
        })?;
    Ok(())
}
