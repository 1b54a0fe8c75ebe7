//! Inodes: what a mount shows, under the numbers by which the kernel knows it.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::units::DiskRange;

/// The number of the root.
pub const ROOT: u64 = 1;

/// Something that is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// The mountpoint.
    Root,
    /// The directory of a VM, by its name.
    Vm(String),
    /// The link to a VM's newest snapshot.
    Latest(String),
    /// The directory of a snapshot.
    Snapshot(Shared),
    /// A file of a snapshot.
    File(Shared, Part),
}

/// What of a snapshot a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// What is said of it.
    Json,
    /// The VM's metadata.
    Metadata,
    /// A disk, by its place.
    Disk(usize),
    /// A partition of a disk, and where it lies on that.
    Partition(usize, DiskRange),
}

/// A snapshot, equal to itself however often it was read.
#[derive(Clone, Debug)]
pub struct Shared(pub Arc<StoredSnapshot>);

impl PartialEq for Shared {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Shared {}

impl Hash for Shared {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

/// Nodes by number. What was once numbered keeps its number: a number is less than a hundred bytes.
pub struct Nodes {
    state: Mutex<State>,
}

struct State {
    numbers: HashMap<Node, u64>,
    /// That of number n at n - 1.
    nodes: Vec<Node>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                numbers: HashMap::from([(Node::Root, ROOT)]),
                nodes: vec![Node::Root],
            }),
        }
    }
}

impl Nodes {
    /// The number of `node`.
    pub fn number(&self, node: &Node) -> u64 {
        let mut state = self.state.lock();
        if let Some(number) = state.numbers.get(node) {
            return *number;
        }
        state.nodes.push(node.clone());
        let number = state.nodes.len() as u64;
        state.numbers.insert(node.clone(), number);
        number
    }

    /// The node of a number that was given out.
    pub fn node(&self, number: u64) -> Option<Node> {
        let place = usize::try_from(number.checked_sub(1)?).ok()?;
        self.state.lock().nodes.get(place).cloned()
    }
}
