//! A repository behind a server.

use std::sync::Arc;

use undercroft_format::config::Config;
use undercroft_format::id::SnapshotId;
use undercroft_format::wire::frame::FrameType;
use undercroft_format::wire::snapshots::{HOLDS_MAX, Hold};
use undercroft_format::wire::upkeep::{Done, May};

use super::link::Link;
use super::records::RemoteRecords;
use super::session::RemoteSession;
use super::snapshot_files::SnapshotFiles;
use crate::io::Engine;
use crate::net::address::RepositoryName;
use crate::net::conversation::Conversation;
use crate::repository::entropy::{Entropy, SystemEntropy};
use crate::repository::error::{RepositoryError, Result};
use crate::repository::keys::{Keys, Unlock};
use crate::repository::objects::Objects;
use crate::repository::session::{Begun, SessionRequest};
use crate::repository::snapshots::Snapshots;
use crate::repository::{Repository, Traffic};

/// A repository that a server owns.
pub struct RemoteRepository {
    link: Arc<Link>,
    engine: Arc<dyn Engine>,
    entropy: Arc<dyn Entropy>,
    config: Config,
    keys: Option<Arc<Keys>>,
    objects: Objects,
    snapshots: Snapshots,
}

/// Snapshots that are kept as long as the stream lives.
pub struct Held {
    _stream: Conversation,
}

impl RemoteRepository {
    /// Opens the repository `name` for conversations that begin with frames of the types `purposes`: whether they are
    /// allowed is asked first. `unlock` is asked for what unlocks it if it is encrypted: the server never learns
    /// that.
    pub fn open<E: From<RepositoryError>>(
        link: Link,
        name: &RepositoryName,
        engine: Arc<dyn Engine>,
        purposes: &[FrameType],
        unlock: impl FnOnce(&Config) -> std::result::Result<Option<Unlock>, E>,
    ) -> std::result::Result<Arc<Self>, E> {
        let config = link.open(name)?;
        for first in purposes {
            let Done = link.ask(&May { first: *first })?;
        }
        let unlock = unlock(&config)?;
        let keys = match (&unlock, config.is_encrypted()) {
            (None, true) => None,
            (Some(_), false) => return Err(RepositoryError::NotEncrypted.into()),
            (unlock, _) => Some(Arc::new(Keys::unlock(&config, unlock.as_ref())?)),
        };
        let entropy = Arc::new(SystemEntropy);
        Ok(Self::assemble(link, config, keys, engine, entropy))
    }

    /// The repository that `link` has opened and whose config and keys are known.
    pub fn assemble(
        link: Link,
        config: Config,
        keys: Option<Arc<Keys>>,
        engine: Arc<dyn Engine>,
        entropy: Arc<dyn Entropy>,
    ) -> Arc<Self> {
        let link = Arc::new(link);
        Arc::new(Self {
            objects: Objects::new(Arc::new(RemoteRecords::new(link.clone(), &config))),
            snapshots: Snapshots::new(
                Arc::new(SnapshotFiles::new(link.clone())),
                config.repository,
                keys.clone(),
            ),
            engine,
            entropy,
            config,
            keys,
            link,
        })
    }

    /// The connections.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Keeps what snapshots refer to, whoever forgets them meanwhile, until what is returned is dropped.
    pub fn hold(&self, snapshots: &[SnapshotId]) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        for snapshots in snapshots.chunks(HOLDS_MAX) {
            let mut stream = self.link.converse()?;
            stream.say(&Hold {
                snapshots: snapshots.to_vec(),
            })?;
            let Done = stream.answer()?;
            held.push(Held { _stream: stream });
        }
        Ok(held)
    }

    /// Where random ids come from.
    pub fn entropy(&self) -> &dyn Entropy {
        &*self.entropy
    }
}

impl Repository for RemoteRepository {
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

    fn traffic(&self) -> Option<Traffic> {
        Some(self.link.traffic())
    }

    fn begin(self: Arc<Self>, request: &SessionRequest) -> Result<Begun> {
        RemoteSession::begin(self, request)
    }
}
