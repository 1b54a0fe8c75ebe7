//! `SNAPSHOT[:DISK[:PART]][/PATH]` on the command line.
//!
//! The path begins at the first slash; what is before it is told apart by what there is: first as the name of a disk, then
//! as that of a disk and a partition.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use undercroft_dataplane::files::FilePath;
use undercroft_format::partition::PartitionNumber;

use crate::disk_spec::DiskSpec;
use crate::failure::Problem;

/// A snapshot, a disk of it, a partition of that, or files in it.
#[derive(Clone, Debug)]
pub struct FileSpec {
    /// Which snapshot; its disk may still have a partition behind it.
    pub disk: DiskSpec,
    /// Where in the file system, if anywhere.
    pub path: Option<FilePath>,
    /// All of it, as it was written.
    pub text: String,
}

impl FileSpec {
    /// Splits what was written.
    pub fn parse(text: OsString) -> anyhow::Result<Self> {
        let shown = text.to_string_lossy().into_owned();
        let bytes = text.as_bytes();
        let slash = bytes.iter().position(|byte| *byte == b'/');
        let (head, path) = bytes.split_at(slash.unwrap_or(bytes.len()));
        let head = OsString::from_vec(head.to_vec())
            .into_string()
            .map_err(|_| {
                Problem::usage(format!("{shown}: no snapshot and no disk is called so"))
                    .hint("write SNAPSHOT:DISK/PATH, with PATH as it is on the disk")
            })?;
        let path = match slash {
            Some(_) => {
                let path = FilePath::parse(path);
                Some(path.map_err(|error| Problem::usage(format!("{shown}: {error}")))?)
            }
            None => None,
        };
        Ok(Self {
            disk: head.parse()?,
            path,
            text: shown,
        })
    }

    /// Which of the disks with these labels is meant, and the partition, if one is named.
    pub fn choose(&self, labels: &[&str]) -> anyhow::Result<(usize, Option<PartitionNumber>)> {
        let named = |name: &str| labels.iter().position(|label| *label == name);
        let Some(wanted) = &self.disk.disk else {
            if labels.len() == 1 {
                return Ok((0, None));
            }
            return Err(Problem::usage(format!("{}: which disk?", self.text))
                .hint(format!("its disks are: {}", labels.join(", ")))
                .hint(format!("write {}:DISK/PATH", self.disk))
                .into());
        };
        if let Some(place) = named(wanted) {
            return Ok((place, None));
        }
        let no_disk = |label: &str| {
            Problem::usage(format!("{} has no disk {label}", self.disk.snapshot))
                .hint(format!("its disks are: {}", labels.join(", ")))
        };
        let (label, number) = wanted.rsplit_once(':').ok_or_else(|| no_disk(wanted))?;
        let place = named(label).ok_or_else(|| no_disk(label))?;
        let digits = number.strip_prefix('p').unwrap_or(number);
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits
            .parse()
            .ok()
            .filter(|number| is_number && *number > 0);
        let number = number.ok_or_else(|| {
            Problem::usage(format!(
                "{}: a partition is a number, as in {label}:2 or {label}:p2",
                self.text
            ))
        })?;
        Ok((place, Some(PartitionNumber::new(number))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> FileSpec {
        FileSpec::parse(text.into()).expect(text)
    }

    #[test]
    fn snapshots_disks_partitions_and_paths_are_told_apart() {
        let labels = ["root", "00", "a:b", "a", "a:2"];
        for (text, snapshot, place, part, path) in [
            ("3f9c:root", "3f9c", 0, None, None),
            ("3f9c:root/", "3f9c", 0, None, Some("/")),
            (
                "3f9c:root:2/etc/x:y@z",
                "3f9c",
                0,
                Some(2),
                Some("/etc/x:y@z"),
            ),
            ("3f9c:root:p12", "3f9c", 0, Some(12), None),
            (
                "web@latest:root:1/a//b/",
                "web@latest",
                0,
                Some(1),
                Some("/a/b"),
            ),
            (
                "web@2026-11-22T03:00:root/e",
                "web@2026-11-22T03:00",
                0,
                None,
                Some("/e"),
            ),
            (
                "web@2026-11-22T03:00:00:root:3",
                "web@2026-11-22T03:00:00",
                0,
                Some(3),
                None,
            ),
            (
                "web@2026-11-22T03:00:00+01:00:root:7",
                "web@2026-11-22T03:00:00+01:00",
                0,
                Some(7),
                None,
            ),
            ("web@2026-11-22:00", "web@2026-11-22", 1, None, None),
            ("3f9c:a:b:1", "3f9c", 2, Some(1), None),
            ("3f9c:a:b", "3f9c", 2, None, None),
            ("3f9c:a:1", "3f9c", 3, Some(1), None),
            // What is a disk is no partition.
            ("3f9c:a:2", "3f9c", 4, None, None),
        ] {
            let spec = parsed(text);
            assert_eq!(spec.disk.snapshot.to_string(), snapshot, "{text}");
            let found = spec.choose(&labels).expect(text);
            assert_eq!(found, (place, part.map(PartitionNumber::new)), "{text}");
            assert_eq!(
                spec.path.map(|path| path.to_string()).as_deref(),
                path,
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in [
            "3f9c:root:0",
            "3f9c:root:p",
            "3f9c:root:+2",
            "3f9c:root:x/etc",
            "3f9c:none",
            "3f9c:none:1",
        ] {
            parsed(text).choose(&["root", "data"]).expect_err(text);
        }
        parsed("3f9c/etc")
            .choose(&["root", "data"])
            .expect_err("which disk");
        assert_eq!(parsed("3f9c/etc").choose(&["root"]).unwrap(), (0, None));
        for text in ["/etc/passwd", ":root/etc", "web@yesterday:root/etc"] {
            FileSpec::parse(text.into()).expect_err(text);
        }
    }
}
