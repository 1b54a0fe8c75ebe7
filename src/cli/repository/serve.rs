//! `undercroft repository serve`.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use undercroft_dataplane::net::address::DEFAULT_PORT;
use undercroft_dataplane::net::bandwidth::{Rule, Rules};
use undercroft_dataplane::net::door::Limits;
use undercroft_dataplane::net::door::limiter::CONNECTIONS_DEFAULT;
use undercroft_dataplane::net::server::{CheckpointPolicy, Server, ServerLimits, ServerOptions};
use undercroft_dataplane::net::trust::authority::TOKEN_LIFETIME_DEFAULT;
use undercroft_dataplane::net::trust::{Authority, Role, Scope, TokenOptions};

use super::{Place, Store};
use crate::access;
use crate::failure::{Outcome, one_line, warn};
use crate::remote::PROGRAM;
use crate::service;
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
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "the brackets in the help are those of a syntax"
)]
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    store: Store,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)))]
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
    std::fs::create_dir_all(&args.store.dir)
        .with_context(|| format!("making the store {}", args.store.dir.display()))?;
    let authority = Arc::new(args.store.open_or_create()?);
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("watching for signals")?;
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
    for error in server.drain() {
        warn(format_args!(
            "a repository was not closed cleanly and will be checked when it is opened next: {}",
            one_line(&error)
        ));
    }
    Ok(Outcome::Done)
}

/// A token for the first administrator, if nobody was ever let in.
pub fn first_token(authority: &Authority) -> anyhow::Result<Option<String>> {
    if !authority.identities()?.is_empty() || !authority.tokens()?.is_empty() {
        return Ok(None);
    }
    let (token, _) = authority.issue_token(&TokenOptions {
        role: Role::Admin,
        scope: Scope::everything(),
        name: None,
        lifetime: TOKEN_LIFETIME_DEFAULT,
    })?;
    Ok(Some(token.to_text().to_string()))
}

/// Whoever started the server may be waiting for the line.
pub fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .context("writing to standard output")
}
