//! `undercroft proxy serve`.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use undercroft_dataplane::ingest::backup::memory_of_segments;
use undercroft_dataplane::net::address::PROXY_PORT;
use undercroft_dataplane::net::proxy::machine::{cores, default_streams, memory};
use undercroft_dataplane::net::proxy::{Agent, AgentOptions, ProxyOptions, ProxyServer};
use undercroft_dataplane::net::trust::SystemClock;

use super::State;
use crate::cli::repository::Place;
use crate::cli::repository::serve::{first_token, say};
use crate::failure::{Outcome, Problem, warn};
use crate::proxy::bounds::Bounds;
use crate::proxy::worker::TaskWorker;
use crate::remote::PROGRAM;
use crate::service;
use crate::settings::Settings;
use crate::watch::WatchArgs;
use crate::work;

/// One proxy works with a state.
const LOCK: &str = "lock";
/// The secret for resets.
const RESET_KEY: &str = ".reset-key";
/// What a task takes besides the segments that it reads or writes.
const TASK_OVERHEAD: u64 = 32 << 20;

/// Take backup and restore tasks
///
/// The first start makes the proxy's authority and prints a token that enrols an administrator. Enrol the
/// proxy's own machine at the repository's server, too. For encrypted repositories start it with
/// --passphrase-file or UNDERCROFT_PASSPHRASE: keys never come from clients.
///
/// SIGTERM or Ctrl-C shuts down in order: running tasks are stopped, and the next start goes on with them, as
/// it does after a crash; a second one ends at once.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    state: State,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from(([0, 0, 0, 0], PROXY_PORT)))]
    listen: SocketAddr,
    /// Tasks at once (default: twice the cores, as far as memory goes)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    streams: Option<u16>,
    /// A directory below which tasks may read disks; may be given more than once; without, no backups
    #[arg(long = "read", value_name = "DIR")]
    reads: Vec<PathBuf>,
    /// A directory below which tasks may write disks; may be given more than once; without, no restores
    #[arg(long = "write", value_name = "DIR")]
    writes: Vec<PathBuf>,
    #[command(flatten)]
    watch: WatchArgs,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let state = args.state.dir();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("making the directory {}", state.display()))?;
    let _lock = lock(state)?;
    let authority = Arc::new(args.state.open_or_create()?);
    let bounds = Bounds::new(&args.reads, &args.writes, &[state.to_owned()])?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("watching for signals")?;
    let threads = work::threads(settings)?;
    let streams = match args.streams {
        Some(streams) => streams.into(),
        None => {
            let segments = memory_of_segments(settings.threads);
            default_streams(cores(), memory().total, segments + TASK_OVERHEAD)
        }
    };
    let worker = TaskWorker::new(settings.clone(), bounds, threads);
    let (agent, problems) = Agent::start(AgentOptions {
        state: state.to_owned(),
        streams,
        program: PROGRAM.to_owned(),
        worker: Arc::new(worker),
        clock: Arc::new(SystemClock),
    })?;
    problems.iter().for_each(warn);
    let options = ProxyOptions {
        listen: args.listen,
        reset_key: state.join(RESET_KEY),
    };
    let server = ProxyServer::start(options, agent, authority.clone())?;
    let watched = args.watch.open(server.watched())?;
    let address = server.address().context("asking where the proxy listens")?;
    say(&format!("Listening on {address}"))?;
    if let Some(token) = first_token(&authority)? {
        say(&format!(
            "To enrol an administrator, once and within a day:\n  undercroft enroll quic://HOST:{} --role admin --token {token}",
            address.port()
        ))?;
    }
    if let Some(watched) = &watched {
        say(&format!(
            "Metrics and health on http://{}",
            watched.address()
        ))?;
    }
    service::is_ready(address);
    signals.forever().next();
    service::is_stopping();
    say("Shutting down; once more to end at once")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            signal_hook::low_level::exit(128 + signal);
        }
    });
    match server.drain() {
        0 => {}
        left => warn(format_args!(
            "{left} tasks did not stop in time; the next start runs them again"
        )),
    }
    Ok(Outcome::Done)
}

fn lock(state: &Path) -> anyhow::Result<File> {
    let path = state.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        rustix::io::Errno::WOULDBLOCK => anyhow::Error::new(
            Problem::new(format!("another proxy works with {}", state.display()))
                .hint("stop it, or name another directory by --state DIR"),
        ),
        errno => anyhow::Error::new(errno).context(format!("locking {}", path.display())),
    })?;
    Ok(file)
}
