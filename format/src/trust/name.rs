//! Names of identities.

use std::fmt;
use std::str::FromStr;

use crate::codec::{DecodeError, Problem, Reader};

use super::serial::Serial;

/// Longest name of an identity, in bytes.
pub const IDENTITY_NAME_LEN_MAX: usize = 64;

/// The name under which a proxy or a person is enrolled: one live identity has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityName(String);

/// Text that names no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {text:?} {problem}")]
pub struct NameError {
    text: String,
    problem: &'static str,
}

impl IdentityName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads one.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        reader
            .string("length of a name", IDENTITY_NAME_LEN_MAX as u64)?
            .parse()
            .map_err(|_| at.error(Problem::Invalid("name of an identity")))
    }
}

impl FromStr for IdentityName {
    type Err = NameError;

    /// Letters, digits, `.`, `_` and `-`, not beginning with a dot or a dash, and nothing that reads as a
    /// serial number: commands take either.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let problem = match text {
            "" => "is empty",
            text if text.len() > IDENTITY_NAME_LEN_MAX => "is longer than 64 bytes",
            text if text.starts_with(['.', '-']) => "begins with a dot or a dash",
            text if !text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) =>
            {
                "has other characters than letters, digits, '.', '_' and '-'"
            }
            text if text.parse::<Serial>().is_ok() => "reads as a serial number",
            _ => return Ok(Self(text.to_owned())),
        };
        Err(NameError {
            text: text.chars().take(80).collect(),
            problem,
        })
    }
}

impl fmt::Display for IdentityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_says_so() {
        for (text, said) in [
            ("", "empty"),
            (".ssh", "begins with"),
            ("--all", "begins with"),
            ("a/b", "other characters"),
            ("4000000000000000", "serial"),
        ] {
            let error = text.parse::<IdentityName>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!("proxy-1.rack_2".parse::<IdentityName>().is_ok());
    }
}
