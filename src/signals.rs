//! What Ctrl-C and its like do: stop long work cleanly, and leave the terminal as it was.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};
use undercroft_dataplane::progress::Progress;

/// The watch over signals, kept from when it is first needed to the end of the process.
struct Watch {
    /// Set by the signal itself, before anything that the same Ctrl-C does to other programs can be seen.
    stopping: Arc<AtomicBool>,
    /// Readable from then on.
    woken: PipeReader,
    concern: Mutex<Concern>,
}

/// What a signal has to do with.
#[derive(Default)]
struct Concern {
    /// The work that it asks to stop.
    progress: Option<Arc<Progress>>,
    /// The terminal that a question changed, as it was.
    terminal: Option<(File, Termios)>,
}

/// Makes the first Ctrl-C, SIGTERM or SIGHUP a wish that work under `progress` stop cleanly; the second
/// ends the process where it stands. The repository is safe either way.
pub fn stop_cleanly(progress: Arc<Progress>) -> io::Result<()> {
    watch()?.concern(|concern| concern.progress = Some(progress));
    Ok(())
}

/// Asks by `question`, which may change the terminal: a signal meanwhile puts it right again.
pub fn guard_terminal<R>(question: impl FnOnce() -> R) -> R {
    let guarded = File::options().read(true).write(true).open("/dev/tty");
    let guarded = guarded.and_then(|terminal| {
        let state = tcgetattr(&terminal)?;
        let watch = watch()?;
        watch.concern(|concern| concern.terminal = Some((terminal, state)));
        Ok(watch)
    });
    let answer = question();
    // Without a terminal there is nothing to put right.
    if let Ok(watch) = guarded {
        // The question may end first: the watch is about to end the process.
        while is_stopping() {
            thread::park();
        }
        watch.concern(|concern| concern.terminal = None);
    }
    answer
}

/// Whether the user asked to stop.
pub fn is_stopping() -> bool {
    let watch = WATCH.get();
    watch.is_some_and(|watch| watch.stopping.load(Ordering::SeqCst))
}

/// A stream that fails once the user asked to stop, also while nothing comes.
///
/// Ctrl-C ends the program at the other end of a pipe, too; the end of the stream that follows must not
/// pass for a complete one.
pub struct Stoppable(pub File);

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stopped = || io::Error::other("stopped on request");
        self.wait()?;
        if is_stopping() {
            return Err(stopped());
        }
        let got = self.0.read(buffer)?;
        match is_stopping() {
            true => Err(stopped()),
            false => Ok(got),
        }
    }
}

impl Stoppable {
    /// Returns when there is something to read, or to stop for.
    fn wait(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.0, PollFlags::IN)];
        if let Some(watch) = WATCH.get() {
            fds.push(PollFd::from_borrowed_fd(watch.woken.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            // Whatever interrupted it is seen by the caller.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

static WATCH: OnceLock<Watch> = OnceLock::new();

fn watch() -> io::Result<&'static Watch> {
    if let Some(watch) = WATCH.get() {
        return Ok(watch);
    }
    let (woken, wake) = io::pipe()?;
    let watch = WATCH.get_or_init(|| Watch {
        stopping: Arc::default(),
        woken,
        concern: Mutex::default(),
    });
    watch.start(&wake)?;
    Ok(watch)
}

impl Watch {
    fn start(&'static self, wake: &PipeWriter) -> io::Result<()> {
        let mut watched = vec![SIGINT, SIGTERM];
        // Under nohup it is to be ignored.
        if !is_ignored(SIGHUP) {
            watched.push(SIGHUP);
        }
        for signal in &watched {
            flag::register(*signal, self.stopping.clone())?;
            low_level::pipe::register(*signal, wake.try_clone()?)?;
        }
        let mut signals = Signals::new(&watched)?;
        thread::Builder::new()
            .name("undercroft-signals".into())
            .spawn(move || signals.forever().for_each(|signal| self.handle(signal)))?;
        Ok(())
    }

    fn handle(&self, signal: i32) {
        self.concern(|concern| {
            if let Some((terminal, state)) = &concern.terminal {
                let _ = tcsetattr(terminal, OptionalActions::Now, state);
                let _ = writeln!(io::stderr());
            }
            match &concern.progress {
                Some(progress) if !progress.is_stopping() => {
                    progress.stop();
                    let _ = writeln!(
                        io::stderr(),
                        "\nStopping as soon as that leaves everything clean; once more to stop at once."
                    );
                }
                _ => low_level::exit(128 + signal),
            }
        });
    }

    fn concern(&self, change: impl FnOnce(&mut Concern)) {
        change(&mut self.concern.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
