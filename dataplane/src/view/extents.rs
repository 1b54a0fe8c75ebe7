//! Where the extents of a disk are: a segment's map is looked up when it is needed, along one path of the tree.

use std::sync::Arc;

use crossbeam_channel::{RecvTimeoutError, bounded};
use undercroft_format::extent::Extent;
use undercroft_format::segment::SegmentMap;
use undercroft_format::units::{DiskRange, SegmentNumber};

use super::disk::Core;
use super::maps::PlacedMap;
use super::queue::{Job, Task};
use super::{Cause, Unreadable};
use crate::disk::Allocation;
use crate::repository::error::{RepositoryError, Result};

/// Segments whose maps are looked for at once where holes are.
const SEGMENTS_AT_ONCE: std::ops::RangeInclusive<u64> = 8..=4096;

impl Core {
    /// Visits the extents of `range`, cut to it, with their places on the disk.
    pub(super) fn each_extent(
        &self,
        range: DiskRange,
        visit: impl FnMut(DiskRange, Extent) -> std::result::Result<(), Unreadable>,
    ) -> std::result::Result<(), Unreadable> {
        self.extents_by(range, Self::map, visit)
    }

    /// The same for a thread that may wait as long as it takes.
    pub(super) fn each_extent_patiently(
        &self,
        range: DiskRange,
        visit: impl FnMut(DiskRange, Extent) -> std::result::Result<(), Unreadable>,
    ) -> std::result::Result<(), Unreadable> {
        let look_up = |core: &Self, number, range| Ok(core.look_up(number, range)?);
        self.extents_by(range, look_up, visit)
    }

    fn extents_by(
        &self,
        range: DiskRange,
        map_of: impl Fn(
            &Self,
            SegmentNumber,
            DiskRange,
        ) -> std::result::Result<Option<Arc<PlacedMap>>, Cause>,
        mut visit: impl FnMut(DiskRange, Extent) -> std::result::Result<(), Unreadable>,
    ) -> std::result::Result<(), Unreadable> {
        let mut at = range.start;
        while at < range.end {
            let number = self.disk.segment_size.segment_at(at);
            let segment = self.disk.segment_size.range_of(number, self.disk.size);
            let part = DiskRange::new(at, range.end.min(segment.end));
            let map =
                map_of(self, number, segment).map_err(|cause| self.unreadable(part, cause))?;
            let local = |at: u64| (at - segment.start) as u32;
            match map {
                None => {
                    let len = part.len() as u32;
                    visit(part, Extent::Zero { len })?;
                }
                Some(map) => {
                    for (start, extent) in map.within(local(part.start), local(part.end)) {
                        let start = segment.start + u64::from(start);
                        let place = DiskRange::new(start, start + u64::from(extent.len()));
                        visit(place, extent)?;
                    }
                }
            }
            at = part.end;
        }
        Ok(())
    }

    /// The map of a segment; `None` if all of the disk is zero.
    fn map(
        &self,
        number: SegmentNumber,
        range: DiskRange,
    ) -> std::result::Result<Option<Arc<PlacedMap>>, Cause> {
        if let Some(root) = self.disk.root
            && let Some(map) = self.shared.cache.map((root, number))
        {
            return Ok(Some(map));
        }
        self.in_time(move |core| core.look_up(number, range))
    }

    /// What `ask` finds out. A server is asked by a thread that can be given up.
    fn in_time<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&Self) -> Result<R> + Send + 'static,
    ) -> std::result::Result<R, Cause> {
        if !self.is_remote {
            return Ok(ask(self)?);
        }
        let (answer, answers) = bounded(1);
        self.shared.queue.push(Job {
            core: self.itself(),
            task: Task::Ask(Box::new(move |core| {
                // Whoever waited may have gone.
                let _ = answer.send(ask(core));
            })),
        });
        match answers.recv_timeout(self.shared.patience()) {
            Ok(found) => Ok(found?),
            Err(error) => Err(self.unanswered(error)),
        }
    }

    pub(super) fn unanswered(&self, error: RecvTimeoutError) -> Cause {
        match error {
            RecvTimeoutError::Timeout => self.shared.silent(),
            RecvTimeoutError::Disconnected => Cause::Fetcher,
        }
    }

    fn look_up(&self, number: SegmentNumber, range: DiskRange) -> Result<Option<Arc<PlacedMap>>> {
        let Some(root) = self.disk.root else {
            return Ok(None);
        };
        if let Some(map) = self.shared.cache.map((root, number)) {
            return Ok(Some(map));
        }
        let objects = self.repository.objects();
        let mut id = None;
        let segment = number.0..number.0 + 1;
        objects.visit_tree(self.disk.tree(), segment, &mut |_, map| {
            id = Some(map);
            Ok(())
        })?;
        let map = match id {
            None => SegmentMap::zero(range.len() as u32),
            Some(id) => {
                let map = objects.segment_map(id)?;
                if u64::from(map.len()) != range.len() {
                    return Err(RepositoryError::ForeignMap { id, range });
                }
                map
            }
        };
        let map = Arc::new(PlacedMap::new(map));
        self.shared.cache.keep_map((root, number), map.clone());
        Ok(Some(map))
    }

    pub(super) fn allocation(
        &self,
        range: DiskRange,
        parts_max: usize,
    ) -> std::result::Result<Vec<Allocation>, Unreadable> {
        let mut parts: Vec<Allocation> = Vec::new();
        let mut add = |range: DiskRange, is_data: bool| {
            let is_full = parts.len() == parts_max;
            match parts.last_mut() {
                Some(last) if last.is_data == is_data => last.range.end = range.end,
                _ if is_full => return false,
                _ => parts.push(Allocation { range, is_data }),
            }
            true
        };
        let (mut at, mut window) = (range.start, *SEGMENTS_AT_ONCE.start());
        'disk: while at < range.end {
            let (found, end) = self.segments_from(at, range.end, window)?;
            window = (2 * window).min(*SEGMENTS_AT_ONCE.end());
            for number in found {
                let segment = self.disk.segment_size.range_of(number, self.disk.size);
                let part = segment.intersect(range);
                if at < part.start && !add(DiskRange::new(at, part.start), false) {
                    break 'disk;
                }
                let mut is_full = false;
                self.each_extent(part, |place, extent| {
                    is_full = is_full || !add(place, matches!(extent, Extent::Data { .. }));
                    Ok(())
                })?;
                if is_full {
                    break 'disk;
                }
                at = part.end;
            }
            if at < end && !add(DiskRange::new(at, end), false) {
                break;
            }
            at = end;
        }
        Ok(parts)
    }

    /// Of `window` segments from that of `at` on, but none from `end` on, those that have data, and where they end.
    fn segments_from(
        &self,
        at: u64,
        end: u64,
        window: u64,
    ) -> std::result::Result<(Vec<SegmentNumber>, u64), Unreadable> {
        let size = self.disk.segment_size;
        let first = size.segment_at(at).0;
        let last = (first + window).min(size.segment_at(end - 1).0 + 1);
        let end = last.saturating_mul(size.bytes()).min(end);
        let found = self.in_time(move |core| {
            let mut found = Vec::new();
            let objects = core.repository.objects();
            objects.visit_tree(core.disk.tree(), first..last, &mut |number, _| {
                found.push(number);
                Ok(())
            })?;
            Ok(found)
        });
        match found {
            Ok(found) => Ok((found, end)),
            Err(cause) => Err(self.unreadable(DiskRange::new(at, end), cause)),
        }
    }
}
