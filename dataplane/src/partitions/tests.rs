use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use undercroft_format::units::{DiskLength, DiskRange};

use super::*;
use crate::disk::Allocation;

/// Bytes in memory, some of which cannot be read; zeros are holes.
struct Bytes {
    bytes: Vec<u8>,
    lost: DiskRange,
}

impl ReadDisk for Bytes {
    fn size(&self) -> DiskLength {
        DiskLength::new(self.bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = DiskRange::new(offset, offset + out.len() as u64);
        if !range.intersect(self.lost).is_empty() {
            return Err(io::Error::other("lost"));
        }
        let bytes = self
            .bytes
            .get(offset as usize..)
            .and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn allocation(&self, range: DiskRange, parts_max: usize) -> io::Result<Vec<Allocation>> {
        assert!(range.end <= self.bytes.len() as u64);
        let is_data = |at: u64| self.bytes[at as usize] != 0;
        let mut parts: Vec<Allocation> = Vec::new();
        for at in range.start..range.end {
            match parts.last_mut().filter(|part| part.is_data == is_data(at)) {
                Some(part) => part.range.end = at + 1,
                None => {
                    parts.push(Allocation {
                        range: DiskRange::new(at, at + 1),
                        is_data: is_data(at),
                    });
                }
            }
        }
        parts.truncate(parts_max);
        Ok(parts)
    }
}

fn disk(len: usize, lost: DiskRange) -> Arc<Bytes> {
    let bytes = (0..len).map(|at| (at % 251) as u8).collect();
    Arc::new(Bytes { bytes, lost })
}

const NOTHING: DiskRange = DiskRange::new(0, 0);

#[test]
fn window_reads_its_own_bytes_and_no_others() {
    let whole = disk(10_000, NOTHING);
    let window = DiskWindow::new(whole.clone(), DiskRange::new(1000, 3000));
    assert_eq!(window.size().get(), 2000);
    let mut out = [0; 500];
    window.read_at(1500, &mut out).unwrap();
    assert_eq!(out[..], whole.bytes[2500..3000]);
    for offset in [1501, 2000, u64::MAX] {
        let error = window.read_at(offset, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset}");
    }
    let past = DiskWindow::new(whole, DiskRange::new(9000, 12_000));
    assert_eq!(past.range(), DiskRange::new(9000, 10_000));
}

#[test]
fn allocation_of_a_window_counts_from_its_start() {
    let mut whole = Bytes {
        bytes: vec![0; 1000],
        lost: NOTHING,
    };
    whole.bytes[300..400].fill(1);
    let window = DiskWindow::new(Arc::new(whole), DiskRange::new(200, 350));
    let part = |start, end, is_data| Allocation {
        range: DiskRange::new(start, end),
        is_data,
    };
    let parts = window.allocation(DiskRange::new(50, 150), 9).unwrap();
    assert_eq!(parts, [part(50, 100, false), part(100, 150, true)]);
}

#[test]
fn cursor_reads_what_a_file_of_the_same_bytes_reads() {
    let whole = disk(100_000, NOTHING);
    let mut file = io::Cursor::new(whole.bytes.clone());
    let mut cursor = DiskCursor::new(whole.clone());
    for (place, len) in [
        (0, 512),
        (32_760, 16),
        (99_990, 100),
        (5, 70_000),
        (32_768, 1),
        (200_000, 9),
    ] {
        file.seek(SeekFrom::Start(place)).unwrap();
        assert_eq!(cursor.seek(SeekFrom::Start(place)).unwrap(), place);
        let (mut expected, mut read) = (Vec::new(), Vec::new());
        Read::by_ref(&mut file)
            .take(len)
            .read_to_end(&mut expected)
            .unwrap();
        Read::by_ref(&mut cursor)
            .take(len)
            .read_to_end(&mut read)
            .unwrap();
        assert!(read == expected, "{len} bytes at {place}");
    }
    assert_eq!(cursor.seek(SeekFrom::End(-10)).unwrap(), 99_990);
    assert_eq!(cursor.seek(SeekFrom::Current(-90)).unwrap(), 99_900);
    assert!(cursor.seek(SeekFrom::Current(-99_901)).is_err());
}

#[test]
fn cursor_reads_beside_what_is_lost() {
    let mut cursor = DiskCursor::new(disk(100_000, DiskRange::new(1000, 2000)));
    let mut out = [0; 100];
    cursor.seek(SeekFrom::Start(900)).unwrap();
    cursor.read_exact(&mut out).unwrap();
    assert_eq!(out[0], (900 % 251) as u8);
    assert!(cursor.read_exact(&mut out).is_err());
    cursor.seek(SeekFrom::Start(2000)).unwrap();
    cursor.read_exact(&mut out).unwrap();
}

#[test]
fn damaged_start_is_an_error_and_no_empty_table() {
    let error = list(&*disk(100_000, DiskRange::new(0, 4096))).unwrap_err();
    assert_eq!(error.to_string(), "lost");
    assert!(
        list(&*disk(100_000, NOTHING))
            .unwrap()
            .partitions
            .is_empty()
    );
}
