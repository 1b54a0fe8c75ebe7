//! Who may do what, asked where a conversation begins: the table is [`trust::verb`](crate::net::trust).

use undercroft_format::wire::failure::{Failure, FailureCode};

use crate::net::address::RepositoryName;
use crate::net::trust::{Object, PeerIdentity, Verb};

/// A peer that is let in, and the repository that its connection is for.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub peer: PeerIdentity,
    /// Which repository.
    pub repository: RepositoryName,
}

impl Caller {
    /// Checks that the caller may do `verb` to a VM's snapshots.
    pub fn check_vm(&self, verb: Verb, vm: &str) -> Result<(), Failure> {
        self.check(verb, Some(vm))
    }

    /// Checks that the caller may do `verb` to the repository.
    pub fn check_repository(&self, verb: Verb) -> Result<(), Failure> {
        self.check(verb, None)
    }

    /// Checks that the caller's role includes `verb`, where the object cannot be told: records are asked
    /// for by ids, which nobody can guess; who knows one has read the snapshot or the map that names it.
    pub fn check_role(&self, verb: Verb) -> Result<(), Failure> {
        denied(self.peer.check_within(verb, &self.repository))
    }

    /// True if the VM's snapshots are shown to the caller.
    pub fn sees(&self, vm: &str) -> bool {
        let object = Object {
            repository: Some(&self.repository),
            vm: Some(vm),
        };
        self.peer.check(Verb::ReadSnapshot, object).is_ok()
    }

    /// True if nothing is hidden from the caller.
    pub fn sees_all(&self) -> bool {
        self.peer.scope.has_all_vms()
    }

    fn check(&self, verb: Verb, vm: Option<&str>) -> Result<(), Failure> {
        let object = Object {
            repository: Some(&self.repository),
            vm,
        };
        denied(self.peer.check(verb, object))
    }
}

/// A refusal as a failure.
pub fn denied<T>(result: Result<T, crate::net::trust::Denied>) -> Result<T, Failure> {
    result.map_err(|denied| Failure::new(FailureCode::Denied, denied.to_string()))
}
