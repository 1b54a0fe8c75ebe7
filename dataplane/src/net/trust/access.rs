//! Whether a peer may do what it asks: its role against the verb, its scope against the object.

use super::identity::PeerIdentity;
use super::name::IdentityName;
use super::role::Role;
use super::verb::{Reach, Verb, allows};
use crate::net::address::RepositoryName;

/// What a verb is to be done to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object<'a> {
    /// The repository, if the verb is done to one or to something in it.
    pub repository: Option<&'a RepositoryName>,
    /// The VM, if the verb is done to its snapshots.
    pub vm: Option<&'a str>,
}

/// A peer may not do what it asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// Its role does not include it.
    #[error(
        "{name} has the role {role}, which may not {verb}: enrol with a token for another role"
    )]
    Role {
        /// Who.
        name: IdentityName,
        /// Its role.
        role: Role,
        /// What it asked for.
        verb: Verb,
    },
    /// The VM is not its own.
    #[error(
        "{name} may not {verb} of VM {vm:?}, which is out of its scope: enrol with a token for that VM"
    )]
    Vm {
        /// Who.
        name: IdentityName,
        /// What it asked for.
        verb: Verb,
        /// Of which VM.
        vm: String,
    },
    /// The repository is not its own.
    #[error(
        "{name} may not {verb} in repository {repository}, which is out of its scope: enrol with a token for that repository"
    )]
    Repository {
        /// Who.
        name: IdentityName,
        /// What it asked for.
        verb: Verb,
        /// In which repository.
        repository: RepositoryName,
    },
    /// It concerns more than its scope.
    #[error(
        "{name} may not {verb}, which concerns VMs or repositories out of its scope: ask an administrator of the whole server"
    )]
    TooWide {
        /// Who.
        name: IdentityName,
        /// What it asked for.
        verb: Verb,
    },
}

impl PeerIdentity {
    /// Checks that this peer may do `verb` to `object`.
    ///
    /// # Errors
    /// [`Denied`], whose text may be sent to the peer.
    ///
    /// # Panics
    /// If `object` lacks what the verb is done to: see [`Verb::reach`].
    pub fn check(&self, verb: Verb, object: Object<'_>) -> Result<(), Denied> {
        self.check_role(verb)?;
        match verb.reach() {
            Reach::Itself => Ok(()),
            Reach::Listing => self.check_repository(verb, object),
            Reach::Vm => {
                self.check_repository(verb, object)?;
                self.check_vm(verb, object)
            }
            Reach::Repository => {
                self.check_repository(verb, object)?;
                self.check_whole(verb, self.scope.has_all_vms())
            }
            Reach::Server => self.check_whole(
                verb,
                self.scope.has_all_vms() && self.scope.has_all_repositories(),
            ),
        }
    }

    /// Checks that this peer's role includes `verb` and `repository` is in its scope, whatever the VM.
    ///
    /// # Errors
    /// [`Denied`], as for [`check`](Self::check).
    pub fn check_within(&self, verb: Verb, repository: &RepositoryName) -> Result<(), Denied> {
        self.check_role(verb)?;
        let object = Object {
            repository: Some(repository),
            vm: None,
        };
        self.check_repository(verb, object)
    }

    fn check_role(&self, verb: Verb) -> Result<(), Denied> {
        if allows(self.role, verb) {
            return Ok(());
        }
        Err(Denied::Role {
            name: self.name.clone(),
            role: self.role,
            verb,
        })
    }

    fn check_repository(&self, verb: Verb, object: Object<'_>) -> Result<(), Denied> {
        let repository = object
            .repository
            .expect("the caller names the repository of a verb that is done to one");
        if self.scope.has_repository(repository.as_str()) {
            return Ok(());
        }
        Err(Denied::Repository {
            name: self.name.clone(),
            verb,
            repository: repository.clone(),
        })
    }

    fn check_vm(&self, verb: Verb, object: Object<'_>) -> Result<(), Denied> {
        let vm = object
            .vm
            .expect("the caller names the VM of a verb that is done to its snapshots");
        if self.scope.has_vm(vm) {
            return Ok(());
        }
        Err(Denied::Vm {
            name: self.name.clone(),
            verb,
            vm: vm.chars().take(128).collect(),
        })
    }

    fn check_whole(&self, verb: Verb, is_whole: bool) -> Result<(), Denied> {
        if is_whole {
            return Ok(());
        }
        Err(Denied::TooWide {
            name: self.name.clone(),
            verb,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::scope::Scope;
    use super::super::serial::Serial;
    use super::super::tests::support::scope;
    use super::*;

    fn peer(role: Role, scope: Scope) -> PeerIdentity {
        PeerIdentity {
            name: "p".parse().unwrap(),
            role,
            scope,
            serial: Serial::from_random([0; 8]),
        }
    }

    #[test]
    fn with_everything_in_scope_the_role_alone_decides() {
        let repository = "main".parse().unwrap();
        let object = Object {
            repository: Some(&repository),
            vm: Some("web01"),
        };
        for role in Role::ALL {
            let peer = peer(role, Scope::everything());
            for verb in Verb::ALL {
                assert_eq!(peer.check(*verb, object).is_ok(), allows(role, *verb));
            }
        }
    }

    #[test]
    fn with_nothing_in_scope_a_peer_can_only_look_after_itself() {
        let repository = "main".parse().unwrap();
        let object = Object {
            repository: Some(&repository),
            vm: Some("web01"),
        };
        for role in Role::ALL {
            let peer = peer(role, scope(&[], &[]));
            for verb in Verb::ALL {
                let is_itself = matches!(verb, Verb::Enrol | Verb::Renew | Verb::OwnTasks);
                assert_eq!(
                    peer.check(*verb, object).is_ok(),
                    is_itself && allows(role, *verb),
                    "{role} {verb}"
                );
            }
        }
    }

    #[test]
    fn a_scope_of_some_vms_stops_at_them_and_at_the_whole_repository() {
        let repository = "main".parse().unwrap();
        let admin = peer(Role::Admin, scope(&["web*"], &["main"]));
        let to = |vm| Object {
            repository: Some(&repository),
            vm: Some(vm),
        };
        assert_eq!(admin.check(Verb::Forget, to("web01")), Ok(()));
        assert!(matches!(
            admin.check(Verb::Forget, to("db01")),
            Err(Denied::Vm { .. })
        ));
        assert_eq!(admin.check(Verb::List, to("db01")), Ok(()));
        assert!(matches!(
            admin.check(Verb::Collect, to("web01")),
            Err(Denied::TooWide { .. })
        ));
        let other = "other".parse().unwrap();
        let elsewhere = Object {
            repository: Some(&other),
            vm: Some("web01"),
        };
        assert!(matches!(
            admin.check(Verb::List, elsewhere),
            Err(Denied::Repository { .. })
        ));
    }

    #[test]
    fn an_administrator_of_some_repositories_hands_out_no_tokens() {
        let admin = peer(Role::Admin, scope(&["*"], &["main"]));
        for verb in [Verb::Tokens, Verb::Revoke, Verb::Sessions] {
            assert!(matches!(
                admin.check(verb, Object::default()),
                Err(Denied::TooWide { .. })
            ));
        }
    }

    #[test]
    fn a_denial_says_who_what_and_what_now() {
        let ingest = peer(Role::Ingest, Scope::everything());
        assert_eq!(
            ingest
                .check(Verb::Forget, Object::default())
                .unwrap_err()
                .to_string(),
            "p has the role ingest, which may not forget a snapshot: enrol with a token for another role"
        );
    }
}
