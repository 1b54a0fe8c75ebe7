//! Looking after a repository behind a server: the server does the work.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use undercroft_format::id::SnapshotId;
use undercroft_format::lock::LockEnd;
use undercroft_format::wire::frame::{Body, FrameType};
use undercroft_format::wire::message::{
    Forget, Lock, LockedUntil, PackBytes, Protect, Repair, Report, Stop,
};
use undercroft_format::wire::snapshots::HOLDS_MAX;
use undercroft_format::wire::upkeep;

use super::judge;
use super::link::parse;
use super::repository::RemoteRepository;
use crate::net::conversation::{StreamError, Waited, expect};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::gc::{CollectOptions, CollectReport};
use crate::repository::maintenance::Maintenance;
use crate::repository::repair::RepairReport;
use crate::repository::retention::UnixMs;
use crate::repository::stats::Stats;
use crate::repository::verify::{VerifyOptions, VerifyReport};

/// How long a wish to stop may go unnoticed.
pub(super) const LISTEN_EVERY: Duration = Duration::from_millis(100);

impl RemoteRepository {
    fn figures<Q: Body, R: DeserializeOwned>(&self, question: &Q) -> Result<R> {
        parse(&self.link().ask::<Q, Report>(question)?.json)
    }

    /// Has long work done, and passes on its progress and the wish to stop.
    fn long<Q: Body, R: DeserializeOwned>(&self, question: &Q, progress: &Progress) -> Result<R> {
        let mut stream = self.link().converse()?;
        stream.say(question)?;
        let mut told = upkeep::Progress::default();
        let mut is_stopped = false;
        loop {
            let frame = match stream.read_within(LISTEN_EVERY)? {
                Waited::For(frame) => frame.ok_or(StreamError::NoAnswer)?,
                Waited::InVain => {
                    if progress.is_stopping() && !is_stopped {
                        is_stopped = true;
                        stream.say(&Stop)?;
                    }
                    continue;
                }
            };
            match frame.0 {
                FrameType::Progress => advance(progress, &mut told, expect(&frame)?),
                _ => return parse(&expect::<Report>(&frame)?.json),
            }
        }
    }
}

/// Counters only grow: adds what is new.
pub(super) fn advance(progress: &Progress, told: &mut upkeep::Progress, now: upkeep::Progress) {
    for (counter, then, now) in [
        (&progress.total_bytes, told.total_bytes, now.total_bytes),
        (&progress.done_bytes, told.done_bytes, now.done_bytes),
        (&progress.read_bytes, told.read_bytes, now.read_bytes),
        (&progress.stored_bytes, told.stored_bytes, now.stored_bytes),
    ] {
        counter.add(now.saturating_sub(then));
    }
    *told = now;
}

fn options<O: serde::Serialize>(options: &O) -> Result<String> {
    serde_json::to_string(options).map_err(|error| RepositoryError::Connection(error.into()))
}

impl Maintenance for Arc<RemoteRepository> {
    fn repository(&self) -> &dyn Repository {
        &**self
    }

    fn pack_bytes(&self) -> Result<u64> {
        self.figures(&PackBytes)
    }

    fn forget(&self, ids: &[SnapshotId]) -> Result<()> {
        ids.chunks(HOLDS_MAX).try_for_each(|ids| {
            let snapshots = ids.to_vec();
            let forgotten = self.link().ask(&Forget { snapshots });
            forgotten.map(|upkeep::Done| ())
        })
    }

    fn protect(&self, id: SnapshotId, protected: bool) -> Result<()> {
        let protect = Protect {
            snapshot: id,
            is_protected: protected,
        };
        self.link().ask(&protect).map(|upkeep::Done| ())
    }

    fn lock(&self, id: SnapshotId, end: LockEnd) -> Result<UnixMs> {
        let lock = Lock { snapshot: id, end };
        let LockedUntil { until } = self.link().ask(&lock)?;
        Ok(until)
    }

    fn collect(&self, asked: &CollectOptions, progress: &Progress) -> Result<CollectReport> {
        let json = options(asked)?;
        self.long(&upkeep::Collect { json }, progress)
    }

    fn verify(
        &self,
        asked: &VerifyOptions,
        threads: &rayon::ThreadPool,
        progress: &Progress,
    ) -> Result<VerifyReport> {
        let verify = upkeep::Verify {
            json: options(asked)?,
        };
        match asked.deep && self.config().is_encrypted() {
            true => judge::long(self, &verify, self.keys()?, threads, progress),
            false => self.long(&verify, progress),
        }
    }

    fn repair(
        &self,
        deep: bool,
        threads: &rayon::ThreadPool,
        progress: &Progress,
    ) -> Result<RepairReport> {
        let repair = Repair { is_deep: deep };
        match deep && self.config().is_encrypted() {
            true => judge::long(self, &repair, self.keys()?, threads, progress),
            false => self.long(&repair, progress),
        }
    }

    fn stats(&self) -> Result<Stats> {
        self.figures(&upkeep::Stats)
    }
}
