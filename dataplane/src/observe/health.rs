//! Health, as it is told: a list of complaints, or none.

use serde::Serialize;

/// Something that is wrong with a daemon. Names no VM, no peer and no id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// What was looked at: one word.
    pub check: &'static str,
    /// The repository that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// What is wrong, in words.
    pub text: String,
}

impl Complaint {
    /// A complaint about the whole daemon.
    pub fn new(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            check,
            repository: None,
            text: text.into(),
        }
    }

    /// The same about one repository.
    pub fn of(mut self, repository: impl Into<String>) -> Self {
        self.repository = Some(repository.into());
        self
    }
}

/// Least free bytes of a file system that can be written to, whatever its size.
const FREE_MAX_NEEDED: u64 = 256 << 20;
/// Of a small one, this part of it is enough.
const FREE_PART: u64 = 100;

/// Bytes of the file system that a store is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of them.
    pub size: u64,
    /// Those that can still be written.
    pub free: u64,
}

impl Space {
    /// Of the file system that has `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(path: &std::path::Path) -> std::io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Self {
            size: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Whether so little is free that backups are about to fail.
    pub fn is_short(self) -> bool {
        self.free < (self.size / FREE_PART).min(FREE_MAX_NEEDED)
    }
}

/// The body of an answer about health.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    /// Whether all is well.
    pub ok: bool,
    /// What is not.
    pub complaints: &'a [Complaint],
}

impl Report<'_> {
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string(self).expect("text and a flag can be written");
        json.push('\n');
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundredth_or_a_quarter_of_a_gibibyte_has_to_be_free() {
        let short = |size, free| Space { size, free }.is_short();
        assert!(short(48 << 20, 400 << 10));
        assert!(!short(48 << 20, 500 << 10));
        assert!(short(10 << 40, 255 << 20));
        assert!(!short(10 << 40, 256 << 20));
    }

    #[test]
    fn a_report_says_what_is_wrong_and_where() {
        let complaints = [Complaint::new("disk_space", "full").of("main")];
        let json = Report {
            ok: false,
            complaints: &complaints,
        }
        .to_json();
        assert_eq!(
            json,
            "{\"ok\":false,\"complaints\":[{\"check\":\"disk_space\",\"repository\":\"main\",\"text\":\"full\"}]}\n"
        );
    }
}
