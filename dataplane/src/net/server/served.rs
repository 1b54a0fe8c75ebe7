//! A repository that the server owns, with its sessions.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::id::SessionId;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::ledger::{LEDGER_LEN_MAX, Ledger};
use undercroft_format::wire::session::{Begin, Epoch, Published};

use super::fetch_room::FetchRoom;
use super::kept_session::{CheckpointPolicy, KeptSession};
use super::published::PublishedSessions;
use super::repository_figures::{RepositoryFigures, SessionEvent};
use crate::net::address::RepositoryName;
use crate::net::convert::failure_of;
use crate::net::status::SessionStatus;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::keys::Keys;
use crate::repository::layout;
use crate::repository::local_session::SessionStore;
use crate::repository::open::{OpenNote, OpenOptions, open_local};
use crate::repository::retention::RetentionClock;
use crate::repository::snapshots::StoredSnapshot;
use crate::repository::{LocalRepository, Repository};

/// Bytes that a session's packer writes at once. Five such buffers per session are memory that grows with
/// the number of clients, so they are an eighth of what a single local backup takes.
const WRITE_LEN: usize = 512 << 10;
/// Sessions of one repository at once.
const SESSIONS_MAX: usize = 256;
/// Of them, those that one identity began or goes on with: nobody keeps all others out.
const OF_IDENTITY_MAX: usize = SESSIONS_MAX / 2;

/// What a client gets that wants a session.
pub enum Began {
    /// The session, and its turn.
    Open(Arc<KeptSession>, Epoch),
    /// It has published its snapshot.
    Published(Published),
}

/// A repository and its sessions.
pub struct Served {
    name: RepositoryName,
    repository: Arc<LocalRepository>,
    sessions: Mutex<BTreeMap<SessionId, Arc<KeptSession>>>,
    published: PublishedSessions,
    fetch_room: FetchRoom,
    policy: CheckpointPolicy,
    figures: Arc<RepositoryFigures>,
}

impl Served {
    /// Opens the repository in the directory `root` by `options`, which own it, and takes up the sessions that an
    /// earlier server left.
    pub fn open(
        name: RepositoryName,
        root: &Path,
        options: &OpenOptions,
        policy: CheckpointPolicy,
        now_ms: u64,
        time: Arc<dyn RetentionClock>,
        figures: Arc<RepositoryFigures>,
    ) -> Result<(Arc<Self>, Vec<OpenNote>)> {
        let (repository, notes) = open_local(root, options)?;
        repository.snapshots().keep_time_by(time);
        Ok((Self::of(name, repository, policy, now_ms, figures)?, notes))
    }

    /// Takes up the sessions that an earlier server left in `repository`.
    pub fn of(
        name: RepositoryName,
        repository: Arc<LocalRepository>,
        policy: CheckpointPolicy,
        now_ms: u64,
        figures: Arc<RepositoryFigures>,
    ) -> Result<Arc<Self>> {
        let served = Self {
            name,
            repository,
            sessions: Mutex::default(),
            published: PublishedSessions::default(),
            fetch_room: FetchRoom::default(),
            policy,
            figures,
        };
        served.take_up_sessions(now_ms)?;
        let served = Arc::new(served);
        served.figures.opened(&served);
        Ok(served)
    }

    fn take_up_sessions(&self, now_ms: u64) -> Result<()> {
        let storage = self.repository.storage();
        let entries = storage
            .list(layout::SESSIONS)
            .map_err(RepositoryError::io("listing", layout::SESSIONS))?;
        if entries.is_empty() {
            return Ok(());
        }
        let (snapshots, _) = self.repository.snapshots().read_all()?;
        let published: HashSet<SessionId> = snapshots
            .iter()
            .map(|stored| stored.snapshot.session)
            .collect();
        for entry in entries {
            let Ok(id) = entry.name.parse::<SessionId>() else {
                continue;
            };
            let path = layout::session(id);
            let bytes = storage
                .read(&path, LEDGER_LEN_MAX)
                .map_err(RepositoryError::io("reading", &path))?;
            if published.contains(&id) {
                // The server ended between the snapshot's publication and this file's removal.
                let _ = storage.remove(&path);
                continue;
            }
            // A local backup's session leaves its name alone, a torn file nothing: neither can be gone on
            // with.
            let Ok(ledger) = Ledger::decode(&bytes, now_ms) else {
                continue;
            };
            let store = SessionStore::take_up(&self.repository, id, WRITE_LEN);
            let session = KeptSession::new(ledger, store, self.policy, self.figures.clone());
            if let Err(failure) = session.recheck() {
                tracing::warn!(session = %id, "a session cannot be taken up: {}", failure.text);
                continue;
            }
            self.sessions.lock().insert(id, Arc::new(session));
        }
        Ok(())
    }

    /// What is counted of it.
    pub fn figures(&self) -> &Arc<RepositoryFigures> {
        &self.figures
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<LocalRepository> {
        &self.repository
    }

    /// The keys, unless the repository is encrypted: then the server has none.
    pub fn keys(&self) -> Option<&Keys> {
        self.repository.keys().ok().map(|keys| &**keys)
    }

    /// Where fetched records lie until they are sent.
    pub fn fetch_room(&self) -> &FetchRoom {
        &self.fetch_room
    }

    /// How sessions ended that published a snapshot.
    pub fn published(&self) -> &PublishedSessions {
        &self.published
    }

    /// Begins a session for `peer`, or goes on with one.
    pub fn begin(&self, request: &Begin, peer: &str) -> std::result::Result<Began, Failure> {
        if let Some(id) = request.resume {
            return self.resume(id, request);
        }
        self.check_room(peer)?;
        let begin = || -> Result<KeptSession> {
            let id = SessionId::from_bytes(self.repository.entropy().array()?);
            let ledger = Ledger::begin(id, request);
            let store = SessionStore::begin(&self.repository, id, WRITE_LEN, &ledger.encode())?;
            Ok(KeptSession::new(
                ledger,
                store,
                self.policy,
                self.figures.clone(),
            ))
        };
        let session = Arc::new(begin().map_err(|error| failure_of(&error))?);
        session.set_peer(peer);
        self.sessions.lock().insert(session.id(), session.clone());
        self.figures.session(SessionEvent::Begun, 1);
        Ok(Began::Open(session, Epoch(1)))
    }

    /// Interrupted sessions count until their leases lapse.
    fn check_room(&self, peer: &str) -> std::result::Result<(), Failure> {
        let sessions = self.sessions.lock();
        let of_peer = sessions.values().filter(|session| session.is_of(peer));
        let text = if sessions.len() >= SESSIONS_MAX {
            format!("{SESSIONS_MAX} sessions are open already: try again later")
        } else if of_peer.count() >= OF_IDENTITY_MAX {
            format!(
                "{peer} has {OF_IDENTITY_MAX} sessions, which is the most that one identity may have: end or resume \
                 some, or wait until their leases lapse"
            )
        } else {
            return Ok(());
        };
        Err(Failure::new(FailureCode::Busy, text))
    }

    /// Goes on with a session, or says what it has published: it may be about to, with nobody there any more
    /// to hear of it.
    fn resume(&self, id: SessionId, request: &Begin) -> std::result::Result<Began, Failure> {
        let resumed = self.session(id).and_then(|session| {
            let epoch = session.resume(request);
            if epoch.is_err() {
                session.wait_for_end();
            }
            Ok((session, epoch?))
        });
        match resumed {
            Ok((session, epoch)) => {
                self.figures.session(SessionEvent::Resumed, 1);
                Ok(Began::Open(session, epoch))
            }
            Err(failure) if failure.code == FailureCode::NoSuchSession => {
                let snapshots = self.repository.snapshots();
                let published = self.published.find(snapshots, id, &request.vm);
                match published.map_err(|error| failure_of(&error))? {
                    Some(published) => Ok(Began::Published(published)),
                    None => Err(failure),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    /// A session.
    pub fn session(&self, id: SessionId) -> std::result::Result<Arc<KeptSession>, Failure> {
        self.sessions.lock().get(&id).cloned().ok_or_else(|| {
            Failure::new(
                FailureCode::NoSuchSession,
                format!("there is no session {id}: it ended, or its lease lapsed"),
            )
        })
    }

    /// Forgets a session that ended.
    pub fn remove(&self, id: SessionId) {
        self.sessions.lock().remove(&id);
    }

    /// The client of `epoch` is gone: the session stays for its lease, unless it is over, or failed. What a failed
    /// one wrote must not keep a full disk full: without it, a collection gives the room back. What is durable
    /// of it is found by the next session as long as no collection runs.
    pub fn leave(&self, session: &KeptSession, epoch: Epoch, now_ms: u64) {
        if !session.is_over() {
            session.detach(epoch, now_ms);
        }
        if session.is_over() {
            self.remove(session.id());
        } else if session.has_failed() && session.check(epoch).is_ok() {
            self.give_up(session);
        }
    }

    fn give_up(&self, session: &KeptSession) {
        let id = session.id();
        tracing::warn!(session = %id, reason = "it can write no more", "a session is given up");
        self.figures.session(SessionEvent::Abandoned, 1);
        self.remove(id);
        session.discard();
    }

    /// Makes durable what has waited long enough, and ends sessions whose lease has lapsed.
    pub fn tick(&self, now_ms: u64, lease_ms: u64) {
        let sessions: Vec<_> = self.sessions.lock().values().cloned().collect();
        for session in sessions {
            if session.lapse(now_ms, lease_ms) {
                tracing::info!(session = %session.id(), "a session's lease lapsed");
                self.figures.session(SessionEvent::Lapsed, 1);
                self.remove(session.id());
                session.discard();
            } else if let Err(failure) = session.tick() {
                let (id, text) = (session.id(), failure.text);
                tracing::warn!(session = %id, text, "what was pushed is not durable");
                // Otherwise its client is told, and leaves.
                if session.has_failed() && !session.is_attached() {
                    self.give_up(&session);
                }
            }
        }
    }

    /// The newest whole snapshot of the session's VM that has one of its disks.
    pub fn reference_for(&self, session: &KeptSession) -> Result<Option<StoredSnapshot>> {
        let (vm, labels) = (session.vm(), session.labels());
        let (snapshots, _) = self.repository.snapshots().read_all()?;
        Ok(snapshots.into_iter().rev().find(|stored| {
            stored.snapshot.vm == vm
                && !stored.incomplete
                && labels
                    .iter()
                    .any(|label| stored.snapshot.disk(label).is_some())
        }))
    }

    /// For an administrator.
    pub fn session_statuses(&self) -> Vec<SessionStatus> {
        let sessions = self.sessions.lock();
        let statuses = sessions
            .values()
            .map(|session| session.status(self.name.as_str()));
        let mut statuses: Vec<_> = statuses.collect();
        statuses.sort_by(|a, b| a.session.cmp(&b.session));
        statuses
    }

    /// Closes cleanly; sessions can be gone on with when a server opens it again.
    pub fn close(&self) -> Result<()> {
        self.sessions.lock().clear();
        self.repository.close()
    }
}
