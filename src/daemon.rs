//! What the daemons have in common: one per directory, a greeting, and an end in order.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use undercroft_dataplane::net::trust::authority::TOKEN_LIFETIME_DEFAULT;
use undercroft_dataplane::net::trust::{Authority, Role, Scope, TokenOptions};
use undercroft_dataplane::observe::Endpoint;

use crate::failure::Problem;
use crate::service;
use crate::settings::Settings;

/// Made in a daemon's directory. No repository's name begins with a dot.
const LOCK: &str = ".lock";

/// A directory that one daemon works with, until this is dropped.
pub struct Occupied(#[expect(dead_code, reason = "closing it gives the lock back")] File);

/// Takes the directory `dir`, named by `option`, for this process; makes it if there is none.
pub fn occupy(dir: &Path, option: &str) -> anyhow::Result<Occupied> {
    if dir.exists() && !dir.is_dir() {
        return Err(Problem::usage(format!("{} is no directory", dir.display()))
            .hint(format!(
                "name one by {option} DIR: it is made if it is missing"
            ))
            .into());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("making the directory {}", dir.display()))?;
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        rustix::io::Errno::WOULDBLOCK => anyhow::Error::new(
            Problem::new(format!("another daemon works with {}", dir.display())).hint(format!(
                "stop it, or name another directory by {option} DIR"
            )),
        ),
        errno => anyhow::Error::new(errno).context(format!("locking {}", path.display())),
    })?;
    Ok(Occupied(file))
}

/// An address of this machine to listen at: an IP address or a name, and a port. Of a name the first address counts.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let like = "write one like 0.0.0.0:7420, [::]:7420 or localhost:7420";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(_))) {
        return Err(format!("there is no port in it: {like}"));
    }
    match text.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(format!("the name has no address: {like}")),
        Err(error) => Err(format!("the name cannot be looked up ({error}): {like}")),
    }
}

/// The signals that end a daemon. To be had before it starts.
pub fn signals() -> anyhow::Result<Signals> {
    Signals::new([SIGINT, SIGTERM]).context("watching for signals")
}

/// What a daemon says with `--json`, a line each.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Said<'a> {
    Listening {
        address: SocketAddr,
        authority: String,
        token: Option<&'a str>,
        metrics: Option<String>,
    },
    Stopping,
}

/// Tells where the daemon listens, to whoever started it, and waits for a signal to end; another one ends it
/// at once.
pub fn attend(
    settings: &Settings,
    mut signals: Signals,
    address: SocketAddr,
    authority: &Authority,
    watched: Option<&Endpoint>,
) -> anyhow::Result<()> {
    let token = first_token(authority)?;
    let metrics = watched.map(|watched| format!("http://{}", watched.address()));
    match settings.json {
        true => say_json(&Said::Listening {
            address,
            authority: authority.fingerprint().to_string(),
            token: token.as_deref(),
            metrics,
        })?,
        false => {
            say(&format!("Listening on {address}"))?;
            if let Some(token) = token {
                say(&format!(
                    "To enrol an administrator, once and within a day:\n  undercroft enroll quic://HOST:{} --role admin --token {token}",
                    address.port()
                ))?;
            }
            if let Some(metrics) = metrics {
                say(&format!("Metrics and health on {metrics}"))?;
            }
        }
    }
    service::is_ready(address);
    signals.forever().next();
    service::is_stopping();
    match settings.json {
        true => say_json(&Said::Stopping)?,
        false => say("Shutting down; once more to end at once")?,
    }
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            signal_hook::low_level::exit(128 + signal);
        }
    });
    Ok(())
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

fn say_json(said: &Said<'_>) -> anyhow::Result<()> {
    say(&serde_json::to_string(said)?)
}

/// Prints a line. Whoever started the daemon may be waiting for it.
pub fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .context("writing to standard output")
}
