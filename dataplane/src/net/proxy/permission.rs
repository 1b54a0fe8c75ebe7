//! Who may do what at a proxy.

use undercroft_format::wire::books::{Entry, Owner};
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::task::Task;

use crate::net::address::RemoteAddress;
use crate::net::trust::{Denied, Object, PeerIdentity, Verb, allows};

/// A peer, as the books have it.
pub fn owner_of(peer: &PeerIdentity) -> Owner {
    Owner {
        name: peer.name.clone(),
        role: peer.role,
        scope: peer.scope.clone(),
    }
}

/// Whether `peer` may submit `task`. Of a restore whose snapshot is named by its id the VM is not known yet:
/// whoever runs it asks again.
pub fn may_submit(peer: &PeerIdentity, task: &Task) -> Result<(), Failure> {
    let repository = task.repository().parse::<RemoteAddress>();
    let repository = repository.map_err(|error| {
        let text = format!("{error}: a proxy works with repositories behind a server");
        Failure::new(FailureCode::Denied, text)
    })?;
    let (verb, vm) = match task {
        Task::Backup(task) => (Verb::RunBackup, Some(task.vm.as_str())),
        Task::Restore(task) => {
            let named = task.snapshot.rsplit_once('@').map(|(vm, _)| vm);
            (Verb::RunRestore, named)
        }
    };
    let object = Object {
        repository: Some(&repository.name),
        vm,
    };
    if vm.is_some() {
        return denied(peer.check(verb, object));
    }
    let has_repository = peer.scope.has_repository(repository.name.as_str());
    denied(match (allows(peer.role, verb), has_repository) {
        (true, true) => Ok(()),
        (true, false) => Err(Denied::Repository {
            name: peer.name.clone(),
            verb,
            repository: repository.name,
        }),
        (false, _) => Err(Denied::Role {
            name: peer.name.clone(),
            role: peer.role,
            verb,
        }),
    })
}

/// Whether `peer` may see and cancel a task.
pub fn may_look_after(peer: &PeerIdentity, entry: &Entry) -> Result<(), Failure> {
    if entry.owner.name == peer.name {
        return denied(peer.check(Verb::OwnTasks, Object::default()));
    }
    denied(peer.check(Verb::AllTasks, Object::default()))
}

/// A refusal as a failure.
pub fn denied<T>(result: Result<T, Denied>) -> Result<T, Failure> {
    result.map_err(|denied| Failure::new(FailureCode::Denied, denied.to_string()))
}
