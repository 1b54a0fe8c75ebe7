//! Storing the nodes of a map tree that a session makes: those that the repository has are not stored again.

use undercroft_format::id::{NodeId, ObjectId};
use undercroft_format::maptree::NodeStore;
use undercroft_format::pack::ObjectKind;

use super::worker::DiskCounters;
use crate::repository::error::{RepositoryError, Result};
use crate::repository::objects::ReadNodes;
use crate::repository::record::RecordEncoder;
use crate::repository::session::Session;

/// Stores the new nodes of a map tree.
pub struct StoreNodes<'a> {
    /// Where nodes go.
    pub session: &'a dyn Session,
    /// What the disk costs.
    pub counters: &'a DiskCounters,
    /// Makes their records.
    pub encoder: RecordEncoder,
}

impl NodeStore for StoreNodes<'_> {
    type Error = RepositoryError;

    fn load(&mut self, id: NodeId) -> Result<Vec<u8>> {
        ReadNodes(self.session.objects()).load(id)
    }

    fn save(&mut self, id: NodeId, encoded: Vec<u8>) -> Result<()> {
        let object = ObjectId::from(id);
        if !self.session.probe(&[object])?[0] && self.session.claim(object) {
            let record = self
                .encoder
                .encode(object, ObjectKind::Node, &encoded, None);
            let stored = self.session.store(&record)?;
            self.counters.metadata_bytes.add(stored);
        }
        Ok(())
    }
}
