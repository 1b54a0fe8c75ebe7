//! `undercroft proxy serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use undercroft_dataplane::ingest::backup::memory_of_segments;
use undercroft_dataplane::net::address::PROXY_PORT;
use undercroft_dataplane::net::proxy::machine::{cores, default_streams, memory};
use undercroft_dataplane::net::proxy::{Agent, AgentOptions, ProxyOptions, ProxyServer};
use undercroft_dataplane::net::trust::SystemClock;

use super::State;
use crate::cli::repository::Place;
use crate::daemon;
use crate::failure::{Outcome, warn};
use crate::proxy::bounds::Bounds;
use crate::proxy::exports::AllowedExport;
use crate::proxy::worker::TaskWorker;
use crate::remote::PROGRAM;
use crate::settings::Settings;
use crate::watch::WatchArgs;
use crate::work;

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
///
/// JSON, a line each: event listening, with address, authority (its fingerprint), token (of the first
/// administrator; null later), metrics (null without --metrics); event stopping.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    state: State,
    /// Where to listen: an address or a name of this machine, and a port
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = daemon::parse_listen, default_value_t = SocketAddr::from(([0, 0, 0, 0], PROXY_PORT)))]
    listen: SocketAddr,
    /// Tasks at once (default: twice the cores, as far as memory goes)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    streams: Option<u16>,
    /// A directory below which tasks may read disks; may be given more than once
    #[arg(long = "read", value_name = "DIR")]
    reads: Vec<PathBuf>,
    /// An NBD server whose exports tasks may read (`nbds://HOST[:PORT]/`), or one export of it; with the
    /// parameters of TLS, which tasks may not give; may be given more than once
    #[arg(long = "read-nbd", value_name = "URI")]
    exports: Vec<AllowedExport>,
    /// A directory below which tasks may write disks; may be given more than once; without, no restores
    #[arg(long = "write", value_name = "DIR")]
    writes: Vec<PathBuf>,
    #[command(flatten)]
    watch: WatchArgs,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let state = args.state.dir();
    let _occupied = daemon::occupy(state, "--state")?;
    let authority = Arc::new(args.state.open_or_create()?);
    let bounds = Bounds::new(&args.reads, &args.writes, &[state.to_owned()])?;
    let bounds = bounds.with_exports(&args.exports);
    let signals = daemon::signals()?;
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
    daemon::attend(settings, signals, address, &authority, watched.as_ref())?;
    match server.drain() {
        0 => {}
        left => warn(format_args!(
            "{left} tasks did not stop in time; the next start runs them again"
        )),
    }
    Ok(Outcome::Done)
}
