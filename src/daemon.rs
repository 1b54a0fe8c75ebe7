//! What the daemons have in common: one per directory, a greeting, and an end in order.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use undercroft_dataplane::net::trust::authority::TOKEN_LIFETIME_DEFAULT;
use undercroft_dataplane::net::trust::{Authority, Role, Scope, TokenOptions};
use undercroft_dataplane::observe::Endpoint;

use crate::failure::Problem;
use crate::service;

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

/// The signals that end a daemon. To be had before it starts.
pub fn signals() -> anyhow::Result<Signals> {
    Signals::new([SIGINT, SIGTERM]).context("watching for signals")
}

/// Tells where the daemon listens, to whoever started it, and waits for a signal to end; another one ends it
/// at once.
pub fn attend(
    mut signals: Signals,
    address: SocketAddr,
    authority: &Authority,
    watched: Option<&Endpoint>,
) -> anyhow::Result<()> {
    say(&format!("Listening on {address}"))?;
    if let Some(token) = first_token(authority)? {
        say(&format!(
            "To enrol an administrator, once and within a day:\n  undercroft enroll quic://HOST:{} --role admin --token {token}",
            address.port()
        ))?;
    }
    if let Some(watched) = watched {
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

/// Whoever started the daemon may be waiting for the line.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .context("writing to standard output")
}
