//! Lists of changed extents in JSON: an array with an object per extent.
//!
//! ```json
//! [{"offset": 0, "length": 65536}, {"offset": 1048576, "length": 4096}]
//! ```
//!
//! What is listed changed, unless it says that it did not. The arrays of three programs are such lists:
//!
//! | program | an extent did not change if it has |
//! | --- | --- |
//! | any | `"dirty": false` |
//! | `nbdinfo --json --map=qemu:dirty-bitmap:NAME` (libnbd) | `"description": "clean"` |
//! | `qemu-img map --output=json OVERLAY` (qemu-img(1)) | `"depth"` of 1 or more: it lies in a backing file |
//! | `rbd diff --format json` (rbd(8)) | - |
//!
//! `start` is the position where there is one (of `qemu-img map`, whose `offset` is a place in the file), else
//! `offset`. `data`, `zero` and `present` say nothing about changes: an extent that was zeroed is no data, and
//! `qemu-img map` shows dirty blocks as absent where a bitmap is put in the place of the block status. Other
//! fields are ignored.
//!
//! A list that says of anything that it did not change is a map and tells of the whole disk, so that a map of
//! another disk or a cut one is found out.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, Read};

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::changed::{BLOCK_LEN, ChangedRanges};
use crate::ranges::RangeSet;
use crate::units::{DiskLength, DiskRange};

/// Bytes of text that one extent may take, white space around it included.
const ENTRY_LEN_MAX: usize = 64 << 10;
/// Bytes of text read at once.
const TEXT_LEN: usize = 64 << 10;

/// Why a list does not say what changed on a disk. The texts complete "its list of changed extents ...".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtentsError {
    /// It cannot be read, is no JSON, or not an array of extents.
    #[error("cannot be read at extent {entry}: {source}")]
    Unreadable {
        /// Extents before, which could be read.
        entry: u64,
        /// What is wrong, and in which line.
        source: serde_json::Error,
    },
    /// An extent that tells of something else.
    #[error("tells nothing about changes at extent {entry}: {problem}")]
    NoChange {
        /// Extents before.
        entry: u64,
        /// What it tells of, and what was expected.
        problem: &'static str,
    },
    /// An extent that the disk has no room for.
    #[error(
        "has an extent {offset}+{length} that reaches past the end of a disk of {size} bytes: it belongs to another disk or size"
    )]
    PastEnd {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Size of the disk in bytes.
        size: DiskLength,
    },
    /// A map with gaps, or one that ends elsewhere than the disk.
    #[error(
        "is a map that tells of {found} bytes in a row, but the disk has {size}: it was cut, or belongs to another disk or size"
    )]
    NotWhole {
        /// Bytes from the disk's start up to the first gap.
        found: u64,
        /// Size of the disk in bytes.
        size: DiskLength,
    },
}

/// The ranges that differ, on a disk of `size`, from its parent of `parent_size`: what the list `text` says
/// changed, rounded outwards to 64 KiB, and whatever lies past the parent's end.
///
/// The list may be that of either size. Takes memory for the ranges, at most 32 MiB, and none for the list.
///
/// # Errors
/// The list says nothing about this disk.
pub fn changed_extents(
    text: impl Read,
    size: DiskLength,
    parent_size: DiskLength,
) -> Result<RangeSet, ExtentsError> {
    let allowance = Cell::new(ENTRY_LEN_MAX);
    let mut list = List {
        size,
        longest: size.max(parent_size).get(),
        allowance: &allowance,
        entries: 0,
        changed: ChangedRanges::default(),
        is_map: false,
        told: 0,
        failure: None,
    };
    let text = Allowed {
        text: BufReader::with_capacity(TEXT_LEN, text),
        allowance: &allowance,
    };
    let mut json = serde_json::Deserializer::from_reader(text);
    let read = json.deserialize_seq(&mut list).and_then(|()| json.end());
    if let Some(failure) = list.failure {
        return Err(failure);
    }
    read.map_err(|source| ExtentsError::Unreadable {
        entry: list.entries,
        source,
    })?;
    if list.is_map && list.told != size.get() && list.told != parent_size.get() {
        let found = list.told;
        return Err(ExtentsError::NotWhole { found, size });
    }
    Ok(list.changed.finish(size, parent_size))
}

/// An element of the array.
#[derive(Deserialize)]
struct Entry {
    start: Option<u64>,
    offset: Option<u64>,
    length: u64,
    dirty: Option<bool>,
    #[serde(rename = "type")]
    kind: Option<u64>,
    description: Option<String>,
    depth: Option<u64>,
}

impl Entry {
    /// Whether it says that its bytes changed.
    fn is_changed(&self) -> Result<bool, &'static str> {
        if let Some(dirty) = self.dirty {
            return Ok(dirty);
        }
        match (self.description.as_deref(), self.kind, self.depth) {
            (Some("dirty"), ..) => Ok(true),
            (Some("clean"), ..) => Ok(false),
            (Some(_), ..) | (None, Some(_), _) => Err(
                "its description is neither \"dirty\" nor \"clean\"; nbdinfo tells of changes with --map=qemu:dirty-bitmap:NAME",
            ),
            (None, None, Some(depth)) => Ok(depth == 0),
            (None, None, None) => Ok(true),
        }
    }
}

/// The array as it is read.
struct List<'a> {
    size: DiskLength,
    /// No extent reaches further, but for the rest of its block.
    longest: u64,
    allowance: &'a Cell<usize>,
    entries: u64,
    changed: ChangedRanges,
    /// Something was said not to have changed.
    is_map: bool,
    /// Extents follow each other without a gap from 0 to here.
    told: u64,
    failure: Option<ExtentsError>,
}

impl List<'_> {
    fn take(&mut self, entry: &Entry) -> Result<(), ExtentsError> {
        let no_change = |problem| ExtentsError::NoChange {
            entry: self.entries,
            problem,
        };
        let position = entry.start.or(entry.offset);
        let offset = position.ok_or_else(|| no_change("it has neither an offset nor a start"))?;
        let is_changed = entry.is_changed().map_err(no_change)?;
        let past_end = || ExtentsError::PastEnd {
            offset,
            length: entry.length,
            size: self.size,
        };
        let end = offset.checked_add(entry.length).ok_or_else(past_end)?;
        if end.div_ceil(BLOCK_LEN) > self.longest.div_ceil(BLOCK_LEN) {
            return Err(past_end());
        }
        if offset == self.told {
            self.told = end;
        }
        self.is_map |= !is_changed;
        if is_changed {
            self.changed.add(DiskRange::new(offset, end));
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for &mut List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of extents")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(entry) = array.next_element::<Entry>()? {
            if let Err(failure) = self.take(&entry) {
                self.failure = Some(failure);
                return Err(A::Error::custom("an extent makes no sense"));
            }
            self.entries += 1;
            self.allowance.set(ENTRY_LEN_MAX);
        }
        Ok(())
    }
}

/// Text of which so much may be read before the next extent is complete: bounds memory and time.
struct Allowed<'a, R> {
    text: R,
    allowance: &'a Cell<usize>,
}

impl<R: Read> Read for Allowed<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowance.get().min(out.len());
        if allowed == 0 && !out.is_empty() {
            let text = format!("one extent takes more than {ENTRY_LEN_MAX} bytes");
            return Err(io::Error::other(text));
        }
        let got = self.text.read(&mut out[..allowed])?;
        self.allowance.set(self.allowance.get() - got);
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changed(text: &str, size: u64, parent_size: u64) -> Result<Vec<(u64, u64)>, ExtentsError> {
        let (size, parent_size) = (DiskLength::new(size), DiskLength::new(parent_size));
        let set = changed_extents(text.as_bytes(), size, parent_size)?;
        let ranges = set.ranges().iter();
        Ok(ranges.map(|range| (range.start, range.end)).collect())
    }

    fn error(text: &str, size: u64) -> String {
        changed(text, size, size).unwrap_err().to_string()
    }

    const K64: u64 = 64 << 10;

    #[test]
    fn a_plain_list_names_what_changed_in_any_order() {
        let text = r#" [{"offset": 131073, "length": 1, "exists": "true"}, {"length":0,"offset":9},
            {"start": 5, "offset": 99999999999, "length": 7}] "#;
        let found = changed(text, 5 * K64, 5 * K64).expect("a list");
        assert_eq!(found, [(0, K64), (2 * K64, 3 * K64)]);
        assert_eq!(changed("[]", K64, K64).expect("nothing changed"), []);
        assert_eq!(changed("[]", 3 * K64, 5).expect("it grew"), [(5, 3 * K64)]);
    }

    /// As libnbd 1.14 and QEMU 10.0 print them.
    #[test]
    fn maps_of_other_programs_are_understood() {
        let nbdinfo = r#"[
            { "offset": 0, "length": 524288, "type": 0, "description": "clean"},
            { "offset": 524288, "length": 65536, "type": 1, "description": "dirty"},
            { "offset": 589824, "length": 458752, "type": 0, "description": "clean"}
        ]"#;
        let overlay = r#"[{ "start": 0, "length": 65536, "depth": 1, "present": true, "zero": false, "data": true, "compressed": false, "offset": 327680},
            { "start": 65536, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 327680},
            { "start": 131072, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false, "compressed": false},
            { "start": 196608, "length": 851968, "depth": 1, "present": false, "zero": true, "data": false, "compressed": false}]"#;
        let of = |text| changed(text, 1 << 20, 1 << 20).expect("a map");
        assert_eq!(of(nbdinfo), [(8 * K64, 9 * K64)]);
        assert_eq!(of(overlay), [(K64, 3 * K64)]);
        // What QEMU makes of a bitmap in the place of the block status: the first is clean, the second dirty.
        let confusing = r#"[{ "start": 0, "length": 524288, "depth": 0, "present": true, "zero": false, "data": true, "offset": 0},
            { "start": 524288, "length": 524288, "depth": 0, "present": false, "zero": false, "data": false}]"#;
        assert_eq!(of(confusing), [(0, 1 << 20)]);
    }

    #[test]
    fn what_does_not_fit_the_disk_is_refused() {
        let text = r#"[{"offset":0,"length":65536},{"offset":65536,"length":65537}]"#;
        assert!(error(text, K64).contains("65536+65537 that reaches past the end"));
        assert!(changed(text, K64, 3 * K64).is_ok(), "it shrank");
        let rounded = r#"[{"offset":0,"length":65536}]"#;
        assert_eq!(changed(rounded, 5, 5).expect("a block"), [(0, 5)]);
        let far = r#"[{"offset":18446744073709551615,"length":2}]"#;
        assert!(error(far, K64).contains("past the end"));
    }

    #[test]
    fn a_map_tells_of_the_whole_disk() {
        let map = r#"[{"offset":0,"length":65536,"dirty":false},{"offset":65536,"length":65536,"dirty":true}]"#;
        assert_eq!(
            changed(map, 2 * K64, 2 * K64).expect("whole"),
            [(K64, 2 * K64)]
        );
        assert_eq!(
            changed(map, 2 * K64, 9 * K64).expect("it shrank"),
            [(K64, 2 * K64)]
        );
        let found = changed(map, 9 * K64, 2 * K64).expect("it grew");
        assert_eq!(found, [(K64, 9 * K64)]);
        assert!(error(map, 3 * K64).contains("131072 bytes in a row"));
        let gap = r#"[{"offset":65536,"length":65536,"dirty":false}]"#;
        assert!(error(gap, 2 * K64).contains("tells of 0 bytes in a row"));
    }

    #[test]
    fn what_tells_nothing_about_changes_is_refused() {
        for (text, expected) in [
            (
                r#"[{"offset":0,"length":1},{"length":1}]"#,
                "at extent 1: it has neither",
            ),
            (
                r#"[{"offset":0,"length":1,"type":0,"description":"data"}]"#,
                "neither \"dirty\"",
            ),
            (r#"[{"offset":0,"length":1,"type":0}]"#, "neither \"dirty\""),
            (r#"{"offset":0,"length":1}"#, "an array of extents"),
            (r#"[{"offset":0}]"#, "missing field `length`"),
            (
                r#"[{"offset":-1,"length":1}]"#,
                "cannot be read at extent 0",
            ),
            (r#"[{"offset":0,"length":1e9}]"#, "cannot be read"),
            (r#"[{"offset":0,"length":1,"length":2}]"#, "duplicate field"),
            (r#"[{"offset":0,"length":1}] x"#, "trailing characters"),
            (r#"[{"offset":0,"length":1},"#, "EOF"),
            ("", "EOF"),
        ] {
            let found = error(text, K64);
            assert!(found.contains(expected), "{text}: {found}");
        }
    }

    #[test]
    fn endless_text_is_given_up() {
        for text in ["[{\"x\": \"", "[", "[\n\n", "[[[["] {
            let endless = text
                .as_bytes()
                .chain(io::repeat(text.as_bytes()[text.len() - 1]));
            let found = changed_extents(endless, DiskLength::new(1), DiskLength::new(1));
            assert!(
                matches!(found, Err(ExtentsError::Unreadable { .. })),
                "{text}"
            );
        }
        let endless = b"[]".chain(io::repeat(b' '));
        assert!(changed_extents(endless, DiskLength::new(1), DiskLength::new(1)).is_err());
    }

    proptest! {
        #[test]
        fn a_map_and_the_list_of_its_dirty_extents_mean_the_same(
            lens in proptest::collection::vec((1..40_u64, any::<bool>()), 1..60),
        ) {
            let mut offset = 0;
            let (mut map, mut list) = (Vec::new(), Vec::new());
            for (len, dirty) in lens {
                let length = len * 8192;
                map.push(format!(r#"{{"offset":{offset},"length":{length},"dirty":{dirty}}}"#));
                if dirty {
                    list.push(format!(r#"{{"offset":{offset},"length":{length}}}"#));
                }
                offset += length;
            }
            let of = |entries: &[String]| changed(&format!("[{}]", entries.join(",")), offset, offset);
            prop_assert_eq!(of(&map).expect("a map"), of(&list).expect("a list"));
        }
    }
}
