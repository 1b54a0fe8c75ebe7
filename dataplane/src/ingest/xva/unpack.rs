//! The compression of an XVA, told by its first bytes: gzip, zstd, or none.
//!
//! xapi compresses with the command-line tools at their default levels, so one member or frame is usual; several
//! one after the other are one stream all the same. What is neither is refused.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

use super::pump::{Patience, Pump};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Bytes that tell.
pub const MAGIC_LEN: usize = 5;
/// Bytes read at once of what is compressed.
const PACKED_LEN: usize = 256 << 10;
/// 2^27 bytes of window at most: what `zstd` itself takes unless it is asked for more.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// A stream that is no XVA from its first bytes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotXva {
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
    /// xapi answers twice when an export fails after it began.
    #[error(
        "it begins with HTTP/: the host failed after it had answered that it would export the VM"
    )]
    SecondAnswer,
    /// A page of a web server.
    #[error("it begins with '<': a tar archive, gzip or zstd is expected, not a page of text")]
    Text,
}

impl Compression {
    /// From the first [`MAGIC_LEN`] bytes, or as many as there are.
    pub fn of(head: &[u8]) -> Result<Self, NotXva> {
        match head {
            [] => Err(NotXva::Empty),
            head if head.starts_with(GZIP_MAGIC) => Ok(Self::Gzip),
            head if head.starts_with(ZSTD_MAGIC) => Ok(Self::Zstd),
            head if head.starts_with(b"HTTP/") => Err(NotXva::SecondAnswer),
            head if head.starts_with(b"<") => Err(NotXva::Text),
            // The header's checksum tells whether it is tar.
            _ => Ok(Self::None),
        }
    }

    /// What `packed` holds, unpacked on a thread of its own.
    ///
    /// # Errors
    /// The system can start no thread, or has no memory.
    pub fn unpack(self, packed: Box<dyn Read + Send>, patience: Patience) -> io::Result<Pump> {
        let taken = Arc::<AtomicU64>::default();
        let packed = Counted {
            packed,
            taken: taken.clone(),
        };
        let packed = BufReader::with_capacity(PACKED_LEN, packed);
        let plain: Box<dyn Read + Send> = match self {
            Self::None => Box::new(packed),
            Self::Gzip => Box::new(Unpacked {
                plain: MultiGzDecoder::new(packed),
                compression: self,
                taken,
            }),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(Unpacked {
                    plain: decoder,
                    compression: self,
                    taken,
                })
            }
        };
        Pump::start("xva-unpack", plain, patience)
    }
}

/// What is compressed, and how many bytes of it were taken.
struct Counted {
    packed: Box<dyn Read + Send>,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.packed.read(out)?;
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// A decoder whose errors say what was expected, and where.
struct Unpacked<R> {
    plain: R,
    compression: Compression,
    taken: Arc<AtomicU64>,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.plain
            .read(out)
            .map_err(|error| match error.raw_os_error() {
                // The file's own.
                Some(_) => error,
                None => self.explained(error),
            })
    }
}

impl<R> Unpacked<R> {
    fn explained(&self, error: io::Error) -> io::Error {
        let name = match self.compression {
            Compression::Zstd => "zstd",
            _ => "gzip",
        };
        let taken = self.taken.load(Ordering::Relaxed);
        let said = error.to_string();
        let expected = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                "it is truncated: the compressed data should go on; make the export or the copy again"
            }
            _ if said.contains("incomplete") => {
                "it is truncated: the compressed data should go on; make the export or the copy again"
            }
            _ if said.contains("memory") => {
                "its window is larger than 128 MiB: compress it anew, without --ultra or --long"
            }
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other => {
                "the compressed data is damaged: make the export or the copy again"
            }
            // Of what lies below.
            _ => return error,
        };
        io::Error::new(
            error.kind(),
            format!("unpacking {name}, {taken} bytes of it read: {said}: {expected}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const PATIENT: Patience = Patience {
        is_stopping: || false,
        silence_max: None,
    };

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(packed: &[u8]) -> io::Result<Vec<u8>> {
        let compression = Compression::of(packed).unwrap();
        let mut pump = compression.unpack(Box::new(io::Cursor::new(packed.to_vec())), PATIENT)?;
        let mut plain = Vec::new();
        pump.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn members_and_frames_are_joined_and_whole() {
        let (a, b) = (vec![b'a'; 100_000], vec![b'b'; 200_000]);
        let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
        let expected = [a.clone(), b.clone()].concat();
        for packed in [[gzip(&a), gzip(&b)].concat(), [zstd(&a), zstd(&b)].concat()] {
            assert!(unpacked(&packed).unwrap() == expected);
            for cut in [packed.len() - 1, packed.len() / 2] {
                let error = unpacked(&packed[..cut]).expect_err("it is cut");
                assert!(error.to_string().contains("truncated"), "{cut}: {error}");
            }
            let garbage = [&packed[..], b"garbage"].concat();
            assert!(unpacked(&garbage).is_err());
        }
    }

    #[test]
    fn first_bytes_tell() {
        for (head, expected) in [
            (&b"\x1f\x8b\x08"[..], Ok(Compression::Gzip)),
            (b"\x28\xb5\x2f\xfd", Ok(Compression::Zstd)),
            (b"ova.x", Ok(Compression::None)),
            (b"", Err(NotXva::Empty)),
            (b"HTTP/1.1 500", Err(NotXva::SecondAnswer)),
            (b"<html", Err(NotXva::Text)),
        ] {
            assert_eq!(Compression::of(head), expected);
        }
    }
}
