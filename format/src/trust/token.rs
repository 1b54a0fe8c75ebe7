//! The token that a person copies from the server to a machine that is to be enrolled.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | role: 1 ingest, 2 restore, 3 admin |
//! | 1 | 32 | SHA-256 of the authority's certificate |
//! | 33 | 16 | secret |
//! | 49 | 6 | the first bytes of BLAKE3 of everything before |
//!
//! As text: `uct1` and 88 characters of Crockford's base32, which a reader takes in either case, with
//! `o` for `0` and `i` or `l` for `1`, and with blanks or dashes between.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::fingerprint::{FINGERPRINT_LEN, Fingerprint};
use super::role::Role;
use crate::codec::{DecodeError, Reader};

const PREFIX: &str = "uct1";
const SECRET_LEN: usize = 16;
const CHECK_LEN: usize = 6;
const CHECKED_LEN: usize = 1 + FINGERPRINT_LEN + SECRET_LEN;
const LEN: usize = CHECKED_LEN + CHECK_LEN;
/// Longest text that is looked at, in bytes: room for separators.
const TEXT_LEN_MAX: usize = 512;

/// The right to be enrolled once, and the fingerprint of the authority to be trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is for. The server decides; this is for messages before it is asked.
    pub role: Role,
    /// The authority that issued it.
    pub authority: Fingerprint,
    /// What the server knows it by.
    pub secret: Secret,
}

/// The secret of a token.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; SECRET_LEN]);

/// What a server keeps of a token's secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretHash([u8; 32]);

/// Text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Something else altogether.
    #[error(
        "this is no enrolment token: one begins with {PREFIX} and is printed by `undercroft repository tokens`"
    )]
    NotAToken,
    /// Letters are missing or too many.
    #[error(
        "the token has {found} characters after {PREFIX} and should have {expected}: copy it again, as a whole"
    )]
    Length {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A character that no token has.
    #[error("the token has a {0:?}, which no token has: compare it with what the server printed")]
    Character(char),
    /// The check does not fit: a typing error.
    #[error(
        "the token is mistyped: its check characters do not fit the rest; compare it with what the server printed, or copy it again"
    )]
    Mistyped,
    /// A role that this version does not know.
    #[error("the token is for a role that this version does not know: upgrade undercroft")]
    UnknownRole,
}

impl Secret {
    /// A secret of random bytes.
    pub const fn from_bytes(bytes: [u8; SECRET_LEN]) -> Self {
        Self(bytes)
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.array().map(Self)
    }

    /// Its bytes, to be sent to the server that issued it.
    pub fn as_bytes(&self) -> &[u8; SECRET_LEN] {
        &self.0
    }

    /// What a server keeps of it. A plain hash does: nobody can try all 128-bit secrets.
    pub fn hash(&self) -> SecretHash {
        SecretHash(blake3::derive_key(
            "undercroft 2026-11 enrolment token",
            &self.0,
        ))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl SecretHash {
    /// A hash that was kept.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be kept.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight digits: what listings show and a cancellation names.
    pub fn short(&self) -> String {
        self.0[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({})", self.short())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("role", &self.role)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// The text to be copied.
    ///
    /// This is not [`fmt::Display`], so that no log shows it by accident.
    pub fn to_text(&self) -> zeroize::Zeroizing<String> {
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(LEN));
        bytes.push(self.role.code());
        bytes.extend_from_slice(self.authority.as_bytes());
        bytes.extend_from_slice(self.secret.as_bytes());
        let check = check(&bytes);
        bytes.extend_from_slice(&check);
        zeroize::Zeroizing::new(format!("{PREFIX}{}", BASE32.encode(&bytes)))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() > TEXT_LEN_MAX {
            return Err(TokenError::NotAToken);
        }
        let characters: zeroize::Zeroizing<String> = text
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect::<String>()
            .into();
        let digits = characters
            .strip_prefix(PREFIX)
            .ok_or(TokenError::NotAToken)?;
        if let Some(stray) = digits.chars().find(|c| !is_digit(*c)) {
            return Err(TokenError::Character(stray));
        }
        let expected = BASE32.encode_len(LEN);
        if digits.len() != expected {
            return Err(TokenError::Length {
                found: digits.len(),
                expected,
            });
        }
        let bytes = zeroize::Zeroizing::new(
            BASE32
                .decode(digits.as_bytes())
                .map_err(|_| TokenError::Mistyped)?,
        );
        let (checked, found) = bytes.split_at(CHECKED_LEN);
        if found != check(checked) {
            return Err(TokenError::Mistyped);
        }
        let (fingerprint, secret) = checked[1..].split_at(FINGERPRINT_LEN);
        Ok(Self {
            role: Role::from_code(checked[0]).ok_or(TokenError::UnknownRole)?,
            authority: Fingerprint::from_bytes(fingerprint.try_into().expect("32 bytes")),
            secret: Secret(secret.try_into().expect("what follows is the secret")),
        })
    }
}

/// Crockford's base32, in lower case: no `i`, `l`, `o` and `u`.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification
        .symbols
        .push_str("0123456789abcdefghjkmnpqrstvwxyz");
    specification.translate.from.push_str("oil");
    specification.translate.to.push_str("011");
    specification.encoding().expect("32 different symbols")
});

fn is_digit(c: char) -> bool {
    c.is_ascii_alphanumeric() && c != 'u'
}

fn check(bytes: &[u8]) -> [u8; CHECK_LEN] {
    let hash = blake3::hash(bytes);
    hash.as_bytes()[..CHECK_LEN]
        .try_into()
        .expect("a hash is longer")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token {
            role: Role::Restore,
            authority: Fingerprint::from_bytes([0x77; 32]),
            secret: Secret([0xa5; SECRET_LEN]),
        }
    }

    #[test]
    fn a_token_reads_back_however_it_was_copied() {
        let text = token().to_text();
        assert_eq!(text.len(), 4 + 88);
        let grouped: String = text
            .as_bytes()
            .chunks(7)
            .map(|group| format!("{}- \n", std::str::from_utf8(group).unwrap()))
            .collect();
        let shouted = text.to_uppercase().replace('0', "O").replace('1', "I");
        let shouted = shouted.replacen("UCTI", "UCT1", 1);
        for copy in [&text, &grouped, &shouted] {
            assert_eq!(copy.parse(), Ok(token()), "{copy}");
        }
    }

    #[test]
    fn every_other_character_in_any_place_is_told_as_what_it_is() {
        let text = token().to_text().to_string();
        for place in 4..text.len() {
            for other in ('!'..='~').filter(|c| *c != '-') {
                let mut typed = text.clone();
                typed.replace_range(place..=place, &other.to_string());
                match typed.parse::<Token>() {
                    Ok(read) => assert_eq!(read, token()),
                    Err(TokenError::Mistyped) => assert!(other.is_ascii_alphanumeric()),
                    Err(TokenError::Character(told)) => {
                        assert_eq!(told, other.to_ascii_lowercase());
                    }
                    Err(error) => panic!("{typed}: {error:?}"),
                }
            }
            let mut swapped = text.clone().into_bytes();
            swapped.swap(place, place - 1);
            let swapped = String::from_utf8(swapped).unwrap();
            assert!(swapped == text || swapped.parse::<Token>().is_err());
            assert!(text[..place].parse::<Token>().is_err());
        }
    }

    #[test]
    fn what_is_no_token_is_told_so() {
        for text in ["", "hunter2", "uct2abc", "quic://backup:7420/main"] {
            assert_eq!(text.parse::<Token>(), Err(TokenError::NotAToken), "{text}");
        }
        assert_eq!(
            "uct1abc".parse::<Token>(),
            Err(TokenError::Length {
                found: 3,
                expected: 88
            })
        );
    }

    #[test]
    fn a_token_is_not_shown_by_debug() {
        let text = format!("{:?}", token());
        assert!(!text.contains("a5a5") && !text.contains("165"), "{text}");
    }

    proptest! {
        #[test]
        fn tokens_round_trip(authority: [u8; 32], secret: [u8; 16], role in 0..3_usize) {
            let token = Token {
                role: Role::ALL[role],
                authority: Fingerprint::from_bytes(authority),
                secret: Secret(secret),
            };
            prop_assert_eq!(token.to_text().parse(), Ok(token));
        }

        #[test]
        fn any_text_is_a_token_or_an_error(text in "(uct1)?\\PC{0,120}") {
            let _ = text.parse::<Token>();
        }
    }
}
