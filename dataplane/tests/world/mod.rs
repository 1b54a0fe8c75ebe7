//! A real server on loopback, and clients that are enrolled at it.
#![allow(dead_code, reason = "each story uses a part of it")]

use std::env::temp_dir;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use undercroft_dataplane::io::{EngineRequest, choose};
use undercroft_dataplane::net::address::{RepositoryName, ServerAddress};
use undercroft_dataplane::net::client::{Link, LinkLimits, LinkOptions};
use undercroft_dataplane::net::door::Limits;
use undercroft_dataplane::net::server::{CheckpointPolicy, Server, ServerLimits, ServerOptions};
use undercroft_dataplane::net::trust::{
    Authority, ClientStore, EnrolOptions, EnrolRequest, Enrolled, NoAnswer, Role, SERVER_NAME,
    Scope, SystemClock, TokenOptions, WallClock, enrol,
};
use undercroft_dataplane::repository::entropy::SystemEntropy;
use undercroft_dataplane::repository::error::RepositoryError;
use undercroft_dataplane::repository::open::{CreateOptions, create_local};
use undercroft_format::config::Config;

/// A server on loopback with the repository `main`.
pub struct World {
    /// Its store.
    pub dir: tempfile::TempDir,
    /// Whom it lets in.
    pub authority: Arc<Authority>,
    /// It, while it runs.
    pub server: Option<Server>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl World {
    /// Starts a server whose sessions outlive their connections by `lease`.
    pub fn start(lease: Duration) -> Self {
        Self::start_with(lease, |_| {})
    }

    /// Starts one that is set up as `adjust` says.
    pub fn start_with(lease: Duration, adjust: impl FnOnce(&mut ServerOptions)) -> Self {
        // Only tests have one of their own.
        let scratch = option_env!("CARGO_TARGET_TMPDIR").map_or_else(temp_dir, PathBuf::from);
        Self::start_in(&scratch, &CreateOptions::default(), lease, adjust)
    }

    /// Starts one whose store is made within `scratch`, and its repository as `create` says.
    pub fn start_in(
        scratch: &Path,
        create: &CreateOptions,
        lease: Duration,
        adjust: impl FnOnce(&mut ServerOptions),
    ) -> Self {
        let dir = tempfile::tempdir_in(scratch).expect("a directory");
        create_local(&dir.path().join("main"), create).expect("a repository");
        let authority = Authority::open_or_create(
            &dir.path().join("trust"),
            Arc::new(SystemClock),
            Arc::new(SystemEntropy),
        );
        let authority = Arc::new(authority.expect("an authority"));
        let mut world = Self {
            address: ([127, 0, 0, 1], 0).into(),
            dir,
            authority,
            server: None,
        };
        world.serve(lease, adjust);
        world
    }

    /// Starts a server on the store, in place of one that has ended.
    pub fn serve(&mut self, lease: Duration, adjust: impl FnOnce(&mut ServerOptions)) {
        let mut options = ServerOptions {
            listen: self.address,
            store: self.dir.path().to_owned(),
            owner: "a test".into(),
            program: "test".into(),
            engine: choose(EngineRequest::Posix).expect("it works everywhere"),
            threads: 1,
            lease,
            checkpoint: CheckpointPolicy {
                interval_ms: 0,
                bytes: 1,
            },
            door: Limits::default(),
            limits: ServerLimits::default(),
            note: Box::new(|_, _| {}),
        };
        adjust(&mut options);
        let server = Server::start(options, self.authority.clone()).expect("it starts");
        self.address = server.address().expect("it listens");
        self.server = Some(server);
    }

    /// An administrator with a connection, and the repository opened.
    pub fn link(&self) -> (Link, Config) {
        let link = self.connect(&self.enrol()).expect("it connects");
        let name: RepositoryName = "main".parse().expect("a name");
        let config = link.open(&name).expect("it opens");
        (link, config)
    }

    /// Somebody who is enrolled as an administrator.
    pub fn enrol(&self) -> Enrolled {
        let clock: Arc<dyn WallClock> = Arc::new(SystemClock);
        let address: ServerAddress = self.address.to_string().parse().expect("an address");
        let (token, _) = self
            .authority
            .issue_token(&TokenOptions {
                role: Role::Admin,
                scope: Scope::everything(),
                name: None,
                lifetime: Duration::from_secs(60),
            })
            .expect("a token");
        let mut name = [0; 8];
        getrandom::fill(&mut name).expect("random numbers");
        let name = format!("client-{:016x}", u64::from_le_bytes(name));
        let options = EnrolOptions {
            role: Role::Admin,
            name: name.parse().expect("a name"),
            scope: None,
        };
        let store = ClientStore::of_server(&self.dir.path().join(name), &address);
        let answer = |request: &[u8]| {
            let request = EnrolRequest::decode(request)?;
            Ok::<_, undercroft_format::codec::DecodeError>(self.authority.enrol(&request).encode())
        };
        let enrolled = enrol(
            &store,
            &token,
            options,
            &clock,
            &SystemEntropy,
            |_, request| answer(request).map_err(NoAnswer::lost),
        );
        enrolled.expect("enrolled")
    }

    /// A connection of somebody who is enrolled.
    pub fn connect(&self, enrolled: &Enrolled) -> Result<Link, RepositoryError> {
        self.connect_by(enrolled, 1)
    }

    /// So many connections of somebody who is enrolled.
    pub fn connect_by(
        &self,
        enrolled: &Enrolled,
        connections: usize,
    ) -> Result<Link, RepositoryError> {
        let clock: Arc<dyn WallClock> = Arc::new(SystemClock);
        Link::connect(LinkOptions {
            address: self.address.to_string().parse().expect("an address"),
            tls: enrolled.client_config(&clock).expect("TLS"),
            server_name: SERVER_NAME.to_owned(),
            program: "test".into(),
            connections,
            limits: LinkLimits::default(),
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.drain();
        }
    }
}
