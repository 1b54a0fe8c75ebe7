//! Who a VHD is: a differencing one names its parent by this.

use std::fmt;
use std::str::FromStr;

/// The identity of one state of a disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VhdUuid([u8; 16]);

/// A text that is no UUID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is no UUID: expected 32 hexadecimal digits, as in 01234567-89ab-cdef-0123-456789abcdef"
)]
pub struct ParseUuidError {
    text: String,
}

impl VhdUuid {
    /// Wraps the bytes of a UUID.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, as they stand in footers and headers.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Of 16 bytes that are as good as random: version 8 of RFC 9562, section 5.8.
    pub const fn derived(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// True for that of no disk.
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for VhdUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for VhdUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VhdUuid({self})")
    }
}

impl FromStr for VhdUuid {
    type Err = ParseUuidError;

    fn from_str(text: &str) -> Result<Self, ParseUuidError> {
        let error = || ParseUuidError {
            text: text.chars().take(80).collect(),
        };
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_digit(16).map(|digit| digit as u8))
            .take(33)
            .collect::<Option<_>>()
            .ok_or_else(error)?;
        if digits.len() != 32 {
            return Err(error());
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_back() {
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        let uuid: VhdUuid = text.parse().expect("a UUID");
        assert_eq!(uuid.to_string(), text);
        assert_eq!(text.replace('-', "").to_uppercase().parse(), Ok(uuid));
        for wrong in ["", "0123", &text[1..], &format!("{text}0"), "g1234567"] {
            assert!(wrong.parse::<VhdUuid>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn derived_ones_say_that_they_are() {
        let uuid = VhdUuid::derived([0xff; 16]).to_string();
        assert_eq!(uuid, "ffffffff-ffff-8fff-bfff-ffffffffffff");
    }
}
