//! Ingest sessions: ask what is known, store what is new, publish a snapshot.
//!
//! Nothing that a session stores is visible before [`Session::commit`] publishes the snapshot, and then
//! everything is durable: packs synced, index told, snapshot renamed, in that order. A session that is
//! abandoned leaves sealed packs behind; a later backup of the same data finds their chunks, a
//! collection removes them if none does.

use std::sync::Arc;

use undercroft_format::id::{ObjectId, SessionId, SnapshotId};
use undercroft_format::pack::PackKind;
use undercroft_format::snapshot::Snapshot;

use super::Repository;
use super::error::{RepositoryError, Result};
use super::keys::{Keys, Sealer};
use super::layout;
use super::packer::{Packer, PackerContext, PackerFigures};
use super::record::{EncodedRecord, RecordBatch};
use super::snapshots::StoredSnapshot;

/// An open ingest session.
pub struct Session {
    id: SessionId,
    repository: Arc<Repository>,
    keys: Arc<Keys>,
    packer: Option<Packer>,
    sealer: Option<Sealer>,
}

impl Session {
    /// Begins a session of `repository`, whose keys must be unlocked.
    pub fn begin(repository: &Arc<Repository>) -> Result<Self> {
        let keys = repository.keys()?.clone();
        let id = SessionId::from_bytes(repository.entropy().array()?);
        let path = layout::session(id);
        // First, so that no collection takes the file for a dead session's.
        repository.registry().begin(id);
        let published = repository
            .storage()
            .publish(&path, id.to_string().as_bytes());
        if let Err(error) = published {
            repository.registry().end(id);
            return Err(RepositoryError::io("writing", &path)(error));
        }
        Ok(Self {
            id,
            repository: repository.clone(),
            packer: Some(Packer::start(PackerContext::new(repository, id))),
            sealer: keys.sealer(id),
            keys,
        })
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// The repository's keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What seals this session's payloads; `None` if the repository is not encrypted.
    pub fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_ref()
    }

    /// Keeps all that `parent` refers to until the session ends, whoever forgets it meanwhile. False if
    /// it was forgotten already: then nothing may be spliced onto it.
    pub fn pin_parent(&self, parent: &StoredSnapshot) -> Result<bool> {
        self.repository.registry().pin(self.id, parent.clone());
        let path = layout::snapshot(parent.id);
        let published = self
            .repository
            .storage()
            .exists(&path)
            .map_err(RepositoryError::io("looking for", &path))?;
        if !published {
            self.repository.registry().unpin(self.id);
        }
        Ok(published)
    }

    /// For each id whether the repository has it, or will have it because this session stores it. What
    /// is answered with true stays until the session ends.
    pub fn probe(&self, ids: &[ObjectId]) -> Result<Vec<bool>> {
        let mut answers = self.repository.lookup().probe(ids)?;
        self.repository.registry().hold(self.id, &mut answers);
        Ok(answers
            .iter()
            .zip(ids)
            .map(|(answer, id)| answer.is_some() || self.packer().is_claimed(*id))
            .collect())
    }

    /// Claims an id that [`probe`](Self::probe) did not know. True if the caller must store it; false
    /// if another worker of this session does.
    pub fn claim(&self, id: ObjectId) -> bool {
        self.packer().claim(id)
    }

    /// Stores a claimed object and returns the bytes that it takes. Blocks while the disk is slower
    /// than the callers.
    pub fn store(&self, record: &EncodedRecord<'_>) -> Result<u64> {
        self.packer().append(&record.info, record.payload)
    }

    /// Stores claimed chunks next to each other, and returns the bytes that they take.
    pub fn store_chunks(&self, batch: &RecordBatch) -> Result<u64> {
        self.packer().append_all(PackKind::Data, batch.records())
    }

    /// Makes everything durable, then publishes `snapshot`.
    ///
    /// # Errors
    /// Any failure of the session: nothing was published.
    pub fn commit(mut self, snapshot: &Snapshot) -> Result<(SnapshotId, PackerFigures)> {
        let figures = self.seal()?;
        let id = self.repository.snapshots().publish(snapshot, &self.keys)?;
        Ok((id, figures))
    }

    /// Ends the session without a snapshot, but keeps what it stored for the next one to find.
    pub fn abandon(mut self) -> Result<PackerFigures> {
        self.seal()
    }

    fn seal(&mut self) -> Result<PackerFigures> {
        self.packer.take().expect("a session ends once").finish()
    }

    fn packer(&self) -> &Packer {
        self.packer
            .as_ref()
            .expect("a session is used before its end")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The writing thread must be done before the holds on its packs go.
        self.packer = None;
        self.repository.registry().end(self.id);
        // Left behind, the file only says that a session ended badly; a collection removes it.
        let _ = self.repository.storage().remove(&layout::session(self.id));
    }
}
