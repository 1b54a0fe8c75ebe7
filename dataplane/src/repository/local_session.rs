//! Sessions of a repository that this process owns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use undercroft_format::config::Config;
use undercroft_format::id::{ObjectId, SegmentMapId, SessionId, SnapshotId};
use undercroft_format::pack::{PackKind, RecordHeader};
use undercroft_format::snapshot::Snapshot;

use super::error::{RepositoryError, Result};
use super::keys::{Keys, Sealer};
use super::objects::Objects;
use super::packer::{Packer, PackerContext, PackerFigures, WRITE_LEN};
use super::record::{EncodedRecord, RecordBatch};
use super::session::Session;
use super::snapshots::StoredSnapshot;
use super::{LocalRepository, Repository, layout};

/// An open session of a [`LocalRepository`], whose keys are unlocked.
pub struct LocalSession {
    store: SessionStore,
    keys: Arc<Keys>,
    sealer: Option<Sealer>,
}

impl LocalSession {
    /// Begins a session of `repository`, whose keys must be unlocked.
    pub fn begin(repository: &Arc<LocalRepository>) -> Result<Self> {
        let keys = repository.keys()?.clone();
        let id = SessionId::from_bytes(repository.entropy().array()?);
        Ok(Self {
            store: SessionStore::begin(repository, id, WRITE_LEN)?,
            sealer: keys.sealer(id),
            keys,
        })
    }
}

impl Session for LocalSession {
    fn id(&self) -> SessionId {
        self.store.id
    }

    fn config(&self) -> &Config {
        self.store.repository.config()
    }

    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn objects(&self) -> &Objects {
        self.store.repository.objects()
    }

    fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_ref()
    }

    fn pin_parent(&self, parent: &StoredSnapshot) -> Result<bool> {
        self.store.pin_parent(parent)
    }

    fn probe(&self, ids: &[ObjectId]) -> Result<Vec<bool>> {
        self.store.probe(ids)
    }

    fn distrust(&self, id: ObjectId) -> Result<()> {
        let index = self.store.repository.lookup().index();
        let mut places = Vec::new();
        index.find(&[id], &mut places)?;
        if let Some(place) = places[0] {
            index.forget(place.pack, &[id])?;
        }
        Ok(())
    }

    fn claim(&self, id: ObjectId) -> bool {
        self.store.packer().claim(id)
    }

    fn store(&self, record: &EncodedRecord<'_>) -> Result<u64> {
        self.store.packer().append(&record.info, record.payload)
    }

    fn store_chunks(&self, batch: &RecordBatch) -> Result<u64> {
        self.store
            .packer()
            .append_all(PackKind::Data, batch.records())
    }

    fn sealed(&self) -> PackerFigures {
        self.store.figures()
    }

    fn commit(mut self: Box<Self>, snapshot: &Snapshot) -> Result<(SnapshotId, PackerFigures)> {
        let figures = self.store.seal()?;
        let repository = &self.store.repository;
        let id = repository.snapshots().publish(snapshot, &self.keys)?;
        Ok((id, figures))
    }

    fn abandon(mut self: Box<Self>) -> Result<PackerFigures> {
        self.store.seal()
    }
}

/// What a session holds and writes in a repository that this process owns. Needs no key: payloads come
/// encoded.
pub struct SessionStore {
    id: SessionId,
    repository: Arc<LocalRepository>,
    packer: Option<Packer>,
    keeps_file: AtomicBool,
}

impl SessionStore {
    /// Begins session `id`, which writes packs `write_len` bytes at a time.
    pub fn begin(
        repository: &Arc<LocalRepository>,
        id: SessionId,
        write_len: usize,
    ) -> Result<Self> {
        // First, so that no collection takes the file for a dead session's.
        repository.registry().begin(id);
        let context = PackerContext {
            write_len,
            ..PackerContext::new(repository, id)
        };
        let store = Self {
            id,
            packer: Some(Packer::start(context)),
            repository: repository.clone(),
            keeps_file: AtomicBool::new(false),
        };
        store.write_file(id.to_string().as_bytes())?;
        Ok(store)
    }

    /// Replaces what the session's file says, atomically.
    pub fn write_file(&self, content: &[u8]) -> Result<()> {
        let path = layout::session(self.id);
        let storage = self.repository.storage();
        storage
            .publish(&path, content)
            .map_err(RepositoryError::io("writing", &path))
    }

    /// Says whether the session's file stays when this is dropped, because the session goes on later.
    pub fn keep_file(&self, keep: bool) {
        self.keeps_file.store(keep, Ordering::Relaxed);
    }

    /// The session.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Its repository.
    pub fn repository(&self) -> &Arc<LocalRepository> {
        &self.repository
    }

    /// See [`Session::pin_parent`].
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

    /// See [`Session::probe`].
    pub fn probe(&self, ids: &[ObjectId]) -> Result<Vec<bool>> {
        let mut answers = self.repository.lookup().probe(ids)?;
        self.repository.registry().hold(self.id, &mut answers);
        Ok(answers
            .iter()
            .zip(ids)
            .map(|(answer, id)| answer.is_some() || self.packer().is_claimed(*id))
            .collect())
    }

    /// Appends a record that came encoded, unless the session has the object already. Returns the bytes
    /// that it takes.
    pub fn append(&self, header: &RecordHeader, payload: &[u8]) -> Result<u64> {
        if !self.packer().claim(header.info.id) {
            return Ok(0);
        }
        self.packer().append_checked(header, payload)
    }

    /// For each map whether the repository has it and all chunks that it names; then the session holds
    /// them all. A map may outlive its chunks: a collection removes data packs and meta packs each for
    /// themselves.
    pub fn holds_segments(&self, maps: &[SegmentMapId]) -> Result<Vec<bool>> {
        let ids: Vec<ObjectId> = maps.iter().map(|id| ObjectId::from(*id)).collect();
        let mut answers = self.repository.lookup().probe(&ids)?;
        self.repository.registry().hold(self.id, &mut answers);
        let mut held = Vec::with_capacity(maps.len());
        for (id, answer) in maps.iter().zip(answers) {
            held.push(answer.is_some() && self.holds_chunks_of(*id)?);
        }
        Ok(held)
    }

    fn holds_chunks_of(&self, map: SegmentMapId) -> Result<bool> {
        let map = match self.repository.objects().segment_map(map) {
            Ok(map) => map,
            // The client sends it again, and the damage is no obstacle then.
            Err(error) if error.is_damage() => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut chunks: Vec<ObjectId> = map.chunks().map(ObjectId::from).collect();
        chunks.sort_unstable();
        chunks.dedup();
        Ok(self.probe(&chunks)?.into_iter().all(|known| known))
    }

    /// Makes durable what was appended before; the session goes on.
    pub fn checkpoint(&self) -> Result<()> {
        self.packer().checkpoint()
    }

    /// What was sealed so far.
    pub fn figures(&self) -> PackerFigures {
        self.packer().figures()
    }

    /// Makes everything durable and ends the session's packs.
    pub fn seal(&mut self) -> Result<PackerFigures> {
        self.packer.take().expect("a session ends once").finish()
    }

    fn packer(&self) -> &Packer {
        self.packer
            .as_ref()
            .expect("a session is used before its end")
    }
}

impl Drop for SessionStore {
    fn drop(&mut self) {
        // The writing thread must be done before the holds on its packs go.
        self.packer = None;
        self.repository.registry().end(self.id);
        if !self.keeps_file.load(Ordering::Relaxed) {
            // Left behind, the file only says that a session ended badly; a collection removes it.
            let _ = self.repository.storage().remove(&layout::session(self.id));
        }
    }
}
