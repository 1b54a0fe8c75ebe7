//! Where a disk has data, as a file format sees it that holds the disk in units.

use undercroft_format::extent::Extent;
use undercroft_format::snapshot::DiskManifest;
use undercroft_format::units::DiskRange;

use super::{RestoreOptions, windows};
use crate::repository::Repository;
use crate::repository::error::RepositoryError;

/// The units of `unit_len` bytes, a power of two, that hold data, joined where they touch, in order. The last may end
/// behind the disk. What damage hides is left out, if it is allowed.
///
/// # Errors
/// Maps that cannot be read.
pub(super) fn data_parts(
    repository: &dyn Repository,
    disk: &DiskManifest,
    unit_len: u64,
    options: RestoreOptions,
) -> Result<Vec<DiskRange>, RepositoryError> {
    let (objects, tree) = (repository.objects(), disk.tree());
    let mut data: Vec<DiskRange> = Vec::new();
    for window in windows(tree.segments) {
        let mut maps = Vec::new();
        let mut visit = |segments| {
            objects.visit_tree(tree, segments, &mut |number, map| {
                maps.push((number, map));
                Ok(())
            })
        };
        match options.allow_damage {
            false => visit(window)?,
            // One by one, as they are going to be restored.
            true => {
                for number in window {
                    allow_damage(visit(number..number + 1), options)?;
                }
            }
        }
        let ids: Vec<_> = maps.iter().map(|(_, map)| *map).collect();
        objects.records().expect_maps(&ids);
        for (number, map) in maps {
            let start = disk.segment_size.range_of(number, disk.size).start;
            let Some(map) = allow_damage(objects.segment_map(map), options)? else {
                continue;
            };
            for (at, extent) in map.placed() {
                if let Extent::Data { len, .. } = extent {
                    let from = start + u64::from(at);
                    let to = from + u64::from(*len);
                    push_units(&mut data, DiskRange::new(from, to), unit_len);
                }
            }
        }
    }
    Ok(data)
}

/// What was found, or nothing where damage may be.
fn allow_damage<T>(
    found: Result<T, RepositoryError>,
    options: RestoreOptions,
) -> Result<Option<T>, RepositoryError> {
    match found {
        Err(error) if options.allow_damage && error.is_damage() => Ok(None),
        found => found.map(Some),
    }
}

/// Adds the units that `range` touches. Ranges come in order: memory is for the gaps between units alone.
fn push_units(units: &mut Vec<DiskRange>, range: DiskRange, unit_len: u64) {
    let range = DiskRange::new(
        range.start - range.start % unit_len,
        range.end.next_multiple_of(unit_len),
    );
    match units.last_mut() {
        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
        _ => units.push(range),
    }
}
