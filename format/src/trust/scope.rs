//! What an identity's role extends to: VMs and repositories.

use crate::codec::{DecodeError, Problem, Reader, put_string, put_varint};

use super::pattern::{PATTERN_LEN_MAX, Pattern};

/// Most patterns of VMs, and most of repositories.
pub const PATTERNS_MAX: usize = 32;
/// Most bytes of all patterns together: a scope stands in a certificate, which every handshake carries.
pub const SCOPE_LEN_MAX: usize = 1024;

/// Names of VMs and of repositories. What no pattern matches is out of scope; an empty list matches none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    vms: Vec<Pattern>,
    repositories: Vec<Pattern>,
}

/// Patterns that make no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScopeError {
    /// Too many patterns in a list.
    #[error("{found} patterns of {of}: at most {PATTERNS_MAX} are allowed, so use wider ones")]
    TooMany {
        /// "VMs" or "repositories".
        of: &'static str,
        /// How many.
        found: usize,
    },
    /// Too many bytes.
    #[error(
        "the patterns take {found} bytes: at most {SCOPE_LEN_MAX} are allowed, so use wider ones"
    )]
    TooLong {
        /// How many.
        found: usize,
    },
}

impl Scope {
    /// Those VMs in those repositories. The order does not matter and a pattern given twice counts once.
    ///
    /// # Errors
    /// [`ScopeError`] if there are too many.
    pub fn new(
        vms: impl IntoIterator<Item = Pattern>,
        repositories: impl IntoIterator<Item = Pattern>,
    ) -> Result<Self, ScopeError> {
        let scope = Self {
            vms: sorted(vms),
            repositories: sorted(repositories),
        };
        for (of, list) in [("VMs", &scope.vms), ("repositories", &scope.repositories)] {
            if list.len() > PATTERNS_MAX {
                return Err(ScopeError::TooMany {
                    of,
                    found: list.len(),
                });
            }
        }
        let found = scope.patterns().map(|pattern| pattern.as_str().len()).sum();
        if found > SCOPE_LEN_MAX {
            return Err(ScopeError::TooLong { found });
        }
        Ok(scope)
    }

    /// Everything on the server.
    pub fn everything() -> Self {
        Self {
            vms: vec![Pattern::any()],
            repositories: vec![Pattern::any()],
        }
    }

    /// The patterns of VMs, sorted.
    pub fn vms(&self) -> &[Pattern] {
        &self.vms
    }

    /// The patterns of repositories, sorted.
    pub fn repositories(&self) -> &[Pattern] {
        &self.repositories
    }

    /// True if the VM is in scope.
    pub fn has_vm(&self, vm: &str) -> bool {
        self.vms.iter().any(|pattern| pattern.matches(vm))
    }

    /// True if the repository is in scope.
    pub fn has_repository(&self, name: &str) -> bool {
        self.repositories
            .iter()
            .any(|pattern| pattern.matches(name))
    }

    /// True if every VM is in scope.
    pub fn has_all_vms(&self) -> bool {
        self.vms.iter().any(Pattern::is_any)
    }

    /// True if every repository is in scope.
    pub fn has_all_repositories(&self) -> bool {
        self.repositories.iter().any(Pattern::is_any)
    }

    /// True if all that is in `other` is in this one; see [`Pattern::contains`].
    pub fn contains(&self, other: &Self) -> bool {
        let covers = |ours: &[Pattern], theirs: &[Pattern]| {
            theirs
                .iter()
                .all(|their| ours.iter().any(|our| our.contains(their)))
        };
        covers(&self.vms, &other.vms) && covers(&self.repositories, &other.repositories)
    }

    fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.vms.iter().chain(&self.repositories)
    }

    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        for list in [&self.vms, &self.repositories] {
            put_varint(out, list.len() as u64);
            list.iter()
                .for_each(|pattern| put_string(out, pattern.as_str()));
        }
    }

    /// Reads what `put` wrote.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        let vms = read_patterns(reader)?;
        let repositories = read_patterns(reader)?;
        let scope = Self::new(vms.iter().cloned(), repositories.iter().cloned())
            .map_err(|_| at.error(Problem::Invalid("scope")))?;
        if scope.vms != vms || scope.repositories != repositories {
            return Err(at.error(Problem::NotCanonical("patterns out of order")));
        }
        Ok(scope)
    }
}

fn sorted(patterns: impl IntoIterator<Item = Pattern>) -> Vec<Pattern> {
    let mut patterns: Vec<Pattern> = patterns.into_iter().collect();
    patterns.sort();
    patterns.dedup();
    patterns
}

fn read_patterns(reader: &mut Reader<'_>) -> Result<Vec<Pattern>, DecodeError> {
    let count = reader.count("number of patterns", PATTERNS_MAX as u64, 2)?;
    (0..count)
        .map(|_| {
            let at = reader.clone();
            let text = reader.string("pattern length", PATTERN_LEN_MAX as u64)?;
            text.parse()
                .map_err(|_| at.error(Problem::Invalid("pattern")))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn scope(vms: &[&str], repositories: &[&str]) -> Scope {
        let parse = |texts: &[&str]| -> Vec<Pattern> {
            texts.iter().map(|text| text.parse().expect(text)).collect()
        };
        Scope::new(parse(vms), parse(repositories)).expect("few patterns")
    }

    pub fn any_scope() -> impl Strategy<Value = Scope> {
        let patterns = || proptest::collection::vec("[a-z*?é%& ]{1,9}", 0..4);
        (patterns(), patterns()).prop_map(|(vms, repositories)| {
            let parse = |texts: Vec<String>| texts.into_iter().map(|text| text.parse().unwrap());
            Scope::new(parse(vms), parse(repositories)).unwrap()
        })
    }

    #[test]
    fn a_scope_has_what_one_of_its_patterns_matches() {
        let scope = scope(&["web*", "db1"], &["main"]);
        assert!(scope.has_vm("web7") && scope.has_vm("db1") && !scope.has_vm("db2"));
        assert!(scope.has_repository("main"));
        assert!(!scope.has_repository("other"));
        assert!(!scope.has_all_vms());
        assert!(Scope::everything().has_all_vms());
    }

    #[test]
    fn nothing_outside_a_scope_is_contained_in_it() {
        let wide = scope(&["web*", "db1"], &["*"]);
        assert!(wide.contains(&scope(&["web1", "web2*"], &["main"])));
        assert!(wide.contains(&scope(&[], &[])));
        assert!(!wide.contains(&scope(&["*"], &["main"])));
        assert!(Scope::everything().contains(&wide));
    }

    #[test]
    fn too_many_patterns_are_refused() {
        let many = (0..40).map(|n| format!("vm{n}").parse().unwrap());
        assert!(matches!(
            Scope::new(many, []),
            Err(ScopeError::TooMany { found: 40, .. })
        ));
        let long = (0..20).map(|n| format!("{n:0>100}").parse().unwrap());
        assert!(matches!(
            Scope::new(long, []),
            Err(ScopeError::TooLong { found: 2000 })
        ));
    }

    proptest! {
        #[test]
        fn scopes_round_trip(scope in any_scope()) {
            let mut bytes = Vec::new();
            scope.put(&mut bytes);
            let mut reader = Reader::new("test", &bytes);
            prop_assert_eq!(Scope::read(&mut reader), Ok(scope));
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }
}
