//! What changed on a disk since its parent, wherever that is known from.

use std::error::Error;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use undercroft_format::ranges::RangeSet;
use undercroft_format::reason::Reason;
use undercroft_format::source::cbt::{BitmapError, changed_ranges};
use undercroft_format::source::changed::ChangedRanges;
use undercroft_format::source::extents::{ExtentsError, changed_extents};
use undercroft_format::units::DiskLength;

/// What changed on a disk. It is looked at only when there is a parent to apply it to.
pub struct ChangedBlocks(Origin);

enum Origin {
    /// That of a large disk does not fit into memory.
    Text(Box<dyn Read + Send>),
    Known(RangeSet),
    Asked(Box<Ask>),
}

/// Asks for what changed.
type Ask = dyn FnOnce() -> Result<RangeSet, NotTold> + Send;

/// Nobody told what changed.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be had: {}", reasons(&**.source))]
pub struct NotTold {
    /// What would tell, as in `dirty bitmap "daily"`.
    pub what: String,
    /// Why it does not.
    pub source: Box<dyn Error + Send + Sync>,
}

/// Why nothing is known of the changes of a disk. The texts complete "disk NAME: its ...".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangesError {
    /// XAPI's bitmap.
    #[error("changed-block bitmap {0}")]
    Bitmap(#[from] BitmapError),
    /// A list in JSON.
    #[error("list of changed extents {0}")]
    Extents(#[from] ExtentsError),
    /// Somebody who was asked.
    #[error(transparent)]
    NotTold(#[from] NotTold),
}

impl ChangedBlocks {
    /// What `text` says: XAPI's bitmap in base64, or a list of extents in JSON, which the first character
    /// tells apart.
    pub fn text(text: impl Read + Send + 'static) -> Self {
        Self(Origin::Text(Box::new(text)))
    }

    /// Ranges that are known already. They may reach past the disk's end.
    pub fn known(ranges: RangeSet) -> Self {
        Self(Origin::Known(ranges))
    }

    /// Ranges that have to be asked for.
    pub fn asked(ask: impl FnOnce() -> Result<RangeSet, NotTold> + Send + 'static) -> Self {
        Self(Origin::Asked(Box::new(ask)))
    }

    /// The ranges that differ, on a disk of `size`, from its parent of `parent_size`: those that changed,
    /// rounded outwards to 64 KiB, and whatever lies past the parent's end.
    ///
    /// # Errors
    /// What is known says nothing about this disk.
    pub fn ranges(
        self,
        size: DiskLength,
        parent_size: DiskLength,
    ) -> Result<RangeSet, ChangesError> {
        let known = match self.0 {
            Origin::Text(text) => return ranges_of_text(text, size, parent_size),
            Origin::Known(ranges) => ranges,
            Origin::Asked(ask) => ask()?,
        };
        let mut changed = ChangedRanges::default();
        changed.extend(known.ranges().iter().copied());
        Ok(changed.finish(size, parent_size))
    }
}

fn ranges_of_text(
    text: Box<dyn Read + Send>,
    size: DiskLength,
    parent_size: DiskLength,
) -> Result<RangeSet, ChangesError> {
    let mut text = BufReader::new(text);
    match first_character(&mut text).map_err(BitmapError::Unreadable)? {
        // No digits of base64.
        Some(b'[' | b'{') => Ok(changed_extents(text, size, parent_size)?),
        _ => Ok(changed_ranges(text, size, parent_size)?),
    }
}

/// Passes over white space and looks at what follows.
fn first_character(text: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let ahead = match text.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            ahead => ahead?,
        };
        let spaces = ahead.iter().take_while(|byte| byte.is_ascii_whitespace());
        let spaces = spaces.count();
        if let Some(first) = ahead.get(spaces) {
            return Ok(Some(*first));
        }
        if ahead.is_empty() {
            return Ok(None);
        }
        text.consume(spaces);
    }
}

impl ChangesError {
    /// The reason code of the full read that this leads to.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Bitmap(BitmapError::TooShort { .. }) => Reason::BitmapTooShort,
            Self::Bitmap(BitmapError::TooLong { .. }) => Reason::BitmapTooLong,
            Self::Bitmap(_) => Reason::BitmapUnreadable,
            Self::Extents(ExtentsError::PastEnd { .. } | ExtentsError::NotWhole { .. }) => {
                Reason::ExtentsOfOtherDisk
            }
            Self::Extents(_) => Reason::ExtentsUnreadable,
            Self::NotTold(_) => Reason::NoDirtyBitmap,
        }
    }
}

impl fmt::Debug for ChangedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::Text(_) => f.write_str("ChangedBlocks::text"),
            Origin::Known(ranges) => write!(f, "ChangedBlocks::known({} bytes)", ranges.bytes()),
            Origin::Asked(_) => f.write_str("ChangedBlocks::asked"),
        }
    }
}

/// An error and its causes in one line.
fn reasons(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use undercroft_format::units::DiskRange;

    use super::*;

    const SIZE: DiskLength = DiskLength::new(16 << 16);

    fn ranges(changed: ChangedBlocks) -> Result<Vec<DiskRange>, ChangesError> {
        let set = changed.ranges(SIZE, SIZE)?;
        Ok(set.ranges().to_vec())
    }

    fn block(number: u64) -> DiskRange {
        DiskRange::new(number << 16, (number + 1) << 16)
    }

    #[test]
    fn all_origins_tell_the_same() {
        let bitmap = ChangedBlocks::text(&b"\n oAE="[..]);
        let list = &br#"  [{"offset":5,"length":1},{"start":131072,"length":65536},{"offset":983040,"length":9}]"#[..];
        let set: RangeSet = [
            DiskRange::new(9, 10),
            DiskRange::new(2 << 16, (2 << 16) + 1),
        ]
        .into_iter()
        .chain([DiskRange::new(15 << 16, 99 << 16)])
        .collect();
        let asked = set.clone();
        for changed in [
            bitmap,
            ChangedBlocks::text(list),
            ChangedBlocks::known(set),
            ChangedBlocks::asked(move || Ok(asked)),
        ] {
            let name = format!("{changed:?}");
            let found = ranges(changed).expect("it fits the disk");
            assert_eq!(found, [block(0), block(2), block(15)], "{name}");
        }
    }

    #[test]
    fn whatever_is_doubtful_has_a_reason() {
        let text = |text: &'static str| ChangedBlocks::text(text.as_bytes());
        let not_told = || {
            Err(NotTold {
                what: "dirty bitmap \"x\"".into(),
                source: io::Error::other("gone").into(),
            })
        };
        for (changed, reason, expected) in [
            (
                text("AA=="),
                Reason::BitmapTooShort,
                "changed-block bitmap has 1 bytes",
            ),
            (
                text("AAAAAAAA"),
                Reason::BitmapTooLong,
                "changed-block bitmap has more",
            ),
            (
                text("?"),
                Reason::BitmapUnreadable,
                "changed-block bitmap cannot be read",
            ),
            (text(" "), Reason::BitmapTooShort, "has 0 bytes"),
            (
                text("[1]"),
                Reason::ExtentsUnreadable,
                "list of changed extents cannot",
            ),
            (
                text("{}"),
                Reason::ExtentsUnreadable,
                "expected an array of extents",
            ),
            (
                text(r#"[{"offset":1048576,"length":1}]"#),
                Reason::ExtentsOfOtherDisk,
                "reaches past the end",
            ),
            (
                ChangedBlocks::asked(not_told),
                Reason::NoDirtyBitmap,
                "dirty bitmap \"x\" cannot be had: gone",
            ),
        ] {
            let error = ranges(changed).expect_err(expected);
            assert_eq!(error.reason(), reason, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
