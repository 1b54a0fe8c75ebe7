//! What can be asked of a server, and which role may ask it.

use std::fmt;

use super::role::Role;

/// To what a verb is done, and so which part of a scope it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To one VM's snapshots in one repository: both must be in scope.
    Vm,
    /// To a repository, whose answer leaves out the VMs that are out of scope: it must be in scope.
    Listing,
    /// To all of a repository: it and all VMs must be in scope.
    Repository,
    /// To all of the server: everything must be in scope.
    Server,
    /// To the peer itself: no scope is needed.
    Itself,
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $verb:ident = $name:literal, $reach:ident;)*) => {
        /// What a peer asks of a server.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verb {
            $($(#[$doc])* $verb,)*
        }

        impl Verb {
            /// Every verb.
            pub const ALL: &[Self] = &[$(Self::$verb,)*];

            /// The words for it, in errors and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$verb => $name,)* }
            }

            /// To what it is done.
            pub const fn reach(self) -> Reach {
                match self { $(Self::$verb => Reach::$reach,)* }
            }
        }
    };
}

verbs! {
    /// List snapshots; those of VMs out of scope are left out.
    List = "list snapshots", Listing;
    /// Read a snapshot's file: its disks, sizes, times.
    ReadSnapshot = "read a snapshot", Vm;
    /// Read a snapshot's map trees and segment maps, which name its chunks: what an increment needs of its
    /// parent.
    ReadMaps = "read a snapshot's maps", Vm;
    /// Read a snapshot's chunks.
    ReadData = "read a snapshot's data", Vm;
    /// Ask which chunks and segment maps are there already, within a session.
    Ask = "ask what is stored already", Vm;
    /// Begin a session that adds a snapshot.
    BeginSession = "begin a session", Vm;
    /// Go on with a session that a proxy lost.
    ResumeSession = "resume a session", Vm;
    /// Send chunks and maps within a session.
    Push = "push data", Vm;
    /// Publish the snapshot of a session.
    Commit = "commit a snapshot", Vm;
    /// Give a session up.
    Abandon = "abandon a session", Vm;
    /// Remove a snapshot.
    Forget = "forget a snapshot", Vm;
    /// Set or lift a snapshot's protection.
    Protect = "protect a snapshot", Vm;
    /// Set or extend a snapshot's retention lock.
    LockUntil = "lock a snapshot", Vm;
    /// Remove the snapshots that a policy does not keep.
    Prune = "prune snapshots", Repository;
    /// Remove the data that no snapshot needs.
    Collect = "collect garbage", Repository;
    /// Check what is stored.
    Verify = "verify a repository", Repository;
    /// Set damage aside.
    Repair = "repair a repository", Repository;
    /// Make the index anew.
    RebuildIndex = "rebuild an index", Repository;
    /// Read a repository's figures.
    Stats = "read a repository's figures", Repository;
    /// Create a repository.
    Create = "create a repository", Repository;
    /// Have a proxy back up a VM.
    RunBackup = "run backups", Vm;
    /// Have a proxy restore a VM's snapshot.
    RunRestore = "run restores", Vm;
    /// Follow and cancel the tasks of a proxy that oneself submitted.
    OwnTasks = "look after its own tasks", Itself;
    /// Follow and cancel the tasks of others, too.
    AllTasks = "look after the tasks of others", Server;
    /// Have a proxy take no tasks, or take them again.
    Suspend = "suspend or resume a proxy", Server;
    /// See what the server does.
    Status = "read the server's status", Server;
    /// See who is connected and what is in flight.
    Sessions = "list sessions", Server;
    /// Make, list and cancel enrolment tokens.
    Tokens = "issue tokens", Server;
    /// List identities.
    Identities = "list identities", Server;
    /// Revoke an identity.
    Revoke = "revoke an identity", Server;
    /// Get a certificate for a token. The token, not a role, says what may be had.
    Enrol = "enrol", Itself;
    /// Get a new certificate before the present one expires.
    Renew = "renew a certificate", Itself;
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// True if `role` may do `verb` within its scope. There is no other place where a role is asked for.
pub const fn allows(role: Role, verb: Verb) -> bool {
    use Verb::{
        Abandon, Ask, BeginSession, Commit, Enrol, List, LockUntil, OwnTasks, Push, ReadData,
        ReadMaps, ReadSnapshot, Renew, ResumeSession, RunBackup, RunRestore,
    };
    match role {
        Role::Admin => true,
        Role::Ingest => matches!(
            verb,
            List | ReadSnapshot
                | ReadMaps
                | Ask
                | BeginSession
                | ResumeSession
                | Push
                | Commit
                | Abandon
                | LockUntil
                | RunBackup
                | OwnTasks
                | Enrol
                | Renew
        ),
        Role::Restore => matches!(
            verb,
            List | ReadSnapshot | ReadMaps | ReadData | RunRestore | OwnTasks | Enrol | Renew
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole matrix: verb, ingest, restore, admin.
    const MATRIX: &[(Verb, bool, bool, bool)] = &[
        (Verb::List, true, true, true),
        (Verb::ReadSnapshot, true, true, true),
        (Verb::ReadMaps, true, true, true),
        (Verb::ReadData, false, true, true),
        (Verb::Ask, true, false, true),
        (Verb::BeginSession, true, false, true),
        (Verb::ResumeSession, true, false, true),
        (Verb::Push, true, false, true),
        (Verb::Commit, true, false, true),
        (Verb::Abandon, true, false, true),
        (Verb::Forget, false, false, true),
        (Verb::Protect, false, false, true),
        (Verb::LockUntil, true, false, true),
        (Verb::Prune, false, false, true),
        (Verb::Collect, false, false, true),
        (Verb::Verify, false, false, true),
        (Verb::Repair, false, false, true),
        (Verb::RebuildIndex, false, false, true),
        (Verb::Stats, false, false, true),
        (Verb::Create, false, false, true),
        (Verb::RunBackup, true, false, true),
        (Verb::RunRestore, false, true, true),
        (Verb::OwnTasks, true, true, true),
        (Verb::AllTasks, false, false, true),
        (Verb::Suspend, false, false, true),
        (Verb::Status, false, false, true),
        (Verb::Sessions, false, false, true),
        (Verb::Tokens, false, false, true),
        (Verb::Identities, false, false, true),
        (Verb::Revoke, false, false, true),
        (Verb::Enrol, true, true, true),
        (Verb::Renew, true, true, true),
    ];

    #[test]
    fn every_role_may_do_what_the_matrix_says() {
        let listed: Vec<Verb> = MATRIX.iter().map(|row| row.0).collect();
        assert_eq!(listed, Verb::ALL);
        for &(verb, ingest, restore, admin) in MATRIX {
            assert_eq!(allows(Role::Ingest, verb), ingest, "ingest: {verb}");
            assert_eq!(allows(Role::Restore, verb), restore, "restore: {verb}");
            assert_eq!(allows(Role::Admin, verb), admin, "admin: {verb}");
        }
    }
}
