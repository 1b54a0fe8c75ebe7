//! What surrounds every trust file and message: which kind it is, and that it is whole.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic of the kind |
//! | 8 | 4 | version |
//! | 12 | 4 | length of the body |
//! | 16 | n | body |
//! | 16+n | 32 | BLAKE3 of everything before |
//!
//! The hash finds accidents. Against intent there are the file's permissions, and TLS around messages.

use crate::codec::{DecodeError, Problem, Reader, put_varint};

const HASH_LEN: usize = 32;

/// A kind of file or message.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Names it in errors.
    pub object: &'static str,
    /// Its first bytes.
    pub magic: &'static [u8; 8],
    /// The newest version that this program reads and the one that it writes.
    pub version: u32,
    /// Longest encoding, in bytes.
    pub len_max: usize,
}

impl Kind {
    /// The encoding of `body`.
    pub fn wrap(&self, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.magic.len() + 8 + body.len() + HASH_LEN);
        out.extend_from_slice(self.magic);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(body);
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// A reader of the body in `bytes`.
    pub fn unwrap<'a>(&self, bytes: &'a [u8]) -> Result<Reader<'a>, DecodeError> {
        let mut reader = Reader::new(self.object, bytes);
        if bytes.len() > self.len_max {
            return Err(reader.error(Problem::Limit {
                field: "length",
                value: bytes.len() as u64,
                limit: self.len_max as u64,
            }));
        }
        reader.magic(self.magic)?;
        let version = reader.u32()?;
        let body_len = reader.u32()? as usize;
        let body = reader.take(body_len)?;
        let covered = &bytes[..reader.offset()];
        let hash: [u8; HASH_LEN] = reader.array()?;
        if blake3::hash(covered) != hash {
            return Err(reader.error(Problem::Checksum));
        }
        if version != self.version {
            return Err(reader.error(Problem::Version {
                found: version,
                newest: self.version,
            }));
        }
        reader.finish()?;
        Ok(Reader::new(self.object, body))
    }
}

/// Appends the length of `bytes`, then `bytes`.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Length-prefixed bytes, at most `limit`.
pub fn read_bytes<'a>(
    reader: &mut Reader<'a>,
    field: &'static str,
    limit: usize,
) -> Result<&'a [u8], DecodeError> {
    let len = reader.varint(field, limit as u64)? as usize;
    reader.take(len)
}

/// Appends 1 and `value`, or 0.
pub fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl Fn(&mut Vec<u8>, &T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

/// Reads what [`put_option`] wrote.
pub fn read_option<'a, T>(
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    if reader.bool()? {
        read(reader).map(Some)
    } else {
        Ok(None)
    }
}

/// Checks that `decode` accepts `bytes` and refuses them with any byte changed, left out or added.
#[cfg(test)]
pub fn assert_only_whole<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, DecodeError>) {
    assert!(decode(bytes).is_ok());
    for place in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[place] ^= 1 << (place % 8);
        assert!(decode(&damaged).is_err(), "byte {place}");
        assert!(decode(&bytes[..place]).is_err(), "cut at {place}");
    }
    assert!(decode(&[bytes, b"x"].concat()).is_err());
}
