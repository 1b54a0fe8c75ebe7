//! Creating and opening a repository in a directory.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use undercroft_format::chunker::ChunkerSpec;
use undercroft_format::config::{CONFIG_LEN_MAX, Config, KeyMaterial, MasterKey};
use undercroft_format::id::{PackId, RepositoryId, SnapshotId};
use undercroft_format::units::SegmentSize;
use zeroize::Zeroizing;

use super::entropy::{Entropy, SystemEntropy};
use super::error::{RepositoryError, Result};
use super::index::{ChunkIndex, IndexOptions, MemoryIndex, PackContents as IndexInput, RocksIndex};
use super::keys::{Keys, Unlock, wrap_master};
use super::lock::OwnerLock;
use super::pack_reader::{PackListing, list_packs, read_contents};
use super::{LocalRepository, Parts, layout, loss};
use crate::io::{Engine, LocalStorage, Storage, create_private_dir};
use crate::net::address::{AddressError, RemoteAddress};
use crate::progress::Progress;

/// How to set up a new repository.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// How disks are cut.
    pub chunker: ChunkerSpec,
    /// Size of segments.
    pub segment_size: SegmentSize,
    /// Packs are sealed at this length, in bytes.
    pub pack_len_target: u32,
    /// zstd level of new chunks.
    pub zstd_level: i8,
    /// Hard cap of the index's memory, in bytes.
    pub index_memory_max: u64,
    /// Encrypts under this passphrase.
    pub passphrase: Option<Zeroizing<String>>,
    /// Now, in milliseconds since 1970-01-01 UTC.
    pub now_ms: u64,
}

impl Default for CreateOptions {
    /// What was measured best on a server with local disks: ARCHITECTURE.md, "Decisions".
    fn default() -> Self {
        Self {
            chunker: ChunkerSpec::default(),
            segment_size: SegmentSize::DEFAULT,
            pack_len_target: 32 << 20,
            zstd_level: 1,
            index_memory_max: 1 << 30,
            passphrase: None,
            now_ms: 0,
        }
    }
}

/// How to open a repository.
#[derive(Clone)]
pub struct OpenOptions {
    /// Unlocks the keys of an encrypted repository; without it only what needs no key works.
    pub unlock: Option<Unlock>,
    /// What the caller is going to do.
    pub access: Access,
    /// Serves bulk I/O.
    pub engine: Arc<dyn Engine>,
}

/// What an opener is going to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Change the repository. The text names the owner to others.
    Own(String),
    /// Read data; may run beside an owner.
    Read,
    /// Read snapshots alone: the index is not opened.
    List,
}

/// Something that happened while opening that the user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenNote {
    /// The index was remade from the packs, and why.
    IndexRebuilt(String),
    /// The index could not be used; one in memory serves, and why.
    IndexInMemory(String),
    /// The index could not be used for want of room; one in memory serves, and why.
    IndexDiskFull(String),
    /// Packs that the index did not know were added.
    PacksAdded(usize),
    /// Packs that are gone were dropped from the index.
    PacksDropped(usize),
    /// A pack could not be read.
    PackUnreadable(PackId, String),
    /// Snapshots were marked as incomplete: they name what is in no pack that is there.
    SnapshotsIncomplete(Vec<SnapshotId>),
}

/// Writes a new repository into `storage` and returns its recovery key if it is encrypted.
///
/// The config is published last: a creation that was cut short leaves no repository.
pub fn create(
    storage: &dyn Storage,
    options: &CreateOptions,
    entropy: &dyn Entropy,
    location: &str,
) -> Result<Option<Zeroizing<String>>> {
    let exists = storage
        .exists(layout::CONFIG)
        .map_err(RepositoryError::io("looking for", layout::CONFIG))?;
    // Before a passphrase is wrapped, which takes long.
    if exists {
        return Err(RepositoryError::AlreadyExists {
            location: location.to_owned(),
        });
    }
    if holds_data(storage) {
        return Err(RepositoryError::ConfigLost {
            location: location.to_owned(),
        });
    }
    let (config, recovery) = new_config(options, entropy)?;
    publish_config(storage, &config, location)?;
    Ok(recovery)
}

/// The config of a new repository, and its recovery key if it is encrypted.
pub fn new_config(
    options: &CreateOptions,
    entropy: &dyn Entropy,
) -> Result<(Config, Option<Zeroizing<String>>)> {
    let repository = RepositoryId::from_bytes(entropy.array()?);
    let master = MasterKey::from_bytes(entropy.array()?);
    let (keys, recovery) = match &options.passphrase {
        None => (KeyMaterial::Clear(master), None),
        Some(passphrase) => {
            let (slots, recovery) = wrap_master(&master, passphrase, repository, entropy)?;
            (KeyMaterial::Wrapped(slots), Some(recovery))
        }
    };
    let config = Config {
        repository,
        created_ms: options.now_ms,
        chunker: options.chunker,
        segment_size: options.segment_size,
        pack_len_target: options.pack_len_target,
        zstd_level: options.zstd_level,
        index_memory_max: options.index_memory_max,
        keys,
    };
    Ok((config, recovery))
}

/// Makes the repository that `config` describes in `storage`.
///
/// # Errors
/// [`RepositoryError::AlreadyExists`] if there is one already.
pub fn publish_config(storage: &dyn Storage, config: &Config, location: &str) -> Result<()> {
    let exists = storage
        .exists(layout::CONFIG)
        .map_err(RepositoryError::io("looking for", layout::CONFIG))?;
    if exists {
        return Err(RepositoryError::AlreadyExists {
            location: location.to_owned(),
        });
    }
    for dir in layout::DIRECTORIES {
        storage
            .create_dir(dir)
            .map_err(RepositoryError::io("creating", dir))?;
    }
    storage
        .sync_dir("")
        .map_err(RepositoryError::io("making durable", location))?;
    storage
        .publish(layout::CONFIG, &config.encode())
        .map_err(RepositoryError::io("writing", layout::CONFIG))
}

/// Whether there are packs or snapshots: of a repository, even where its config is not.
fn holds_data(storage: &dyn Storage) -> bool {
    let holds = |dir: &&str| storage.list(dir).is_ok_and(|entries| !entries.is_empty());
    [layout::PACKS, layout::SNAPSHOTS].iter().any(holds)
}

/// Creates a repository in the directory `root`, which is made if it does not exist.
pub fn create_local(root: &Path, options: &CreateOptions) -> Result<Option<Zeroizing<String>>> {
    let location = root.display().to_string();
    let io = |action| RepositoryError::io(action, &location);
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent).map_err(io("creating"))?;
    }
    create_private_dir(root).map_err(io("creating"))?;
    let storage = LocalStorage::new(root.to_owned());
    if !root.join(layout::CONFIG).exists() && !holds_data(&storage) {
        let known = |name: &std::ffi::OsStr| {
            layout::DIRECTORIES.iter().any(|dir| name == *dir) || name == "config.tmp"
        };
        let mut entries = std::fs::read_dir(root).map_err(io("listing"))?;
        if entries.any(|entry| {
            entry.is_ok_and(|entry| !known(&entry.file_name()) && entry.file_name() != "lost+found")
        }) {
            return Err(RepositoryError::NotEmpty { location });
        }
    }
    create(&storage, options, &SystemEntropy, &location)
}

/// Reads the config of the repository in `storage`.
pub fn read_config(storage: &dyn Storage, location: &str) -> Result<Config> {
    let bytes = storage
        .read(layout::CONFIG, CONFIG_LEN_MAX)
        .map_err(|error| {
            let location = location.to_owned();
            match error.kind() {
                std::io::ErrorKind::NotFound if holds_data(storage) => {
                    RepositoryError::ConfigLost { location }
                }
                std::io::ErrorKind::NotFound => RepositoryError::NotARepository { location },
                _ => RepositoryError::io("reading", layout::CONFIG)(error),
            }
        })?;
    Config::decode(&bytes).map_err(RepositoryError::damaged(layout::CONFIG))
}

/// Opens the repository in the directory `root`.
pub fn open_local(
    root: &Path,
    options: &OpenOptions,
) -> Result<(Arc<LocalRepository>, Vec<OpenNote>)> {
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new(root.to_owned()));
    let config = read_config(&*storage, &root.display().to_string())?;
    let keys = match (&options.unlock, config.is_encrypted()) {
        (None, true) => None,
        (Some(_), false) => return Err(RepositoryError::NotEncrypted),
        (unlock, _) => Some(Arc::new(Keys::unlock(&config, unlock.as_ref())?)),
    };
    let lock = match &options.access {
        Access::Own(owner) => Some(OwnerLock::acquire(root, owner)?),
        Access::Read | Access::List => None,
    };
    let mut notes = Vec::new();
    let index = match options.access {
        Access::Own(_) => own_index(root, &*storage, &config, &mut notes)?,
        Access::Read => read_index(root, &*storage, &config, &mut notes)?,
        Access::List => Arc::new(MemoryIndex::default()),
    };
    let repository = LocalRepository::assemble(Parts {
        storage,
        engine: options.engine.clone(),
        entropy: Arc::new(SystemEntropy),
        config,
        keys,
        index,
        root: Some(root.to_owned()),
        beside_owner: lock.is_none(),
        lock,
    });
    let owned = matches!(options.access, Access::Own(_));
    if owned && loss::is_noted(&**repository.storage())? {
        let losers = loss::mark_losers(&repository)?;
        if !losers.is_empty() {
            notes.push(OpenNote::SnapshotsIncomplete(losers));
        }
    }
    Ok((repository, notes))
}

/// Opens a repository in a directory once more, to read data beside an owner: with the same keys, and the index as it is
/// now.
pub fn reopen(known: &LocalRepository) -> Result<(Arc<LocalRepository>, Vec<OpenNote>)> {
    let Some(root) = &known.root else {
        return Err(RepositoryError::NotARepository {
            location: "a repository in no directory".into(),
        });
    };
    let mut notes = Vec::new();
    let repository = LocalRepository::assemble(Parts {
        index: read_index(root, &*known.storage, &known.config, &mut notes)?,
        storage: known.storage.clone(),
        engine: known.engine.clone(),
        entropy: known.entropy.clone(),
        config: known.config.clone(),
        keys: known.keys.clone(),
        root: known.root.clone(),
        beside_owner: true,
        lock: None,
    });
    Ok((repository, notes))
}

/// Remakes the index of the repository at `root` from packs alone. The caller owns the repository.
///
/// # Errors
/// Besides failures [`RepositoryError::Cancelled`] once `progress` says to stop: then there is no index,
/// and the next opening makes one.
pub fn rebuild_index(
    root: &Path,
    storage: &dyn Storage,
    config: &Config,
    notes: &mut Vec<OpenNote>,
    progress: &Progress,
) -> Result<Arc<dyn ChunkIndex>> {
    let dir = root.join(layout::INDEX);
    let io = |action| RepositoryError::io(action, layout::INDEX);
    if dir.exists() {
        loss::note_loss(storage)?;
        // The seal first: without it, nobody takes half an index for a damaged one.
        match std::fs::remove_file(dir.join("seal")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("removing")(error));
            }
            _ => {}
        }
        std::fs::remove_dir_all(&dir).map_err(io("removing"))?;
    }
    let listing = list_packs(storage)?;
    sync_names(storage, listing.sealed.iter().map(|(id, _)| *id))?;
    let mut unreadable = Vec::new();
    progress
        .total_bytes
        .add(listing.sealed.iter().map(|(_, len)| len).sum());
    let wanted = listing
        .sealed
        .iter()
        .take_while(|_| !progress.is_stopping());
    let packs = wanted.filter_map(|(id, len)| {
        progress.done_bytes.add(*len);
        match read_contents(storage, config.repository, *id) {
            Ok(contents) => Some(IndexInput {
                id: contents.id,
                kind: contents.kind,
                len: contents.len,
                entries: contents.toc.entries,
            }),
            Err(error) => {
                unreadable.push(OpenNote::PackUnreadable(*id, error.to_string()));
                None
            }
        }
    });
    let index = RocksIndex::build(&dir, packs, index_options(config))?;
    if progress.is_stopping() {
        index.shutdown()?;
        // The seal first: without it, nobody takes half an index for a damaged one.
        match std::fs::remove_file(dir.join("seal")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("removing")(error));
            }
            _ => {}
        }
        std::fs::remove_dir_all(&dir).map_err(io("removing"))?;
        return Err(RepositoryError::Cancelled);
    }
    notes.extend(unreadable);
    Ok(Arc::new(index))
}

fn index_options(config: &Config) -> IndexOptions {
    IndexOptions {
        memory_budget: config.index_memory_max,
        read_only: false,
        repository: config.repository,
    }
}

fn own_index(
    root: &Path,
    storage: &dyn Storage,
    config: &Config,
    notes: &mut Vec<OpenNote>,
) -> Result<Arc<dyn ChunkIndex>> {
    let dir = root.join(layout::INDEX);
    let index: Arc<dyn ChunkIndex> = match RocksIndex::open(&dir, index_options(config)) {
        Ok(index) => Arc::new(index),
        // A full disk must not keep a collection from making room, and nothing says that the index is
        // damaged: it stays for when there is room again.
        Err(error) if error.is_disk_full() => {
            notes.push(OpenNote::IndexDiskFull(describe(&error)));
            Arc::new(MemoryIndex::default())
        }
        Err(error) => {
            let why = describe(&error);
            match rebuild_index(root, storage, config, notes, &Progress::default()) {
                Ok(index) => {
                    notes.push(OpenNote::IndexRebuilt(why));
                    return Ok(index);
                }
                Err(error) => {
                    let why = format!("{why}; remaking it failed: {}", describe(&error));
                    notes.push(match error.is_disk_full() {
                        true => OpenNote::IndexDiskFull(why),
                        false => OpenNote::IndexInMemory(why),
                    });
                    Arc::new(MemoryIndex::default())
                }
            }
        }
    };
    reconcile(storage, config.repository, &*index, notes)?;
    Ok(index)
}

fn read_index(
    root: &Path,
    storage: &dyn Storage,
    config: &Config,
    notes: &mut Vec<OpenNote>,
) -> Result<Arc<dyn ChunkIndex>> {
    let options = IndexOptions {
        read_only: true,
        ..index_options(config)
    };
    match RocksIndex::open(&root.join(layout::INDEX), options) {
        Ok(index) => Ok(Arc::new(index)),
        Err(error) => {
            let index = MemoryIndex::default();
            let listing = list_packs(storage)?;
            // Nobody has stored anything yet: the first owner makes the index.
            if !listing.sealed.is_empty() {
                notes.push(OpenNote::IndexInMemory(describe(&error)));
            }
            align(
                storage,
                config.repository,
                &index,
                &listing,
                &mut Vec::new(),
            )?;
            Ok(Arc::new(index))
        }
    }
}

/// Brings the index in line with the packs that are there: they are the truth. For the owner: the names
/// of packs that the index did not know are made durable first, because a process that was killed may
/// have got no further than the rename, and what is in the index will be relied on.
pub fn reconcile(
    storage: &dyn Storage,
    repository: RepositoryId,
    index: &dyn ChunkIndex,
    notes: &mut Vec<OpenNote>,
) -> Result<PackListing> {
    // Nor may anything rely on a config whose name a power failure could take back.
    storage
        .sync_dir("")
        .map_err(RepositoryError::io("making durable", "the repository"))?;
    let listing = list_packs(storage)?;
    let unknown = listing.sealed.iter().map(|(id, _)| *id);
    sync_names(
        storage,
        unknown.filter(|id| index.pack_number(*id).is_none()),
    )?;
    align(storage, repository, index, &listing, notes)?;
    Ok(listing)
}

/// Makes the names of these packs durable.
fn sync_names(storage: &dyn Storage, packs: impl Iterator<Item = PackId>) -> Result<()> {
    let mut dirs: BTreeSet<String> = packs.map(layout::pack_dir).collect();
    if !dirs.is_empty() {
        dirs.insert(layout::PACKS.to_owned());
    }
    dirs.iter().try_for_each(|dir| {
        storage
            .sync_dir(dir)
            .map_err(RepositoryError::io("making durable", dir))
    })
}

fn align(
    storage: &dyn Storage,
    repository: RepositoryId,
    index: &dyn ChunkIndex,
    listing: &PackListing,
    notes: &mut Vec<OpenNote>,
) -> Result<()> {
    let present: HashMap<PackId, u64> = listing.sealed.iter().copied().collect();
    // A file of another length is not the pack that the index knows.
    let (indexed, gone): (Vec<_>, Vec<_>) = index
        .packs()?
        .into_iter()
        .partition(|pack| present.get(&pack.id) == Some(&pack.len));
    if !gone.is_empty() {
        loss::note_loss(storage)?;
    }
    let dropped = gone.len();
    for pack in gone {
        let entries = index.entries_of(pack.number)?;
        index.remove_pack(pack.number, &entries)?;
    }
    let indexed: HashSet<PackId> = indexed.into_iter().map(|pack| pack.id).collect();
    let mut added = 0;
    for (id, _) in listing
        .sealed
        .iter()
        .filter(|(id, _)| !indexed.contains(id))
    {
        match read_contents(storage, repository, *id) {
            Ok(pack) => {
                index.insert_pack(pack.id, pack.kind, pack.len, &pack.toc.entries)?;
                added += 1;
            }
            Err(error) => notes.push(OpenNote::PackUnreadable(*id, error.to_string())),
        }
    }
    if added > 0 {
        notes.push(OpenNote::PacksAdded(added));
    }
    if dropped > 0 {
        notes.push(OpenNote::PacksDropped(dropped));
    }
    Ok(())
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In a directory of this machine.
    Local(PathBuf),
    /// Behind a repository server.
    Remote(RemoteAddress),
}

/// A location that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// A kind of location that this version does not speak.
    #[error("repositories at {scheme}:// are not supported by this version: give a directory")]
    Unsupported {
        /// The scheme.
        scheme: String,
    },
    /// Not a location at all.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nothing.
    #[error("the location of the repository is empty: give a directory")]
    Empty,
}

impl std::str::FromStr for Location {
    type Err = LocationError;

    /// A directory, `file://` and a directory, or `quic://HOST:PORT/NAME`. Other schemes are told apart
    /// here.
    fn from_str(text: &str) -> Result<Self, LocationError> {
        match text.split_once("://") {
            Some(("file", path)) => Ok(Self::Local(path.into())),
            Some(("quic", _)) => Ok(Self::Remote(text.parse()?)),
            Some((scheme, _)) => Err(LocationError::Unsupported {
                scheme: scheme.to_owned(),
            }),
            None if text.is_empty() => Err(LocationError::Empty),
            None => Ok(Self::Local(text.into())),
        }
    }
}
