//! `undercroft repository serve`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use undercroft_dataplane::net::address::DEFAULT_PORT;
use undercroft_dataplane::net::bandwidth::{Rule, Rules};
use undercroft_dataplane::net::door::Limits;
use undercroft_dataplane::net::door::limiter::CONNECTIONS_DEFAULT;
use undercroft_dataplane::net::server::{CheckpointPolicy, Server, ServerLimits, ServerOptions};

use super::{Place, Store};
use crate::access;
use crate::daemon;
use crate::failure::{Outcome, one_line, warn};
use crate::remote::PROGRAM;
use crate::settings::Settings;
use crate::units::parse_duration;
use crate::watch::WatchArgs;

/// Serve the repositories under a directory
///
/// Each directory of the store that holds a repository can be opened as quic://HOST:PORT/NAME by whoever
/// is enrolled. The first start makes the server's authority and prints a token that enrols an
/// administrator. SIGTERM or Ctrl-C shuts down in order: clients finish the segments that they have
/// begun (within 30 seconds), what was pushed is made durable, and backups go on when the server is back; a
/// second one ends at once.
///
/// JSON, a line each: event listening, with address, authority (its fingerprint), token (of the first
/// administrator; null later), metrics (null without --metrics); event stopping.
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "the brackets in the help are those of a syntax"
)]
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    store: Store,
    /// Where to listen: an address or a name of this machine, and a port
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = daemon::parse_listen, default_value_t = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)))]
    listen: SocketAddr,
    /// How long an interrupted backup can be gone on with
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    lease: Duration,
    /// What was pushed is made durable at least this often: what a crash costs, against short packs
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3600))]
    checkpoint: u64,
    /// Connections at once; half of them from one address, a quarter of them of one identity
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS_DEFAULT as u32, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    max_connections: u32,
    /// Bandwidth of data from all clients together, as in 50MiB/s@mon-fri 08:00-18:00
    ///
    /// RATE[@[DAYS] [HH:MM-HH:MM] [UTC]], by the clock of this machine; hours may go over midnight. May be
    /// repeated: of the limits that hold at a time the lowest counts, and without one there is none. Backups
    /// share it in equal parts; questions and acknowledgements do not wait.
    #[arg(long, value_name = "LIMIT")]
    limit_in: Vec<Rule>,
    /// Bandwidth of data to all clients together, written like --limit-in
    #[arg(long, value_name = "LIMIT")]
    limit_out: Vec<Rule>,
    #[command(flatten)]
    watch: WatchArgs,
}

pub fn run(settings: &Settings, args: Args) -> anyhow::Result<Outcome> {
    let _occupied = daemon::occupy(&args.store.dir, "--store")?;
    let authority = Arc::new(args.store.open_or_create()?);
    let signals = daemon::signals()?;
    let options = ServerOptions {
        listen: args.listen,
        store: args.store.dir.clone(),
        owner: access::owner(settings, "repository serve"),
        program: PROGRAM.to_owned(),
        engine: settings.engine()?,
        threads: settings.threads,
        lease: args.lease,
        checkpoint: CheckpointPolicy {
            interval_ms: args.checkpoint * 1000,
            ..CheckpointPolicy::default()
        },
        door: Limits::for_connections(args.max_connections as usize),
        limits: ServerLimits {
            incoming: Rules::new(args.limit_in, settings.time_zone.clone()),
            outgoing: Rules::new(args.limit_out, settings.time_zone.clone()),
            ..ServerLimits::default()
        },
        note: Box::new(|_, note| access::tell(note)),
    };
    let server = Server::start(options, authority.clone())?;
    let watched = args.watch.open(server.watched())?;
    let address = server
        .address()
        .context("asking where the server listens")?;
    daemon::attend(settings, signals, address, &authority, watched.as_ref())?;
    for error in server.drain() {
        warn(format_args!(
            "a repository was not closed cleanly and will be checked when it is opened next: {}",
            one_line(&error)
        ));
    }
    Ok(Outcome::Done)
}
