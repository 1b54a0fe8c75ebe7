//! How a disk is going to be read: changed blocks are used only where nothing speaks against them.

use undercroft_format::lineage::{self, Begins};
use undercroft_format::maptree::Tree;
use undercroft_format::ranges::RangeSet;
use undercroft_format::reason::Reason;
use undercroft_format::snapshot::{DiskManifest, ReadMode};
use undercroft_format::units::{DiskLength, SegmentSize};

use super::changes::ChangedBlocks;
use super::reader::Extent;
use crate::repository::snapshots::StoredSnapshot;

/// How a disk is going to be read.
pub(super) struct Plan {
    pub extent: Extent,
    /// The parent's tree that changed segments are spliced onto.
    pub parent: Option<Tree>,
    pub read_mode: ReadMode,
    pub reasons: Vec<Reason>,
}

impl Plan {
    /// All of it.
    pub fn full(reason: Reason) -> Self {
        Self {
            extent: Extent::All,
            parent: None,
            read_mode: ReadMode::Full,
            reasons: vec![reason],
        }
    }

    /// The same disk, all of it after all.
    pub fn read_in_full(&mut self, reason: Reason) {
        // What was noted of the increment alone.
        let of_increment = [Reason::Grown, Reason::Shrunk, Reason::LineageUnchecked];
        let reasons = std::mem::take(&mut self.reasons);
        *self = Self::full(reason);
        let kept = reasons.into_iter();
        self.reasons
            .extend(kept.filter(|reason| !of_increment.contains(reason)));
    }
}

/// A disk that may be read as an increment.
pub(super) struct Increment<'a> {
    pub label: &'a str,
    pub size: DiskLength,
    pub segment_size: SegmentSize,
    pub lineage: &'a [(String, String)],
    pub vm: &'a str,
}

impl Increment<'_> {
    /// Decides how it is read. What is not obvious goes to `warnings`.
    pub fn plan(
        &self,
        changed: Option<ChangedBlocks>,
        parent: Option<&StoredSnapshot>,
        warnings: &mut Vec<String>,
    ) -> Plan {
        let mut plan = match self.splice(changed, parent, warnings) {
            Ok(plan) => plan,
            Err(reason) => Plan::full(reason),
        };
        if parent.is_some_and(|parent| parent.snapshot.vm != self.vm) {
            plan.reasons.push(Reason::ParentOfOtherVm);
        }
        plan
    }

    fn splice(
        &self,
        changed: Option<ChangedBlocks>,
        parent: Option<&StoredSnapshot>,
        warnings: &mut Vec<String>,
    ) -> Result<Plan, Reason> {
        let Some(parent) = parent else {
            return Err(match changed {
                Some(_) => Reason::NoParent,
                None => Reason::Requested,
            });
        };
        let changed = changed.ok_or(Reason::NoChangedBlocks)?;
        let disk = parent.snapshot.disk(self.label);
        let disk = disk.ok_or(Reason::DiskNotInParent)?;
        if disk.segment_size != self.segment_size {
            return Err(Reason::ParentLayout);
        }
        if parent.incomplete {
            return Err(Reason::ParentDamaged);
        }
        let mut warn = |problem: String, reason: Reason| {
            let label = self.label;
            warnings.push(format!(
                "disk {label}: its {problem}; the disk is read in full"
            ));
            reason
        };
        let begins = lineage::compare(self.lineage, &disk.lineage)
            .map_err(|mismatch| warn(mismatch.to_string(), mismatch.reason()))?;
        let changed = changed
            .ranges(self.size, disk.size)
            .map_err(|error| warn(error.to_string(), error.reason()))?;
        let mut plan = splice_plan(changed, self.size, disk);
        if begins == Begins::Unknown {
            plan.reasons.push(Reason::LineageUnchecked);
        }
        Ok(plan)
    }
}

/// Reads what changed, which covers what lies past the parent's end; a last segment that got shorter is
/// cut.
fn splice_plan(changed: RangeSet, size: DiskLength, parent: &DiskManifest) -> Plan {
    let (new, old) = (size.get(), parent.size.get());
    let segment_size = parent.segment_size;
    let mut reasons = Vec::new();
    let mut touch = None;
    if new > old {
        reasons.push(Reason::Grown);
    } else if new < old {
        reasons.push(Reason::Shrunk);
        if new % segment_size.bytes() != 0 {
            touch = Some(segment_size.segment_at(new));
        }
    }
    Plan {
        extent: Extent::Changed {
            ranges: changed,
            touch,
        },
        parent: Some(parent.tree()),
        read_mode: ReadMode::ChangedBlocks,
        reasons,
    }
}
