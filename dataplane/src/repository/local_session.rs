//! Sessions of a repository that this process owns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use undercroft_format::config::Config;
use undercroft_format::id::{ObjectId, SegmentMapId, SessionId};
use undercroft_format::lock::LockEnd;
use undercroft_format::pack::{ObjectKind, PackKind, RecordHeader};
use undercroft_format::snapshot::Snapshot;

use super::error::{RepositoryError, Result};
use super::keys::{Keys, Sealer};
use super::objects::Objects;
use super::packer::{Packer, PackerContext, PackerFigures, WRITE_LEN};
use super::record::{EncodedRecord, RecordBatch};
use super::session::{Committed, Session, SessionRequest};
use super::snapshots::StoredSnapshot;
use super::{LocalRepository, Repository, layout};

/// An open session of a [`LocalRepository`], whose keys are unlocked.
pub struct LocalSession {
    store: SessionStore,
    keys: Arc<Keys>,
    sealer: Option<Sealer>,
    lock: Option<LockEnd>,
}

impl LocalSession {
    /// Begins a session of `repository`, whose keys must be unlocked.
    pub fn begin(repository: &Arc<LocalRepository>, request: &SessionRequest) -> Result<Self> {
        let keys = repository.keys()?.clone();
        if let Some(lock) = request.lock {
            repository.snapshots().check_lock(lock)?;
        }
        let id = SessionId::from_bytes(repository.entropy().array()?);
        Ok(Self {
            store: SessionStore::begin(repository, id, WRITE_LEN, id.to_string().as_bytes())?,
            sealer: keys.sealer(id),
            keys,
            lock: request.lock,
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

    fn distrust(&self, kind: ObjectKind, ids: &[ObjectId]) -> Result<()> {
        self.store.distrust(kind, ids)
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

    fn commit(mut self: Box<Self>, snapshot: &Snapshot) -> Result<Committed> {
        let figures = self.store.seal()?;
        let (id, bytes) = snapshot.encode(|body| self.keys.authenticate(body));
        let snapshots = self.store.repository.snapshots();
        let locked_until = snapshots.publish_encoded(id, &bytes, self.lock)?;
        Ok(Committed {
            id,
            figures,
            locked_until,
        })
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
    /// Begins session `id`, and writes packs `write_len` bytes at a time. Its file says `content` from then
    /// on.
    pub fn begin(
        repository: &Arc<LocalRepository>,
        id: SessionId,
        write_len: usize,
        content: &[u8],
    ) -> Result<Self> {
        let store = Self::take_up(repository, id, write_len);
        store.write_file(content)?;
        Ok(store)
    }

    /// Goes on with session `id`, whose file is there: that takes no room, which a full disk has not.
    pub fn take_up(repository: &Arc<LocalRepository>, id: SessionId, write_len: usize) -> Self {
        // First, so that no collection takes the file for a dead session's.
        repository.registry().begin(id);
        let context = PackerContext {
            write_len,
            ..PackerContext::new(repository, id)
        };
        Self {
            id,
            packer: Some(Packer::start(context)),
            repository: repository.clone(),
            keeps_file: AtomicBool::new(false),
        }
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
            self.repository.registry().unpin(self.id, parent.id);
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

    /// Appends records that came encoded, without those that the session has on their way already. Those
    /// of one kind of pack stay together. Returns the bytes that they take.
    pub fn append_all(&self, records: &[(RecordHeader, &[u8])]) -> Result<u64> {
        let claimed: Vec<&(RecordHeader, &[u8])> = records
            .iter()
            .filter(|(header, _)| self.packer().claim(header.info.id))
            .collect();
        let mut stored = 0;
        for kind in [PackKind::Data, PackKind::Meta] {
            let of_kind = claimed
                .iter()
                .filter(|(header, _)| header.info.kind.pack_kind() == kind)
                .map(|(header, payload)| (header, *payload));
            stored += self.packer().append_all(kind, of_kind)?;
        }
        Ok(stored)
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

    /// For each map whether it and all chunks that it names are durable; then the session holds them all.
    /// What is still on its way does not count.
    pub fn has_durably(&self, maps: &[SegmentMapId]) -> Result<Vec<bool>> {
        let mut durable = Vec::with_capacity(maps.len());
        for id in maps {
            durable.push(self.holds_durably(&[(*id).into()])? && self.chunks_are_durable(*id)?);
        }
        Ok(durable)
    }

    /// Whether all objects are durable; then the session holds them.
    pub fn holds_durably(&self, ids: &[ObjectId]) -> Result<bool> {
        let mut answers = self.repository.lookup().probe(ids)?;
        self.repository.registry().hold(self.id, &mut answers);
        Ok(answers.iter().all(Option::is_some))
    }

    fn chunks_are_durable(&self, map: SegmentMapId) -> Result<bool> {
        match self.chunks_of(map)? {
            Some(chunks) => self.holds_durably(&chunks),
            None => Ok(false),
        }
    }

    fn holds_chunks_of(&self, map: SegmentMapId) -> Result<bool> {
        match self.chunks_of(map)? {
            Some(chunks) => Ok(self.probe(&chunks)?.into_iter().all(|known| known)),
            None => Ok(false),
        }
    }

    /// The chunks that a map names, each once; `None` if the map is damaged.
    fn chunks_of(&self, map: SegmentMapId) -> Result<Option<Vec<ObjectId>>> {
        let map = match self.repository.objects().segment_map(map) {
            Ok(map) => map,
            // The client sends it again, and the damage is no obstacle then.
            Err(error) if error.is_damage() => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut chunks: Vec<ObjectId> = map.chunks().map(ObjectId::from).collect();
        chunks.sort_unstable();
        chunks.dedup();
        Ok(Some(chunks))
    }

    /// See [`Session::distrust`]: what is sound stays, whoever says otherwise.
    pub fn distrust(&self, kind: ObjectKind, ids: &[ObjectId]) -> Result<()> {
        let lookup = self.repository.lookup();
        let mut places = Vec::new();
        for id in ids {
            if self.is_sound(kind, *id)? {
                continue;
            }
            places.clear();
            lookup.index().find(&[*id], &mut places)?;
            if let Some(place) = places[0] {
                tracing::warn!(?kind, %id, "a damaged record does not count any more");
                lookup.index().forget(place.pack, &[*id])?;
                lookup.forget(place.pack);
            }
        }
        Ok(())
    }

    /// Whether the record of an object is what was written, as far as that can be told without a key.
    fn is_sound(&self, kind: ObjectKind, id: ObjectId) -> Result<bool> {
        let objects = self.repository.objects();
        let read = match (kind, self.repository.keys()) {
            (ObjectKind::SegmentMap, _) => objects.segment_map(id.into()).map(drop),
            (ObjectKind::Chunk, Ok(keys)) => objects.chunk(id.into(), keys).map(drop),
            // Not through what the objects remember: what stands on the disk counts.
            (kind, _) => objects.records().payload(id, kind).map(drop),
        };
        match read {
            Ok(()) => Ok(true),
            Err(error) if error.is_damage() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes durable what was appended before; the session goes on.
    pub fn checkpoint(&self) -> Result<()> {
        self.packer().checkpoint()
    }

    /// Whether something could not be written: then nothing is written any more.
    pub fn has_failed(&self) -> bool {
        self.packer().has_failed()
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
            // Left behind, the file says that a session ended badly. A collection removes it, a server takes
            // the session up until its lease lapses.
            let storage = self.repository.storage();
            let _ = storage.remove(&layout::session(self.id));
            let _ = storage.sync_dir(layout::SESSIONS);
        }
    }
}
