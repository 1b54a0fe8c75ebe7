//! What is being read stays in the repository: a lease per snapshot, from the first open file to a while after the last.
//!
//! In a directory a lease is a pin, and the index as it was after the pin was set: what it says of the snapshot's data
//! then stays true. An index serves the leases of snapshots that were there when it was opened, as long as there is
//! one of them; without any, a collection may move everything, and the next lease opens the index anew. A server is
//! asked to hold the snapshot.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::net::client::RemoteRepository;
use undercroft_dataplane::net::client::repository::Held;
use undercroft_dataplane::repository::open::reopen;
use undercroft_dataplane::repository::pins::Pin;
use undercroft_dataplane::repository::{LocalRepository, Repository};
use undercroft_format::id::SnapshotId;

use crate::access;

/// How long a lease outlives its last reader: opening an index costs more than reading a little.
const LINGER: Duration = Duration::from_secs(10);
/// Leases that may linger.
const LINGERING_MAX: usize = 16;

/// A repository that was opened to be mounted.
#[derive(Clone)]
pub enum Mounted {
    /// In a directory: opened to list snapshots.
    Local(Arc<LocalRepository>, PathBuf),
    /// Behind a server.
    Remote(Arc<RemoteRepository>),
}

impl Mounted {
    /// As what lists snapshots.
    pub fn repository(&self) -> Arc<dyn Repository> {
        match self {
            Self::Local(repository, _) => repository.clone(),
            Self::Remote(repository) => repository.clone(),
        }
    }
}

/// Keeps the data of a snapshot, and reads it.
pub struct Lease {
    /// The repository.
    pub repository: Arc<dyn Repository>,
    /// Before what keeps the packs in place.
    _opened: Option<Arc<Opened>>,
    _kept: Kept,
}

enum Kept {
    Pin {
        _pin: Option<Pin>,
    },
    /// Streams are not shared between threads.
    Held {
        _held: Mutex<Vec<Held>>,
    },
}

/// A repository with its index as of some moment.
struct Opened {
    repository: Arc<LocalRepository>,
    /// The snapshots that were there, ascending.
    ids: Vec<SnapshotId>,
}

/// Gives leases.
pub struct Readers {
    mounted: Mounted,
    /// Held while a lease is made, which takes as long as the repository does.
    state: Mutex<State>,
    lingering: Mutex<Vec<(Stopwatch, Arc<Lease>)>>,
}

#[derive(Default)]
struct State {
    opened: Weak<Opened>,
    leases: HashMap<SnapshotId, Weak<Lease>>,
}

impl Readers {
    /// Of the repository `mounted`.
    pub fn new(mounted: Mounted) -> Self {
        Self {
            mounted,
            state: Mutex::default(),
            lingering: Mutex::default(),
        }
    }

    /// A lease of snapshot `id`.
    ///
    /// # Errors
    /// The snapshot is gone, or the repository.
    pub fn lease(&self, id: SnapshotId) -> anyhow::Result<Arc<Lease>> {
        let mut state = self.state.lock();
        if let Some(lease) = state.leases.get(&id).and_then(Weak::upgrade) {
            return Ok(lease);
        }
        let lease = Arc::new(match &self.mounted {
            Mounted::Remote(repository) => Lease {
                _kept: Kept::Held {
                    _held: Mutex::new(repository.hold(&[id])?),
                },
                _opened: None,
                repository: repository.clone(),
            },
            Mounted::Local(listed, root) => {
                let pin = Pin::set(root, id, &**listed.entropy())?;
                let known = state.opened.upgrade();
                let known = known.filter(|opened| opened.ids.binary_search(&id).is_ok());
                let opened = match known {
                    Some(opened) => opened,
                    None => open(listed)?,
                };
                state.opened = Arc::downgrade(&opened);
                Lease {
                    repository: opened.repository.clone(),
                    _opened: Some(opened),
                    _kept: Kept::Pin { _pin: pin },
                }
            }
        });
        state.leases.retain(|_, lease| lease.strong_count() > 0);
        state.leases.insert(id, Arc::downgrade(&lease));
        Ok(lease)
    }

    /// Keeps a lease for a while, whose reader is done.
    pub fn linger(&self, lease: Arc<Lease>) {
        let mut lingering = self.lingering.lock();
        lingering.retain(|(_, known)| !Arc::ptr_eq(known, &lease));
        lingering.push((Stopwatch::start(), lease));
        let more = lingering.len().saturating_sub(LINGERING_MAX);
        let dropped: Vec<_> = lingering.drain(..more).collect();
        drop(lingering);
        drop(dropped);
    }

    /// Lets go of leases that have lingered long enough; of all if `all`.
    pub fn tidy(&self, all: bool) {
        let mut lingering = self.lingering.lock();
        let is_over = |(clock, _): &mut (Stopwatch, Arc<Lease>)| all || clock.elapsed() >= LINGER;
        let dropped: Vec<_> = lingering.extract_if(.., is_over).collect();
        drop(lingering);
        drop(dropped);
    }
}

/// Opens the index. The listing comes first: of what it names, the index knows everything.
fn open(listed: &LocalRepository) -> anyhow::Result<Arc<Opened>> {
    let ids = listed.snapshots().list()?.ids;
    let (repository, notes) = reopen(listed)?;
    notes.iter().for_each(access::tell);
    Ok(Arc::new(Opened { repository, ids }))
}
