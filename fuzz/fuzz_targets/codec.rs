//! The reader of canonical bytes: every value it gives is written back as the bytes it was read from, no
//! read passes the end, and a count that the rest of the input cannot hold is refused.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use undercroft_format::codec::{Reader, put_string, put_varint};

#[derive(Arbitrary, Debug)]
enum Read {
    Varint { limit: u64 },
    Count { limit: u64, item_len: u8 },
    String { limit: u64 },
    Take { len: u16 },
    Bool,
    Zeros { len: u8 },
    Integers,
}

fuzz_target!(|input: (Vec<Read>, &[u8])| {
    let (reads, bytes) = input;
    let mut reader = Reader::new("fuzz", bytes);
    for read in reads {
        let start = reader.offset();
        let Ok(written) = perform(&read, &mut reader) else {
            assert!(reader.offset() <= bytes.len());
            break;
        };
        assert_eq!(written, bytes[start..reader.offset()], "{read:?}");
        assert_eq!(reader.offset() + reader.remaining(), bytes.len());
    }
    let remaining = reader.remaining();
    assert_eq!(reader.finish().is_ok(), remaining == 0);
});

/// Reads one value and returns its canonical encoding.
fn perform(
    read: &Read,
    reader: &mut Reader<'_>,
) -> Result<Vec<u8>, undercroft_format::codec::DecodeError> {
    let mut written = Vec::new();
    match *read {
        Read::Varint { limit } => {
            let value = reader.varint("value", limit)?;
            assert!(value <= limit);
            put_varint(&mut written, value);
        }
        Read::Count { limit, item_len } => {
            let count = reader.count("count", limit, item_len.into())?;
            assert!(count.checked_mul(item_len.into()).unwrap() <= reader.remaining());
            put_varint(&mut written, count as u64);
        }
        Read::String { limit } => {
            let text = reader.string("text", limit)?;
            assert!(text.len() as u64 <= limit);
            put_string(&mut written, &text);
        }
        Read::Take { len } => written.extend_from_slice(reader.take(len.into())?),
        Read::Bool => written.push(reader.bool()?.into()),
        Read::Zeros { len } => {
            reader.zeros(len.into())?;
            written.resize(len.into(), 0);
        }
        Read::Integers => {
            written.push(reader.u8()?);
            written.extend_from_slice(&reader.u16()?.to_le_bytes());
            written.extend_from_slice(&reader.u32()?.to_le_bytes());
            written.extend_from_slice(&reader.u64()?.to_le_bytes());
        }
    }
    Ok(written)
}
