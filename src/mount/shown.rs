//! Which snapshots are there now. The listing is read again when somebody looks, but not all the time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use undercroft_dataplane::clock::Stopwatch;
use undercroft_dataplane::repository::Repository;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::id::SnapshotId;

use super::tree::Tree;
use crate::failure::one_line;

/// How old a listing may be.
pub const LISTED_FOR: Duration = Duration::from_secs(2);
/// How long somebody who looks waits for a new one, where there is one already.
const PATIENCE: Duration = Duration::from_secs(5);
/// New snapshots that are read one by one; more are read all at once.
const ONE_BY_ONE_MAX: usize = 64;

/// Which snapshots to show.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Of these VMs alone, if there are any.
    pub vms: Vec<String>,
    /// These alone.
    pub ids: Option<Vec<SnapshotId>>,
}

impl Choice {
    fn takes(&self, stored: &StoredSnapshot) -> bool {
        let is_chosen = self.ids.as_ref().is_none_or(|ids| ids.contains(&stored.id));
        is_chosen && (self.vms.is_empty() || self.vms.contains(&stored.snapshot.vm))
    }
}

/// The snapshots that are shown.
pub struct Shown {
    repository: Arc<dyn Repository>,
    choice: Choice,
    state: Mutex<State>,
    listed: Condvar,
}

#[derive(Default)]
struct State {
    tree: Tree,
    known: HashMap<SnapshotId, Arc<StoredSnapshot>>,
    /// Since the last listing.
    age: Option<Stopwatch>,
    is_listing: bool,
}

impl Shown {
    /// Those of `repository` that `choice` takes. Reads nothing yet.
    pub fn new(repository: Arc<dyn Repository>, choice: Choice) -> Arc<Self> {
        Arc::new(Self {
            repository,
            choice,
            state: Mutex::default(),
            listed: Condvar::new(),
        })
    }

    /// What `look` sees in the tree, which is as new as can be had soon.
    pub fn look<R>(self: &Arc<Self>, look: impl FnOnce(&Tree) -> R) -> R {
        look(&self.fresh().tree)
    }

    fn fresh(self: &Arc<Self>) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        let is_old = |state: &State| {
            let age = state.age.as_ref().map(Stopwatch::elapsed);
            age.is_none_or(|age| age >= LISTED_FOR)
        };
        if !is_old(&state) {
            return state;
        }
        self.begin(&mut state);
        let clock = Stopwatch::start();
        let patience = match state.age {
            Some(_) => PATIENCE,
            None => super::PATIENCE,
        };
        while state.is_listing && clock.elapsed() < patience {
            let left = patience.saturating_sub(clock.elapsed());
            self.listed.wait_for(&mut state, left);
        }
        state
    }

    /// Begins to list, in a thread that nobody has to wait for.
    pub fn list_ahead(self: &Arc<Self>) {
        self.begin(&mut self.state.lock());
    }

    fn begin(self: &Arc<Self>, state: &mut State) {
        if state.is_listing {
            return;
        }
        let shown = self.clone();
        let thread = std::thread::Builder::new().name("mount-list".into());
        state.is_listing = thread.spawn(move || shown.list()).is_ok();
    }

    fn list(&self) {
        let known = self.state.lock().known.clone();
        let read = self.read(&known);
        let mut state = self.state.lock();
        match read {
            Ok(snapshots) => {
                let mut sorted: Vec<_> = snapshots.values().cloned().collect();
                sorted.sort_by_key(|stored| (stored.snapshot.created_ms, stored.id));
                let taken = sorted
                    .into_iter()
                    .filter(|stored| self.choice.takes(stored));
                state.tree.show(taken);
                state.known = snapshots;
            }
            // What was known is shown on.
            Err(error) => {
                tracing::warn!(error = one_line(&error), "snapshots cannot be listed");
            }
        }
        state.age = Some(Stopwatch::start());
        state.is_listing = false;
        drop(state);
        self.listed.notify_all();
    }

    fn read(
        &self,
        known: &HashMap<SnapshotId, Arc<StoredSnapshot>>,
    ) -> Result<HashMap<SnapshotId, Arc<StoredSnapshot>>, RepositoryError> {
        let snapshots = self.repository.snapshots();
        let ids = snapshots.list()?.ids;
        let is_new = |id: &&SnapshotId| !known.contains_key(*id);
        let mut read = known.clone();
        if ids.iter().filter(is_new).count() > ONE_BY_ONE_MAX {
            let (all, unreadable) = snapshots.read_all()?;
            for (id, error) in unreadable {
                tracing::warn!(snapshot = %id, error = one_line(&error), "a snapshot cannot be read");
            }
            read.extend(all.into_iter().map(|stored| (stored.id, Arc::new(stored))));
        } else {
            for id in ids.iter().filter(is_new) {
                match snapshots.read(*id) {
                    Ok(stored) => drop(read.insert(*id, Arc::new(stored))),
                    // Forgotten since it was listed.
                    Err(RepositoryError::NoSuchSnapshot { .. }) => {}
                    Err(error) if error.is_damage() => {
                        tracing::warn!(snapshot = %id, error = one_line(&error), "a snapshot cannot be read");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        // Names are listed in order, and so are ids.
        read.retain(|id, _| ids.binary_search(id).is_ok());
        Ok(read)
    }
}
