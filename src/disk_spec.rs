//! `SNAPSHOT[:DISK]` on the command line.

use std::fmt;
use std::str::FromStr;

use undercroft_control::{SelectError, SnapshotSpec};

/// A snapshot, or one disk of it.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Which snapshot.
    pub snapshot: SnapshotSpec,
    /// The disk's label.
    pub disk: Option<String>,
}

impl FromStr for DiskSpec {
    type Err = SelectError;

    /// What can be read as a time is one: `VM@2026-11-22T03:00` names no disk `00`.
    fn from_str(text: &str) -> Result<Self, SelectError> {
        let whole = match text.starts_with(':') {
            // No snapshot at all before a disk.
            true => "".parse(),
            false => text.parse(),
        };
        // An id has no colon in it.
        if let Ok(snapshot) = &whole
            && (text.contains('@') || !text.contains(':'))
        {
            let snapshot = SnapshotSpec::clone(snapshot);
            return Ok(Self {
                snapshot,
                disk: None,
            });
        }
        // The longest that is a snapshot: its time may have colons, as the disk's label may.
        let colons = text
            .match_indices(':')
            .filter(|(at, _)| at + 1 < text.len());
        let mut split: Vec<usize> = colons.map(|(at, _)| at).collect();
        if text.contains('@') {
            split.reverse();
        }
        for at in split {
            if let Ok(snapshot) = text[..at].parse() {
                let disk = Some(text[at + 1..].to_owned());
                return Ok(Self { snapshot, disk });
            }
        }
        whole.map(|snapshot| Self {
            snapshot,
            disk: None,
        })
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.disk {
            Some(disk) => write!(f, "{}:{disk}", self.snapshot),
            None => self.snapshot.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_disks_are_told_apart() {
        for (text, snapshot, disk) in [
            ("3f9c", "3f9c", None),
            ("3f9c:root", "3f9c", Some("root")),
            ("3f9c:a:b", "3f9c", Some("a:b")),
            ("web@latest", "web@latest", None),
            ("web@latest:root", "web@latest", Some("root")),
            ("web@latest-2:00", "web@latest-2", Some("00")),
            ("web@2026-11-22T03:00", "web@2026-11-22T03:00", None),
            (
                "web@2026-11-22T03:00:xvda",
                "web@2026-11-22T03:00",
                Some("xvda"),
            ),
            ("web@2026-11-22:xvda", "web@2026-11-22", Some("xvda")),
        ] {
            let spec: DiskSpec = text.parse().expect(text);
            assert_eq!(spec.snapshot.to_string(), snapshot, "{text}");
            assert_eq!(spec.disk.as_deref(), disk, "{text}");
            assert_eq!(spec.to_string(), text);
        }
        for text in ["", ":root", "web@yesterday:root", "@latest:root"] {
            text.parse::<DiskSpec>().expect_err(text);
        }
    }
}
