//! Both sides together: an authority in a directory, clients, and TLS between them in memory.

mod clock;
mod files;
mod handshake;
pub mod support;
mod tokens;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::repository::entropy::{Entropy, SeededEntropy};
use support::scope;
use wire::exchange;

/// An authority, and a place for clients.
struct World {
    dir: TempDir,
    clock: Arc<SetClock>,
    entropy: Arc<dyn Entropy>,
    authority: Arc<Authority>,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl World {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SetClock::new(UnixMs::from_seconds(1_764_000_000)));
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(seed));
        let authority =
            Authority::open_or_create(&dir.path().join(DIRECTORY), clock.clone(), entropy.clone());
        Self {
            dir,
            clock,
            entropy,
            authority: Arc::new(authority.unwrap()),
        }
    }

    fn authority_dir(&self) -> std::path::PathBuf {
        self.dir.path().join(DIRECTORY)
    }

    /// Opens the authority a second time, as another process or after a restart.
    fn reopen(&self) -> Result<Authority, TrustError> {
        self.open_at(&self.authority_dir())
    }

    fn open_at(&self, dir: &Path) -> Result<Authority, TrustError> {
        Authority::open(dir, self.clock.clone(), self.entropy.clone())
    }

    fn clock(&self) -> Arc<dyn WallClock> {
        self.clock.clone()
    }

    fn token(&self, role: Role) -> Token {
        self.token_for(role, Scope::everything(), None)
    }

    fn token_for(&self, role: Role, scope: Scope, name: Option<&str>) -> Token {
        let options = TokenOptions {
            role,
            scope,
            name: name.map(|name| name.parse().unwrap()),
            lifetime: HOUR,
        };
        self.authority.issue_token(&options).unwrap().0
    }

    fn store(&self, name: &str) -> ClientStore {
        ClientStore::of_server(&self.dir.path().join(name), &"backup".parse().unwrap())
    }

    /// Enrols over TLS.
    fn enrol(&self, token: &Token, name: &str) -> Result<Enrolled, EnrolError> {
        self.enrol_as(token, options(token.role, name))
    }

    fn enrol_as(&self, token: &Token, options: EnrolOptions) -> Result<Enrolled, EnrolError> {
        let store = self.store(options.name.as_str());
        let entropy = &*self.entropy;
        enrol(
            &store,
            token,
            options,
            &self.clock(),
            entropy,
            |config, request| exchange(&self.authority, config, request).map_err(NoAnswer::lost),
        )
    }

    /// Enrols with a token of its own.
    fn enrolled(&self, role: Role, name: &str) -> Enrolled {
        self.enrol(&self.token(role), name).unwrap()
    }

    fn renew(&self, name: &str) -> Result<Enrolled, EnrolError> {
        let store = self.store(name);
        let present = store.load()?;
        let renewal = Renewal::begin(&store, &present, &*self.entropy)?;
        let config = present.client_config(&self.clock())?;
        let answer = exchange(&self.authority, config, renewal.request())
            .map_err(|error| EnrolError::Exchange(error.into()))?;
        renewal.finish(&answer)
    }

    fn live(&self) -> usize {
        let now = self.authority.time().now();
        let identities = self.authority.identities().unwrap();
        identities.iter().filter(|entry| entry.is_live(now)).count()
    }
}

fn options(role: Role, name: &str) -> EnrolOptions {
    EnrolOptions {
        role,
        name: name.parse().unwrap(),
        scope: None,
    }
}

/// Asks for a certificate by `token` with the key that is kept in `store`, and loses the answer.
fn ask(world: &World, authority: &Authority, store: &ClientStore, token: &Token) -> Answer {
    let options = options(token.role, "proxy-1");
    let enrolment = Enrolment::begin(store, token, options, &*world.entropy).unwrap();
    authority.enrol(&EnrolRequest::decode(enrolment.request()).unwrap())
}

fn refusal<T: std::fmt::Debug>(result: Result<T, EnrolError>) -> Refusal {
    match result {
        Err(EnrolError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

/// Copies a directory's files, as a crash at this moment would leave them.
fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
