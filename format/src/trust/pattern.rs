//! Patterns of names: `*` stands for any characters, `?` for one.

use std::fmt;
use std::str::FromStr;

/// Longest pattern, in bytes.
pub const PATTERN_LEN_MAX: usize = 128;

/// A pattern of names. Case matters; there is no escape, so a name's own `*` is matched by any character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(String);

/// Text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern {text:?} {problem}")]
pub struct PatternError {
    text: String,
    problem: &'static str,
}

impl Pattern {
    /// `*`: every name.
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if every name matches.
    pub fn is_any(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }

    /// True if `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        matches(&self.0, name, |pattern, name| {
            pattern == '?' || pattern == name
        })
    }

    /// True if every name that matches `other` matches this one. It may say no where the answer is yes,
    /// as for `a?*` and `a*?`; never yes where the answer is no.
    pub fn contains(&self, other: &Self) -> bool {
        // The other's text stands for its names: its `*` is none of the characters that `?` stands for.
        matches(&self.0, &other.0, |pattern, name| {
            name != '*' && (pattern == '?' || pattern == name)
        })
    }
}

/// Matches with one place to go back to: linear in practice, quadratic at worst, never exponential.
fn matches(pattern: &str, name: &str, equal: impl Fn(char, char) -> bool) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    let mut retry: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        let at = name.clone();
        match (pattern.next(), name.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                retry = Some((pattern.clone(), at.clone()));
                name = at;
                continue;
            }
            (Some(a), Some(b)) if equal(a, b) => continue,
            _ => {}
        }
        let Some((after_star, from)) = &mut retry else {
            return false;
        };
        if from.next().is_none() {
            return false;
        }
        pattern = after_star.clone();
        name = from.clone();
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let problem = match text {
            "" => "is empty",
            text if text.len() > PATTERN_LEN_MAX => "is longer than 128 bytes",
            text if text.chars().any(char::is_control) => "has control characters",
            _ => return Ok(Self(text.to_owned())),
        };
        Err(PatternError {
            text: text.chars().take(80).collect(),
            problem,
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().expect(text)
    }

    #[test]
    fn patterns_match_what_they_say() {
        for (text, yes, no) in [
            ("*", &["", "a", "web01"][..], &[][..]),
            ("web*", &["web", "web01"], &["we", "Web01", "aweb"]),
            ("*-prod", &["a-prod", "-prod", "a-prod-prod"], &["a-prod1"]),
            ("a*b*c", &["abc", "aXbYc", "abbcc"], &["ab", "acb"]),
            ("db?", &["db1", "dbé"], &["db", "db12"]),
        ] {
            for name in yes {
                assert!(pattern(text).matches(name), "{text} {name}");
            }
            for name in no {
                assert!(!pattern(text).matches(name), "{text} {name}");
            }
        }
        let slow = pattern(&"a*".repeat(60));
        assert!(!slow.matches(&format!("{}b", "a".repeat(59)).repeat(2)[..59]));
    }

    #[test]
    fn a_wider_pattern_contains_a_narrower_one() {
        for (wide, narrow, contains) in [
            ("*", "a*b?", true),
            ("web*", "web01", true),
            ("web*", "web0*", true),
            ("web*", "we*", false),
            ("web?", "web*", false),
            ("web?", "web?", true),
            ("web0", "web?", false),
        ] {
            assert_eq!(
                pattern(wide).contains(&pattern(narrow)),
                contains,
                "{wide} {narrow}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_a_contained_pattern_matches_the_container_matches(
            wide in "[ab*?]{1,6}", narrow in "[ab*?]{1,6}", name in "[ab*?]{0,8}"
        ) {
            let (wide, narrow) = (pattern(&wide), pattern(&narrow));
            if wide.contains(&narrow) && narrow.matches(&name) {
                prop_assert!(wide.matches(&name));
            }
        }
    }
}
