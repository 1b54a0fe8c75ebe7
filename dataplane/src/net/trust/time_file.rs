//! The file that keeps the floor of time: see [`super::floor`].
//!
//! Its body, within its [envelope](super::envelope), is a varint of milliseconds. Without the file, the
//! floor is the time when the registry was last written.

use std::path::Path;

use undercroft_format::codec::{DecodeError, Problem};

use super::envelope::Kind;
use super::error::{Result, TrustError};
use super::file;
use super::layout;
use super::time::UnixMs;

const TIME: Kind = Kind {
    object: "latest time",
    magic: b"UCTRTIM\x01",
    version: 1,
    len_max: 128,
};

/// The time in the file in `dir`; zero if there is none.
pub(super) fn load(dir: &Path) -> Result<UnixMs> {
    let path = dir.join(layout::TIME);
    match file::read(&path, TIME.len_max)? {
        Some((bytes, _)) => decode(&bytes).map_err(TrustError::damaged(&path)),
        None => Ok(UnixMs::ZERO),
    }
}

/// Writes the file in `dir`. The caller holds the lock and gives no earlier time than [`load`] did.
pub(super) fn save(dir: &Path, time: UnixMs) -> Result<()> {
    file::replace(&dir.join(layout::TIME), &encode(time))
}

fn encode(time: UnixMs) -> Vec<u8> {
    let mut body = Vec::new();
    time.put(&mut body);
    TIME.wrap(&body)
}

fn decode(bytes: &[u8]) -> Result<UnixMs, DecodeError> {
    let mut reader = TIME.unwrap(bytes)?;
    let time = UnixMs::read(&mut reader)?;
    if reader.remaining() > 0 {
        return Err(reader.error(Problem::Trailing(reader.remaining())));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::super::tests::support::assert_only_whole;
    use super::*;

    #[test]
    fn any_changed_byte_is_found() {
        let bytes = encode(UnixMs::from_seconds(1_764_000_000));
        assert_eq!(decode(&bytes), Ok(UnixMs::from_seconds(1_764_000_000)));
        assert_only_whole(&bytes, decode);
    }
}
