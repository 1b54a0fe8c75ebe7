//! The repository: packs, index, snapshots, and what keeps them together.
//!
//! In the order in which a backup meets them: [`keys`] and [`record`] turn objects into payloads,
//! [`session`] asks [`lookup`] what is known and gives what is new to [`packer`], which tells [`index`];
//! [`snapshots`] publishes. [`gc`], [`verify`], [`repair`] and [`loss`] look after what is stored,
//! through [`pack_reader`] and [`walk`]. [`registry`], [`pins`] and [`lock`] settle who may do what at once:
//!
//! | | session | reader | collection, repair |
//! | --- | --- | --- | --- |
//! | session | parallel, [`registry`] | parallel | same process: [`registry`]; others: [`lock`] |
//! | reader | parallel | parallel | [`pins`] |
//! | collection, repair | | | one at a time, [`lock`] |

pub mod damage;
pub mod diff;
pub mod entropy;
pub mod error;
pub mod fingerprints;
pub mod gc;
pub mod index;
pub mod judge;
pub mod keys;
pub mod layout;
pub mod local_records;
pub mod local_session;
pub mod lock;
pub mod lookup;
pub mod loss;
pub mod maintenance;
pub mod objects;
pub mod open;
pub mod pack_reader;
pub mod packer;
pub mod pins;
pub mod record;
pub mod records;
pub mod registry;
pub mod repair;
pub mod retention;
pub mod scrub;
pub mod scrubber;
pub mod session;
pub mod snapshot_disk;
pub mod snapshots;
pub mod stats;
pub mod verify;
pub mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use undercroft_format::config::Config;

use self::entropy::Entropy;
use self::error::{RepositoryError, Result};
use self::index::ChunkIndex;
use self::keys::Keys;
use self::local_records::LocalRecords;
use self::local_session::LocalSession;
use self::lock::OwnerLock;
use self::lookup::Lookup;
use self::objects::Objects;
use self::pack_reader::PackFiles;
use self::packer::PackerFigures;
use self::registry::Registry;
use self::session::{Begun, Committed, SessionRequest};
use self::snapshots::Snapshots;
use crate::io::{Engine, Storage};

/// An open repository, as backups, restores and listings see it, wherever it is.
pub trait Repository: Send + Sync {
    /// The config.
    fn config(&self) -> &Config;

    /// The keys.
    ///
    /// # Errors
    /// [`RepositoryError::KeyNeeded`] if the repository was opened without.
    fn keys(&self) -> Result<&Arc<Keys>>;

    /// Drives the disks of this machine: sources and targets.
    fn engine(&self) -> &Arc<dyn Engine>;

    /// Reads objects.
    fn objects(&self) -> &Objects;

    /// The snapshots.
    fn snapshots(&self) -> &Snapshots;

    /// What its connections carried, if it is behind a server.
    fn traffic(&self) -> Option<Traffic> {
        None
    }

    /// Begins a session, or goes on with one.
    fn begin(self: Arc<Self>, request: &SessionRequest) -> Result<Begun>;
}

/// Bytes on the wire, in UDP datagrams without their headers: whatever was asked, sent, acknowledged and sent
/// again since connecting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From here.
    pub sent_bytes: u64,
    /// To here.
    pub received_bytes: u64,
}

/// A repository in a directory that this process has opened.
pub struct LocalRepository {
    storage: Arc<dyn Storage>,
    engine: Arc<dyn Engine>,
    entropy: Arc<dyn Entropy>,
    config: Config,
    keys: Option<Arc<Keys>>,
    lookup: Arc<Lookup>,
    files: Arc<PackFiles>,
    objects: Objects,
    snapshots: Snapshots,
    registry: Arc<Registry>,
    root: Option<PathBuf>,
    /// Held as long as the repository is open by its owner. Declared last: dropped last.
    _lock: Option<OwnerLock>,
}

/// The parts that an open repository is made of.
pub struct Parts {
    /// Where files are.
    pub storage: Arc<dyn Storage>,
    /// How bulk data is read and written.
    pub engine: Arc<dyn Engine>,
    /// Where random ids come from.
    pub entropy: Arc<dyn Entropy>,
    /// The config.
    pub config: Config,
    /// The keys, if unlocked.
    pub keys: Option<Arc<Keys>>,
    /// The chunk index.
    pub index: Arc<dyn ChunkIndex>,
    /// The directory, if the repository is in one.
    pub root: Option<PathBuf>,
    /// Ownership; `None` for a reader.
    pub lock: Option<OwnerLock>,
    /// True for a reader that may run beside an owner.
    pub beside_owner: bool,
}

impl LocalRepository {
    /// Puts an open repository together.
    pub fn assemble(parts: Parts) -> Arc<Self> {
        let lookup = Arc::new(Lookup::new(
            parts.storage.clone(),
            parts.config.repository,
            parts.index,
            parts.beside_owner,
        ));
        let files = Arc::new(PackFiles::new(parts.storage.clone(), true));
        Arc::new(Self {
            snapshots: Snapshots::new(
                parts.storage.clone(),
                parts.config.repository,
                parts.keys.clone(),
            ),
            objects: Objects::new(Arc::new(LocalRecords::new(lookup.clone(), files.clone()))),
            lookup,
            files,
            storage: parts.storage,
            engine: parts.engine,
            entropy: parts.entropy,
            config: parts.config,
            keys: parts.keys,
            registry: Arc::default(),
            root: parts.root,
            _lock: parts.lock,
        })
    }

    /// Where files are.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Where random ids come from.
    pub fn entropy(&self) -> &Arc<dyn Entropy> {
        &self.entropy
    }

    /// Finds objects.
    pub fn lookup(&self) -> &Arc<Lookup> {
        &self.lookup
    }

    /// The pack files.
    pub fn files(&self) -> &Arc<PackFiles> {
        &self.files
    }

    /// Who holds what.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The directory, if the repository is in one.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// Closes cleanly: the next open is fast.
    pub fn close(&self) -> Result<()> {
        Ok(self.lookup().index().shutdown()?)
    }
}

impl Repository for LocalRepository {
    fn config(&self) -> &Config {
        &self.config
    }

    fn keys(&self) -> Result<&Arc<Keys>> {
        self.keys.as_ref().ok_or(RepositoryError::KeyNeeded)
    }

    fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    fn objects(&self) -> &Objects {
        &self.objects
    }

    fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    fn begin(self: Arc<Self>, request: &SessionRequest) -> Result<Begun> {
        if let Some(session) = request.resume
            && let Some(stored) = self.snapshots.published_by(session, &request.vm)?
        {
            return Ok(Begun::Published(Committed {
                id: stored.id,
                figures: PackerFigures::default(),
                locked_until: stored.locked_until,
            }));
        }
        Ok(Begun::Open(Box::new(LocalSession::begin(&self, request)?)))
    }
}
