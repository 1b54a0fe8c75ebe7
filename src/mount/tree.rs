//! The names of what a mount shows: `VM/TIME/DISK.raw`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use undercroft_dataplane::repository::snapshots::StoredSnapshot;
use undercroft_format::id::SnapshotId;

use crate::units::timestamp;

/// The link to a VM's newest snapshot.
pub const LATEST: &str = "latest";
/// What `show --json` says of a snapshot.
pub const SNAPSHOT_JSON: &str = "snapshot.json";

/// The snapshots that are shown, by VM and time.
#[derive(Default)]
pub struct Tree {
    vms: BTreeMap<String, Vm>,
    /// Names that were given out. A snapshot keeps its own, whichever come and go.
    named: HashMap<SnapshotId, String>,
    /// The last number of each second of a VM that has more than one snapshot.
    numbered: HashMap<(String, String), u32>,
}

/// The snapshots of a VM.
#[derive(Default)]
pub struct Vm {
    /// By the names of their directories, which sort by time.
    pub snapshots: BTreeMap<String, Arc<StoredSnapshot>>,
    latest: Option<(u64, String)>,
}

impl Vm {
    /// The directory of the newest snapshot, and when that was made.
    pub fn latest(&self) -> Option<&(u64, String)> {
        self.latest.as_ref()
    }
}

impl Tree {
    /// Shows `snapshots`, and no others. Oldest first.
    pub fn show(&mut self, snapshots: impl IntoIterator<Item = Arc<StoredSnapshot>>) {
        self.vms.clear();
        let mut unnamed = Vec::new();
        let mut there = HashSet::new();
        for stored in snapshots {
            there.insert(stored.id);
            match self.named.get(&stored.id) {
                Some(name) => Self::place(&mut self.vms, name.clone(), stored),
                None => unnamed.push(stored),
            }
        }
        self.named.retain(|id, _| there.contains(id));
        for stored in unnamed {
            let name = self.free_name(&stored);
            self.named.insert(stored.id, name.clone());
            Self::place(&mut self.vms, name, stored);
        }
    }

    /// The name of a snapshot's directory: its time in UTC, with a number if another of the VM has that already.
    fn free_name(&mut self, stored: &StoredSnapshot) -> String {
        let time = timestamp(stored.snapshot.created_ms);
        let name = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let vm = file_name(&stored.snapshot.vm);
        let known = self.vms.get(&vm);
        let is_free = |name: &str| known.is_none_or(|vm| !vm.snapshots.contains_key(name));
        if is_free(&name) {
            return name;
        }
        let number = self.numbered.entry((vm, name.clone())).or_insert(1);
        loop {
            *number += 1;
            let numbered = format!("{name}-{number:04}");
            if is_free(&numbered) {
                return numbered;
            }
        }
    }

    fn place(vms: &mut BTreeMap<String, Vm>, name: String, stored: Arc<StoredSnapshot>) {
        let vm = vms.entry(file_name(&stored.snapshot.vm)).or_default();
        let made = stored.snapshot.created_ms;
        if vm.latest.as_ref().is_none_or(|(latest, _)| made >= *latest) {
            vm.latest = Some((made, name.clone()));
        }
        vm.snapshots.insert(name, stored);
    }

    /// The VMs by the names of their directories.
    pub fn vms(&self) -> &BTreeMap<String, Vm> {
        &self.vms
    }
}

/// A name from a snapshot as that of a file: what would lead elsewhere or upset a terminal is written as `%XX`.
pub fn file_name(name: &str) -> String {
    if matches!(name, "." | "..") {
        return name.replace('.', "%2E");
    }
    let mut safe = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '/' | '%' => safe += &format!("%{:02X}", c as u32),
            c if c.is_ascii_control() => safe += &format!("%{:02X}", c as u32),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use undercroft_format::id::{RepositoryId, SessionId};
    use undercroft_format::snapshot::Snapshot;

    use super::*;

    fn stored(id: u8, vm: &str, created_ms: u64) -> Arc<StoredSnapshot> {
        Arc::new(StoredSnapshot {
            id: SnapshotId::from_bytes([id; 16]),
            snapshot: Snapshot {
                repository: RepositoryId::from_bytes([0; 16]),
                session: SessionId::from_bytes([id; 16]),
                created_ms,
                duration_ms: 0,
                vm: vm.to_owned(),
                tags: Vec::new(),
                parent: None,
                disks: Vec::new(),
                metadata: None,
            },
            protected: false,
            incomplete: false,
            locked_until: None,
        })
    }

    fn names(tree: &Tree, vm: &str) -> Vec<(String, u8)> {
        let snapshots = tree.vms()[vm].snapshots.iter();
        snapshots
            .map(|(name, stored)| (name.clone(), stored.id.as_bytes()[0]))
            .collect()
    }

    #[test]
    fn names_sort_by_time_and_stay() {
        let mut tree = Tree::default();
        let [a, b, c] = [
            stored(1, "web", 1_000),
            stored(2, "web", 1_500),
            stored(3, "web", 2_000),
        ];
        tree.show([a, b.clone(), c.clone()]);
        let (zero, one) = ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z");
        let second = format!("{zero}-0002");
        let expected = [
            (zero.to_owned(), 1),
            (second.clone(), 2),
            (one.to_owned(), 3),
        ];
        assert_eq!(names(&tree, "web"), expected);
        assert_eq!(tree.vms()["web"].latest().unwrap().1, one);
        tree.show([b.clone(), stored(4, "web", 1_700), c]);
        let expected = [(zero.to_owned(), 4), (second, 2), (one.to_owned(), 3)];
        assert_eq!(names(&tree, "web"), expected);
        tree.show([b]);
        assert_eq!(
            tree.vms()["web"].latest().unwrap().1,
            format!("{zero}-0002")
        );
    }

    #[test]
    fn no_name_leads_elsewhere() {
        assert_eq!(file_name("web01"), "web01");
        assert_eq!(file_name(".."), "%2E%2E");
        assert_eq!(file_name("a/../b\n%"), "a%2F..%2Fb%0A%25");
    }
}
