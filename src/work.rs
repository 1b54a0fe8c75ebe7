//! Long work: its threads, its progress, and how a user stops it.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};
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
        stop_on_signals(&progress).context("watching for signals")?;
        Ok(Self {
            _display: Display::start(settings, activity, progress.clone())?,
            progress,
            threads,
        })
    }
}

/// Set by the signal itself, before anything that the same Ctrl-C does to other programs can be seen.
fn stop_flag() -> &'static Arc<AtomicBool> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    STOP.get_or_init(Arc::default)
}

/// Whether the user asked to stop.
pub fn is_stopping() -> bool {
    stop_flag().load(Ordering::SeqCst)
}

/// A stream that fails once the user asked to stop.
///
/// Ctrl-C ends the program at the other end of a pipe, too; the end of the stream that follows must not
/// pass for a complete one.
pub struct Stoppable<R>(pub R);

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.0.read(buffer)?;
        if is_stopping() {
            return Err(io::Error::other("stopped on request"));
        }
        Ok(got)
    }
}

/// The first Ctrl-C or SIGTERM asks to stop cleanly, the second ends the process where it stands; the
/// repository is safe either way.
///
/// The signals go to the work that was started last.
fn stop_on_signals(progress: &Arc<Progress>) -> io::Result<()> {
    static CURRENT: Mutex<Weak<Progress>> = Mutex::new(Weak::new());
    static WATCHING: AtomicBool = AtomicBool::new(false);
    *CURRENT.lock().expect("no holder panics") = Arc::downgrade(progress);
    if WATCHING.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, stop_flag().clone())?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("undercroft-signals".into())
        .spawn(move || {
            let mut times = 0;
            for signal in signals.forever() {
                times += 1;
                if times > 1 {
                    low_level::exit(128 + signal);
                }
                if let Some(progress) = CURRENT.lock().expect("no holder panics").upgrade() {
                    progress.stop();
                }
                let _ = writeln!(
                    io::stderr(),
                    "\nStopping as soon as that leaves everything clean; once more to stop at once."
                );
            }
        })?;
    Ok(())
}
