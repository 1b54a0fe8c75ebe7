//! Where a disk's state came from, and whether what changed on it begins where its parent ends.
//!
//! A lineage is pairs of names and values that a manifest keeps. Seven names mean something here:
//!
//! | name | value |
//! | --- | --- |
//! | `vdi-uuid` | the virtual disk |
//! | `snapshot-uuid` | the state of it that was read |
//! | `base` | the state that the changes given were counted from |
//! | `cbt-id` | the change tracking, if it has a name: another one when tracking began anew |
//! | `bitmap` | the dirty bitmap that told the changes |
//! | `vhd-uuid` | the VHD that was read |
//! | `vhd-parent-uuid` | the VHD whose child it was, of what changed |
//!
//! An increment is spliced onto its parent only if nothing contradicts it: what both have must be equal, and
//! `base` must be the parent's `snapshot-uuid`, `vhd-parent-uuid` its `vhd-uuid`. What one of them lacks contradicts
//! nothing, with one exception: a bitmap that the parent does not name may have begun after it.

use crate::reason::Reason;

/// The virtual disk.
pub const VDI: &str = "vdi-uuid";
/// The state of the disk that was read.
pub const SNAPSHOT: &str = "snapshot-uuid";
/// The state that changes were counted from.
pub const BASE: &str = "base";
/// The change tracking.
pub const CBT: &str = "cbt-id";
/// The dirty bitmap.
pub const BITMAP: &str = "bitmap";
/// The VHD that was read.
pub const VHD: &str = "vhd-uuid";
/// The VHD whose child holds the changes.
pub const VHD_PARENT: &str = "vhd-parent-uuid";

/// Pairs of a name and a value.
type Lineage = [(String, String)];

/// What speaks for an increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// The changes begin at the state that the parent has.
    AtParent,
    /// Nothing says where they begin.
    Unknown,
}

/// An increment whose changes do not begin at its parent. The text completes "disk NAME: its ...".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {found}, but the parent's {parent_key} is {expected}")]
pub struct LineageMismatch {
    key: &'static str,
    found: String,
    parent_key: &'static str,
    expected: String,
    reason: Reason,
}

impl LineageMismatch {
    /// The reason code of the full read that this leads to.
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

/// Compares the lineage of an increment with that of its parent's disk.
///
/// # Errors
/// The first pair that contradicts.
pub fn compare(disk: &Lineage, parent: &Lineage) -> Result<Begins, LineageMismatch> {
    let must_equal = |key, parent_key, reason| match (value(disk, key), value(parent, parent_key)) {
        (Some(found), Some(expected)) if found != expected => Err(LineageMismatch {
            key,
            found: found.to_owned(),
            parent_key,
            expected: expected.to_owned(),
            reason,
        }),
        (found, expected) => Ok(found.is_some() && expected.is_some()),
    };
    must_equal(VDI, VDI, Reason::LineageVdi)?;
    must_equal(CBT, CBT, Reason::LineageCbt)?;
    let is_child = must_equal(VHD_PARENT, VHD, Reason::LineageBase)?;
    if must_equal(BASE, SNAPSHOT, Reason::LineageBase)? || is_child {
        // Which of the states it is counts, not the name of what told the changes since.
        return Ok(Begins::AtParent);
    }
    must_equal(BITMAP, BITMAP, Reason::LineageBitmap)?;
    if let (Some(found), None) = (value(disk, BITMAP), value(parent, BITMAP)) {
        return Err(LineageMismatch {
            key: BITMAP,
            found: found.to_owned(),
            parent_key: BITMAP,
            expected: "none".to_owned(),
            reason: Reason::LineageBitmap,
        });
    }
    Ok(Begins::Unknown)
}

fn value<'a>(lineage: &'a Lineage, key: &str) -> Option<&'a str> {
    let pair = lineage.iter().find(|(known, _)| known == key);
    pair.map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<(String, String)> {
        let pairs = text.split_whitespace().map(|pair| {
            let (key, value) = pair.split_once('=').expect("a pair");
            (key.to_owned(), value.to_owned())
        });
        pairs.collect()
    }

    fn found(disk: &str, parent: &str) -> Result<Begins, Reason> {
        compare(&of(disk), &of(parent)).map_err(|mismatch| mismatch.reason())
    }

    #[test]
    fn what_both_have_must_be_equal() {
        use Begins::{AtParent, Unknown};
        for (disk, parent, expected) in [
            ("", "", Ok(Unknown)),
            ("vdi-uuid=a", "", Ok(Unknown)),
            ("vdi-uuid=a", "vdi-uuid=a", Ok(Unknown)),
            ("vdi-uuid=a", "vdi-uuid=b", Err(Reason::LineageVdi)),
            ("base=s1", "snapshot-uuid=s1", Ok(AtParent)),
            ("base=s1", "snapshot-uuid=s2", Err(Reason::LineageBase)),
            ("base=s1", "base=s0", Ok(Unknown)),
            ("snapshot-uuid=s2", "snapshot-uuid=s1", Ok(Unknown)),
            (
                "base=s1 vdi-uuid=a",
                "snapshot-uuid=s1 vdi-uuid=b",
                Err(Reason::LineageVdi),
            ),
            (
                "cbt-id=1 base=s1",
                "snapshot-uuid=s1 cbt-id=2",
                Err(Reason::LineageCbt),
            ),
            ("bitmap=x", "bitmap=x", Ok(Unknown)),
            ("bitmap=x", "bitmap=y", Err(Reason::LineageBitmap)),
            // It may have begun after the parent.
            ("bitmap=x", "vdi-uuid=a", Err(Reason::LineageBitmap)),
            ("vdi-uuid=a", "bitmap=x", Ok(Unknown)),
            // A bitmap per state, as libvirt's checkpoints have it.
            (
                "base=s1 bitmap=x",
                "snapshot-uuid=s1 bitmap=y",
                Ok(AtParent),
            ),
            ("vhd-parent-uuid=1 vhd-uuid=2", "vhd-uuid=1", Ok(AtParent)),
            ("vhd-parent-uuid=1", "vhd-uuid=2", Err(Reason::LineageBase)),
            ("vhd-uuid=2", "vhd-uuid=1", Ok(Unknown)),
            ("other=1", "other=2", Ok(Unknown)),
        ] {
            assert_eq!(found(disk, parent), expected, "{disk} onto {parent}");
        }
    }

    #[test]
    fn a_mismatch_says_what_was_expected() {
        let text = compare(&of("base=s1"), &of("snapshot-uuid=s2"))
            .unwrap_err()
            .to_string();
        assert_eq!(text, "base is s1, but the parent's snapshot-uuid is s2");
    }
}
