//! A server without sockets, threads or store: whoever carries frames brings it its conversations, and says
//! when time has passed. For simulations.

use std::sync::Arc;
use std::time::Duration;

use undercroft_format::trust::time::UnixMs;

use super::access::Caller;
use super::bounds::ServerLimits;
use super::connection::{Conversing, attend};
use super::kept_session::CheckpointPolicy;
use super::listener::{ServerOptions, Shared};
use super::served::Served;
use crate::net::address::RepositoryName;
use crate::net::conversation::{Conversation, FrameStream};
use crate::net::door::Limits;
use crate::net::status::SessionStatus;
use crate::net::trust::PeerIdentity;
use crate::net::trust::floor::ServerTime;
use crate::repository::error::Result;
use crate::repository::{LocalRepository, Repository};
use crate::wall_clock::WallClock;

/// Serves one repository to conversations that it is given.
pub struct UnpluggedServer {
    shared: Arc<Shared>,
    served: Arc<Served>,
    name: RepositoryName,
}

impl UnpluggedServer {
    /// Serves `repository`, which its caller owns, and takes up the sessions that are in it.
    pub fn new(
        name: RepositoryName,
        repository: Arc<LocalRepository>,
        lease: Duration,
        checkpoint: CheckpointPolicy,
        clock: Arc<dyn WallClock>,
    ) -> Result<Self> {
        let time = Arc::new(ServerTime::new(clock, UnixMs::ZERO));
        repository.snapshots().keep_time_by(time.clone());
        let options = ServerOptions {
            listen: ([127, 0, 0, 1], 0).into(),
            store: "/nonexistent".into(),
            owner: String::new(),
            program: String::new(),
            engine: repository.engine().clone(),
            threads: 1,
            lease,
            checkpoint,
            door: Limits::default(),
            limits: ServerLimits::default(),
            note: Box::new(|_, _| {}),
        };
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .expect("the system can start a thread");
        let shared = Arc::new(Shared::new(options, threads, time));
        let figures = shared.figures().repositories.of(name.as_str());
        let now_ms = shared.now_ms();
        Ok(Self {
            served: Served::of(name.clone(), repository, checkpoint, now_ms, figures)?,
            shared,
            name,
        })
    }

    /// Holds a conversation of `peer`, from its first frame to its end.
    pub fn converse(&self, peer: PeerIdentity, stream: Box<dyn FrameStream>) {
        let mut stream = Conversation::over(stream);
        let Ok(Some(first)) = stream.read() else {
            return;
        };
        let on = Conversing {
            shared: self.shared.clone(),
            served: self.served.clone(),
            caller: Arc::new(Caller {
                peer,
                repository: self.name.clone(),
            }),
            stream,
        };
        attend(on, &first);
    }

    /// What is due by the clock is done.
    pub fn tick(&self) {
        self.served
            .tick(self.shared.now_ms(), self.shared.lease_ms());
    }

    /// The open sessions.
    pub fn sessions(&self) -> Vec<SessionStatus> {
        self.served.session_statuses()
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<LocalRepository> {
        self.served.repository()
    }
}
