//! Snapshots: listed, read, held, forgotten, protected, locked. Those of VMs out of the caller's scope do not exist
//! for it.

use undercroft_format::id::SnapshotId;
use undercroft_format::lock::LOCK_LEN;
use undercroft_format::snapshot::SNAPSHOT_LEN_MAX;
use undercroft_format::wire::failure::{Failure, FailureCode};
use undercroft_format::wire::snapshots::{
    Forget, HOLDS_MAX, Hold, Lock, LockedUntil, Protect, SnapshotFile, SnapshotState,
};
use undercroft_format::wire::upkeep::Done;

use super::connection::{Conversing, Ending};
use crate::net::convert::failure_of;
use crate::net::trust::Verb;
use crate::repository::Repository;
use crate::repository::error::RepositoryError;
use crate::repository::layout;
use crate::repository::pins::Pin;

/// Lists the directory of snapshots, files included.
pub fn list(on: &mut Conversing) -> Ending {
    on.caller.check_repository(Verb::List)?;
    let snapshots = on.served.repository().snapshots();
    let listing = snapshots.list().map_err(|error| failure_of(&error))?;
    let mut shown = std::collections::HashSet::new();
    for id in &listing.ids {
        if let Some(content) = read_shown(on, *id)? {
            shown.insert(*id);
            let name = id.to_string();
            on.stream.say(&SnapshotFile { name, content })?;
        }
    }
    let marker = |path: String| path.rsplit('/').next().unwrap_or_default().to_owned();
    let protected = listing.protected.iter().filter(|id| shown.contains(id));
    let incomplete = listing.incomplete.iter().filter(|id| shown.contains(id));
    for id in listing.locked.iter().filter(|id| shown.contains(id)) {
        if let Some(content) = lock_file(on, *id)? {
            let name = marker(layout::locked(*id));
            on.stream.say(&SnapshotFile { name, content })?;
        }
    }
    let names: Vec<String> = protected
        .map(|id| marker(layout::protected(*id)))
        .chain(incomplete.map(|id| marker(layout::incomplete(*id))))
        .collect();
    for name in names {
        on.stream.say(&SnapshotFile {
            name,
            content: Vec::new(),
        })?;
    }
    Ok(on.stream.say(&Done)?)
}

/// The bytes of a snapshot's file, if the caller may see it. A file that cannot be decoded shows no VM: it
/// is shown to those who see all.
fn read_shown(on: &Conversing, id: SnapshotId) -> Result<Option<Vec<u8>>, Failure> {
    let path = layout::snapshot(id);
    let read = on
        .served
        .repository()
        .storage()
        .read(&path, SNAPSHOT_LEN_MAX);
    let bytes = match read {
        Ok(bytes) => bytes,
        // Forgotten since it was listed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failure_of(&RepositoryError::io("reading", &path)(error))),
    };
    let snapshots = on.served.repository().snapshots();
    let is_shown = match snapshots.decode(&bytes, id, &path) {
        Ok(snapshot) => on.caller.sees(&snapshot.vm),
        Err(_) => on.caller.sees_all(),
    };
    Ok(is_shown.then_some(bytes))
}

/// Gives a snapshot's file.
pub fn read(on: &mut Conversing, id: SnapshotId) -> Ending {
    on.caller.check_repository(Verb::List)?;
    let content = read_shown(on, id)?.ok_or_else(|| no_such(id))?;
    let name = id.to_string();
    Ok(on.stream.say(&SnapshotFile { name, content })?)
}

/// Says what is known of a snapshot.
pub fn state(on: &mut Conversing, id: SnapshotId) -> Ending {
    on.caller.check_repository(Verb::List)?;
    let exists = |path: String| {
        let found = on.served.repository().storage().exists(&path);
        found.map_err(|error| failure_of(&RepositoryError::io("looking for", &path)(error)))
    };
    let is_there = exists(layout::snapshot(id))? && read_shown(on, id)?.is_some();
    let state = SnapshotState {
        is_there,
        is_protected: is_there && exists(layout::protected(id))?,
        is_incomplete: is_there && exists(layout::incomplete(id))?,
        lock: match is_there {
            true => lock_file(on, id)?,
            false => None,
        },
    };
    Ok(on.stream.say(&state)?)
}

/// The bytes of a snapshot's retention lock. One that is damaged is told as such: it locks all the same.
fn lock_file(on: &Conversing, id: SnapshotId) -> Result<Option<Vec<u8>>, Failure> {
    let path = layout::locked(id);
    let storage = on.served.repository().storage();
    match storage.read(&path, LOCK_LEN as u64) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(_) => Ok(Some(vec![0])),
    }
}

/// Removes snapshots.
pub fn forget(on: &mut Conversing, request: &Forget) -> Ending {
    for id in &request.snapshots {
        check_snapshot(on, Verb::Forget, *id)?;
    }
    let snapshots = on.served.repository().snapshots();
    let forgotten = snapshots.forget(&request.snapshots);
    forgotten.map_err(|error| failure_of(&error))?;
    for id in &request.snapshots {
        tracing::info!(snapshot = %id, peer = %on.caller.peer.name, "forgotten");
    }
    Ok(on.stream.say(&Done)?)
}

/// Locks a snapshot, or extends its lock.
pub fn lock(on: &mut Conversing, request: Lock) -> Ending {
    check_snapshot(on, Verb::LockUntil, request.snapshot)?;
    let snapshots = on.served.repository().snapshots();
    let until = snapshots.lock(request.snapshot, request.end);
    let until = until.map_err(|error| failure_of(&error))?;
    tracing::info!(snapshot = %request.snapshot, peer = %on.caller.peer.name, %until, "locked");
    Ok(on.stream.say(&LockedUntil { until })?)
}

/// Sets or lifts a protection.
pub fn protect(on: &mut Conversing, request: Protect) -> Ending {
    check_snapshot(on, Verb::Protect, request.snapshot)?;
    let snapshots = on.served.repository().snapshots();
    let protected = snapshots.protect(request.snapshot, request.is_protected);
    protected.map_err(|error| failure_of(&error))?;
    Ok(on.stream.say(&Done)?)
}

/// Keeps what snapshots refer to until the client ends the stream.
pub fn hold(on: &mut Conversing, request: Hold) -> Ending {
    if request.snapshots.len() > HOLDS_MAX {
        return Err(Failure::new(FailureCode::Busy, "too many snapshots to hold").into());
    }
    let mut pins = Vec::new();
    for id in request.snapshots {
        check_snapshot(on, Verb::ReadMaps, id)?;
        let repository = on.served.repository();
        if let Some(root) = repository.root() {
            let pin = Pin::set(root, id, &**repository.entropy());
            pins.push(pin.map_err(|error| failure_of(&error))?);
        }
    }
    on.stream.say(&Done)?;
    while on.stream.read()?.is_some() {}
    Ok(())
}

/// Checks that the caller may do `verb` to a snapshot, which an outsider does not learn the existence of.
fn check_snapshot(on: &Conversing, verb: Verb, id: SnapshotId) -> Result<(), Failure> {
    match on.served.repository().snapshots().read(id) {
        Ok(stored) if on.caller.sees(&stored.snapshot.vm) => {
            on.caller.check_vm(verb, &stored.snapshot.vm)
        }
        Ok(_) => Err(no_such(id)),
        // Whoever may do it to any VM's may do it to one that cannot be read.
        Err(error) if error.is_damage() => on.caller.check_repository(Verb::Prune),
        Err(error) => Err(failure_of(&error)),
    }
}

fn no_such(id: SnapshotId) -> Failure {
    failure_of(&RepositoryError::NoSuchSnapshot { id })
}
