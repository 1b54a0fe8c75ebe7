//! How sessions ended that published a snapshot, for clients that did not hear it.
//!
//! That a session published, and what, the snapshot itself says: it names its session. So it is known after
//! a crash as well; what is remembered here in addition are the figures of the latest ones.

use std::collections::VecDeque;

use parking_lot::Mutex;
use undercroft_format::id::SessionId;
use undercroft_format::wire::session::{Ended, Published};

use crate::repository::error::Result;
use crate::repository::snapshots::Snapshots;

/// Sessions whose figures are remembered.
const REMEMBERED: usize = 1024;

/// The latest sessions that published.
#[derive(Debug, Default)]
pub struct PublishedSessions(Mutex<VecDeque<(SessionId, Ended)>>);

impl PublishedSessions {
    /// Remembers how a session ended.
    pub fn note(&self, session: SessionId, ended: Ended) {
        let mut known = self.0.lock();
        known.truncate(REMEMBERED - 1);
        known.push_front((session, ended));
    }

    /// What a session of `vm` published, if it did.
    pub fn find(
        &self,
        snapshots: &Snapshots,
        session: SessionId,
        vm: &str,
    ) -> Result<Option<Published>> {
        let Some(stored) = snapshots.published_by(session, vm)? else {
            return Ok(None);
        };
        let known = self.0.lock();
        let known = known.iter().find(|(id, _)| *id == session);
        let (packs, pack_bytes) =
            known.map_or((0, 0), |(_, ended)| (ended.packs, ended.pack_bytes));
        Ok(Some(Published {
            snapshot: stored.id,
            ended: Ended {
                packs,
                pack_bytes,
                locked_until: stored.locked_until,
            },
        }))
    }
}
