//! Opening repositories: to change them, to read data, or only to list snapshots.
//!
//! Behind a server, whoever opens says by which frames the conversations will begin that need more than to list:
//! what the role does not allow is then refused before anything is looked at or done.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use undercroft_control::SnapshotSpec;
use undercroft_dataplane::io::LocalStorage;
use undercroft_dataplane::net::client::RemoteRepository;
use undercroft_dataplane::net::client::repository::Held;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::keys::Unlock;
use undercroft_dataplane::repository::maintenance::Maintenance;
use undercroft_dataplane::repository::open::{
    Access, Location, OpenNote, OpenOptions, open_local, read_config,
};
use undercroft_dataplane::repository::pins::Pin;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_dataplane::repository::{LocalRepository, Repository};
use undercroft_format::codec;
use undercroft_format::id::SnapshotId;
use undercroft_format::wire::frame::FrameType;

use crate::catalog::Catalog;
use crate::failure::{one_line, warn};
use crate::mount::readers::Mounted;
use crate::remote;
use crate::settings::{Key, Settings};
use crate::units::local_time;

/// Opens to store snapshots for the time of `work`.
pub fn ingest<R>(
    settings: &Settings,
    command: &str,
    work: impl FnOnce(&Arc<dyn Repository>) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    if let Location::Remote(address) = settings.location()? {
        let repository: Arc<dyn Repository> = remote::open(settings, address, &[], Key::Needed)?;
        return work(&repository);
    }
    own(settings, command, Key::Needed, |repository| {
        let repository: Arc<dyn Repository> = repository.clone();
        work(&repository)
    })
}

/// Opens to look after the repository, alone, for the time of `work`.
pub fn maintain<R>(
    settings: &Settings,
    command: &str,
    purposes: &[FrameType],
    key: Key,
    work: impl FnOnce(&dyn Maintenance) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    if let Location::Remote(address) = settings.location()? {
        return work(&remote::open(settings, address, purposes, key)?);
    }
    own(settings, command, key, |repository| work(repository))
}

/// As [`maintain`]; if the connection to a server breaks before the answer is there, `work` is done again, and
/// told so: what it asked for may have happened.
pub fn maintain_surely<R>(
    settings: &Settings,
    command: &str,
    purposes: &[FrameType],
    key: Key,
    mut work: impl FnMut(&dyn Maintenance, bool) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let Location::Remote(address) = settings.location()? else {
        return maintain(settings, command, purposes, key, |maintenance| {
            work(maintenance, false)
        });
    };
    let open = || remote::open(settings, address, purposes, key);
    let mut repository = open()?;
    let mut is_again = false;
    loop {
        match work(&repository, is_again) {
            Err(error) if remote::is_lost(&error) => {
                warn("the connection broke before the answer came; asking again");
                repository = remote::again(open)?;
                is_again = true;
            }
            done => return done,
        }
    }
}

/// Owns the repository for the time of `work`, and closes it however that ends.
fn own<R>(
    settings: &Settings,
    command: &str,
    key: Key,
    work: impl FnOnce(&Arc<LocalRepository>) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let access = Access::Own(owner(settings, command));
    let repository = open(settings, access, key)?;
    let result = work(&repository);
    // The index is a cache: the next open mends it.
    if let Err(error) = repository.close() {
        warn(format_args!(
            "the index was not closed cleanly and will be checked when it is opened next: {}",
            one_line(&error)
        ));
    }
    result
}

/// Who this process is, as others are told while it owns a repository.
pub fn owner(settings: &Settings, command: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "this host",
        host => host,
    };
    let since = local_time(Timestamp::now(), &settings.time_zone);
    let process = std::process::id();
    format!("undercroft {command}, process {process} on {host}, since {since}")
}

/// Opens to look at the repository; others may own it meanwhile.
pub fn inspect(
    settings: &Settings,
    purposes: &[FrameType],
    key: Key,
) -> anyhow::Result<Box<dyn Maintenance>> {
    if let Location::Remote(address) = settings.location()? {
        return Ok(Box::new(remote::open(settings, address, purposes, key)?));
    }
    Ok(Box::new(open(settings, Access::Read, key)?))
}

/// Opens to see snapshots alone, which is fast.
pub fn list(settings: &Settings, purposes: &[FrameType]) -> anyhow::Result<Arc<dyn Repository>> {
    if let Location::Remote(address) = settings.location()? {
        return Ok(remote::open(settings, address, purposes, Key::IfGiven)?);
    }
    Ok(open(settings, Access::List, Key::IfGiven)?)
}

/// Opens to show snapshots as files: data is read by leases.
pub fn mount(settings: &Settings) -> anyhow::Result<Mounted> {
    if let Location::Remote(address) = settings.location()? {
        let purposes = [FrameType::Fetch];
        let repository = remote::open(settings, address, &purposes, Key::Needed)?;
        return Ok(Mounted::Remote(repository));
    }
    let root = settings.root()?.to_owned();
    let repository = open(settings, Access::List, Key::Needed)?;
    Ok(Mounted::Local(repository, root))
}

/// A repository opened to read data of some snapshots, which a collection leaves alone meanwhile.
pub struct PinnedRead {
    /// The repository.
    pub repository: Arc<dyn Repository>,
    /// The same, to be looked at.
    pub maintenance: Box<dyn Maintenance>,
    /// The snapshots, in the order in which they were asked for.
    pub snapshots: Vec<StoredSnapshot>,
    _kept: Kept,
}

/// What keeps the snapshots.
enum Kept {
    Pins { _pins: Vec<Pin> },
    Held { _held: Vec<Held> },
}

/// Opens to read data of the snapshots that `specs` mean.
pub fn read_pinned(
    settings: &Settings,
    purposes: &[FrameType],
    key: Key,
    specs: &[SnapshotSpec],
) -> anyhow::Result<PinnedRead> {
    read_chosen(settings, purposes, key, |catalog| {
        let ids = specs.iter().map(|spec| Ok(catalog.resolve(spec)?.id));
        let ids = ids.collect::<anyhow::Result<_>>()?;
        catalog.warn_unreadable();
        Ok(ids)
    })
}

/// Opens to read data of the snapshots that `choose` chooses.
///
/// They are pinned before the index is opened: what the index says of their data then stays true.
pub fn read_chosen(
    settings: &Settings,
    purposes: &[FrameType],
    key: Key,
    choose: impl FnOnce(&Catalog) -> anyhow::Result<Vec<SnapshotId>>,
) -> anyhow::Result<PinnedRead> {
    if let Location::Remote(address) = settings.location()? {
        let repository = remote::open(settings, address, purposes, key)?;
        return hold_remote(settings, repository, choose);
    }
    let root = settings.root()?;
    let listed = open_with(settings, Access::List, None)?;
    let ids = choose(&Catalog::read(settings, &*listed)?)?;
    let mut pins = Vec::new();
    for id in &ids {
        pins.extend(Pin::set(root, *id, &**listed.entropy())?);
    }
    let repository = open(settings, Access::Read, key)?;
    // With the key at hand they are authenticated, too.
    let snapshots = ids
        .into_iter()
        .map(|id| Ok(repository.snapshots().read(id)?))
        .collect::<anyhow::Result<_>>()?;
    Ok(PinnedRead {
        maintenance: Box::new(repository.clone()),
        repository,
        snapshots,
        _kept: Kept::Pins { _pins: pins },
    })
}

fn hold_remote(
    settings: &Settings,
    repository: Arc<RemoteRepository>,
    choose: impl FnOnce(&Catalog) -> anyhow::Result<Vec<SnapshotId>>,
) -> anyhow::Result<PinnedRead> {
    let ids = choose(&Catalog::read(settings, &*repository)?)?;
    let snapshots = ids
        .iter()
        .map(|id| Ok(repository.snapshots().read(*id)?))
        .collect::<anyhow::Result<_>>()?;
    let held = repository.hold(&ids)?;
    Ok(PinnedRead {
        maintenance: Box::new(repository.clone()),
        repository,
        snapshots,
        _kept: Kept::Held { _held: held },
    })
}

fn open(settings: &Settings, access: Access, key: Key) -> anyhow::Result<Arc<LocalRepository>> {
    let root = settings.root()?;
    let location = root.display().to_string();
    let config = read_config(&LocalStorage::new(root.to_owned()), &location)
        .map_err(|error| explain(error, root))?;
    let unlock = match config.is_encrypted() {
        true => settings.unlock(key)?,
        // Whoever names a key file means an encrypted repository: a config in clear would be another's.
        false if settings.names_key_file() => return Err(RepositoryError::NotEncrypted.into()),
        false => None,
    };
    if unlock.is_none() && config.is_encrypted() && key == Key::Needed {
        return Err(RepositoryError::KeyNeeded.into());
    }
    open_with(settings, access, unlock)
}

fn open_with(
    settings: &Settings,
    access: Access,
    unlock: Option<Unlock>,
) -> anyhow::Result<Arc<LocalRepository>> {
    let options = OpenOptions {
        unlock,
        access,
        engine: settings.engine()?,
    };
    let root = settings.root()?;
    let (repository, notes) = open_local(root, &options).map_err(|error| explain(error, root))?;
    notes.iter().for_each(tell);
    Ok(repository)
}

/// Says which repository could not be opened, where the error does not say so itself.
fn explain(error: RepositoryError, root: &Path) -> anyhow::Error {
    let root = root.display();
    match error {
        RepositoryError::Damaged { source, .. }
            if matches!(source.problem, codec::Problem::Version { .. }) =>
        {
            anyhow::Error::new(source).context(format!(
                "the repository {root} was made by a newer version of undercroft"
            ))
        }
        RepositoryError::Damaged { .. } | RepositoryError::Io { .. } => {
            anyhow::Error::new(error).context(format!("opening the repository {root}"))
        }
        error => error.into(),
    }
}

/// Tells of something that happened while opening.
pub fn tell(note: &OpenNote) {
    match note {
        OpenNote::IndexRebuilt(why) => warn(format_args!(
            "the index was made anew from the packs ({why}); no data is concerned"
        )),
        OpenNote::IndexInMemory(why) => warn(format_args!(
            "an index in memory serves this run ({why}); to mend it run: undercroft rebuild-index"
        )),
        OpenNote::IndexDiskFull(why) => warn(format_args!(
            "the repository's disk is full: an index in memory serves this run ({why}); make room: \
             undercroft prune --keep-last N --gc"
        )),
        OpenNote::PacksAdded(packs) => {
            tracing::info!(packs, "packs that the index did not know were added to it");
        }
        OpenNote::PacksDropped(packs) => {
            tracing::info!(packs, "packs that are gone were dropped from the index");
        }
        OpenNote::SnapshotsIncomplete(ids) => {
            let ids: Vec<_> = ids.iter().map(SnapshotId::short).collect();
            warn(format_args!(
                "packs are gone that snapshots need; incomplete now: {}; see what that affects: undercroft verify",
                ids.join(", ")
            ));
        }
        OpenNote::PackUnreadable(pack, why) => warn(format_args!(
            "pack {pack} cannot be read ({why}); see what that affects: undercroft verify --deep"
        )),
    }
}
