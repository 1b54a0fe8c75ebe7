//! Retention locks: the file that says until when a snapshot can be forgotten by nobody.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `UCLOCK` 00 01 |
//! | 8 | 16 | snapshot id |
//! | 24 | 8 | end of the lock, in milliseconds since 1970-01-01 UTC |
//! | 32 | 8 | XXH3-64 of everything before |

use std::time::Duration;

use crate::codec::{DecodeError, Problem, Reader, checksum, put_varint};
use crate::id::SnapshotId;
use crate::trust::time::UnixMs;

const MAGIC: &[u8; 8] = b"UCLOCK\0\x01";
/// Bytes of a lock's file.
pub const LOCK_LEN: usize = 40;

/// The file of a snapshot that is locked until `until`.
pub fn encode(snapshot: SnapshotId, until: UnixMs) -> [u8; LOCK_LEN] {
    let mut out = [0; LOCK_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..24].copy_from_slice(snapshot.as_bytes());
    out[24..32].copy_from_slice(&until.as_millis().to_le_bytes());
    let sum = checksum(&out[..32]);
    out[32..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Reads the file of `snapshot`'s lock. What cannot be read locks all the same: only the end is not known.
///
/// # Errors
/// If a bit is not as it was written, or the lock is another snapshot's.
pub fn decode(bytes: &[u8], snapshot: SnapshotId) -> Result<UnixMs, DecodeError> {
    let mut reader = Reader::new("retention lock", bytes);
    let start = reader.clone();
    let magic: [u8; 8] = reader.array()?;
    let owner = SnapshotId::from_bytes(reader.array()?);
    let until = reader.u64()?;
    let sum = reader.u64()?;
    reader.finish()?;
    if magic != *MAGIC {
        return Err(start.error(Problem::Invalid("magic")));
    }
    if sum != checksum(&bytes[..LOCK_LEN - 8]) {
        return Err(start.error(Problem::Invalid("checksum")));
    }
    if owner != snapshot || until > UnixMs::MAX.as_millis() {
        return Err(start.error(Problem::Invalid("owner or time")));
    }
    Ok(UnixMs::from_millis(until))
}

/// When a lock is to end, as it is asked for. Whoever sets the lock counts, by its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockEnd {
    /// At this time.
    At(UnixMs),
    /// So long after it is set.
    After(Duration),
}

impl LockEnd {
    /// The end of a lock that is set at `now`.
    pub fn from(self, now: UnixMs) -> UnixMs {
        match self {
            Self::At(time) => time,
            Self::After(duration) => now.after(duration),
        }
    }

    /// Appends the encoding of an end, or of none.
    pub fn put(end: Option<Self>, out: &mut Vec<u8>) {
        let (kind, ms) = match end {
            None => return out.push(0),
            Some(Self::At(time)) => (1, time.as_millis()),
            Some(Self::After(duration)) => (2, UnixMs::ZERO.after(duration).as_millis()),
        };
        out.push(kind);
        put_varint(out, ms);
    }

    /// Reads what [`LockEnd::put`] wrote.
    ///
    /// # Errors
    /// If it is not the one encoding.
    pub fn read(reader: &mut Reader<'_>) -> Result<Option<Self>, DecodeError> {
        let at = reader.clone();
        Ok(match reader.u8()? {
            0 => None,
            1 => Some(Self::At(UnixMs::read(reader)?)),
            2 => {
                let ms = UnixMs::read(reader)?.as_millis();
                Some(Self::After(Duration::from_millis(ms)))
            }
            _ => return Err(at.error(Problem::Invalid("end of a lock"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_other_length_is_found() {
        let snapshot = SnapshotId::from_bytes([7; 16]);
        let until = UnixMs::from_seconds(1_764_000_000);
        let bytes = encode(snapshot, until);
        assert_eq!(decode(&bytes, snapshot), Ok(until));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped, snapshot).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], snapshot).is_err(), "{len} bytes");
        }
        assert!(decode(&[&bytes[..], &[0]].concat(), snapshot).is_err());
        assert!(decode(&bytes, SnapshotId::from_bytes([8; 16])).is_err());
    }
}
