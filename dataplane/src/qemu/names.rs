//! How what is put into QEMU is called, so that it can be found again and told from everything else.

use std::fmt;

/// What all names begin with.
pub const PREFIX: &str = "undercroft-";
/// What the names of bitmaps end with that are only read.
const READ_SUFFIX: &str = "-read";

/// Names one point in time of a guest, and the checkpoint that its bitmaps begin at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointId([u8; 16]);

impl PointId {
    /// Of random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// What the names of its nodes, jobs and exports begin with. Names of nodes have at most 31 bytes, so
    /// this is not all of the id.
    pub fn prefix(&self) -> String {
        format!("{PREFIX}{:.12}-", self.to_string())
    }

    /// The scratch image of a disk; the job and the export of that name belong to it.
    pub fn scratch(&self, disk: usize) -> String {
        format!("{}{disk}", self.prefix())
    }

    /// The file of a scratch image.
    pub fn file(&self, disk: usize) -> String {
        format!("{}{disk}f", self.prefix())
    }

    /// The filter that copies what is overwritten.
    pub fn filter(&self, disk: usize) -> String {
        format!("{}{disk}c", self.prefix())
    }

    /// The job that makes a scratch image.
    pub fn making(&self, disk: usize) -> String {
        format!("{}{disk}m", self.prefix())
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Tells the bitmaps of one VM in one repository from those that other backups of the same guest need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner([u8; 4]);

impl Owner {
    /// Of the VM named `vm` in the repository named by `repository`.
    pub fn new(repository: &[u8], vm: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(repository.len() as u64).to_le_bytes());
        hasher.update(repository);
        hasher.update(vm.as_bytes());
        let hash = hasher.finalize();
        Self(*hash.as_bytes().first_chunk().expect("it has 32"))
    }

    /// What the names of its bitmaps begin with.
    pub fn prefix(&self) -> String {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{PREFIX}{hex}-")
    }

    /// The bitmap that begins at a point.
    pub fn bitmap(&self, point: PointId) -> String {
        format!("{}{point}", self.prefix())
    }

    /// The copy of an older bitmap that is read at a point.
    pub fn copy(&self, point: PointId) -> String {
        format!("{}{point}{READ_SUFFIX}", self.prefix())
    }
}

/// Whether a bitmap is one of ours that is only there to be read.
pub fn is_copy(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(READ_SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_told_apart() {
        let id = PointId::from_bytes([0xab; 16]);
        let names = [
            id.scratch(9999),
            id.file(9999),
            id.filter(9999),
            id.making(9999),
        ];
        for (number, name) in names.iter().enumerate() {
            assert!(name.len() <= 31 && name.starts_with(&id.prefix()), "{name}");
            assert!(!names[..number].contains(name), "{name}");
        }
        let owner = Owner::new(b"repository", "web");
        assert_ne!(owner, Owner::new(b"repositoryw", "eb"));
        assert!(is_copy(&owner.copy(id)) && !is_copy(&owner.bitmap(id)));
        assert!(owner.copy(id).starts_with(&owner.prefix()));
    }
}
