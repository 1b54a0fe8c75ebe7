//! `undercroft repository serve`.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use undercroft_dataplane::net::address::DEFAULT_PORT;
use undercroft_dataplane::net::server::{CheckpointPolicy, Server, ServerOptions};
use undercroft_dataplane::net::trust::authority::TOKEN_LIFETIME_DEFAULT;
use undercroft_dataplane::net::trust::{Authority, Role, Scope, TokenOptions};

use super::Store;
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
/// administrator. SIGTERM or Ctrl-C shuts down in order: what was pushed is made durable, and
/// interrupted backups go on when the server is back; a second one ends at once.
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
fn first_token(authority: &Authority) -> anyhow::Result<Option<String>> {
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
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .context("writing to standard output")
}
