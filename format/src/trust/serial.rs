//! Serial numbers of issued certificates.

use std::fmt;
use std::str::FromStr;

use crate::codec::{DecodeError, Problem, Reader};

/// Bytes of a serial number.
pub const SERIAL_LEN: usize = 8;

/// The serial number of a certificate: 62 random bits, shown as 16 hexadecimal digits.
///
/// The first digit is 4 to 7, so that all have the same length as the integers that X.509 makes of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial([u8; SERIAL_LEN]);

/// Text that is no serial number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no serial number: it has 16 hexadecimal digits")]
pub struct NoSerial;

impl Serial {
    /// A serial number of random bytes.
    pub fn from_random(mut bytes: [u8; SERIAL_LEN]) -> Self {
        bytes[0] = bytes[0] & 0x3f | 0x40;
        Self(bytes)
    }

    /// The bytes of one that was made by [`Serial::from_random`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; SERIAL_LEN] = bytes.try_into().ok()?;
        (bytes[0] & 0xc0 == 0x40).then_some(Self(bytes))
    }

    /// Its bytes, the most significant first.
    pub fn as_bytes(&self) -> &[u8; SERIAL_LEN] {
        &self.0
    }

    /// Reads one.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let at = reader.clone();
        Self::from_bytes(reader.take(SERIAL_LEN)?)
            .ok_or_else(|| at.error(Problem::Invalid("serial number")))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

impl FromStr for Serial {
    type Err = NoSerial;

    fn from_str(text: &str) -> Result<Self, NoSerial> {
        let is_hex = text.len() == 2 * SERIAL_LEN && text.bytes().all(|c| c.is_ascii_hexdigit());
        let value = is_hex
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
            .ok_or(NoSerial)?;
        Self::from_bytes(&value.to_be_bytes()).ok_or(NoSerial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_read_back() {
        for first in [0x00, 0x7f, 0x80, 0xff] {
            let serial = Serial::from_random([first, 1, 2, 3, 4, 5, 6, 0xab]);
            assert_eq!(serial.to_string().parse(), Ok(serial));
            assert_eq!(Serial::from_bytes(serial.as_bytes()), Some(serial));
        }
        for text in ["", "4", "+411111111111111", "ff00000000000000", "zz"] {
            assert_eq!(text.parse::<Serial>(), Err(NoSerial), "{text}");
        }
    }
}
