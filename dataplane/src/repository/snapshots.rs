//! The roots: listing, reading, publishing, protecting, locking and forgetting snapshots.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rayon::prelude::*;
use undercroft_format::codec::{DecodeError, Problem, Reader, checksum};
use undercroft_format::id::{RepositoryId, SessionId, SnapshotId};
use undercroft_format::lock::{self, LOCK_LEN, LockEnd};
use undercroft_format::snapshot::{Authenticate, SNAPSHOT_LEN_MAX, Snapshot};

use super::error::{RepositoryError, Result};
use super::keys::Keys;
use super::layout;
use super::retention::{RetentionClock, UnixMs, check_forget, extend_lock};
use crate::io::Storage;
use crate::wall_clock::SystemClock;

/// The snapshot files of a repository.
pub struct Snapshots {
    storage: Arc<dyn Storage>,
    repository: RepositoryId,
    keys: Option<Arc<Keys>>,
    clock: Mutex<Arc<dyn RetentionClock>>,
    /// Held while snapshots are published. Before `changes`, where both are.
    publishing: Mutex<()>,
    /// Held while snapshots go, are locked, or come locked: between what is found out and what is done about
    /// it, nothing changes.
    changes: Mutex<()>,
}

/// A snapshot with its markers.
#[derive(Clone, Debug)]
pub struct StoredSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// What it says.
    pub snapshot: Snapshot,
    /// Neither `forget` nor `prune` removes it.
    pub protected: bool,
    /// `repair` found that it lost something.
    pub incomplete: bool,
    /// The end of its retention lock; [`UnixMs::MAX`] for one that cannot be read.
    pub locked_until: Option<UnixMs>,
}

/// A snapshot file that cannot be read, and why.
pub type Unreadable = (SnapshotId, RepositoryError);

/// What stands in the directory of snapshots.
#[derive(Clone, Debug, Default)]
pub struct SnapshotListing {
    /// Ids of the snapshot files, sorted.
    pub ids: Vec<SnapshotId>,
    /// Ids with a marker of protection.
    pub protected: Vec<SnapshotId>,
    /// Ids with a marker of incompleteness.
    pub incomplete: Vec<SnapshotId>,
    /// Ids with a retention lock.
    pub locked: Vec<SnapshotId>,
    /// Files left by a write that was cut short.
    pub temporary: Vec<String>,
    /// Files that are none of these.
    pub foreign: Vec<String>,
}

impl Snapshots {
    /// The snapshots in `storage`; with keys, authenticators are checked.
    pub fn new(
        storage: Arc<dyn Storage>,
        repository: RepositoryId,
        keys: Option<Arc<Keys>>,
    ) -> Self {
        Self {
            storage,
            repository,
            keys,
            clock: Mutex::new(Arc::new(SystemClock)),
            publishing: Mutex::default(),
            changes: Mutex::default(),
        }
    }

    /// Sets the clock by which locks are set and end; the machine's, without this.
    pub fn keep_time_by(&self, clock: Arc<dyn RetentionClock>) {
        *self.clock.lock() = clock;
    }

    fn clock(&self) -> Arc<dyn RetentionClock> {
        self.clock.lock().clone()
    }

    /// Lists names alone.
    ///
    /// # Errors
    /// Any failure: a short listing never passes for a complete one.
    pub fn list(&self) -> Result<SnapshotListing> {
        let names = self
            .storage
            .names(layout::SNAPSHOTS)
            .map_err(RepositoryError::io("listing", layout::SNAPSHOTS))?;
        let mut listing = SnapshotListing::default();
        for name in &names {
            let name = name.as_str();
            let marked = |suffix: &str| name.strip_suffix(suffix).and_then(|id| id.parse().ok());
            if let Ok(id) = name.parse() {
                listing.ids.push(id);
            } else if let Some(id) = marked(layout::PROTECTED_SUFFIX) {
                listing.protected.push(id);
            } else if let Some(id) = marked(layout::INCOMPLETE_SUFFIX) {
                listing.incomplete.push(id);
            } else if let Some(id) = marked(layout::LOCKED_SUFFIX) {
                listing.locked.push(id);
            } else if name.ends_with(layout::TEMPORARY_SUFFIX) {
                listing
                    .temporary
                    .push(format!("{}/{name}", layout::SNAPSHOTS));
            } else {
                listing
                    .foreign
                    .push(format!("{}/{name}", layout::SNAPSHOTS));
            }
        }
        Ok(listing)
    }

    /// Reads one snapshot.
    pub fn read(&self, id: SnapshotId) -> Result<StoredSnapshot> {
        Ok(StoredSnapshot {
            id,
            snapshot: self.read_file(id)?,
            protected: self.exists(&layout::protected(id))?,
            incomplete: self.exists(&layout::incomplete(id))?,
            locked_until: self.locked_until(id)?,
        })
    }

    /// Reads all snapshots, oldest first; files that cannot be read come as errors beside them.
    pub fn read_all(&self) -> Result<(Vec<StoredSnapshot>, Vec<Unreadable>)> {
        let listing = self.list()?;
        let read: Vec<_> = listing
            .ids
            .par_iter()
            .map(|id| {
                let locked_until = match listing.locked.binary_search(id) {
                    Ok(_) => self.locked_until(*id),
                    Err(_) => Ok(None),
                };
                let read = locked_until.and_then(|until| Ok((self.read_file(*id)?, until)));
                (*id, read)
            })
            .collect();
        let mut snapshots = Vec::with_capacity(read.len());
        let mut failed = Vec::new();
        for (id, result) in read {
            match result {
                Ok((snapshot, locked_until)) => snapshots.push(StoredSnapshot {
                    id,
                    snapshot,
                    // Names are listed in order, and so are ids.
                    protected: listing.protected.binary_search(&id).is_ok(),
                    incomplete: listing.incomplete.binary_search(&id).is_ok(),
                    locked_until,
                }),
                // Forgotten since it was listed.
                Err(RepositoryError::NoSuchSnapshot { .. }) => {}
                Err(error) => failed.push((id, error)),
            }
        }
        snapshots.sort_by_key(|stored| (stored.snapshot.created_ms, stored.id));
        Ok((snapshots, failed))
    }

    fn exists(&self, path: &str) -> Result<bool> {
        self.storage
            .exists(path)
            .map_err(RepositoryError::io("looking for", path))
    }

    fn read_file(&self, id: SnapshotId) -> Result<Snapshot> {
        let path = layout::snapshot(id);
        let bytes = self
            .storage
            .read(&path, SNAPSHOT_LEN_MAX)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => RepositoryError::NoSuchSnapshot { id },
                _ => RepositoryError::io("reading", &path)(error),
            })?;
        self.decode(&bytes, id, &path)
    }

    /// Decodes a snapshot file that should be `id`'s.
    pub fn decode(&self, bytes: &[u8], id: SnapshotId, path: &str) -> Result<Snapshot> {
        let authenticate = self
            .keys
            .as_ref()
            .map(|keys| |body: &[u8]| keys.authenticate(body));
        let authenticate = authenticate.as_ref().map(|f| f as &Authenticate<'_>);
        let (found, snapshot) =
            Snapshot::decode(bytes, authenticate).map_err(RepositoryError::damaged(path))?;
        if found != id || snapshot.repository != self.repository {
            return Err(RepositoryError::damaged(path)(
                Reader::new("snapshot", bytes)
                    .error(Problem::Invalid("owner: another snapshot's content")),
            ));
        }
        Ok(snapshot)
    }

    /// Decodes a snapshot file that is to be published here.
    pub fn decode_sent(&self, bytes: &[u8]) -> Result<(SnapshotId, Snapshot), DecodeError> {
        let authenticate = self
            .keys
            .as_ref()
            .map(|keys| |body: &[u8]| keys.authenticate(body));
        let authenticate = authenticate.as_ref().map(|f| f as &Authenticate<'_>);
        let (id, snapshot) = Snapshot::decode(bytes, authenticate)?;
        if snapshot.repository != self.repository {
            let problem = Problem::Invalid("owner: another repository's snapshot");
            return Err(Reader::new("snapshot", bytes).error(problem));
        }
        Ok((id, snapshot))
    }

    /// Publishes a snapshot: after this returns it is there for good, before it is not there at all.
    ///
    /// Everything that it names must be durable already.
    pub fn publish(&self, snapshot: &Snapshot, keys: &Keys) -> Result<SnapshotId> {
        let (id, bytes) = snapshot.encode(|body| keys.authenticate(body));
        self.publish_encoded(id, &bytes, None)?;
        Ok(id)
    }

    /// The snapshot that session `session` of VM `vm` published, if it did: whoever did not hear the end
    /// of it finds out here.
    pub fn published_by(&self, session: SessionId, vm: &str) -> Result<Option<StoredSnapshot>> {
        // Nobody is in the middle of publishing it.
        let _publishing = self.publishing.lock();
        let (snapshots, _) = self.read_all()?;
        Ok(snapshots
            .into_iter()
            .find(|stored| stored.snapshot.session == session && stored.snapshot.vm == vm))
    }

    /// Publishes the file of a snapshot, which whoever has the key has encoded; it is locked from the moment
    /// when it can be seen. Returns until when it is: not at all, if that time came while the snapshot was
    /// made.
    pub fn publish_encoded(
        &self,
        id: SnapshotId,
        bytes: &[u8],
        lock: Option<LockEnd>,
    ) -> Result<Option<UnixMs>> {
        let path = layout::snapshot(id);
        // What readers would refuse must not be published: a limit was exceeded somewhere above.
        if bytes.len() as u64 > SNAPSHOT_LEN_MAX {
            let limit = Problem::Limit {
                field: "snapshot length",
                value: bytes.len() as u64,
                limit: SNAPSHOT_LEN_MAX,
            };
            return Err(RepositoryError::Unpublishable(
                Reader::new("snapshot", &[]).error(limit),
            ));
        }
        Snapshot::decode(bytes, None).map_err(RepositoryError::Unpublishable)?;
        let _publishing = self.publishing.lock();
        // A lock without its snapshot yet would be swept away.
        let _changes = lock.map(|_| self.changes.lock());
        let now = self.clock().latest();
        let until = lock.map(|lock| lock.from(now)).filter(|until| *until > now);
        if let Some(until) = until {
            let until = extend_lock(None, until, now).map_err(RepositoryError::Lock)?;
            self.write_lock(id, until)?;
        }
        self.storage
            .publish(&path, bytes)
            .map_err(RepositoryError::io("publishing", &path))?;
        Ok(until)
    }

    /// Checks that a snapshot which is going to be made can be locked so.
    pub fn check_lock(&self, lock: LockEnd) -> Result<()> {
        let now = self.clock().latest();
        extend_lock(None, lock.from(now), now)
            .map(|_| ())
            .map_err(RepositoryError::Lock)
    }

    /// Locks a snapshot, or extends its lock, and returns the end of it.
    ///
    /// # Errors
    /// [`RepositoryError::Retention`] for what would shorten it, has passed, or is too far away.
    pub fn lock(&self, id: SnapshotId, end: LockEnd) -> Result<UnixMs> {
        let _changes = self.changes.lock();
        if !self.exists(&layout::snapshot(id))? {
            return Err(RepositoryError::NoSuchSnapshot { id });
        }
        let now = self.clock().latest();
        let locked_until = self.locked_until(id)?;
        let until = extend_lock(locked_until, end.from(now), now)
            .map_err(|source| RepositoryError::Retention { id, source })?;
        if locked_until != Some(until) {
            self.write_lock(id, until)?;
        }
        Ok(until)
    }

    fn write_lock(&self, id: SnapshotId, until: UnixMs) -> Result<()> {
        let path = layout::locked(id);
        self.storage
            .publish(&path, &lock::encode(id, until))
            .map_err(RepositoryError::io("writing", &path))
    }

    /// The end of a snapshot's lock. Of one that is damaged nobody knows it: it holds for good.
    fn locked_until(&self, id: SnapshotId) -> Result<Option<UnixMs>> {
        let path = layout::locked(id);
        match self.storage.read(&path, LOCK_LEN as u64 + 1) {
            Ok(bytes) => Ok(Some(lock::decode(&bytes, id).unwrap_or(UnixMs::MAX))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if is_unreadable(&error) => Ok(Some(UnixMs::MAX)),
            Err(error) => Err(RepositoryError::io("reading", &path)(error)),
        }
    }

    /// True if a lock's file holds what was written: for a scrub.
    pub fn lock_is_intact(&self, id: SnapshotId) -> bool {
        self.storage
            .read(&layout::locked(id), LOCK_LEN as u64 + 1)
            .is_ok_and(|bytes| lock::decode(&bytes, id).is_ok())
    }

    /// Removes locks without a snapshot, which a publication that was cut short leaves.
    pub fn sweep_locks(&self, listing: &SnapshotListing) -> Result<()> {
        for id in &listing.locked {
            let _changes = self.changes.lock();
            if self.exists(&layout::snapshot(*id))? {
                continue;
            }
            let path = layout::locked(*id);
            match self.storage.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(RepositoryError::io("removing", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes snapshots; their chunks stay until a collection.
    ///
    /// # Errors
    /// [`RepositoryError::Protected`] and [`RepositoryError::Retention`]: then none is removed.
    pub fn forget(&self, ids: &[SnapshotId]) -> Result<()> {
        let _changes = self.changes.lock();
        for id in ids {
            self.check_removable(*id)?;
        }
        for id in ids {
            self.remove(*id)?;
        }
        Ok(())
    }

    fn check_removable(&self, id: SnapshotId) -> Result<()> {
        if !self.exists(&layout::snapshot(id))? {
            return Err(RepositoryError::NoSuchSnapshot { id });
        }
        if self.exists(&layout::protected(id))? {
            return Err(RepositoryError::Protected { id });
        }
        check_forget(self.locked_until(id)?, self.clock().shown())
            .map_err(|source| RepositoryError::Retention { id, source })
    }

    fn remove(&self, id: SnapshotId) -> Result<()> {
        let path = layout::snapshot(id);
        self.storage
            .remove(&path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => RepositoryError::NoSuchSnapshot { id },
                _ => RepositoryError::io("removing", &path)(error),
            })?;
        for marker in [layout::incomplete(id), layout::locked(id)] {
            if self.exists(&marker)? {
                self.storage
                    .remove(&marker)
                    .map_err(RepositoryError::io("removing", &marker))?;
            }
        }
        self.storage
            .sync_dir(layout::SNAPSHOTS)
            .map_err(RepositoryError::io("making durable", layout::SNAPSHOTS))
    }

    /// Sets or lifts the protection of a snapshot.
    pub fn protect(&self, id: SnapshotId, protected: bool) -> Result<()> {
        self.set_marker(id, &layout::protected(id), protected)
    }

    /// Marks a snapshot as having lost something, or as whole again.
    pub fn mark_incomplete(&self, id: SnapshotId, incomplete: bool) -> Result<()> {
        self.set_marker(id, &layout::incomplete(id), incomplete)
    }

    fn set_marker(&self, id: SnapshotId, path: &str, present: bool) -> Result<()> {
        if !self.exists(&layout::snapshot(id))? {
            return Err(RepositoryError::NoSuchSnapshot { id });
        }
        let there = self.exists(path)?;
        // A damaged marker counts, and is written anew.
        let is_right = !there || self.marker_is_intact(path);
        if present == there && is_right {
            return Ok(());
        }
        if present {
            self.storage
                .publish(path, &marker_content(path))
                .map_err(RepositoryError::io("writing", path))
        } else {
            self.storage
                .remove(path)
                .and_then(|()| self.storage.sync_dir(layout::SNAPSHOTS))
                .map_err(RepositoryError::io("removing", path))
        }
    }

    /// True if the marker at `path` holds what was written: for a scrub.
    pub fn marker_is_intact(&self, path: &str) -> bool {
        self.storage
            .read(path, 4096)
            .is_ok_and(|bytes| bytes == marker_content(path))
    }
}

/// Whether the disk cannot give what is there, as opposed to a program that may not ask.
fn is_unreadable(error: &io::Error) -> bool {
    super::scrubber::is_damage(error) || error.kind() == io::ErrorKind::InvalidData
}

/// A marker's presence is what counts; its content lets a scrub find a damaged directory block.
pub(super) fn marker_content(path: &str) -> Vec<u8> {
    format!("{path}\n{:016x}\n", checksum(path.as_bytes())).into_bytes()
}
