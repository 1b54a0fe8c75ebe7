//! Reading and writing of canonical bytes: little-endian integers, minimal varints, checked limits.
//!
//! Every decoder of this crate reads through [`Reader`]: it never reads past the end, never allocates
//! more than the input's length justifies, and names the object and the offset in what it reports.

/// Bytes that are not a valid encoding of what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}, byte {offset}: {problem}")]
pub struct DecodeError {
    /// What was being decoded.
    pub object: &'static str,
    /// Where in its encoding the problem lies, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What makes bytes invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The input ends too early.
    #[error("ends early: {needed} more bytes expected")]
    Truncated {
        /// Bytes that should follow.
        needed: usize,
    },
    /// The magic bytes of another kind of object, or none.
    #[error("does not begin with its magic bytes")]
    Magic,
    /// Written by a newer Undercroft, or damaged.
    #[error("format version {found} (this program reads up to {newest}): upgrade undercroft")]
    Version {
        /// Version found.
        found: u32,
        /// Newest version known here.
        newest: u32,
    },
    /// The checksum disagrees with the bytes.
    #[error("checksum mismatch: the bytes are damaged or belong somewhere else")]
    Checksum,
    /// A number exceeds its limit.
    #[error("{field} is {value}, the limit is {limit}")]
    Limit {
        /// The field.
        field: &'static str,
        /// Value found.
        value: u64,
        /// Largest value allowed.
        limit: u64,
    },
    /// A value that the canonical encoding never contains.
    #[error("not canonical: {0}")]
    NotCanonical(&'static str),
    /// A value outside its meaning.
    #[error("invalid {0}")]
    Invalid(&'static str),
    /// Bytes follow the end of the object.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// A cursor over the encoding of one object.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    object: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`; `object` names them in errors.
    pub fn new(object: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            object,
            bytes,
            offset: 0,
        }
    }

    /// An error at the current position.
    pub fn error(&self, problem: Problem) -> DecodeError {
        DecodeError {
            object: self.object,
            offset: self.offset,
            problem,
        }
    }

    /// Position in the input, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        if len > self.remaining() {
            return Err(self.error(Problem::Truncated {
                needed: len - self.remaining(),
            }));
        }
        let taken = &self.bytes[self.offset..self.offset + len];
        self.offset += len;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// A 16-bit integer.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// A 32-bit integer.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A 64-bit integer.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Checks the magic bytes of an object.
    pub fn magic(&mut self, magic: &[u8]) -> Result<(), DecodeError> {
        let at = self.clone();
        if self.take(magic.len())? != magic {
            return Err(at.error(Problem::Magic));
        }
        Ok(())
    }

    /// Bytes that must be zero.
    pub fn zeros(&mut self, len: usize) -> Result<(), DecodeError> {
        let at = self.clone();
        if self.take(len)?.iter().any(|byte| *byte != 0) {
            return Err(at.error(Problem::NotCanonical("reserved bytes are not zero")));
        }
        Ok(())
    }

    /// A LEB128 integer in its shortest form, at most `limit`.
    pub fn varint(&mut self, field: &'static str, limit: u64) -> Result<u64, DecodeError> {
        let at = self.clone();
        let mut value = 0_u64;
        for shift in (0..).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift > 63 || (shift == 63 && bits > 1) {
                return Err(at.error(Problem::Invalid("integer over 64 bits")));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(at.error(Problem::NotCanonical("integer has leading zeros")));
                }
                break;
            }
        }
        if value > limit {
            return Err(at.error(Problem::Limit {
                field,
                value,
                limit,
            }));
        }
        Ok(value)
    }

    /// A count of items that take at least `item_len` bytes each: refused when the rest cannot hold it.
    pub fn count(
        &mut self,
        field: &'static str,
        limit: u64,
        item_len: usize,
    ) -> Result<usize, DecodeError> {
        let count = self.varint(field, limit)? as usize;
        let needed = count.saturating_mul(item_len);
        if needed > self.remaining() {
            return Err(self.error(Problem::Truncated {
                needed: needed - self.remaining(),
            }));
        }
        Ok(count)
    }

    /// Length-prefixed UTF-8 of at most `limit` bytes.
    pub fn string(&mut self, field: &'static str, limit: u64) -> Result<String, DecodeError> {
        let len = self.varint(field, limit)? as usize;
        let at = self.clone();
        let bytes = self.take(len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(at.error(Problem::Invalid("UTF-8"))),
        }
    }

    /// One byte that is 0 or 1.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        let at = self.clone();
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(at.error(Problem::Invalid("flag"))),
        }
    }

    /// Ends the object: nothing may follow.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            more => Err(self.error(Problem::Trailing(more))),
        }
    }
}

/// Appends `value` as a LEB128 integer in its shortest form.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the length of `text`, then `text`.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// XXH3-64 of `bytes`: the checksum of everything at rest. It finds accidents; against intent there are
/// the ids, the snapshot's authenticator and the seals.
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_round_trip(value: u64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut reader = Reader::new("test", &out);
            prop_assert_eq!(reader.varint("value", u64::MAX), Ok(value));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn varints_have_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new("test", &bytes);
            if let Ok(value) = reader.varint("value", u64::MAX) {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(&out[..], &bytes[..reader.offset()]);
            }
        }
    }

    #[test]
    fn a_count_that_the_input_cannot_hold_is_refused_before_allocation() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 1 << 40);
        let error = Reader::new("test", &bytes).count("items", u64::MAX, 32);
        assert!(matches!(
            error,
            Err(DecodeError {
                problem: Problem::Truncated { .. },
                ..
            })
        ));
    }
}
