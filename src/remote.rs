//! Repositories behind a server: where this machine keeps its certificates, and connecting with them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::net::address::{ProxyAddress, RemoteAddress, ServerAddress};
use undercroft_dataplane::net::client::{Link, LinkLimits, LinkOptions, RemoteRepository};
use undercroft_dataplane::net::proxy::ProxyLink;
use undercroft_dataplane::net::trust::enrolled::{ClientStore, Enrolled};
use undercroft_dataplane::net::trust::enrolment::Renewal;
use undercroft_dataplane::net::trust::tls::{PROXY, Protocols, REPOSITORY};
use undercroft_dataplane::net::trust::{SERVER_NAME, SystemClock, WallClock};
use undercroft_dataplane::repository::entropy::SystemEntropy;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_format::wire::frame::FrameType;

use crate::failure::{Problem, one_line, warn};
use crate::settings::{Key, Settings};
use crate::signals::is_stopping;

const CONFIG_VARIABLE: &str = "UNDERCROFT_CONFIG";
/// Connections per program: a second core can carry traffic, too.
const CONNECTIONS: usize = 2;

/// The program and its version, as servers and clients tell each other.
pub const PROGRAM: &str = concat!("undercroft ", env!("CARGO_PKG_VERSION"));

/// Where certificates are kept.
pub fn client_store(server: &ServerAddress) -> anyhow::Result<ClientStore> {
    let from = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    let base = from(CONFIG_VARIABLE)
        .map(PathBuf::from)
        .or_else(|| from("XDG_CONFIG_HOME").map(|base| PathBuf::from(base).join("undercroft")))
        .or_else(|| from("HOME").map(|home| PathBuf::from(home).join(".config/undercroft")));
    let base = base.ok_or_else(|| {
        Problem::new(
            "there is no directory for certificates: neither HOME nor XDG_CONFIG_HOME is set",
        )
        .hint(format!(
            "name one: export {CONFIG_VARIABLE}=/etc/undercroft"
        ))
    })?;
    Ok(ClientStore::of_server(&base, server))
}

/// Connects to a server.
pub fn connect(settings: &Settings, server: &ServerAddress) -> anyhow::Result<Link> {
    let store = client_store(server)?;
    let enrolled = store.load()?;
    let link = Link::connect(options(
        server,
        &enrolled,
        REPOSITORY,
        CONNECTIONS,
        settings.limits.clone(),
    )?)?;
    renew(server, &store, &enrolled, &link);
    Ok(link)
}

/// Connects to a proxy.
pub fn connect_to_proxy(proxy: &ProxyAddress) -> anyhow::Result<ProxyLink> {
    let store = client_store(&proxy.0)?;
    let enrolled = store.load()?;
    let link = ProxyLink::connect(options(
        &proxy.0,
        &enrolled,
        PROXY,
        1,
        LinkLimits::default(),
    )?)?;
    renew(&proxy.0, &store, &enrolled, link.link());
    Ok(link)
}

fn options(
    address: &ServerAddress,
    enrolled: &Enrolled,
    protocols: Protocols,
    connections: usize,
    limits: LinkLimits,
) -> anyhow::Result<LinkOptions> {
    let clock: Arc<dyn WallClock> = Arc::new(SystemClock);
    Ok(LinkOptions {
        address: address.clone(),
        tls: enrolled.client_config_for(&clock, protocols)?,
        server_name: SERVER_NAME.to_owned(),
        program: PROGRAM.to_owned(),
        connections,
        limits,
    })
}

/// Renews the certificate if its end is near. The present one does for now.
fn renew(server: &ServerAddress, store: &ClientStore, enrolled: &Enrolled, link: &Link) {
    if !enrolled.needs_renewal(SystemClock.now()) {
        return;
    }
    let renew = || -> anyhow::Result<()> {
        let renewal = Renewal::begin(store, enrolled, &SystemEntropy)?;
        let answer = link.renew(renewal.request())?;
        renewal.finish(&answer)?;
        Ok(())
    };
    if let Err(error) = renew() {
        warn(format_args!(
            "the certificate for {server} ends soon and could not be renewed: {}",
            one_line(&*error)
        ));
    }
}

/// How long a server is waited for that was lost before it answered.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long to wait between two tries.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// True if a connection broke, as opposed to a server that answered.
pub fn is_lost(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    causes.any(|cause| matches!(cause, RepositoryError::Connection(_)))
}

/// Connects again after a connection broke; waits for a server that is being started.
pub fn again<R>(mut connect: impl FnMut() -> anyhow::Result<R>) -> anyhow::Result<R> {
    let clock = Stopwatch::start();
    loop {
        match connect() {
            Err(error) if is_lost(&error) && clock.elapsed() < PATIENCE && !is_stopping() => {
                std::thread::sleep(TRY_EVERY);
            }
            connected => return connected,
        }
    }
}

/// Opens a repository for conversations that begin with frames of the types `purposes`.
pub fn open(
    settings: &Settings,
    address: &RemoteAddress,
    purposes: &[FrameType],
    key: Key,
) -> anyhow::Result<Arc<RemoteRepository>> {
    let link = connect(settings, &address.server)?;
    let engine = settings.engine()?;
    RemoteRepository::open(link, &address.name, engine, purposes, |config| {
        let unlock = match config.is_encrypted() {
            true => settings.unlock(key)?,
            false if settings.names_key_file() => return Err(RepositoryError::NotEncrypted.into()),
            false => None,
        };
        if unlock.is_none() && config.is_encrypted() && key == Key::Needed {
            return Err(RepositoryError::KeyNeeded.into());
        }
        Ok(unlock)
    })
}
