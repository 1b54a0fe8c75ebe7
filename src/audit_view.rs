//! Audits of increments as `backup` prints them.

use serde::Serialize;
use undercroft_dataplane::ingest::audit::DiskAudit;
use undercroft_format::units::DiskRange;

use crate::report::line;
use crate::units::{Size, count};

/// Sizes of faults for which it is told how likely one would have been missed, in bytes.
const FAULTS: [u64; 3] = [1 << 20, 16 << 20, 256 << 20];

/// The audit of one disk in JSON. Blocks have 64 KiB.
#[derive(Serialize)]
pub struct AuditView<'a> {
    disk: &'a str,
    unchanged_blocks: u64,
    blocks: u64,
    unknown_blocks: u64,
    read_bytes: u64,
    mismatch: Option<DiskRange>,
    missed: Vec<Missed>,
}

#[derive(Serialize)]
struct Missed {
    fault_bytes: u64,
    /// The most that it can be, wherever the fault lies.
    probability: f64,
}

impl<'a> AuditView<'a> {
    /// Of an audit that is over.
    pub fn of(audit: &'a DiskAudit) -> Self {
        let missed = FAULTS.into_iter().map(|fault_bytes| Missed {
            fault_bytes,
            probability: audit.missed(fault_bytes),
        });
        Self {
            disk: &audit.disk,
            unchanged_blocks: audit.unchanged_blocks,
            blocks: audit.blocks,
            unknown_blocks: audit.unknown_blocks,
            read_bytes: audit.read_bytes,
            mismatch: audit.mismatch,
            missed: missed.collect(),
        }
    }

    /// Adds it as text.
    pub fn write(&self, text: &mut String) {
        let found = match (self.mismatch, self.unknown_blocks) {
            (Some(range), _) => format!("bytes {range} differ"),
            (None, 0) => "all as they were".to_owned(),
            (None, unknown) => format!("all as they were, {unknown} more could not be compared"),
        };
        line!(
            text,
            "Audit of {}: {} of {} compared ({} read), {found}",
            self.disk,
            self.blocks,
            count(self.unchanged_blocks, "unchanged block"),
            Size(self.read_bytes),
        );
        if self.mismatch.is_none() && self.unchanged_blocks > 0 {
            let missed = self.missed.iter().map(|missed| {
                let percent = missed.probability * 100.0;
                format!("{} with {percent:.1} %", Size(missed.fault_bytes))
            });
            let missed: Vec<String> = missed.collect();
            line!(
                text,
                "  a fault would have been missed at most: of {}",
                missed.join(", of ")
            );
        }
    }
}
