//! Storing the nodes of a map tree that a session makes: those that the repository has are not stored again.

use undercroft_format::id::{NodeId, ObjectId};
use undercroft_format::maptree::NodeStore;
use undercroft_format::pack::ObjectKind;

use super::worker::DiskCounters;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::objects::ReadNodes;
use crate::repository::record::RecordEncoder;
use crate::repository::session::Session;

/// Nodes that are asked for together, of at most 8 KiB each: the question may have far to go.
const NODES_MAX: usize = 256;

/// Stores the new nodes of a map tree.
pub struct StoreNodes<'a> {
    session: &'a dyn Session,
    counters: &'a DiskCounters,
    encoder: RecordEncoder,
    /// Not asked for yet.
    made: Vec<(NodeId, Vec<u8>)>,
}

impl<'a> StoreNodes<'a> {
    /// Stores in `session` and counts what that takes.
    pub fn new(session: &'a dyn Session, counters: &'a DiskCounters) -> Self {
        Self {
            session,
            counters,
            encoder: RecordEncoder::new(1),
            made: Vec::new(),
        }
    }

    /// Stores what was made.
    pub fn finish(mut self) -> Result<()> {
        self.store_made()
    }

    fn store_made(&mut self) -> Result<()> {
        let ids: Vec<ObjectId> = self.made.iter().map(|(id, _)| (*id).into()).collect();
        let known = self.session.probe(&ids)?;
        for ((id, encoded), known) in self.made.drain(..).zip(known) {
            if known || !self.session.claim(id.into()) {
                continue;
            }
            let record = self
                .encoder
                .encode(id.into(), ObjectKind::Node, &encoded, None);
            let stored = self.session.store(&record)?;
            self.counters.metadata_bytes.add(stored);
        }
        Ok(())
    }
}

impl NodeStore for StoreNodes<'_> {
    type Error = RepositoryError;

    fn load(&mut self, id: NodeId) -> Result<Vec<u8>> {
        ReadNodes(self.session.objects()).load(id)
    }

    fn save(&mut self, id: NodeId, encoded: Vec<u8>) -> Result<()> {
        self.made.push((id, encoded));
        if self.made.len() >= NODES_MAX {
            self.store_made()?;
        }
        Ok(())
    }
}
