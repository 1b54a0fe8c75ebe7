//! Tar headers: what a 512-byte block says of the member that follows it.
//!
//! Any of the tar flavours that XVAs are seen in: V7 as xapi writes it, ustar, GNU (long names, sizes in
//! base 256), and pax, whose extended headers [`pax_records`] reads. Sources: POSIX.1-2017, `pax`, "ustar
//! Interchange Format" and "pax Interchange Format"; the GNU tar manual, "Basic Tar Format".

/// Headers, and the payload with its padding, are multiples of this many bytes.
pub const TAR_BLOCK_LEN: usize = 512;

const NAME_LEN: usize = 100;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const MAGIC: std::ops::Range<usize> = 257..263;
const USTAR: &[u8] = b"ustar\0";
const PREFIX: std::ops::Range<usize> = 345..500;

/// What a header announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of which kind the member is.
    pub kind: MemberKind,
    /// Its name, as far as the header holds it. Nothing says that it is UTF-8.
    pub name: Vec<u8>,
    /// Bytes of its payload, padding left out.
    pub size: u64,
}

/// Kinds of members that an XVA may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A file.
    File,
    /// A directory, which says nothing.
    Directory,
    /// GNU: the payload is the next member's name.
    LongName,
    /// GNU: the payload is where the next member links to.
    LongLink,
    /// pax: the payload says more about the next member.
    Extended,
    /// pax: the payload says more about all members.
    Global,
}

/// A block that is no header of an XVA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Not the sum of its bytes.
    #[error("a tar header is expected: its checksum says {stated}, its bytes add up to {computed}")]
    Checksum {
        /// What it says.
        stated: u64,
        /// What it is.
        computed: u64,
    },
    /// A field without a number in it.
    #[error("a tar header is expected: its {field} is no octal or base-256 number of 63 bits")]
    Number {
        /// Which.
        field: &'static str,
    },
    /// A link, a device, a sparse file ...
    #[error("members of tar type {:?} are no part of an XVA: files are expected", char::from(*.0))]
    Kind(u8),
}

impl Header {
    /// Reads a header; `None` for a block of zeros, which ends an archive.
    pub fn parse(block: &[u8; TAR_BLOCK_LEN]) -> Result<Option<Self>, HeaderError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stated = number(&block[CHECKSUM]).ok_or(HeaderError::Number { field: "checksum" })?;
        let computed = checksum(block);
        if stated != computed && Some(stated) != signed_checksum(block) {
            return Err(HeaderError::Checksum { stated, computed });
        }
        let kind = match block[TYPE] {
            0 | b'0' | b'7' => MemberKind::File,
            b'5' => MemberKind::Directory,
            b'L' => MemberKind::LongName,
            b'K' => MemberKind::LongLink,
            b'x' => MemberKind::Extended,
            b'g' => MemberKind::Global,
            other => return Err(HeaderError::Kind(other)),
        };
        let size = number(&block[SIZE]).ok_or(HeaderError::Number { field: "size" })?;
        let mut name = Vec::new();
        let prefix = until_nul(&block[PREFIX]);
        if &block[MAGIC] == USTAR && !prefix.is_empty() {
            name.extend_from_slice(prefix);
            name.push(b'/');
        }
        name.extend_from_slice(until_nul(&block[..NAME_LEN]));
        Ok(Some(Self { kind, name, size }))
    }
}

/// The sum of a header's bytes, those of the checksum counted as spaces.
fn checksum(block: &[u8; TAR_BLOCK_LEN]) -> u64 {
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let field: u64 = block[CHECKSUM].iter().map(|byte| u64::from(*byte)).sum();
    sum - field + 8 * u64::from(b' ')
}

/// The same with signed bytes, as some old programs have it.
fn signed_checksum(block: &[u8; TAR_BLOCK_LEN]) -> Option<u64> {
    let signed = |bytes: &[u8]| bytes.iter().map(|byte| i64::from(*byte as i8)).sum::<i64>();
    let sum = signed(block) - signed(&block[CHECKSUM]) + 8 * i64::from(b' ');
    u64::try_from(sum).ok()
}

fn until_nul(field: &[u8]) -> &[u8] {
    let len = field.iter().position(|byte| *byte == 0);
    &field[..len.unwrap_or(field.len())]
}

/// A number in octal digits between spaces and NULs, or GNU's in base 256; nothing at all is 0.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for byte in &field[1..] {
            value = value.checked_mul(256)? | u64::from(*byte);
        }
        return (value <= i64::MAX as u64).then_some(value);
    }
    let digits = field.trim_ascii_start();
    let len = digits.iter().position(|byte| matches!(byte, 0 | b' '));
    let (digits, rest) = digits.split_at(len.unwrap_or(digits.len()));
    if rest.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => Some(value.checked_mul(8)? + u64::from(digit - b'0')),
        _ => None,
    })
}

/// What a pax extended header says that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaxRecords {
    /// The next member's name.
    pub path: Option<Vec<u8>>,
    /// Bytes of its payload.
    pub size: Option<u64>,
}

/// An extended header that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PaxError {
    /// Not `LENGTH KEY=VALUE\n`.
    #[error("byte {at} of the extended header: a record LENGTH KEY=VALUE is expected")]
    Record {
        /// Where.
        at: usize,
    },
    /// A size that is no number.
    #[error("byte {at} of the extended header: its size is no decimal number of 63 bits")]
    Size {
        /// Where.
        at: usize,
    },
    /// A file with holes that only GNU tar knows.
    #[error("byte {at} of the extended header: GNU sparse files are no part of an XVA")]
    Sparse {
        /// Where.
        at: usize,
    },
}

/// Reads the payload of an extended header.
pub fn pax_records(payload: &[u8]) -> Result<PaxRecords, PaxError> {
    let mut records = PaxRecords::default();
    let mut at = 0;
    while at < payload.len() {
        let (len, key, value) = record(&payload[at..]).ok_or(PaxError::Record { at })?;
        match key {
            b"path" => records.path = Some(value.to_vec()),
            b"size" => records.size = Some(decimal(value).ok_or(PaxError::Size { at })?),
            key if key.starts_with(b"GNU.sparse") => return Err(PaxError::Sparse { at }),
            _ => {}
        }
        at += len;
    }
    Ok(records)
}

/// The first record: its length, key and value.
fn record(bytes: &[u8]) -> Option<(usize, &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let body = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((len, &body[..equals], &body[equals + 1..]))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (value <= i64::MAX as u64).then_some(value)
}

/// The header that xapi writes for a file: V7, mode 0400, owned by root, of 1970.
///
/// Source: mirage/ocaml-tar 2.6.0, `lib/tar.ml`, level V7. `name` has at most 100 bytes.
pub(super) fn v7_header(name: &str, size: u64) -> [u8; TAR_BLOCK_LEN] {
    let mut block = [0; TAR_BLOCK_LEN];
    block[..name.len()].copy_from_slice(name.as_bytes());
    for (range, value) in [
        (100..108, 0o400),
        (108..116, 0),
        (116..124, 0),
        (SIZE, size),
        (MTIME, 0),
    ] {
        put_octal(&mut block[range], value);
    }
    let sum = checksum(&block);
    put_octal(&mut block[CHECKSUM], sum);
    block
}

/// Octal digits that fill a field up to its last byte, a NUL.
fn put_octal(field: &mut [u8], mut value: u64) {
    let digits = field.len() - 1;
    for digit in field[..digits].iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    assert_eq!(value, 0, "callers keep within what a field holds");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_xapi() {
        for (name, size, expected) in [
            ("Ref:4/00000000", 1_048_576, b"0006122\0"),
            ("Ref:4/00000000.xxhash", 16, b"0007422\0"),
        ] {
            let block = v7_header(name, size);
            assert_eq!(&block[CHECKSUM], expected, "{name}");
            assert_eq!(&block[100..108], b"0000400\0");
            assert_eq!(block[156..], [0; 356]);
            let header = Header::parse(&block).unwrap().unwrap();
            assert_eq!(header.name, name.as_bytes());
            assert_eq!((header.kind, header.size), (MemberKind::File, size));
        }
    }

    #[test]
    fn a_changed_bit_is_noticed() {
        let block = v7_header("Ref:4/00000000", 1_048_576);
        for byte in 0..TAR_BLOCK_LEN {
            let mut damaged = block;
            damaged[byte] ^= 1;
            assert_ne!(
                Header::parse(&damaged),
                Header::parse(&block),
                "byte {byte}"
            );
        }
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, expected) in [
            (&b"00000001000\0"[..], Some(512)),
            (b"       1000 ", Some(512)),
            (b"777777777777", Some((1 << 36) - 1)),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\0\x10\0\0\0\0", Some(1 << 36)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"00000001008\0", None),
            (b"0000 0001000", None),
            (b"-0000001000\0", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }

    #[test]
    fn names_have_the_prefix_of_ustar_alone() {
        for (magic, expected) in [(b"ustar\0", &b"a/b"[..]), (b"ustar ", b"b")] {
            let mut block = v7_header("b", 0);
            block[PREFIX.start] = b'a';
            block[MAGIC].copy_from_slice(magic);
            let sum = checksum(&block);
            put_octal(&mut block[CHECKSUM], sum);
            assert_eq!(Header::parse(&block).unwrap().unwrap().name, expected);
        }
    }

    #[test]
    fn pax_records_are_read_and_bounded() {
        let read = pax_records(b"19 path=Ref:4/zero\n16 size=1048576\n8 x=y\xff\n");
        assert_eq!(read, Err(PaxError::Record { at: 35 }));
        let read = pax_records(b"19 path=Ref:4/zero\n16 size=1048576\n6 x=y\n").unwrap();
        assert_eq!(read.path.as_deref(), Some(&b"Ref:4/zero"[..]));
        assert_eq!(read.size, Some(1_048_576));
        for bad in [
            &b"7 x=y"[..],
            b"99 x=y\n",
            b"0 x=y\n",
            b"1 \n",
            b"4 x\n",
            b"99999999999999999999999 x=y\n",
        ] {
            assert_eq!(pax_records(bad), Err(PaxError::Record { at: 0 }), "{bad:?}");
        }
        assert_eq!(pax_records(b"10 size=x\n"), Err(PaxError::Size { at: 0 }));
        let sparse = pax_records(b"22 GNU.sparse.major=1\n");
        assert_eq!(sparse, Err(PaxError::Sparse { at: 0 }));
    }
}
