//! Reading objects by id: maps, tree nodes, single chunks.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_format::id::{ChunkId, NodeId, ObjectId, SegmentMapId, node_id, segment_map_id};
use undercroft_format::maptree::{NodeStore, Tree, visit};
use undercroft_format::pack::{Encoding, ObjectKind};
use undercroft_format::segment::SegmentMap;
use undercroft_format::units::SegmentNumber;

use super::error::{RecordProblem, RepositoryError, Result};
use super::keys::Keys;
use super::lookup::Located;
use super::record::RecordDecoder;
use super::records::Records;

/// Decoded map tree nodes kept: 256 of at most 8 KiB.
const NODES_MAX: usize = 256;

/// Reads objects of an open repository.
pub struct Objects {
    records: Arc<dyn Records>,
    nodes: Mutex<HashMap<NodeId, Vec<u8>>>,
}

impl Objects {
    /// The objects whose records `records` gives.
    pub fn new(records: Arc<dyn Records>) -> Self {
        Self {
            records,
            nodes: Mutex::default(),
        }
    }

    /// The records behind.
    pub fn records(&self) -> &Arc<dyn Records> {
        &self.records
    }

    /// The segment map `id`.
    pub fn segment_map(&self, id: SegmentMapId) -> Result<SegmentMap> {
        let kind = ObjectKind::SegmentMap;
        let (located, bytes) = self.plain(id.into(), kind)?;
        let problem = if segment_map_id(&bytes) != id {
            RecordProblem::WrongId
        } else {
            match SegmentMap::decode(&bytes) {
                Ok(map) => return Ok(map),
                Err(error) => error.into(),
            }
        };
        Err(corrupt(located, problem))
    }

    /// The encoding of map tree node `id`, checked against the id.
    pub fn node(&self, id: NodeId) -> Result<Vec<u8>> {
        if let Some(bytes) = self.nodes.lock().get(&id) {
            return Ok(bytes.clone());
        }
        let (located, bytes) = self.plain(id.into(), ObjectKind::Node)?;
        if node_id(&bytes) != id {
            return Err(corrupt(located, RecordProblem::WrongId));
        }
        let mut nodes = self.nodes.lock();
        if nodes.len() >= NODES_MAX {
            nodes.clear();
        }
        nodes.insert(id, bytes.clone());
        Ok(bytes)
    }

    /// The plaintext of chunk `id`.
    pub fn chunk(&self, id: ChunkId, keys: &Keys) -> Result<Vec<u8>> {
        let (located, payload) = self.records.payload(id.into(), ObjectKind::Chunk)?;
        let mut plain = vec![0; located.info.plain_len as usize];
        RecordDecoder::default()
            .decode(&located.info, &payload, keys, &mut plain)
            .map_err(|problem| corrupt(located, problem))?;
        Ok(plain)
    }

    /// The payload of an object that is stored in clear.
    fn plain(&self, id: ObjectId, kind: ObjectKind) -> Result<(Located, Vec<u8>)> {
        let (located, payload) = self.records.payload(id, kind)?;
        if located.info.encoding != Encoding::RAW {
            return Err(corrupt(located, RecordProblem::OtherObject));
        }
        Ok((located, payload))
    }

    /// Visits the segments of `tree` that are not zero, in order.
    pub fn visit_tree(
        &self,
        tree: Tree,
        range: std::ops::Range<u64>,
        visitor: &mut dyn FnMut(SegmentNumber, SegmentMapId) -> Result<()>,
    ) -> Result<()> {
        visit(&mut ReadNodes(self), tree, range, visitor)
    }
}

/// The error for a record whose bytes are wrong.
pub fn corrupt(located: Located, problem: RecordProblem) -> RepositoryError {
    RepositoryError::CorruptObject {
        kind: located.info.kind,
        id: located.info.id,
        pack: located.pack,
        position: located.position,
        problem,
    }
}

/// A map tree's nodes, to be read only.
pub struct ReadNodes<'a>(pub &'a Objects);

impl NodeStore for ReadNodes<'_> {
    type Error = RepositoryError;

    fn load(&mut self, id: NodeId) -> Result<Vec<u8>> {
        self.0.node(id)
    }

    fn save(&mut self, _: NodeId, _: Vec<u8>) -> Result<()> {
        unreachable!("walking a tree makes no nodes")
    }
}

impl From<undercroft_format::codec::DecodeError> for RepositoryError {
    fn from(source: undercroft_format::codec::DecodeError) -> Self {
        Self::Damaged {
            path: "a map tree node".into(),
            source,
        }
    }
}
