//! Lets connections in, keeps the repositories that they want open, and winds all of it up in order.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::Connection;
use tokio::runtime::Runtime;
use undercroft_format::config::Config;
use undercroft_format::wire::failure::{Failure, FailureCode};

use super::bounds::{Bounds, ServerLimits};
use super::connection;
use super::conversations::{Busy, CONVERSATIONS_MAX, Conversations};
use super::figures::ServerFigures;
use super::kept_session::CheckpointPolicy;
use super::served::Served;
use super::take_up::take_up;
use super::watched::Watched;
use crate::clock::Stopwatch;
use crate::io::{Engine, LocalStorage};
use crate::net::address::RepositoryName;
use crate::net::convert::failure_of;
use crate::net::door::{Door, DoorError, DoorOptions, Handler, Limits};
use crate::net::status::{ConnectionStatus, ServerStatus, SessionStatus};
use crate::net::trust::floor::ServerTime;
use crate::net::trust::tls::REPOSITORY;
use crate::net::trust::{Authority, PeerIdentity};
use crate::observe::Observed;
use crate::progress::Progress;
use crate::repository::error::RepositoryError;
use crate::repository::open::{Access, OpenNote, OpenOptions, publish_config};

/// Threads that drive sockets and connections. The work is done elsewhere.
const NET_THREADS: usize = 2;
/// Threads for what is not a conversation: answers on first streams, enrolments, looking after it all.
const OTHER_THREADS: usize = 64;
/// How often leases are looked at and what waits is made durable.
const TICK: Duration = Duration::from_secs(1);
/// The authority is looked after once in so many ticks.
const UPKEEP_TICKS: u64 = 60;
/// How long clients have to finish the segments that they have begun when the server shuts down.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long conversations have to end when the server shuts down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// The file of the secret for resets: no repository's name begins with a dot.
const RESET_KEY: &str = ".reset-key";

/// How a server runs.
pub struct ServerOptions {
    /// Where it listens; port 0 takes any.
    pub listen: SocketAddr,
    /// The directory whose directories are the repositories.
    pub store: PathBuf,
    /// Names the owner of the repositories to others.
    pub owner: String,
    /// The program and its version.
    pub program: String,
    /// Drives the disks.
    pub engine: Arc<dyn Engine>,
    /// Threads for long CPU work.
    pub threads: usize,
    /// How long a session outlives its connections.
    pub lease: Duration,
    /// When what was pushed is made durable.
    pub checkpoint: CheckpointPolicy,
    /// Whom the door keeps out.
    pub door: Limits,
    /// What it puts up with from those inside.
    pub limits: ServerLimits,
    /// Is told of what happens when a repository is opened.
    pub note: Box<dyn Fn(&RepositoryName, &OpenNote) + Send + Sync>,
}

/// A server could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Threads cannot be started.
    #[error("starting threads")]
    Threads(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It cannot listen.
    #[error(transparent)]
    Door(#[from] DoorError),
}

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    authority: Arc<Authority>,
    door: Door,
    runtime: Runtime,
}

impl Server {
    /// Starts to listen.
    pub fn start(options: ServerOptions, authority: Arc<Authority>) -> Result<Self, ServerError> {
        let threads = |error: Box<dyn std::error::Error + Send + Sync>| ServerError::Threads(error);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NET_THREADS)
            .max_blocking_threads(CONVERSATIONS_MAX + OTHER_THREADS)
            .thread_name("undercroft-net")
            .enable_all()
            .build()
            .map_err(|error| threads(error.into()))?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .thread_name(|number| format!("undercroft-cpu-{number}"))
            .build()
            .map_err(|error| threads(error.into()))?;
        let door = DoorOptions {
            listen: options.listen,
            protocols: REPOSITORY,
            reset_key: options.store.join(RESET_KEY),
            limits: options.door,
        };
        let shared = Arc::new(Shared::new(options, pool, authority.time().clone()));
        let peers = Arc::new(Peers {
            shared: shared.clone(),
            authority: authority.clone(),
        });
        let door = Door::open(door, authority.clone(), peers, runtime.handle())?;
        runtime.spawn(tick(shared.clone(), authority.clone()));
        let waking = shared.clone();
        runtime.spawn_blocking(move || take_up(&waking, &waking.options.store));
        Ok(Self {
            shared,
            authority,
            door,
            runtime,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.door.address()
    }

    /// The server as those see it who watch it.
    pub fn watched(&self) -> Arc<dyn Observed> {
        let (shared, authority) = (self.shared.clone(), self.authority.clone());
        Arc::new(Watched::new(shared, authority, self.door.figures().clone()))
    }

    /// Begins nothing new, lets clients finish what they have begun, makes durable what was pushed, and closes
    /// the repositories. Sessions can be
    /// gone on with once a server is back.
    pub fn drain(self) -> Vec<RepositoryError> {
        let shared = &self.shared;
        shared.draining.store(true, Ordering::SeqCst);
        shared.stop_long_work();
        // Their conversations tell them.
        shared.wait_for_clients(FINISH_TIMEOUT);
        self.door.close();
        shared.conversations.wait_for_all(DRAIN_TIMEOUT);
        let served: Vec<_> = shared.served.lock().drain().collect();
        let failures = served.iter().filter_map(|(_, served)| served.close().err());
        let failures = failures.collect();
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        failures
    }
}

/// What the door does with peers that it lets in.
struct Peers {
    shared: Arc<Shared>,
    authority: Arc<Authority>,
}

impl Handler for Peers {
    async fn serve(self: Arc<Self>, connection: Connection, peer: PeerIdentity) {
        connection::serve(
            self.shared.clone(),
            connection,
            self.authority.clone(),
            peer,
        )
        .await;
    }
}

async fn tick(shared: Arc<Shared>, authority: Arc<Authority>) {
    let mut interval = tokio::time::interval(TICK);
    for number in 0_u64.. {
        interval.tick().await;
        if shared.is_draining() {
            return;
        }
        shared.figures.beat(shared.now_ms());
        let (shared, authority) = (shared.clone(), authority.clone());
        let ticked = tokio::task::spawn_blocking(move || {
            shared.tick();
            if number.is_multiple_of(UPKEEP_TICKS)
                && let Err(error) = authority.upkeep()
            {
                tracing::warn!(%error, "looking after the authority failed");
            }
        });
        // What it panics with is on standard error; the server goes on.
        let _ = ticked.await;
    }
}

/// What all connections share.
pub struct Shared {
    options: ServerOptions,
    time: Arc<ServerTime>,
    threads: rayon::ThreadPool,
    clock: Stopwatch,
    served: Mutex<HashMap<RepositoryName, Arc<Served>>>,
    connections: Mutex<BTreeMap<u64, ConnectionStatus>>,
    next_connection: AtomicU64,
    draining: AtomicBool,
    /// Limits on those who are inside.
    pub bounds: Bounds,
    conversations: Arc<Conversations>,
    long_work: Mutex<Vec<Weak<Progress>>>,
    figures: ServerFigures,
}

impl Shared {
    pub(super) fn new(
        options: ServerOptions,
        threads: rayon::ThreadPool,
        time: Arc<ServerTime>,
    ) -> Self {
        Self {
            bounds: Bounds::new(&options.limits),
            options,
            time,
            threads,
            clock: Stopwatch::start(),
            served: Mutex::default(),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            conversations: Arc::default(),
            long_work: Mutex::default(),
            figures: ServerFigures::default(),
        }
    }

    /// Milliseconds since the server started.
    pub fn now_ms(&self) -> u64 {
        self.clock.elapsed().as_millis() as u64
    }

    /// Milliseconds that a session outlives its connections.
    pub fn lease_ms(&self) -> u64 {
        self.options.lease.as_millis() as u64
    }

    /// The program and its version.
    pub fn program(&self) -> &str {
        &self.options.program
    }

    /// What it counts.
    pub fn figures(&self) -> &ServerFigures {
        &self.figures
    }

    /// The directory whose directories are the repositories.
    pub fn store(&self) -> &Path {
        &self.options.store
    }

    /// For long CPU work.
    pub fn threads(&self) -> &rayon::ThreadPool {
        &self.threads
    }

    /// True once the server shuts down.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Notes a connection and gives it a number.
    pub fn connected(&self, status: ConnectionStatus) -> u64 {
        let number = self.next_connection.fetch_add(1, Ordering::Relaxed);
        self.connections.lock().insert(number, status);
        number
    }

    /// Notes which repository a connection is for.
    pub fn opened(&self, number: u64, repository: &str) {
        if let Some(status) = self.connections.lock().get_mut(&number) {
            status.repository = Some(repository.to_owned());
        }
    }

    /// Notes the end of a connection.
    pub fn disconnected(&self, number: u64) {
        self.connections.lock().remove(&number);
    }

    /// Counts a conversation of `identity` until what is returned is dropped.
    ///
    /// # Errors
    /// If there are too many.
    pub fn conversing(&self, identity: &str) -> Result<Busy, Failure> {
        self.conversations.begin(identity)
    }

    /// Notes long work, which is stopped when the server shuts down.
    pub fn long_work(&self, progress: &Arc<Progress>) {
        let mut works = self.long_work.lock();
        works.retain(|work| work.strong_count() > 0);
        works.push(Arc::downgrade(progress));
        if self.is_draining() {
            progress.stop();
        }
    }

    /// Waits until no client holds a session.
    fn wait_for_clients(&self, at_most: Duration) {
        let clock = Stopwatch::start();
        let is_held = || self.sessions().iter().any(|session| session.is_attached);
        while clock.elapsed() < at_most && is_held() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop_long_work(&self) {
        for work in self.long_work.lock().iter().filter_map(Weak::upgrade) {
            work.stop();
        }
    }

    /// A repository's name, if it is one.
    pub fn repository_name(&self, name: &str) -> Result<RepositoryName, Failure> {
        name.parse()
            .map_err(|error: crate::net::address::AddressError| {
                Failure::new(FailureCode::NoSuchRepository, error.to_string())
            })
    }

    /// A repository, opened if it is not open yet.
    pub fn open(&self, name: &RepositoryName) -> Result<Arc<Served>, Failure> {
        // Opening may take long; others that want a repository opened wait, conversations do not.
        let mut served = self.served.lock();
        if self.is_draining() {
            return Err(Failure::new(
                FailureCode::Draining,
                "the server is shutting down: try again when it is back",
            ));
        }
        if let Some(served) = served.get(name) {
            return Ok(served.clone());
        }
        let root = self.options.store.join(name.as_str());
        let absent = || {
            let text = format!("the server has no repository {name}");
            Failure::new(FailureCode::NoSuchRepository, text)
        };
        // Names that somebody makes up leave no trace, not even in figures.
        if !root.is_dir() {
            return Err(absent());
        }
        let options = OpenOptions {
            unlock: None,
            access: Access::Own(self.options.owner.clone()),
            engine: self.options.engine.clone(),
        };
        let opened = Served::open(
            name.clone(),
            &root,
            &options,
            self.options.checkpoint,
            self.now_ms(),
            self.time.clone(),
            self.figures.repositories.of(name.as_str()),
        );
        let (opened, notes) = opened.map_err(|error| match error {
            RepositoryError::NotARepository { .. } => absent(),
            error => failure_of(&error),
        })?;
        notes
            .iter()
            .for_each(|note| (self.options.note)(name, note));
        served.insert(name.clone(), opened.clone());
        Ok(opened)
    }

    /// Makes a repository whose config a client made.
    pub fn create(&self, name: &RepositoryName, config: &[u8]) -> Result<(), Failure> {
        let config = Config::decode(config)
            .map_err(|error| Failure::new(FailureCode::Protocol, error.to_string()))?;
        let root = self.options.store.join(name.as_str());
        let create = || {
            std::fs::create_dir_all(&root)
                .map_err(RepositoryError::io("creating", name.as_str()))?;
            let storage = LocalStorage::new(root.clone());
            publish_config(&storage, &config, &format!("the server's {name}"))
        };
        create().map_err(|error| failure_of(&error))
    }

    /// For an administrator.
    pub fn status(&self) -> ServerStatus {
        let served = self.served.lock();
        let mut repositories: Vec<String> = served.keys().map(ToString::to_string).collect();
        repositories.sort();
        ServerStatus {
            program: self.program().to_owned(),
            uptime_ms: self.now_ms(),
            connections: self.connections.lock().values().cloned().collect(),
            repositories,
            sessions: served
                .values()
                .map(|of| of.session_statuses().len() as u64)
                .sum(),
            is_draining: self.is_draining(),
            limits: self.bounds.status(),
        }
    }

    /// For an administrator.
    pub fn sessions(&self) -> Vec<SessionStatus> {
        let served: Vec<_> = self.served.lock().values().cloned().collect();
        let mut all: Vec<_> = served.iter().flat_map(|of| of.session_statuses()).collect();
        all.sort_by(|a, b| (&a.repository, &a.session).cmp(&(&b.repository, &b.session)));
        all
    }

    fn tick(&self) {
        let served: Vec<_> = self.served.lock().values().cloned().collect();
        for served in served {
            served.tick(self.now_ms(), self.lease_ms());
        }
    }
}
